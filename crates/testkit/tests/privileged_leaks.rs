//! The checker finds what it is there to find: one object of each kind, planted.
#![allow(clippy::unwrap_used)]

use holdfast_testkit::{
    Inventory, Leaks, NetNamespace, Reaper, Scope, Scratch, busybox_rootfs, isolate_mounts, mount_tmpfs,
    wait_for,
};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Directories of one cgroup, in every hierarchy that has room for it.
fn cgroups(path: &str) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter(|line| line.contains(" - cgroup"));
    points
        .map(|line| Path::new(line.split(' ').nth(4).unwrap()).join(path))
        .collect()
}

fn tool(program: &str, args: &[&str]) {
    assert!(
        Command::new(program).args(args).status().unwrap().success(),
        "{program} {args:?}"
    );
}

#[test]
fn planted_objects_are_found_and_their_removal_is_seen() {
    isolate_mounts();
    NetNamespace::new().enter();
    let scratch = Scratch::new("leaks");
    let (root, state) = (scratch.dir("root"), scratch.dir("state"));
    let name = format!("holdfast-test-leaks-{}", std::process::id());
    let scope = Scope::new(&root, &state)
        .cgroup(&format!("/{name}"))
        .bridge("hftbr");
    tool("ip", &["link", "add", "hftbr", "type", "bridge"]);
    let leaks = Leaks::snapshot(&scope);
    leaks.assert_clean(Duration::ZERO);

    mount_tmpfs(&root.join("snapshots/s1/merged"));
    std::fs::create_dir_all(state.join("pods/p1")).unwrap();
    std::fs::create_dir_all(root.join("records/pods")).unwrap();
    std::fs::write(root.join("records/pods/r1"), "").unwrap();
    std::fs::create_dir_all(root.join("network/leases")).unwrap();
    std::fs::write(root.join("network/leases/10.0.0.2"), "").unwrap();
    tool(
        "ip",
        &["link", "add", "hftv0", "type", "veth", "peer", "name", "hftv1"],
    );
    tool("ip", &["link", "set", "hftv0", "master", "hftbr"]);
    tool(
        "nft",
        &["add table inet holdfast_test; add set inet holdfast_test s { type ipv4_addr; }"],
    );
    tool(
        "nft",
        &["add element inet holdfast_test s { 10.0.0.2, 10.0.0.3 }"],
    );
    for dir in cgroups(&name) {
        std::fs::create_dir(&dir).unwrap();
    }
    let mut child = NetNamespace::new().run(|| {
        Command::new("/bin/sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    });
    for dir in cgroups(&name) {
        // A new version 1 cpuset has no processors, and takes no process.
        let _ = std::fs::write(dir.join("cgroup.procs"), child.id().to_string());
    }

    let found = leaks.differences().join("\n");
    let expected = [
        "merged is new",
        "pod directory p1",
        "snapshot s1",
        "pod record r1",
        "network/leases/10.0.0.2",
        "link hftv0",
        "nftables table inet holdfast_test",
        "nftables element inet holdfast_test s 10.0.0.3",
        "(sleep) is new",
        "network namespace ",
        &format!("cgroup /{name} is new"),
    ];
    for part in expected {
        assert!(found.contains(part), "{part:?} is not in:\n{found}");
    }
    assert_eq!(found.lines().count(), expected.len() + 1, "{found}");

    child.kill().unwrap();
    child.wait().unwrap();
    for dir in cgroups(&name) {
        std::fs::remove_dir(&dir).unwrap();
    }
    tool("nft", &["delete table inet holdfast_test"]);
    tool("ip", &["link", "del", "hftv0"]);
    rustix::mount::unmount(
        root.join("snapshots/s1/merged"),
        rustix::mount::UnmountFlags::empty(),
    )
    .unwrap();
    for dir in ["root", "state"] {
        std::fs::remove_dir_all(scratch.path().join(dir)).unwrap();
    }
    leaks.assert_clean(Duration::from_secs(2));
}

#[test]
fn descriptors_of_the_daemon_are_counted() {
    let scratch = Scratch::new("descriptors");
    let mut daemon = Command::new("/bin/sh")
        .args([
            "-c",
            "read go; exec 7</dev/zero 8</dev/zero; echo done; read stop",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let scope = Scope::new(scratch.path(), scratch.path()).daemon(daemon.id() as i32);
    let before = Inventory::take(&scope);
    let mut input = daemon.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"go\n").unwrap();
    let mut line = String::new();
    let mut output = std::io::BufReader::new(daemon.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    let found = Inventory::take(&scope).differences(&before);
    assert_eq!(found, ["descriptors of the daemon on /dev/zero: 0 before, 2 now"]);
    drop(input);
    daemon.wait().unwrap();
}

#[test]
fn what_a_killed_test_left_is_ended() {
    let name = format!("holdfast-test-reaper-{}", std::process::id());
    let reaper = Reaper::of_cgroup(&format!("/{name}"));
    let below = format!("{name}/pods/container");
    let mut child = Command::new("/bin/sh")
        .args(["-c", "trap '' TERM; while :; do sleep 1; done"])
        .spawn()
        .unwrap();
    for dir in cgroups(&below) {
        // Not all controllers of version 1 take a process at once (cpuset has no processors yet): one is enough.
        let _ = std::fs::create_dir_all(&dir);
        let _ = std::fs::write(dir.join("cgroup.procs"), child.id().to_string());
    }
    assert!(cgroups(&below).iter().any(|dir| dir.exists()));
    assert!(child.try_wait().unwrap().is_none());
    // As the death of the test's process does, this closes the pipe.
    drop(reaper);
    let ended = wait_for(Duration::from_secs(10), "the child's end", || {
        child.try_wait().unwrap()
    });
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
    wait_for(Duration::from_secs(10), "the cgroups to go", || {
        (!cgroups(&name).iter().any(|dir| dir.exists())).then_some(())
    });
}

#[test]
fn the_root_file_system_runs() {
    isolate_mounts();
    let scratch = Scratch::new("rootfs");
    let rootfs = scratch.dir("rootfs");
    busybox_rootfs(&rootfs);
    let output = Command::new("chroot")
        .arg(&rootfs)
        .args(["/bin/sh", "-c", "id -u; cat /etc/passwd | wc -l"])
        .output();
    assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), "0\n3\n");
}

#[test]
fn a_network_namespace_is_apart() {
    let apart = NetNamespace::new();
    let link = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert_ne!(apart.run(link), link());
    assert_eq!(apart.run(link).to_str().unwrap(), format!("net:[{}]", apart.id()));
}
