//! Host ports and the guard of the host's loopback, by real traffic.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod fixture;

use fixture::*;
use holdfast_network::{Error, Network, Protocol};

#[test]
fn host_ports_lead_to_pods_from_everywhere() {
    let host = Host::new();
    let own = own_ns();
    block_on(async {
        let network = Network::open(host.config()).unwrap();
        let ports = [
            port("", 8080, 80, Protocol::Tcp),
            port("", 8053, 53, Protocol::Udp),
            port("", 8132, 132, Protocol::Sctp),
            port(HOST4, 8081, 80, Protocol::Tcp),
            port("127.0.0.1", 8082, 80, Protocol::Tcp),
            port("::", 8083, 80, Protocol::Tcp),
        ];
        let (a, b) = (pod(&network, 1, &ports).await, pod(&network, 2, &[]).await);
        serve_tcp(&a.ns, "[::]:80", "a");
        serve_udp(&a.ns, "[::]:53", "a");
        let rules = sh("nft list ruleset");
        assert!(rules.contains("sctp . 8132"), "{rules}");
        assert!(rules.contains("10.87.0.2 . 80"), "{rules}");

        // From the host itself, by loopback and by its own address.
        assert_eq!(ask_tcp(&own, "127.0.0.1:8080", SOON), Some("a 10.87.0.1".into()));
        assert_eq!(
            ask_tcp(&own, &format!("{HOST4}:8080"), SOON),
            Some(format!("a {HOST4}"))
        );
        assert_eq!(
            ask_tcp(&own, &format!("[{HOST6}]:8080"), SOON),
            Some(format!("a {HOST6}"))
        );
        assert_eq!(
            ask_udp(&udp(&own, "127.0.0.1:0"), "127.0.0.1:8053", SOON),
            Some("a 10.87.0.1".into())
        );
        // From outside; the pod sees the client's own address.
        assert_eq!(
            ask_tcp(&host.outside, &format!("{HOST4}:8080"), SOON),
            Some(format!("a {OUTSIDE4}"))
        );
        assert_eq!(
            ask_tcp(&host.outside, &format!("[{HOST6}]:8080"), SOON),
            Some(format!("a {OUTSIDE6}"))
        );
        assert_eq!(
            ask_udp(&udp(&host.outside, "0.0.0.0:0"), &format!("{HOST4}:8053"), SOON),
            Some(format!("a {OUTSIDE4}"))
        );
        assert_eq!(
            ask_udp(&udp(&host.outside, "[::]:0"), &format!("[{HOST6}]:8053"), SOON),
            Some(format!("a {OUTSIDE6}"))
        );
        // From another pod, and from the pod to itself.
        for from in [&b, &a] {
            assert_eq!(
                ask_tcp(&from.ns, &format!("{HOST4}:8080"), SOON),
                Some("a 10.87.0.1".into())
            );
            assert_eq!(
                ask_tcp(&from.ns, "10.87.0.1:8080", SOON),
                Some("a 10.87.0.1".into())
            );
            assert!(ask_tcp(&from.ns, &format!("[{HOST6}]:8080"), SOON).is_some());
        }
        // Only the address that was asked for.
        assert!(ask_tcp(&host.outside, &format!("{HOST4}:8081"), SOON).is_some());
        assert_eq!(ask_tcp(&own, "127.0.0.1:8081", NEVER), None);
        assert_eq!(ask_tcp(&host.outside, &format!("[{HOST6}]:8081"), NEVER), None);
        assert!(ask_tcp(&own, "127.0.0.1:8082", SOON).is_some());
        assert_eq!(ask_tcp(&host.outside, &format!("{HOST4}:8082"), NEVER), None);
        assert!(ask_tcp(&host.outside, &format!("[{HOST6}]:8083"), SOON).is_some());
        assert_eq!(ask_tcp(&host.outside, &format!("{HOST4}:8083"), NEVER), None);
        // Traffic through the host that only happens to have the port number is not touched.
        serve_tcp(&host.outside, "[::]:8080", "out");
        assert_eq!(
            ask_tcp(&b.ns, &format!("{OUTSIDE4}:8080"), SOON),
            Some(format!("out {HOST4}"))
        );

        network.teardown(&a.id).await.unwrap();
        assert_eq!(ask_tcp(&own, "127.0.0.1:8080", NEVER), None);
        assert_eq!(ask_tcp(&host.outside, &format!("{HOST4}:8080"), NEVER), None);
        network.teardown(&b.id).await.unwrap();
        drop((a, b));
        nothing_left(&host, &network).await;
    });
}

