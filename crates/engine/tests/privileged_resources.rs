//! Limits of what runs are changed: seen in the cgroup and on record, whole or not at all, and still there after the
//! daemon was killed.
#![allow(clippy::unwrap_used)]

mod node;

use holdfast_cgroups::{Cgroup, Hierarchy, Limits, Mode};
use holdfast_engine::{Error, Kind};
use holdfast_model::{HugepageLimit, Resources};
use holdfast_store::{Record, Records};
use node::{Node, wait};
use serde::{Deserialize, Serialize};

const MIB: i64 = 1 << 20;

fn cgroup(path: &str) -> Cgroup {
    Hierarchy::detect().unwrap().open(path).unwrap()
}

/// The value of a limit, from whichever file has it.
fn limit(path: &str, v1: &str, v2: &str) -> String {
    let unified = Hierarchy::detect().unwrap().mode() == Mode::Unified;
    let (dir, name) = if unified {
        ("/sys/fs/cgroup".to_owned(), v2)
    } else {
        (format!("/sys/fs/cgroup/{}", v1.split('.').next().unwrap()), v1)
    };
    let text = std::fs::read_to_string(format!("{dir}{path}/{name}")).unwrap();
    text.trim().to_owned()
}

fn memory(path: &str) -> Option<u64> {
    cgroup(path).stats().unwrap().memory.limit
}

fn quota(path: &str) -> String {
    let text = limit(path, "cpu.cfs_quota_us", "cpu.max");
    text.split(' ').next().unwrap().to_owned()
}

fn shares(path: &str) -> String {
    limit(path, "cpu.shares", "cpu.weight")
}

fn score(pid: i32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    text.trim().parse().unwrap()
}

fn update(node: &Node, id: &str, wanted: Resources) -> Result<(), Error> {
    node.block_on(node.engine().update_container(id, wanted))
}

fn sleeper(node: &Node) -> holdfast_model::ContainerSpec {
    let mut spec = node.script("one", "sleep 1000 & wait");
    spec.resources = Resources {
        cpu_shares: Some(1024),
        memory_limit: Some(64 * MIB),
        oom_score_adj: 100,
        ..Resources::default()
    };
    spec
}

