//! Sockets of the pod's network namespace, for the daemon to connect: made by a child that joins the namespace.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holdfast_monitor_api::message::{Failure, FailureKind, PodSockets, reply};
use holdfast_sys::{clone, namespace};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::error::{failed, failure};
use crate::job::Outcome;
use crate::monitor::{Asker, Monitor, Purpose};

/// In a job's number: which sockets there are.
const IPV4: u64 = 1;
const IPV6: u64 = 2;

impl Monitor {
    pub(crate) fn pod_sockets(&mut self, asker: Asker) -> Result<(), Failure> {
        let sandbox = self.sandbox.as_ref().filter(|sandbox| sandbox.running());
        let held = sandbox.and_then(|sandbox| sandbox.descriptors.as_ref());
        let held = held.ok_or_else(|| failure(FailureKind::Precondition, "the sandbox is not running"))?;
        // Without one of its own the pod has the node's, and so has this process.
        let net = held
            .net
            .as_ref()
            .map(OwnedFd::try_clone)
            .transpose()
            .map_err(|error| failed("cannot duplicate the sandbox's network namespace", &error))?;
        self.start_socket_job(Purpose::Sockets { asker }, || make(net.as_ref()));
        Ok(())
    }

    pub(crate) fn sockets_made(&mut self, asker: Asker, outcome: Outcome, sockets: &[OwnedFd]) {
        match outcome {
            Err(failure) => self.answer(asker, reply::Body::Error(failure)),
            Ok(which) => {
                let made = PodSockets {
                    has_ipv4: which & IPV4 != 0,
                    has_ipv6: which & IPV6 != 0,
                };
                let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
                self.answer_with(asker, reply::Body::PodSockets(made), &fds);
            }
        }
    }
}

/// Runs in the child.
fn make(net: Option<&OwnedFd>) -> (Outcome, Vec<OwnedFd>) {
    let mut sockets = Vec::new();
    let outcome = (|| {
        if let Some(net) = net {
            namespace::join(net.as_fd(), clone::NEWNET)
                .map_err(|error| failed("cannot join the sandbox's network namespace", &error))?;
        }
        let mut which = 0;
        for (family, bit) in [(AddressFamily::INET, IPV4), (AddressFamily::INET6, IPV6)] {
            match socket_with(
                family,
                SocketType::STREAM,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            ) {
                Ok(socket) => {
                    sockets.push(socket);
                    which |= bit;
                }
                // A kernel that was told to do without.
                Err(Errno::AFNOSUPPORT) => {}
                Err(errno) => return Err(failed("cannot make a socket", &errno.into())),
            }
        }
        Ok(which)
    })();
    (outcome, sockets)
}
