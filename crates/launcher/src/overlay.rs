//! Mounting an overlay of any number of layers without touching the host's mount table.
//!
//! The layers are opened first, and the overlay is told their descriptor numbers: with `/proc/self/fd` as the working
//! directory each layer's name is a few digits, so that a hundred layers fit where a hundred paths do not (an fsconfig
//! string ends at 255 bytes, mount(2)'s data at a page).

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use holdfast_sys::mount::{Attributes, Propagation, context_log, set_attributes};
use holdfast_sys::{clone, namespace};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, fstat, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
    mount_change, open_tree, unmount,
};

use crate::error::Kind;
use crate::fault::{Context, Fault, Result};
use crate::place::attach;
use crate::procfs::Procfs;
use crate::selinux::Label;
use crate::userns::Mapping;

/// Longest string that fsconfig(2) takes, without the terminator.
const FSCONFIG_LIMIT: usize = 255;
/// OVL_MAX_STACK of the kernel.
const LAYER_LIMIT: usize = 500;

/// An overlay to be.
#[derive(Debug)]
pub(crate) struct Overlay<'a> {
    /// Uppermost first; two at least where there is no upper directory.
    pub lowers: &'a [PathBuf],
    /// The upper and the work directory. `None`: nothing can be written.
    pub upper: Option<(&'a Path, &'a Path)>,
    pub options: &'a [String],
    /// What everything on it is labelled with.
    pub label: Option<Label<'a>>,
}

impl Overlay<'_> {
    /// Mounts it and returns the detached mount. `mapping`: show the lower layers through the pod's ids. The calling
    /// process may find itself in another mount namespace afterwards (one that looks the same).
    pub fn mount(&self, proc: &Procfs, mapping: Option<&Mapping<'_>>) -> Result<OwnedFd> {
        if self.lowers.is_empty() || self.lowers.len() > LAYER_LIMIT {
            return Err(Fault::invalid(format!(
                "an overlay of {} layers (1 to {LAYER_LIMIT} are possible)",
                self.lowers.len()
            )));
        }
        let lowers = match mapping {
            None => self.open_lowers()?,
            Some(mapping) => self.mapped_lowers(mapping)?,
        };
        let names = Names::open(self, &lowers, proc)?;
        if let (Some(mapping), Some((path, _)), Some((upper, _))) = (mapping, self.upper, &names.upper) {
            own_by_container(upper.as_fd(), path, mapping)?;
        }
        if let Some(mount) = self.by_context(&names)? {
            return Ok(mount);
        }
        if mapping.is_some() {
            return self.by_data_page(&names);
        }
        // The layers must be of the mount namespace in which the overlay is mounted.
        leave_hosts_namespace()?;
        let lowers = self.open_lowers()?;
        self.by_data_page(&Names::open(self, &lowers, proc)?)
    }

    fn open_lowers(&self) -> Result<Vec<OwnedFd>> {
        self.lowers.iter().map(|path| layer(path)).collect()
    }

    /// fsopen(2). `None`: this kernel cannot be told this many layers that way.
    fn by_context(&self, names: &Names) -> Result<Option<OwnedFd>> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .at(|| "make an overlay (is the kernel module missing?)")?;
        let fail = |e: Errno| self.fault(context.as_fd(), e);
        let joined = names.lowers.join(":");
        if joined.len() <= FSCONFIG_LIMIT {
            fsconfig_set_string(context.as_fd(), "lowerdir", joined.as_str()).map_err(fail)?;
        } else {
            for (index, name) in names.lowers.iter().enumerate() {
                // Linux 6.8; unknown before.
                match fsconfig_set_string(context.as_fd(), "lowerdir+", name.as_str()) {
                    Err(Errno::INVAL) if index == 0 => return Ok(None),
                    other => other.map_err(fail)?,
                }
            }
        }
        if let Some((upper, work)) = &names.upper {
            for (key, fd) in [("upperdir", upper), ("workdir", work)] {
                let name = fd.as_raw_fd().to_string();
                fsconfig_set_string(context.as_fd(), key, name.as_str()).map_err(fail)?;
            }
        }
        for option in self.options {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(context.as_fd(), key, value),
                None => fsconfig_set_flag(context.as_fd(), option.as_str()),
            }
            .map_err(fail)?;
        }
        if let Some((key, Some(label))) = self.label.map(Label::option) {
            fsconfig_set_string(context.as_fd(), key.as_str(), label.as_str()).map_err(fail)?;
        }
        match fsconfig_create(context.as_fd()) {
            // Before 6.5 the options reach the file system as one string here, and an unknown key is refused here.
            Err(Errno::INVAL) if joined.len() > FSCONFIG_LIMIT => return Ok(None),
            other => other.map_err(fail)?,
        }
        let mount = fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
        .map_err(fail)?;
        Ok(Some(mount))
    }

    /// mount(2), for many layers on old kernels: in a private mount namespace, from which a clone is taken.
    fn by_data_page(&self, names: &Names) -> Result<OwnedFd> {
        let mut data = format!("lowerdir={}", names.lowers.join(":"));
        // Any directory that only this overlay has can be covered by it.
        let mut cover = (names.lowers[0].clone(), self.lowers[0].as_path());
        if let (Some((upper, work)), Some((path, _))) = (&names.upper, self.upper) {
            let (upper, work) = (upper.as_raw_fd(), work.as_raw_fd());
            data.push_str(&format!(",upperdir={upper},workdir={work}"));
            cover = (upper.to_string(), path);
        }
        for option in self.options {
            data.push(',');
            data.push_str(option);
        }
        if let Some(label) = self.label {
            data.push(',');
            data.push_str(&label.quoted_option());
        }
        let what = || format!("mount the overlay of {} layers", self.lowers.len());
        let data = CString::new(data).map_err(|_| Fault::invalid("overlay option with a NUL"))?;
        mount(
            "overlay",
            cover.0,
            "overlay",
            MountFlags::empty(),
            data.as_c_str(),
        )
        .at(what)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let clone = open_tree(CWD, cover.1, flags).at(what)?;
        if self.upper.is_none() {
            // Another overlay may have the same layer: it must not find this one there.
            unmount(cover.1, UnmountFlags::DETACH).at(what)?;
        }
        Ok(clone)
    }

    /// Clones of the lower layers that show the pod's ids, attached in a private copy of the mount namespace (6.12
    /// refuses an overlay over detached ones).
    fn mapped_lowers(&self, mapping: &Mapping<'_>) -> Result<Vec<OwnedFd>> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let clones = self
            .lowers
            .iter()
            .map(|path| {
                let clone =
                    open_tree(CWD, path, flags).at(|| format!("open the layer {}", path.display()))?;
                let attributes = Attributes {
                    propagation: Propagation::Private,
                    idmap: Some(mapping.user),
                    ..Attributes::default()
                };
                set_attributes(clone.as_fd(), attributes).map_err(|e| {
                    let what = format!("map the ids of the layer {}", path.display());
                    let fault = Fault::system(what, &e);
                    match e.raw_os_error() {
                        Some(libc::EINVAL) => fault.kind(Kind::Unsupported), // the file system cannot
                        _ => fault,
                    }
                })?;
                Ok(clone)
            })
            .collect::<Result<Vec<_>>>()?;
        leave_hosts_namespace()?;
        let staging = crate::mounts::tmpfs(&[], MountAttrFlags::empty())?;
        let root = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).at(|| "open /")?;
        attach(staging.as_fd(), root.as_fd()).at(|| "attach a staging file system")?;
        for (index, clone) in clones.iter().enumerate() {
            let name = index.to_string();
            rustix::fs::mkdirat(&staging, name.as_str(), Mode::from_raw_mode(0o700))
                .at(|| "make a staging directory")?;
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let at = rustix::fs::openat(&staging, name.as_str(), flags, Mode::empty())
                .at(|| "open a staging directory")?;
            attach(clone.as_fd(), at.as_fd()).at(|| "attach a layer")?;
        }
        Ok(clones)
    }

    fn fault(&self, context: BorrowedFd<'_>, errno: Errno) -> Fault {
        let mut what = format!("mount the overlay of {} layers", self.lowers.len());
        if let Some((_, Some(label))) = self.label.map(Label::option) {
            what = format!("{what} with the SELinux label {label}");
        }
        if let Some(log) = context_log(context) {
            what = format!("{what} ({log})");
        }
        Fault::system(what, &errno.into())
    }
}

