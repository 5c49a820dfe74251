//! One cgroup: limits, membership, leaves, measurements. Freezing, killing and removing are in `kill`.

use crate::hierarchy::{Controller, Hierarchy, Home, made_by_systemd, why_missing};
use crate::io::{self, Root};
use crate::limits::{Cpu, Limits, Memory, Stage};
use crate::v2::Write;
use crate::{Detail, Error, StatReader, Stats, devices, path, v1, v2};
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
        path::component(name)?;
        let leaf = match &self.leaf {
            Some(parent) => format!("{parent}/{name}"),
            None => name.to_owned(),
        };
        let out = Self {
            leaf: Some(leaf),
            ..self.clone()
        };
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

    /// Writes the limits of one stage. Returns what was done less well than asked, in words for the log.
    pub fn apply(&self, limits: &Limits, stage: Stage) -> Result<Vec<String>, Error> {
        let mut warnings = Vec::new();
        if stage.early() {
            self.apply_cpu(&limits.cpu)?;
            self.apply_lists(limits, &mut warnings)?;
        }
        if stage.late() {
            self.apply_memory(&limits.memory, &mut warnings)?;
            if let Some(rules) = &limits.devices {
                self.apply_devices(rules)?;
            }
        }
        for (file, value) in &limits.unified {
            let late = file.starts_with("memory.");
            if (late && stage.late()) || (!late && stage.early()) {
                self.apply_unified(file, value, &mut warnings)?;
            }
        }
        Ok(warnings)
    }

    /// One reading. For many, keep a [`StatReader`].
    pub fn stats(&self) -> Result<Stats, Error> {
        self.stat_reader()?.read()
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

    fn apply_cpu(&self, cpu: &Cpu) -> Result<(), Error> {
        let bandwidth = Cpu {
            cpus: None,
            mems: None,
            ..cpu.clone()
        };
        if bandwidth == Cpu::default() {
            return Ok(());
        }
        match self.need(Controller::Cpu, "cpu")? {
            Home::V1(root) => v1::apply_cpu(root, &self.dir_in(root), &bandwidth),
            home @ Home::V2(_) => {
                self.write_all(Controller::Cpu, &home, v2::cpu(&bandwidth), &mut Vec::new())
            }
        }
    }

    /// Those controllers whose limits are plain lists of writes on both versions.
    fn apply_lists(&self, limits: &Limits, warnings: &mut Vec<String>) -> Result<(), Error> {
        if limits.cpu.cpus.is_some() || limits.cpu.mems.is_some() {
            let home = self.need(Controller::Cpuset, "cpuset")?;
            self.write_all(Controller::Cpuset, &home, v2::cpuset(&limits.cpu), warnings)?;
        }
        if let Some(limit) = limits.pids {
            match self.need(Controller::Pids, "pids") {
                // The file is the same on both.
                Ok(home) => self.write_all(Controller::Pids, &home, v2::pids(limit), warnings)?,
                Err(_) if limit <= 0 => {}
                Err(error) => return Err(error),
            }
        }
        if limits.hugepages.iter().any(|(_, bytes)| *bytes != 0)
            || self.hierarchy.home(Controller::Hugetlb).is_some()
        {
            let home = self.need(Controller::Hugetlb, "hugetlb")?;
            let has = |root: &Root, file: &str| io::exists(root, &self.dir_in(root), file);
            let writes = match &home {
                Home::V1(root) => v1::hugepages(&limits.hugepages, |file| has(root, file)),
                Home::V2(root) => v2::hugepages(&limits.hugepages, |file| has(root, file)),
            };
            self.write_all(Controller::Hugetlb, &home, writes, warnings)?;
        }
        if limits.block_io != crate::BlockIo::default() {
            let home = self.need(Controller::Io, "io")?;
            let has = |root: &Root, file: &str| io::exists(root, &self.dir_in(root), file);
            let writes = match &home {
                Home::V1(root) => v1::block_io(&limits.block_io, has(root, "blkio.bfq.weight")),
                Home::V2(root) => v2::block_io(&limits.block_io, has(root, "io.bfq.weight")),
            };
            self.write_all(Controller::Io, &home, writes, warnings)?;
        }
        Ok(())
    }

    fn apply_memory(&self, memory: &Memory, warnings: &mut Vec<String>) -> Result<(), Error> {
        if *memory == Memory::default() {
            return Ok(());
        }
        let home = self.need(Controller::Memory, "memory")?;
        if memory.check_before_update {
            self.check_usage(memory)?;
        }
        match home {
            Home::V1(root) => warnings.extend(v1::apply_memory(root, &self.dir_in(root), memory)?),
            home @ Home::V2(_) => {
                let (writes, more) = v2::memory(memory)?;
                warnings.extend(more);
                self.write_all(Controller::Memory, &home, writes, warnings)?;
            }
        }
        Ok(())
    }

    fn check_usage(&self, memory: &Memory) -> Result<(), Error> {
        let usage = self.stats()?.memory.usage;
        match memory.limit {
            Some(limit) if limit > 0 && usage > limit.unsigned_abs() => Err(Error::Limit {
                field: "memory limit",
                value: limit.to_string(),
                problem: "more than that is in use already",
            }),
            _ => Ok(()),
        }
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

    fn apply_unified(&self, file: &str, value: &str, warnings: &mut Vec<String>) -> Result<(), Error> {
        v2::check_unified(file)?;
        let unified = self.hierarchy.mounts.unified.as_ref();
        let prefix = file.split('.').next().unwrap_or_default();
        let there = unified.filter(|unified| {
            self.hierarchy.mode() == crate::Mode::Unified
                || prefix == "cgroup"
                || unified.controllers.iter().any(|it| it.unified_name() == prefix)
        });
        match there {
            Some(unified) => {
                // Files such as io.max take one line a write.
                for line in value.lines().filter(|line| !line.is_empty()) {
                    io::write(&unified.root, &self.dir_in(&unified.root), file, line)?;
                }
                Ok(())
            }
            None if file == "memory.oom.group" => {
                warnings.push("memory.oom.group needs cgroup version 2: left out".into());
                Ok(())
            }
            None => Err(Error::Limit {
                field: "unified cgroup setting",
                value: file.to_owned(),
                problem: "this machine has that controller on cgroup version 1",
            }),
        }
    }

    fn need(&self, controller: Controller, limit: &str) -> Result<Home<'_>, Error> {
        self.hierarchy
            .home(controller)
            .ok_or_else(|| Error::NoController {
                path: self.path(),
                controller: controller.legacy_name(),
                limit: limit.to_owned(),
            })
    }

    fn write_all(
        &self,
        controller: Controller,
        home: &Home<'_>,
        writes: Vec<Write>,
        warnings: &mut Vec<String>,
    ) -> Result<(), Error> {
        let (Home::V1(root) | Home::V2(root)) = home;
        let dir = self.dir_in(root);
        for write in writes {
            match io::write(root, &dir, &write.file, &write.value) {
                Ok(()) => {}
                Err(error) if error.is_gone() && io::exists(root, "", &dir) => match (write.tolerate, home) {
                    (Some(""), _) => {}
                    (Some(warning), _) => warnings.push(warning.to_owned()),
                    (None, Home::V2(_)) if made_by_systemd(&dir) => {
                        return Err(Error::NotDelegated {
                            path: self.path(),
                            controller: controller.unified_name(),
                            file: write.file,
                        });
                    }
                    // The controller is not enabled down to here: the kernel's reason is worth more than ENOENT.
                    (None, Home::V2(_)) => return Err(why_missing(root, &dir, controller).unwrap_or(error)),
                    (None, Home::V1(_)) => return Err(error),
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
