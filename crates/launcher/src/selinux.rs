//! SELinux labels of what a container is given: new file systems, its volumes.
//!
//! Labels are chosen by the daemon; here they are only applied. An empty label means that nothing is labelled, which is
//! what kernels without SELinux get. The label of the process itself is `creds`' concern.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags, XattrFlags, fstat, getxattr, openat,
    openat2, setxattr, statx,
};
use rustix::io::Errno;

use crate::error::Kind;
use crate::fault::{Context, Fault, Result};
use crate::procfs::Procfs;

const ATTRIBUTE: &str = "security.selinux";
/// Longest label that is set: what fits an fsconfig(2) string.
const LABEL_LIMIT: usize = 255;
/// Directories below each other in a volume that is relabelled; each holds a descriptor.
const DEPTH_LIMIT: usize = 256;
/// Directories of the host that no volume makes the container's own, as with the field's other runtimes: the host would
/// not boot or be administered any more.
const NEVER: &[&str] = &[
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/lib32",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/sbin",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/tmp",
];

/// A mount label, checked to be usable as an option.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label<'a>(&'a str);

impl<'a> Label<'a> {
    /// `None` for the empty label.
    pub fn new(text: &'a str) -> Result<Option<Self>> {
        if text.is_empty() {
            return Ok(None);
        }
        let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
        if text.len() > LABEL_LIMIT || !text.chars().all(plain) {
            return Err(Fault::invalid(format!("{text:?} is not an SELinux label")));
        }
        Ok(Some(Self(text)))
    }

    /// Everything on the file system has this label, whatever is stored with it.
    pub fn option(self) -> (String, Option<String>) {
        ("context".to_owned(), Some(self.0.to_owned()))
    }

    /// The same for mount(2), in whose data commas separate options.
    pub fn quoted_option(self) -> String {
        format!("context=\"{}\"", self.0)
    }

    /// Labels the root of a mount, where the whole cannot have an option (a message queue file system is one for a pod).
    pub fn set_root(self, mount: BorrowedFd<'_>, proc: &Procfs) -> Result<()> {
        match Labels::new(self.0, proc)?.set(mount) {
            // The policy says that this kind of file system has no labels of its own.
            Err(Errno::OPNOTSUPP) => Ok(()),
            other => other.at(|| format!("set the SELinux label {}", self.0)),
        }
    }

    /// Gives a volume, which is open as `top`, the label with all that is in it; what lies on other file systems is left.
    /// Nothing is done where `top` has it: it is set last, so that a relabelling that was broken off is taken up again.
    pub fn relabel(self, top: BorrowedFd<'_>, shown: &Path, proc: &Procfs) -> Result<()> {
        let clean: PathBuf = shown.components().collect();
        // By its name, and by what it is: `/proc/1/root/etc` or a link to it is /etc as well.
        // Without asking a server: one of the host's directories may be the mount of a dead one.
        let known = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let place = |s: rustix::fs::Statx| (s.stx_dev_major, s.stx_dev_minor, s.stx_ino);
        let own = statx(top, c"", known | AtFlags::EMPTY_PATH, StatxFlags::INO)
            .map(place)
            .at(|| format!("look at {}", shown.display()))?;
        let is_own = |never: &str| statx(CWD, never, known, StatxFlags::INO).is_ok_and(|s| place(s) == own);
        if NEVER
            .iter()
            .any(|never| clean == Path::new(never) || is_own(never))
        {
            return Err(Fault::invalid(format!(
                "{} may not be relabelled for a container: it is the host's own",
                shown.display()
            )));
        }
        let what = || format!("give {} the SELinux label {}", shown.display(), self.0);
        let labels = Labels::new(self.0, proc)?;
        match labels.has(top) {
            Ok(true) => return Ok(()),
            // The file system keeps none (such as NFS without them): there is nothing that could be wrong.
            Err(Errno::OPNOTSUPP) => return Ok(()),
            Ok(false) | Err(_) => {}
        }
        if is_directory(top).at(what)? {
            labels.below(top, shown, 0)?;
        }
        match labels.set(top) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            other => other.at(what),
        }
    }
}

/// Sets labels through descriptors: their numbers are names in /proc/self/fd, the working directory from here on.
struct Labels {
    /// With the NUL that the kernel stores and shows.
    value: Vec<u8>,
}

