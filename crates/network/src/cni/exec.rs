//! One execution of one plugin: bounded in time, output and what it leaves running.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::{Error, Result};

/// A result larger than this is no result.
pub(crate) const MAX_STDOUT: usize = 1 << 20;
/// As much of the end of the plugin's standard error is kept.
const MAX_STDERR: usize = 16 << 10;
/// As much of it goes into an error.
const SHOWN: usize = 400;
/// Something that a plugin started and left behind may hold its pipes; they are read no longer than this.
const LINGER: Duration = Duration::from_millis(500);
/// A plugin that is just being replaced is "text file busy" for a moment.
const BUSY_TRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// What to execute.
pub(crate) struct Call<'a> {
    pub path: &'a Path,
    pub plugin: &'a str,
    pub command: &'static str,
    pub env: Vec<(&'static str, OsString)>,
    pub input: Vec<u8>,
    pub deadline: Duration,
}

/// Runs it; standard output, if it exited with 0.
pub(crate) async fn run(call: Call<'_>) -> Result<Vec<u8>> {
    let mut child = spawn(&call).await?;
    let group = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok().and_then(Pid::from_raw));
    let outcome = timeout(call.deadline, drive(&mut child, &call)).await;
    let done = match outcome {
        Ok(Ok(done)) => done,
        failed => {
            // The child is not reaped yet, so the group is still its.
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait().await;
            return Err(match failed {
                Ok(Err(error)) => error,
                _ => Error::PluginTimeout {
                    plugin: call.plugin.into(),
                    command: call.command,
                    after: call.deadline,
                },
            });
        }
    };
    if done.status.success() {
        return Ok(done.stdout);
    }
    Err(Error::PluginFailed {
        plugin: call.plugin.into(),
        command: call.command,
        reason: explain(&done),
    })
}

struct Done {
    status: std::process::ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

async fn spawn(call: &Call<'_>) -> Result<Child> {
    let mut tries = 0;
    loop {
        let mut command = Command::new(call.path);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir("/")
            .process_group(0)
            .kill_on_drop(true)
            .envs(call.env.iter().map(|(k, v)| (k, v)));
        holdfast_sys::process::keep_service_private(command.as_std_mut());
        match command.spawn() {
            Ok(child) => return Ok(child),
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                sleep(BUSY_PAUSE).await;
            }
            Err(source) => {
                return Err(Error::PluginExec {
                    path: call.path.into(),
                    source,
                });
            }
        }
    }
}

/// Feeds it, reads it and waits for it, all at once.
async fn drive(child: &mut Child, call: &Call<'_>) -> Result<Done> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A plugin that does not read its input is free not to.
            let _ = stdin.write_all(&call.input).await;
        }
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut too_much = false;
    let status = {
        let read = async {
            tokio::join!(
                feed,
                read_bounded(stdout, &mut out, &mut too_much),
                read_tail(stderr, &mut err)
            );
        };
        tokio::pin!(read);
        tokio::select! {
            status = child.wait() => {
                let _ = timeout(LINGER, &mut read).await;
                status
            }
            () = &mut read => child.wait().await,
        }
    };
    if too_much {
        return Err(garbage(
            call.plugin,
            call.command,
            "more than 1 MiB of output",
            &out,
        ));
    }
    let status = status.map_err(|source| Error::PluginExec {
        path: call.path.into(),
        source,
    })?;
    Ok(Done {
        status,
        stdout: out,
        stderr: err,
    })
}

/// Reads to the end, or to one byte more than is allowed; the pipe is closed then, which ends most writers.
async fn read_bounded(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>, too_much: &mut bool) {
    if let Some(from) = from {
        let _ = from.take(MAX_STDOUT as u64 + 1).read_to_end(into).await;
    }
    *too_much = into.len() > MAX_STDOUT;
}

async fn read_tail(from: Option<impl AsyncRead + Unpin>, tail: &mut Vec<u8>) {
    let Some(mut from) = from else {
        return;
    };
    let mut chunk = [0u8; 4096];
    while let Ok(n @ 1..) = from.read(&mut chunk).await {
        tail.extend_from_slice(&chunk[..n]);
        let excess = tail.len().saturating_sub(MAX_STDERR);
        tail.drain(..excess);
    }
}

/// Why a plugin failed: its own error object, else how it ended and what it wrote.
fn explain(done: &Done) -> String {
    #[derive(serde::Deserialize)]
    struct Reported {
        code: i64,
        #[serde(default)]
        msg: String,
        #[serde(default)]
        details: String,
    }
    let mut text = match serde_json::from_slice::<Reported>(&done.stdout) {
        Ok(Reported { code, msg, details }) => {
            let details = if details.is_empty() {
                details
            } else {
                format!("; {details}")
            };
            format!(
                "{}{} (code {code})",
                printable(msg.as_bytes(), SHOWN),
                printable(details.as_bytes(), SHOWN)
            )
        }
        Err(_) if done.stdout.is_empty() => format!("{} without an error object", done.status),
        Err(_) => {
            format!("{} and printed {:?}", done.status, printable(&done.stdout, SHOWN))
        }
    };
    let from = done.stderr.len().saturating_sub(SHOWN);
    let stderr = printable(done.stderr[from..].trim_ascii(), SHOWN);
    if !stderr.is_empty() {
        text.push_str("; stderr: ");
        text.push_str(&stderr);
    }
    text
}

pub(crate) fn garbage(plugin: &str, command: &'static str, reason: &str, output: &[u8]) -> Error {
    Error::PluginGarbage {
        plugin: plugin.into(),
        command,
        reason: reason.into(),
        head: printable(output, 64),
    }
}

/// At most `max` bytes of what a plugin wrote, fit for a log line: no control characters, no broken UTF-8.
pub(crate) fn printable(bytes: &[u8], max: usize) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(max)]);
    let mut shown: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if bytes.len() > max {
        shown.push('…');
    }
    shown
}

/// Finds a plugin's executable.
pub(crate) fn find(dirs: &[PathBuf], plugin: &str, network: &str) -> Result<PathBuf> {
    dirs.iter()
        .map(|dir| dir.join(plugin))
        .find(|path| path.is_file())
        .ok_or_else(|| Error::PluginMissing {
            plugin: plugin.into(),
            network: network.into(),
            dirs: dirs
                .iter()
                .map(|d| d.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
        })
}
