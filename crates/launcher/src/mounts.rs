//! The mounts of a container's spec: making each as a detached mount, and placing them in the root.
//!
//! Making them can hang (a bind source on a dead server) and may need the host's mount namespace: the builder does it
//! first. Placing happens in the container's mount namespace, in the order of the spec; what lies on procfs waits for
//! init, which alone can mount it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use holdfast_sys::mount::{Attributes, Propagation, set_attributes};
use oci_spec::runtime::Mount;
use rustix::fs::OFlags;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use crate::fault::{Context, Fault, Result};
use crate::options::Options;
use crate::overlay::Overlay;
use crate::place::{self, Root, Want, attach, is_dir};
use crate::procfs::{Procfs, is_procfs};
use crate::selinux::Label;
use crate::userns::Mapping;
use crate::{bind, cgroupfs, devices};

/// Most mounts that a container may have.
const MOUNT_LIMIT: usize = 1024;

/// One mount of the spec, parsed.
#[derive(Debug)]
pub(crate) struct Entry {
    pub destination: PathBuf,
    pub kind: Kind,
    pub options: Options,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bind(PathBuf),
    /// The pod's /dev/shm.
    PodShm,
    Proc,
    Cgroup,
    /// An image, or what an image declares as a volume.
    Overlay(Layers),
    /// The file systems that are made for this container: `sysfs`, `tmpfs`, `mqueue`, `devpts`.
    New(&'static str),
}

/// The directories of an overlay among the mounts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layers {
    pub lowers: Vec<PathBuf>,
    pub upper: Option<(PathBuf, PathBuf)>,
    pub options: Vec<String>,
}

impl Layers {
    /// Takes the overlay's own options: `lowerdir=` with `:` between the directories (`\:` is one in a name), as
    /// mount(8) has it.
    fn take(data: Vec<(String, Option<String>)>) -> Option<Self> {
        let (mut lowers, mut upper, mut work, mut options) = (Vec::new(), None, None, Vec::new());
        for (key, value) in data {
            match (key.as_str(), value) {
                ("lowerdir", Some(value)) => lowers = split_layers(&value),
                ("upperdir", Some(value)) => upper = Some(PathBuf::from(value)),
                ("workdir", Some(value)) => work = Some(PathBuf::from(value)),
                (_, None) => options.push(key),
                (_, Some(value)) => options.push(format!("{key}={value}")),
            }
        }
        let absolute = |path: &PathBuf| path.is_absolute();
        let upper = match (upper, work) {
            (Some(upper), Some(work)) if absolute(&upper) && absolute(&work) => Some((upper, work)),
            (None, None) => None,
            _ => return None,
        };
        (!lowers.is_empty() && lowers.iter().all(absolute)).then_some(Self {
            lowers,
            upper,
            options,
        })
    }
}

fn split_layers(text: &str) -> Vec<PathBuf> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let letter = match letter {
            ':' => {
                parts.push(String::new());
                continue;
            }
            '\\' => letters.next().unwrap_or(letter),
            other => other,
        };
        if let Some(last) = parts.last_mut() {
            last.push(letter);
        }
    }
    parts.into_iter().map(PathBuf::from).collect()
}

impl Entry {
    pub fn parse(mount: &Mount) -> Result<Self> {
        let destination = place::destination(mount.destination())?;
        let mut options = Options::parse(mount.options().as_deref().unwrap_or_default());
        let kind = mount.typ().as_deref().unwrap_or_default();
        let source = mount.source().clone().unwrap_or_default();
        let kind = match kind {
            _ if options.bind || kind == "bind" => match source.to_str() {
                Some("pod:shm") => Kind::PodShm,
                _ if source.is_absolute() => Kind::Bind(source),
                _ => {
                    return Err(Fault::invalid(format!(
                        "the source {:?} of the mount at {} is not an absolute path",
                        source.display().to_string(),
                        destination.display()
                    )));
                }
            },
            "proc" => Kind::Proc,
            "cgroup" | "cgroup2" => Kind::Cgroup,
            "overlay" => {
                let layers = Layers::take(std::mem::take(&mut options.data));
                Kind::Overlay(layers.ok_or_else(|| {
                    Fault::invalid(format!(
                        "the overlay at {} needs absolute paths: lowerdir, and both or none of upperdir and workdir",
                        destination.display()
                    ))
                })?)
            }
            "sysfs" => Kind::New("sysfs"),
            "tmpfs" => Kind::New("tmpfs"),
            "mqueue" => Kind::New("mqueue"),
            "devpts" => Kind::New("devpts"),
            other => {
                return Err(Fault::unsupported(format!(
                    "mounts of type {other:?} (at {}) are not supported",
                    destination.display()
                )));
            }
        };
        Ok(Self {
            destination,
            kind,
            options,
        })
    }

