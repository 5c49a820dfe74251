//! The one error type.

use std::io;
use std::path::PathBuf;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("could not read seccomp profile {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("seccomp profile {path} is larger than {limit} bytes")]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("seccomp profile {path} is not valid")]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("seccomp profile {path}: {problem}")]
    Profile { path: PathBuf, problem: String },
    #[error("seccomp rule {rule} ({calls}): {problem}")]
    Rule {
        /// Counted from 1, as a person would.
        rule: usize,
        /// The first few of its system calls.
        calls: String,
        problem: String,
    },
    #[error("seccomp default action: {problem}")]
    DefaultAction { problem: String },
    #[error("the seccomp filter would have {instructions} instructions; the kernel takes {limit}")]
    TooLong { instructions: usize, limit: usize },
    #[error("{length} bytes are not a seccomp filter")]
    NotAProgram { length: usize },
}
