//! Debian's CNI plugins, end to end.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod fixture;

use std::time::{Duration, Instant};

use fixture::*;
use holdfast_network::{Bandwidth, Network, PodNetwork, Protocol};

fn debian(host: &Host, version: &str) -> String {
    format!(
        r#"{{"cniVersion": "{version}", "name": "debian", "plugins": [
            {{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
              "ipam": {{"type": "host-local", "dataDir": "{}", "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}],
                        "ranges": [[{{"subnet": "10.99.0.0/24"}}], [{{"subnet": "fd99::/64"}}]]}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}}},
            {{"type": "loopback"}}
        ]}}"#,
        host.dir.path().join("ipam").display()
    )
}

fn leases(host: &Host) -> usize {
    let names =
        std::fs::read_dir(host.dir.path().join("ipam/debian")).map(|d| d.flatten().collect::<Vec<_>>());
    names
        .unwrap_or_default()
        .iter()
        .filter(|e| e.file_name().to_string_lossy().contains(['.', ':']))
        .filter(|e| !e.file_name().to_string_lossy().starts_with("last_reserved"))
        .count()
}

#[test]
fn debian_plugins_end_to_end_in_every_version() {
    let host = Host::new();
    let own = own_ns();
    block_on(async {
        for (n, version) in (1..).zip(["0.3.1", "0.4.0", "1.0.0"]) {
            configure(&host, "10-debian.conflist", &debian(&host, version));
            let network = Network::open(host.config()).unwrap();
            assert!(network.needs_netns_path());
            let ns = namespace();
            let path = bind_namespace(&host, n, &ns);
            let ports = [port("", 8080, 80, Protocol::Tcp)];
            let mut wanted = request(n, &ns, &ports);
            let missing = network.setup(request(n, &ns, &ports)).await.unwrap_err();
            assert!(missing.to_string().contains("path"), "{missing}");
            wanted.netns_path = Some(path.clone());
            let began = Instant::now();
            let result = network.setup(wanted).await.unwrap();
            println!("ADD by cni {version}: {:?}", began.elapsed());
            assert_eq!(
                (result.ips.len(), result.network.as_str()),
                (2, "debian"),
                "{result:?}"
            );
            assert!(result.ips[0].to_string().starts_with("10.99.0."), "{result:?}");
            assert!(
                result
                    .interfaces
                    .iter()
                    .any(|i| i.name == "eth0" && i.sandbox.is_some()),
                "{result:?}"
            );
            serve_tcp(&ns, "[::]:80", "pod");
            assert!(ask_tcp(&own, &format!("{}:80", result.ips[0]), SOON).is_some());
            assert!(ask_tcp(&own, "127.0.0.1:8080", SOON).is_some());
            assert!(ask_tcp(&ns, "127.0.0.1:80", SOON).is_some(), "lo is up");

            // The daemon is killed, and the configuration is gone when it comes back: what was set up by plugins is taken
            // down by them, from the cached result.
            drop(network);
            std::fs::remove_file(host.dir.path().join("net.d/10-debian.conflist")).unwrap();
            let network = Network::open(host.config()).unwrap();
            assert!(!network.needs_netns_path());
            assert_eq!(network.reconcile([id(n)]).await.unwrap().kept, [id(n)]);
            assert_eq!(network.result(&id(n)).unwrap(), result);
            assert_eq!(leases(&host), 2);
            let began = Instant::now();
            network.teardown(&id(n)).await.unwrap();
            println!("DEL by cni {version}: {:?}", began.elapsed());
            assert_eq!(leases(&host), 0);
            assert_eq!(ask_tcp(&own, "127.0.0.1:8080", NEVER), None);
            unbind_namespace(&path);
        }
    });
}

