//! `holdfast serve` as a process: its socket, its lock, its end, and a pod that does not notice any of it.
//!
//! Needs root, the helpers (`HOLDFAST_HELPERS`) and busybox-static; the network is a throw-away namespace.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod node;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use node::{Node, said};

#[test]
fn one_socket_one_server_one_clean_end() {
    let node = Node::new();
    let daemon = node.serve();
    let mode = std::fs::metadata(node.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);

    let config = node.path("config.toml");
    let second = node
        .command(&["serve", "--config", config.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(said(&second).contains("another holdfast"), "{}", said(&second));
    let other_root = node.path("other");
    let args = [
        "serve",
        "--config",
        config.to_str().unwrap(),
        "--root",
        other_root.to_str().unwrap(),
    ];
    let second = node.command(&args).output().unwrap();
    assert!(
        said(&second).contains("another server listens"),
        "{}",
        said(&second)
    );

    assert!(daemon.signal(Signal::SIGTERM).success());
    assert!(!node.socket().exists());
    // A server that died leaves its socket; the next one takes its place.
    assert!(!node.serve().signal(Signal::SIGKILL).success());
    assert!(node.socket().exists());
    assert!(node.serve().signal(Signal::SIGINT).success());
}

#[test]
fn listeners_hold_up_no_end() {
    use holdfast_cri_api::v1::GetEventsRequest;
    use holdfast_cri_api::v1::runtime_service_client::RuntimeServiceClient;

    let node = Node::new();
    let daemon = node.serve();
    let socket = node.socket();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut streams = runtime.block_on(async {
        let connect = tower::service_fn(move |_: tonic::transport::Uri| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(socket).await;
                stream.map(hyper_util::rt::TokioIo::new)
            }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
        let mut client = RuntimeServiceClient::new(endpoint.connect_with_connector(connect).await.unwrap());
        let mut streams = Vec::new();
        for _ in 0..3 {
            let reply = client.get_container_events(GetEventsRequest {}).await.unwrap();
            streams.push(reply.into_inner());
        }
        streams
    });
    let start = Instant::now();
    kill(
        Pid::from_raw(daemon.child.id().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    runtime.block_on(async {
        for stream in &mut streams {
            let told = stream.message().await.unwrap_err();
            assert_eq!(told.code(), tonic::Code::Unavailable);
        }
    });
    drop(streams);
    // Much less than the time that calls in flight are given (`drain`).
    assert!(daemon.signal(Signal::SIGTERM).success());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_pod_outlives_its_server() {
    let node = Node::new();
    let archive = node.archive("localhost/busybox:1");
    let daemon = node.serve();
    node.run(&["image", "load", archive.to_str().unwrap()]);
    let script = "i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo $i; sleep 0.02; done; \
                  while [ ! -e /end ]; do sleep 0.05; done; exit 5";
    let logs = node.path("logs");
    let run = [
        "run",
        "--pull",
        "never",
        "--host-network",
        "--name",
        "t",
        "--log-directory",
        logs.to_str().unwrap(),
    ];
    let id = node.run(&[&run[..], &["localhost/busybox:1", "sh", "-c", script]].concat());
    let exec = node
        .command(&["exec", "t", "sh", "-c", "echo out; echo err >&2; exit 7"])
        .output()
        .unwrap();
    assert_eq!(
        (exec.status.code(), exec.stdout.as_slice(), exec.stderr.as_slice()),
        (Some(7), &b"out\n"[..], &b"err\n"[..])
    );
    let pid = node.run(&["inspect", &id, "--field", "info.pid"]);

    daemon.signal(Signal::SIGKILL);
    std::thread::sleep(Duration::from_millis(500));
    assert!(
        Path::new("/proc").join(&pid).exists(),
        "the container died with the server"
    );
    std::fs::write(Path::new("/proc").join(&pid).join("root/end"), "").unwrap();
    let daemon = node.serve();
    node.until("the container ends", || {
        node.run(&["inspect", &id, "--field", "status.state"]) == "CONTAINER_EXITED"
    });
    assert_eq!(node.run(&["inspect", &id, "--field", "status.exitCode"]), "5");
    let lines: Vec<String> = node.run(&["logs", &id]).lines().map(str::to_owned).collect();
    assert_eq!(lines, (1..=100).map(|n| n.to_string()).collect::<Vec<_>>());

    node.run(&["stop", "t"]);
    node.run(&["rm", "t"]);
    assert_eq!(node.run(&["pods", "-q"]), "");
    for left in [
        "root/records/pods",
        "root/records/containers",
        "root/snapshots",
        "state/pods",
    ] {
        let count = std::fs::read_dir(node.path(left)).map_or(0, Iterator::count);
        assert_eq!(count, 0, "{left} is not empty");
    }
    assert!(daemon.signal(Signal::SIGTERM).success());
}
