//! Finding the cgroup file systems in a mountinfo file. Pure.

use crate::hierarchy::Controller;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub at: String,
    /// `None`: version 2.
    pub controllers: Option<Vec<Controller>>,
}

/// The cgroup mounts of a mountinfo file, one per hierarchy (proc_pid_mountinfo(5)).
pub(crate) fn parse_mountinfo(text: &str) -> Vec<Found> {
    let mut out: Vec<Found> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(device), Some(at), Some(kind), Some(options)) =
            (left.get(2), left.get(4), right.first(), right.get(2))
        else {
            continue;
        };
        // The same hierarchy may be bound elsewhere too; its device number tells.
        if !kind.starts_with("cgroup") || seen.contains(device) {
            continue;
        }
        let controllers = match *kind {
            "cgroup2" => None,
            "cgroup" => Some(
                Controller::ALL
                    .into_iter()
                    .filter(|it| options.split(',').any(|name| name == it.legacy_name()))
                    .collect(),
            ),
            _ => continue,
        };
        seen.push(device);
        out.push(Found {
            at: unescape(at),
            controllers,
        });
    }
    out
}

/// A path as proc_pid_mountinfo(5) writes it: space, tab, newline and backslash are three octal digits.
pub fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_is_understood() {
        let text = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
99 31 0:38 / /mnt/again rw,relatime - cgroup2 cgroup2 rw
";
        let found = parse_mountinfo(text);
        let at: Vec<&str> = found.iter().map(|it| it.at.as_str()).collect();
        assert_eq!(
            at,
            [
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/blkio",
                "/sys/fs/cgroup/systemd",
                "/sys/fs/cgroup/unified"
            ]
        );
        assert_eq!(
            found[0].controllers,
            Some(vec![Controller::Cpu, Controller::Cpuacct])
        );
        assert_eq!(found[1].controllers, Some(vec![Controller::Io]));
        assert_eq!(found[2].controllers, Some(vec![]));
        assert_eq!(found[3].controllers, None);
    }

    #[test]
    fn escapes_and_rubbish_are_survived() {
        assert_eq!(unescape(r"/a\040b\134c\"), r"/a b\c\");
        assert!(parse_mountinfo("garbage\n - cgroup2 x rw\n1 2 3 - cgroup\n").is_empty());
    }
}