impl Labels {
    fn new(label: &str, proc: &Procfs) -> Result<Self> {
        let fds = proc
            .open("self/fd", OFlags::PATH | OFlags::DIRECTORY)
            .at(|| "open /proc/self/fd")?;
        rustix::process::fchdir(&fds).at(|| "change to /proc/self/fd")?;
        let mut value = label.as_bytes().to_vec();
        value.push(0);
        Ok(Self { value })
    }

    fn has(&self, fd: BorrowedFd<'_>) -> Result<bool, Errno> {
        let mut buffer = [0_u8; LABEL_LIMIT + 1];
        let name = fd.as_raw_fd().to_string();
        let length = getxattr(name.as_str(), ATTRIBUTE, &mut buffer[..])?;
        Ok(buffer[..length] == self.value)
    }

    /// Follows the link of procfs to the object itself, and no link that the object may be.
    fn set(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let name = fd.as_raw_fd().to_string();
        setxattr(name.as_str(), ATTRIBUTE, &self.value, XattrFlags::empty())
    }

    fn below(&self, dir: BorrowedFd<'_>, shown: &Path, depth: usize) -> Result<()> {
        if depth >= DEPTH_LIMIT {
            return Err(Fault::invalid(format!(
                "{} is more than {DEPTH_LIMIT} directories deep: it cannot be relabelled",
                shown.display()
            )));
        }
        let what = |shown: &Path| format!("relabel {}", shown.display());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let list = openat(dir, ".", flags, Mode::empty()).at(|| what(shown))?;
        for entry in Dir::new(list).at(|| what(shown))? {
            let entry = entry.at(|| what(shown))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = shown.join(name.to_string_lossy().as_ref());
            let Some(child) = open_child(dir, name).at(|| what(&path))? else {
                continue;
            };
            if is_directory(child.as_fd()).at(|| what(&path))? {
                self.below(child.as_fd(), &path, depth + 1)?;
            }
            self.set(child.as_fd()).at(|| what(&path))?;
        }
        Ok(())
    }
}

/// `None`: it has gone, or lies on another file system.
fn open_child(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    match openat2(dir, name, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::XDEV) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn is_directory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode).is_dir())
}

/// Asks for the label of what this thread executes next. `proc` is a procfs that shows it.
pub(crate) fn on_exec(label: &str, proc: &Procfs) -> Result<()> {
    proc.write("thread-self/attr/exec", label.as_bytes())
        .map_err(|e| {
            let fault = Fault::system(format!("ask for the SELinux label {label}"), &e);
            match e.raw_os_error() {
                Some(libc::EINVAL) => Fault::invalid(format!(
                    "{}: the loaded SELinux policy does not know it, or this kernel has no SELinux",
                    fault.message
                )),
                Some(libc::ENOENT) => fault.kind(Kind::Unsupported),
                _ => fault,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_one_word() {
        let label = |text: &str| match Label::new(text) {
            Ok(label) => label.map(Label::quoted_option),
            Err(fault) => Some(fault.message),
        };
        assert_eq!(label(""), None);
        assert_eq!(
            label("u:r:t:s0:c1,c2").as_deref(),
            Some("context=\"u:r:t:s0:c1,c2\"")
        );
        for wrong in ["a b", "a\"b", "a\nb", "a\\b"] {
            assert!(
                label(wrong).is_some_and(|text| text.contains("is not an SELinux label")),
                "{wrong}"
            );
        }
        assert!(label(&"x".repeat(256)).is_some_and(|text| text.contains("is not")));
    }

    #[test]
    fn the_host_s_own_directories_are_known_by_any_name() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let link = dir.path().join("link");
        // An empty one, for the case that this test fails.
        std::os::unix::fs::symlink("/srv", &link).unwrap_or_else(|e| panic!("{e}"));
        let top = rustix::fs::open(&link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let top = top.unwrap_or_else(|e| panic!("{e}"));
        let refused = Label::new("u:r:t:s0")
            .ok()
            .flatten()
            .zip(Procfs::shared().ok())
            .and_then(|(label, proc)| label.relabel(top.as_fd(), &link, proc).err());
        let text = refused.map(|fault| fault.message).unwrap_or_default();
        assert!(text.contains("it is the host's own"), "{text}");
    }
}
