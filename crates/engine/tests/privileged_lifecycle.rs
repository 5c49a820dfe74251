//! A pod from nothing to nothing, on the real kernel with the real monitor, launcher and pause.
#![allow(clippy::unwrap_used)]

mod node;

use std::time::{Duration, Instant};

use holdfast_engine::{ExecRequest, Kind};
use holdfast_model::{ContainerState, Mount, SandboxState};
use node::{Node, alive, timed, wait};

#[test]
fn a_host_network_pod_runs_and_leaves_nothing() {
    let mut node = Node::new("host");
    let pod = timed("run", || node.run_pod(node.host_pod("one")));
    let record = node.engine().sandbox(&pod).unwrap();
    assert_eq!(record.state, SandboxState::Ready);
    assert!(record.ips.is_empty());

    let script = "trap 'echo bye; exit 7' TERM; echo out; echo err >&2; while :; do sleep 0.05; done";
    let container = timed("create", || node.create(&pod, node.script("main", script)));
    assert_eq!(node.status(&container).state, ContainerState::Created);
    timed("start", || node.start(&container));
    let running = node.status(&container);
    assert_eq!(running.state, ContainerState::Running);
    assert!(running.started_at >= running.created_at);
    assert!(alive(running.pid.unwrap()));

    let done = timed("exec", || {
        node.exec(&container, &["/bin/sh", "-c", "echo hello; exit 3"])
    });
    assert_eq!(
        (done.exit_code, done.stdout.as_slice()),
        (3, b"hello\n".as_slice())
    );
    assert_eq!(node.sh(&container, "cat /proc/1/comm"), "pause\n");
    assert_eq!(node.sh(&container, "hostname"), format!("{}\n", record.hostname));

    wait("both lines in the log", || {
        (node.log(&container).lines().count() == 2).then_some(())
    });
    timed("stop", || {
        node.block_on(node.engine().stop_container(&container, Duration::from_secs(10)))
            .unwrap();
    });
    let ended = node.status(&container);
    let exit = ended.exit.clone().unwrap();
    assert_eq!(
        (ended.state, exit.code, exit.reason().as_str()),
        (ContainerState::Exited, 7, "Error")
    );
    assert!(ended.finished_at >= ended.started_at);
    let log = node.log(&container);
    for line in ["stdout F out\n", "stderr F err\n", "stdout F bye\n"] {
        assert!(log.contains(line), "{log}");
    }

    timed("stop pod", || node.stop_pod(&pod));
    assert_eq!(node.engine().sandbox(&pod).unwrap().state, SandboxState::Stopped);
    // Each may be repeated.
    node.stop_pod(&pod);
    timed("remove pod", || node.remove_pod(&pod));
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn exits_are_told_as_they_were() {
    let mut node = Node::new("exits");
    let pod = node.run_pod(node.host_pod("one"));
    let zero = node.run(&pod, node.script("zero", "true"));
    let five = node.run(&pod, node.script("five", "exit 5"));
    let killed = node.run(&pod, node.script("killed", "kill -9 $$"));
    let quick = node.wait_exit(&zero);
    assert_eq!(quick.exit.as_ref().unwrap().reason().as_str(), "Completed");
    assert_eq!(node.wait_exit(&five).exit.as_ref().unwrap().code, 5);
    let exit = node.wait_exit(&killed).exit.clone().unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, 9, false));

    let mut missing = node.script("missing", "");
    missing.command = vec!["/no/such/program".into()];
    let id = node.create(&pod, missing);
    let error = node.block_on(node.engine().start_container(&id)).unwrap_err();
    assert!(error.chain().contains("/no/such/program"), "{}", error.chain());
    let exit = node.wait_exit(&id).exit.clone().unwrap();
    assert_eq!((exit.code, exit.reason().as_str()), (128, "StartError"));

    // Nothing can be started twice, or executed in what has ended.
    let error = node.block_on(node.engine().start_container(&zero)).unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
    let request = ExecRequest {
        command: vec!["true".into()],
        timeout: None,
    };
    let error = node
        .block_on(node.engine().exec_sync(&zero, request))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn stops_are_shortened_and_forced() {
    let mut node = Node::new("stops");
    let pod = node.run_pod(node.host_pod("one"));
    let deaf = node.run(
        &pod,
        node.script("deaf", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"),
    );
    wait("its ears to be shut", || {
        node.log(&deaf).contains("deaf").then_some(())
    });
    let start = Instant::now();
    let engine = node.engine().clone();
    let id = deaf.clone();
    let long = node.spawn(async move { engine.stop_container(&id, Duration::from_secs(600)).await });
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(node.status(&deaf).state, ContainerState::Running);
    node.block_on(node.engine().stop_container(&deaf, Duration::from_millis(200)))
        .unwrap();
    node.block_on(long).unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_secs(120));
    assert_eq!(node.status(&deaf).exit.as_ref().unwrap().signal, 9);

    // Removed by force while it runs.
    let other = node.run(&pod, node.script("other", "sleep 1000"));
    node.block_on(node.engine().remove_container(&other)).unwrap();
    assert_eq!(
        node.engine().container(&other).unwrap_err().kind(),
        Kind::NotFound
    );
    node.block_on(node.engine().remove_container(&other)).unwrap();
    // A pod goes down with what runs in it, and without grace.
    let last = node.run(&pod, node.script("last", "trap '' TERM; sleep 1000"));
    let pid = node.status(&last).pid.unwrap();
    timed("remove a pod with a running container", || node.remove_pod(&pod));
    assert!(!alive(pid));
    node.assert_clean();
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let mut node = Node::new("fails");
    let pod = node.run_pod(node.host_pod("one"));
    let mut spec = node.script("bad", "true");
    spec.mounts = vec![Mount {
        container_path: "/x".into(),
        host_path: "/no/such/source".into(),
        ..Mount::default()
    }];
    let error = node
        .block_on(node.engine().create_container(&pod, spec))
        .unwrap_err();
    assert!(error.chain().contains("/no/such/source"), "{}", error.chain());
    let mut spec = node.script("bad", "true");
    spec.image.image = "localhost/none:latest".into();
    let error = node
        .block_on(node.engine().create_container(&pod, spec))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    let mut spec = node.script("bad", "true");
    spec.security.run_as_username = "nobody-here".into();
    let error = node
        .block_on(node.engine().create_container(&pod, spec))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(node.engine().containers().is_empty());
    // The name was given back each time.
    node.create(&pod, node.script("bad", "true"));
    node.remove_pod(&pod);

    let mut spec = node.host_pod("two");
    spec.cgroup_parent = "kubepods-pod1.slice".into();
    let error = node
        .block_on(node.engine().run_pod_sandbox(spec, ""))
        .unwrap_err();
    assert!(error.to_string().contains("systemd"), "{error}");
    let error = node
        .block_on(node.engine().run_pod_sandbox(node.host_pod("two"), "gvisor"))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "runtime handler \"gvisor\" is not configured; there are \"\" (the default), \"holdfast\""
    );
    node.assert_clean();
}

