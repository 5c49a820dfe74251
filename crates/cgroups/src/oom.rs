//! Out-of-memory kills: how often, and a descriptor that wakes when it happens.

use crate::hierarchy::{Controller, Home};
use crate::{Cgroup, Error, io};
use rustix::event::{EventfdFlags, PollFlags};
use rustix::fs::OFlags;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Wakes when the cgroup (or one below it) runs out of memory; [`Cgroup::oom_kills`] then tells whether anything was
/// killed.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    /// Version 1: an eventfd, which lives as long as the control file that it was registered on.
    control: Option<OwnedFd>,
}

impl OomWatch {
    /// What to poll for: POLLPRI on version 2 (the file is always readable), POLLIN on version 1.
    #[must_use]
    pub fn events(&self) -> PollFlags {
        match self.control {
            None => PollFlags::PRI,
            Some(_) => PollFlags::IN,
        }
    }

    /// Makes the descriptor quiet until the next time.
    pub fn drain(&self) -> Result<(), Error> {
        let mut count = [0u8; 8];
        let result = match self.control {
            None => io::read_fd(&self.fd).map(drop),
            Some(_) => match rustix::io::read(&self.fd, &mut count) {
                Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
                Err(errno) => Err(errno),
            },
        };
        result.map_err(|errno| Error::Read {
            file: "the descriptor for out-of-memory events".into(),
            source: errno.into(),
        })
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Cgroup {
    /// How many of its processes the kernel has killed for want of memory, in this cgroup or below (version 2), since
    /// it was made. 0 where there is no memory controller.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        let (root, file) = match self.hierarchy().home(Controller::Memory) {
            Some(Home::V2(root)) => (root, "memory.events"),
            Some(Home::V1(root)) => (root, "memory.oom_control"),
            None => return Ok(0),
        };
        let dir = self.dir_in(root);
        match io::read(root, &dir, file) {
            Ok(text) => io::keyed(&text, "oom_kill").ok_or_else(|| Error::Parse {
                file: io::name(root, &dir, file),
                text,
            }),
            // The memory controller could not be enabled here.
            Err(error) if error.is_gone() && io::exists(root, "", &dir) => Ok(0),
            Err(error) => Err(error),
        }
    }

    pub fn oom_watch(&self) -> Result<OomWatch, Error> {
        match self.hierarchy().home(Controller::Memory) {
            Some(Home::V2(root)) => {
                let fd = io::open(root, &self.dir_in(root), "memory.events", OFlags::RDONLY)?;
                Ok(OomWatch { fd, control: None })
            }
            Some(Home::V1(root)) => {
                let dir = self.dir_in(root);
                let control = io::open(root, &dir, "memory.oom_control", OFlags::RDONLY)?;
                let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(
                    |errno| Error::Open {
                        file: "an eventfd".into(),
                        source: errno.into(),
                    },
                )?;
                let value = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
                io::write(root, &dir, "cgroup.event_control", &value)?;
                Ok(OomWatch {
                    fd,
                    control: Some(control),
                })
            }
            None => Err(Error::NoController {
                path: self.path(),
                controller: "memory",
                limit: "out-of-memory events".into(),
            }),
        }
    }
}
