//! Limits on the real kernel: updates whole or not at all on whichever version the machine has, and every controller of
//! version 2 where that is the one.
#![allow(clippy::unwrap_used)]

use holdfast_cgroups::systemd::{Property, Value, weight_after_idle};
use holdfast_cgroups::{BlockIo, Cgroup, Cpu, Error, Hierarchy, Limits, Memory, Mode, Stage, Throttle};
use holdfast_testkit::Reaper;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const MIB: i64 = 1 << 20;

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
        let top = format!("/holdfast-test-limits-{name}-{}", std::process::id());
        let reaper = Reaper::of_cgroup(&top);
        let cgroup = hierarchy.create(&format!("{top}/pod/container")).unwrap();
        Self {
            hierarchy,
            top,
            cgroup,
            _reaper: reaper,
        }
    }

    fn unified(&self) -> bool {
        self.hierarchy.mode() == Mode::Unified
    }

    /// A file of the cgroup: on version 1 in its controller's hierarchy.
    fn read(&self, file: &str) -> String {
        self.try_read(file).unwrap_or_else(|e| panic!("{file}: {e}"))
    }

    fn try_read(&self, file: &str) -> std::io::Result<String> {
        let controller = file.split('.').next().unwrap();
        let base = match self.unified() {
            true => "/sys/fs/cgroup".to_owned(),
            false if controller == "hugetlb" => "/sys/fs/cgroup/unified".to_owned(),
            false => format!("/sys/fs/cgroup/{controller}"),
        };
        let text = std::fs::read_to_string(format!("{base}{}/{file}", self.cgroup.path()))?;
        Ok(text.trim().to_owned())
    }

    fn either(&self, v1: &str, v2: &str) -> String {
        self.read(if self.unified() { v2 } else { v1 })
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let top = self.hierarchy.create(&self.top).unwrap();
        top.kill().unwrap();
        top.wait_empty(SOON).unwrap();
        top.remove(SOON).unwrap();
    }
}

/// A shell inside the cgroup that runs `script` once it is in.
fn shell(cgroup: &Cgroup, script: &str) -> (Child, OwnedFd) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let child = Command::new("/bin/sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::from(read))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    cgroup.add_process(child.id() as i32).unwrap();
    rustix::io::write(&write, b"go\n").unwrap();
    (child, write)
}

/// 24 MiB that cannot be reclaimed.
const HOLD: &str = "x=$(head -c 25165824 /dev/zero | tr '\\0' x); read stop";

fn holding(cgroup: &Cgroup) -> (Child, OwnedFd) {
    let held = shell(cgroup, HOLD);
    holdfast_testkit::wait_for(SOON, "the memory to be in use", || {
        (cgroup.stats().unwrap().memory.rss > 24 << 20).then_some(())
    });
    held
}

fn limits(quota: i64, period: u64, shares: u64, memory: i64) -> Limits {
    Limits {
        cpu: Cpu {
            quota: Some(quota),
            period: Some(period),
            shares: Some(shares),
            ..Cpu::default()
        },
        memory: Memory {
            limit: Some(memory),
            swap: Some(memory),
            ..Memory::default()
        },
        ..Limits::default()
    }
}

fn carry_out(cgroup: &Cgroup, limits: &Limits) -> Result<(), holdfast_cgroups::Refused> {
    cgroup.carry_out(&cgroup.plan(limits).unwrap())
}

