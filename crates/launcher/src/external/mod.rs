//! OCI runtimes beside this launcher: `runc`, `crun` and what is called the same way.
//!
//! Each call of the runtime's program is made by a child that can be given up (a builder, a starter, a job of the
//! monitor's), with a deadline of its own; what the runtime says when it fails is in the error. The root file system is
//! an overlay at `<bundle>/rootfs` in a mount namespace that only the runtime sees (decision records 1 and 14).
//!
//! | module | owns |
//! |---|---|
//! | `call` | one run of the program |
//! | `create`, `exec` | the builders: what is prepared for the program, and the process that it leaves |
//! | `end` | start, kill, delete |
//! | `spec` | our spec to one that others understand |
//! | `console` | the terminal that the runtime sends |

mod call;
mod console;
mod create;
mod end;
mod exec;
pub(crate) mod spec;

use std::path::PathBuf;
use std::time::Duration;

use crate::building::{Barrier, Building, start};
use crate::error::Error;
use crate::fault::Fault;
use crate::handler::{Handler, Made};
use crate::plan::{ContainerPlan, ExecPlan};

/// Limits of one run of the program. The builders' are below what the monitor gives a builder.
const CREATE: Duration = Duration::from_secs(40);
const START: Duration = Duration::from_secs(25);
const EXEC: Duration = Duration::from_secs(40);
const KILL: Duration = Duration::from_secs(5);
/// Within what the monitor gives a job.
const DELETE: Duration = Duration::from_secs(8);

/// A runtime's program, for one container.
#[derive(Clone, Debug)]
pub struct External {
    /// The runtime handler's name, for error texts.
    pub name: String,
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Where the program keeps its state (`--root`).
    pub root: PathBuf,
    /// The container's bundle. Its parent is a private mount.
    pub bundle: PathBuf,
    /// Options before the command.
    pub options: Vec<String>,
}

impl Handler for External {
    fn create(&self, plan: ContainerPlan<'_>) -> Result<Building, Error> {
        let building = start(plan.id, false, |_| create::build(self, &plan));
        drop(plan);
        building
    }

    fn start(&self, made: Made<'_>, _: Option<&Barrier>) -> Result<Option<Barrier>, Error> {
        end::start(self, made).map(Some)
    }

    fn exec(&self, plan: ExecPlan<'_>) -> Result<Building, Error> {
        let building = start(plan.container_id, false, |_| exec::build(self, &plan));
        drop(plan);
        building
    }

    fn has_leaves(&self) -> bool {
        false
    }

    fn signal(&self, made: Made<'_>, signal: i32) -> Option<Result<(), Error>> {
        Some(end::signal(self, made, signal).map_err(error))
    }

    fn leaves_traces(&self) -> bool {
        true
    }

    fn delete(&self, made: Made<'_>) -> Result<(), Error> {
        end::delete(self, made).map_err(error)
    }

    fn abandon(&self, builder: i32) {
        end::abandon(self, builder);
    }
}

fn error(fault: Fault) -> Error {
    Error::Build {
        message: fault.message,
        kind: fault.kind,
        errno: fault.errno,
    }
}
