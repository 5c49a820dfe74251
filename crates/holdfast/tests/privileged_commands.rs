//! The operator's commands against a server that runs: each of them once, as people and as programs see it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod node;
mod slow_registry;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use node::{Node, said};
use serde_json::Value;

const IMAGE: &str = "localhost/busybox:1";

fn json(node: &Node, args: &[&str]) -> Value {
    let text = node.run(&[args, &["-o", "json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

/// `holdfast run` of a shell script in the pod network.
fn run(node: &Node, name: &str, more: &[&str], script: &str) -> String {
    let logs = node.path("logs");
    let fixed = [
        "run",
        "--pull",
        "never",
        "--name",
        name,
        "--log-directory",
        logs.to_str().unwrap(),
    ];
    node.run(&[&fixed, more, &[IMAGE, "sh", "-c", script]].concat())
}

#[test]
fn each_command_for_people_and_for_programs() {
    let node = Node::new();
    let daemon = node.serve();
    let archive = node.archive(IMAGE);

    // Images.
    let loaded = node.run(&["image", "load", archive.to_str().unwrap()]);
    assert!(loaded.contains(IMAGE), "{loaded}");
    let table = node.run(&["images"]);
    assert!(
        table.starts_with("IMAGE") && table.contains("localhost/busybox"),
        "{table}"
    );
    let images = json(&node, &["images"]);
    assert_eq!(images["images"][0]["repoTags"][0], IMAGE);
    let id = images["images"][0]["id"].as_str().unwrap();
    assert_eq!(node.run(&["images", "-q", "--no-trunc"]), id);
    assert_eq!(node.run(&["inspect", IMAGE, "--field", "status.id"]), id);

    // A pod and a container.
    let flags = [
        "-l",
        "app=web",
        "-e",
        "GREETING=hello",
        "--memory",
        "64Mi",
        "--timings",
    ];
    let script =
        "echo $GREETING; i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo line $i; sleep 0.2; done; exit 3";
    let container = run(&node, "web", &flags, script);
    assert!(container.lines().last().unwrap().len() == 64, "{container}");
    let pods = json(&node, &["pods"]);
    assert_eq!(pods["items"][0]["metadata"]["name"], "web");
    let table = node.run(&["pods", "--state", "ready", "-l", "app=web"]);
    assert!(table.starts_with("POD") && table.contains("web"), "{table}");
    assert_eq!(node.run(&["pods", "-q", "-l", "app=other"]), "");
    let table = node.run(&["ps"]);
    assert!(table.starts_with("CONTAINER") && table.contains("web"), "{table}");
    assert_eq!(
        json(&node, &["ps", "-p", "web"])["containers"][0]["state"],
        "CONTAINER_RUNNING"
    );
    assert_eq!(node.run(&["exec", "web", "sh", "-c", "echo $GREETING"]), "hello");
    let late = node
        .command(&["exec", "--time-limit", "1s", "web", "sleep", "60"])
        .output()
        .unwrap();
    assert!(
        !late.status.success() && said(&late).contains("longer than 1s"),
        "{}",
        said(&late)
    );

    // Its log, to the end of the container.
    let begin = Instant::now();
    let followed = node.run(&["logs", "-f", "web"]);
    assert!(
        followed.starts_with("hello\nline 1\n") && followed.ends_with("line 20"),
        "{followed}"
    );
    assert!(begin.elapsed() < Duration::from_secs(15));
    assert_eq!(node.run(&["logs", "--tail", "2", "web"]), "line 19\nline 20");
    assert!(node.run(&["logs", "-t", "--tail", "1", "web"]).starts_with("20"));
    assert_eq!(node.run(&["ps", "-q"]), "");
    assert_eq!(
        json(&node, &["ps", "-a"])["containers"][0]["state"],
        "CONTAINER_EXITED"
    );
    assert_eq!(
        node.run(&["inspect", "web", "--field", "status.network.ip"])
            .split('.')
            .count(),
        4
    );

    // The end of all.
    node.run(&["stop", "web"]);
    assert_eq!(node.run(&["pods", "--state", "ready", "-q"]), "");
    node.run(&["rm", "web"]);
    assert_eq!(node.run(&["pods", "-q"]), "");
    node.run(&["image", "rm", IMAGE]);
    assert_eq!(node.run(&["images", "-q"]), "");

    let status = node.run(&["status"]);
    assert!(
        status.contains("RuntimeReady") && status.contains("NetworkReady"),
        "{status}"
    );
    assert_eq!(
        json(&node, &["status"])["status"]["conditions"][0]["status"],
        true
    );
    assert_eq!(json(&node, &["version"])["server"]["runtimeName"], "holdfast");
    assert!(daemon.signal(Signal::SIGTERM).success());
}

#[test]
fn pods_and_containers_from_the_files_of_crictl() {
    let node = Node::new();
    let daemon = node.serve();
    node.run(&["image", "load", node.archive(IMAGE).to_str().unwrap()]);
    let (pod, container) = (node.path("pod.yaml"), node.path("container.json"));
    let logs = node.path("logs");
    std::fs::write(
        &pod,
        format!(
            "metadata:\n  name: from-file\n  namespace: tests\n  uid: u1\n  attempt: 1\nhostname: filed\nlog_directory: {}\n\
             labels:\n  kind: yaml\nlinux:\n  security_context:\n    namespace_options:\n      network: 2\n",
            logs.display()
        ),
    )
    .unwrap();
    std::fs::write(
        &container,
        format!(
            r#"{{"metadata": {{"name": "boxed"}}, "image": {{"image": "{IMAGE}"}}, "command": ["sh", "-c"],
              "args": ["echo $FROM; exec sleep 1000"], "envs": [{{"key": "FROM", "value": "json"}}],
              "log_path": "boxed.log", "linux": {{"security_context": {{"namespace_options": {{"network": 2}}}}}}}}"#
        ),
    )
    .unwrap();
    let files = [
        "--pod-config",
        pod.to_str().unwrap(),
        "--container-config",
        container.to_str().unwrap(),
    ];
    node.run(&[&["run", "--pull", "never"][..], &files].concat());
    let pods = json(&node, &["pods"]);
    assert_eq!(pods["items"][0]["metadata"]["namespace"], "tests");
    assert_eq!(pods["items"][0]["labels"]["kind"], "yaml");
    node.until("the container has written", || {
        node.run(&["logs", "boxed"]) == "json"
    });
    assert!(logs.join("boxed.log").exists());
    // A file that means nothing is refused by name, and makes nothing.
    std::fs::write(&container, r#"{"metadata": {"name": "x"}, "imagee": 1}"#).unwrap();
    let refused = node
        .command(&[&["run", "--pull", "never"][..], &files].concat())
        .output()
        .unwrap();
    let text = said(&refused);
    assert!(
        !refused.status.success() && text.contains("container.json") && text.contains("imagee"),
        "{text}"
    );
    assert_eq!(json(&node, &["pods"])["items"].as_array().unwrap().len(), 1);
    node.run(&["rm", "--force", "--all"]);
    assert!(daemon.signal(Signal::SIGTERM).success());
}

#[test]
fn a_pull_shows_a_bar_on_a_terminal_and_nothing_elsewhere() {
    let node = Node::new();
    let daemon = node.serve();
    let reference = slow_registry::start();

    // script(1) gives the command a terminal.
    let pull = format!("{} pull {reference}", env!("CARGO_BIN_EXE_holdfast"));
    let shown = Command::new("script")
        .args(["-qec", &pull, "/dev/null"])
        .env("CONTAINER_RUNTIME_ENDPOINT", node.socket())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success(), "{text}\n{}", node.log());
    assert!(
        text.contains('█') && text.contains("of 1 layers") && text.contains("sha256:"),
        "{text}"
    );

    let plain = node.command(&["pull", &reference]).output().unwrap();
    assert!(
        plain.status.success() && plain.stderr.is_empty(),
        "{}",
        said(&plain)
    );
    assert!(String::from_utf8_lossy(&plain.stdout).starts_with("sha256:"));
    assert!(
        json(&node, &["pull", &reference])["imageRef"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    assert!(daemon.signal(Signal::SIGTERM).success());
}

fn parent(pid: &str) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ")
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .to_owned()
}

fn program(pid: &str) -> (u64, u64) {
    let meta = std::fs::metadata(Path::new("/proc").join(pid).join("exe")).unwrap();
    (meta.dev(), meta.ino())
}

#[test]
fn monitors_are_upgraded_below_running_pods() {
    let node = Node::new();
    let helpers: PathBuf = node.own_helpers();
    let daemon = node.serve();
    node.run(&["image", "load", node.archive(IMAGE).to_str().unwrap()]);
    let count = "trap 'exit 6' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done";
    let id = run(&node, "steady", &[], count);
    let pid = node.run(&["inspect", &id, "--field", "info.pid"]);
    let (monitor, before) = (parent(&pid), program(&parent(&pid)));

    // A package puts a new file in the place of the old one.
    let installed = helpers.join("holdfast-monitor");
    let fresh = helpers.join("new");
    std::fs::copy(&installed, &fresh).unwrap();
    std::fs::rename(&fresh, &installed).unwrap();
    let done = json(&node, &["upgrade-monitors"]);
    assert_eq!(done["monitors"][0]["error"], "");
    node.until("the monitor runs the new program", || program(&monitor) != before);
    let now = std::fs::metadata(&installed).unwrap();
    assert_eq!(program(&monitor), (now.dev(), now.ino()));
    assert_eq!(
        (node.run(&["inspect", &id, "--field", "info.pid"]), parent(&pid)),
        (pid.clone(), monitor)
    );
    assert_eq!(node.run(&["exec", "steady", "echo", "fine"]), "fine");
    let table = node.run(&["upgrade-monitors"]);
    assert!(table.starts_with("POD") && table.contains("upgraded"), "{table}");

    // A program that does not work is found out; the pod goes on with the one it has.
    std::fs::remove_file(&installed).unwrap();
    std::fs::copy("/bin/false", &installed).unwrap();
    let refused = node.command(&["upgrade-monitors"]).output().unwrap();
    assert!(!refused.status.success(), "{refused:?}");
    assert_eq!(node.run(&["exec", "steady", "echo", "fine"]), "fine");

    node.run(&["stop", &id]);
    assert_eq!(node.run(&["inspect", &id, "--field", "status.exitCode"]), "6");
    for (n, line) in node.run(&["logs", "steady"]).lines().enumerate() {
        assert_eq!(line, (n + 1).to_string());
    }
    node.run(&["rm", "--force", "--all"]);
    assert!(daemon.signal(Signal::SIGTERM).success());
}
