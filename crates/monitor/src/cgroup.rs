//! What the monitor does to cgroups. All of it can hang, and runs in a job's child; but [`join`] and [`detect`], which run
//! before there is anything to hold up, and [`slice_kills`] as a container starts, which is one read, run in the loop.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use holdfast_cgroups::{Cgroup, Error, Hierarchy, Mode, systemd_scope_path};
use holdfast_launcher::{CgroupDriver, CgroupRef};
use holdfast_monitor_api::message::{self, Failure, FailureKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{chain, failure};
use crate::job::Outcome;

/// How long killed processes may take to die.
const DIE: Duration = Duration::from_secs(5);
/// In [`settle`]: the cgroup was there to be asked.
const THERE: u64 = 1 << 32;
/// How long the kernel may call an empty cgroup busy.
const REMOVE: Duration = Duration::from_secs(2);

pub fn reference(cgroup: Option<&message::Cgroup>) -> CgroupRef {
    let Some(cgroup) = cgroup else {
        return CgroupRef::default();
    };
    CgroupRef {
        driver: match cgroup.driver.as_str() {
            "systemd" => CgroupDriver::Systemd,
            _ => CgroupDriver::Cgroupfs,
        },
        path: cgroup.path.clone(),
    }
}

/// Moves the monitor itself, once, early in its life.
pub fn join(hierarchy: &Hierarchy, path: &str) -> Outcome {
    work(|| {
        hierarchy.create(path)?.join_self()?;
        Ok(0)
    })
}

/// The machine's hierarchies.
pub fn detect() -> Result<Hierarchy, Failure> {
    Hierarchy::detect().map_err(|error| failure(FailureKind::Internal, chain(&error)))
}

/// Kills everything in it. Does not wait.
pub fn kill(hierarchy: &Hierarchy, cgroup: &CgroupRef) -> Outcome {
    if_there(hierarchy, cgroup, |cgroup| cgroup.kill().map(|()| 0))
}

/// Waits until a process that was killed is dead; not for one that hangs in the kernel.
pub fn wait_for_death(pidfd: BorrowedFd<'_>) {
    let mut watched = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let _ = poll(&mut watched, Timespec::try_from(DIE).ok().as_ref());
}

/// Kills everything in it and removes it with all that is below.
pub fn remove(hierarchy: &Hierarchy, cgroup: &CgroupRef) -> Outcome {
    let all = |cgroup: Cgroup| {
        cgroup.kill()?;
        cgroup.wait_empty(DIE)?;
        cgroup.remove(REMOVE)?;
        Ok(0)
    };
    let half = |path: &str| match hierarchy.exists(path)? {
        // Half there: a create that failed midway. `create` completes it so that it can be removed whole.
        true => all(hierarchy.create(path)?),
        false => Ok(0),
    };
    in_it(hierarchy, cgroup, all, half)
}

/// After init's end: kills what is left where that is wanted; the result is how many processes the kernel has killed for
/// want of memory since the cgroup was made, which was for this container.
///
/// systemd removes a scope's cgroup as soon as its last process has ended, and may be there before us. The kills of the
/// slice above, which count those below it, then say whether there was one since this container started (`before`): in
/// another container of the pod, at the worst.
pub fn settle(hierarchy: &Hierarchy, cgroup: &CgroupRef, kill_rest: bool, before: u64) -> Outcome {
    let own = if_there(hierarchy, cgroup, |cgroup| {
        if kill_rest {
            cgroup.kill()?;
        }
        // Beyond what any machine kills: told apart from "it is gone".
        Ok(cgroup.oom_kills()?.saturating_add(THERE))
    });
    match own {
        Ok(kills) if kills >= THERE => Ok(kills - THERE),
        _ if cgroup.driver == CgroupDriver::Systemd => {
            Ok(slice_kills(hierarchy, cgroup).saturating_sub(before))
        }
        outcome => outcome,
    }
}

/// Out-of-memory kills in the slice that the scope is in, and below; 0 where nobody counts them (under cgroupfs, where
/// they are not needed, and on version 1, which counts those of each cgroup alone).
pub fn slice_kills(hierarchy: &Hierarchy, cgroup: &CgroupRef) -> u64 {
    if cgroup.driver != CgroupDriver::Systemd || hierarchy.mode() != Mode::Unified {
        return 0;
    }
    let Ok(scope) = systemd_scope_path(&cgroup.path) else {
        return 0;
    };
    let slice = scope.rsplit_once('/').map_or("/", |(slice, _)| slice);
    let kills = hierarchy.open(slice).and_then(|slice| slice.oom_kills());
    kills.unwrap_or(0)
}

/// Kills an exec's leaf.
pub fn kill_leaf(hierarchy: &Hierarchy, cgroup: &CgroupRef, leaf: &str) -> Outcome {
    if_there(hierarchy, cgroup, |cgroup| match cgroup.find_leaf(leaf)? {
        Some(leaf) => gone_is_fine(leaf.kill()),
        None => Ok(0),
    })
}

/// Removes an exec's leaf if nothing is left in it; else it goes with the container.
pub fn remove_leaf(hierarchy: &Hierarchy, cgroup: &CgroupRef, leaf: &str) -> Outcome {
    if_there(hierarchy, cgroup, |cgroup| {
        let empty = |leaf: &Cgroup| leaf.is_populated().map(|populated| !populated);
        match cgroup.find_leaf(leaf)? {
            Some(leaf) => gone_is_fine(empty(&leaf).and_then(|empty| match empty {
                true => leaf.remove(REMOVE),
                false => Ok(()),
            })),
            None => Ok(0),
        }
    })
}

/// The container's removal may be at it at the same time.
fn gone_is_fine(outcome: Result<(), Error>) -> Result<u64, Error> {
    match outcome {
        Err(error) if !error.is_gone() => Err(error),
        _ => Ok(0),
    }
}

/// Nothing is done where it is not there, or not whole: somebody removes it.
fn if_there(
    hierarchy: &Hierarchy,
    reference: &CgroupRef,
    operation: impl FnOnce(Cgroup) -> Result<u64, Error>,
) -> Outcome {
    in_it(hierarchy, reference, operation, |_| Ok(0))
}

/// `half` is for one that is not there in every hierarchy.
fn in_it(
    hierarchy: &Hierarchy,
    reference: &CgroupRef,
    operation: impl FnOnce(Cgroup) -> Result<u64, Error>,
    half: impl FnOnce(&str) -> Result<u64, Error>,
) -> Outcome {
    if reference.path.is_empty() {
        return Ok(0);
    }
    work(|| {
        let path = match reference.driver {
            CgroupDriver::Cgroupfs => reference.path.clone(),
            CgroupDriver::Systemd => systemd_scope_path(&reference.path)?,
        };
        if !hierarchy.exists(&path)? {
            return Ok(0);
        }
        match hierarchy.open(&path) {
            Ok(cgroup) => match operation(cgroup) {
                // systemd has removed it while we were at it.
                Err(error) if error.is_gone() && reference.driver == CgroupDriver::Systemd => Ok(0),
                outcome => outcome,
            },
            // The same, a moment earlier.
            Err(error)
                if error.is_gone()
                    && reference.driver == CgroupDriver::Systemd
                    && hierarchy.mode() == Mode::Unified =>
            {
                Ok(0)
            }
            Err(error) if error.is_gone() => half(&path),
            Err(error) => Err(error),
        }
    })
}

fn work(operation: impl FnOnce() -> Result<u64, Error>) -> Outcome {
    operation().map_err(|error| failure(FailureKind::Internal, chain(&error)))
}
