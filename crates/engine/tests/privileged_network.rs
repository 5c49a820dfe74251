//! Pods on the built-in network.
#![allow(clippy::unwrap_used)]

mod node;

use holdfast_model::{DnsConfig, SandboxState};
use node::{Node, timed};

#[test]
fn pods_on_the_bridge_reach_each_other_and_leave_nothing() {
    let mut node = Node::new("bridge");
    let mut spec = node.pod("server");
    spec.hostname = "server-0".into();
    spec.dns = Some(DnsConfig {
        servers: vec!["10.96.0.10".into()],
        searches: vec!["test.local".into()],
        options: vec!["ndots:5".into()],
    });
    spec.sysctls = [("net.core.somaxconn".to_owned(), "77".to_owned())].into();
    let server = timed("run", || node.run_pod(spec));
    let record = node.engine().sandbox(&server).unwrap();
    assert_eq!(record.state, SandboxState::Ready);
    assert_eq!(
        record.ips.len(),
        2,
        "one address of each family: {:?}",
        record.ips
    );
    let script = "while :; do echo served | nc -l -p 8080; done";
    let listening = node.run(&server, node.script("main", script));
    assert_eq!(
        node.sh(&listening, "hostname; cat /etc/hostname"),
        "server-0\nserver-0\n"
    );
    assert_eq!(
        node.sh(&listening, "cat /etc/resolv.conf"),
        "search test.local\nnameserver 10.96.0.10\noptions ndots:5\n"
    );
    assert_eq!(node.sh(&listening, "cat /proc/sys/net/core/somaxconn"), "77\n");
    assert!(
        node.sh(&listening, "cat /etc/hosts")
            .contains(&format!("{}\tserver-0", record.ips[0]))
    );

    let client = node.run_pod(node.pod("client"));
    let asking = node.run(&client, node.script("main", "sleep 1000"));
    let ask = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do nc -w 2 {} 8080 && break; sleep 0.1; done",
        record.ips[0]
    );
    assert_eq!(node.sh(&asking, &ask), "served\n");
    timed("stop", || node.stop_pod(&client));
    timed("remove", || node.remove_pod(&client));
    node.crash();
    node.open();
    assert_eq!(node.engine().sandbox(&server).unwrap().ips, record.ips);
    node.remove_pod(&server);
    node.assert_clean();
}
