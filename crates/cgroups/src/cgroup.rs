//! One cgroup: limits, membership, leaves, measurements. Freezing, killing and removing are in `kill`.

use crate::hierarchy::{Controller, Hierarchy, Home, made_by_systemd, why_missing};
use crate::io::{self, Root};
use crate::limits::{Limits, Stage};
use crate::steps::{Step, Steps};
use crate::{Detail, Error, StatReader, Stats, devices, path};
use rustix::fs::OFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A cgroup in every mounted hierarchy, or a leaf of one (see [`Cgroup::leaf`]). A name, not an owner: dropping it
/// changes nothing.
#[derive(Clone, Debug)]
pub struct Cgroup {
    hierarchy: Hierarchy,
    dir: String,
    leaf: Option<String>,
}

/// A descriptor that has POLLPRI when the cgroup gains its first process or loses its last.
#[derive(Debug)]
pub struct Watch {
    fd: OwnedFd,
    name: String,
}

impl Watch {
    /// Whether a living process is in the cgroup or below; rearms the descriptor. A cgroup that is gone has none.
    pub fn populated(&self) -> Result<bool, Error> {
        self.event("populated")
    }

    pub(crate) fn event(&self, key: &str) -> Result<bool, Error> {
        match io::read_fd(&self.fd) {
            Ok(text) => match io::keyed(&text, key) {
                Some(value) => Ok(value != 0),
                None => Err(Error::Parse {
                    file: self.name.clone(),
                    text,
                }),
            },
            Err(rustix::io::Errno::NODEV) => Ok(false),
            Err(errno) => Err(Error::Read {
                file: self.name.clone(),
                source: errno.into(),
            }),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Cgroup {
    pub(crate) fn new(hierarchy: Hierarchy, dir: String) -> Self {
        Self {
            hierarchy,
            dir,
            leaf: None,
        }
    }

    /// From the root of the hierarchy, with a slash in front.
    #[must_use]
    pub fn path(&self) -> String {
        match &self.leaf {
            Some(leaf) => format!("/{}/{leaf}", self.dir),
            None => format!("/{}", self.dir),
        }
    }

    #[must_use]
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// This cgroup's directory in one hierarchy. A leaf is a directory of the tracking hierarchy only.
    pub(crate) fn dir_in(&self, root: &Root) -> String {
        match &self.leaf {
            Some(leaf) if std::ptr::eq(root, self.hierarchy.tracking()) => format!("{}/{leaf}", self.dir),
            _ => self.dir.clone(),
        }
    }

    pub(crate) fn is_leaf(&self) -> bool {
        self.leaf.is_some()
    }

    /// Makes a cgroup below this one that only keeps processes together, so that they can be killed and waited for
    /// apart from the rest: it has no limits of its own, and on the hybrid it is one directory of the unified
    /// hierarchy, while its processes join this cgroup's version 1 directories.
    pub fn leaf(&self, name: &str) -> Result<Self, Error> {
        let out = self.below(name)?;
        let root = self.hierarchy.tracking();
        let dir = out.dir_in(root);
        match rustix::fs::mkdirat(&root.fd, dir.as_str(), rustix::fs::Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(out),
            Err(errno) => Err(Error::Create {
                path: io::name(root, &dir, ""),
                source: errno.into(),
            }),
        }
    }

    /// The same, where there is one: none is made.
    pub fn find_leaf(&self, name: &str) -> Result<Option<Self>, Error> {
        let out = self.below(name)?;
        let root = self.hierarchy.tracking();
        Ok(io::exists(root, "", &out.dir_in(root)).then_some(out))
    }

    fn below(&self, name: &str) -> Result<Self, Error> {
        path::component(name)?;
        let leaf = match &self.leaf {
            Some(parent) => format!("{parent}/{name}"),
            None => name.to_owned(),
        };
        Ok(Self {
            leaf: Some(leaf),
            ..self.clone()
        })
    }

    /// The unified hierarchy's directory, for CLONE_INTO_CGROUP; `None` where there is no unified hierarchy. A
    /// descriptor of a version 1 directory would be refused (EBADF).
    pub fn open_for_clone(&self) -> Result<Option<OwnedFd>, Error> {
        match &self.hierarchy.mounts.unified {
            Some(unified) => io::open_dir(&unified.root, &self.dir_in(&unified.root)).map(Some),
            None => Ok(None),
        }
    }

    /// The version 1 `tasks` files, open for writing: a single-threaded process that writes `0` to each is in. (A
    /// write to `cgroup.procs` would do the same a hundred times slower: it waits for an RCU grace period.)
    pub fn join_fds(&self) -> Result<Vec<OwnedFd>, Error> {
        self.hierarchy
            .mounts
            .legacy
            .iter()
            .map(|mount| io::open(&mount.root, &self.dir_in(&mount.root), "tasks", OFlags::WRONLY))
            .collect()
    }

    /// Moves the calling process, which must be single-threaded, into it: into all version 1 directories, and on
    /// version 2 into the one directory. On the hybrid the place in the unified hierarchy stays as it was: it has
    /// nothing to limit, and the move would take 9 ms.
    pub fn join_self(&self) -> Result<(), Error> {
        for mount in &self.hierarchy.mounts.legacy {
            io::write(&mount.root, &self.dir_in(&mount.root), "tasks", "0")?;
        }
        match &self.hierarchy.mounts.unified {
            Some(unified) if self.hierarchy.mode() == crate::Mode::Unified => {
                io::write(&unified.root, &self.dir_in(&unified.root), "cgroup.procs", "0")
            }
            _ => Ok(()),
        }
    }

    /// Moves a process with all its threads into it, in every hierarchy. Slow (about 9 ms for each hierarchy).
    pub fn add_process(&self, pid: i32) -> Result<(), Error> {
        for root in self.hierarchy.roots() {
            io::write(root, &self.dir_in(root), "cgroup.procs", &pid.to_string())?;
        }
        Ok(())
    }

    /// Writes the limits of one stage. Returns what was done less well than asked, in words for the log. What was written
    /// before a failure stays: for a cgroup in use there is [`Cgroup::plan`].
    pub fn apply(&self, limits: &Limits, stage: Stage) -> Result<Vec<String>, Error> {
        let Steps { list, mut warnings } = self.steps(limits, stage)?;
        for step in &list {
            let dir = self.dir_in(step.root);
            match io::write(step.root, &dir, &step.write.file, &step.write.value) {
                Ok(()) => {}
                Err(error) if error.is_gone() && io::exists(step.root, "", &dir) => {
                    self.missing(step, &dir, error, &mut warnings)?;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(rules) = limits.devices.as_ref().filter(|_| stage.late()) {
            self.apply_devices(rules)?;
        }
        Ok(warnings)
    }

    /// The file of a step is not there: as good as done, a warning, or an error that says why it is not there.
    pub(crate) fn missing(
        &self,
        step: &Step<'_>,
        dir: &str,
        error: Error,
        warnings: &mut Vec<String>,
    ) -> Result<(), Error> {
        match (step.write.tolerate, step.controller) {
            (Some(""), _) => Ok(()),
            (Some(warning), _) => {
                warnings.push(warning.to_owned());
                Ok(())
            }
            (None, Some(controller)) if step.unified && made_by_systemd(dir) => Err(Error::NotDelegated {
                path: self.path(),
                controller: controller.unified_name(),
                file: step.write.file.clone(),
            }),
            // The controller is not enabled down to here: the kernel's reason is worth more than ENOENT.
            (None, Some(controller)) if step.unified => {
                Err(why_missing(step.root, dir, controller).unwrap_or(error))
            }
            (None, _) => Err(error),
        }
    }

    /// One reading. For many, keep a [`StatReader`].
    pub fn stats(&self) -> Result<Stats, Error> {
        self.stat_reader()?.read()
    }

    /// Whether processor time is limited by a quota. Not where there is no cpu controller.
    pub fn has_quota(&self) -> Result<bool, Error> {
        let (root, file) = match self.hierarchy.home(Controller::Cpu) {
            Some(Home::V1(root)) => (root, "cpu.cfs_quota_us"),
            Some(Home::V2(root)) => (root, "cpu.max"),
            None => return Ok(false),
        };
        let text = io::read(root, &self.dir_in(root), file)?;
        Ok(!text.starts_with("max") && !text.starts_with('-'))
    }

    pub fn stat_reader(&self) -> Result<StatReader, Error> {
        StatReader::open(self)
    }

    /// The figures that are asked for less often, through files that are opened for it. What cannot be read is left out.
    #[must_use]
    pub fn detail(&self) -> Detail {
        Detail::read(self)
    }

    /// `cgroup.events`, to poll; `None` where there is no unified hierarchy.
    pub fn watch_empty(&self) -> Result<Option<Watch>, Error> {
        let Some(unified) = &self.hierarchy.mounts.unified else {
            return Ok(None);
        };
        let dir = self.dir_in(&unified.root);
        let fd = io::open(&unified.root, &dir, "cgroup.events", OFlags::RDONLY)?;
        Ok(Some(Watch {
            fd,
            name: io::name(&unified.root, &dir, "cgroup.events"),
        }))
    }

    fn apply_devices(&self, rules: &[crate::DeviceRule]) -> Result<(), Error> {
        match (
            self.hierarchy.home(Controller::Devices),
            &self.hierarchy.mounts.unified,
        ) {
            (Some(Home::V1(root)), _) => devices::apply_v1(root, &self.dir_in(root), rules),
            (_, Some(unified)) => devices::apply_v2(&unified.root, &self.dir_in(&unified.root), rules),
            (_, None) => Err(Error::NoController {
                path: self.path(),
                controller: "devices",
                limit: "devices".into(),
            }),
        }
    }
}
