//! The cgroup of what is being built: made, limited in two stages, and removed again if the build fails.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use holdfast_cgroups::{Cgroup, Hierarchy, Limits, Stage, systemd_scope_path};
use holdfast_sys::clone::{Child, Clone3};
use oci_spec::runtime::LinuxResources;

use crate::fault::{Context, Fault, Result, chain};
use crate::plan::{CgroupDriver, CgroupRef};

/// How long a failed build waits for its cgroup to be empty.
const REMOVAL: Duration = Duration::from_secs(2);

/// A cgroup in the making. Unless [`Place::keep`] is called it is killed and removed when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    /// `None`: the process stays where the builder is.
    cgroup: Option<Cgroup>,
    limits: Limits,
    /// Directory of the unified hierarchy to be born in.
    unified: Option<OwnedFd>,
    /// Version 1 `tasks` files to join.
    pub tasks: Vec<OwnedFd>,
    kept: bool,
}

impl Place {
    /// Makes the cgroup and sets the limits that may hold from the start.
    pub fn create(
        hierarchy: &Hierarchy,
        place: &CgroupRef,
        resources: Option<&LinuxResources>,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        if place.path.is_empty() {
            return Ok(Self::none());
        }
        let path = path_of(place)?;
        if place.driver == CgroupDriver::Systemd {
            // The daemon has had it made, and holds a process in it until ours is there. Below it is completed, not made:
            // controllers that systemd does not know, and on version 1 the hierarchies that it does not use.
            hierarchy
                .open(&path)
                .at(|| format!("open the scope {path}, which systemd was to make"))?;
        }
        let limits = match resources {
            Some(resources) => Limits::from_oci(resources).map_err(|e| Fault::invalid(chain(&e)))?,
            None => Limits::default(),
        };
        let cgroup = hierarchy.create(&path).at(|| format!("make the cgroup {path}"))?;
        let mut out = Self::none();
        out.cgroup = Some(cgroup.clone());
        out.limits = limits;
        warnings.extend(
            cgroup
                .apply(&out.limits, Stage::Create)
                .at(|| format!("limit the cgroup {path}"))?,
        );
        out.open(&cgroup)?;
        Ok(out)
    }

    /// A leaf below an existing cgroup, or that cgroup itself where `leaf` is empty.
    pub fn below(hierarchy: &Hierarchy, place: &CgroupRef, leaf: &str) -> Result<Self> {
        if place.path.is_empty() {
            return Ok(Self::none());
        }
        let path = path_of(place)?;
        let cgroup = hierarchy.open(&path).at(|| format!("open the cgroup {path}"))?;
        let mut out = Self::none();
        if leaf.is_empty() {
            out.kept = true;
            out.open(&cgroup)?;
        } else {
            let leaf = cgroup
                .leaf(leaf)
                .at(|| format!("make the cgroup {leaf} below {path}"))?;
            out.cgroup = Some(leaf.clone());
            out.open(&leaf)?;
        }
        Ok(out)
    }

    fn none() -> Self {
        Self {
            cgroup: None,
            limits: Limits::default(),
            unified: None,
            tasks: Vec::new(),
            kept: false,
        }
    }

    fn open(&mut self, cgroup: &Cgroup) -> Result<()> {
        let what = || format!("open the cgroup {}", cgroup.path());
        self.unified = cgroup.open_for_clone().at(what)?;
        self.tasks = cgroup.join_fds().at(what)?;
        Ok(())
    }

    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Clones the calling process as its own sibling into the cgroup.
    pub fn spawn(&self, namespaces: u64, child: impl FnOnce() -> i32) -> std::io::Result<Child> {
        Clone3 {
            namespaces,
            sibling: true,
            cgroup: self.unified.as_ref().map(AsFd::as_fd),
        }
        .spawn(child)
    }

    /// The cgroup that a container's init is in, for [`Place::move_to`]. To be called while /proc is the host's.
    pub fn of_init(hierarchy: &Hierarchy, pid: i32, init: BorrowedFd<'_>) -> Result<String> {
        let what = || format!("find the cgroup of process {pid}");
        let path = hierarchy.of_process(Some(pid)).at(what)?;
        // The pidfd still answers, so the number was still init's.
        holdfast_sys::pidfd::signal(init, 0).at(what)?;
        Ok(path)
    }

    /// Goes elsewhere: where a container has cgroups below its own, none may be in that (EBUSY).
    pub fn move_to(&mut self, hierarchy: &Hierarchy, path: &str) -> Result<()> {
        let what = || format!("open the cgroup {path}");
        let cgroup = hierarchy.open(path).at(what)?;
        self.unified = cgroup.open_for_clone().at(what)?;
        Ok(())
    }

    /// Sets the limits that must not count what the launcher does.
    pub fn limit(&self, warnings: &mut Vec<String>) -> Result<()> {
        let Some(cgroup) = &self.cgroup else {
            return Ok(());
        };
        let more = cgroup
            .apply(&self.limits, Stage::Barrier)
            .at(|| format!("limit the cgroup {}", cgroup.path()))?;
        warnings.extend(more);
        Ok(())
    }

    /// The build has succeeded.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(cgroup) = self.cgroup.as_ref().filter(|_| !self.kept) {
            // The first error is the one to tell; what stays is removed with the container's record.
            let _ = cgroup.kill();
            let _ = cgroup.wait_empty(REMOVAL);
            let _ = cgroup.remove(REMOVAL);
        }
    }
}

/// Where it is, from the hierarchy's root.
fn path_of(place: &CgroupRef) -> Result<String> {
    match place.driver {
        CgroupDriver::Cgroupfs => Ok(place.path.clone()),
        CgroupDriver::Systemd => systemd_scope_path(&place.path).map_err(|e| Fault::invalid(chain(&e))),
    }
}

/// For a failed init: ends it and waits until it has left its cgroup.
pub(crate) fn kill_and_wait(process: BorrowedFd<'_>) {
    let _gone = holdfast_sys::pidfd::signal(process, libc::SIGKILL);
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(
        process,
        rustix::event::PollFlags::IN,
    )];
    let limit = rustix::event::Timespec {
        tv_sec: 2,
        tv_nsec: 0,
    };
    let _ended = rustix::event::poll(&mut fds, Some(&limit));
}