/// Makes a call and goes away without its answer.
async fn begin<T>(call: impl Future<Output = T>) {
    let mut call = std::pin::pin!(call);
    std::future::poll_fn(|context| {
        assert!(call.as_mut().poll(context).is_pending(), "answered at once");
        std::task::Poll::Ready(())
    })
    .await;
}

#[test]
fn names_are_taken_once_and_retries_join() {
    let mut node = Node::with("names", Duration::from_secs(2));
    let engine = node.engine().clone();
    let spec = node.host_pod("one");
    // Ten at a time are one pod.
    let ids: Vec<String> = node.block_on(async {
        let calls = (0..10).map(|_| {
            let (engine, spec) = (engine.clone(), spec.clone());
            tokio::spawn(async move { engine.run_pod_sandbox(spec, "").await })
        });
        let mut ids = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            match call.await.unwrap() {
                Ok(id) => ids.push(id.to_string()),
                Err(error) => assert_eq!(error.kind(), Kind::AlreadyExists, "{error}"),
            }
        }
        ids
    });
    assert!(!ids.is_empty() && ids.iter().all(|id| *id == ids[0]));
    let error = node
        .block_on(engine.run_pod_sandbox(spec.clone(), ""))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyExists);
    let pod = ids[0].clone();
    // Another attempt is another pod.
    let mut second = spec;
    second.metadata.attempt = 1;
    let second = node.run_pod(second);
    assert_ne!(pod, second);

    // A caller that goes away: the work goes on, and a retry of the same gets its result.
    let wanted = node.script("main", "sleep 1000");
    let retried = node.block_on(async {
        begin(engine.create_container(&pod, wanted.clone())).await;
        engine
            .create_container(&pod, wanted.clone())
            .await
            .unwrap()
            .to_string()
    });
    assert_eq!(node.engine().containers().len(), 1);
    node.start(&retried);
    // Nobody comes back for this one: it is unwound.
    let lost = node.script("lost", "sleep 1000");
    node.block_on(begin(engine.create_container(&pod, lost)));
    wait("the container to be there", || {
        (node.engine().containers().len() == 2).then_some(())
    });
    wait("the container to be unwound", || {
        (node.engine().containers().len() == 1).then_some(())
    });
    assert_eq!(node.status(&retried).state, ContainerState::Running);
    drop(engine);
    node.remove_pod(&pod);
    node.remove_pod(&second);
    node.assert_clean();
}

#[test]
fn a_pod_whose_answer_nobody_heard_is_kept_once_it_is_used() {
    let mut node = Node::with("claimed", Duration::from_secs(2));
    let engine = node.engine().clone();
    node.block_on(begin(engine.run_pod_sandbox(node.host_pod("one"), "")));
    let pod = wait("the pod to be ready", || {
        let pods = node.engine().sandboxes();
        let ready = pods.iter().find(|pod| pod.state == SandboxState::Ready);
        ready.map(|pod| pod.id.to_string())
    });
    let main = node.run(&pod, node.script("main", "sleep 1000"));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(node.status(&main).state, ContainerState::Running);
    drop(engine);
    node.remove_pod(&pod);
    node.assert_clean();
}
