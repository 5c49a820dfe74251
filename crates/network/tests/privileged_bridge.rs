//! The built-in network on the real kernel: connectivity, addresses, life cycle.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod fixture;

use std::time::{Duration, Instant};

use fixture::*;
use holdfast_network::{Error, Kind, Network, Protocol};

#[test]
fn pods_reach_each_other_and_the_world_at_once() {
    let host = Host::new();
    let own = own_ns();
    block_on(async {
        let network = Network::open(host.config()).unwrap();
        assert!(network.status().ready && !network.needs_netns_path());
        let (a, b) = (pod(&network, 1, &[]).await, pod(&network, 2, &[]).await);
        // First of all IPv6: nothing may have to wait for duplicate address detection.
        serve_tcp(&b.ns, "[::]:80", "b");
        assert_eq!(
            ask_tcp(&a.ns, &format!("[{}]:80", b.v6()), SOON),
            Some(format!("b {}", a.v6()))
        );
        assert_eq!(
            ask_tcp(&a.ns, &format!("{}:80", b.v4()), SOON),
            Some(format!("b {}", a.v4()))
        );
        assert_eq!(ask_tcp(&b.ns, "127.0.0.1:80", SOON), Some("b 127.0.0.1".into()));
        assert_eq!(
            ask_tcp(&own, &format!("{}:80", b.v4()), SOON),
            Some("b 10.87.0.1".into())
        );
        serve_tcp(&host.outside, "[::]:80", "out");
        assert_eq!(
            ask_tcp(&a.ns, &format!("{OUTSIDE4}:80"), SOON),
            Some(format!("out {HOST4}"))
        );
        assert_eq!(
            ask_tcp(&a.ns, &format!("[{OUTSIDE6}]:80"), SOON),
            Some(format!("out {HOST6}"))
        );
        let inside = within(&a.ns, || {
            sh("ip -o addr show dev eth0; cat /proc/sys/net/ipv6/conf/eth0/accept_ra")
        });
        assert!(
            inside.contains(&a.v4().to_string()) && !inside.contains("tentative") && inside.ends_with("0\n"),
            "{inside}"
        );
        assert_eq!(network.result(&a.id).unwrap().ips, a.ips);
        for pod in [a, b] {
            network.teardown(&pod.id).await.unwrap();
            network.teardown(&pod.id).await.unwrap();
        }
        nothing_left(&host, &network).await;
        assert_eq!(
            sh("cat /proc/sys/net/ipv4/conf/all/route_localnet /proc/sys/net/ipv4/conf/up0/route_localnet"),
            "0\n0\n"
        );
    });
}

#[test]
fn one_family_is_enough_and_a_handed_over_socket_is_used() {
    let host = Host::new();
    let mut six = host.config();
    six.bridge.ipv4 = None;
    six.bridge.name = "six0".into();
    six.root = host.dir.path().join("six");
    let mut four = host.config();
    four.bridge.ipv6 = None;
    block_on(async {
        let network = Network::open(six).unwrap();
        let (a, b) = (
            pod(&network, 1, &[port("", 8080, 80, Protocol::Tcp)]).await,
            pod(&network, 2, &[]).await,
        );
        assert_eq!(
            (a.ips.len(), a.v6().to_string().as_str()),
            (1, "fd87:686f:6c64::2")
        );
        serve_tcp(&a.ns, "[::]:80", "a");
        assert_eq!(
            ask_tcp(&b.ns, &format!("[{}]:80", a.v6()), SOON),
            Some(format!("a {}", b.v6()))
        );
        assert_eq!(
            ask_tcp(&host.outside, &format!("[{HOST6}]:8080"), SOON),
            Some(format!("a {OUTSIDE6}"))
        );

        let network = Network::open(four).unwrap();
        let ns = namespace();
        let socket = within(&ns, || {
            use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
            socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                None,
            )
            .unwrap()
        });
        let mut request = request(3, &ns, &[]);
        let mut links = holdfast_network::PodLinks::new(socket.try_clone().unwrap());
        request.netlink = Some(socket);
        let result = network.setup(request).await.unwrap();
        assert_eq!(
            result.ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.87.0.2"]
        );
        let inside = within(&ns, || sh("ip -o addr show up; ip route"));
        assert!(
            inside.contains("10.87.0.2/16") && inside.contains("default via 10.87.0.1"),
            "{inside}"
        );
        assert!(inside.contains("127.0.0.1"), "{inside}");
        // The same socket tells, from outside, what the interface has carried.
        let before = links.read().unwrap();
        within(&ns, || {
            let socket = std::net::UdpSocket::bind("10.87.0.2:0").unwrap();
            // Nobody listens there: the second may already be told so.
            let _ = (
                socket.send_to(&[0; 1000], "10.87.0.1:9"),
                socket.send_to(&[0; 1000], "10.87.0.1:9"),
            );
        });
        // They wait for the neighbour's address to be known.
        let until = Instant::now() + SOON;
        let mut after = links.read().unwrap();
        while after[0].tx_bytes < before[0].tx_bytes + 1000 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
            after = links.read().unwrap();
        }
        let names: Vec<&str> = after.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["eth0"]);
        assert!(
            after[0].tx_bytes >= before[0].tx_bytes + 1000,
            "{before:?} {after:?}"
        );
        assert!(after[0].tx_packets > before[0].tx_packets, "{before:?} {after:?}");
    });
}

