//! Which runtime handler a container has, and what one other than the plain built-in launcher needs: signals by way of its
//! program, and the deletion that follows an end (with hooks, that is when poststop runs).
//!
//! ```text
//!  Running ──init ends──> settled ──> delete (a job) ──> nothing left but the exit's record
//!                                        └─fails──> tried again at RemoveContainer
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use holdfast_launcher::{BuiltIn, External, Handler, Hooked, Made};
use holdfast_monitor_api::message::{Failure, FailureKind, OciRuntime};
use holdfast_sys::pidfd;

use crate::cgroup;
use crate::containers::Container;
use crate::error::{failed, failure, launcher};
use crate::job::Outcome;
use crate::monitor::{Asker, Goal, Monitor, Purpose};

/// The handler of a container; without a runtime it is the built-in launcher, and a bundle says that it has hooks.
pub(crate) fn of(runtime: Option<&OciRuntime>, bundle: &str, name: &str) -> Box<dyn Handler> {
    match runtime {
        None if bundle.is_empty() => Box::new(BuiltIn),
        None => Box::new(Hooked {
            name: name.to_owned(),
            bundle: PathBuf::from(bundle),
        }),
        Some(runtime) => Box::new(External {
            name: runtime.handler.clone(),
            program: PathBuf::from(&runtime.program),
            root: PathBuf::from(&runtime.root),
            bundle: PathBuf::from(&runtime.bundle),
            options: runtime.options.clone(),
        }),
    }
}

/// Paths in it are used as they are.
pub(crate) fn check(runtime: Option<&OciRuntime>, bundle: &str) -> Result<(), Failure> {
    if !bundle.is_empty() && !Path::new(bundle).is_absolute() {
        let text = format!("the bundle {bundle:?} must be an absolute path");
        return Err(failure(FailureKind::Invalid, text));
    }
    let Some(runtime) = runtime else {
        return Ok(());
    };
    let paths = [&runtime.program, &runtime.root, &runtime.bundle];
    match paths.iter().all(|path| Path::new(path).is_absolute()) {
        true => Ok(()),
        false => Err(failure(
            FailureKind::Invalid,
            format!(
                "the paths of runtime handler {} must be absolute",
                runtime.handler
            ),
        )),
    }
}

/// What a job needs of a container to act through its handler.
pub(crate) struct Traces {
    handler: Box<dyn Handler>,
    id: String,
    pid: i32,
    init: Option<OwnedFd>,
    mounts: Option<OwnedFd>,
}

impl Traces {
    fn made(&self) -> Made<'_> {
        Made {
            id: &self.id,
            pid: self.pid,
            init: self.init.as_ref().map(AsFd::as_fd),
            mounts: self.mounts.as_ref().map(AsFd::as_fd),
        }
    }

    /// A runtime refuses, and a poststop hook is not to see, a container whose init has been killed and is still dying.
    pub fn delete(&self) -> Outcome {
        if let Some(init) = &self.init {
            cgroup::wait_for_death(init.as_fd());
        }
        self.handler
            .delete(self.made())
            .map(|()| 0)
            .map_err(|error| launcher(&error))
    }

    pub fn abandon(&self, builder: i32) {
        self.handler.abandon(builder);
    }

    /// `Ok` where there is nothing but processes and a cgroup, too.
    pub fn delete_with(&self, remove_cgroup: impl FnOnce() -> Outcome) -> Outcome {
        let deleted = self.delete();
        // Whatever the runtime says: no process stays.
        remove_cgroup().and(deleted)
    }
}

impl Container {
    pub(crate) fn handler(&self) -> Box<dyn Handler> {
        of(self.runtime.as_ref(), &self.bundle, &self.name)
    }

