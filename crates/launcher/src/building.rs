//! The monitor's side: a build in progress, its outcome, and the exec barrier.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holdfast_sys::process::{self, Control};
use holdfast_sys::{clone, pidfd, scm};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};
use crate::fault::{Context, Fault};
use crate::plan::PodNamespaces;
use crate::{channel, fault};

/// Longest report or exec failure: one datagram, far below what a socket takes.
pub(crate) const REPORT_LIMIT: usize = 64 * 1024;

/// What a descriptor of a report is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Slot {
    Init,
    Net,
    Ipc,
    Uts,
    Pid,
    User,
    Mnt,
    Netlink,
    Terminal,
}

/// What the builder tells the monitor, in one datagram, with the descriptors that `slots` names.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Built {
        pid: i32,
        slots: Vec<Slot>,
        warnings: Vec<String>,
    },
    Failed(Failed),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failed {
    pub message: String,
    pub kind: Kind,
    pub errno: i32,
}

/// What a builder has made.
#[derive(Debug)]
pub(crate) struct Made {
    pub pid: i32,
    pub fds: Vec<(Slot, OwnedFd)>,
    pub warnings: Vec<String>,
}

/// Forks a builder that runs `body` with init's end of the barrier, and reports what came of it.
pub(crate) fn start(
    id: &str,
    has_barrier: bool,
    body: impl FnOnce(&OwnedFd) -> fault::Result<Made>,
) -> Result<Building, Error> {
    let failed = |source| Error::Start {
        id: id.to_owned(),
        source,
    };
    crate::warm_up()?;
    let (report, report_to) = scm::pair().map_err(failed)?;
    let (barrier, init_end) = scm::pair().map_err(failed)?;
    let monitor = rustix::process::getpid();
    let child = clone::fork(|| {
        let built = guard(monitor).and_then(|()| body(&init_end));
        let report = match built {
            Ok(made) => {
                let (slots, fds): (Vec<_>, Vec<_>) = made.fds.into_iter().unzip();
                let report = Report::Built {
                    pid: made.pid,
                    slots,
                    warnings: made.warnings,
                };
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                return channel::report(report_to.as_fd(), &report, &fds).map_or(1, |()| 0);
            }
            Err(fault) => Report::Failed(fault.into()),
        };
        channel::report(report_to.as_fd(), &report, &[]).map_or(1, |()| 0)
    })
    .map_err(failed)?;
    Ok(Building {
        id: id.to_owned(),
        builder_pid: child.pid,
        builder: child.pidfd,
        report,
        barrier: has_barrier.then_some(barrier),
        done: false,
    })
}

/// What holds for the builder and, but for its end, for all that it clones until they execute a program.
fn guard(monitor: rustix::process::Pid) -> fault::Result<()> {
    // A builder holds duplicates of all that the monitor has, and nobody would hear what it makes: it must not outlive it.
    // Its children have no such signal.
    process::control(Control::ParentDeathSignal(libc::SIGKILL)).at(|| "tie the builder to the monitor")?;
    if rustix::process::getppid() != Some(monitor) {
        return Err(Fault::new(Kind::Internal, "the monitor has ended"));
    }
    // Builders and inits hold the monitor's descriptors and the host's privileges. An init is in the container's
    // namespaces with them: whoever has CAP_SYS_PTRACE in the pod's user namespace could take it over.
    process::control(Control::Dumpable(false)).at(|| "become undumpable")
}

/// A builder at work. Dropping it leaves the builder alone.
#[derive(Debug)]
pub struct Building {
    pub(crate) id: String,
    pub(crate) builder_pid: i32,
    pub(crate) builder: OwnedFd,
    pub(crate) report: OwnedFd,
    /// The monitor's end of init's barrier; `None` for pause, which has none.
    pub(crate) barrier: Option<OwnedFd>,
    pub(crate) done: bool,
}

/// A process that stands at its barrier (pause: that runs).
#[derive(Debug)]
pub struct Built {
    /// As the monitor's PID namespace sees it. The process is a child of the monitor.
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// A sandbox's; of a container with hooks or of an external runtime, the mount namespace that its handler works in; else empty.
    pub namespaces: PodNamespaces,
    /// A route netlink socket in the sandbox's new network namespace.
    pub netlink: Option<OwnedFd>,
    pub pty_master: Option<OwnedFd>,
    /// `None` for a sandbox.
    pub barrier: Option<Barrier>,
    /// Things done less well than asked (such as a clamped `oom_score_adj`).
    pub warnings: Vec<String>,
}

impl Building {
    /// Readable when [`Building::poll`] has something to say.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// The builder's pid, for a monitor that reaps everything.
    #[must_use]
    pub fn builder_pid(&self) -> i32 {
        self.builder_pid
    }

