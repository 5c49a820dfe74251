//! The one error type: every variant says which file or path, and what the kernel said.

use std::io;

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("no cgroup file system is mounted (looked in /proc/thread-self/mountinfo)")]
    NotMounted,
    #[error("cgroup path {path:?} {problem}")]
    Path { path: String, problem: &'static str },
    #[error("could not make cgroup {path}")]
    Create {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("could not open {file}")]
    Open {
        file: String,
        #[source]
        source: io::Error,
    },
    #[error("could not read {file}")]
    Read {
        file: String,
        #[source]
        source: io::Error,
    },
    #[error("could not write {value:?} to {file}")]
    Write {
        file: String,
        value: String,
        #[source]
        source: io::Error,
    },
    #[error("{file} holds {text:?}, which is not understood")]
    Parse { file: String, text: String },
    #[error("limit {limit} needs the {controller} controller, which {path} does not have")]
    NoController {
        path: String,
        controller: &'static str,
        limit: String,
    },
    /// Of version 2: the file of a limit is not there because a cgroup above does not hand its controller down.
    #[error(
        "{path} does not have the {controller} controller, because {by} does not hand it down \
         (cgroup.subtree_control)"
    )]
    NotHandedDown {
        path: String,
        controller: &'static str,
        by: String,
        #[source]
        source: io::Error,
    },
    #[error("{limit} is too little for {file}: {usage} bytes are in use and cannot be given up")]
    InUse { file: String, limit: u64, usage: u64 },
    #[error(
        "systemd has not given {path} the {controller} controller, which {file} needs: see `DisableControllers=` of the \
         slices above it, and whether the kernel has the controller"
    )]
    NotDelegated {
        path: String,
        controller: &'static str,
        file: String,
    },
    #[error("{field} is {value}: {problem}")]
    Limit {
        field: &'static str,
        value: String,
        problem: &'static str,
    },
    #[error("could not {action} the device filter of {path}")]
    DeviceFilter {
        path: String,
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("could not send signal {signal} to process {pid} of {path}")]
    Signal {
        path: String,
        pid: i32,
        signal: i32,
        #[source]
        source: io::Error,
    },
    #[error("{path} still has processes after {waited_ms} ms: {pids:?}")]
    Busy {
        path: String,
        waited_ms: u64,
        /// The first few of them.
        pids: Vec<i32>,
    },
    #[error("{path} did not freeze within {waited_ms} ms")]
    NotFrozen { path: String, waited_ms: u64 },
    #[error("could not remove cgroup {path}")]
    Remove {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("could not wait for {file}")]
    Wait {
        file: String,
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The kernel's error number, where the kernel said something.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Create { source, .. }
            | Self::Open { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::NotHandedDown { source, .. }
            | Self::DeviceFilter { source, .. }
            | Self::Signal { source, .. }
            | Self::Remove { source, .. }
            | Self::Wait { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the cgroup, or the file, is not there (or went away while it was used).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOENT | libc::ENODEV))
            && !matches!(self, Self::NotHandedDown { .. })
    }

    /// The file of the kernel's that an error is about.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        match self {
            Self::Open { file, .. } | Self::Read { file, .. } | Self::Write { file, .. } => Some(file),
            Self::Parse { file, .. } | Self::InUse { file, .. } => Some(file),
            _ => None,
        }
    }
}
