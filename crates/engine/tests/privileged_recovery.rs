//! The daemon and the monitors are killed, at the worst moments, and what was true before is true after.
#![allow(clippy::unwrap_used)]

mod node;

use std::time::Duration;

use holdfast_engine::config::bounds;
use holdfast_engine::{ExecRequest, Kind};
use holdfast_model::{ContainerState, SandboxState};
use node::{Node, alive, kill9, wait};
use rustix::process::{Pid, Signal, kill_process};

/// A node with one container, which sleeps.
struct Running {
    node: Node,
    pod: String,
    container: String,
    /// Processes: the pod's monitor, and the container's init.
    monitor: i32,
    pid: i32,
}

fn running(name: &str) -> Running {
    let node = Node::new(name);
    let pod = node.run_pod(node.host_pod("one"));
    let container = node.run(&pod, node.script("main", "sleep 1000"));
    // A start is answered before its record is written; what is asked next comes after that.
    node.sh(&container, "true");
    let monitor = node.engine().sandbox(&pod).unwrap().monitor_pid.unwrap();
    let pid = node.status(&container).pid.unwrap();
    Running {
        node,
        pod,
        container,
        monitor,
        pid,
    }
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[test]
fn the_daemon_dies_and_pods_do_not_feel_it() {
    let mut node = Node::new("daemon");
    let pod = node.run_pod(node.host_pod("one"));
    let count = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done";
    let steady = node.run(&pod, node.script("steady", count));
    let ending = node.run(
        &pod,
        node.script("ending", "while test ! -e /end; do sleep 0.01; done; exit 9"),
    );
    let waiting = node.create(&pod, node.script("waiting", "echo was here; sleep 1000"));
    let before = (node.engine().sandbox(&pod).unwrap(), node.status(&steady));
    let end_pid = node.status(&ending).pid.unwrap();

    node.crash();
    // Through its init's root: there is no daemon to exec in it.
    std::fs::write(format!("/proc/{end_pid}/root/end"), "").unwrap();
    let ends = node.state().join("pods").join(&pod).join("exits").join(&ending);
    wait("the end that no daemon saw", || ends.exists().then_some(()));
    wait("lines that no daemon saw", || {
        let log = std::fs::read_to_string(&before.1.log_path).unwrap();
        (log.lines().count() > 50).then_some(())
    });
    node.open();

    let after = (node.engine().sandbox(&pod).unwrap(), node.status(&steady));
    assert_eq!(after.0.state, SandboxState::Ready);
    assert_eq!(
        (after.0.pause_pid, after.0.monitor_pid),
        (before.0.pause_pid, before.0.monitor_pid)
    );
    assert_eq!(
        (after.1.pid, after.1.started_at),
        (before.1.pid, before.1.started_at)
    );
    assert_eq!(after.1.state, ContainerState::Running);
    assert!(alive(after.1.pid.unwrap()));
    let ended = node.status(&ending);
    assert_eq!(
        (ended.state, ended.exit.as_ref().unwrap().code),
        (ContainerState::Exited, 9)
    );
    assert!(!ended.exit.as_ref().unwrap().unknown);

    // It can be worked with as before, and no line is missing.
    node.start(&waiting);
    assert_eq!(node.sh(&steady, "echo fine"), "fine\n");
    node.block_on(node.engine().stop_container(&steady, Duration::ZERO))
        .unwrap();
    let log = node.log(&steady);
    for (n, line) in log.lines().enumerate() {
        assert_eq!(line, format!("stdout F line {}", n + 1));
    }
    assert!(log.lines().count() > 50);
    // The name is still taken.
    let error = node
        .block_on(node.engine().run_pod_sandbox(node.host_pod("one"), ""))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyExists);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn the_monitor_dies_and_another_takes_over() {
    let mut node = Node::new("monitor");
    let pod = node.run_pod(node.host_pod("one"));
    let count = "trap 'exit 4' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done";
    let steady = node.run(&pod, node.script("steady", count));
    let old = node.engine().sandbox(&pod).unwrap();
    let pid = node.status(&steady).pid.unwrap();

    kill9(old.monitor_pid.unwrap());
    let new = wait("another monitor", || {
        Some(node.engine().sandbox(&pod).unwrap()).filter(|record| record.monitor_pid != old.monitor_pid)
    });
    assert_eq!(new.state, SandboxState::Ready);
    assert_eq!(new.pause_pid, old.pause_pid);
    assert_eq!(node.status(&steady).pid, Some(pid));
    assert!(alive(pid) && alive(new.monitor_pid.unwrap()));
    assert_eq!(node.sh(&steady, "echo fine"), "fine\n");
    let lines = node.log(&steady).lines().count();
    wait("the log to go on", || {
        (node.log(&steady).lines().count() > lines + 10).then_some(())
    });
    let log = node.log(&steady);
    for (n, line) in log.lines().enumerate() {
        assert_eq!(line, format!("stdout F line {}", n + 1));
    }

    // And once more, with a daemon's restart between.
    node.crash();
    node.open();
    kill9(new.monitor_pid.unwrap());
    wait("a third monitor", || {
        Some(node.engine().sandbox(&pod).unwrap()).filter(|record| record.monitor_pid != new.monitor_pid)
    });
    assert_eq!(node.sh(&steady, "echo fine"), "fine\n");
    let fresh = node.run(&pod, node.script("fresh", "exit 3"));
    assert_eq!(node.wait_exit(&fresh).exit.as_ref().unwrap().code, 3);
    node.block_on(node.engine().stop_container(&steady, Duration::from_secs(60)))
        .unwrap();
    assert_eq!(node.status(&steady).state, ContainerState::Exited);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn a_monitor_that_does_not_answer_is_waited_for() {
    let Running {
        mut node,
        pod,
        container,
        monitor,
        pid,
    } = running("silent");
    node.crash();
    signal(monitor, Signal::STOP);
    // As many attempts as its socket takes, given up again.
    let socket = node.state().join("pods").join(&pod).join("monitor.sock");
    let attempt = || {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::NONBLOCK);
        let own = socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
        connect(&own, &SocketAddrUnix::new(&socket).unwrap())
    };
    let refused = (0..100).find_map(|_| attempt().err());
    assert_eq!(refused, Some(rustix::io::Errno::AGAIN));
    node.open();
    // It was looked for as the daemon started, and is once more a second later.
    std::thread::sleep(bounds::RECOVER + Duration::from_secs(5));
    assert_eq!(node.engine().sandbox(&pod).unwrap().state, SandboxState::Ready);
    assert_eq!(node.status(&container).state, ContainerState::Running);
    assert!(alive(pid));

    signal(monitor, Signal::CONT);
    wait("the monitor to be found", || {
        let command = ["echo".to_owned(), "fine".to_owned()];
        let request = ExecRequest {
            command: command.to_vec(),
            timeout: Some(Duration::from_secs(60)),
        };
        let output = node.block_on(node.engine().exec_sync(&container, request));
        output.ok().filter(|output| output.stdout == b"fine\n")
    });
    assert_eq!(node.status(&container).pid, Some(pid));
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn a_pod_whose_monitor_does_not_answer_can_be_removed() {
    let Running {
        mut node,
        pod,
        monitor,
        pid,
        ..
    } = running("hung");
    node.crash();
    signal(monitor, Signal::STOP);
    node.open();
    node.remove_pod(&pod);
    assert!(!alive(pid));
    wait("the monitor to end", || (!alive(monitor)).then_some(()));
    node.assert_clean();
}

#[test]
fn daemon_and_monitor_die_together() {
    let Running {
        mut node,
        pod,
        container,
        monitor,
        pid,
    } = running("both");
    node.crash();
    kill9(monitor);
    node.open();
    assert_eq!(node.engine().sandbox(&pod).unwrap().state, SandboxState::Dead);
    let record = node.status(&container);
    let exit = record.exit.clone().unwrap();
    assert_eq!((record.state, exit.code), (ContainerState::Exited, 137));
    assert_eq!(exit.reason().as_str(), "ContainerStatusUnknown");
    assert!(!alive(pid));
    let error = node
        .block_on(node.engine().create_container(&pod, node.script("next", "true")))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
    node.stop_pod(&pod);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn pause_dies_and_the_pod_is_no_longer_ready() {
    let mut node = Node::new("pause");
    let pod = node.run_pod(node.host_pod("one"));
    let container = node.run(&pod, node.script("main", "sleep 1000"));
    kill9(node.engine().sandbox(&pod).unwrap().pause_pid.unwrap());
    wait("the pod to be dead", || {
        (node.engine().sandbox(&pod).unwrap().state == SandboxState::Dead).then_some(())
    });
    // Its PID namespace went with it.
    assert_eq!(node.wait_exit(&container).exit.as_ref().unwrap().signal, 9);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn half_made_things_are_unwound_at_the_next_start() {
    let mut node = Node::new("half");
    let pod = node.run_pod(node.host_pod("one"));
    node.create(&pod, node.script("kept", "sleep 1000"));
    // Cut off in the middle: the daemon dies while it makes a pod and a container.
    for round in 0..16u64 {
        let engine = node.engine().clone();
        let (id, spec) = (pod.clone(), node.script(&format!("half-{round}"), "sleep 1000"));
        let half = node.host_pod(&format!("half-{round}"));
        let first = node.spawn({
            let engine = engine.clone();
            async move { drop(engine.create_container(&id, spec).await) }
        });
        let second = node.spawn(async move { drop(engine.run_pod_sandbox(half, "").await) });
        // From before the monitor is spawned to after the container is made.
        std::thread::sleep(Duration::from_micros(round * 500));
        first.abort();
        second.abort();
        let _ = node.block_on(first);
        let _ = node.block_on(second);
        node.crash();
        node.open();
        for record in node.engine().sandboxes() {
            if record.id.as_str() != pod {
                assert!(record.state != SandboxState::Creating, "{:?}", record.state);
                node.remove_pod(record.id.as_str());
            }
        }
        for record in node.engine().containers() {
            if record.spec.metadata.name != "kept" {
                node.block_on(node.engine().remove_container(record.id.as_str()))
                    .unwrap();
            }
        }
    }
    wait("only the kept container", || {
        (node.engine().containers().len() == 1).then_some(())
    });
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn after_a_reboot_pods_are_not_ready_and_can_be_removed() {
    let mut node = Node::new("reboot");
    let pod = node.run_pod(node.host_pod("one"));
    let container = node.run(&pod, node.script("main", "sleep 1000"));
    let monitor = node.engine().sandbox(&pod).unwrap().monitor_pid.unwrap();
    node.crash();
    // The state directory is a tmpfs and its processes are gone: as near to a reboot as a test can come.
    kill9(monitor);
    let hierarchy = holdfast_cgroups::Hierarchy::detect().unwrap();
    for name in hierarchy.children(&format!("{}/pods", node.cgroup)).unwrap() {
        let cgroup = hierarchy.open(&format!("{}/pods/{name}", node.cgroup)).unwrap();
        cgroup.kill().unwrap();
        cgroup.wait_empty(Duration::from_secs(60)).unwrap();
        cgroup.remove(Duration::from_secs(60)).unwrap();
    }
    std::fs::remove_dir_all(node.state().join("pods")).unwrap();
    node.open();
    assert_eq!(node.engine().sandbox(&pod).unwrap().state, SandboxState::Dead);
    assert!(node.status(&container).exit.as_ref().unwrap().unknown);
    node.block_on(node.engine().remove_container(&container)).unwrap();
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn monitors_move_to_another_program_in_place() {
    let mut node = Node::new("reexec");
    let pod = node.run_pod(node.host_pod("one"));
    let steady = node.run(
        &pod,
        node.script("main", "trap 'exit 6' TERM; while :; do echo x; sleep 0.01; done"),
    );
    let before = (node.engine().sandbox(&pod).unwrap(), node.status(&steady).pid);
    for outcome in node.block_on(node.engine().reexec_monitors()) {
        outcome.outcome.unwrap_or_else(|e| panic!("{}", e.chain()));
    }
    std::thread::sleep(Duration::from_millis(300));
    let after = node.engine().sandbox(&pod).unwrap();
    assert_eq!(
        (after.monitor_pid, after.pause_pid),
        (before.0.monitor_pid, before.0.pause_pid)
    );
    assert_eq!(node.status(&steady).pid, before.1);
    assert_eq!(node.sh(&steady, "echo fine"), "fine\n");
    node.block_on(node.engine().stop_container(&steady, Duration::from_secs(60)))
        .unwrap();
    assert_eq!(node.status(&steady).exit.as_ref().unwrap().code, 6);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn a_pod_whose_monitor_cannot_be_replaced_can_be_removed() {
    let mut node = Node::new("nohelper");
    let own = node.path("helpers");
    std::fs::create_dir(&own).unwrap();
    for name in ["holdfast-monitor", "holdfast-pause"] {
        std::fs::copy(node.helpers.join(name), own.join(name)).unwrap();
    }
    node.crash();
    node.helpers = own.clone();
    node.open();
    let pod = node.run_pod(node.host_pod("one"));
    let main = node.run(&pod, node.script("main", "sleep 1000"));
    let pid = node.status(&main).pid.unwrap();
    let spare = node.spare();
    std::fs::remove_file(own.join("holdfast-monitor")).unwrap();
    kill9(spare);
    kill9(node.engine().sandbox(&pod).unwrap().monitor_pid.unwrap());
    let limit = Duration::from_secs(30);
    let stopped =
        node.block_on(async { tokio::time::timeout(limit, node.engine().stop_pod_sandbox(&pod)).await });
    stopped.expect("the pod is stopped").unwrap();
    assert!(!alive(pid));
    assert!(node.status(&main).exit.as_ref().unwrap().unknown);
    node.remove_pod(&pod);
    node.assert_clean();
}
