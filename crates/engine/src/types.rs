//! Requests and answers of the engine that are not the model's.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::{ContainerId, ContainerRecord, SandboxId, SandboxRecord};
use holdfast_streaming::TerminalSize;

use crate::Error;

/// A process to run in a container, to its end.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    pub command: Vec<String>,
    /// `None`: no limit.
    pub timeout: Option<Duration>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// 128 + signal where a signal ended it.
    pub exit_code: i32,
    pub timed_out: bool,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Bytes over the limit that were thrown away.
    pub discarded: u64,
}

/// Which standard streams of a process or container are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    /// With a terminal there is none: everything is on stdout.
    pub stderr: bool,
}

/// A process to run in a container with the caller at the other end of its streams.
#[derive(Debug, Clone, Default)]
pub struct StreamRequest {
    pub command: Vec<String>,
    pub tty: bool,
    /// Of the terminal; without it the size is 0 x 0 until it is set.
    pub size: Option<TerminalSize>,
    pub streams: Wanted,
}

/// How it ended: the exit code, 128 + signal where a signal ended it.
pub type Ended = Pin<Box<dyn Future<Output = Result<i32, Error>> + Send>>;

/// The near ends of a process's streams, non-blocking. One that was not asked for, or that there is not, is `None`.
pub struct Streams {
    /// Closing it is the end of the process's input; a container's input ends only where it was made with `stdin_once`.
    pub stdin: Option<OwnedFd>,
    /// Of a terminal it reads EIO at the end.
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// The terminal's master, for its size.
    pub terminal: Option<OwnedFd>,
    pub ended: Ended,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams")
            .field("stdin", &self.stdin)
            .field("stdout", &self.stdout)
            .field("stderr", &self.stderr)
            .field("terminal", &self.terminal)
            .finish_non_exhaustive()
    }
}

/// Something that happened, with the whole pod as it was right after.
#[derive(Debug, Clone)]
pub struct Event {
    pub what: Happened,
    pub subject: Subject,
    /// Nanoseconds since 1970.
    pub at: i64,
    pub pod: Arc<SandboxRecord>,
    /// Its containers; one that was just removed is no longer among them.
    pub containers: Vec<Arc<ContainerRecord>>,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Pod(SandboxId),
    Container(ContainerId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Happened {
    Created,
    Started,
    Stopped,
    Removed,
}

/// What became of one monitor in [`crate::Engine::reexec_monitors`].
#[derive(Debug)]
pub struct Reexec {
    pub sandbox: SandboxId,
    pub outcome: Result<(), Error>,
}

/// A pod and the containers in it.
#[derive(Debug, Clone)]
pub struct PodDetails {
    pub record: Arc<SandboxRecord>,
    pub containers: Vec<Arc<ContainerRecord>>,
}

/// What `Status` of CRI wants to know.
#[derive(Debug, Clone)]
pub struct Readiness {
    pub ready: bool,
    /// Why not; empty when ready.
    pub message: String,
}
