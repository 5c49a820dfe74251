//! The server under test as a process, where the caller lets the suite kill it and start it again.
//!
//! Owns: the server's pid file, its death and its next start. Leaves out: the first start and the last end, which are the
//! caller's (`hack/conformance`).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use k8s_cri::v1 as cri;
use rustix::process::{Pid, Signal};

use crate::cri::Cri;

/// How long a server may take to die or to answer.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Server {
    /// Shell command that becomes the server.
    command: String,
    /// Holds the server's pid; rewritten at each start.
    pid_file: PathBuf,
    /// What `start` started, to be reaped.
    child: Mutex<Option<Child>>,
}

impl Server {
    pub fn new(command: String, pid_file: PathBuf) -> Self {
        Self {
            command,
            pid_file,
            child: Mutex::new(None),
        }
    }

    pub fn pid(&self) -> anyhow::Result<i32> {
        let text = std::fs::read_to_string(&self.pid_file)
            .with_context(|| format!("read {}", self.pid_file.display()))?;
        text.trim()
            .parse()
            .with_context(|| format!("{} does not hold a pid", self.pid_file.display()))
    }

    /// Sends `signal` and waits for the end.
    pub async fn end(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid()?;
        send(pid, signal).with_context(|| format!("send {signal:?} to the server, {pid}"))?;
        let deadline = Instant::now() + PATIENCE;
        // Not `alive`: while a thread of it is left, the process holds its locks and sockets as a zombie.
        while Path::new(&format!("/proc/{pid}")).exists() {
            if let Some(child) = &mut *self.child.lock().unwrap_or_else(PoisonError::into_inner) {
                child.try_wait()?;
            }
            if Instant::now() > deadline {
                bail!("the server, {pid}, lives {PATIENCE:?} after {signal:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Starts the server and waits until it answers.
    pub async fn start(&self, cri: &Cri) -> anyhow::Result<()> {
        let child = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("exec {}", self.command))
            .stdin(Stdio::null())
            .spawn()
            .context("start the server again")?;
        let pid = child.id();
        std::fs::write(&self.pid_file, format!("{pid}\n"))?;
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let request = cri::VersionRequest {
                version: String::new(),
            };
            // The runtime service is the last to be up in containerd: its plugins are loaded one after the other.
            match cri.runtime.clone().version(request).await {
                Ok(_) => return Ok(()),
                Err(status) if Instant::now() > deadline => {
                    bail!("the server, started again as {pid}, does not answer: {status}")
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// Whether the process runs; one that has ended and waits for its parent does not.
pub fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.starts_with(['Z', 'X']))
    })
}

/// The parent of a process.
pub fn parent(pid: i32) -> anyhow::Result<i32> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    stat.rsplit(") ")
        .next()
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("/proc/{pid}/stat has no parent: {stat}"))
}

pub fn send(pid: i32, signal: Signal) -> anyhow::Result<()> {
    let target = Pid::from_raw(pid).with_context(|| format!("{pid} is no pid"))?;
    rustix::process::kill_process(target, signal)?;
    Ok(())
}
