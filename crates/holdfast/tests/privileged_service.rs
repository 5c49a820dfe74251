//! What a service needs of the program: the service manager is told, and `doctor` and `config` look at a node.
//!
//! Needs root and the helpers (`HOLDFAST_HELPERS`); the network is a throw-away namespace. The unit itself is tried in the
//! virtual machine (`hack/vm/service`).
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod node;

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use node::{Node, said};

#[test]
fn the_service_manager_is_told_and_no_child_hears_of_it() {
    let node = Node::new();
    let path = node.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let hear = || {
        let mut text = [0; 256];
        let length = manager.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let config = node.path("config.toml");
    let mut daemon = node
        .command(&["serve", "--config", config.to_str().unwrap()])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "200000")
        .env("LISTEN_FDS", "0")
        .spawn()
        .unwrap();
    assert_eq!(hear(), "READY=1\nSTATUS=serving, 0 pods on record");
    // Ready means that calls are answered.
    node.run(&["version"]);
    assert_eq!(hear(), "WATCHDOG=1");
    assert_eq!(hear(), "WATCHDOG=1");

    // The monitor that waits for the first pod is a child as every other is.
    let mut seen = 0;
    node.until("a monitor waits", || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap();
        let pids: String = threads
            .flatten()
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
            .collect();
        for pid in pids.split_whitespace() {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let environment = String::from_utf8_lossy(&environment).into_owned();
            assert!(!environment.contains("NOTIFY_SOCKET"), "{pid}: {environment}");
            assert!(!environment.contains("WATCHDOG") && !environment.contains("LISTEN_FDS"));
            seen += 1;
        }
        seen > 0
    });

    kill(Pid::from_raw(daemon.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let told = std::iter::repeat_with(hear)
        .find(|text| text != "WATCHDOG=1")
        .unwrap();
    assert!(told.starts_with("STOPPING=1\n"), "{told}");
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn the_doctor_looks_at_everything_and_leaves_nothing() {
    let node = Node::new();
    let config = node.path("config.toml");
    let args = ["doctor", "--config", config.to_str().unwrap(), "-o", "json"];
    let out = node.command(&args).output().unwrap();
    let report: serde_json::Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", said(&out)));
    let checks = report["checks"].as_array().unwrap();
    let grade = |name: &str| {
        let check = checks.iter().find(|check| check["check"] == name);
        check.unwrap_or_else(|| panic!("no line for {name}"))["grade"].clone()
    };
    // Tests could not run without these.
    for name in [
        "configuration",
        "privileges",
        "overlay",
        "mount API",
        "openat2",
        "cgroup creation",
        "clone3 into cgroup",
        "nftables",
        "bridge",
        "veth",
        "helpers",
    ] {
        assert_eq!(grade(name), "ok", "{name}: {report:#}");
    }
    let layers = checks.iter().find(|check| check["check"] == "writable layers");
    let found = layers.unwrap()["found"].as_str().unwrap();
    assert!(
        found.starts_with("measured by project quota") || found.starts_with("measured by walking them: "),
        "{found}"
    );
    assert!(checks.len() >= 26);
    assert_eq!(out.status.success(), report["grade"] != "missing");
    let links = std::process::Command::new("ip")
        .args(["-o", "link"])
        .output()
        .unwrap();
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(links.contains("lo:") && !links.contains("probe"), "{links}");

    // A configuration that cannot be used is a finding; the rest is looked at all the same.
    let wrong = node.path("wrong.toml");
    std::fs::write(&wrong, "[pods]\ncgroup_driver = \"none\"\n").unwrap();
    let out = node
        .command(&["doctor", "--config", wrong.to_str().unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(!out.status.success(), "{text}");
    assert!(
        text.contains("missing   configuration") && text.contains("wrong.toml:2: pods.cgroup_driver"),
        "{text}"
    );
    assert!(text.contains("ok        overlay"), "{text}");
}

#[test]
fn the_default_configuration_is_one() {
    let node = Node::new();
    let file = node.path("default.toml");
    std::fs::write(&file, node.run(&["config", "default"])).unwrap();
    let checked = node.run(&["config", "check", "--config", file.to_str().unwrap()]);
    assert!(checked.contains("cgroup_driver: Cgroupfs"), "{checked}");
    let alias = node.run(&["serve", "--check-config", "--config", file.to_str().unwrap()]);
    assert_eq!(alias, checked);
    std::fs::write(&file, "[pods]\nbrigde = 1\n").unwrap();
    let refused = node
        .command(&["config", "check", "--config", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(!refused.status.success());
    assert!(said(&refused).contains("default.toml:2"), "{}", said(&refused));
}