fn layer(path: &Path) -> Result<OwnedFd> {
    open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at(|| format!("open the layer {}", path.display()))
}

/// What the overlay is told: descriptor numbers, which are names in the working directory.
struct Names {
    lowers: Vec<String>,
    /// The upper and the work directory.
    upper: Option<(OwnedFd, OwnedFd)>,
}

impl Names {
    fn open(overlay: &Overlay<'_>, lowers: &[OwnedFd], proc: &Procfs) -> Result<Self> {
        let names = Self {
            lowers: lowers.iter().map(|fd| fd.as_raw_fd().to_string()).collect(),
            upper: overlay
                .upper
                .map(|(upper, work)| Ok::<_, Fault>((layer(upper)?, layer(work)?)))
                .transpose()?,
        };
        let fds = proc
            .open("self/fd", OFlags::PATH | OFlags::DIRECTORY)
            .at(|| "open /proc/self/fd")?;
        rustix::process::fchdir(&fds).at(|| "change to /proc/self/fd")?;
        Ok(names)
    }
}

/// The upper directory is the container's `/`: it must belong to an id that the container has.
fn own_by_container(upper: BorrowedFd<'_>, path: &Path, mapping: &Mapping<'_>) -> Result<()> {
    let what = || format!("give {} to the container's root", path.display());
    let stat = fstat(upper).at(what)?;
    if mapping.covers(stat.st_uid, stat.st_gid) {
        return Ok(()); // from an earlier attempt
    }
    let uid = mapping.host_uid(stat.st_uid).unwrap_or(mapping.root().0);
    let gid = mapping.host_gid(stat.st_gid).unwrap_or(mapping.root().1);
    chownat(
        upper,
        "",
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::EMPTY_PATH,
    )
    .at(what)
}

/// Moves the calling process to a copy of its mount namespace of which the host sees nothing.
fn leave_hosts_namespace() -> Result<()> {
    namespace::unshare(clone::NEWNS).at(|| "make a mount namespace")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .at(|| "make the copied mounts private")
}
