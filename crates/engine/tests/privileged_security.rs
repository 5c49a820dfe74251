//! What containers are allowed, limited to and shown, as they see it themselves.
#![allow(clippy::unwrap_used)]

mod node;

use std::time::Duration;

use holdfast_engine::Kind;
use holdfast_model::{
    Capabilities, ContainerId, EnvVar, GroupsPolicy, Mount, NamespaceMode, Namespaces, Propagation,
    SecurityProfile,
};
use node::{Node, wait};

#[test]
fn identity_environment_and_capabilities() {
    let mut node = Node::new("identity");
    let pod = node.run_pod(node.host_pod("one"));
    let mut spec = node.script("user", "sleep 1000");
    spec.security.run_as_user = Some(1234);
    spec.security.run_as_group = Some(99);
    spec.security.supplemental_groups = vec![5, 6];
    spec.security.groups_policy = GroupsPolicy::Strict;
    spec.security.no_new_privs = true;
    spec.security.seccomp = Some(SecurityProfile::RuntimeDefault);
    spec.security.readonly_rootfs = true;
    spec.working_dir = "/made/for/it".into();
    spec.envs = vec![EnvVar::new("GREETING", "hello\nworld")];
    let user = node.run(&pod, spec);
    assert_eq!(node.sh(&user, "id -u; id -g; id -G"), "1234\n99\n99 5 6\n");
    assert_eq!(node.status(&user).user.groups, [99, 5, 6]);
    assert_eq!(
        node.sh(&user, "pwd; echo \"$GREETING\"; echo $HOME"),
        "/made/for/it\nhello\nworld\n/\n"
    );
    let status = node.sh(&user, "cat /proc/self/status");
    assert!(
        status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"),
        "{status}"
    );
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    assert_ne!(node.exec(&user, &["touch", "/x"]).exit_code, 0);

    let mut spec = node.script("caps", "sleep 1000");
    spec.security.capabilities = Capabilities {
        add: vec!["KILL".into(), "NET_BIND_SERVICE".into()],
        drop: vec!["ALL".into()],
        add_ambient: vec![],
    };
    let caps = node.run(&pod, spec);
    // 1<<5 | 1<<10
    assert!(
        node.sh(&caps, "cat /proc/self/status")
            .contains("CapBnd:\t0000000000000420")
    );
    assert!(node.sh(&caps, "cat /proc/1/status").contains("Seccomp:\t"));
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn privileged_or_not() {
    let mut node = Node::new("privileged");
    let mut spec = node.host_pod("one");
    spec.security.privileged = true;
    let pod = node.run_pod(spec);
    let mut spec = node.script("plain", "sleep 1000");
    spec.security.masked_paths = vec!["/proc/kcore".into(), "/proc/timer_list".into()];
    spec.security.readonly_paths = vec!["/proc/sys".into()];
    let plain = node.run(&pod, spec);
    assert_eq!(node.sh(&plain, "head -c 10 /proc/timer_list | wc -c"), "0\n");
    assert_ne!(
        node.exec(&plain, &["/bin/sh", "-c", "echo 1 >/proc/sys/kernel/msgmax"])
            .exit_code,
        0
    );
    assert_ne!(
        node.exec(&plain, &["/bin/sh", "-c", "mount -t tmpfs x /tmp"])
            .exit_code,
        0
    );
    assert!(
        node.sh(&plain, "grep ' /sys ' /proc/self/mounts")
            .contains(" ro,")
    );

    let mut spec = node.script("privileged", "sleep 1000");
    spec.security.privileged = true;
    let privileged = node.run(&pod, spec);
    node.sh(&privileged, "mount -t tmpfs x /tmp");
    assert!(
        node.sh(&privileged, "grep ' /sys ' /proc/self/mounts")
            .contains(" rw,")
    );
    // Whatever device files the host has.
    assert_eq!(node.sh(&privileged, "ls /dev/full /dev/null | wc -l"), "2\n");
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn limits_and_running_out_of_memory() {
    let mut node = Node::new("limits");
    let pod = node.run_pod(node.host_pod("one"));
    let mut spec = node.script("hungry", "sleep 0.2; x=x; while :; do x=$x$x$x$x; done");
    spec.resources.memory_limit = Some(16 << 20);
    spec.resources.cpu_period = Some(100_000);
    spec.resources.cpu_quota = Some(50_000);
    spec.resources.cpu_shares = Some(512);
    let hungry = node.run(&pod, spec);
    let exit = node.wait_exit(&hungry).exit.clone().unwrap();
    assert_eq!(
        (exit.code, exit.oom_killed, exit.reason().as_str()),
        (137, true, "OOMKilled")
    );
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn namespaces_are_shared_as_asked() {
    let mut node = Node::new("namespaces");
    let mut spec = node.host_pod("one");
    spec.security.namespaces.pid = NamespaceMode::Container;
    let pod = node.run_pod(spec);
    let own = node.run(&pod, node.script("own", "exec sleep 1234"));
    assert_eq!(node.sh(&own, "cat /proc/1/comm"), "sleep\n");
    let mut spec = node.script("beside", "exec sleep 1000");
    let target = ContainerId::parse(&own).unwrap();
    let target = Namespaces {
        network: NamespaceMode::Node,
        pid: NamespaceMode::Target(target),
        ..Namespaces::default()
    };
    spec.security.namespaces = Some(target);
    let beside = node.run(&pod, spec.clone());
    assert!(
        node.sh(&beside, "cat /proc/1/cmdline")
            .starts_with("sleep\x001234")
    );
    // Shared memory is the pod's.
    node.sh(&own, "echo shared >/dev/shm/file");
    assert_eq!(node.sh(&beside, "cat /dev/shm/file"), "shared\n");
    let absent = ContainerId::from_bytes([9; 32]);
    spec.metadata.name = "lost".into();
    spec.security.namespaces.as_mut().unwrap().pid = NamespaceMode::Target(absent);
    let error = node
        .block_on(node.engine().create_container(&pod, spec))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    node.remove_pod(&pod);

    let mut spec = node.host_pod("two");
    spec.security.namespaces.pid = NamespaceMode::Node;
    spec.security.namespaces.ipc = NamespaceMode::Node;
    let pod = node.run_pod(spec);
    let host = node.run(&pod, node.script("host", "sleep 1000"));
    // With the host's PID namespace nothing dies with init: the whole cgroup is killed.
    node.sh(&host, "sleep 4321 & echo $!");
    assert!(
        node.sh(&host, "ls /proc | grep -c '^[0-9]'")
            .trim()
            .parse::<u32>()
            .unwrap()
            > 5
    );
    node.block_on(node.engine().stop_container(&host, Duration::ZERO))
        .unwrap();
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn volumes_propagate_as_asked() {
    let mut node = Node::new("volumes");
    let pod = node.run_pod(node.host_pod("one"));
    let volume = node.scratch.dir("volume");
    // Mounts arrive only from where mounts are shared.
    holdfast_testkit::mount_tmpfs(&volume);
    let shared = rustix::mount::MountPropagationFlags::SHARED;
    rustix::mount::mount_change(&volume, shared).unwrap();
    std::fs::write(volume.join("file"), "from the host\n").unwrap();
    let mount = |path: &str| Mount {
        container_path: path.into(),
        host_path: volume.to_string_lossy().into_owned(),
        ..Mount::default()
    };
    let mut spec = node.script("main", "sleep 1000");
    spec.mounts = vec![
        mount("/rw"),
        Mount {
            readonly: true,
            ..mount("/ro")
        },
        Mount {
            readonly: true,
            recursive_read_only: true,
            ..mount("/rro")
        },
        Mount {
            container_path: "/etc/single".into(),
            host_path: volume.join("file").to_string_lossy().into(),
            ..Mount::default()
        },
        Mount {
            propagation: Propagation::HostToContainer,
            ..mount("/slave")
        },
    ];
    let main = node.run(&pod, spec);
    node.sh(&main, "echo changed >/rw/file");
    assert_eq!(node.sh(&main, "cat /ro/file /etc/single"), "changed\nchanged\n");
    // What is mounted on the host later arrives where it was asked for, and nowhere else.
    holdfast_testkit::mount_tmpfs(&volume.join("below"));
    std::fs::write(volume.join("below/late"), "late\n").unwrap();
    assert_eq!(node.sh(&main, "cat /slave/below/late"), "late\n");
    assert_ne!(node.exec(&main, &["cat", "/rw/below/late"]).exit_code, 0);
    for path in ["/ro", "/rro"] {
        assert_ne!(
            node.exec(&main, &["touch", &format!("{path}/x")]).exit_code,
            0,
            "{path}"
        );
    }
    node.remove_pod(&pod);
    for mount in [volume.join("below"), volume] {
        rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::empty()).unwrap();
    }
    node.assert_clean();
}

#[test]
fn terminals_and_exec_limits() {
    let mut node = Node::new("terminals");
    let pod = node.run_pod(node.host_pod("one"));
    let mut spec = node.script("tty", "test -t 0 && echo terminal; echo $TERM; sleep 1000");
    spec.tty = true;
    spec.stdin = true;
    let tty = node.run(&pod, spec);
    wait("the log", || node.log(&tty).contains("xterm").then_some(()));
    assert!(node.log(&tty).contains("stdout F terminal"), "{}", node.log(&tty));

    // Killed with its children when time is up.
    let request = holdfast_engine::ExecRequest {
        command: vec![
            "/bin/sh".into(),
            "-c".into(),
            "sleep 1111 & echo begun; sleep 2222".into(),
        ],
        timeout: Some(Duration::from_secs(2)),
    };
    let done = node.block_on(node.engine().exec_sync(&tty, request)).unwrap();
    assert!(done.timed_out && done.stdout == b"begun\n");
    wait("its children to be gone", || {
        (!node
            .sh(&tty, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
            .contains("sleep 1111"))
        .then_some(())
    });
    // What is too much is thrown away, and said to be.
    let much = node.exec(&tty, &["/bin/sh", "-c", "head -c 20000000 /dev/zero"]);
    assert_eq!(much.stdout.len(), 16 * 1024 * 1024 - 64 * 1024);
    assert_eq!(much.discarded, 20_000_000 - much.stdout.len() as u64);
    // A grandchild that keeps the pipe does not keep the call.
    let kept = node.exec(&tty, &["/bin/sh", "-c", "sleep 5 & echo done"]);
    assert_eq!(kept.stdout, b"done\n");
    node.block_on(node.engine().reopen_container_log(&tty)).unwrap();
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn a_log_path_in_a_pod_without_a_directory_is_no_log() {
    let mut node = Node::new("nolog");
    let mut spec = node.host_pod("one");
    spec.log_directory.clear();
    let pod = node.run_pod(spec);
    let main = node.run(&pod, node.script("main", "echo heard by nobody"));
    assert_eq!(node.wait_exit(&main).exit.as_ref().unwrap().code, 0);
    assert_eq!(node.status(&main).log_path, "");
    node.remove_pod(&pod);
    node.assert_clean();
}
