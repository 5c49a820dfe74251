//! OCI hooks that CDI devices bring to containers of the built-in launcher.
#![allow(clippy::unwrap_used)]

mod node;

use std::path::PathBuf;
use std::time::Duration;

use holdfast_engine::Kind;
use holdfast_model::{ContainerSpec, IdMapping, NamespaceMode, UserNamespace};
use node::{Node, alive, kill9, timed, wait};
use serde_json::{Value, json};

const DEVICE: &str = "vendor.com/gpu=one";

/// As vendors' hooks do: by the bundle of the state to its configuration, from there to the root.
const EDIT: &str = r#"
bundle=$(tr ',' '\n' | grep '"bundle"' | cut -d'"' -f4)
root=$(tr ',{}' '\n\n\n' <$bundle/config.json | grep "\"path\":\"$bundle/" | cut -d'"' -f4)
[ -n "$root" ] || exit 4
mkdir -p $root/usr/lib64 && ln -s libgpu.so.1 $root/usr/lib64/libgpu.so && echo vendor >$root/etc/ld.so.cache
echo edited >>$SEEN/order
"#;

fn hook(node: &Node, point: &str, script: &str, timeout: Option<u32>) -> Value {
    let mut hook = json!({"hookName": point, "path": "/bin/sh", "args": ["sh", "-c", script],
        "env": [format!("SEEN={}", node.path("seen").display()), "PATH=/usr/bin:/bin"]});
    if let Some(timeout) = timeout {
        hook["timeout"] = timeout.into();
    }
    hook
}

fn write_spec(node: &Node, hooks: &[Value]) {
    for dir in ["cdi", "seen"] {
        std::fs::create_dir_all(node.path(dir)).unwrap();
    }
    let spec = json!({"cdiVersion": "0.7.0", "kind": "vendor.com/gpu", "devices": [{"name": "one",
        "containerEdits": {"deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/zero"}], "hooks": hooks}}]});
    std::fs::write(node.path("cdi/gpu.json"), spec.to_string()).unwrap();
}

fn asking(node: &Node, script: &str) -> ContainerSpec {
    let mut spec = node.script("main", script);
    spec.cdi_devices = vec![DEVICE.into()];
    spec
}

fn order(node: &Node) -> String {
    std::fs::read_to_string(node.path("seen/order")).unwrap_or_default()
}

fn bundles(node: &Node) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(node.state().join("bundles"))
        .into_iter()
        .flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn pid_in(node: &Node, name: &str) -> i32 {
    wait("the hook to run", || {
        let text = std::fs::read_to_string(node.path("seen").join(name)).ok()?;
        text.trim().parse().ok()
    })
}

#[test]
fn a_devices_hooks_are_run_and_a_dead_daemon_hinders_none() {
    let mut node = Node::new("hooks");
    let note = |what: &str| format!("echo {what} >>$SEEN/order");
    write_spec(
        &node,
        &[
            hook(&node, "createContainer", EDIT, None),
            hook(&node, "createRuntime", &note("created"), Some(5)),
            hook(&node, "poststart", &note("started"), None),
            hook(&node, "poststop", &note("stopped"), None),
        ],
    );
    let pod = node.run_pod(node.host_pod("one"));
    let mut spec = asking(&node, "while [ ! -e /stop ]; do sleep 0.1; done");
    spec.security.readonly_rootfs = false;
    let main = node.run(&pod, spec);
    assert_eq!(order(&node), "created\nedited\nstarted\n");
    assert_eq!(
        node.sh(
            &main,
            "readlink /usr/lib64/libgpu.so; cat /etc/ld.so.cache; head -c 2 /dev/gpu0 | wc -c"
        ),
        "libgpu.so.1\nvendor\n2\n"
    );
    assert_eq!(bundles(&node).len(), 1);
    // A container without hooks has no bundle.
    let plain = node.run(&pod, node.script("plain", "sleep 1000"));
    assert_eq!(bundles(&node).len(), 1);
    let pid = node.status(&main).pid.unwrap();
    node.crash();
    kill9(pid);
    wait("the poststop hook", || {
        order(&node).ends_with("started\nstopped\n").then_some(())
    });
    wait("the end of the bundle", || {
        bundles(&node).is_empty().then_some(())
    });
    node.open();
    assert_eq!(node.wait_exit(&main).exit.as_ref().unwrap().code, 137);
    assert_eq!(node.sh(&plain, "echo there"), "there\n");
    node.remove_pod(&pod);
    assert_eq!(order(&node), "created\nedited\nstarted\nstopped\n", "once only");
    node.assert_clean();
}