    pub fn parse_all(mounts: &[Mount]) -> Result<Vec<Self>> {
        if mounts.len() > MOUNT_LIMIT {
            return Err(Fault::invalid(format!(
                "{} mounts are more than {MOUNT_LIMIT}",
                mounts.len()
            )));
        }
        mounts.iter().map(Self::parse).collect()
    }

    fn what(&self) -> String {
        format!("mount at {}", self.destination.display())
    }
}

/// A mount that is made but not placed; for `Proc` init makes it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub entry: Entry,
    /// One mount, or for cgroups of version 1 a small tree; empty for `Proc` and what is made after the namespaces
    /// are joined.
    pub mount: Option<OwnedFd>,
    pub cgroups: Option<cgroupfs::Tree>,
}

/// What making mounts needs to know.
#[derive(Debug)]
pub(crate) struct Making<'a> {
    pub mapping: Option<&'a Mapping<'a>>,
    /// The container's cgroup and whether it gets a cgroup namespace.
    pub cgroup: Option<&'a holdfast_cgroups::Cgroup>,
    pub private_cgroups: bool,
    pub proc: &'a Procfs,
    /// Whether the pod has its own /dev/shm.
    pub pod_shm: bool,
    /// SELinux label of new file systems, and of the sources of binds that are named in `relabel`.
    pub label: Option<Label<'a>>,
    pub relabel: &'a [PathBuf],
}

impl Making<'_> {
    /// The first half, in the host's mount namespace: binds and cgroups.
    pub fn of_host(&self, entries: Vec<Entry>) -> Result<Vec<Prepared>> {
        entries.into_iter().map(|e| self.one_of_host(e)).collect()
    }

    fn one_of_host(&self, entry: Entry) -> Result<Prepared> {
        let mut cgroups = None;
        let mount = match &entry.kind {
            Kind::Bind(source) => {
                let label = self.label.filter(|_| self.relabel.contains(source));
                Some(bind::open(source, &entry, self.mapping, self.proc, label)?)
            }
            Kind::PodShm if !self.pod_shm => Some(bind::open(
                Path::new("/dev/shm"),
                &entry,
                self.mapping,
                self.proc,
                None,
            )?),
            Kind::Cgroup => {
                cgroups = Some(cgroupfs::Tree::open(self.cgroup, self.private_cgroups)?);
                None
            }
            Kind::PodShm | Kind::Proc | Kind::Overlay(_) | Kind::New(_) => None,
        };
        Ok(Prepared {
            entry,
            mount,
            cgroups,
        })
    }

    /// Overlays. With id maps the process is in another mount namespace afterwards, hence after everything else of the
    /// host.
    pub fn overlays(&self, prepared: &mut [Prepared]) -> Result<()> {
        for one in prepared {
            let Kind::Overlay(layers) = &one.entry.kind else {
                continue;
            };
            let overlay = Overlay {
                lowers: &layers.lowers,
                upper: layers.upper.as_ref().map(|(upper, work)| (&**upper, &**work)),
                options: &layers.options,
                label: self.label,
            };
            let mount = overlay.mount(self.proc, self.mapping).map_err(|mut fault| {
                fault.message = format!("{}: {}", one.entry.what(), fault.message);
                fault
            })?;
            bind::dress(mount.as_fd(), &one.entry, self.mapping)?;
            one.mount = Some(mount);
        }
        Ok(())
    }

    /// The second half, once the pod's namespaces are joined: file systems that show them. `shm` is the pod's.
    pub fn of_pod(&self, prepared: &mut [Prepared], shm: impl Fn() -> Result<OwnedFd>) -> Result<()> {
        for one in prepared {
            one.mount = match (&one.entry.kind, one.mount.take()) {
                (Kind::New(kind), None) => Some(self.new_file_system(kind, &one.entry)?),
                (Kind::PodShm, None) => {
                    let mount = shm()?;
                    bind::dress(mount.as_fd(), &one.entry, self.mapping)?;
                    Some(mount)
                }
                (_, mount) => mount,
            };
        }
        Ok(())
    }

    fn new_file_system(&self, kind: &'static str, entry: &Entry) -> Result<OwnedFd> {
        let mut data = entry.options.data.clone();
        if let Some(mapping) = self.mapping {
            map_data_ids(&mut data, kind, mapping);
        }
        // The others show the kernel, under labels of the policy.
        if matches!(kind, "tmpfs" | "devpts") {
            data.extend(self.label.map(Label::option));
        }
        let attributes = MountAttrFlags::from_bits_retain(entry.options.attributes.set as u32);
        let mut made = new_mount(kind, &data, attributes);
        if made.as_ref().is_err_and(|fault| fault.errno == libc::EINVAL) && drop_large_group(&mut data, kind)
        {
            made = new_mount(kind, &data, attributes);
        }
        made.and_then(|mount| match self.label {
            Some(label) if kind == "mqueue" => label.set_root(mount.as_fd(), self.proc).map(|()| mount),
            _ => Ok(mount),
        })
        .map_err(|mut fault| {
            fault.message = format!("{}: {}", entry.what(), fault.message);
            fault
        })
    }
}

