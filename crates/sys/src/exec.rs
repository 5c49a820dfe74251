//! execve(2) with everything prepared beforehand.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A program's arguments and environment in the form that execve(2) takes: nothing is allocated when it is called.
#[derive(Debug)]
pub struct Image {
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Image {
    #[must_use]
    pub fn new(args: Vec<CString>, env: Vec<CString>) -> Self {
        Self { args, env }
    }

    #[must_use]
    pub fn args(&self) -> &[CString] {
        &self.args
    }

    #[must_use]
    pub fn env(&self) -> &[CString] {
        &self.env
    }

    /// Replaces the calling process; returns only why it could not.
    pub fn exec(&self, path: &CStr) -> io::Error {
        let args = pointers(&self.args);
        let env = pointers(&self.env);
        // SAFETY: both arrays end with a null pointer, and what they point to lives as long as `self`.
        unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
        io::Error::last_os_error()
    }

    /// As [`Image::exec`], of the file behind a descriptor.
    pub fn exec_fd(&self, file: BorrowedFd<'_>) -> io::Error {
        let args = pointers(&self.args);
        let env = pointers(&self.env);
        // SAFETY: as in `exec`; the empty path with AT_EMPTY_PATH means the descriptor itself.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                file.as_raw_fd(),
                c"".as_ptr(),
                args.as_ptr(),
                env.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
        io::Error::last_os_error()
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}
