//! Which cgroup file systems are mounted, and making cgroups in all of them.
//!
//! Owns detection from /proc/self/mountinfo, the directories, enabling controllers along a path (version 2) and
//! filling in cpusets (version 1). Leaves out what happens inside one cgroup: see `cgroup`.

use crate::io::{self, Root};
use crate::mountinfo::parse_mountinfo;
use crate::{Cgroup, Error, path};
use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Version 2 alone.
    Unified,
    /// Version 1 controllers beside a unified hierarchy.
    Hybrid,
    /// Version 1 alone.
    Legacy,
}

/// Where a daemon goes that is in the way of its pods.
const ASIDE: &str = "daemon";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    Cpu,
    Cpuacct,
    Cpuset,
    Memory,
    Pids,
    Io,
    Hugetlb,
    Rdma,
    Misc,
    Devices,
    Freezer,
}

impl Controller {
    /// Name in mount options (version 1).
    pub(crate) fn legacy_name(self) -> &'static str {
        match self {
            Self::Io => "blkio",
            other => other.unified_name(),
        }
    }

    /// Name in `cgroup.controllers` (version 2), for those that it has.
    pub(crate) fn unified_name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
            Self::Hugetlb => "hugetlb",
            Self::Rdma => "rdma",
            Self::Misc => "misc",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
        }
    }

    /// The controller of files that begin with `prefix`, where version 2 has it.
    pub(crate) fn of_unified(prefix: &str) -> Option<Self> {
        Self::UNIFIED.into_iter().find(|it| it.unified_name() == prefix)
    }

    pub(crate) const ALL: [Self; 11] = [
        Self::Cpu,
        Self::Cpuacct,
        Self::Cpuset,
        Self::Memory,
        Self::Pids,
        Self::Io,
        Self::Hugetlb,
        Self::Rdma,
        Self::Misc,
        Self::Devices,
        Self::Freezer,
    ];
    /// Those that are worth enabling on version 2.
    const UNIFIED: [Self; 8] = [
        Self::Cpu,
        Self::Cpuset,
        Self::Memory,
        Self::Pids,
        Self::Io,
        Self::Hugetlb,
        Self::Rdma,
        Self::Misc,
    ];
}

/// A version 1 mount, with the controllers that share it (none: a named hierarchy such as systemd's).
#[derive(Debug)]
pub(crate) struct Legacy {
    pub root: Root,
    pub controllers: Vec<Controller>,
}

#[derive(Debug)]
pub(crate) struct Unified {
    pub root: Root,
    pub controllers: Vec<Controller>,
}

/// Where a controller's files are.
pub(crate) enum Home<'a> {
    V1(&'a Root),
    V2(&'a Root),
}

#[derive(Debug)]
pub(crate) struct Mounts {
    pub unified: Option<Unified>,
    pub legacy: Vec<Legacy>,
}

/// All mounted hierarchies. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    pub(crate) mounts: Arc<Mounts>,
}

impl Hierarchy {
    /// Looks at the calling thread's mountinfo, and opens every hierarchy's root.
    pub fn detect() -> Result<Self, Error> {
        // Of the thread: a launcher may have moved alone.
        let file = "/proc/thread-self/mountinfo";
        let text = std::fs::read_to_string(file).map_err(|source| Error::Read {
            file: file.into(),
            source,
        })?;
        let found = parse_mountinfo(&text);
        let mut mounts = Mounts {
            unified: None,
            legacy: Vec::new(),
        };
        for mount in found {
            let root = open_root(mount.at)?;
            match mount.controllers {
                Some(controllers) => mounts.legacy.push(Legacy { root, controllers }),
                None => {
                    let controllers = controllers_in(&io::read(&root, "", "cgroup.controllers")?);
                    mounts.unified = Some(Unified { root, controllers });
                }
            }
        }
        if mounts.unified.is_none() && mounts.legacy.is_empty() {
            return Err(Error::NotMounted);
        }
        Ok(Self {
            mounts: Arc::new(mounts),
        })
    }

    #[must_use]
    pub fn mode(&self) -> Mode {
        let controllers = self
            .mounts
            .legacy
            .iter()
            .any(|mount| !mount.controllers.is_empty());
        match (&self.mounts.unified, controllers) {
            (Some(_), false) => Mode::Unified,
            (Some(_), true) => Mode::Hybrid,
            (None, _) => Mode::Legacy,
        }
    }

