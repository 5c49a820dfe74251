//! What /proc says about processes, mounts and descriptors. Whatever vanishes while it is read is left out.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One process.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// At most 15 bytes.
    pub name: String,
    /// R, S, D, Z, T, ...
    pub state: char,
    /// File name of its executable; empty for a zombie.
    pub program: String,
}

impl Process {
    /// All of them.
    #[must_use]
    pub fn all() -> Vec<Self> {
        entries("/proc")
            .filter_map(|name| Self::of(name.parse().ok()?))
            .collect()
    }

    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may hold any byte.
        let (begin, end) = (text.find('(')?, text.rfind(')')?);
        let mut rest = text.get(end + 2..)?.split(' ');
        let state = rest.next()?.chars().next()?;
        let parent = rest.next()?.parse().ok()?;
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        // A monitor runs from a detached clone of its file's mount, which has no path.
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = std::path::Path::new(command.split('\0').next().unwrap_or_default());
        let program = exe.file_name().or_else(|| command.file_name());
        let program = program.unwrap_or_default().to_string_lossy();
        Some(Self {
            pid,
            parent,
            name: text[begin + 1..end].to_owned(),
            state,
            program: program.trim_end_matches(" (deleted)").to_owned(),
        })
    }

    /// Its cgroup in each hierarchy.
    pub(crate) fn cgroups(&self) -> Vec<String> {
        let text = std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.splitn(3, ':').nth(2))
            .map(str::to_owned)
            .collect()
    }

    /// What its descriptors are open on.
    pub(crate) fn links(&self) -> Vec<PathBuf> {
        let dir = format!("/proc/{}/fd", self.pid);
        entries(&dir)
            .filter_map(|fd| std::fs::read_link(format!("{dir}/{fd}")).ok())
            .collect()
    }

    pub(crate) fn network(&self) -> Option<u64> {
        namespace(&format!("/proc/{}/ns/net", self.pid))
    }
}

/// The number of the namespace behind a /proc link.
pub(crate) fn namespace(path: &str) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.ino())
}

/// `net:[4026531840]`.
pub(crate) fn network_number(link: &Path) -> Option<u64> {
    link.to_str()?
        .strip_prefix("net:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The descriptors of a process by what they are open on, and how many of each; sockets, pipes and inotify numbers
/// are counted by kind.
#[must_use]
pub fn descriptors_of(pid: i32) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    let links = Process::of(pid)
        .map(|process| process.links())
        .unwrap_or_default();
    for link in links {
        let text = link.to_string_lossy();
        let kind = match text.split_once(":[") {
            Some((kind, _)) => kind.to_owned(),
            // A file of a living process that was replaced by rename.
            None => text.trim_end_matches(" (deleted)").to_owned(),
        };
        *out.entry(kind).or_default() += 1;
    }
    out
}

/// Mount points of a process's namespace, in the order in which they were mounted.
pub(crate) fn mount_points(process: &str) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| {
            PathBuf::from(
                point
                    .replace("\\040", " ")
                    .replace("\\011", "\t")
                    .replace("\\134", "\\"),
            )
        })
        .collect()
}

/// Where cgroup hierarchies are mounted.
pub(crate) fn cgroup_mounts() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut out = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        if right.starts_with("cgroup") {
            out.extend(left.split(' ').nth(4).map(PathBuf::from));
        }
    }
    out
}

/// Names in a directory; none if it is not there.
pub(crate) fn entries(dir: impl AsRef<Path>) -> impl Iterator<Item = String> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}
