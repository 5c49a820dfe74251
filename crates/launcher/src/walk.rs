//! Killing a process and its descendants where no cgroup holds them together. Takes time: not for a loop.
//!
//! Stopping each process before its children are read keeps it from forking away; what has already been orphaned is
//! not found (a container that manages its own cgroups accepts that for its execs).

use std::os::fd::AsFd;

use holdfast_sys::pidfd;

/// Processes that one walk visits at most.
const LIMIT: usize = 65_536;

/// Kills them; how many they were.
#[must_use]
pub fn kill_tree(root: i32) -> usize {
    let mut found = vec![root];
    let mut handles = Vec::new();
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        let Ok(handle) = pidfd::open(pid) else {
            continue;
        };
        let _ = pidfd::signal(handle.as_fd(), libc::SIGSTOP);
        handles.push(handle);
        found.extend(children(pid).into_iter().take(LIMIT - found.len().min(LIMIT)));
    }
    for handle in &handles {
        let _ = pidfd::signal(handle.as_fd(), libc::SIGKILL);
    }
    handles.len()
}

fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let lists = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| parse(&list)).collect()
}

fn parse(list: &str) -> Vec<i32> {
    list.split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid| *pid > 1)
        .collect()
}

/// Kills the descendants of `ancestor` that are of this session, and what descends from them.
pub(crate) fn kill_session(ancestor: i32, session: i32) {
    let of_session = |pid: &i32| {
        rustix::process::Pid::from_raw(*pid)
            .and_then(|pid| rustix::process::getsid(Some(pid)).ok())
            .is_some_and(|own| own.as_raw_nonzero().get() == session)
    };
    for pid in children(ancestor).iter().filter(|pid| of_session(pid)) {
        let _killed = kill_tree(*pid);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn lists_of_pids() {
        assert_eq!(parse("12 345 \n"), [12, 345]);
        assert_eq!(parse("x 0 1 -4 9"), [9]);
    }

    #[test]
    fn the_whole_tree_dies() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 1000 & sh -c 'sleep 1000 & wait' & wait"])
            .spawn()
            .unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let start = Instant::now();
        while children(pid).len() < 2 || children(children(pid)[1]).is_empty() {
            assert!(start.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(kill_tree(pid), 4);
        shell.wait().unwrap();
    }
}