    /// Whether limits of this controller can be set at all. Version 2 has no devices controller: there the filter is
    /// a program, and cpu accounting is part of cpu.
    #[must_use]
    pub fn has(&self, controller: Controller) -> bool {
        match controller {
            Controller::Devices | Controller::Freezer if self.mode() != Mode::Legacy => true,
            Controller::Cpuacct if self.mode() == Mode::Unified => true,
            other => self.home(other).is_some(),
        }
    }

    /// Makes the cgroup `path` and those above it in every hierarchy. One that exists already is taken as it is. On
    /// failure what was made is removed again.
    pub fn create(&self, path: &str) -> Result<Cgroup, Error> {
        let dir = path::relative(path)?;
        let mut made = Vec::new();
        let result = self.create_in_all(&dir, &mut made);
        if let Err(error) = result {
            for (root, dir) in made.iter().rev() {
                // Best effort: the first error is the one to tell.
                let _ = rustix::fs::unlinkat(&root.fd, dir.as_str(), AtFlags::REMOVEDIR);
            }
            return Err(error);
        }
        Ok(Cgroup::new(self.clone(), dir))
    }

    /// The cgroup `path`, which must exist (in the hierarchy that keeps track of processes).
    pub fn open(&self, path: &str) -> Result<Cgroup, Error> {
        let dir = path::relative(path)?;
        let root = self.tracking();
        io::open_dir(root, &dir)?;
        Ok(Cgroup::new(self.clone(), dir))
    }

    /// Whether the cgroup `path` exists in any hierarchy.
    pub fn exists(&self, path: &str) -> Result<bool, Error> {
        let dir = path::relative(path)?;
        Ok(self.roots().any(|root| io::exists(root, "", &dir)))
    }

    /// Names of the cgroups directly below `path`, over all hierarchies, sorted.
    pub fn children(&self, path: &str) -> Result<Vec<String>, Error> {
        let dir = path::relative(path)?;
        let mut out = Vec::new();
        for root in self.roots() {
            match io::open_dir(root, &dir) {
                Ok(fd) => out.extend(io::subdirectories(&fd).map_err(|errno| Error::Read {
                    file: io::name(root, &dir, ""),
                    source: errno.into(),
                })?),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        out.sort();
        out.dedup();
        Ok(out)
    }

    /// Removes `path` where it has neither children nor processes, once; says whether it is gone everywhere. For
    /// parents that were made on the way: no error if they are in use.
    pub fn remove_if_empty(&self, path: &str) -> Result<bool, Error> {
        let dir = path::relative(path)?;
        if dir.is_empty() {
            return Ok(false);
        }
        let mut gone = true;
        for root in self.roots() {
            match rustix::fs::unlinkat(&root.fd, dir.as_str(), AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::BUSY | Errno::NOTEMPTY) => gone = false,
                Err(errno) => {
                    return Err(Error::Remove {
                        path: io::name(root, &dir, ""),
                        source: errno.into(),
                    });
                }
            }
        }
        Ok(gone)
    }

    /// The path of the cgroup that a process (`None`: the caller) is in, in the hierarchy that tracks processes.
    pub fn of_process(&self, pid: Option<i32>) -> Result<String, Error> {
        let file = match pid {
            Some(pid) => format!("/proc/{pid}/cgroup"),
            None => "/proc/self/cgroup".into(),
        };
        let text = std::fs::read_to_string(&file).map_err(|source| Error::Read {
            file: file.clone(),
            source,
        })?;
        let wanted = |controllers: &str| match &self.mounts.unified {
            Some(_) => controllers.is_empty(),
            None => controllers
                .split(',')
                .any(|name| name == "freezer" || name == "memory"),
        };
        text.lines()
            .find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                wanted(controllers).then(|| path.to_owned())
            })
            .ok_or(Error::Parse { file, text })
    }

    /// Moves the calling process out of the way of `path`, into a cgroup `daemon` beside it, and says where it is now; `None`:
    /// it is not in the way.
    ///
    /// On version 2 a cgroup that holds processes hands no controller down (cgroup-v2.rst, "No Internal Process
    /// Constraint"), unless it is the machine's root. A service whose pods are to live in the cgroup that was delegated to
    /// it is in the way of its own pods.
    pub fn step_aside(&self, path: &str) -> Result<Option<String>, Error> {
        let Some(unified) = self
            .mounts
            .unified
            .as_ref()
            .filter(|_| self.mode() == Mode::Unified)
        else {
            return Ok(None);
        };
        let own = path::relative(&self.of_process(None)?)?;
        let wanted = path::relative(path)?;
        let below = own.is_empty()
            || wanted
                .strip_prefix(&own)
                .is_some_and(|rest| rest.starts_with('/'));
        // The machine's root has no type; that of a cgroup namespace has.
        if !below || !io::exists(&unified.root, &own, "cgroup.type") {
            return Ok(None);
        }
        let slash = if own.is_empty() { "" } else { "/" };
        let aside = self.create(&format!("{slash}{own}/{ASIDE}"))?;
        aside.join_self()?;
        Ok(Some(aside.path()))
    }

    /// The hierarchy that says who is in a cgroup: the unified one, or the freezer, or whichever is there.
    pub(crate) fn tracking(&self) -> &Root {
        match &self.mounts.unified {
            Some(unified) => &unified.root,
            None => {
                let legacy = &self.mounts.legacy;
                &legacy
                    .iter()
                    .find(|mount| mount.controllers.contains(&Controller::Freezer))
                    .unwrap_or(&legacy[0])
                    .root
            }
        }
    }

    pub(crate) fn roots(&self) -> impl Iterator<Item = &Root> {
        let unified = self.mounts.unified.iter().map(|unified| &unified.root);
        unified.chain(self.mounts.legacy.iter().map(|mount| &mount.root))
    }

    pub(crate) fn home(&self, controller: Controller) -> Option<Home<'_>> {
        let legacy = self
            .mounts
            .legacy
            .iter()
            .find(|mount| mount.controllers.contains(&controller));
        if let Some(mount) = legacy {
            return Some(Home::V1(&mount.root));
        }
        let unified = self.mounts.unified.as_ref()?;
        unified
            .controllers
            .contains(&controller)
            .then_some(Home::V2(&unified.root))
    }

    fn create_in_all<'a>(&'a self, dir: &str, made: &mut Vec<(&'a Root, String)>) -> Result<(), Error> {
        if let Some(unified) = &self.mounts.unified {
            make_directories(&unified.root, dir, made)?;
            enable_along(unified, dir)?;
        }
        for mount in &self.mounts.legacy {
            make_directories(&mount.root, dir, made)?;
            if mount.controllers.contains(&Controller::Cpuset) {
                fill_cpuset(&mount.root, dir)?;
            }
        }
        Ok(())
    }
}

