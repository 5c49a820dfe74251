//! The owner of one pod: one task that makes every change to it and to its containers.
//!
//! The task never waits for the kernel, the network or a disk of another pod: whatever takes time is an operation in
//! [`Done`]'s terms, spawned beside the mailbox and applied when it reports. What is to be done next is decided in one
//! place, [`Pod::advance`], from the state alone, so a request, a finished operation, an exit and a timer all lead on
//! in the same way, and a repeated request finds the work half done and joins it.
//!
//! ```text
//!  calls ──▶ mailbox ─┐                          ┌─▶ records (disk), views (memory), events
//!  monitor ─▶ events ─┼─▶ owner: apply, advance ─┤
//!  timers ────────────┤            ▲             └─▶ operations: monitor, network, images
//!  operations ────────┴────────────┘
//! ```

mod announce;
mod container;
mod containers;
mod create;
mod files;
mod limits;
mod link;
mod owner;
mod reconcile;
mod recover;
mod run;
mod scope;
mod stop;
mod streams;
mod undo;
mod update;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::{ContainerId, ContainerSpec, Resources, SandboxId, SandboxRecord, SandboxSpec};
use holdfast_monitor_api::Sockets;
use holdfast_monitor_api::message::{ContainerStarted, Exit};

use crate::shared::Shared;
use crate::waiters::Reply;
use crate::{Error, ExecOutput, ExecRequest, StreamRequest, Streams, Wanted};

pub(crate) use limits::PodResources;
pub(crate) use owner::{Birth, Pod};
pub(crate) use recover::forsaken;
pub(crate) use stop::sweep_one;

/// What a pod's owner is asked.
pub(crate) enum Command {
    /// A client asks again for a pod of this name.
    Join {
        spec: Box<SandboxSpec>,
        handler: String,
        reply: Reply<SandboxId>,
    },
    Stop {
        reply: Reply<()>,
    },
    Remove {
        reply: Reply<()>,
    },
    CreateContainer {
        spec: Box<ContainerSpec>,
        reply: Reply<ContainerId>,
    },
    StartContainer {
        id: ContainerId,
        reply: Reply<()>,
    },
    StopContainer {
        id: ContainerId,
        grace: Duration,
        reply: Reply<()>,
    },
    RemoveContainer {
        id: ContainerId,
        reply: Reply<()>,
    },
    UpdateContainer {
        id: ContainerId,
        resources: Box<Resources>,
        reply: Reply<()>,
    },
    UpdatePod {
        resources: Box<PodResources>,
        reply: Reply<()>,
    },
    Exec {
        id: ContainerId,
        request: ExecRequest,
        reply: Reply<ExecOutput>,
    },
    StreamExec {
        id: ContainerId,
        request: StreamRequest,
        reply: Reply<Streams>,
    },
    Attach {
        id: ContainerId,
        wanted: Wanted,
        reply: Reply<Streams>,
    },
    /// Sockets of the pod's network namespace.
    Sockets {
        reply: Reply<Sockets>,
    },
    ReopenLog {
        id: ContainerId,
        reply: Reply<()>,
    },
    Reexec {
        reply: Reply<()>,
    },
}

impl Command {
    /// Answers a command that cannot be carried out.
    fn refuse(self, error: Error) {
        match self {
            Self::Join { reply, .. } => drop(reply.send(Err(error))),
            Self::CreateContainer { reply, .. } => drop(reply.send(Err(error))),
            Self::Exec { reply, .. } => drop(reply.send(Err(error))),
            Self::StreamExec { reply, .. } | Self::Attach { reply, .. } => drop(reply.send(Err(error))),
            Self::Sockets { reply } => drop(reply.send(Err(error))),
            Self::Stop { reply }
            | Self::Remove { reply }
            | Self::StartContainer { reply, .. }
            | Self::StopContainer { reply, .. }
            | Self::RemoveContainer { reply, .. }
            | Self::UpdateContainer { reply, .. }
            | Self::UpdatePod { reply, .. }
            | Self::ReopenLog { reply, .. }
            | Self::Reexec { reply } => drop(reply.send(Err(error))),
        }
    }
}

/// An operation that has ended.
enum Done {
    SandboxBuilt(Result<Box<run::Built>, run::Failed>),
    Recovered(Box<recover::Found>),
    Relinked(Box<link::Relinked>),
    Reexeced(Result<(), Error>, Reply<()>),
    ContainerBuilt(ContainerId, Result<Box<create::Built>, create::Failed>),
    Started(ContainerId, Result<ContainerStarted, Error>),
    /// A signal could not be delivered.
    SignalFailed(ContainerId, Error),
    ContainerRemoved(ContainerId, Vec<String>),
    UpdatePlanned(Box<limits::Update>, Result<(), Error>),
    Updated(Box<limits::Update>, Result<(), Error>),
    /// What a daemon left that died in the middle of an update; see [`undo`].
    CutOffTakenBack(limits::Target, Result<undo::Back, Error>),
    /// The last write end of a container's stdin, which an attach that failed had taken.
    StdinBack(ContainerId, OwnedFd),
    SandboxStopped(Vec<String>),
    SandboxRemoved(Vec<String>),
    /// Nothing to apply.
    Nothing,
}

/// What every operation of a pod needs to know.
pub(crate) struct Context {
    pub shared: Arc<Shared>,
    pub id: SandboxId,
    /// `<state>/pods/<id>`.
    pub dir: PathBuf,
}

impl Context {
    fn socket(&self) -> PathBuf {
        self.dir.join("monitor.sock")
    }
}

/// `namespace/name` for texts.
fn title(record: &SandboxRecord) -> String {
    format!("{}/{}", record.spec.metadata.namespace, record.spec.metadata.name)
}

/// An exit in the model's terms.
fn exit_info(exit: &Exit) -> holdfast_model::ExitInfo {
    if exit.unknown {
        return holdfast_model::ExitInfo::unseen("its monitor was gone when it ended");
    }
    holdfast_model::ExitInfo {
        code: exit.exit_code,
        signal: exit.signal,
        oom_killed: exit.oom_killed,
        ..holdfast_model::ExitInfo::default()
    }
}
