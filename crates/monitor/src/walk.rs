//! Killing a process and its descendants where no cgroup holds them together. Runs in a job's child.
//!
//! Stopping each process before its children are read keeps it from forking away; what has already been orphaned is
//! not found (a container that manages its own cgroups accepts that for its execs).

use std::os::fd::AsFd;

use holdfast_sys::pidfd;

use crate::job::Outcome;

/// Processes that one walk visits at most.
const LIMIT: usize = 65_536;

pub fn kill_tree(root: i32) -> Outcome {
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
    Ok(handles.len() as u64)
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

#[cfg(test)]
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
        assert_eq!(kill_tree(pid), Ok(4));
        shell.wait().unwrap();
    }
}
