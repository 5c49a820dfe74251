//! The sockets of a build: init's word to the builder, the builder's report to the monitor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holdfast_sys::scm;
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use crate::building::{Failed, REPORT_LIMIT, Report};
use crate::error::Kind;
use crate::fault::{Context, Fault, Result};

/// What init tells the builder: that it stands at the barrier, or why it does not. A terminal's master comes along.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    Ready {
        warnings: Vec<String>,
    },
    /// Before that, where the container has hooks: everything is mounted, and init, which knows itself by this pid, waits
    /// for them to be run.
    Mounted {
        pid: i32,
    },
    Failed(Failed),
}

pub(crate) fn say(socket: BorrowedFd<'_>, word: &Word, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    scm::send(socket, &encode(word), fds)
}

pub(crate) fn report(socket: BorrowedFd<'_>, report: &Report, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    scm::send(socket, &encode(report), fds)
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    // Plain structures of strings and numbers always encode; an empty datagram would read as end of file.
    let bytes = serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec());
    if bytes.len() <= REPORT_LIMIT {
        return bytes;
    }
    let failed = Failed {
        message: "the report was too long".to_owned(),
        kind: Kind::Internal,
        errno: 0,
    };
    serde_json::to_vec(&Report::Failed(failed)).unwrap_or_default()
}

/// Waits for init's word: its warnings and the terminal's master. `what` names init in errors.
pub(crate) fn listen(
    socket: BorrowedFd<'_>,
    process: BorrowedFd<'_>,
    what: &str,
) -> Result<(Vec<String>, Option<OwnedFd>)> {
    let (warnings, fds) = listen_all(socket, process, what)?;
    Ok((warnings, fds.into_iter().next()))
}

/// As [`listen`], with every descriptor that came.
pub(crate) fn listen_all(
    socket: BorrowedFd<'_>,
    process: BorrowedFd<'_>,
    what: &str,
) -> Result<(Vec<String>, Vec<OwnedFd>)> {
    let (word, fds) = hear(socket, process, what)?;
    warnings_of(word).map(|warnings| (warnings, fds))
}

/// Waits for init to have mounted everything, and says how it knows itself.
pub(crate) fn listen_mounted(socket: BorrowedFd<'_>, process: BorrowedFd<'_>, what: &str) -> Result<i32> {
    match hear(socket, process, what)?.0 {
        Word::Mounted { pid } => Ok(pid),
        word => warnings_of(word).and(Err(out_of_turn())),
    }
}

fn hear(socket: BorrowedFd<'_>, process: BorrowedFd<'_>, what: &str) -> Result<(Word, Vec<OwnedFd>)> {
    let mut buffer = vec![0; REPORT_LIMIT];
    // Init's end may live on in a process between the builder and init, so watch init itself as well.
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(socket, PollFlags::IN),
            PollFd::from_borrowed_fd(process, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.at(|| "wait for init")?,
        };
        let ended = !fds[1].revents().is_empty();
        let received = match scm::try_recv(socket, &mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && !ended => continue,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(died(what)),
            other => other.at(|| "hear from init")?,
        };
        if received.length == 0 {
            return Err(died(what));
        }
        return decode(&buffer[..received.length]).map(|word| (word, received.fds));
    }
}

fn decode(bytes: &[u8]) -> Result<Word> {
    serde_json::from_slice(bytes)
        .map_err(|e| Fault::new(Kind::Internal, format!("unreadable word of init: {e}")))
}

fn warnings_of(word: Word) -> Result<Vec<String>> {
    match word {
        Word::Ready { warnings } => Ok(warnings),
        Word::Failed(failed) => Err(Fault {
            message: failed.message,
            kind: failed.kind,
            errno: failed.errno,
        }),
        Word::Mounted { .. } => Err(out_of_turn()),
    }
}

fn out_of_turn() -> Fault {
    Fault::new(Kind::Internal, "init said something that it was not asked for")
}

/// Waits for a process that does what it is told to say how that went. `what` names it in errors.
pub(crate) fn listen_done(socket: BorrowedFd<'_>, what: &str) -> Result<()> {
    let mut buffer = vec![0; REPORT_LIMIT];
    let received = scm::recv(socket, &mut buffer).at(|| format!("hear from {what}"))?;
    if received.length == 0 {
        return Err(Fault::new(Kind::Internal, format!("{what} ended without a word")));
    }
    decode(&buffer[..received.length]).and_then(warnings_of).map(drop)
}

/// Waits for a process whose end of the socket closes when it executes its program.
pub(crate) fn listen_exec(socket: BorrowedFd<'_>, what: &str) -> Result<()> {
    let mut buffer = vec![0; REPORT_LIMIT];
    let received = scm::recv(socket, &mut buffer).at(|| what.to_owned())?;
    if received.length == 0 {
        return Ok(());
    }
    decode(&buffer[..received.length]).and_then(warnings_of).map(drop)
}

fn died(what: &str) -> Fault {
    Fault::new(
        Kind::Internal,
        format!("{what} was killed before it reached the exec barrier"),
    )
}

/// Waits at the barrier. `false`: the monitor is gone, and so should we be.
pub(crate) fn wait_for_release(socket: &OwnedFd) -> bool {
    let mut byte = [0];
    matches!(scm::recv(socket.as_fd(), &mut byte), Ok(received) if received.length == 1)
}
