//! seccomp(2): installing a filter on the calling thread.
//!
//! Owns the instruction's layout and the call. Leaves out what a filter says: see the `seccomp` crate.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// One instruction of classic BPF, laid out as the kernel's `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// Synchronise the filter to all threads of the process.
pub const FLAG_TSYNC: u32 = 1 << 0;
/// Log what the filter does, other than allowing.
pub const FLAG_LOG: u32 = 1 << 1;
/// Leave the speculative store bypass mitigation off.
pub const FLAG_SPEC_ALLOW: u32 = 1 << 2;
/// Return a descriptor on which another process answers notifications.
pub const FLAG_NEW_LISTENER: u32 = 1 << 3;
/// Once a notification was received, only a fatal signal interrupts the caller (Linux 5.19).
pub const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// Longest program that the kernel takes (BPF_MAXINSNS).
pub const MAX_INSTRUCTIONS: usize = 4096;

const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;

#[repr(C)]
struct Program {
    len: u16,
    filter: *const Instruction,
}

/// Puts the calling thread under `filter`, for ever. The descriptor is the listener, with [`FLAG_NEW_LISTENER`] only.
///
/// The caller holds CAP_SYS_ADMIN in its user namespace or has set no_new_privs (else EACCES). Allocates nothing.
pub fn install(filter: &[Instruction], flags: u32) -> io::Result<Option<OwnedFd>> {
    if filter.is_empty() || filter.len() > MAX_INSTRUCTIONS {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let program = Program {
        len: filter.len() as u16,
        filter: filter.as_ptr(),
    };
    // SAFETY: `program` and the instructions that it points to live for the whole call, `len` is their number, and
    // both types are laid out as `struct sock_fprog` and `struct sock_filter`; the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_SET_MODE_FILTER,
            flags as libc::c_uint,
            &raw const program,
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        // With TSYNC a positive result is a thread that could not be synchronised, never a descriptor.
        thread if flags & FLAG_NEW_LISTENER == 0 => Err(io::Error::other(format!(
            "thread {thread} could not take the filter"
        ))),
        fd => {
            // SAFETY: with NEW_LISTENER a positive result is a new descriptor, which nobody else owns.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
        }
    }
}

/// Whether the kernel knows the filter flags `flags`: it checks them before it looks at the (absent) program.
#[must_use]
pub fn flags_supported(flags: u32) -> bool {
    // SAFETY: the null program pointer is never followed: the kernel answers EINVAL for unknown flags and EFAULT else.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_SET_MODE_FILTER,
            flags as libc::c_uint,
            std::ptr::null::<Program>(),
        )
    };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}
