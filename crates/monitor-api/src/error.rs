//! What can go wrong between daemon and monitor.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::message::FailureKind;

/// A failed exchange with a monitor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The monitor closed the connection or died; its containers may well run on.
    #[error("the monitor is gone")]
    Gone,
    #[error("the monitor did not answer {call} within {limit:?}")]
    Deadline { call: &'static str, limit: Duration },
    /// The monitor answered with a failure.
    #[error("{message}")]
    Refused {
        kind: FailureKind,
        message: String,
        /// 0: not from a system call.
        errno: i32,
    },
    #[error("broken monitor protocol: {what}")]
    Protocol { what: String },
    #[error("monitor message of {size} bytes is over the limit of {limit}")]
    TooLarge { size: u64, limit: u64 },
    #[error("monitor message came with {got} descriptors where {expected} are due")]
    Descriptors { expected: usize, got: usize },
    #[error("cannot {action} the monitor's socket")]
    Socket {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot {action} a memfd for a monitor message")]
    Bulk {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot connect to monitor socket {path}")]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start monitor {program}")]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Error::Protocol { what: what.into() }
    }
}