#[test]
fn an_update_goes_in_any_direction() {
    let it = Fixture::new("directions");
    it.cgroup
        .apply(&limits(50_000, 100_000, 1024, 64 * MIB), Stage::All)
        .unwrap();
    let (mut child, _stop) = shell(&it.cgroup, "read stop");
    for (quota, period, memory) in [
        (20_000, 100_000, 128 * MIB),
        (90_000, 50_000, 32 * MIB),
        (-1, 200_000, -1),
        (10_000, 20_000, 48 * MIB),
        (400_000, 100_000, 512 * MIB),
    ] {
        let wanted = limits(quota, period, 512, memory);
        let plan = it.cgroup.plan(&wanted).unwrap();
        let before = it.cgroup.stats().unwrap().memory.limit;
        it.cgroup
            .carry_out(&plan)
            .map_err(|refused| refused.error)
            .unwrap();
        assert_eq!(
            it.cgroup.stats().unwrap().memory.limit,
            u64::try_from(memory).ok()
        );
        let now = it.either("cpu.cfs_quota_us", "cpu.max");
        let shown = if quota < 0 && it.unified() {
            "max".into()
        } else {
            quota.to_string()
        };
        assert!(now.starts_with(&shown), "{now}");
        // There and back again, through JSON, as a daemon does that died in between.
        let kept = serde_json::to_string(&plan).unwrap();
        let left = it.cgroup.take_back(&serde_json::from_str(&kept).unwrap());
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(it.cgroup.stats().unwrap().memory.limit, before);
        carry_out(&it.cgroup, &wanted)
            .map_err(|refused| refused.error)
            .unwrap();
    }
    it.cgroup.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_limit_that_was_outgrown_is_not_put_back_and_kills_nothing() {
    let it = Fixture::new("outgrown");
    it.cgroup
        .apply(&limits(50_000, 100_000, 1024, 8 * MIB), Stage::All)
        .unwrap();
    let plan = it.cgroup.plan(&limits(20_000, 100_000, 512, 64 * MIB)).unwrap();
    it.cgroup
        .carry_out(&plan)
        .map_err(|refused| refused.error)
        .unwrap();
    let (mut child, _stop) = holding(&it.cgroup);
    let left = it.cgroup.take_back(&plan);
    assert!(child.try_wait().unwrap().is_none(), "it was killed");
    assert_eq!(it.cgroup.oom_kills().unwrap(), 0);
    assert!(
        left.iter()
            .any(|error| matches!(error, Error::InUse { limit, .. } if *limit == 8 << 20)),
        "{left:?}"
    );
    assert_eq!(it.cgroup.stats().unwrap().memory.limit, Some(64 << 20));
    // What nothing is in the way of is put back all the same.
    let quota = it.either("cpu.cfs_quota_us", "cpu.max");
    assert!(quota.starts_with("50000"), "{quota}");
    let rest = it.cgroup.bearable(&plan);
    let files: Vec<_> = rest.changes.iter().map(|change| change.file.as_str()).collect();
    assert!(!files.contains(&"memory.max"), "{files:?}");
    it.cgroup.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_update_that_is_refused_leaves_everything_as_it_was() {
    let it = Fixture::new("refused");
    it.cgroup
        .apply(&limits(50_000, 100_000, 1024, 64 * MIB), Stage::All)
        .unwrap();
    let (mut child, _stop) = holding(&it.cgroup);
    let state = || {
        let files = [
            ("cpu.shares", "cpu.weight"),
            ("cpu.cfs_quota_us", "cpu.max"),
            ("cpuset.effective_cpus", "cpuset.cpus.effective"),
        ];
        let files = files.map(|(v1, v2)| it.either(v1, v2));
        (files, it.either("memory.limit_in_bytes", "memory.max"))
    };
    let before = state();
    let mut wanted = limits(20_000, 50_000, 77, 4 * MIB);
    wanted.cpu.cpus = Some("0".into());
    let refused = carry_out(&it.cgroup, &wanted).unwrap_err();
    assert!(refused.left.is_empty(), "{:?}", refused.left);
    assert!(refused.file.starts_with("memory."), "{}", refused.file);
    match &refused.error {
        Error::InUse { limit, usage, .. } => assert!(*limit == 4 << 20 && *usage > 24 << 20),
        other => panic!("{other}"),
    }
    assert_eq!(state(), before);
    assert!(child.try_wait().unwrap().is_none(), "nothing was killed");
    assert_eq!(it.cgroup.oom_kills().unwrap(), 0);
    // A value that the kernel does not take is named with its file.
    let mut wanted = limits(20_000, 50_000, 77, 128 * MIB);
    wanted.cpu.mems = Some("63".into());
    match carry_out(&it.cgroup, &wanted) {
        Err(refused) => {
            assert_eq!(refused.file, "cpuset.mems");
            assert!(
                refused.error.to_string().contains("cpuset.mems"),
                "{}",
                refused.error
            );
            assert_eq!(state(), before);
        }
        // Version 2 takes nodes that there are not.
        Ok(()) => assert!(it.unified()),
    }
    it.cgroup.kill().unwrap();
    child.wait().unwrap();
}

/// What the page cache holds is given up for a lower limit; nobody is killed for it.
#[test]
fn a_limit_below_the_page_cache_is_made_room_for() {
    let it = Fixture::new("cache");
    // Beside this program: /tmp may be a tmpfs, whose pages can go nowhere.
    let program = std::env::current_exe().unwrap();
    let file = program.with_file_name(format!("holdfast-limits-{}", std::process::id()));
    let script = format!(
        "head -c 50331648 /dev/zero > {0}; sync {0}; cat {0} > /dev/null; rm {0}.wait; read stop",
        file.display()
    );
    let marker = std::path::PathBuf::from(format!("{}.wait", file.display()));
    std::fs::write(&marker, "").unwrap();
    let (mut child, _stop) = shell(&it.cgroup, &script);
    holdfast_testkit::wait_for(SOON, "the file to be read", || (!marker.exists()).then_some(()));
    let outcome = carry_out(&it.cgroup, &limits(-1, 100_000, 1024, 16 * MIB));
    let alive = child.try_wait().unwrap().is_none();
    it.cgroup.kill().unwrap();
    child.wait().unwrap();
    let _ = std::fs::remove_file(&file);
    outcome.map_err(|refused| refused.error).unwrap();
    assert!(alive);
}

#[test]
fn what_is_not_handed_down_is_named() {
    let it = Fixture::new("delegation");
    let busy = it.hierarchy.create(&format!("{}/busy", it.top)).unwrap();
    let (mut child, _stop) = shell(&busy, "read stop");
    // A cgroup that holds a process hands no domain controller down (cgroup-v2.rst, "No Internal Process Constraint").
    let below = it.hierarchy.create(&format!("{}/busy/below", it.top)).unwrap();
    let wanted = if it.unified() {
        limits(50_000, 100_000, 1024, 64 * MIB)
    } else {
        Limits {
            hugepages: vec![("2MB".into(), 4 << 20)],
            ..Limits::default()
        }
    };
    let mut only_memory = wanted.clone();
    only_memory.cpu = Cpu::default();
    for error in [
        below.apply(&only_memory, Stage::All).map(drop).unwrap_err(),
        below.plan(&only_memory).map(drop).unwrap_err(),
    ] {
        let Error::NotHandedDown { controller, by, .. } = &error else {
            panic!("{error}");
        };
        assert!(["memory", "hugetlb"].contains(controller));
        assert!(by.ends_with("/busy"), "{by}");
        assert_eq!(error.errno(), Some(libc::EBUSY));
    }
    busy.kill().unwrap();
    child.wait().unwrap();
}

fn unified(pairs: &[(&str, &str)]) -> Limits {
    Limits {
        unified: pairs
            .iter()
            .map(|(file, value)| ((*file).to_owned(), (*value).to_owned()))
            .collect(),
        ..Limits::default()
    }
}

#[test]
fn every_setting_of_version_2() {
    let it = Fixture::new("unified");
    let settings = [
        ("memory.high", "50331648"),
        ("memory.low", "4194304"),
        ("memory.min", "2097152"),
        ("memory.max", "67108864"),
        ("memory.oom.group", "1"),
        ("memory.swap.max", "1048576"),
        ("cpu.weight", "250"),
        ("cpu.max", "50000 100000"),
        ("cpu.max.burst", "10000"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("pids.max", "77"),
    ];
    if !it.unified() {
        // On version 1 they are refused by name, but for the one that Kubernetes always sends.
        let error = it
            .cgroup
            .apply(&unified(&[("memory.high", "1")]), Stage::All)
            .unwrap_err();
        assert!(error.to_string().contains("version 1"), "{error}");
        let warnings = it
            .cgroup
            .apply(&unified(&[("memory.oom.group", "1")]), Stage::All)
            .unwrap();
        assert_eq!(warnings.len(), 1);
        return;
    }
    it.cgroup.apply(&unified(&settings), Stage::All).unwrap();
    for (file, value) in settings {
        assert_eq!(it.read(file), value, "{file}");
    }
    // And by an update, and back.
    let others = [
        ("memory.high", "max"),
        ("memory.low", "0"),
        ("memory.min", "0"),
        ("memory.max", "max"),
        ("memory.oom.group", "0"),
        ("memory.swap.max", "max"),
        ("cpu.idle", "1"),
        ("cpu.max", "max 100000"),
        ("pids.max", "max"),
    ];
    let plan = it.cgroup.plan(&unified(&others)).unwrap();
    it.cgroup
        .carry_out(&plan)
        .map_err(|refused| refused.error)
        .unwrap();
    for (file, value) in others {
        assert_eq!(it.read(file), value, "{file}");
    }
    let left = it.cgroup.take_back(&plan);
    assert!(left.is_empty(), "{left:?}");
    for (file, value) in settings {
        assert_eq!(it.read(file), value, "{file} after the way back");
    }
    // A nonsense among them, at the end of the order: nothing stays changed.
    let refused = carry_out(
        &it.cgroup,
        &unified(&[("cpu.weight", "9"), ("pids.max", "5"), ("memory.swap.max", "x")]),
    );
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.file.as_str(), refused.left.len()),
        ("memory.swap.max", 0)
    );
    assert_eq!(
        (it.read("cpu.weight").as_str(), it.read("pids.max").as_str()),
        ("250", "77")
    );
    // A file that there is not.
    let error = it.cgroup.plan(&unified(&[("memory.nonsense", "1")])).unwrap_err();
    assert!(error.to_string().contains("memory.nonsense"), "{error}");
}

#[test]
fn every_controller_of_the_root_is_handed_down() {
    let it = Fixture::new("controllers");
    let base = if it.unified() {
        "/sys/fs/cgroup"
    } else {
        "/sys/fs/cgroup/unified"
    };
    let read = |path: String| std::fs::read_to_string(path).unwrap();
    let root = read(format!("{base}/cgroup.controllers"));
    let own = read(format!("{base}{}/cgroup.controllers", it.cgroup.path()));
    let known = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb", "rdma", "misc"];
    let wanted: Vec<&str> = root
        .split_whitespace()
        .filter(|name| known.contains(name))
        .collect();
    assert!(!wanted.is_empty());
    for name in wanted {
        assert!(
            own.split_whitespace().any(|it| it == name),
            "{name} is not in {own}"
        );
    }
}

#[test]
fn protection_of_memory_holds_for_what_is_below() {
    let it = Fixture::new("recursive");
    if !it.unified() {
        assert!(
            it.cgroup
                .apply(&unified(&[("memory.min", "1")]), Stage::All)
                .is_err()
        );
        return;
    }
    // What makes the kernel hand it down to a container (cgroup-v2.rst, "Mounting").
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let recursive = |line: &str| line.contains(" - cgroup2 ") && line.contains("memory_recursiveprot");
    assert!(mounts.lines().any(recursive), "{mounts}");
    let pod = it.hierarchy.open(&format!("{}/pod", it.top)).unwrap();
    pod.apply(
        &unified(&[("memory.min", "8388608"), ("memory.low", "16777216")]),
        Stage::All,
    )
    .unwrap();
    let read = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup{}/pod/{file}", it.top)).unwrap();
    assert_eq!(
        (read("memory.min").trim(), read("memory.low").trim()),
        ("8388608", "16777216")
    );
}

#[test]
fn the_end_of_being_idle_is_a_weight_that_systemd_can_be_told() {
    let it = Fixture::new("idle");
    let told = |limits: &Limits| weight_after_idle(&it.cgroup, limits).unwrap();
    let over = unified(&[("cpu.idle", "0")]);
    if !it.unified() {
        assert_eq!(told(&over), None, "version 1 has no such property");
        return;
    }
    for limit in [("cpu.weight", "39"), ("cpu.idle", "1")] {
        it.cgroup.apply(&unified(&[limit]), Stage::All).unwrap();
    }
    assert_eq!(told(&unified(&[("cpu.idle", "1")])), None);
    it.cgroup.apply(&over, Stage::All).unwrap();
    let weight = Property {
        name: "CPUWeight",
        value: Value::Number(100),
    };
    assert_eq!(told(&over), Some(weight));
}

/// The first disk of the machine, `major:minor`.
fn disk() -> Option<(u32, u32)> {
    let mut names: Vec<_> = std::fs::read_dir("/sys/block").ok()?.flatten().collect();
    names.sort_by_key(std::fs::DirEntry::file_name);
    names.into_iter().find_map(|entry| {
        // Loop devices and the like may have no queue yet.
        entry.path().join("device").exists().then_some(())?;
        let text = std::fs::read_to_string(entry.path().join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

#[test]
fn rates_of_a_disk() {
    let it = Fixture::new("io");
    let (major, minor) = disk().expect("the machine has a disk");
    let io = |read_bps| Limits {
        block_io: BlockIo {
            throttle: vec![Throttle {
                major,
                minor,
                read_bps: Some(read_bps),
                write_iops: Some(100),
                ..Throttle::default()
            }],
            ..BlockIo::default()
        },
        ..Limits::default()
    };
    it.cgroup.apply(&io(1 << 20), Stage::Create).unwrap();
    let shown = || match it.unified() {
        true => it.read("io.max"),
        false => it.read("blkio.throttle.read_bps_device"),
    };
    let before = shown();
    assert!(
        before.contains("1048576") && before.contains(&format!("{major}:{minor}")),
        "{before}"
    );
    let plan = it.cgroup.plan(&io(2 << 20)).unwrap();
    it.cgroup
        .carry_out(&plan)
        .map_err(|refused| refused.error)
        .unwrap();
    assert!(shown().contains("2097152"), "{}", shown());
    assert!(it.cgroup.take_back(&plan).is_empty());
    assert_eq!(shown(), before);
    // A device that there is not.
    let mut wrong = io(1);
    wrong.block_io.throttle[0].major = 4000;
    let refused = carry_out(&it.cgroup, &wrong).unwrap_err();
    assert!(
        refused.file.contains("io.max") || refused.file.contains("blkio.throttle"),
        "{}",
        refused.file
    );
    assert_eq!(shown(), before);
}

#[test]
fn a_delegated_service_leaves_the_way_of_its_pods() {
    let it = Fixture::new("aside");
    let service = it.hierarchy.create(&format!("{}/service", it.top)).unwrap();
    let pods = format!("{}/service/pods", it.top);
    if !it.unified() {
        assert_eq!(it.hierarchy.step_aside(&pods).unwrap(), None);
        return;
    }
    let home = it
        .hierarchy
        .open(&it.hierarchy.of_process(None).unwrap())
        .unwrap();
    service.join_self().unwrap();
    assert_eq!(it.hierarchy.step_aside("/elsewhere").unwrap(), None);
    let now = it.hierarchy.step_aside(&pods).unwrap();
    let again = it.hierarchy.step_aside(&pods).unwrap();
    let own = it.hierarchy.of_process(None).unwrap();
    let pod = it.hierarchy.create(&format!("{pods}/one")).unwrap();
    let limited = pod.apply(&limits(50_000, 100_000, 1024, 64 * MIB), Stage::All);
    home.join_self().unwrap();
    assert_eq!((now.as_deref(), again), (Some(own.as_str()), None));
    assert_eq!(own, format!("{}/service/daemon", it.top));
    limited.unwrap();
}
