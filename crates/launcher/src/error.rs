//! Why something could not be built.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What class of failure it was, as the daemon reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Internal,
    /// Something that was named is not there (a mount source, a program).
    NotFound,
    /// The request cannot be right.
    Invalid,
    /// The state does not allow it.
    Precondition,
    /// The kernel or the machine lacks what was asked for.
    Unsupported,
    Exhausted,
}

/// Failures of this crate's operations.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("start the builder of {id}")]
    Start {
        id: String,
        #[source]
        source: io::Error,
    },
    /// What the builder or the init reported, in words.
    #[error("{message}")]
    Build {
        message: String,
        kind: Kind,
        /// 0: not from a system call.
        errno: i32,
    },
    #[error("the builder of {id} ended without a report: {detail}")]
    Lost { id: String, detail: String },
    #[error("read the report of the builder of {id}")]
    Report {
        id: String,
        #[source]
        source: io::Error,
    },
    #[error("open the {kind} namespace of process {pid}")]
    Namespace {
        pid: i32,
        kind: String,
        #[source]
        source: io::Error,
    },
    #[error("take the network namespace off {path}")]
    Unbind {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("release the exec barrier")]
    Release {
        #[source]
        source: io::Error,
    },
}

impl Error {
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Build { kind, .. } => *kind,
            _ => Kind::Internal,
        }
    }

    /// The errno behind it, or 0.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Build { errno, .. } => *errno,
            Self::Lost { .. } => 0,
            Self::Start { source, .. }
            | Self::Report { source, .. }
            | Self::Namespace { source, .. }
            | Self::Unbind { source, .. }
            | Self::Release { source } => source.raw_os_error().unwrap_or(0),
        }
    }
}