/// Older kernels (6.12 is one) read devpts' group as a signed number, and the kubelet hands out ids up to 2^32. Without the
/// option a terminal's group is that of whoever opens it, as where group 5 is not mapped at all.
fn drop_large_group(data: &mut Vec<(String, Option<String>)>, kind: &str) -> bool {
    let large = |value: &str| value.parse::<u32>().is_ok_and(|id| i32::try_from(id).is_err());
    let before = data.len();
    data.retain(|(key, value)| kind != "devpts" || key != "gid" || !value.as_deref().is_some_and(large));
    data.len() < before
}

/// Ids in a file system's own options are the container's, but it is mounted with the host's.
fn map_data_ids(data: &mut Vec<(String, Option<String>)>, kind: &str, mapping: &Mapping<'_>) {
    for (key, value) in data.iter_mut() {
        let id = value.as_deref().and_then(|v| v.parse().ok());
        let mapped = match (key.as_str(), id) {
            ("uid", Some(id)) => mapping.host_uid(id),
            ("gid", Some(id)) => mapping.host_gid(id),
            _ => continue,
        };
        if let Some(mapped) = mapped {
            *value = Some(mapped.to_string());
        }
    }
    if kind == "tmpfs" {
        let (uid, gid) = mapping.root();
        for (key, id) in [("uid", uid), ("gid", gid)] {
            if !data.iter().any(|(k, _)| k == key) {
                data.push((key.to_owned(), Some(id.to_string())));
            }
        }
    }
}

/// A new tmpfs, attached nowhere.
pub(crate) fn tmpfs(data: &[(String, Option<String>)], attributes: MountAttrFlags) -> Result<OwnedFd> {
    new_mount("tmpfs", data, attributes)
}

fn new_mount(kind: &str, data: &[(String, Option<String>)], attributes: MountAttrFlags) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).at(|| format!("make a {kind} file system"))?;
    for (key, value) in data {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str()),
            None => fsconfig_set_flag(context.as_fd(), key.as_str()),
        }
        .at(|| format!("set the option {key:?} of a {kind} file system"))?;
    }
    fsconfig_create(context.as_fd()).at(|| format!("make a {kind} file system"))?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .at(|| format!("mount a {kind} file system"))
}

/// What placing needs to know.
#[derive(Debug)]
pub(crate) struct Placing<'a> {
    pub root: Root<'a>,
    pub devices: &'a devices::Devices,
}

