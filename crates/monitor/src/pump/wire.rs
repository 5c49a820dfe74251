//! What monitor and pump say to each other: one small datagram each.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holdfast_sys::scm;

use super::tap::Tap;
use crate::frame::Stream;

/// From the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Close the log and open its path anew.
    Reopen,
    /// The container has ended: write what is left and leave.
    Finish,
}

/// What comes from the monitor.
#[derive(Debug)]
pub enum Order {
    Command(Command),
    /// Somebody attaches.
    Tap(Tap),
}

/// From the pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The log was opened, as asked; 0 or the errno.
    Opened { errno: i32 },
    /// The log cannot be written: output is dropped from now on. At the container's end once more, with how much was.
    Trouble { errno: i32, dropped: u64 },
    /// The log works again.
    Recovered { dropped: u64 },
    /// No writer holds this stream any more.
    Ended { stream: Stream },
    /// No process holds the terminal now; one may open it again.
    Hangup,
    /// All output of an ended container has been written (or given up).
    Drained,
    /// Nobody reads this tap any more.
    TapGone { key: u32 },
    /// The pump leaves, and this much was dropped for a tap without a word to its reader yet.
    Missed { key: u32, bytes: u64 },
}

const NOTICE: usize = 13;
/// `T`, the stream, the tap's key.
const TAP: usize = 6;

pub fn send_command(control: BorrowedFd<'_>, command: Command) -> io::Result<()> {
    let byte = match command {
        Command::Reopen => b'R',
        Command::Finish => b'F',
    };
    scm::try_send(control, &[byte], &[])
}

/// Hands a tap to a running pump.
pub fn send_tap(control: BorrowedFd<'_>, tap: &Tap) -> io::Result<()> {
    let mut bytes = [b'T', u8::from(tap.stream == Stream::Stderr), 0, 0, 0, 0];
    bytes[2..].copy_from_slice(&tap.key.to_le_bytes());
    scm::try_send(control, &bytes, &[tap.fd.as_fd()])
}

/// The next order; `None` at the monitor's end.
pub fn take_order(control: BorrowedFd<'_>) -> io::Result<Option<Order>> {
    let mut bytes = [0; TAP];
    let received = scm::try_recv(control, &mut bytes)?;
    match (received.length, bytes) {
        (0, _) => Ok(None),
        (1, [b'R', ..]) => Ok(Some(Order::Command(Command::Reopen))),
        (1, [b'F', ..]) => Ok(Some(Order::Command(Command::Finish))),
        (TAP, [b'T', stderr, key @ ..]) => {
            let fd: Option<OwnedFd> = received.fds.into_iter().next();
            let stream = if stderr == 0 {
                Stream::Stdout
            } else {
                Stream::Stderr
            };
            let fd = fd.ok_or(io::ErrorKind::InvalidData)?;
            Ok(Some(Order::Tap(Tap::new(u32::from_le_bytes(key), stream, fd))))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

pub fn send_notice(control: BorrowedFd<'_>, notice: Notice) {
    let (kind, number, value) = match notice {
        Notice::Opened { errno } => (1, errno, 0),
        Notice::Trouble { errno, dropped } => (2, errno, dropped),
        Notice::Recovered { dropped } => (3, 0, dropped),
        Notice::Ended {
            stream: Stream::Stdout,
        } => (4, 0, 0),
        Notice::Ended {
            stream: Stream::Stderr,
        } => (5, 0, 0),
        Notice::Hangup => (6, 0, 0),
        Notice::Drained => (7, 0, 0),
        Notice::TapGone { key } => (8, key.cast_signed(), 0),
        Notice::Missed { key, bytes } => (9, key.cast_signed(), bytes),
    };
    let mut bytes = [0; NOTICE];
    bytes[0] = kind;
    bytes[1..5].copy_from_slice(&number.to_le_bytes());
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
    let key = errno.cast_unsigned();
    let dropped = u64::from_le_bytes(value);
    Ok(Some(match kind {
        1 => Notice::Opened { errno },
        2 => Notice::Trouble { errno, dropped },
        3 => Notice::Recovered { dropped },
        4 => Notice::Ended {
            stream: Stream::Stdout,
        },
        5 => Notice::Ended {
            stream: Stream::Stderr,
        },
        6 => Notice::Hangup,
        7 => Notice::Drained,
        8 => Notice::TapGone { key },
        9 => Notice::Missed {
            key,
            bytes: u64::from_le_bytes(value),
        },
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
            Notice::Trouble {
                errno: 28,
                dropped: 7,
            },
            Notice::Recovered { dropped: u64::MAX },
            Notice::Ended {
                stream: Stream::Stdout,
            },
            Notice::Ended {
                stream: Stream::Stderr,
            },
            Notice::Hangup,
            Notice::Drained,
            Notice::TapGone { key: u32::MAX },
            Notice::Missed {
                key: 7,
                bytes: 1 << 40,
            },
        ] {
            send_notice(left.as_fd(), notice);
            assert_eq!(take_notice(right.as_fd()).unwrap(), Some(notice));
        }
        for command in [Command::Reopen, Command::Finish] {
            send_command(right.as_fd(), command).unwrap();
            let taken = take_order(left.as_fd()).unwrap();
            assert!(
                matches!(taken, Some(Order::Command(it)) if it == command),
                "{taken:?}"
            );
        }
        let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        send_tap(right.as_fd(), &Tap::new(u32::MAX - 1, Stream::Stderr, null)).unwrap();
        let Some(Order::Tap(tap)) = take_order(left.as_fd()).unwrap() else {
            panic!("no tap came");
        };
        assert_eq!((tap.key, tap.stream), (u32::MAX - 1, Stream::Stderr));
        drop(left);
        assert_eq!(take_notice(right.as_fd()).unwrap(), None);
    }
}