#[test]
fn the_dead_are_deleted_after_a_restart_though_their_namespace_is_gone() {
    let host = Host::new();
    block_on(async {
        configure(&host, "10-debian.conflist", &debian(&host, "1.0.0"));
        let network = Network::open(host.config()).unwrap();
        let ns = namespace();
        let path = bind_namespace(&host, 1, &ns);
        network
            .setup(PodNetwork {
                netns_path: Some(path.clone()),
                ..request(1, &ns, &[])
            })
            .await
            .unwrap();
        drop(network);
        unbind_namespace(&path);
        drop(ns);
        let network = Network::open(host.config()).unwrap();
        assert_eq!(
            network.reconcile(Vec::<String>::new()).await.unwrap().removed,
            [id(1)]
        );
        eventually("the plugins free the address", || {
            leases(&host) == 0 && network.draining().is_empty()
        })
        .await;
    });
}

#[test]
fn networks_change_while_pods_run() {
    let host = Host::new();
    block_on(async {
        let network = Network::open(host.config()).unwrap();
        let built_in = pod(&network, 1, &[]).await;
        assert!(network.status().message.contains("built-in"));

        configure(&host, "10-debian.conflist", &debian(&host, "1.0.0"));
        eventually("the watch sees the file", || {
            network.status().message.contains("debian")
        })
        .await;
        assert!(network.needs_netns_path() && network.status().ready);
        let ns = namespace();
        let netns_path = Some(bind_namespace(&host, 2, &ns));
        let bandwidth = Some(Bandwidth {
            ingress: Some(1_000_000),
            egress: None,
        });
        network
            .setup(PodNetwork {
                netns_path,
                bandwidth,
                ..request(2, &ns, &[])
            })
            .await
            .unwrap();

        // A broken file that comes first by name decides, and says so.
        configure(&host, "05-broken.conf", "{");
        eventually("the watch sees the broken file", || !network.status().ready).await;
        assert!(
            network.status().message.contains("05-broken.conf"),
            "{:?}",
            network.status()
        );
        let error = network.setup(request(3, &ns, &[])).await.unwrap_err();
        assert!(error.to_string().contains("05-broken.conf"), "{error}");

        configure(
            &host,
            "05-broken.conf",
            r#"{"cniVersion": "1.0.0", "name": "x", "type": "not-installed"}"#,
        );
        eventually("the watch sees the missing plugin", || {
            network.status().message.contains("not-installed")
        })
        .await;
        assert!(!network.status().ready && network.status().reason == "NetworkPluginNotReady");

        for file in ["05-broken.conf", "10-debian.conflist"] {
            std::fs::remove_file(host.dir.path().join("net.d").join(file)).unwrap();
        }
        assert!(
            !network.needs_netns_path(),
            "at once, without waiting for the watch"
        );
        network.teardown(&built_in.id).await.unwrap();
        network.teardown(&id(2)).await.unwrap();
        assert_eq!(leases(&host), 0);
        drop(built_in);
        eventually("drained", || network.draining().is_empty()).await;
    });
}

#[test]
fn a_plugin_that_comes_later_makes_the_network_ready() {
    let host = Host::new();
    let bin = host.dir.path().join("bin");
    let mut config = host.config();
    config.cni_bin_dirs = vec![bin.clone()];
    block_on(async {
        configure(
            &host,
            "10.conf",
            r#"{"cniVersion": "1.0.0", "name": "x", "type": "loopback"}"#,
        );
        let network = Network::open(config).unwrap();
        assert!(
            network.status().message.contains("was not found in"),
            "{:?}",
            network.status()
        );
        std::fs::create_dir(&bin).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        std::os::unix::fs::symlink("/usr/lib/cni/loopback", bin.join("loopback")).unwrap();
        eventually("ready", || network.status().ready).await;
    });
}

