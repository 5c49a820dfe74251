//! The client's calls that hand descriptors over: streaming exec, attach, sockets of a pod.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::client::{accepted, name_of, unexpected, within};
use crate::message::{Attach, Empty, ExecFinished, ExecStream, reply, request};
use crate::pending::Ticket;
use crate::{Client, Error};

/// A process that was started with [`Client::exec_stream`]. Dropping it leaves the process alone.
pub struct RunningExec {
    pub pid: i32,
    /// The only descriptor of its terminal's master, where it has a terminal.
    pub terminal: Option<OwnedFd>,
    ticket: Ticket,
    /// The answer comes over this connection.
    _client: Client,
}

impl RunningExec {
    /// Waits for the process's end. [`Error::Gone`]: the monitor died or was lost meanwhile, and nobody knows how it ends.
    pub async fn finished(mut self) -> Result<ExecFinished, Error> {
        match accepted(self.ticket.next().await?)? {
            (reply::Body::ExecFinished(finished), _) => Ok(finished),
            _ => Err(unexpected("ExecStream")),
        }
    }
}

/// Sockets of a pod's network namespace, not yet connected.
#[derive(Debug, Default)]
pub struct Sockets {
    /// None where the kernel has no such address family.
    pub ipv4: Option<OwnedFd>,
    pub ipv6: Option<OwnedFd>,
}

impl Client {
    /// Starts a process whose ends of the standard streams are `ends`, as [`ExecStream`] orders them; they are closed here.
    pub async fn exec_stream(&self, exec: ExecStream, ends: Vec<OwnedFd>) -> Result<RunningExec, Error> {
        let body = request::Body::ExecStream(exec);
        let what = name_of(&body);
        let exchange = async {
            let fds: Vec<BorrowedFd<'_>> = ends.iter().map(AsFd::as_fd).collect();
            let mut ticket = self.send(body, &fds).await?;
            let answer = accepted(ticket.next().await?)?;
            Ok((ticket, answer))
        };
        let (ticket, answer) = within(what, self.deadline, exchange).await?;
        let (reply::Body::ExecStarted(started), fds) = answer else {
            return Err(unexpected(what));
        };
        let terminal = fds.into_iter().next();
        if terminal.is_some() != started.has_terminal {
            return Err(Error::protocol("a terminal that was announced and not sent"));
        }
        Ok(RunningExec {
            pid: started.pid,
            terminal,
            ticket,
            _client: self.clone(),
        })
    }

    /// Has the container's output copied into the pipes whose write ends are `ends`; they are closed here.
    pub async fn attach(&self, attach: Attach, ends: Vec<OwnedFd>) -> Result<(), Error> {
        let fds: Vec<BorrowedFd<'_>> = ends.iter().map(AsFd::as_fd).collect();
        match self.call(request::Body::Attach(attach), &fds).await? {
            (reply::Body::Done(_), _) => Ok(()),
            _ => Err(unexpected("Attach")),
        }
    }

    /// Sockets made in the sandbox's network namespace.
    pub async fn pod_sockets(&self) -> Result<Sockets, Error> {
        let (made, fds) = match self.call(request::Body::PodSockets(Empty {}), &[]).await? {
            (reply::Body::PodSockets(made), fds) => (made, fds),
            _ => return Err(unexpected("PodSockets")),
        };
        let expected = usize::from(made.has_ipv4) + usize::from(made.has_ipv6);
        if fds.len() != expected {
            return Err(Error::Descriptors {
                expected,
                got: fds.len(),
            });
        }
        let mut fds = fds.into_iter();
        let mut next = |wanted: bool| if wanted { fds.next() } else { None };
        Ok(Sockets {
            ipv4: next(made.has_ipv4),
            ipv6: next(made.has_ipv6),
        })
    }
}
