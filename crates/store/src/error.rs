//! The one error type of the crate.

use std::path::PathBuf;

/// What went wrong with stored state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key that cannot be a file name.
    #[error(
        "record key {key:?} is not made of 1 to {} letters, digits, '-', '_' and '.' (not leading)",
        crate::MAX_KEY
    )]
    Key {
        /// The refused key.
        key: String,
    },
    /// A record larger than [`crate::MAX_RECORD`].
    #[error("record {key} is {size} bytes, more than the {} allowed", crate::MAX_RECORD)]
    TooLarge {
        /// Its key.
        key: String,
        /// Its encoded size.
        size: usize,
    },
    /// A record that a newer holdfast wrote. It is left untouched.
    #[error(
        "{path} was written by a newer holdfast (version {found}, this one knows up to {known}): start the newer one again, or move the file away"
    )]
    Newer {
        /// The file, or the table and key.
        path: String,
        /// Version found.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
    /// A record whose bytes are not what was written.
    #[error("{path} is damaged: {reason}")]
    Corrupt {
        /// The file, or the table and key.
        path: String,
        /// What does not fit.
        reason: String,
    },
    /// A value that does not become JSON.
    #[error("cannot encode record {key}")]
    Encode {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A system call on a file failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The database refused.
    #[error("cannot {action} database {path}")]
    Db {
        /// What was tried.
        action: &'static str,
        /// The database file.
        path: PathBuf,
        /// redb's answer.
        #[source]
        source: Box<redb::Error>,
    },
}
