//! The node's pod ranges: handed down, changed while pods run, kept over a restart, and filled into a CNI configuration.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod fixture;

use fixture::*;
use holdfast_network::{Kind, Network, Protocol, Subnet};

fn ranges(text: &str) -> Vec<Subnet> {
    text.split(',').map(|range| range.parse().unwrap()).collect()
}

async fn reach(from: &Pod, to: &str, want: &str) {
    assert_eq!(ask_tcp(&from.ns, to, SOON).as_deref(), Some(want), "{to}");
}

#[test]
fn ranges_change_while_pods_run() {
    let host = Host::new();
    let own = own_ns();
    block_on(async {
        let network = Network::open(host.config()).unwrap();
        let old = pod(&network, 1, &[port("", 8081, 80, Protocol::Tcp)]).await;
        serve_tcp(&old.ns, "[::]:80", "old");
        serve_tcp(&host.outside, "[::]:80", "out");
        network
            .set_pod_ranges(ranges("10.211.7.0/24,fd11:7::/64"))
            .await
            .unwrap();
        // Before any new pod: what there is goes on.
        reach(&old, &format!("{OUTSIDE4}:80"), &format!("out {HOST4}")).await;
        assert_eq!(
            ask_tcp(&own, "127.0.0.1:8081", SOON),
            Some("old 10.87.0.1".into())
        );
        let new = pod(&network, 2, &[port("", 8082, 80, Protocol::Tcp)]).await;
        assert!(new.v4().to_string().starts_with("10.211.7."), "{:?}", new.ips);
        assert!(new.v6().to_string().starts_with("fd11:7::"), "{:?}", new.ips);
        serve_tcp(&new.ns, "[::]:80", "new");
        for (from, to, name) in [(&old, &new, "new"), (&new, &old, "old")] {
            reach(from, &format!("{}:80", to.v4()), &format!("{name} {}", from.v4())).await;
            reach(
                from,
                &format!("[{}]:80", to.v6()),
                &format!("{name} {}", from.v6()),
            )
            .await;
        }
        reach(&new, &format!("{OUTSIDE4}:80"), &format!("out {HOST4}")).await;
        reach(&new, &format!("[{OUTSIDE6}]:80"), &format!("out {HOST6}")).await;
        for (port, name) in [(8081, "old"), (8082, "new")] {
            let answer = ask_tcp(&own, &format!("127.0.0.1:{port}"), SOON).unwrap();
            assert!(answer.starts_with(name), "{answer}");
        }

        // What cannot be is refused, and nothing changes.
        for bad in ["10.0.0.0/31", "10.0.0.0/4", "fd00::/127"] {
            let error = network.set_pod_ranges(ranges(bad)).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{error}");
        }
        assert_eq!(
            network.pod_ranges().await.unwrap(),
            ranges("10.211.7.0/24,fd11:7::/64")
        );
        drop(network);

        // A restart: kept, and the pods of both ranges go on.
        let network = Network::open(host.config()).unwrap();
        network.reconcile([old.id.clone(), new.id.clone()]).await.unwrap();
        assert_eq!(
            network.pod_ranges().await.unwrap(),
            ranges("10.211.7.0/24,fd11:7::/64")
        );
        reach(&old, &format!("{}:80", new.v4()), &format!("new {}", old.v4())).await;
        reach(&old, &format!("{OUTSIDE4}:80"), &format!("out {HOST4}")).await;
        let third = pod(&network, 3, &[]).await;
        assert!(third.v4().to_string().starts_with("10.211.7."), "{:?}", third.ips);
        assert_ne!(third.v4(), new.v4());

        // IPv6 first; then one family.
        network
            .set_pod_ranges(ranges("fd11:8::/64,10.211.8.0/24"))
            .await
            .unwrap();
        let six = pod(&network, 4, &[]).await;
        assert!(six.ips[0].is_ipv6() && six.ips[1].is_ipv4(), "{:?}", six.ips);
        network.set_pod_ranges(ranges("10.211.9.0/24")).await.unwrap();
        let four = pod(&network, 5, &[]).await;
        assert_eq!(four.ips.len(), 1);
        reach(&four, &format!("{}:80", old.v4()), &format!("old {}", four.v4())).await;

        let ids: Vec<String> = [&old, &new, &third, &six, &four].map(|pod| pod.id.clone()).into();
        for id in &ids {
            network.teardown(id).await.unwrap();
        }
        drop((old, new, third, six, four));
        nothing_left(&host, &network).await;
        drop(network);
        // Nobody lives in the earlier ranges any more: the bridge lets go of their gateways.
        let network = Network::open(host.config()).unwrap();
        network.reconcile(Vec::<String>::new()).await.unwrap();
        let addresses = sh("ip -o addr show dev holdfast0");
        assert!(addresses.contains("10.211.9.1/24"), "{addresses}");
        for gone in ["10.87.0.1", "10.211.7.1", "10.211.8.1", "fd11:7::1", "fd11:8::1"] {
            assert!(!addresses.contains(gone), "{gone} in {addresses}");
        }
    });
}