fn make_directories<'a>(root: &'a Root, dir: &str, made: &mut Vec<(&'a Root, String)>) -> Result<(), Error> {
    if dir.is_empty() {
        return Ok(());
    }
    match make_directory(root, dir) {
        Ok(true) => made.push((root, dir.to_owned())),
        Ok(false) => {}
        // The usual case is that only the last directory is missing; else start at the top.
        Err(Errno::NOENT) => {
            let ends = dir.match_indices('/').map(|(at, _)| at).chain([dir.len()]);
            for end in ends {
                let part = &dir[..end];
                match make_directory(root, part) {
                    Ok(true) => made.push((root, part.to_owned())),
                    Ok(false) => {}
                    Err(errno) => return Err(create_error(root, part, errno)),
                }
            }
        }
        Err(errno) => return Err(create_error(root, dir, errno)),
    }
    Ok(())
}

fn make_directory(root: &Root, dir: &str) -> Result<bool, Errno> {
    match rustix::fs::mkdirat(&root.fd, dir, rustix::fs::Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn create_error(root: &Root, dir: &str, errno: Errno) -> Error {
    Error::Create {
        path: io::name(root, dir, ""),
        source: errno.into(),
    }
}

/// Makes every known controller of the root available in `dir`. A controller that cannot be had (a parent holds
/// processes, say) is no error here: a limit that needs it will say so. In what is systemd's to manage only those are
/// enabled that it does not know.
fn enable_along(unified: &Unified, dir: &str) -> Result<(), Error> {
    if dir.is_empty() {
        return Ok(());
    }
    let have = controllers_in(&io::read(&unified.root, dir, "cgroup.controllers")?);
    let missing: Vec<_> = unified
        .controllers
        .iter()
        .filter(|it| !have.contains(it))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let parents = std::iter::once("").chain(dir.match_indices('/').map(|(at, _)| &dir[..at]));
    for parent in parents {
        let systemds = is_systemds(parent, dir);
        let missing: Vec<_> = missing
            .iter()
            .filter(|it| {
                !systemds || matches!(***it, Controller::Hugetlb | Controller::Rdma | Controller::Misc)
            })
            .collect();
        if missing.is_empty() {
            continue;
        }
        // It would hand down threaded controllers (cpu, cpuset, pids) at the price of becoming a threaded domain, below
        // which no cgroup can hold a process.
        if holds_processes(&unified.root, parent) {
            return Ok(());
        }
        let all: String = missing
            .iter()
            .map(|it| format!("+{} ", it.unified_name()))
            .collect();
        if io::write(&unified.root, parent, "cgroup.subtree_control", all.trim_end()).is_err() {
            for controller in &missing {
                let one = format!("+{}", controller.unified_name());
                let _ = io::write(&unified.root, parent, "cgroup.subtree_control", &one);
            }
        }
    }
    Ok(())
}

/// Whether a cgroup other than the machine's root, which alone has no type, holds processes of its own.
fn holds_processes(root: &Root, dir: &str) -> bool {
    io::exists(root, dir, "cgroup.type")
        && io::read(root, dir, "cgroup.procs").is_ok_and(|text| !text.trim().is_empty())
}

/// Whether `parent`, on the way to `dir`, is managed by systemd: a slice, or the root above one. A scope or a service is
/// delegated to whoever is in it.
fn is_systemds(parent: &str, dir: &str) -> bool {
    let slice = |path: &str| path.ends_with(".slice");
    match parent {
        "" => dir.split('/').next().is_some_and(slice),
        parent => slice(parent),
    }
}

/// Whether systemd made the cgroup, as a scope in a slice.
pub(crate) fn made_by_systemd(dir: &str) -> bool {
    dir.rsplit_once('/')
        .is_some_and(|(parent, name)| name.ends_with(".scope") && parent.ends_with(".slice"))
}

/// Why `controller` is not in `dir`: the kernel's answer to one more attempt to enable it, at the place where it is not
/// handed down.
pub(crate) fn why_missing(root: &Root, dir: &str, controller: Controller) -> Option<Error> {
    let parents = std::iter::once("").chain(dir.match_indices('/').map(|(at, _)| &dir[..at]));
    let value = format!("+{}", controller.unified_name());
    let not_delegated = |parent: &str, source| Error::NotHandedDown {
        path: io::name(root, dir, ""),
        controller: controller.unified_name(),
        by: io::name(root, parent, ""),
        source,
    };
    for parent in parents {
        if holds_processes(root, parent) {
            return Some(not_delegated(parent, Errno::BUSY.into()));
        }
        let (errno, source) = match io::write(root, parent, "cgroup.subtree_control", &value) {
            Ok(()) => continue,
            Err(Error::Write { source, .. } | Error::Open { source, .. }) => (source.raw_os_error(), source),
            Err(_) => return None,
        };
        // ENOENT: it was not handed down to the parent either, whose own parent said why.
        if errno != Some(libc::ENOENT) || parent.is_empty() {
            return Some(not_delegated(parent, source));
        }
    }
    None
}

/// A new version 1 cpuset is empty and takes no process: give each along the path its parent's.
fn fill_cpuset(root: &Root, dir: &str) -> Result<(), Error> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        fill_cpuset_file(root, dir, file)?;
    }
    Ok(())
}