    pub(crate) fn made(&self) -> Made<'_> {
        let held = self.descriptors.as_ref();
        Made {
            id: &self.id,
            pid: self.pid,
            init: held.map(|held| held.pidfd.as_fd()),
            mounts: held.and_then(|held| held.mounts.as_ref()).map(AsFd::as_fd),
        }
    }

    /// Without the mount namespace (all descriptors in use) the runtime is called in the host's.
    pub(crate) fn traces(&self) -> Traces {
        let made = self.made();
        let duplicate = |fd: Option<BorrowedFd<'_>>| fd.and_then(|fd| fd.try_clone_to_owned().ok());
        Traces {
            handler: self.handler(),
            id: self.id.clone(),
            pid: self.pid,
            init: duplicate(made.init),
            mounts: duplicate(made.mounts),
        }
    }
}

impl Monitor {
    /// Sends a signal through the container's runtime, or straight to init where that fails.
    pub(crate) fn signal_by_handler(&mut self, asker: Asker, key: u32, signal: i32) -> Result<(), Failure> {
        let Some(container) = self.container(key) else {
            return Ok(());
        };
        let Some(held) = &container.descriptors else {
            return Ok(());
        };
        let init = held
            .pidfd
            .try_clone()
            .map_err(|error| failed("cannot duplicate a container's descriptor", &error))?;
        let traces = container.traces();
        self.start_job(Purpose::Signal { asker }, move || {
            match traces.handler.signal(traces.made(), signal) {
                Some(Ok(())) => return Ok(0),
                Some(Err(error)) => eprintln!("holdfast-monitor: {}", crate::error::chain(&error)),
                None => {}
            }
            match pidfd::signal(init.as_fd(), signal) {
                // ESRCH: it is ending now.
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    Err(failed(&format!("cannot signal container {}", traces.id), &error))
                }
                _ => Ok(0),
            }
        });
        Ok(())
    }

    /// A container has ended: its runtime forgets it now, not when the daemon removes it.
    pub(crate) fn delete_traces(&mut self, key: u32) {
        let Some(container) = self.container(key) else {
            return;
        };
        if !container.handler().leaves_traces() || !container.removing.is_empty() {
            return;
        }
        container.deleting = true;
        let traces = container.traces();
        self.start_job(Purpose::Delete { container: key }, move || traces.delete());
    }

    pub(crate) fn traces_deleted(&mut self, key: u32, outcome: Outcome) {
        let Some(container) = self.container(key) else {
            return;
        };
        container.deleting = false;
        if let Err(failure) = outcome {
            eprintln!(
                "holdfast-monitor: container {}: {}",
                container.id, failure.message
            );
        }
        if !container.removing.is_empty() {
            self.begin_removal(key);
        }
    }

    /// A builder was killed. What its runtime had set going is ended in a job.
    pub(crate) fn abandon(&mut self, goal: Goal, builder: i32) {
        let container = match goal {
            Goal::Sandbox(_) => None,
            Goal::Container(key) => self.containers.iter().find(|container| container.key == key),
            Goal::Exec(key) => {
                let exec = self.execs.iter().find(|exec| exec.key == key);
                exec.and_then(|exec| self.containers.iter().find(|one| one.id == exec.container_id))
            }
        };
        let Some(container) = container.filter(|container| container.handler().leaves_traces()) else {
            return;
        };
        let traces = container.traces();
        self.start_job(Purpose::Exec, move || {
            if let Ok(process) = pidfd::open(builder) {
                cgroup::wait_for_death(process.as_fd());
            }
            traces.abandon(builder);
            Ok(0)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_has_absolute_paths() {
        let mut runtime = OciRuntime {
            handler: "runc".into(),
            program: "/usr/sbin/runc".into(),
            root: "/run/r".into(),
            bundle: "/run/b/id".into(),
            options: Vec::new(),
        };
        assert!(check(None, "").is_ok() && check(None, "/run/b/id").is_ok());
        assert!(check(None, "b").is_err());
        assert!(check(Some(&runtime), "").is_ok());
        assert!(of(Some(&runtime), "", "").leaves_traces() && !of(None, "", "").leaves_traces());
        assert!(of(None, "/run/b/id", "").leaves_traces());
        runtime.root = "r".into();
        let refused = check(Some(&runtime), "").unwrap_err();
        assert!(refused.message.contains("runc"), "{}", refused.message);
    }
}
