//! Host ports of SCTP by real traffic, where the kernel speaks it. Virtual machines of `make test-vm` do, and demand it by
//! `HOLDFAST_TEST_SCTP=1`; elsewhere the kernel's refusal is what is checked, beside the rule that `privileged_ports` reads.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod fixture;

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use fixture::*;
use holdfast_network::{Network, Protocol};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, bind, connect, ipproto, listen, socket, sockopt};

/// One-to-one style (RFC 6458, section 4): it behaves as a TCP socket does.
fn sctp() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP))
}

fn ask(ns: &OwnedFd, to: &str, limit: Duration) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    let socket = within(ns, || sctp().unwrap());
    // For connecting too (socket(7)).
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(limit)).unwrap();
    connect(&socket, &to).ok()?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    Some(said)
}

#[test]
fn a_host_port_of_sctp_leads_to_its_pod() {
    let host = Host::new();
    let own = own_ns();
    if let Err(error) = sctp() {
        assert_eq!(error, Errno::PROTONOSUPPORT);
        assert!(
            std::env::var_os("HOLDFAST_TEST_SCTP").is_none(),
            "this kernel has no SCTP, and HOLDFAST_TEST_SCTP demands it"
        );
        return;
    }
    block_on(async {
        let network = Network::open(host.config()).unwrap();
        let a = pod(&network, 1, &[port("", 8132, 132, Protocol::Sctp)]).await;
        let b = pod(&network, 2, &[]).await;
        let listener = within(&a.ns, || {
            let socket = sctp().unwrap();
            bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, 132))).unwrap();
            listen(&socket, 8).unwrap();
            TcpListener::from(socket)
        });
        serve(listener, "a");
        assert_eq!(ask(&b.ns, "10.87.0.2:132", SOON), Some("a 10.87.0.3".into()));
        assert_eq!(ask(&own, "127.0.0.1:8132", SOON), Some("a 10.87.0.1".into()));
        let at = format!("{HOST4}:8132");
        assert_eq!(ask(&own, &at, SOON), Some(format!("a {HOST4}")));
        assert_eq!(ask(&host.outside, &at, SOON), Some(format!("a {OUTSIDE4}")));
        for from in [&b, &a] {
            assert_eq!(ask(&from.ns, &at, SOON), Some("a 10.87.0.1".into()));
        }
        network.teardown(&a.id).await.unwrap();
        assert_eq!(ask(&host.outside, &at, NEVER), None);
        network.teardown(&b.id).await.unwrap();
        drop((a, b));
        nothing_left(&host, &network).await;
    });
}
