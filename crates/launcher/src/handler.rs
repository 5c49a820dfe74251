//! Who makes and drives containers: this launcher, or an OCI runtime that the node's administrator has installed.
//!
//! A handler decides how a container comes to be, is started, gets further processes and is taken away. What is common
//! to all stays with the monitor: standard streams, logs, exits, cgroups, time-outs. So a handler gives back processes
//! ([`crate::Built`]), never state of its own to ask for.

use std::os::fd::BorrowedFd;

use crate::building::{Barrier, Building};
use crate::error::Error;
use crate::plan::{ContainerPlan, ExecPlan};

/// A container that was created, as its handler needs it for what follows.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    pub id: &'a str,
    /// Its init, as the caller's PID namespace sees it; once that has ended the number may be another's.
    pub pid: i32,
    /// Its pidfd, which tells whether it has.
    pub init: Option<BorrowedFd<'a>>,
    /// The mount namespace that the runtime works in, if its handler has made one.
    pub mounts: Option<BorrowedFd<'a>>,
}

/// The ways of a runtime handler. Only [`Handler::signal`], [`Handler::delete`] and [`Handler::abandon`] block: they are
/// for a child of the monitor.
pub trait Handler {
    /// Forks a builder that brings a container to where only its start is missing.
    fn create(&self, plan: ContainerPlan<'_>) -> Result<Building, Error>;

    /// Has a created container run its program. `None`: the outcome is told by the barrier that its build has given;
    /// else by the one returned.
    fn start(&self, made: Made<'_>, barrier: Option<&Barrier>) -> Result<Option<Barrier>, Error>;

    /// Forks a builder that brings a further process into a running container.
    fn exec(&self, plan: ExecPlan<'_>) -> Result<Building, Error>;

    /// Whether an exec's process is born in a leaf cgroup below the container's, by which it can be killed.
    fn has_leaves(&self) -> bool {
        true
    }

    /// Passes a signal on to the container's program. `None`: it goes to the init process as it is.
    fn signal(&self, _made: Made<'_>, _signal: i32) -> Option<Result<(), Error>> {
        None
    }

    /// Whether something other than processes and a cgroup is left of a container that has ended.
    fn leaves_traces(&self) -> bool {
        false
    }

    /// Takes those traces away, and what should still run first. Can be repeated.
    fn delete(&self, _made: Made<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Ends what a builder that was killed had set going: it was process `builder`, a child of this process's parent.
    fn abandon(&self, _builder: i32) {}
}

/// The launcher of this crate, for containers without OCI hooks: a spec that has some is [`crate::Hooked`]'s, and refused
/// here.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuiltIn;

impl Handler for BuiltIn {
    fn create(&self, plan: ContainerPlan<'_>) -> Result<Building, Error> {
        crate::create_container(plan)
    }

    fn start(&self, made: Made<'_>, barrier: Option<&Barrier>) -> Result<Option<Barrier>, Error> {
        match barrier {
            Some(barrier) => barrier.release().map(|()| None),
            None => Err(no_barrier(made.id)),
        }
    }

    fn exec(&self, plan: ExecPlan<'_>) -> Result<Building, Error> {
        crate::exec(plan)
    }
}

pub(crate) fn no_barrier(id: &str) -> Error {
    Error::Build {
        message: format!("container {id} was being created when its monitor died: it cannot be started"),
        kind: crate::Kind::Precondition,
        errno: 0,
    }
}