fn fill_cpuset_file(root: &Root, dir: &str, file: &str) -> Result<String, Error> {
    let own = io::read(root, dir, file)?;
    if !own.trim().is_empty() || dir.is_empty() {
        return Ok(own);
    }
    let parent = dir.rsplit_once('/').map_or("", |(parent, _)| parent);
    let value = fill_cpuset_file(root, parent, file)?;
    io::write(root, dir, file, value.trim())?;
    Ok(value)
}

fn open_root(at: String) -> Result<Root, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(at.as_str(), flags, rustix::fs::Mode::empty()) {
        Ok(fd) => Ok(Root { fd, at }),
        Err(errno) => Err(Error::Open {
            file: at,
            source: errno.into(),
        }),
    }
}

fn controllers_in(text: &str) -> Vec<Controller> {
    let names: Vec<&str> = text.split_whitespace().collect();
    Controller::UNIFIED
        .into_iter()
        .filter(|it| names.contains(&it.unified_name()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_systemds_and_scopes_their_owners() {
        let pod = "kubepods.slice/kubepods-pod1.slice/holdfast-1.scope";
        for parent in ["", "kubepods.slice", "kubepods.slice/kubepods-pod1.slice"] {
            assert!(is_systemds(parent, pod), "{parent}");
        }
        assert!(!is_systemds(pod, &format!("{pod}/exec-1")));
        for parent in ["", "kubepods", "kubepods/pod1"] {
            assert!(!is_systemds(parent, "kubepods/pod1/c"), "{parent}");
        }
        assert!(made_by_systemd(pod));
        for other in ["a.scope", "a/b.scope", "a.slice/b", "a.slice"] {
            assert!(!made_by_systemd(other), "{other}");
        }
    }
}
