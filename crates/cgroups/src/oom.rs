//! Out-of-memory kills: how often.

use crate::hierarchy::{Controller, Home};
use crate::{Cgroup, Error, io};

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
}
