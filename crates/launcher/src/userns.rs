//! A pod's user namespace: making it, and its ids as the host has them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holdfast_sys::clone::{Clone3, NEWUSER};
use holdfast_sys::pidfd;
use holdfast_sys::process::{self, Control};
use oci_spec::runtime::LinuxIdMapping;
use rustix::fs::{Gid, OFlags, Uid, fchown};

use crate::fault::{Context, Fault, Result};
use crate::plan::{IdMap, Stdio};
use crate::procfs::Procfs;

/// Lines of a map that the kernel takes.
const MAP_LIMIT: usize = 340;

/// A user namespace with its maps.
#[derive(Debug)]
pub(crate) struct Mapping<'a> {
    pub user: BorrowedFd<'a>,
    uids: Vec<IdMap>,
    gids: Vec<IdMap>,
}

impl<'a> Mapping<'a> {
    /// The maps are those of the spec, which are the pod's.
    pub fn new(
        user: BorrowedFd<'a>,
        uids: Option<&Vec<LinuxIdMapping>>,
        gids: Option<&Vec<LinuxIdMapping>>,
    ) -> Result<Self> {
        let convert = |maps: Option<&Vec<LinuxIdMapping>>| {
            maps.into_iter()
                .flatten()
                .map(|m| IdMap {
                    container_id: m.container_id(),
                    host_id: m.host_id(),
                    size: m.size(),
                })
                .collect::<Vec<_>>()
        };
        let mapping = Self {
            user,
            uids: convert(uids),
            gids: convert(gids),
        };
        if mapping.host_uid(0).is_none() || mapping.host_gid(0).is_none() {
            return Err(Fault::invalid(
                "the pod has a user namespace, but the spec's maps have no id 0",
            ));
        }
        Ok(mapping)
    }

    pub fn host_uid(&self, id: u32) -> Option<u32> {
        to_host(&self.uids, id)
    }

    pub fn host_gid(&self, id: u32) -> Option<u32> {
        to_host(&self.gids, id)
    }

    /// The container's root, as the host has it.
    pub fn root(&self) -> (u32, u32) {
        (
            self.host_uid(0).unwrap_or_default(),
            self.host_gid(0).unwrap_or_default(),
        )
    }

    /// Whether both are host ids of this namespace.
    pub fn covers(&self, uid: u32, gid: u32) -> bool {
        let within =
            |maps: &[IdMap], id: u32| maps.iter().any(|m| id >= m.host_id && id - m.host_id < m.size);
        within(&self.uids, uid) && within(&self.gids, gid)
    }
}

fn to_host(maps: &[IdMap], id: u32) -> Option<u32> {
    maps.iter()
        .find(|m| id >= m.container_id && id - m.container_id < m.size)
        .and_then(|m| m.host_id.checked_add(id - m.container_id))
}

/// Gives the ends of a container's pipes to its root, in ids of the host. In a pipe of an owner whom the user namespace
/// does not know nobody there can open /dev/stdout, or hand it on to who can. Not all that can be a standard descriptor
/// has an owner that can be changed, and none of it is reason to fail.
pub(crate) fn give(stdio: &Stdio, (uid, gid): (u32, u32)) {
    for end in stdio.ends().into_iter().flatten() {
        let _best_effort = fchown(end, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    }
}

/// The root of a process's user namespace, in ids of ours.
pub(crate) fn root_of(pid: i32, proc: &Procfs) -> Result<(u32, u32)> {
    let read = |file: &str| {
        let what = || format!("read the {file} of process {pid}");
        let map = proc.open(format!("{pid}/{file}"), OFlags::RDONLY).at(what)?;
        let text = io::read_to_string(File::from(map)).at(what)?;
        to_host(&parse(&text), 0)
            .ok_or_else(|| Fault::invalid(format!("{}: it has no id 0: {text:?}", what())))
    };
    Ok((read("uid_map")?, read("gid_map")?))
}

fn parse(text: &str) -> Vec<IdMap> {
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(IdMap {
            container_id: next()?,
            host_id: next()?,
            size: next()?,
        })
    };
    text.lines().filter_map(line).collect()
}

/// Makes a user namespace with the given maps, held by a process only while it is made.
pub(crate) fn create(uids: &[IdMap], gids: &[IdMap], proc: &Procfs) -> Result<OwnedFd> {
    if uids.is_empty() || gids.is_empty() || uids.len() > MAP_LIMIT || gids.len() > MAP_LIMIT {
        return Err(Fault::invalid(format!(
            "a user namespace needs 1 to {MAP_LIMIT} lines of uid and gid map, not {} and {}",
            uids.len(),
            gids.len()
        )));
    }
    let holder = Clone3 {
        namespaces: NEWUSER,
        ..Clone3::default()
    };
    let child = holder
        .spawn(|| {
            // Stays until the parent has what it wants and kills it, or is gone.
            let _set = process::control(Control::ParentDeathSignal(libc::SIGKILL));
            loop {
                std::thread::park();
            }
        })
        .at(|| "make a user namespace")?;
    let result = (|| {
        let write = |file: &str, maps: &[IdMap]| {
            proc.write(format!("{}/{file}", child.pid), lines(maps).as_bytes())
                .at(|| format!("write the user namespace's {file}"))
        };
        write("uid_map", uids)?;
        write("gid_map", gids)?;
        proc.namespace(child.pid, "user").at(|| "open the user namespace")
    })();
    let _gone = pidfd::signal(child.pidfd.as_fd(), libc::SIGKILL);
    let _reaped = pidfd::reap(child.pidfd.as_fd());
    result
}

fn lines(maps: &[IdMap]) -> String {
    maps.iter()
        .map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_map_both_ways() {
        let maps = [IdMap {
            container_id: 0,
            host_id: 100_000,
            size: 65536,
        }];
        assert_eq!(to_host(&maps, 0), Some(100_000));
        assert_eq!(to_host(&maps, 65535), Some(165_535));
        assert_eq!(to_host(&maps, 65536), None);
        assert_eq!(lines(&maps), "0 100000 65536\n");
        assert_eq!(parse("         0     100000      65536\n"), maps);
        assert_eq!(parse("0 1\nx y z\n"), []);
    }
}
