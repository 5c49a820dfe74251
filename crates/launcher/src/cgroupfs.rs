//! What a container sees at /sys/fs/cgroup: clones of its own cgroup's directories.
//!
//! On version 2 that is one directory; on the hybrid a small tmpfs with one directory for each hierarchy. Clones of
//! subdirectories look, from inside the cgroup namespace, like fresh mounts of the hierarchies, and need no init.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use holdfast_sys::mount::{Attributes, Propagation, set_attributes};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, readlink, statfs, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use crate::fault::{Context, Fault, Result};
use crate::mounts::{Entry, tmpfs};
use crate::place::{Root, Want, attach};

const MOUNT_POINT: &str = "/sys/fs/cgroup";
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Taken in the host's mount namespace.
#[derive(Debug)]
pub(crate) enum Tree {
    Unified(OwnedFd),
    Hybrid {
        /// Directory name and clone.
        hierarchies: Vec<(String, OwnedFd)>,
        /// Links such as `cpu` to `cpu,cpuacct`.
        links: Vec<(String, String)>,
    },
}

impl Tree {
    /// `private`: the container has a cgroup namespace, so it sees its own cgroup as the root. Otherwise version 2
    /// shows all of the host's tree.
    pub fn open(cgroup: Option<&holdfast_cgroups::Cgroup>, private: bool) -> Result<Self> {
        let path = cgroup.map_or_else(|| "/".to_owned(), holdfast_cgroups::Cgroup::path);
        let kind = statfs(MOUNT_POINT).at(|| format!("look at {MOUNT_POINT}"))?;
        if kind.f_type as u64 == CGROUP2_SUPER_MAGIC {
            let path = if private { path.as_str() } else { "/" };
            return clone_of(&format!("{MOUNT_POINT}{path}")).map(Tree::Unified);
        }
        let mut hierarchies = Vec::new();
        let mut links = Vec::new();
        let what = || format!("list {MOUNT_POINT}");
        for entry in std::fs::read_dir(MOUNT_POINT).at(what)? {
            let entry = entry.at(what)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let place = format!("{MOUNT_POINT}/{name}");
            let kind = entry.file_type().at(|| format!("look at {place}"))?;
            if kind.is_symlink() {
                let target = readlink(&place, Vec::new()).at(|| format!("read {place}"))?;
                links.push((name, target.to_string_lossy().into_owned()));
            } else if kind.is_dir() {
                // A hierarchy without the container (a named one that nobody uses) is not shown.
                hierarchies.extend(clone_if_there(&format!("{place}{path}"))?.map(|clone| (name, clone)));
            }
        }
        Ok(Tree::Hybrid { hierarchies, links })
    }

    pub fn place(&self, root: Root<'_>, entry: &Entry) -> Result<()> {
        let what = || format!("mount at {}", entry.destination.display());
        let attributes = Attributes {
            set: entry.options.attributes.set,
            clear: entry.options.attributes.clear,
            ..Attributes::default()
        };
        let target = root.ensure(&entry.destination, Want::Directory)?;
        let (hierarchies, links) = match self {
            Tree::Unified(mount) => {
                set_attributes(mount.as_fd(), attributes).at(what)?;
                return attach(mount.as_fd(), target.as_fd()).at(what);
            }
            Tree::Hybrid { hierarchies, links } => (hierarchies, links),
        };
        let data = [("mode".to_owned(), Some("755".to_owned()))];
        let base = tmpfs(&data, MountAttrFlags::empty())?;
        attach(base.as_fd(), target.as_fd()).at(what)?;
        for (name, mount) in hierarchies {
            mkdirat(&base, name.as_str(), Mode::from_raw_mode(0o555)).at(what)?;
            let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let at = openat(&base, name.as_str(), flags, Mode::empty()).at(what)?;
            set_attributes(mount.as_fd(), attributes).at(what)?;
            attach(mount.as_fd(), at.as_fd()).at(what)?;
        }
        for (name, link) in links {
            symlinkat(link.as_str(), &base, name.as_str()).at(what)?;
        }
        set_attributes(base.as_fd(), attributes).at(what)
    }
}

fn clone_of(path: &str) -> Result<OwnedFd> {
    let clone = clone_if_there(path)?;
    clone.ok_or_else(|| Fault::system(format!("clone the cgroup directory {path}"), &Errno::NOENT.into()))
}

fn clone_if_there(path: &str) -> Result<Option<OwnedFd>> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let what = || format!("clone the cgroup directory {path}");
    if !Path::new(path).starts_with(MOUNT_POINT) || path.contains("/../") {
        return Err(Fault::invalid(format!("{path} is no cgroup")));
    }
    let clone = match open_tree(CWD, path, flags) {
        Err(Errno::NOENT) => return Ok(None),
        clone => clone.at(what)?,
    };
    let attributes = Attributes {
        propagation: Propagation::Private,
        ..Attributes::default()
    };
    set_attributes(clone.as_fd(), attributes).at(what)?;
    Ok(Some(clone))
}
