//! What the network does when a plugin hangs, fails, dies, or prints what it should not.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "../../../crates/network/tests/fixture/mod.rs"]
mod fixture;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fixture::*;
use holdfast_network::{Bandwidth, Dns, Error, Kind, NetResult, Network, Protocol};
use serde_json::{Value, json};

struct Bad {
    host: Host,
    journal: PathBuf,
}

impl Bad {
    fn new() -> Self {
        let host = Host::new();
        let journal = host.dir.path().join("journal");
        Self { host, journal }
    }

    fn open(&self) -> Network {
        self.open_for(Duration::from_secs(20))
    }

    fn open_for(&self, deadline: Duration) -> Network {
        let mut config = self.host.config();
        let plugin = PathBuf::from(env!("CARGO_BIN_EXE_holdfast-cni-bad"));
        config.cni_bin_dirs = vec![
            "/nonexistent".into(),
            plugin.parent().unwrap().into(),
            "/usr/lib/cni".into(),
        ];
        config.cni_timeout = deadline;
        Network::open(config).unwrap()
    }

    /// Two plugins, so that unwinding has something to unwind; the second behaves as told.
    fn configure(&self, behaviour: &Value) {
        let plugin = |name: &str, behaviour: &Value| {
            json!({"type": "holdfast-cni-bad", "which": name, "journal": self.journal, "behaviour": behaviour,
                "capabilities": {"portMappings": true, "bandwidth": true, "dns": true, "ips": false}})
        };
        let list = json!({"cniVersion": "1.0.0", "name": "bad",
            "plugins": [plugin("first", &json!({})), plugin("second", behaviour)]});
        configure(&self.host, "10-bad.conflist", &list.to_string());
    }

    async fn setup(&self, network: &Network, n: u32) -> Result<NetResult, Error> {
        let ns = namespace();
        let mut wanted = request(
            n,
            &ns,
            &[port(
                "127.0.0.1",
                8080 + u16::try_from(n).unwrap(),
                80,
                Protocol::Udp,
            )],
        );
        wanted.netns_path = Some(bind_namespace(&self.host, n, &ns));
        wanted.bandwidth = Some(Bandwidth {
            ingress: Some(1000),
            egress: None,
        });
        wanted.dns = Dns {
            servers: vec!["10.0.0.10".into()],
            ..Dns::default()
        };
        network.setup(wanted).await
    }

    /// Every call since the last look: "command which", and all that was given.
    fn calls(&self) -> (Vec<String>, Vec<Value>) {
        let text = std::fs::read_to_string(&self.journal).unwrap_or_default();
        let _ = std::fs::remove_file(&self.journal);
        let all: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let name = |v: &Value| {
            format!(
                "{} {}",
                v["command"].as_str().unwrap(),
                v["config"]["which"].as_str().unwrap()
            )
        };
        (all.iter().map(name).collect(), all)
    }
}

/// Living processes of a group, by `/proc`; a zombie only waits for PID 1.
fn group(id: &Value) -> usize {
    let id = id.to_string();
    let stats = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| std::fs::read_to_string(e.path().join("stat")).ok());
    stats
        .filter(|stat| {
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            fields[0] != "Z" && fields[2] == id
        })
        .count()
}

#[test]
fn a_good_plugin_gets_what_it_declares_and_is_undone_with_its_result() {
    let bad = Bad::new();
    block_on(async {
        bad.configure(&json!({}));
        let network = bad.open();
        let result = bad.setup(&network, 1).await.unwrap();
        assert_eq!(result.ips, ["10.9.9.9".parse::<std::net::IpAddr>().unwrap()]);
        let (names, calls) = bad.calls();
        assert_eq!(names, ["ADD first", "ADD second"]);
        assert_eq!(calls[0]["config"].get("prevResult"), None);
        assert_eq!(
            calls[1]["config"]["prevResult"]["ips"][0]["address"],
            "10.9.9.9/24"
        );
        assert_eq!(calls[1]["config"]["name"], "bad");
        let runtime = &calls[1]["config"]["runtimeConfig"];
        // The plugin's library knows no hostIP, and other keys of dns than the conventions: they are left out.
        let mapping = json!([{"hostPort": 8081, "containerPort": 80, "protocol": "udp"}]);
        assert_eq!(runtime["portMappings"], mapping);
        assert_eq!(runtime["bandwidth"]["ingressRate"], 1000);
        let args = calls[0]["args"].as_str().unwrap();
        for part in [
            "IgnoreUnknown=1",
            "K8S_POD_NAME=pod-1",
            "K8S_POD_NAMESPACE=default",
            "K8S_POD_UID=uid-1",
            &id(1),
        ] {
            assert!(args.contains(part), "{args}");
        }
        network.teardown(&id(1)).await.unwrap();
        let (names, calls) = bad.calls();
        assert_eq!(names, ["DEL second", "DEL first"]);
        assert_eq!(
            calls[1]["config"]["prevResult"]["ips"][0]["address"],
            "10.9.9.9/24"
        );
        network.teardown(&id(1)).await.unwrap();
        assert_eq!(bad.calls().0, Vec::<String>::new());
    });
}