const TEMPLATE: &str = r#"{"cniVersion": "1.0.0", "name": "from-template", "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "dataDir": "LEASES",
  "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
  "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}}]}"#;

#[test]
fn a_template_waits_for_the_ranges_and_is_filled_in() {
    let host = Host::new();
    let (dir, template) = (host.dir.path().join("net.d"), host.dir.path().join("template"));
    let config = || {
        let mut config = host.config();
        config.cni_conf_template = Some(template.clone());
        config
    };
    let file = dir.join("10-holdfast-net.conflist");
    block_on(async {
        let network = Network::open(config()).unwrap();
        // No network until the kubelet has spoken: not the built-in one.
        let status = network.status();
        assert!(!status.ready && status.message.contains("kubelet"), "{status:?}");
        assert!(network.needs_netns_path());
        let ns = namespace();
        let error = network.setup(request(1, &ns, &[])).await.unwrap_err();
        assert!(error.to_string().contains("kubelet"), "{error}");
        // A template that cannot be filled in says where, and is tried again.
        std::fs::write(&template, "\n{{.Nonsense}}").unwrap();
        let error = network.set_pod_ranges(ranges("10.1.0.0/24")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(
            error.to_string().contains("line 2") && error.to_string().contains("template"),
            "{error}"
        );
        let leases = host.dir.path().join("leases");
        std::fs::write(&template, TEMPLATE.replace("LEASES", leases.to_str().unwrap())).unwrap();
        network
            .set_pod_ranges(ranges("10.1.0.0/24,fd01::/64"))
            .await
            .unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(
            text.contains(r#"[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]"#),
            "{text}"
        );
        eventually("the network is not ready", || network.status().ready).await;
        // Pods get addresses from it.
        let pod_ns = namespace();
        let mut wanted = request(2, &pod_ns, &[]);
        let path = bind_namespace(&host, 2, &pod_ns);
        wanted.netns_path = Some(path.clone());
        let ips = network.setup(wanted).await.unwrap().ips;
        assert_eq!(
            ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.1.0.2", "fd01::2"]
        );
        network.teardown(&id(2)).await.unwrap();
        unbind_namespace(&path);
        // Other ranges, another file; and after a restart it is made again if it was taken away.
        network.set_pod_ranges(ranges("10.2.0.0/24")).await.unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("10.2.0.0/24"));
        drop(network);
        std::fs::remove_file(&file).unwrap();
        let network = Network::open(config()).unwrap();
        network.reconcile(Vec::<String>::new()).await.unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("10.2.0.0/24"));
        // Somebody else's configuration is left to decide.
        std::fs::remove_file(&file).unwrap();
        let other = r#"{"cniVersion": "1.0.0", "name": "other", "type": "ptp"}"#;
        std::fs::write(dir.join("50-other.conf"), other).unwrap();
        network.set_pod_ranges(ranges("10.3.0.0/24")).await.unwrap();
        assert!(!file.exists());
    });
}