#[test]
fn an_update_is_in_the_cgroup_on_record_and_kept() {
    let mut node = Node::new("update");
    let pod = node.run_pod(node.host_pod("one"));
    let id = node.create(&pod, sleeper(&node));
    let path = node.status(&id).cgroup.clone();

    // While it is created, then while it runs.
    update(
        &node,
        &id,
        Resources {
            cpu_quota: Some(30_000),
            cpu_period: Some(100_000),
            memory_limit: Some(80 * MIB),
            ..Resources::default()
        },
    )
    .unwrap();
    assert_eq!((quota(&path).as_str(), memory(&path)), ("30000", Some(80 << 20)));
    node.start(&id);
    let first = node.status(&id).pid.unwrap();
    wait("the container's second process", || {
        (cgroup(&path).procs().unwrap().len() >= 2).then_some(())
    });
    update(
        &node,
        &id,
        Resources {
            cpu_period: Some(50_000),
            cpu_shares: Some(2048),
            memory_limit: Some(96 * MIB),
            cpuset_cpus: Some("0".into()),
            oom_score_adj: 300,
            hugepages: vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 4 << 20,
            }],
            ..Resources::default()
        },
    )
    .unwrap();
    assert_eq!(
        quota(&path),
        "30000",
        "the quota stays where only the period is given"
    );
    assert_ne!(shares(&path), "1024");
    assert_eq!(memory(&path), Some(96 << 20));
    assert_eq!(limit(&path, "cpuset.cpus", "cpuset.cpus"), "0");
    let children = cgroup(&path).procs().unwrap();
    assert!(children.len() >= 2);
    for pid in &children {
        assert_eq!(score(*pid), 300, "process {pid}");
    }
    let record = node.status(&id);
    assert_eq!(record.spec.resources.cpu_quota, Some(30_000));
    assert_eq!(record.spec.resources.cpu_period, Some(50_000));
    assert_eq!(record.spec.resources.memory_limit, Some(96 * MIB));
    let spec: serde_json::Value = serde_json::from_str(&record.oci_spec).unwrap();
    assert_eq!(spec["linux"]["resources"]["memory"]["limit"], 96 * MIB);
    assert_eq!(spec["process"]["oomScoreAdj"], 300);
    assert!(spec["linux"]["resources"]["devices"][0].is_object());
    assert_eq!(
        node.sh(&id, "cat /proc/self/oom_score_adj"),
        "300\n",
        "a later exec"
    );

    node.crash();
    node.open();
    let again = node.status(&id);
    assert_eq!(again.spec.resources, record.spec.resources);
    assert_eq!((again.pid, memory(&path)), (Some(first), Some(96 << 20)));
    // A later update keeps what it leaves out, and devices are as they were.
    update(
        &node,
        &id,
        Resources {
            cpu_quota: Some(-1),
            ..Resources::default()
        },
    )
    .unwrap();
    assert!(matches!(quota(&path).as_str(), "-1" | "max"));
    assert_eq!(memory(&path), Some(96 << 20));
    assert_eq!(node.status(&id).spec.resources.memory_limit, Some(96 * MIB));
    assert_eq!(node.sh(&id, "echo x >/dev/null && echo fine"), "fine\n");
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn an_update_that_fails_changes_nothing() {
    let mut node = Node::new("whole");
    let pod = node.run_pod(node.host_pod("one"));
    // 24 MiB that cannot be reclaimed.
    let mut spec = node.script(
        "one",
        "x=$(head -c 25165824 /dev/zero | tr '\\0' x); sleep 1000 & wait",
    );
    spec.resources = sleeper(&node).resources;
    let id = node.run(&pod, spec);
    let path = node.status(&id).cgroup.clone();
    node::wait("the memory to be in use", || {
        (cgroup(&path).stats().unwrap().memory.rss > 24 << 20).then_some(())
    });
    let first = node.status(&id).pid.unwrap();
    let state = || {
        (
            quota(&path),
            shares(&path),
            memory(&path),
            limit(&path, "cpuset.effective_cpus", "cpuset.cpus.effective"),
            score(first),
        )
    };
    let before = (state(), node.status(&id));

    // The last step fails, after all others were done.
    let wanted = Resources {
        cpu_quota: Some(30_000),
        cpu_period: Some(100_000),
        cpu_shares: Some(3000),
        cpuset_cpus: Some("0".into()),
        memory_limit: Some(4 * MIB),
        oom_score_adj: 400,
        ..Resources::default()
    };
    let error = update(&node, &id, wanted).unwrap_err();
    let text = error.chain();
    assert_eq!(error.kind(), Kind::Precondition, "{text}");
    assert!(
        text.contains("linux.memory_limit_in_bytes") && text.contains(&path),
        "{text}"
    );
    assert!(text.contains("nothing was"), "{text}");
    assert_eq!(state(), before.0);
    assert_eq!(*node.status(&id), *before.1);
    // The kernel's own no, by the name of field and file.
    let bad = Resources {
        cpu_quota: Some(30_000),
        cpuset_mems: Some("63".into()),
        ..Resources::default()
    };
    if let Err(error) = update(&node, &id, bad) {
        let text = error.chain();
        assert!(
            text.contains("linux.cpuset_mems") && text.contains("cpuset.mems"),
            "{text}"
        );
        assert_eq!(state(), before.0);
    } else {
        // Version 2 takes memory nodes that there are not; only the quota has changed then.
        assert_eq!(Hierarchy::detect().unwrap().mode(), Mode::Unified);
    }
    for (wanted, kind, words) in [
        (
            Resources {
                cpu_quota: Some(-5),
                ..Resources::default()
            },
            Kind::Invalid,
            "linux.cpu_quota",
        ),
        (
            Resources {
                memory_swap_limit: Some(MIB),
                ..Resources::default()
            },
            Kind::Invalid,
            "linux.memory_swap_limit_in_bytes",
        ),
        (
            Resources {
                unified: [("memory.reclaim".to_owned(), "1".to_owned())].into(),
                ..Resources::default()
            },
            Kind::Invalid,
            "memory.reclaim",
        ),
        (
            Resources {
                hugepages: vec![HugepageLimit {
                    page_size: "3MB".into(),
                    limit: 4 << 20,
                }],
                ..Resources::default()
            },
            Kind::Invalid,
            "linux.hugepage_limits",
        ),
    ] {
        let error = update(&node, &id, wanted).unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.chain());
        assert!(error.chain().contains(words), "{}", error.chain());
    }
    node.block_on(node.engine().stop_container(&id, std::time::Duration::ZERO))
        .unwrap();
    let some = Resources {
        cpu_shares: Some(2),
        ..Resources::default()
    };
    let error = update(&node, &id, some.clone()).unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
    assert!(error.chain().contains("exited"), "{}", error.chain());
    let error = update(&node, &"0".repeat(64), some).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Raw(serde_json::Value);

