//! Which descriptors travel with a sandbox and with a container, as structs. The order on the wire is written down at
//! [`SandboxCreated`] and [`ContainerCreated`]; here is the one place that applies it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::Error;
use crate::message::{ContainerCreated, ContainerEntry, SandboxCreated};

/// What the daemon's vault holds of one sandbox. Close all of it at StopPodSandbox, or the namespaces never die.
#[derive(Debug)]
pub struct SandboxDescriptors {
    /// Pause.
    pub pidfd: OwnedFd,
    pub net: Option<OwnedFd>,
    pub ipc: Option<OwnedFd>,
    pub uts: Option<OwnedFd>,
    pub pid: Option<OwnedFd>,
    pub user: Option<OwnedFd>,
    /// A route netlink socket that lives in the sandbox's network namespace.
    pub netlink: Option<OwnedFd>,
}

impl SandboxDescriptors {
    pub fn take(created: &SandboxCreated, from: &mut impl Iterator<Item = OwnedFd>) -> Result<Self, Error> {
        let mut next = |wanted: bool| wanted.then(|| due(from)).transpose();
        Ok(SandboxDescriptors {
            pidfd: next(true)?.ok_or_else(missing)?,
            net: next(created.has_net)?,
            ipc: next(created.has_ipc)?,
            uts: next(created.has_uts)?,
            pid: next(created.has_pid)?,
            user: next(created.has_user)?,
            netlink: next(created.has_netlink)?,
        })
    }

    /// The descriptors in the order of the wire.
    pub fn as_fds(&self) -> Vec<BorrowedFd<'_>> {
        let optional = [
            &self.net,
            &self.ipc,
            &self.uts,
            &self.pid,
            &self.user,
            &self.netlink,
        ];
        let mut fds = vec![self.pidfd.as_fd()];
        fds.extend(optional.into_iter().flatten().map(AsFd::as_fd));
        fds
    }

    /// The message that announces these descriptors.
    pub fn announce(&self, pause_pid: i32, warnings: Vec<String>) -> SandboxCreated {
        SandboxCreated {
            pause_pid,
            has_net: self.net.is_some(),
            has_ipc: self.ipc.is_some(),
            has_uts: self.uts.is_some(),
            has_pid: self.pid.is_some(),
            has_user: self.user.is_some(),
            has_netlink: self.netlink.is_some(),
            warnings,
        }
    }
}

/// The outer ends of a container's standard streams.
#[derive(Debug)]
pub enum Stdio {
    Tty {
        master: OwnedFd,
    },
    Pipes {
        stdout: OwnedFd,
        stderr: OwnedFd,
        stdin: Option<OwnedFd>,
    },
}

/// What the daemon's vault holds of one container, until it has exited: then close it.
#[derive(Debug)]
pub struct ContainerDescriptors {
    /// The container's init.
    pub pidfd: OwnedFd,
    pub stdio: Stdio,
    /// The log pump's memory.
    pub log_state: Option<OwnedFd>,
    /// The mount namespace that an OCI runtime works in.
    pub mounts: Option<OwnedFd>,
}

/// Which descriptors a container has; the part that [`ContainerCreated`] and [`ContainerEntry`] share.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub tty: bool,
    pub has_stdin: bool,
    pub has_log_state: bool,
    pub has_mounts: bool,
}

impl From<&ContainerCreated> for Shape {
    fn from(message: &ContainerCreated) -> Self {
        Shape {
            tty: message.tty,
            has_stdin: message.has_stdin,
            has_log_state: message.has_log_state,
            has_mounts: message.has_mounts,
        }
    }
}

impl From<&ContainerEntry> for Shape {
    fn from(message: &ContainerEntry) -> Self {
        Shape {
            tty: message.tty,
            has_stdin: message.has_stdin,
            has_log_state: message.has_log_state,
            has_mounts: message.has_mounts,
        }
    }
}

impl ContainerDescriptors {
    pub fn take(shape: Shape, from: &mut impl Iterator<Item = OwnedFd>) -> Result<Self, Error> {
        let pidfd = due(from)?;
        let stdio = if shape.tty {
            Stdio::Tty { master: due(from)? }
        } else {
            Stdio::Pipes {
                stdout: due(from)?,
                stderr: due(from)?,
                stdin: shape.has_stdin.then(|| due(from)).transpose()?,
            }
        };
        Ok(ContainerDescriptors {
            pidfd,
            stdio,
            log_state: shape.has_log_state.then(|| due(from)).transpose()?,
            mounts: shape.has_mounts.then(|| due(from)).transpose()?,
        })
    }

    /// The descriptors in the order of the wire.
    pub fn as_fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = vec![self.pidfd.as_fd()];
        match &self.stdio {
            Stdio::Tty { master } => fds.push(master.as_fd()),
            Stdio::Pipes {
                stdout,
                stderr,
                stdin,
            } => {
                fds.push(stdout.as_fd());
                fds.push(stderr.as_fd());
                fds.extend(stdin.as_ref().map(AsFd::as_fd));
            }
        }
        fds.extend(
            [&self.log_state, &self.mounts]
                .into_iter()
                .flatten()
                .map(AsFd::as_fd),
        );
        fds
    }

    pub fn shape(&self) -> Shape {
        Shape {
            tty: matches!(self.stdio, Stdio::Tty { .. }),
            has_stdin: matches!(&self.stdio, Stdio::Pipes { stdin: Some(_), .. }),
            has_log_state: self.log_state.is_some(),
            has_mounts: self.mounts.is_some(),
        }
    }
}

fn due(from: &mut impl Iterator<Item = OwnedFd>) -> Result<OwnedFd, Error> {
    from.next().ok_or_else(missing)
}

fn missing() -> Error {
    Error::protocol("a message with fewer descriptors than it announces")
}
