//! What monitor and pump say to each other: one small datagram each.

use std::io;
use std::os::fd::BorrowedFd;

use holdfast_sys::scm;

use crate::frame::Stream;

/// From the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Close the log and open its path anew.
    Reopen,
    /// The container has ended: write what is left and leave.
    Finish,
}

/// From the pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The log was opened, as asked; 0 or the errno.
    Opened { errno: i32 },
    /// The log cannot be written: output is dropped from now on.
    Trouble { errno: i32 },
    /// The log works again.
    Recovered { dropped: u64 },
    /// No writer holds this stream any more.
    Ended { stream: Stream },
    /// No process holds the terminal now; one may open it again.
    Hangup,
    /// All output of an ended container has been written (or given up).
    Drained,
}

const NOTICE: usize = 13;

pub fn send_command(control: BorrowedFd<'_>, command: Command) -> io::Result<()> {
    let byte = match command {
        Command::Reopen => b'R',
        Command::Finish => b'F',
    };
    scm::try_send(control, &[byte], &[])
}

/// The next command; `None` at the monitor's end.
pub fn take_command(control: BorrowedFd<'_>) -> io::Result<Option<Command>> {
    let mut byte = [0];
    let received = scm::try_recv(control, &mut byte)?;
    match (received.length, byte[0]) {
        (0, _) => Ok(None),
        (_, b'R') => Ok(Some(Command::Reopen)),
        (_, b'F') => Ok(Some(Command::Finish)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

pub fn send_notice(control: BorrowedFd<'_>, notice: Notice) {
    let (kind, errno, value) = match notice {
        Notice::Opened { errno } => (1, errno, 0),
        Notice::Trouble { errno } => (2, errno, 0),
        Notice::Recovered { dropped } => (3, 0, dropped),
        Notice::Ended {
            stream: Stream::Stdout,
        } => (4, 0, 0),
        Notice::Ended {
            stream: Stream::Stderr,
        } => (5, 0, 0),
        Notice::Hangup => (6, 0, 0),
        Notice::Drained => (7, 0, 0),
    };
    let mut bytes = [0; NOTICE];
    bytes[0] = kind;
    bytes[1..5].copy_from_slice(&errno.to_le_bytes());
    bytes[5..].copy_from_slice(&value.to_le_bytes());
    // A monitor that is gone does not want to know; one that is there reads at once.
    let _ = scm::send(control, &bytes, &[]);
}

/// The next notice; `None` when the pump has ended.
pub fn take_notice(control: BorrowedFd<'_>) -> io::Result<Option<Notice>> {
    let mut bytes = [0; NOTICE];
    let received = scm::try_recv(control, &mut bytes)?;
    if received.length == 0 {
        return Ok(None);
    }
    let [kind, e0, e1, e2, e3, value @ ..] = bytes;
    let errno = i32::from_le_bytes([e0, e1, e2, e3]);
    Ok(Some(match kind {
        1 => Notice::Opened { errno },
        2 => Notice::Trouble { errno },
        3 => Notice::Recovered {
            dropped: u64::from_le_bytes(value),
        },
        4 => Notice::Ended {
            stream: Stream::Stdout,
        },
        5 => Notice::Ended {
            stream: Stream::Stderr,
        },
        6 => Notice::Hangup,
        7 => Notice::Drained,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_sent_is_what_is_taken() {
        let (left, right) = scm::pair().unwrap();
        for notice in [
            Notice::Opened { errno: -3 },
            Notice::Trouble { errno: 28 },
            Notice::Recovered { dropped: u64::MAX },
            Notice::Ended {
                stream: Stream::Stdout,
            },
            Notice::Ended {
                stream: Stream::Stderr,
            },
            Notice::Hangup,
            Notice::Drained,
        ] {
            send_notice(left.as_fd(), notice);
            assert_eq!(take_notice(right.as_fd()).unwrap(), Some(notice));
        }
        for command in [Command::Reopen, Command::Finish] {
            send_command(right.as_fd(), command).unwrap();
            assert_eq!(take_command(left.as_fd()).unwrap(), Some(command));
        }
        drop(left);
        assert_eq!(take_notice(right.as_fd()).unwrap(), None);
    }
}