impl Record for Raw {}

#[test]
fn an_update_that_was_cut_off_is_taken_back() {
    let mut node = Node::new("cutoff");
    let pod = node.run_pod(node.host_pod("one"));
    let id = node.run(&pod, sleeper(&node));
    let record = node.status(&id);
    let path = record.cgroup.clone();
    let before = (quota(&path), memory(&path), shares(&path));
    node.crash();
    // What a daemon leaves that dies between the kernel and its record.
    let limits = Limits {
        cpu: holdfast_cgroups::Cpu {
            quota: Some(20_000),
            period: Some(100_000),
            shares: Some(7),
            ..holdfast_cgroups::Cpu::default()
        },
        memory: holdfast_cgroups::Memory {
            limit: Some(128 * MIB),
            ..holdfast_cgroups::Memory::default()
        },
        ..Limits::default()
    };
    let own = cgroup(&path);
    let plan = own.plan(&limits).unwrap();
    own.carry_out(&plan).map_err(|refused| refused.error).unwrap();
    assert_eq!((quota(&path).as_str(), memory(&path)), ("20000", Some(128 << 20)));
    leave_journal(&node, &id, serde_json::json!({ "plan": plan, "score": true }));
    std::fs::write(format!("/proc/{}/oom_score_adj", record.pid.unwrap()), "900").unwrap();

    node.open();
    taken_back(&node, &id);
    assert_eq!((quota(&path), memory(&path), shares(&path)), before);
    assert_eq!(score(record.pid.unwrap()), 100);
    assert_eq!(node.status(&id).spec.resources, record.spec.resources);
    node.remove_pod(&pod);
    node.assert_clean();
}

fn taken_back(node: &Node, id: &str) {
    wait("the update to be taken back", || {
        node.status(id).undo.is_none().then_some(())
    });
}

/// Puts a journal into a container's record while there is no daemon.
fn leave_journal(node: &Node, id: &str, undo: serde_json::Value) {
    let store = Records::<Raw>::open(node.path("root").join("records/containers")).unwrap();
    let mut raw = store.records.into_iter().find(|(key, _)| *key == id).unwrap().1;
    raw.0["undo"] = undo;
    store.store.put(id, &raw).unwrap();
}

#[test]
fn what_cannot_be_taken_back_stays_on_record_until_it_can_or_the_container_ends() {
    let mut node = Node::new("owed");
    let pod = node.run_pod(node.host_pod("one"));
    let id = node.run(&pod, sleeper(&node));
    let path = node.status(&id).cgroup.clone();
    let own = cgroup(&path);
    let limits = Limits {
        cpu: holdfast_cgroups::Cpu {
            shares: Some(7),
            ..holdfast_cgroups::Cpu::default()
        },
        ..Limits::default()
    };
    let plan = serde_json::to_value(own.plan(&limits).unwrap()).unwrap();
    // Of a hierarchy that there is not.
    let mut elsewhere = plan.clone();
    elsewhere["changes"][0]["hierarchy"] = "/nowhere".into();
    let journal = serde_json::json!({ "plan": elsewhere, "score": false });
    node.crash();
    leave_journal(&node, &id, journal.clone());
    node.open();
    // An update has its turn after the attempt, and what it does not touch is not forgotten for it.
    let wanted = Resources {
        memory_limit: Some(96 * MIB),
        ..Resources::default()
    };
    update(&node, &id, wanted).unwrap();
    assert_eq!(memory(&path), Some(96 << 20));
    assert_eq!(node.status(&id).undo, Some(journal.clone()));
    node.crash();
    node.open();
    assert_eq!(node.status(&id).undo, Some(journal));

    // Where nothing runs any more there is nothing to be done.
    node.block_on(node.engine().stop_container(&id, std::time::Duration::ZERO))
        .unwrap();
    node.crash();
    node.open();
    taken_back(&node, &id);
    node.remove_pod(&pod);
    node.assert_clean();
}