/// A plugin of a shell's making, and where it notes what it is asked.
fn scripted(host: &Host, name: &str, script: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let bin = host.dir.path().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let answer = r#"{"cniVersion":"1.1.0","ips":[{"address":"10.98.0.2/24"}]}"#;
    let versions = r#"{"cniVersion":"1.1.0","supportedVersions":["1.1.0"]}"#;
    let text = format!(
        "#!/bin/sh\nnote() {{ echo $1 >>{}/notes; }}\ncase $CNI_COMMAND in\nVERSION) echo '{versions}' ;;\n{script}\nesac\n\
         [ $CNI_COMMAND != ADD ] || echo '{answer}'\n",
        host.dir.path().display()
    );
    let path = bin.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn notes(host: &Host) -> String {
    std::fs::read_to_string(host.dir.path().join("notes")).unwrap_or_default()
}

fn list(names: &[&str]) -> String {
    let plugins: Vec<String> = names
        .iter()
        .map(|name| format!(r#"{{"type": "{name}"}}"#))
        .collect();
    format!(
        r#"{{"cniVersion": "1.1.0", "name": "scripted", "plugins": [{}]}}"#,
        plugins.join(", ")
    )
}

#[test]
fn garbage_is_collected_when_no_plugin_is_at_work() {
    let host = Host::new();
    scripted(
        &host,
        "slow",
        "ADD) note add; sleep 2; note added ;;\nGC) note gc; sleep 1; note collected ;;\nDEL) note del ;;",
    );
    let mut config = host.config();
    config.cni_bin_dirs = vec![host.dir.path().join("bin")];
    configure(&host, "10-slow.conflist", &list(&["slow"]));
    block_on(async {
        let network = Network::open(config).unwrap();
        let ns = namespace();
        let wanted = PodNetwork {
            netns_path: Some(bind_namespace(&host, 1, &ns)),
            ..request(1, &ns, &[])
        };
        let adding = tokio::spawn({
            let network = network.clone();
            async move { network.setup(wanted).await }
        });
        eventually("the plugin to be executed", || notes(&host).contains("add")).await;
        network.reconcile([id(1)]).await.unwrap();
        adding.await.unwrap().unwrap();
        eventually("garbage to be collected", || notes(&host).contains("gc")).await;
        // It waits for GC, as GC has waited for ADD.
        network.teardown(&id(1)).await.unwrap();
        let notes = notes(&host);
        let order: Vec<&str> = notes.lines().collect();
        assert_eq!(order, ["add", "added", "gc", "collected", "del"]);
    });
}

#[test]
fn garbage_is_collected_once_there_is_a_configuration() {
    let host = Host::new();
    scripted(&host, "one", "GC) note gc ;;");
    let mut config = host.config();
    config.cni_bin_dirs = vec![host.dir.path().join("bin")];
    configure(&host, "10.conflist", "{");
    block_on(async {
        let network = Network::open(config).unwrap();
        network.reconcile(Vec::<String>::new()).await.unwrap();
        tokio::time::sleep(NEVER).await;
        configure(&host, "10.conflist", &list(&["one"]));
        eventually("garbage to be collected", || notes(&host) == "gc\n").await;
    });
}

#[test]
fn garbage_collection_that_hangs_is_given_up_as_a_whole() {
    let host = Host::new();
    for name in ["one", "two", "three", "four"] {
        scripted(&host, name, "GC) note gc; sleep 1000 ;;");
    }
    let mut config = host.config();
    config.cni_bin_dirs = vec![host.dir.path().join("bin")];
    config.cni_timeout = Duration::from_secs(3);
    configure(&host, "10.conflist", &list(&["one", "two", "three", "four"]));
    block_on(async {
        let network = Network::open(config).unwrap();
        network.reconcile(Vec::<String>::new()).await.unwrap();
        eventually("garbage to be collected", || notes(&host).contains("gc")).await;
        let began = Instant::now();
        let ns = namespace();
        let wanted = PodNetwork {
            netns_path: Some(bind_namespace(&host, 1, &ns)),
            ..request(1, &ns, &[])
        };
        network.setup(wanted).await.unwrap();
        // One deadline for all four, not one each.
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        network.teardown(&id(1)).await.unwrap();
    });
}