    /// The builder's pidfd: readable from its death on.
    #[must_use]
    pub fn builder(&self) -> BorrowedFd<'_> {
        self.builder.as_fd()
    }

    /// Takes the report if it is there; never waits. After `Some` or an error the builder is ending, and its exit status is
    /// for whoever reaps everything.
    pub fn poll(&mut self) -> Result<Option<Built>, Error> {
        let mut buffer = vec![0; REPORT_LIMIT];
        let received = match scm::try_recv(self.report.as_fd(), &mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other.map_err(|source| Error::Report {
                id: self.id.clone(),
                source,
            }),
        };
        let end = self.finish();
        let received = received?;
        if received.length == 0 {
            return Err(Error::Lost {
                id: self.id.clone(),
                detail: end,
            });
        }
        let report = serde_json::from_slice(&buffer[..received.length]).map_err(|e| self.bad_report(e))?;
        match report {
            Report::Failed(Failed { message, kind, errno }) => Err(Error::Build { message, kind, errno }),
            Report::Built { pid, slots, warnings }
                if slots.len() == received.fds.len() && !received.truncated =>
            {
                self.built(pid, slots.into_iter().zip(received.fds), warnings)
                    .map(Some)
            }
            Report::Built { .. } => Err(self.bad_report("descriptors are missing")),
        }
    }

    /// Waits for the report, and for the builder to end.
    pub fn wait(mut self) -> Result<Built, Error> {
        let result = self.wait_for_report();
        let _reaped = pidfd::reap(self.builder.as_fd());
        result
    }

    fn wait_for_report(&mut self) -> Result<Built, Error> {
        loop {
            let mut fds = [rustix::event::PollFd::new(
                &self.report,
                rustix::event::PollFlags::IN,
            )];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    return Err(Error::Report {
                        id: self.id.clone(),
                        source: e.into(),
                    });
                }
            }
            if let Some(built) = self.poll()? {
                return Ok(built);
            }
        }
    }

    /// Says how the builder ended, where that is known already, and reaps it then. Else whoever reaps everything does.
    fn finish(&mut self) -> String {
        if std::mem::replace(&mut self.done, true) {
            return "it was polled again".to_owned();
        }
        match pidfd::try_reap(self.builder.as_fd()) {
            Ok(Some(pidfd::Ended::Exited(code))) => format!("exit code {code}"),
            Ok(Some(pidfd::Ended::Signaled(signal))) => format!("killed by signal {signal}"),
            Ok(None) => "it is ending".to_owned(),
            Err(_) => "reaped by another".to_owned(),
        }
    }

    fn built(
        &mut self,
        pid: i32,
        fds: impl Iterator<Item = (Slot, OwnedFd)>,
        warnings: Vec<String>,
    ) -> Result<Built, Error> {
        let mut namespaces = PodNamespaces::default();
        let (mut init, mut netlink, mut pty_master) = (None, None, None);
        for (slot, fd) in fds {
            let place = match slot {
                Slot::Init => &mut init,
                Slot::Net => &mut namespaces.net,
                Slot::Ipc => &mut namespaces.ipc,
                Slot::Uts => &mut namespaces.uts,
                Slot::Pid => &mut namespaces.pid,
                Slot::User => &mut namespaces.user,
                Slot::Mnt => &mut namespaces.mnt,
                Slot::Netlink => &mut netlink,
                Slot::Terminal => &mut pty_master,
            };
            *place = Some(fd);
        }
        Ok(Built {
            pid,
            pidfd: init.ok_or_else(|| self.bad_report("no pidfd"))?,
            namespaces,
            netlink,
            pty_master,
            barrier: self.barrier.take().map(Barrier::from_fd),
            warnings,
        })
    }

    fn bad_report(&self, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Report {
            id: self.id.clone(),
            source: io::Error::new(io::ErrorKind::InvalidData, why),
        }
    }
}

/// Why execve did not happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ExecFailure {
    /// What was tried and what the kernel said, such as `exec "foo": no such file in $PATH`.
    pub message: String,
    pub errno: i32,
    pub kind: Kind,
}

/// The one socket between the monitor and an init: released by a byte, closed by a successful execve, and carrying the
/// reason of a failed one. If the monitor's end is closed before [`Barrier::release`], init ends.
#[derive(Debug)]
pub struct Barrier {
    socket: OwnedFd,
    /// At the other end is not init but a starter, which runs a runtime's program and says how that went.
    starter: bool,
}

impl Barrier {
    /// For a monitor that kept the descriptor across its own re-exec.
    #[must_use]
    pub fn from_fd(socket: OwnedFd) -> Self {
        Self {
            socket,
            starter: false,
        }
    }

    /// Of a start that is under way in another process: there is nothing to release, and silence is a failure.
    pub(crate) fn of_starter(socket: OwnedFd) -> Self {
        Self {
            socket,
            starter: true,
        }
    }

