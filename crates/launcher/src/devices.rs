//! A container's /dev: device nodes, the usual links, the console's place.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mkdirat, mknodat, openat, symlinkat,
};
use rustix::io::Errno;

use crate::fault::{Context, Fault, Result};
use crate::place::{Root, Want};
use crate::userns::Mapping;

/// Devices that every container has.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

const DEVICE_LIMIT: usize = 4096;

#[derive(Debug)]
struct Node {
    path: PathBuf,
    kind: FileType,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// The devices of one container, with owners as the host has them.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    /// Paths below /dev, relative to it.
    in_dev: Vec<Node>,
    elsewhere: Vec<Node>,
    console: bool,
}

impl Devices {
    pub fn new(list: &[LinuxDevice], console: bool, mapping: Option<&Mapping<'_>>) -> Result<Self> {
        if list.len() > DEVICE_LIMIT {
            return Err(Fault::invalid(format!(
                "{} devices are more than {DEVICE_LIMIT}",
                list.len()
            )));
        }
        let mut out = Self {
            console,
            ..Self::default()
        };
        for device in list {
            let node = node(device, mapping)?;
            match node.path.strip_prefix("/dev").map(Path::to_path_buf) {
                Ok(path) => out.in_dev.push(Node { path, ..node }),
                Err(_) => out.elsewhere.push(node),
            }
        }
        Ok(out)
    }

    /// Fills a fresh tmpfs that will be /dev and that nobody else can reach yet.
    pub fn fill(&self, dev: BorrowedFd<'_>, owner: (u32, u32)) -> Result<()> {
        let inside = Root { fd: dev, owner };
        for (name, major, minor) in DEFAULT {
            if !self.in_dev.iter().any(|n| n.path == Path::new(name)) {
                let node = Node {
                    path: name.into(),
                    kind: FileType::CharacterDevice,
                    major,
                    minor,
                    mode: 0o666,
                    uid: owner.0,
                    gid: owner.1,
                };
                make(inside, &node)?;
            }
        }
        for node in &self.in_dev {
            make(inside, node)?;
        }
        for (name, target) in LINKS {
            let made = symlinkat(target, dev, name);
            ignore_existing(made).at(|| format!("make the link /dev/{name}"))?;
        }
        for name in ["pts", "shm", "mqueue"] {
            let made = mkdirat(dev, name, Mode::from_raw_mode(0o755));
            ignore_existing(made).at(|| format!("make /dev/{name}"))?;
            give(dev, Path::new(name), owner).at(|| format!("make /dev/{name}"))?;
        }
        if self.console {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(dev, "console", flags, Mode::from_raw_mode(0o600))
                .at(|| "make the place of /dev/console")?;
        }
        Ok(())
    }

    /// Makes the devices that are not below /dev, in the bare root file system, before anything is mounted over it.
    pub fn make_elsewhere(&self, root: Root<'_>) -> Result<()> {
        self.elsewhere.iter().try_for_each(|node| make(root, node))
    }
}

fn node(device: &LinuxDevice, mapping: Option<&Mapping<'_>>) -> Result<Node> {
    let path = crate::place::destination(device.path())?;
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => {
            return Err(Fault::invalid(format!(
                "the device {} has no type",
                path.display()
            )));
        }
    };
    let number = |n: i64| {
        u32::try_from(n).map_err(|_| Fault::invalid(format!("device {}: number {n}", path.display())))
    };
    let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    let (uid, gid) = match mapping {
        None => (uid, gid),
        Some(m) => {
            let root = m.root();
            (
                m.host_uid(uid).unwrap_or(root.0),
                m.host_gid(gid).unwrap_or(root.1),
            )
        }
    };
    Ok(Node {
        kind,
        major: number(device.major())?,
        minor: number(device.minor())?,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid,
        gid,
        path,
    })
}

fn make(root: Root<'_>, node: &Node) -> Result<()> {
    let what = || format!("make the device {}", node.path.display());
    let (Some(above), Some(name)) = (node.path.parent(), node.path.file_name()) else {
        return Err(Fault::invalid(what()));
    };
    let parent = root.ensure(above, Want::Directory)?;
    let number = makedev(node.major, node.minor);
    match mknodat(&parent, name, node.kind, Mode::from_raw_mode(node.mode), number) {
        // The image may bring one. It is not opened: the device filter decides what it may be.
        Err(Errno::EXIST) => return Ok(()),
        other => other.at(what)?,
    }
    give(
        std::os::fd::AsFd::as_fd(&parent),
        Path::new(name),
        (node.uid, node.gid),
    )
    .at(what)
}

fn give(dir: BorrowedFd<'_>, name: &Path, owner: (u32, u32)) -> Result<(), Errno> {
    if owner == (0, 0) {
        return Ok(());
    }
    chownat(
        dir,
        name,
        Some(Uid::from_raw(owner.0)),
        Some(Gid::from_raw(owner.1)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

fn ignore_existing(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}
