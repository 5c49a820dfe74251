//! What the processes of a container have open, from /proc: for metrics, and no oftener than they are asked for.

use std::path::Path;
use std::time::Instant;

use super::bounds;

/// Counted over all processes of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    pub descriptors: u64,
    pub sockets: u64,
    /// The soft limit of open files of its first process; `None`: no limit, or it has just gone.
    pub limit: Option<u64>,
    pub(super) at: Instant,
}

impl OpenFiles {
    /// Reads what these have open, and the limits of `first`.
    #[must_use]
    pub fn count(processes: &[i32], first: Option<i32>) -> Self {
        let mut out = Self {
            descriptors: 0,
            sockets: 0,
            limit: first.and_then(soft_limit),
            at: Instant::now(),
        };
        for pid in processes.iter().take(bounds::FILES_PROCESSES) {
            // It may end at any time: then it has nothing open.
            let Ok(listed) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
                continue;
            };
            for (n, entry) in listed.flatten().enumerate() {
                out.descriptors += 1;
                if n < bounds::FILES_DESCRIPTORS && is_socket(&entry.path()) {
                    out.sockets += 1;
                }
            }
        }
        out
    }

    pub(super) fn fresh(&self) -> bool {
        self.at.elapsed() < bounds::FILES_AGE
    }
}

fn is_socket(link: &Path) -> bool {
    std::fs::read_link(link).is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
}

fn soft_limit(pid: i32) -> Option<u64> {
    parse_limits(&std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

/// `Max open files            1024                 524288               files`
fn parse_limits(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             96000                96000                processes \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(parse_limits(text), Some(1024));
        let without = "Max open files            unlimited            unlimited            files\n";
        assert_eq!(parse_limits(without), None);
        assert_eq!(parse_limits(""), None);
    }

    #[test]
    fn our_own() {
        let _socket = std::os::unix::net::UnixStream::pair();
        let me = i32::try_from(std::process::id()).unwrap_or(0);
        let count = OpenFiles::count(&[me, 0], Some(me));
        assert!(count.descriptors >= 5, "{count:?}");
        assert!(count.sockets >= 2, "{count:?}");
        assert!(
            count.limit.is_some_and(|limit| limit >= count.descriptors),
            "{count:?}"
        );
    }
}