#[test]
fn addresses_outlive_the_daemon_and_come_back_last() {
    let host = Host::new();
    let mut config = host.config();
    config.bridge.ipv4 = Some("10.50.0.0/29".parse().unwrap());
    let open = || Network::open(config.clone()).unwrap();
    block_on(async {
        let network = open();
        let mut pods = Vec::new();
        for n in 0..5 {
            pods.push(pod(&network, n, &[]).await);
        }
        assert_eq!(
            pods.iter().map(|p| p.v4().to_string()).collect::<Vec<_>>()[..2],
            ["10.50.0.2", "10.50.0.3"]
        );
        let ns = namespace();
        let full = network.setup(request(9, &ns, &[])).await.unwrap_err();
        assert_eq!(full.kind(), Kind::Exhausted, "{full}");

        // While the namespace lives, its address stays taken.
        let first = pods.remove(0);
        network.teardown(&first.id).await.unwrap();
        assert_eq!(network.draining(), std::slice::from_ref(&first.id));
        assert!(matches!(
            network.setup(request(9, &ns, &[])).await,
            Err(Error::NoAddress { .. })
        ));
        drop(first.ns);
        eventually("the address is freed when the namespace dies", || {
            network.draining().is_empty()
        })
        .await;
        let second = pods.remove(0);
        network.teardown(&second.id).await.unwrap();
        drop(second);
        eventually("freed", || network.draining().is_empty()).await;

        drop(network);
        let network = open();
        let live: Vec<_> = pods.iter().map(|p| p.id.clone()).collect();
        let mut kept = live.clone();
        kept.sort();
        assert_eq!(network.reconcile(live).await.unwrap().kept, kept);
        assert_eq!(network.result(&pods[0].id).unwrap().ips, pods[0].ips);
        let again = [pod(&network, 10, &[]).await, pod(&network, 11, &[]).await];
        assert_eq!(
            again.iter().map(|p| p.v4().to_string()).collect::<Vec<_>>(),
            ["10.50.0.2", "10.50.0.3"]
        );
        let twice = network.setup(request(10, &ns, &[])).await.unwrap_err();
        assert!(matches!(twice, Error::AlreadySetUp { .. }));
    });
}

#[test]
fn a_restart_takes_down_what_is_dead_and_rebuilds_what_lives() {
    let host = Host::new();
    let own = own_ns();
    block_on(async {
        let network = Network::open(host.config()).unwrap();
        let ports = |n: u16| [port("", 8000 + n, 80, Protocol::Tcp)];
        let live = pod(&network, 1, &ports(1)).await;
        let dead = pod(&network, 2, &ports(2)).await;
        let dead_namespace_held = pod(&network, 3, &ports(3)).await;
        drop(network);
        drop(dead.ns);
        // Somebody flushed the rules, and an interface with our prefix has no record.
        sh(
            "nft flush ruleset; ip link add hfdeadbeef type veth peer name nobody; ip link set hfdeadbeef master holdfast0",
        );
        let network = Network::open(host.config()).unwrap();
        let done = network.reconcile([live.id.clone()]).await.unwrap();
        assert_eq!(
            (done.kept, done.removed),
            (
                vec![live.id.clone()],
                vec![dead.id, dead_namespace_held.id.clone()]
            )
        );
        assert_eq!(done.stray_links, ["hfdeadbeef"]);
        serve_tcp(&live.ns, "[::]:80", "live");
        assert_eq!(
            ask_tcp(&own, "127.0.0.1:8001", SOON),
            Some("live 10.87.0.1".into())
        );
        // The kernel takes a namespace apart in its own time.
        eventually("the dead one is drained", || {
            network.draining() == [dead_namespace_held.id.as_str()]
        })
        .await;
        drop(dead_namespace_held.ns);
        eventually("drained", || network.draining().is_empty()).await;

        // Reboot of everything but the disk.
        drop(network);
        sh("ip link del holdfast0; nft flush ruleset");
        drop(live.ns);
        let network = Network::open(host.config()).unwrap();
        assert_eq!(
            network.reconcile(Vec::<String>::new()).await.unwrap().removed,
            [live.id]
        );
        nothing_left(&host, &network).await;
    });
}

