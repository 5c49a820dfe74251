//! The system calls that no library wraps safely, and the workspace's only `unsafe` (with `pause`).
//!
//! One file per area. Descriptors are `OwnedFd` and `BorrowedFd`; errors are `std::io::Error` with the kernel's errno,
//! and callers add what they tried. What `rustix` already wraps (opening, mount(2), fsopen and friends, capabilities,
//! signals) is taken from there and not repeated here.

#![allow(unsafe_code)]

pub mod arenas;
pub mod bpf;
pub mod clone;
pub mod exec;
pub mod heap;
pub mod idmap;
pub mod keyring;
pub mod memfd;
pub mod mount;
pub mod namespace;
pub mod net;
pub mod netlink;
pub mod pidfd;
pub mod process;
pub mod project;
pub mod scm;
pub mod seccomp;
pub mod signals;
pub mod tree;
pub mod writeback;

use std::io;

/// Turns a raw return value into a result.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
