//! What is done inside a pod's network namespace.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::netlink::route::LOOPBACK;
use crate::netlink::{Batch, Family, Socket, failed};
use crate::types::POD_INTERFACE;
use crate::{Error, Result};

/// An address of the pod, the length of its prefix, and its gateway.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub ip: IpAddr,
    pub prefix: u8,
    pub gateway: IpAddr,
}

/// Opens (or takes) a routing socket that acts in the namespace. With IPv6, interfaces born in it from now on take no
/// router advertisements, which any other pod could send (CVE-2020-10749), and wait for no duplicate detection.
pub(crate) fn enter(netns: BorrowedFd<'_>, netlink: Option<OwnedFd>, ipv6: bool) -> Result<Socket> {
    match netlink {
        Some(fd) if !ipv6 => Socket::adopt(fd),
        given => inside(netns, || {
            if ipv6 {
                for key in ["accept_ra", "accept_dad"] {
                    quiet_sysctl(key);
                }
            }
            given.map_or_else(|| Socket::open(Family::Route), Socket::adopt)
        }),
    }
}

/// A kernel without IPv6 has no such files, and then the address is refused with a clear error.
fn quiet_sysctl(key: &str) {
    let _ = super::host::set_sysctl(&format!("ipv6/conf/default/{key}"), "0");
}

/// Runs `job` on a thread of its own in the namespace: a thread that has been elsewhere is not used for anything else.
fn inside<T: Send>(netns: BorrowedFd<'_>, job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let body = || {
            move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
                .map_err(|e| failed("cannot enter the pod's network namespace", e.into()))?;
            job()
        };
        let spawned = thread::Builder::new()
            .name("pod-netns".into())
            .stack_size(128 << 10)
            .spawn_scoped(scope, body);
        let thread =
            spawned.map_err(|e| failed("cannot start a thread for the pod's network namespace", e))?;
        thread.join().map_err(|_| Error::Stopped)?
    })
}

/// Only the loopback interface, for pods whose other interfaces are made by plugins.
pub(crate) fn loopback_up(netns: &OwnedFd, netlink: Option<OwnedFd>) -> Result<()> {
    let mut socket = enter(netns.as_fd(), netlink, false)?;
    let mut batch = Batch::default();
    batch.link_up(LOOPBACK, "lo in the pod");
    socket.execute(batch)
}

/// Loopback and the pair's inner end up, its addresses and default routes.
pub(crate) fn configure(socket: &mut Socket, addresses: &[Address]) -> Result<()> {
    let link = socket.link(POD_INTERFACE)?.ok_or_else(|| {
        failed(
            format!("{POD_INTERFACE} is not in the pod's network namespace"),
            rustix::io::Errno::NODEV.into(),
        )
    })?;
    let mut batch = Batch::default();
    batch.link_up(LOOPBACK, "lo in the pod");
    batch.link_up(link.index, "eth0 in the pod");
    for address in addresses {
        batch.add_address(link.index, address.ip, address.prefix);
    }
    for address in addresses {
        batch.add_default_route(link.index, address.gateway);
    }
    socket.execute(batch)
}
