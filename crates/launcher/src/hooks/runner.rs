//! The process that runs the hooks of a creation. It is forked before the builder goes anywhere, so that it stays where
//! hooks of the runtime's namespaces belong, with the limits and the priority of the monitor. It ends with the builder.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use holdfast_sys::{clone, scm};
use serde::{Deserialize, Serialize};

use super::run::Circumstances;
use super::{CREATE, Hooks, Point};
use crate::channel::{Word, listen_done, say};
use crate::fault::{Context, Fault, Result};
use crate::init::close_others;

const ORDER: usize = 256;

#[derive(Debug)]
pub(super) struct Runner {
    socket: OwnedFd,
}

/// What the builder wants run; init's pidfd comes along.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// prestart and createRuntime. The pid is the runtime's.
    Runtime { pid: i32 },
    /// createContainer, in init's namespaces. The pid is the container's.
    Container { pid: i32 },
}

impl Runner {
    pub fn fork(hooks: &Hooks) -> Result<Self> {
        let what = || "fork the process that runs hooks";
        let (ours, theirs) = scm::pair().at(what)?;
        clone::fork(|| match close_others(&[theirs.as_fd()]) {
            Ok(()) => serve(hooks, &theirs),
            Err(_) => 1,
        })
        .at(what)?;
        Ok(Self { socket: ours })
    }

    /// Has hooks run, and waits for them: their deadline is below that of the builder.
    pub fn order(&self, order: Order, init: BorrowedFd<'_>) -> Result<()> {
        let what = || "order hooks to be run";
        let bytes = serde_json::to_vec(&order).unwrap_or_default();
        scm::send(self.socket.as_fd(), &bytes, &[init]).at(what)?;
        listen_done(self.socket.as_fd(), "the process that runs hooks")
    }
}

fn serve(hooks: &Hooks, socket: &OwnedFd) -> i32 {
    let until = Instant::now() + CREATE;
    let mut buffer = [0; ORDER];
    loop {
        let received = match scm::recv(socket.as_fd(), &mut buffer) {
            Ok(received) if received.length > 0 => received,
            // The builder has ended.
            _ => return 0,
        };
        let order = serde_json::from_slice(&buffer[..received.length]).ok();
        let word = match (order, received.fds.first()) {
            (Some(order), Some(init)) => match obey(hooks, order, init.as_fd(), (socket, until)) {
                Ok(()) => Word::Ready { warnings: Vec::new() },
                Err(fault) => Word::Failed(fault.into()),
            },
            _ => Word::Failed(Fault::invalid("unreadable order to run hooks").into()),
        };
        if say(socket.as_fd(), &word, &[]).is_err() {
            return 0;
        }
    }
}

fn obey(
    hooks: &Hooks,
    order: Order,
    init: BorrowedFd<'_>,
    (socket, until): (&OwnedFd, Instant),
) -> Result<()> {
    let with = Circumstances {
        // The builder says nothing more before it is answered: what comes is its end.
        wanted: Some(socket.as_fd()),
        ..Circumstances::default()
    };
    match order {
        Order::Runtime { pid } => {
            let with = Circumstances {
                pid: Some(pid),
                ..with
            };
            hooks.run(Point::Prestart, &with, until)?;
            hooks.run(Point::CreateRuntime, &with, until)
        }
        Order::Container { pid } => {
            let with = Circumstances {
                pid: Some(pid),
                within: Some(init),
                ..with
            };
            hooks.run(Point::CreateContainer, &with, until)
        }
    }
}