#[test]
fn whatever_add_does_the_error_is_clear_and_all_is_undone() {
    let bad = Bad::new();
    block_on(async {
        bad.configure(&json!({}));
        let network = bad.open_for(Duration::from_secs(1));
        let cases = [
            ("fail", Kind::Internal, "misbehaving; told to fail (code 100)"),
            ("die", Kind::Internal, "exit status: 3"),
            (
                "hang",
                Kind::DeadlineExceeded,
                "did not finish ADD within 1 s and was killed",
            ),
            ("garbage", Kind::Internal, "no valid result"),
            ("nothing", Kind::Internal, "nothing was printed"),
            ("huge", Kind::Internal, "more than 1 MiB of output"),
        ];
        for (n, (behaviour, kind, expect)) in (1..).zip(cases) {
            bad.configure(&json!({"ADD": behaviour}));
            let began = Instant::now();
            let error = bad.setup(&network, n).await.unwrap_err();
            let text = error.to_string();
            assert!(
                error.kind() == kind && text.contains(expect),
                "{behaviour}: {text}"
            );
            assert!(text.contains("holdfast-cni-bad") && text.len() < 1500, "{text}");
            assert!(!text.contains(['\u{1b}', '\0', '\n']), "{text:?}");
            assert!(
                began.elapsed() < Duration::from_secs(4),
                "{behaviour}: {:?}",
                began.elapsed()
            );
            let (names, calls) = bad.calls();
            assert_eq!(
                names,
                ["ADD first", "ADD second", "DEL second", "DEL first"],
                "{behaviour}"
            );
            assert_eq!(group(&calls[1]["pid"]), 0, "{behaviour} left processes");
            assert_eq!(network.draining(), Vec::<String>::new());
            assert!(network.result(&id(n)).is_none());
        }
        // And the network still serves.
        bad.configure(&json!({}));
        bad.setup(&network, 100).await.unwrap();
    });
}

#[test]
fn a_plugin_that_is_not_there_leaves_nothing_to_undo() {
    let bad = Bad::new();
    block_on(async {
        let list = json!({"cniVersion": "1.0.0", "name": "absent",
            "plugins": [{"type": "holdfast-cni-bad", "journal": bad.journal}, {"type": "no-such-plugin"}]});
        configure(&bad.host, "10-bad.conflist", &list.to_string());
        let network = bad.open();
        let error = bad.setup(&network, 1).await.unwrap_err();
        assert!(
            matches!(&error, Error::PluginMissing { plugin, .. } if plugin == "no-such-plugin"),
            "{error}"
        );
        assert_eq!(network.draining(), Vec::<String>::new());
        assert!(!bad.journal.exists(), "the plugin before it was called");
    });
}

#[test]
fn a_child_that_holds_the_pipes_does_not_hold_the_pod() {
    let bad = Bad::new();
    block_on(async {
        bad.configure(&json!({"ADD": "linger"}));
        let network = bad.open();
        let began = Instant::now();
        bad.setup(&network, 1).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        let (_, calls) = bad.calls();
        let left = i32::try_from(calls[1]["pid"].as_i64().unwrap()).unwrap();
        let _ = rustix::process::kill_process_group(
            rustix::process::Pid::from_raw(left).unwrap(),
            rustix::process::Signal::KILL,
        );
    });
}

#[test]
fn del_is_repeated_until_it_succeeds_even_by_the_next_daemon() {
    let bad = Bad::new();
    let flag = bad.host.dir.path().join("flag");
    block_on(async {
        bad.configure(&json!({"DEL": format!("fail-until:{}", flag.display())}));
        let network = bad.open();
        bad.setup(&network, 1).await.unwrap();
        bad.setup(&network, 2).await.unwrap();
        bad.calls();
        let error = network.teardown(&id(1)).await.unwrap_err();
        assert!(error.to_string().contains("the flag is not there yet"), "{error}");
        // The other plugin has been called all the same.
        assert_eq!(bad.calls().0, ["DEL second", "DEL first"]);
        assert_eq!(network.draining(), [id(1)]);
        eventually("it is tried again", || std::fs::exists(&bad.journal).unwrap()).await;
        drop(network);
        let network = bad.open();
        let done = network.reconcile([id(2)]).await.unwrap();
        assert_eq!((done.kept, done.removed), (vec![id(2)], vec![id(1)]));
        std::fs::write(&flag, "").unwrap();
        eventually("it succeeds", || network.draining().is_empty()).await;
        network.teardown(&id(2)).await.unwrap();
        assert!(
            std::fs::read_dir(bad.host.dir.path().join("root/pods"))
                .unwrap()
                .next()
                .is_none()
        );
    });
}

#[test]
fn a_failed_unwinding_is_told_and_repeated() {
    let bad = Bad::new();
    let flag = bad.host.dir.path().join("flag");
    block_on(async {
        bad.configure(&json!({"ADD": "fail", "DEL": format!("fail-until:{}", flag.display())}));
        let network = bad.open();
        let error = bad.setup(&network, 1).await.unwrap_err();
        assert!(
            error.to_string().contains("told to fail") && error.to_string().contains("being repeated"),
            "{error}"
        );
        assert_eq!(network.draining(), [id(1)]);
        std::fs::write(&flag, "").unwrap();
        eventually("it succeeds", || network.draining().is_empty()).await;
    });
}

#[test]
fn a_version_that_the_plugin_does_not_speak_is_not_ready() {
    let bad = Bad::new();
    block_on(async {
        let list = json!({"cniVersion": "0.3.1", "name": "old", "plugins": [{"type": "holdfast-cni-bad"}]});
        configure(&bad.host, "10-bad.conflist", &list.to_string());
        let network = bad.open();
        eventually("not ready", || network.status().message.contains("0.3.1")).await;
        assert!(!network.status().ready, "{:?}", network.status());
    });
}
