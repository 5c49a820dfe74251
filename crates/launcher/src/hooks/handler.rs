//! The built-in launcher for containers that have hooks: what happens beside, before and after what it does for others.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Instant;

use holdfast_sys::{clone, pidfd, scm};
use oci_spec::runtime::Spec;

use super::run::Circumstances;
use super::{Hooks, Point, START, STOP, ground::POSTSTOP, log};
use crate::building::{Barrier, Building, ExecFailure};
use crate::bundle;
use crate::error::{Error, Kind};
use crate::fault::{Context, Fault, Result};
use crate::handler::{Handler, Made, no_barrier};
use crate::init::close_others;
use crate::plan::{ContainerPlan, ExecPlan};
use crate::walk::kill_session;

/// The built-in launcher, for one container that has hooks.
#[derive(Clone, Debug)]
pub struct Hooked {
    /// `namespace/pod/container`, for error texts.
    pub name: String,
    /// The container's bundle, made and removed here. Its parent is a private mount.
    pub bundle: PathBuf,
}

impl Handler for Hooked {
    fn create(&self, plan: ContainerPlan<'_>) -> std::result::Result<Building, Error> {
        crate::container::create(plan, Some(&self.bundle))
    }

    /// A starter waits at the barrier in the monitor's place, since the start is over only when poststart hooks are.
    fn start(
        &self,
        made: Made<'_>,
        barrier: Option<&Barrier>,
    ) -> std::result::Result<Option<Barrier>, Error> {
        let barrier = barrier.ok_or_else(|| no_barrier(made.id))?;
        let failed = |source| Error::Start {
            id: made.id.to_owned(),
            source,
        };
        let (ours, theirs) = scm::pair().map_err(failed)?;
        clone::fork(|| {
            let mut keep = vec![barrier.status_fd(), theirs.as_fd()];
            keep.extend([made.mounts, made.init].into_iter().flatten());
            if close_others(&keep).is_err() {
                return 1;
            }
            let word = match self.see_through(made, barrier, &theirs) {
                Ok(()) => b"R".to_vec(),
                Err(failure) => serde_json::to_vec(&failure).unwrap_or_default(),
            };
            i32::from(scm::send(theirs.as_fd(), &word, &[]).is_err())
        })
        .map_err(failed)?;
        Ok(Some(Barrier::of_starter(ours)))
    }

    fn exec(&self, plan: ExecPlan<'_>) -> std::result::Result<Building, Error> {
        crate::exec(plan)
    }

    fn leaves_traces(&self) -> bool {
        true
    }

    fn delete(&self, made: Made<'_>) -> std::result::Result<(), Error> {
        self.poststop(made);
        bundle::remove(&self.bundle).map_err(|fault| Error::Build {
            message: fault.message,
            kind: fault.kind,
            errno: fault.errno,
        })
    }

    /// The process that runs hooks ends with its builder, and kills what it runs. Here that is waited for.
    fn abandon(&self, builder: i32) {
        if let Some(monitor) = rustix::process::getppid() {
            kill_session(monitor.as_raw_nonzero().get(), builder);
        }
    }
}

impl Hooked {
    fn see_through(
        &self,
        made: Made<'_>,
        barrier: &Barrier,
        monitor: &std::os::fd::OwnedFd,
    ) -> std::result::Result<(), ExecFailure> {
        // One limit for the hooks before the program, which init runs, and those after it.
        let until = Instant::now() + START;
        barrier.release().map_err(|error| ExecFailure {
            message: crate::fault::chain(&error),
            errno: error.errno(),
            kind: Kind::Internal,
        })?;
        barrier.wait()?;
        // The barrier is gone with execve, and with an init that is killed before it. The number of one that has ended may be another's
        // by now, and hooks act on what they find there as the host's root.
        if made.init.is_some_and(|init| !runs(made.pid, init)) {
            log(&format!(
                "{}: the program has ended, or was never executed: poststart hooks are not run",
                self.name
            ));
            return Ok(());
        }
        let with = Circumstances {
            pid: Some(made.pid),
            mounts: made.mounts,
            wanted: Some(monitor.as_fd()),
            ..Circumstances::default()
        };
        // The program runs: what fails now is told, and no reason to end it.
        match self.read(made.id) {
            Ok(hooks) => hooks
                .run_all(Point::Poststart, &with, until)
                .iter()
                .for_each(|fault| log(&fault.message)),
            Err(fault) => log(&fault.message),
        }
        Ok(())
    }

    /// Runs the poststop hooks, once: their mark is taken off before, so that one that is killed with its caller is not
    /// run again.
    fn poststop(&self, made: Made<'_>) {
        if std::fs::remove_file(self.bundle.join(POSTSTOP)).is_err() {
            return;
        }
        let with = Circumstances {
            mounts: made.mounts,
            ..Circumstances::default()
        };
        match self.read(made.id) {
            Ok(hooks) => hooks
                .run_all(Point::Poststop, &with, Instant::now() + STOP)
                .iter()
                .for_each(|fault| log(&fault.message)),
            Err(fault) => log(&fault.message),
        }
    }

    /// The hooks that the container was made with: the bundle is ours, and no container sees it.
    fn read(&self, id: &str) -> Result<Hooks> {
        let path = self.bundle.join(bundle::CONFIG);
        let text = std::fs::read(&path).at(|| format!("{}: read {}", self.name, path.display()))?;
        let spec: Spec = serde_json::from_slice(&text)
            .map_err(|e| Fault::invalid(format!("{}: {} is unreadable: {e}", self.name, path.display())))?;
        Hooks::parse(&spec, id, &self.name, self.bundle.clone())
    }
}

/// Whether `pid` has executed its program and lives. Its flags are read first: as long as it has not been reaped they are its own.
fn runs(pid: i32, init: BorrowedFd<'_>) -> bool {
    /// `PF_EXITING` and `PF_FORKNOEXEC` of the kernel's task flags, field 9 of proc_pid_stat(5).
    const ENDING_OR_NOT_EXECUTED: u64 = 0x4 | 0x40;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.split(' ').nth(6))
        .and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & ENDING_OR_NOT_EXECUTED == 0) && !pidfd::has_ended(init).unwrap_or(true)
}
