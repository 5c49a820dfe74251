//! The monitor's own program, out of its containers' reach.
//!
//! An init is a copy of the monitor until it executes its program, and its /proc/self/exe leads to the monitor's file. An
//! image whose entrypoint is that path, or a script with it for an interpreter, runs the monitor in the container, whose
//! root could then change the host's file by way of /proc/1/exe (the class of CVE-2019-5736). So the monitor runs from a
//! clone of its file's mount, which is read-only whatever the file is. The file is the same, and so is its page cache:
//! that costs no memory.

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use holdfast_sys::exec::Image;
use holdfast_sys::mount::{ATTR_RDONLY, Attributes, Propagation, set_attributes};
use rustix::fs::{CWD, StatVfsMountFlags, fstatvfs, statvfs};
use rustix::mount::{OpenTreeFlags, open_tree};

const OWN: &str = "/proc/self/exe";

/// In the environment of the program that was executed from the clone. That its mount is read-only does not say so: a file system may be
/// read-only and be made writable later, for an upgrade of the host.
const DONE: &str = "HOLDFAST_MONITOR_FROM_CLONE";

/// Executes this program anew from a read-only clone, unless it is run from one already: then, or where that is not possible, this
/// returns. `Some` says why it was not.
pub fn protect() -> Option<String> {
    let done = std::env::var_os(DONE).is_some();
    let error = match is_read_only() {
        Ok(true) if done => return None,
        Ok(_) => match execute_clone() {
            Err(error) => error,
            Ok(never) => match never {},
        },
        Err(error) => error,
    };
    Some(format!(
        "containers may be able to change this monitor's program (a read-only clone of its mount cannot be run: {error}); \
         it goes on all the same"
    ))
}

fn is_read_only() -> io::Result<bool> {
    Ok(statvfs(OWN)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn execute_clone() -> io::Result<std::convert::Infallible> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = open_tree(CWD, OWN, flags)?;
    let attributes = Attributes {
        set: ATTR_RDONLY,
        propagation: Propagation::Private,
        ..Attributes::default()
    };
    set_attributes(clone.as_fd(), attributes)?;
    // Else it would do this again and again.
    if !fstatvfs(&clone)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(io::Error::other("the clone is not read-only"));
    }
    let arguments = std::env::args_os().map(|argument| CString::new(argument.into_vec()));
    let arguments: Result<Vec<_>, _> = arguments.collect();
    let environment = vec![CString::new(format!("{DONE}=1"))?];
    Err(Image::new(arguments?, environment).exec_fd(clone.as_fd()))
}