#[test]
fn what_others_delete_is_made_again() {
    let host = Host::new();
    let own = own_ns();
    block_on(async {
        let network = Network::open(host.config()).unwrap();
        let a = pod(&network, 1, &[port("", 8001, 80, Protocol::Tcp)]).await;
        serve_tcp(&a.ns, "[::]:80", "a");
        sh("nft delete table inet holdfast");
        let _b = pod(&network, 2, &[]).await;
        assert_eq!(ask_tcp(&own, "127.0.0.1:8001", SOON), Some("a 10.87.0.1".into()));
        sh("ip link del holdfast0");
        let c = pod(&network, 3, &[port("", 8003, 80, Protocol::Tcp)]).await;
        serve_tcp(&c.ns, "[::]:80", "c");
        assert_eq!(ask_tcp(&own, "127.0.0.1:8003", SOON), Some("c 10.87.0.1".into()));
        sh("nft flush map inet holdfast ports4");
        network.teardown(&c.id).await.unwrap();
        assert!(!sh("nft list ruleset").contains("8003"));
    });
}

#[test]
fn a_failed_setup_leaves_nothing() {
    let host = Host::new();
    block_on(async {
        let network = Network::open(host.config()).unwrap();
        let ok = pod(&network, 1, &[]).await;
        let mut bad = request(2, &ok.ns, &[port("", 8001, 80, Protocol::Udp)]);
        bad.netns = std::fs::File::open("/dev/null").unwrap().into();
        let error = network.setup(bad).await.unwrap_err();
        assert!(error.to_string().contains("namespace"), "{error}");
        // The name is taken inside the namespace: the kernel refuses the pair.
        let ns = namespace();
        within(&ns, || sh("ip link add eth0 type bridge"));
        let error = network
            .setup(request(3, &ns, &[port("", 8001, 80, Protocol::Udp)]))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("veth"), "{error}");
        for (what, pod) in [
            ("id", {
                let mut p = request(4, &ns, &[]);
                p.sandbox_id = "../x".into();
                p
            }),
            ("';'", {
                let mut p = request(4, &ns, &[]);
                p.name = "a;K8S_POD_UID=b".into();
                p
            }),
            ("port 0", request(4, &ns, &[port("", 80, 0, Protocol::Tcp)])),
        ] {
            let error = network.setup(pod).await.unwrap_err();
            assert!(
                error.kind() == Kind::Invalid && error.to_string().contains(what),
                "{error}"
            );
        }
        network.teardown(&ok.id).await.unwrap();
        drop(ok);
        nothing_left(&host, &network).await;
    });
}

#[test]
fn the_interface_of_a_stopped_pod_is_left_to_its_namespace() {
    // Until that dies the pod stays listed as draining, and a second teardown changes nothing.
    let host = Host::new();
    block_on(async {
        let network = Network::open(host.config()).unwrap();
        let a = pod(&network, 1, &[]).await;
        network.teardown(&a.id).await.unwrap();
        assert!(
            sh("ip -o link").contains(": hf"),
            "deleting a link takes 20 ms; its namespace is to do that"
        );
        network.teardown(&a.id).await.unwrap();
        assert_eq!(network.draining(), [a.id]);
    });
}

#[test]
fn a_hundred_pods_are_quick() {
    let host = Host::new();
    block_on(async {
        let network = Network::open(host.config()).unwrap();
        let first = pod(&network, 0, &[]).await;
        let namespaces: Vec<_> = (0..100).map(|_| namespace()).collect();
        let mut times = Vec::new();
        for (n, ns) in (1..).zip(&namespaces) {
            let ports = [port("", 8000 + u16::try_from(n).unwrap(), 80, Protocol::Tcp)];
            let request = request(n, ns, &ports);
            let began = Instant::now();
            network.setup(request).await.unwrap();
            times.push(began.elapsed());
        }
        times.sort();
        let mut downs = Vec::new();
        for n in 1..=100 {
            let began = Instant::now();
            network.teardown(&id(n)).await.unwrap();
            downs.push(began.elapsed());
        }
        downs.sort();
        println!(
            "setup p10 {:?} median {:?} p90 {:?}; teardown p10 {:?} median {:?} p90 {:?}",
            times[10], times[50], times[90], downs[10], downs[50], downs[90]
        );
        drop(namespaces);
        network.teardown(&first.id).await.unwrap();
        drop(first);
        nothing_left(&host, &network).await;
    });
}
