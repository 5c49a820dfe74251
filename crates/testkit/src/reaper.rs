//! What ends a test's processes when the test itself is killed.
//!
//! A test runner that loses patience sends SIGTERM and SIGKILL: no destructor runs, and pods are built to outlive whoever
//! started them. So a shell waits beside each such test, in a process group of its own that the runner does not know, for
//! the end of a pipe that only the test holds. After a test that tidied up it finds nothing to do.

use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};

/// Kills what is left in the cgroup, in every hierarchy, and removes it; again while it is there, for ten seconds. The
/// first shell leaves at once: the one that waits is nobody's child, so tests that look at their children find none.
const SCRIPT: &str = r#"exec 3<&0
{
    read -r _ <&3
    tries=0
    while [ $tries -lt 100 ]; do
        left=
        for top in "/sys/fs/cgroup$0" /sys/fs/cgroup/*"$0"; do
            [ -d "$top" ] || continue
            left=yes
            for file in $(find "$top" -name cgroup.kill); do echo 1 >"$file"; done
            for file in $(find "$top" -name freezer.state); do echo THAWED >"$file"; done
            pids=$(find "$top" -name cgroup.procs -exec cat {} +)
            [ -z "$pids" ] || kill -KILL $pids
            find "$top" -depth -type d -exec rmdir {} \;
        done
        [ -n "$left" ] || exit 0
        tries=$((tries + 1))
        sleep 0.1
    done
} &
"#;

/// Holds off the end of everything in one cgroup for as long as it, or the process that has it, lives.
#[derive(Debug)]
pub struct Reaper {
    _pipe: ChildStdin,
}

impl Reaper {
    /// `cgroup` as from the root of the hierarchies, such as `/holdfast-test-1`; it need not exist yet. To be made before
    /// descriptors are counted, and by a test that no other shares the process with.
    #[must_use]
    pub fn of_cgroup(cgroup: &str) -> Self {
        assert!(
            cgroup.starts_with("/holdfast-test-") && !cgroup.contains(".."),
            "{cgroup} is no test's cgroup"
        );
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, cgroup])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("could not start /bin/sh: {error}"));
        let pipe = shell.stdin.take();
        let left = shell.wait();
        assert!(
            left.is_ok_and(|status| status.success()),
            "the reaper's shell failed"
        );
        Self {
            _pipe: pipe.unwrap_or_else(|| panic!("the reaper has no pipe")),
        }
    }
}
