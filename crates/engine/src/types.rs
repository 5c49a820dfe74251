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

/// Something that happened, with the record as it was right after.
#[derive(Debug, Clone)]
pub enum Event {
    Sandbox {
        what: Happened,
        record: Arc<SandboxRecord>,
    },
    Container {
        what: Happened,
        record: Arc<ContainerRecord>,
    },
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

/// A pod and the containers in it, for verbose statuses.
#[derive(Debug, Clone)]
pub struct PodDetails {
    pub record: Arc<SandboxRecord>,
    pub containers: Vec<ContainerId>,
}

/// What `Status` of CRI wants to know.
#[derive(Debug, Clone)]
pub struct Readiness {
    pub ready: bool,
    /// Why not; empty when ready.
    pub message: String,
}