impl Placing<'_> {
    /// Places what need not wait for init and returns the rest, in order.
    pub fn place(&self, prepared: Vec<Prepared>) -> Result<Vec<Prepared>> {
        let procs: Vec<PathBuf> = prepared
            .iter()
            .filter(|p| p.entry.kind == Kind::Proc)
            .map(|p| p.entry.destination.clone())
            .collect();
        let mut later = Vec::new();
        for one in prepared {
            if procs.iter().any(|p| one.entry.destination.starts_with(p)) {
                later.push(one);
            } else {
                self.place_one(&one)?;
            }
        }
        Ok(later)
    }

    /// Places one mount; init does so with what was returned.
    pub fn place_one(&self, one: &Prepared) -> Result<()> {
        let entry = &one.entry;
        if let Some(tree) = &one.cgroups {
            return tree.place(self.root, entry);
        }
        let Some(mount) = &one.mount else {
            return self.place_proc(entry).map(drop);
        };
        let target = match entry.kind {
            // A link in the image must not send what shows the kernel elsewhere.
            Kind::New("sysfs") => self.plain_directory(&entry.destination)?,
            _ => {
                let want = if is_dir(mount.as_fd()).at(|| entry.what())? {
                    Want::Directory
                } else {
                    Want::File
                };
                self.root.ensure(&entry.destination, want)?
            }
        };
        if is_procfs(target.as_fd()) {
            check_in_procfs(target.as_fd(), entry, mount.as_fd())?;
        }
        if entry.kind == Kind::New("tmpfs") && entry.destination == Path::new("/dev") {
            self.devices.fill(mount.as_fd(), self.root.owner)?;
        }
        attach(mount.as_fd(), target.as_fd()).at(|| entry.what())
    }

    /// Mounts the new PID namespace's procfs, in a directory that is one.
    pub fn place_proc(&self, entry: &Entry) -> Result<Procfs> {
        let target = self.plain_directory(&entry.destination)?;
        let proc = Procfs::new_instance()?;
        let attributes = Attributes {
            set: entry.options.attributes.set,
            clear: entry.options.attributes.clear,
            ..Attributes::default()
        };
        set_attributes(proc.as_fd(), attributes).at(|| entry.what())?;
        attach(proc.as_fd(), target.as_fd()).at(|| entry.what())?;
        Ok(proc)
    }

    fn plain_directory(&self, path: &Path) -> Result<OwnedFd> {
        let target = self.root.ensure(path, Want::Directory)?;
        let plain = self.root.find_plain(path).ok();
        match plain {
            Some(plain) if holdfast_sys::namespace::same(&plain, &target).unwrap_or(false) => Ok(target),
            _ => Err(Fault::invalid(format!(
                "{} in the image is or lies behind a symbolic link: refusing to mount there",
                path.display()
            ))),
        }
    }
}

/// Files of procfs that may be mounted over (those that lxcfs replaces).
const REPLACEABLE: [&str; 10] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "sys/kernel/ns_last_pid",
    "net/dev",
];

/// Of procfs only some files may be covered, and the whole of it by another procfs only (CVE-2019-16884).
fn check_in_procfs(target: BorrowedFd<'_>, entry: &Entry, mount: BorrowedFd<'_>) -> Result<()> {
    let is_root = rustix::fs::fstat(target).is_ok_and(|s| s.st_ino == 1);
    if is_root && is_procfs(mount) {
        return Ok(());
    }
    let below = entry.destination.strip_prefix("/proc").ok();
    match below.and_then(Path::to_str) {
        Some(name) if !is_root && REPLACEABLE.contains(&name) => Ok(()),
        _ => Err(Fault::invalid(format!(
            "the mount destination {} lies inside /proc",
            entry.destination.display()
        ))),
    }
}

/// Makes what is at each of `paths` read-only, by a mount over itself.
pub(crate) fn make_read_only(root: Root<'_>, paths: &[String]) -> Result<()> {
    for path in paths {
        let Some(target) = find_existing(root, path)? else {
            continue;
        };
        let what = || format!("make {path} read-only");
        let clone = crate::staging::clone_tree(target.as_fd(), true).at(what)?;
        let attributes = Attributes {
            set: holdfast_sys::mount::ATTR_RDONLY,
            recursive: true,
            propagation: Propagation::Private,
            ..Attributes::default()
        };
        set_attributes(clone.as_fd(), attributes).at(what)?;
        attach(clone.as_fd(), target.as_fd()).at(what)?;
    }
    Ok(())
}

/// Covers each of `paths` with nothing: an empty directory or the null device, from the staging tree.
pub(crate) fn mask(
    root: Root<'_>,
    paths: &[String],
    empty: BorrowedFd<'_>,
    null: BorrowedFd<'_>,
) -> Result<()> {
    for path in paths {
        let Some(target) = find_existing(root, path)? else {
            continue;
        };
        let what = || format!("mask {path}");
        let cover = if is_dir(target.as_fd()).at(what)? {
            crate::staging::clone_tree(empty, false).at(what)?
        } else {
            crate::staging::null_clone(null)?
        };
        attach(cover.as_fd(), target.as_fd()).at(what)?;
    }
    Ok(())
}

fn find_existing(root: Root<'_>, path: &str) -> Result<Option<OwnedFd>> {
    match root.open(Path::new(path), OFlags::PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(e) => Err(Fault::system(format!("find {path}"), &e)),
    }
}
