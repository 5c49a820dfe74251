//! Starting a monitor: a SEQPACKET pair, one posix_spawn, no code of ours between fork and exec.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use crate::message::Hello;
use crate::{Client, Error, EventStream};

/// A monitor that has answered hello. When the daemon lives on, a task of this module reaps it at its end; when the
/// daemon goes first, the monitor stays.
pub struct Spawned {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub client: Client,
    pub events: EventStream,
    pub hello: Hello,
}

/// Starts a monitor, the `holdfast-monitor` at the absolute path `program`, and says hello to it. What it has to say
/// before `Init` gives it a log of its own goes to the standard error of this process.
pub async fn spawn(program: PathBuf) -> Result<Spawned, Error> {
    let path = program.clone();
    let started = tokio::task::spawn_blocking(move || start(&path)).await;
    let (mut child, pid, pidfd, socket) = started
        .unwrap_or_else(|join| Err(io::Error::other(join)))
        .map_err(|source| Error::Spawn { program, source })?;
    tokio::spawn(async move { child.wait().await });
    let (client, events) = Client::from_socket(socket)?;
    let hello = client.hello().await?;
    Ok(Spawned {
        pid: pid.as_raw_nonzero().get(),
        pidfd,
        client,
        events,
        hello,
    })
}

fn start(program: &Path) -> io::Result<(Child, Pid, OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let child = Command::new(program)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("a child without a pid"))?;
    // The child is not waited for before this, so the pid cannot have been reused.
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    Ok((child, pid, pidfd, ours))
}

/// Waits until the process of `pidfd` has ended, whosever child it is. Cancel-safe.
pub async fn ended(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    // tokio's pipe end only waits for readiness here; nothing is read.
    let watched = pipe::Receiver::from_owned_fd_unchecked(pidfd.try_clone_to_owned()?)?;
    watched.readable().await
}