#[test]
fn a_taken_port_names_its_holder() {
    let host = Host::new();
    block_on(async {
        let network = Network::open(host.config()).unwrap();
        let a = pod(&network, 1, &[port("", 8080, 80, Protocol::Tcp)]).await;
        let ns = namespace();
        let wanted = [port(HOST4, 8080, 80, Protocol::Tcp)];
        let error = network.setup(request(2, &ns, &wanted)).await.unwrap_err();
        assert!(
            matches!(&error, Error::HostPortInUse { holder, .. } if holder == "default/pod-1"),
            "{error}"
        );
        assert!(
            error.to_string().contains("8080/tcp") && error.to_string().contains(&a.id),
            "{error}"
        );
        let _udp = pod(&network, 3, &[port("", 8080, 80, Protocol::Udp)]).await;
        // Free as soon as the holder is taken down, though its namespace still lives.
        network.teardown(&a.id).await.unwrap();
        network.setup(request(2, &ns, &wanted)).await.unwrap();
    });
}

#[test]
fn udp_flows_follow_the_port() {
    let host = Host::new();
    block_on(async {
        let network = Network::open(host.config()).unwrap();
        let client = udp(&host.outside, "0.0.0.0:5555");
        let to = format!("{HOST4}:8053");
        // An entry of connection tracking comes to be that knows of no pod.
        let _warm = pod(&network, 9, &[]).await;
        assert_eq!(ask_udp(&client, &to, NEVER), None);
        let ports = [port("", 8053, 53, Protocol::Udp)];
        let a = pod(&network, 1, &ports).await;
        serve_udp(&a.ns, "0.0.0.0:53", "a");
        assert_eq!(ask_udp(&client, &to, SOON), Some(format!("a {OUTSIDE4}")));
        network.teardown(&a.id).await.unwrap();
        let b = pod(&network, 2, &ports).await;
        serve_udp(&b.ns, "0.0.0.0:53", "b");
        assert_eq!(ask_udp(&client, &to, SOON), Some(format!("b {OUTSIDE4}")));
    });
}

/// CVE-2020-8558: with `route_localnet`, a neighbour could send packets for 127.0.0.1 and reach what listens only there.
#[test]
fn nobody_reaches_the_loopback_of_the_host() {
    let host = Host::new();
    let own = own_ns();
    block_on(async {
        let network = Network::open(host.config()).unwrap();
        let a = pod(&network, 1, &[port("", 8080, 80, Protocol::Tcp)]).await;
        serve_tcp(&own, "127.0.0.1:9000", "secret");
        let forge = |gateway: &str| {
            sh(&format!(
                "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; ip addr del 127.0.0.1/8 dev lo; \
                 ip route flush table local 127.0.0.0/8; ip route add 127.0.0.1 via {gateway} dev eth0"
            ));
        };
        within(&a.ns, || forge("10.87.0.1"));
        within(&host.outside, || forge(HOST4));
        // Worse than the default: somebody set it everywhere.
        sh("echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet");
        for from in [&a.ns, &host.outside] {
            assert_eq!(ask_tcp(from, "127.0.0.1:9000", NEVER), None);
            assert_eq!(ask_tcp(from, "127.0.0.1:8080", NEVER), None);
        }
        // The attempt is a real one: without the guard it gets through.
        sh("nft flush chain inet holdfast guard");
        assert_eq!(
            ask_tcp(&a.ns, "127.0.0.1:9000", SOON).as_deref(),
            Some("secret 10.87.0.2")
        );
        assert!(ask_tcp(&host.outside, "127.0.0.1:9000", SOON).is_some());
    });
}