fn update_pod(
    node: &Node,
    id: &str,
    overhead: Option<Resources>,
    resources: Option<Resources>,
) -> Result<(), Error> {
    node.block_on(node.engine().update_pod(id, overhead, resources))
}

fn pod_limits(quota: i64, memory: i64) -> Resources {
    Resources {
        cpu_quota: Some(quota),
        cpu_period: Some(100_000),
        cpu_shares: Some(512),
        memory_limit: Some(memory),
        ..Resources::default()
    }
}

#[test]
fn a_pods_own_cgroup_is_limited_and_no_other() {
    let mut node = Node::new("podupdate");
    let pod = node.run_pod(node.host_pod("one"));
    let id = node.run(&pod, node.script("one", "sleep 1000"));
    let path = node.engine().sandbox(&pod).unwrap().cgroup.clone();
    let above = path.rsplit_once('/').unwrap().0.to_owned();
    let outside = (quota(&above), memory(&above));

    let overhead = pod_limits(10_000, 16 * MIB);
    update_pod(
        &node,
        &pod,
        Some(overhead.clone()),
        Some(pod_limits(50_000, 128 * MIB)),
    )
    .unwrap();
    assert_eq!((quota(&path).as_str(), memory(&path)), ("60000", Some(144 << 20)));
    let record = node.engine().sandbox(&pod).unwrap();
    assert_eq!(record.spec.overhead, Some(overhead));
    assert_eq!(record.spec.resources, Some(pod_limits(50_000, 128 * MIB)));
    // Kept, and the overhead still counts.
    node.crash();
    node.open();
    update_pod(&node, &pod, None, Some(pod_limits(20_000, 64 * MIB))).unwrap();
    assert_eq!((quota(&path).as_str(), memory(&path)), ("30000", Some(80 << 20)));
    // What is no longer given is lifted.
    update_pod(&node, &pod, None, Some(Resources::default())).unwrap();
    assert_eq!(memory(&path), None);
    assert!(matches!(quota(&path).as_str(), "-1" | "max"));
    assert_eq!((quota(&above), memory(&above)), outside);

    // Whole or not at all here too.
    let in_use = node.script("two", "x=$(head -c 25165824 /dev/zero | tr '\\0' x); sleep 1000");
    let two = node.run(&pod, in_use);
    let two_path = node.status(&two).cgroup.clone();
    node::wait("the memory to be in use", || {
        (cgroup(&two_path).stats().unwrap().memory.rss > 24 << 20).then_some(())
    });
    let before = (quota(&path), shares(&path), memory(&path));
    let error = update_pod(
        &node,
        &pod,
        Some(Resources::default()),
        Some(pod_limits(20_000, 4 * MIB)),
    )
    .unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition, "{}", error.chain());
    assert!(
        error.chain().contains("resources.memory_limit_in_bytes"),
        "{}",
        error.chain()
    );
    assert_eq!((quota(&path), shares(&path), memory(&path)), before);
    assert_eq!(
        node.engine().sandbox(&pod).unwrap().spec.resources,
        Some(Resources::default())
    );

    let mut with_score = pod_limits(1000, MIB);
    with_score.oom_score_adj = 5;
    assert_eq!(
        update_pod(&node, &pod, None, Some(with_score))
            .unwrap_err()
            .kind(),
        Kind::Invalid
    );
    assert_eq!(
        update_pod(&node, &"0".repeat(64), None, None).unwrap_err().kind(),
        Kind::NotFound
    );
    node.block_on(node.engine().stop_container(&id, std::time::Duration::ZERO))
        .unwrap();
    node.stop_pod(&pod);
    let error = update_pod(&node, &pod, None, Some(pod_limits(20_000, 64 * MIB))).unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn a_cgroup_that_was_there_is_respected() {
    let mut node = Node::new("podparent");
    let hierarchy = Hierarchy::detect().unwrap();
    let parent = format!("{}/pods/kubelet-pod", node.cgroup);
    hierarchy.create(&parent).unwrap();
    let with_parent = |name: &str| {
        let mut spec = node.host_pod(name);
        spec.cgroup_parent = parent.clone();
        spec
    };
    let pod = node.run_pod(with_parent("one"));
    node.run(&pod, node.script("one", "sleep 1000"));
    // The kubelet's sum leaves out a container without a limit, which must not be bound by it.
    update_pod(&node, &pod, None, Some(pod_limits(50_000, 128 * MIB))).unwrap();
    assert_eq!(memory(&parent), None);
    assert!(matches!(quota(&parent).as_str(), "-1" | "max"));
    assert_ne!(shares(&parent), "1024");
    // Where the pod has a limit already the new one holds.
    let limits = Limits {
        memory: holdfast_cgroups::Memory {
            limit: Some(256 * MIB),
            ..holdfast_cgroups::Memory::default()
        },
        ..Limits::default()
    };
    cgroup(&parent)
        .apply(&limits, holdfast_cgroups::Stage::All)
        .unwrap();
    update_pod(&node, &pod, None, Some(pod_limits(50_000, 128 * MIB))).unwrap();
    assert_eq!(memory(&parent), Some(128 << 20));
    // One that two pods are in is nobody's own.
    let other = node.run_pod(with_parent("two"));
    let error = update_pod(&node, &pod, None, Some(pod_limits(50_000, 64 * MIB))).unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
    assert!(
        error.chain().contains(&other) && error.chain().contains(&parent),
        "{}",
        error.chain()
    );
    assert_eq!(memory(&parent), Some(128 << 20));
    node.remove_pod(&other);
    node.remove_pod(&pod);
    // It was there before the pods, and stays.
    cgroup(&parent).remove(node::PATIENCE).unwrap();
    node.assert_clean();
}

