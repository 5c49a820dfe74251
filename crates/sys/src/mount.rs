//! mount_setattr(2) and what else of the mount API `rustix` does not have.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use crate::check;

pub const ATTR_RDONLY: u64 = 0x1;
pub const ATTR_NOSUID: u64 = 0x2;
pub const ATTR_NODEV: u64 = 0x4;
pub const ATTR_NOEXEC: u64 = 0x8;
/// The mask of the three access-time modes, of which relatime is 0.
pub const ATTR_ATIME: u64 = 0x70;
pub const ATTR_NOATIME: u64 = 0x10;
pub const ATTR_STRICTATIME: u64 = 0x20;
pub const ATTR_NODIRATIME: u64 = 0x80;
pub const ATTR_IDMAP: u64 = 0x0010_0000;
pub const ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;

/// Propagation of a mount. `Unchanged` leaves it alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    #[default]
    Unchanged,
    Private,
    Slave,
    Shared,
    Unbindable,
}

impl Propagation {
    fn bits(self) -> u64 {
        match self {
            Self::Unchanged => 0,
            Self::Private => libc::MS_PRIVATE,
            Self::Slave => libc::MS_SLAVE,
            Self::Shared => libc::MS_SHARED,
            Self::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// What to change of a mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    pub set: u64,
    pub clear: u64,
    pub propagation: Propagation,
    /// Map ids through this user namespace; only on a detached mount. Sets `ATTR_IDMAP` by itself.
    pub idmap: Option<BorrowedFd<'a>>,
    /// The mounts below it too.
    pub recursive: bool,
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes the mount that `fd` is the root of. All of the tree is changed, or nothing.
pub fn set_attributes(fd: BorrowedFd<'_>, attributes: Attributes<'_>) -> io::Result<()> {
    let mut attr = MountAttr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation.bits(),
        userns_fd: 0,
    };
    if let Some(user) = attributes.idmap {
        attr.attr_set |= ATTR_IDMAP;
        attr.userns_fd = user.as_raw_fd() as u64;
    }
    let mut flags = libc::AT_EMPTY_PATH;
    if attributes.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the empty path and `attr` live for the whole call, and the size is that of `attr`.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// pivot_root(".", "."): the working directory's mount becomes the root, and the old root lies on top of it, to be
/// detached by [`detach_here`].
pub fn pivot_here() -> io::Result<()> {
    // SAFETY: both paths are terminated constants.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) }).map(drop)
}

/// umount2(".", MNT_DETACH).
pub fn detach_here() -> io::Result<()> {
    // SAFETY: the path is a terminated constant.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }.into()).map(drop)
}

/// Reads one message of a file-system context's log, where the kernel says in words why fsconfig(2) failed.
#[must_use]
pub fn context_log(context: BorrowedFd<'_>) -> Option<String> {
    let mut buffer = [0u8; 512];
    let fd: RawFd = context.as_raw_fd();
    // SAFETY: the buffer lives for the whole call and its length is passed.
    let n = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    let text = buffer.get(..usize::try_from(n).ok()?)?;
    Some(String::from_utf8_lossy(text).trim().to_owned())
}