    /// Whether the outcome is told by another process than init, and so may come after init's end.
    #[must_use]
    pub fn has_starter(&self) -> bool {
        self.starter
    }

    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.socket
    }

    /// Lets init go on to execve.
    pub fn release(&self) -> Result<(), Error> {
        scm::send(self.socket.as_fd(), b"R", &[]).map_err(|source| Error::Release { source })
    }

    /// Readable when [`Barrier::outcome`] has an answer.
    #[must_use]
    pub fn status_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// `None` while init has not come to an end of it. After `Ok` execve has happened, or init was killed before it:
    /// its exit status tells.
    pub fn outcome(&self) -> Option<Result<(), ExecFailure>> {
        let mut buffer = vec![0; REPORT_LIMIT];
        let lost = |message: String, errno| ExecFailure {
            message,
            errno,
            kind: Kind::Internal,
        };
        match scm::try_recv(self.socket.as_fd(), &mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(e) => Some(Err(lost(
                format!("read the exec status: {e}"),
                e.raw_os_error().unwrap_or(0),
            ))),
            Ok(received) if self.starter && received.length == 0 => Some(Err(lost(
                "the process that starts it ended without a word".to_owned(),
                0,
            ))),
            Ok(received) if received.length == 0 || self.starter && received.length == 1 => Some(Ok(())),
            Ok(received) => Some(Err(serde_json::from_slice(&buffer[..received.length])
                .unwrap_or_else(|e| lost(format!("unreadable exec status: {e}"), 0)))),
        }
    }

    /// Waits for the outcome.
    pub fn wait(&self) -> Result<(), ExecFailure> {
        loop {
            let mut fds = [rustix::event::PollFd::new(
                &self.socket,
                rustix::event::PollFlags::IN,
            )];
            let _woken = rustix::event::poll(&mut fds, None);
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_sys::clone::Clone3;
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

    use super::*;

    fn drop_capabilities() {
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Whether a process of the same user and without capabilities may look into this one, which has none either.
    fn is_open(pid: i32) -> bool {
        let look = clone::fork(|| {
            drop_capabilities();
            i32::from(std::fs::read_link(format!("/proc/{pid}/exe")).is_err())
        });
        let look = look.unwrap_or_else(|e| panic!("{e}"));
        let ended = pidfd::reap(look.pidfd.as_fd()).unwrap_or_else(|e| panic!("{e}"));
        ended == pidfd::Ended::Exited(0)
    }

    fn wait_for_ever() -> ! {
        loop {
            std::thread::park();
        }
    }

    fn wait(socket: &OwnedFd) -> Vec<u8> {
        let mut buffer = [0; 64];
        let received = scm::recv(socket.as_fd(), &mut buffer).unwrap_or_else(|e| panic!("{e}"));
        buffer[..received.length].to_vec()
    }

    #[test]
    fn a_builder_dies_with_its_monitor() {
        let (ours, theirs) = scm::pair().unwrap_or_else(|e| panic!("{e}"));
        let monitor = clone::fork(|| {
            let building = start("x", false, |_| {
                let own = rustix::process::getpid().as_raw_nonzero().get();
                scm::send(theirs.as_fd(), &own.to_ne_bytes(), &[]).at(|| "tell")?;
                wait_for_ever()
            });
            building.map_or(1, |_| wait_for_ever())
        });
        let monitor = monitor.unwrap_or_else(|e| panic!("{e}"));
        let builder = wait(&ours).try_into().map_or(0, i32::from_ne_bytes);
        let builder = pidfd::open(builder).unwrap_or_else(|e| panic!("{e}"));
        pidfd::signal(monitor.pidfd.as_fd(), libc::SIGKILL).unwrap_or_else(|e| panic!("{e}"));
        let mut fds = [rustix::event::PollFd::new(&builder, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        let ended = rustix::event::poll(&mut fds, Some(&limit));
        let _not_left = pidfd::signal(builder.as_fd(), libc::SIGKILL);
        assert_eq!(ended, Ok(1));
        let _reaped = pidfd::reap(monitor.pidfd.as_fd());
    }

    #[test]
    fn nobody_looks_into_a_builder_or_what_it_clones() {
        let (ours, theirs) = scm::pair().unwrap_or_else(|e| panic!("{e}"));
        let until_told = || {
            drop_capabilities();
            wait(&theirs);
            0
        };
        // That it is the builder's doing: others can be looked into.
        let other = clone::fork(until_told).unwrap_or_else(|e| panic!("{e}"));
        let building = start("x", false, |_| {
            let child = Clone3::default().spawn(until_told).at(|| "clone")?;
            drop_capabilities();
            scm::send(theirs.as_fd(), &child.pid.to_ne_bytes(), &[]).at(|| "tell")?;
            let _reaped = pidfd::reap(child.pidfd.as_fd());
            Err(Fault::invalid("as told"))
        });
        let building = building.unwrap_or_else(|e| panic!("{e}"));
        let child = wait(&ours).try_into().map_or(0, i32::from_ne_bytes);
        while !is_open(other.pid) {
            // It still has its capabilities.
            std::thread::yield_now();
        }
        assert!(!is_open(building.builder_pid()) && !is_open(child));
        for _ in 0..2 {
            scm::send(ours.as_fd(), b"end", &[]).unwrap_or_else(|e| panic!("{e}"));
        }
        let _reaped = pidfd::reap(other.pidfd.as_fd());
        assert_eq!(
            building.wait().err().map(|e| e.to_string()).as_deref(),
            Some("as told")
        );
    }
}