#[test]
fn the_last_of_those_that_share_a_cgroup_takes_it_away() {
    let mut node = Node::new("podshared");
    let hierarchy = Hierarchy::detect().unwrap();
    let parent = format!("{}/pods/shared", node.cgroup);
    let run = |name: &str| {
        let mut spec = node.host_pod(name);
        spec.cgroup_parent = parent.clone();
        node.run_pod(spec)
    };
    // The first has made it, and goes first.
    let (first, second) = (run("one"), run("two"));
    node.remove_pod(&first);
    assert!(hierarchy.exists(&parent).unwrap());
    let third = run("three");
    node.remove_pod(&second);
    assert!(hierarchy.exists(&parent).unwrap());
    node.remove_pod(&third);
    assert!(!hierarchy.exists(&parent).unwrap());
    node.assert_clean();
}

#[test]
fn a_container_with_a_mebibyte_starts_in_a_limited_pod() {
    let mut node = Node::new("mebibyte");
    let pod = node.run_pod(node.host_pod("one"));
    let mut spec = node.script("one", "");
    // Nothing of the launcher is charged to it: only what this program itself needs.
    spec.command = vec!["/bin/sleep".into(), "1000".into()];
    spec.resources.memory_limit = Some(MIB);
    let id = node.run(&pod, spec);
    let path = node.status(&id).cgroup.clone();
    assert_eq!(memory(&path), Some(1 << 20));
    assert!(cgroup(&path).stats().unwrap().memory.usage <= 1 << 20);
    assert_eq!(cgroup(&path).oom_kills().unwrap(), 0);
    node.remove_pod(&pod);
    node.assert_clean();
}
