//! Real cgroups, on whichever version the machine has: every test makes its own at the root and removes it.
#![allow(clippy::unwrap_used)]

use holdfast_cgroups::{
    Cgroup, Controller, Cpu, DeviceKind, DeviceRule, Error, Hierarchy, Limits, Memory, Mode, Stage,
};
use holdfast_testkit::Reaper;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

/// A cgroup of this test alone, gone when it ends.
struct Fixture {
    hierarchy: Hierarchy,
    top: String,
    cgroup: Cgroup,
    _reaper: Reaper,
}

impl Fixture {
    fn new(name: &str) -> Self {
        let hierarchy = Hierarchy::detect().unwrap();
        let top = format!("/holdfast-test-{name}-{}", std::process::id());
        let reaper = Reaper::of_cgroup(&top);
        let cgroup = hierarchy.create(&format!("{top}/pod/container")).unwrap();
        Self {
            hierarchy,
            top,
            cgroup,
            _reaper: reaper,
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let top = self.hierarchy.create(&self.top).unwrap();
        top.kill().unwrap();
        top.wait_empty(SOON).unwrap();
        top.remove(SOON).unwrap();
        assert!(!self.hierarchy.exists(&self.top).unwrap());
    }
}

/// A shell inside the cgroup, which runs `script` once it is told to.
fn shell(cgroup: &Cgroup, script: &str) -> (Child, OwnedFd) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let child = Command::new("/bin/sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::from(read))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    cgroup.add_process(child.id() as i32).unwrap();
    (child, write)
}

fn go(fd: &OwnedFd) {
    rustix::io::write(fd, b"go\n").unwrap();
}

/// The value of a limit, from whichever file has it.
fn file(cgroup: &Cgroup, v1: &str, v2: &str) -> String {
    let hierarchy = cgroup.hierarchy();
    let base = if hierarchy.mode() == Mode::Unified {
        "/sys/fs/cgroup".to_owned()
    } else {
        format!("/sys/fs/cgroup/{}", v1.split('.').next().unwrap())
    };
    let name = if hierarchy.mode() == Mode::Unified { v2 } else { v1 };
    std::fs::read_to_string(format!("{base}{}/{name}", cgroup.path()))
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn limits_are_written_and_can_be_changed() {
    let it = Fixture::new("limits");
    let mut limits = Limits {
        cpu: Cpu {
            shares: Some(1024),
            quota: Some(50_000),
            period: Some(100_000),
            cpus: Some("0".into()),
            ..Cpu::default()
        },
        memory: Memory {
            limit: Some(64 << 20),
            swap: Some(64 << 20),
            ..Memory::default()
        },
        pids: Some(32),
        hugepages: vec![("2MB".into(), 0), ("3MB".into(), 0)],
        ..Limits::default()
    };
    it.cgroup.apply(&limits, Stage::Create).unwrap();
    let v2 = it.hierarchy.mode() == Mode::Unified;
    assert_eq!(
        file(&it.cgroup, "cpu.shares", "cpu.weight"),
        if v2 { "100" } else { "1024" }
    );
    assert_eq!(
        file(&it.cgroup, "cpu.cfs_quota_us", "cpu.max"),
        if v2 { "50000 100000" } else { "50000" }
    );
    assert_eq!(file(&it.cgroup, "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(file(&it.cgroup, "pids.max", "pids.max"), "32");
    let unlimited = it.cgroup.stats().unwrap().memory;
    assert_eq!(unlimited.limit, None, "memory waits for the barrier");

    let (mut child, write) = shell(&it.cgroup, "exit 0");
    it.cgroup.apply(&limits, Stage::Barrier).unwrap();
    assert_eq!(it.cgroup.stats().unwrap().memory.limit, Some(64 << 20));
    // Up, and down again: on version 1 the two limits must move in the right order.
    for size in [256i64 << 20, 32 << 20, 512 << 20, -1, 64 << 20] {
        limits.memory.limit = Some(size);
        limits.memory.swap = Some(size);
        it.cgroup.apply(&limits, Stage::All).unwrap();
        assert_eq!(it.cgroup.stats().unwrap().memory.limit, u64::try_from(size).ok());
    }
    let stats = it.cgroup.stats().unwrap();
    assert_eq!((stats.pids.current, stats.pids.limit), (1, Some(32)));
    go(&write);
    child.wait().unwrap();
}

#[test]
fn an_error_names_file_value_and_reason() {
    let it = Fixture::new("errors");
    let cpus = Limits {
        cpu: Cpu {
            cpus: Some("900".into()),
            ..Cpu::default()
        },
        ..Limits::default()
    };
    let Err(error) = it.cgroup.apply(&cpus, Stage::Create) else {
        // Version 2 takes processors that do not exist.
        assert_eq!(it.hierarchy.mode(), Mode::Unified);
        return;
    };
    let text = error.to_string();
    assert!(
        text.contains("cpuset.cpus") && text.contains("900") && text.contains(&it.top),
        "{text}"
    );
    assert!(error.errno().is_some());
}

#[test]
fn huge_pages_are_limited_wherever_their_controller_is() {
    let it = Fixture::new("hugetlb");
    if !it.hierarchy.has(Controller::Hugetlb) {
        panic!("the kernel has no hugetlb controller");
    }
    let limits = |bytes| Limits {
        hugepages: vec![("2MB".into(), bytes)],
        ..Limits::default()
    };
    it.cgroup.apply(&limits(4 << 20), Stage::Create).unwrap();
    let wrong = Limits {
        hugepages: vec![("3MB".into(), 4 << 20)],
        ..Limits::default()
    };
    assert!(it.cgroup.apply(&wrong, Stage::Create).is_err());
}

#[test]
fn an_oom_kill_is_counted() {
    let it = Fixture::new("oom");
    let limits = Limits {
        memory: Memory {
            limit: Some(16 << 20),
            swap: Some(16 << 20),
            ..Memory::default()
        },
        ..Limits::default()
    };
    it.cgroup.apply(&limits, Stage::Barrier).unwrap();
    assert_eq!(it.cgroup.oom_kills().unwrap(), 0);
    let (mut child, write) = shell(&it.cgroup, "exec tail /dev/zero");
    go(&write);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(it.cgroup.oom_kills().unwrap(), 1);
}

#[test]
fn a_tree_is_frozen_killed_waited_for_and_removed() {
    let it = Fixture::new("kill");
    let watch = it.cgroup.watch_empty().unwrap();
    let (mut child, write) = shell(&it.cgroup, "(sleep 1000 & sleep 1000 & wait) & sleep 1000");
    go(&write);
    let start = Instant::now();
    while it.cgroup.procs().unwrap().len() < 4 {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(it.cgroup.is_populated().unwrap());
    assert!(
        matches!(it.cgroup.wait_empty(Duration::from_millis(5)), Err(Error::Busy { pids, .. }) if pids.len() >= 4)
    );
    assert!(it.cgroup.remove(Duration::from_millis(5)).is_err());
    it.cgroup.freeze(SOON).unwrap();
    it.cgroup.thaw().unwrap();
    it.cgroup.kill().unwrap();
    child.wait().unwrap();
    it.cgroup.wait_empty(SOON).unwrap();
    assert!(!it.cgroup.is_populated().unwrap());
    if let Some(watch) = watch {
        let mut fds = [PollFd::new(&watch, PollFlags::PRI)];
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        assert_eq!(rustix::event::poll(&mut fds, Some(&second)).unwrap(), 1);
        assert!(!watch.populated().unwrap());
    }
    it.cgroup.remove(SOON).unwrap();
    it.cgroup.remove(SOON).unwrap();
    it.cgroup.kill().unwrap();
    assert!(!it.cgroup.is_populated().unwrap());
    let path = it.cgroup.path();
    assert!(it.hierarchy.open(&path).unwrap_err().is_gone());
}

#[test]
fn a_frozen_tree_can_be_killed() {
    let it = Fixture::new("frozen");
    let (mut child, write) = shell(&it.cgroup, "sleep 1000");
    go(&write);
    it.cgroup.freeze(SOON).unwrap();
    it.cgroup.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    it.cgroup.wait_empty(SOON).unwrap();
}

#[test]
fn a_leaf_dies_alone() {
    let it = Fixture::new("leaf");
    let (mut init, _init_write) = shell(&it.cgroup, "sleep 1000");
    let leaf = it.cgroup.leaf("exec-1").unwrap();
    let (mut exec, write) = shell(&leaf, "sleep 1000 & sleep 1000");
    go(&write);
    let start = Instant::now();
    while leaf.procs().unwrap().len() < 3 {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(it.cgroup.procs().unwrap().len(), 4);
    leaf.kill().unwrap();
    assert_eq!(exec.wait().unwrap().signal(), Some(9));
    leaf.wait_empty(SOON).unwrap();
    leaf.remove(SOON).unwrap();
    assert!(init.try_wait().unwrap().is_none());
    assert_eq!(it.cgroup.procs().unwrap(), [init.id() as i32]);
    assert!(it.cgroup.leaf("../x").is_err());
    it.cgroup.kill().unwrap();
    init.wait().unwrap();
}

#[test]
fn what_a_container_made_below_its_cgroup_is_removed_with_it() {
    let it = Fixture::new("nested");
    let path = it.cgroup.path();
    for below in ["a/b/c", "a/d", "e"] {
        it.hierarchy.create(&format!("{path}/{below}")).unwrap();
    }
    assert_eq!(it.hierarchy.children(&path).unwrap(), ["a", "e"]);
    it.cgroup.remove(SOON).unwrap();
    assert!(!it.hierarchy.exists(&path).unwrap());
    assert!(it.hierarchy.remove_if_empty(&format!("{}/pod", it.top)).unwrap());
}

#[test]
fn devices_are_filtered_and_the_filter_can_be_replaced() {
    let it = Fixture::new("devices");
    let rule = |allow, minor, write| DeviceRule {
        allow,
        kind: DeviceKind::Char,
        major: Some(1),
        minor,
        read: true,
        write,
        mknod: false,
    };
    let limits = |rules: Vec<DeviceRule>| Limits {
        devices: Some(rules),
        ..Limits::default()
    };
    // /dev/null both ways, /dev/zero for reading only.
    let some = limits(vec![rule(true, Some(3), true), rule(true, Some(5), false)]);
    it.cgroup.apply(&some, Stage::Barrier).unwrap();
    let attempt = |script: &str| {
        let (mut child, write) = shell(&it.cgroup, script);
        go(&write);
        child.wait().unwrap().code()
    };
    assert_eq!(
        attempt("echo x >/dev/null && head -c1 </dev/zero >/dev/null"),
        Some(0)
    );
    assert_ne!(attempt("echo x >/dev/zero"), Some(0));
    assert_ne!(attempt("head -c1 </dev/urandom"), Some(0));
    let all = limits(vec![rule(true, None, true)]);
    it.cgroup.apply(&all, Stage::Barrier).unwrap();
    assert_eq!(
        attempt("echo x >/dev/zero && head -c1 </dev/urandom >/dev/null"),
        Some(0)
    );
    it.cgroup.apply(&limits(Vec::new()), Stage::Barrier).unwrap();
    assert_ne!(attempt("echo x >/dev/null"), Some(0));
}

#[test]
fn joining_by_open_descriptors_reaches_every_hierarchy() {
    let it = Fixture::new("join");
    let into = it.cgroup.open_for_clone().unwrap();
    let join = it.cgroup.join_fds().unwrap();
    match it.hierarchy.mode() {
        Mode::Unified => assert!(into.is_some() && join.is_empty()),
        Mode::Hybrid => assert!(into.is_some() && join.len() > 3),
        Mode::Legacy => assert!(into.is_none() && !join.is_empty()),
    }
    // A thread can join alone on version 1, and that is enough to see that the descriptors work.
    let path = it.cgroup.path();
    std::thread::spawn(move || {
        for fd in &join {
            rustix::io::write(fd.as_fd(), b"0").unwrap();
        }
        let text = std::fs::read_to_string("/proc/thread-self/cgroup").unwrap();
        let inside = text.lines().filter(|line| line.ends_with(&path)).count();
        assert_eq!(inside, join.len(), "{text}");
    })
    .join()
    .unwrap();
}

/// Without a unified hierarchy there is no `cgroup.kill` and no `cgroup.events`: the freezer and signals must do.
#[test]
fn version_1_alone_can_freeze_kill_and_wait_too() {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
    holdfast_sys::namespace::unshare(holdfast_sys::clone::NEWNS).unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    rustix::mount::unmount("/sys/fs/cgroup", UnmountFlags::DETACH).unwrap();
    rustix::mount::mount(
        "cgroup",
        "/sys/fs/cgroup",
        "cgroup",
        MountFlags::empty(),
        Some(c"freezer"),
    )
    .unwrap();

    let it = Fixture::new("legacy");
    assert_eq!(it.hierarchy.mode(), Mode::Legacy);
    assert!(it.cgroup.open_for_clone().unwrap().is_none());
    let leaf = it.cgroup.leaf("exec").unwrap();
    let (mut child, write) = shell(&leaf, "(sleep 1000 & sleep 1000 & wait) & sleep 1000");
    go(&write);
    let start = Instant::now();
    while it.cgroup.procs().unwrap().len() < 4 {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(it.cgroup.watch_empty().unwrap().is_none());
    it.cgroup.freeze(SOON).unwrap();
    assert!(matches!(
        leaf.wait_empty(Duration::from_millis(5)),
        Err(Error::Busy { .. })
    ));
    it.cgroup.thaw().unwrap();
    leaf.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    leaf.wait_empty(SOON).unwrap();
    leaf.remove(SOON).unwrap();
    let limit = Limits {
        pids: Some(5),
        ..Limits::default()
    };
    let error = it.cgroup.apply(&limit, Stage::Create).unwrap_err().to_string();
    assert!(error.contains("pids") && error.contains("controller"), "{error}");
}

#[test]
fn figures_of_a_busy_cgroup() {
    let it = Fixture::new("stats");
    let reader = it.cgroup.stat_reader().unwrap();
    let (mut child, write) = shell(
        &it.cgroup,
        "x=$(head -c 1000000 /dev/zero | tr '\\0' x); i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; read stop",
    );
    go(&write);
    let start = Instant::now();
    while reader.read().unwrap().cpu.usage_us < 30_000 {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(2));
    }
    // Version 2 sums up per processor, every two seconds where little changes: what the shell has just touched comes later.
    // And on a slow machine the shell's helpers are still at work.
    while reader.read().unwrap().memory.rss == 0 || it.cgroup.procs().unwrap().len() > 1 {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(20));
    }
    let stats = reader.read().unwrap();
    assert!(
        stats.memory.usage > 0 && stats.memory.page_faults > 0,
        "{stats:?}"
    );
    assert!(stats.memory.working_set <= stats.memory.usage);
    assert!(stats.pids.current >= 1);
    assert!(stats.memory.rss > 0 && stats.memory.rss <= stats.memory.usage);
    assert!(reader.cpu_usage_us().unwrap() >= stats.cpu.usage_us);
    // The unified hierarchy has it, whichever version the controllers are on.
    let kept =
        std::path::Path::new("/proc/pressure/cpu").exists() && it.cgroup.watch_empty().unwrap().is_some();
    assert_eq!(stats.pressure.cpu.is_some(), kept, "{:?}", stats.pressure);
    let detail = it.cgroup.detail();
    assert_eq!(detail.processes, [i32::try_from(child.id()).unwrap()]);
    assert!(
        detail
            .memory_max_usage
            .is_none_or(|most| most >= stats.memory.rss),
        "{detail:?}"
    );
    assert_eq!((detail.oom_kills, detail.memory_failures), (0, 0));
    it.cgroup.kill().unwrap();
    child.wait().unwrap();
    it.cgroup.wait_empty(SOON).unwrap();
    it.cgroup.remove(SOON).unwrap();
    assert!(reader.read().unwrap_err().is_gone());
}

#[test]
fn parents_are_made_and_a_half_made_path_is_unmade() {
    let it = Fixture::new("unwind");
    let name = "x".repeat(300);
    assert!(matches!(
        it.hierarchy.create(&format!("{}/{name}", it.top)),
        Err(Error::Path { .. })
    ));
    assert!(it.hierarchy.create("/../etc").is_err());
    assert!(
        it.hierarchy
            .open("/holdfast-test-no-such-cgroup")
            .unwrap_err()
            .is_gone()
    );
    let own = it.hierarchy.of_process(None).unwrap();
    assert!(own.starts_with('/'));
}

/// Prints what the steps on a container's path cost; asserts nothing.
#[test]
fn costs() {
    let it = Fixture::new("costs");
    let limits: Limits = Limits {
        cpu: Cpu {
            shares: Some(512),
            quota: Some(50_000),
            period: Some(100_000),
            ..Cpu::default()
        },
        memory: Memory {
            limit: Some(64 << 20),
            ..Memory::default()
        },
        pids: Some(32),
        devices: Some(vec![]),
        ..Limits::default()
    };
    for round in 0..3 {
        let mut last = Instant::now();
        let mut lap = |what: &str| {
            println!("{round} {what}: {:?}", last.elapsed());
            last = Instant::now();
        };
        let hierarchy = Hierarchy::detect().unwrap();
        lap("detect");
        let cgroup = hierarchy.create(&format!("{}/pod/c{round}", it.top)).unwrap();
        lap("create");
        cgroup.apply(&limits, Stage::Create).unwrap();
        lap("apply, create");
        let into = cgroup.open_for_clone().unwrap();
        let join = cgroup.join_fds().unwrap();
        lap("descriptors");
        cgroup.apply(&limits, Stage::Barrier).unwrap();
        lap("apply, barrier");
        let reader = cgroup.stat_reader().unwrap();
        lap("open figures");
        reader.read().unwrap();
        lap("read figures");
        let leaf = cgroup.leaf("exec").unwrap();
        lap("leaf");
        leaf.kill().unwrap();
        leaf.remove(SOON).unwrap();
        lap("remove leaf");
        drop((into, join, reader));
        cgroup.kill().unwrap();
        lap("kill");
        cgroup.remove(SOON).unwrap();
        lap("remove");
    }
}