#[test]
fn a_replacement_of_a_killed_monitor_runs_what_is_owed() {
    let mut node = Node::new("hooksadopted");
    write_spec(
        &node,
        &[hook(&node, "poststop", "echo stopped >>$SEEN/order", None)],
    );
    let pod = node.run_pod(node.host_pod("one"));
    let main = node.run(&pod, asking(&node, "sleep 1000"));
    let monitor = node.engine().sandboxes()[0].monitor_pid.unwrap();
    kill9(monitor);
    wait("another monitor", || {
        let pid = node.engine().sandboxes()[0].monitor_pid?;
        (pid != monitor && alive(pid)).then_some(())
    });
    wait("the other monitor to serve", || {
        let request = node.block_on(node.engine().stop_container(&main, Duration::ZERO));
        request.ok()
    });
    wait("the poststop hook", || {
        (order(&node) == "stopped\n").then_some(())
    });
    node.remove_pod(&pod);
    node.assert_clean();
    assert!(bundles(&node).is_empty());
}

/// A poststart hook keeps the answer to the start back, and the monitor does not live to give it: the container runs, and its client
/// was told that it was not started.
#[test]
fn a_start_that_its_monitor_did_not_live_to_answer_is_not_left_running() {
    let mut node = Node::new("hookslate");
    write_spec(
        &node,
        &[hook(
            &node,
            "poststart",
            "echo $$ >$SEEN/hook; sleep 1000",
            Some(20),
        )],
    );
    let pod = node.run_pod(node.host_pod("one"));
    let main = node.create(&pod, asking(&node, "sleep 1000"));
    let (engine, id) = (node.engine().clone(), main.clone());
    let starting = node.spawn(async move { engine.start_container(&id).await });
    let _started = pid_in(&node, "hook");
    let pid = node.status(&main).pid.unwrap();
    kill9(node.engine().sandboxes()[0].monitor_pid.unwrap());
    let error = node.block_on(starting).unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
    let ended = node.wait_exit(&main);
    assert_eq!(ended.started_at, 0, "it was never told to run");
    assert!(!alive(pid));
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn what_fails_is_told_and_unwound() {
    let mut node = Node::new("hooksfail");
    let pod = node.run_pod(node.host_pod("one"));
    let stopped = |node: &Node| hook(node, "poststop", "echo stopped >>$SEEN/order", None);
    let cases = [
        (
            json!({"hookName": "createContainer", "path": "/nowhere/nvidia-ctk"}),
            Kind::NotFound,
            "createContainer hook /nowhere/nvidia-ctk: it could not be run",
        ),
        (
            hook(&node, "createRuntime", "echo 'no driver' >&2; exit 3", None),
            Kind::Internal,
            "createRuntime hook /bin/sh: exit code 3: no driver",
        ),
        (
            hook(&node, "createContainer", "sleep 1000", Some(1)),
            Kind::Internal,
            "killed after 1 s (its timeout)",
        ),
    ];
    for (broken, kind, words) in cases {
        write_spec(&node, &[broken, stopped(&node)]);
        let failed = node
            .block_on(node.engine().create_container(&pod, asking(&node, "true")))
            .unwrap_err();
        let text = failed.chain();
        assert!(text.contains(words) && text.contains("/one/main: "), "{text}");
        assert_eq!(failed.kind(), kind, "{text}");
        assert!(node.engine().containers().is_empty() && bundles(&node).is_empty());
    }
    assert_eq!(order(&node), "stopped\n".repeat(3));
    // In the container, at its start.
    write_spec(
        &node,
        &[
            json!({"hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 5"]}),
            stopped(&node),
        ],
    );
    let main = node.create(&pod, asking(&node, "true"));
    let failed = node.block_on(node.engine().start_container(&main)).unwrap_err();
    assert!(
        failed
            .chain()
            .contains("startContainer hook /bin/sh: exit code 5: no"),
        "{}",
        failed.chain()
    );
    wait("the poststop hook", || {
        (order(&node) == "stopped\n".repeat(4)).then_some(())
    });
    node.block_on(node.engine().remove_container(&main)).unwrap();
    // One that the container has not got, and one that it may not execute.
    for (path, kind) in [("/nowhere/tool", Kind::NotFound), ("/etc/passwd", Kind::Invalid)] {
        write_spec(&node, &[json!({"hookName": "startContainer", "path": path})]);
        let main = node.create(&pod, asking(&node, "true"));
        let failed = node.block_on(node.engine().start_container(&main)).unwrap_err();
        assert_eq!(failed.kind(), kind, "{}", failed.chain());
        let exit = node.wait_exit(&main).exit.clone().unwrap();
        assert!(exit.start_failed, "{exit:?}");
        assert!(
            exit.message.contains(path) && exit.message.contains("could not be run"),
            "{exit:?}"
        );
        node.block_on(node.engine().remove_container(&main)).unwrap();
    }
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn a_hook_that_hangs_while_the_daemon_dies_leaves_nothing() {
    let mut node = Node::new("hookshang");
    let hanging = "echo $$ >$SEEN/hook; sleep 1000 & echo $! >$SEEN/child; wait";
    write_spec(&node, &[hook(&node, "createRuntime", hanging, Some(3))]);
    let pod = node.run_pod(node.host_pod("one"));
    let (engine, spec) = (node.engine().clone(), asking(&node, "true"));
    let asked = pod.clone();
    let _never =
        node.spawn(async move { engine.create_container(&asked, spec).await.map_err(|e| e.chain()) });
    let (hook, child) = (pid_in(&node, "hook"), pid_in(&node, "child"));
    // Nothing else of the pod waits for it.
    timed("a container beside", || {
        node.run(&pod, node.script("beside", "sleep 1000"))
    });
    node.crash();
    wait("the hook's end", || (!alive(hook) && !alive(child)).then_some(()));
    node.open();
    wait("the container's end", || {
        (node.engine().containers().len() == 1).then_some(())
    });
    assert!(bundles(&node).is_empty(), "{:?}", bundles(&node));
    node.remove_pod(&pod);
    node.assert_clean();
}

/// The first of them makes the directory of bundles a mount; the others, at the same time, must not.
#[test]
fn the_bundles_are_mounted_once() {
    let mut node = Node::new("hooksmount");
    write_spec(&node, &[hook(&node, "createRuntime", "true", None)]);
    let pod = node.run_pod(node.host_pod("one"));
    let creating: Vec<_> = (0..8)
        .map(|n| {
            let mut spec = asking(&node, "true");
            spec.metadata.name = format!("c{n}");
            let (engine, pod) = (node.engine().clone(), pod.clone());
            node.spawn(async move { engine.create_container(&pod, spec).await.map_err(|e| e.chain()) })
        })
        .collect();
    for one in creating {
        node.block_on(one).unwrap().unwrap();
    }
    let place = node.state().join("bundles").display().to_string();
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let mounts = table
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some(&place));
    assert_eq!(mounts.count(), 1, "{table}");
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn hooks_in_a_user_namespace_are_refused() {
    let mut node = Node::new("hooksids");
    write_spec(&node, &[hook(&node, "createContainer", EDIT, None)]);
    let mut spec = node.pod("one");
    let map = IdMapping {
        host_id: 300_000,
        container_id: 0,
        length: 65_536,
    };
    spec.security.namespaces.user = Some(UserNamespace {
        mode: NamespaceMode::Pod,
        uids: vec![map],
        gids: vec![map],
    });
    let pod = node.run_pod(spec);
    let refused = node
        .block_on(node.engine().create_container(&pod, asking(&node, "true")))
        .unwrap_err();
    assert_eq!(refused.kind(), Kind::Unsupported);
    assert!(refused.to_string().contains("user namespace"), "{refused}");
    assert!(refused.to_string().contains(DEVICE), "{refused}");
    assert!(node.engine().containers().is_empty());
    node.remove_pod(&pod);
    node.assert_clean();
}
