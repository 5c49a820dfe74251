//! Requests and answers of the engine that are not the model's.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::{ContainerId, ContainerRecord, SandboxId, SandboxRecord};

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
    pub outcome: Result<(), crate::Error>,
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
