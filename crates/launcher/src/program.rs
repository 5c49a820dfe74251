//! The program to run: arguments, environment, its place in `$PATH`, and why it could not be run, in words.

use std::ffi::{CString, OsStr};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use holdfast_sys::exec::Image;
use oci_spec::runtime::Process;
use rustix::fs::OFlags;

use crate::building::ExecFailure;
use crate::error::Kind;
use crate::fault::{Fault, Result, words};
use crate::place::Root;

/// What a process without a `PATH` of its own is looked up in.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest /etc/passwd that is read for a home directory.
const PASSWD_LIMIT: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Program {
    image: Image,
}

impl Program {
    /// Checks arguments and environment. `HOME` is added by [`Program::add_home`].
    pub fn new(process: &Process, home: Option<String>) -> Result<Self> {
        let args = process.args().clone().unwrap_or_default();
        if args.first().is_none_or(String::is_empty) {
            return Err(Fault::invalid("no program to run: args is empty"));
        }
        let mut env = Vec::new();
        for entry in process.env().iter().flatten() {
            if !entry.contains('=') || entry.starts_with('=') {
                return Err(Fault::invalid(format!(
                    "the environment entry {entry:?} is not NAME=value"
                )));
            }
            env.push(entry.clone());
        }
        if !env.iter().any(|e| e.starts_with("HOME="))
            && let Some(home) = home
        {
            env.push(format!("HOME={home}"));
        }
        let strings = |list: Vec<String>, what: &str| {
            list.into_iter()
                .map(|s| CString::new(s).map_err(|_| Fault::invalid(format!("{what} contain a NUL"))))
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            image: Image::new(strings(args, "args")?, strings(env, "env")?),
        })
    }

    /// Runs it; returns only why it could not.
    pub fn exec(&self) -> ExecFailure {
        let name = self.image.args()[0].as_bytes();
        if name.contains(&b'/') {
            let error = self.image.exec(&self.image.args()[0]);
            return failure(name, &words(&error), &error);
        }
        let mut denied = None;
        for dir in self.path().split(|b| *b == b':') {
            let dir = if dir.is_empty() { b"." } else { dir };
            let path = [dir, b"/", name].concat();
            let Ok(path) = CString::new(path) else {
                continue;
            };
            let error = self.image.exec(&path);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {
                    // Also what a script without its interpreter gives: then the file is there.
                    if Path::new(OsStr::from_bytes(path.as_bytes())).exists() {
                        return failure(path.as_bytes(), "its interpreter was not found", &error);
                    }
                }
                // Another directory of the list may have one that can be run.
                Some(libc::EACCES) => denied = Some((path, error)),
                _ => return failure(path.as_bytes(), &words(&error), &error),
            }
        }
        match denied {
            Some((path, error)) => failure(path.as_bytes(), &words(&error), &error),
            None => failure(
                name,
                "no such file in $PATH",
                &io::Error::from_raw_os_error(libc::ENOENT),
            ),
        }
    }

    fn path(&self) -> &[u8] {
        self.image
            .env()
            .iter()
            .find_map(|e| e.as_bytes().strip_prefix(b"PATH="))
            .unwrap_or(DEFAULT_PATH.as_bytes())
    }
}

fn failure(name: &[u8], why: &str, error: &io::Error) -> ExecFailure {
    let errno = error.raw_os_error().unwrap_or(0);
    ExecFailure {
        message: format!("exec {:?}: {why}", String::from_utf8_lossy(name)),
        errno,
        kind: match errno {
            libc::ENOENT | libc::ENOTDIR => Kind::NotFound,
            libc::EACCES | libc::ENOEXEC | libc::EISDIR | libc::ELOOP | libc::E2BIG => Kind::Invalid,
            libc::ENOMEM | libc::EAGAIN => Kind::Exhausted,
            _ => Kind::Internal,
        },
    }
}

/// The home directory of `uid` in the container's own /etc/passwd; `/` where it says nothing (or nothing fit to be in
/// an environment).
pub(crate) fn home_of(uid: u32, root: Root<'_>) -> String {
    read_passwd(root)
        .ok()
        .and_then(|text| find_home(&text, uid))
        .unwrap_or_else(|| "/".to_owned())
}

fn read_passwd(root: Root<'_>) -> io::Result<String> {
    // NONBLOCK: the image may have put a FIFO there.
    let fd: OwnedFd = root.open(
        Path::new("/etc/passwd"),
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
    )?;
    let file = std::fs::File::from(fd);
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = Vec::new();
    file.take(PASSWD_LIMIT).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn find_home(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let home = fields.get(5)?;
        let matches = fields.get(2)?.parse() == Ok(uid);
        let fit = home.starts_with('/') && !home.chars().any(char::is_control);
        (matches && fit).then(|| (*home).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_comes_from_the_right_line() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nu:x:1000:1000::/home/u:/bin/sh\nr:x:7:7:::\n";
        assert_eq!(find_home(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(find_home(passwd, 1000).as_deref(), Some("/home/u"));
        assert_eq!(find_home(passwd, 7), None);
        assert_eq!(find_home(passwd, 1), None);
    }
}
