//! Why the monitor could not do something: what it logs, and what it answers.

use std::io;

use holdfast_monitor_api::message::{Failure, FailureKind};

/// What goes wrong in the monitor itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action}")]
    Setup {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot take over the state that the old program left: {what}")]
    Resume { what: String },
    #[error("usage: holdfast-monitor (started by the daemon, with its socket as descriptor 0)")]
    Usage,
}

impl Error {
    pub fn setup(action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Setup { action, source }
    }
}

/// A failure to answer with.
pub fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure {
        kind: kind.into(),
        message: message.into(),
        errno: 0,
    }
}

/// A failed system call to answer with.
pub fn failed(what: &str, error: &io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => FailureKind::NotFound,
        io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock | io::ErrorKind::StorageFull => {
            FailureKind::Exhausted
        }
        _ => FailureKind::Internal,
    };
    Failure {
        kind: kind.into(),
        message: format!("{what}: {error}"),
        errno: error.raw_os_error().unwrap_or(0),
    }
}

/// An error with all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What the launcher says, as an answer.
pub fn launcher(error: &holdfast_launcher::Error) -> Failure {
    Failure {
        kind: kind_of(error.kind()).into(),
        message: chain(error),
        errno: error.errno(),
    }
}

pub fn kind_of(kind: holdfast_launcher::Kind) -> FailureKind {
    use holdfast_launcher::Kind;
    match kind {
        Kind::Internal => FailureKind::Internal,
        Kind::NotFound => FailureKind::NotFound,
        Kind::Invalid => FailureKind::Invalid,
        Kind::Precondition => FailureKind::Precondition,
        Kind::Unsupported => FailureKind::Unsupported,
        Kind::Exhausted => FailureKind::Exhausted,
    }
}
