//! The one error type of the crate.

use std::path::PathBuf;
use std::sync::Arc;

use holdfast_registry::{Digest, DigestMismatch};

use crate::tar::TarError;

/// Why an operation on images failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry, or its answer.
    #[error(transparent)]
    Registry(#[from] holdfast_registry::Error),
    /// Recorded state.
    #[error("image state cannot be used")]
    Store(#[from] holdfast_store::Error),
    /// An operation that several callers waited for failed.
    #[error(transparent)]
    Shared(Arc<Error>),
    /// A pull was cut off before it ended, for instance by a shutdown.
    #[error("pull of {reference} was interrupted")]
    Interrupted {
        /// What was pulled.
        reference: String,
    },
    /// No such image here.
    #[error("image {reference} is not present")]
    NotFound {
        /// What was asked for.
        reference: String,
    },
    /// A snapshot of this key exists.
    #[error("snapshot {key} exists already")]
    SnapshotExists {
        /// The key.
        key: String,
    },
    /// A key that cannot be a directory name.
    #[error("snapshot key {key:?} is not made of letters, digits, '-', '_' and '.'")]
    SnapshotKey {
        /// The key.
        key: String,
    },
    /// A manifest, index or configuration that cannot be used.
    #[error("{document} {digest} cannot be used: {reason}")]
    Document {
        /// Which kind of document.
        document: &'static str,
        /// Its digest, or its name in an archive.
        digest: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Bytes that are not what their digest says.
    #[error("{what}: {mismatch}")]
    Mismatch {
        /// Which bytes.
        what: String,
        /// Both digests.
        mismatch: DigestMismatch,
    },
    /// A layer that cannot be unpacked.
    #[error("layer {layer} cannot be unpacked")]
    Layer {
        /// Digest of the blob.
        layer: Digest,
        /// Why.
        #[source]
        source: Box<UnpackError>,
    },
    /// An archive for `load` that is not one.
    #[error("archive {path} cannot be loaded: {reason}")]
    Archive {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file inside an image that is larger than the caller wants.
    #[error("{path} in image {image} is {size} bytes, at most {limit} are read")]
    FileTooLarge {
        /// The image.
        image: String,
        /// The file.
        path: String,
        /// Its size.
        size: u64,
        /// The caller's limit.
        limit: u64,
    },
    /// A path inside an image that cannot be resolved.
    #[error("{path} in image {image} cannot be resolved: {reason}")]
    FilePath {
        /// The image.
        image: String,
        /// The file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// A system call failed.
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
}

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// Its archive is malformed.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// Its compression is.
    #[error("its {format} data is damaged")]
    Compression {
        /// Which compression.
        format: &'static str,
        /// What the decoder says.
        #[source]
        source: std::io::Error,
    },
    /// An entry that is not acceptable.
    #[error("entry {path:?}: {reason}")]
    Entry {
        /// Its name, escaped.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A limit of [`crate::Limits`].
    #[error("it has more than {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: u64,
    },
    /// The disk is full, or nearly.
    #[error("the file system of the images has {free} bytes left, {reserve} are kept free")]
    DiskFull {
        /// Bytes free.
        free: u64,
        /// Bytes reserved.
        reserve: u64,
    },
    /// Its digest, compressed or not, is another one.
    #[error("its {what} {mismatch}")]
    Mismatch {
        /// Which of the two digests.
        what: &'static str,
        /// Both values.
        mismatch: DigestMismatch,
    },
    /// A system call on one of its files failed.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which of its files.
        path: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The other half of the pipeline stopped; its error says why.
    #[error("it was interrupted")]
    Interrupted,
}

/// What kind of failure it is, for callers that answer with a status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong.
    Invalid,
    /// No such image, here or there.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// The registry wants another credential.
    Denied,
    /// Trying again may help.
    Unavailable,
    /// Disk or another resource is used up.
    Exhausted,
    /// The image is not what it says, or cannot be used.
    Corrupt,
    /// This machine.
    Internal,
}

impl Error {
    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        use holdfast_registry::Kind as R;
        match self {
            Self::Shared(inner) => inner.kind(),
            Self::Registry(e) => match e.kind() {
                R::Invalid => Kind::Invalid,
                R::NotFound => Kind::NotFound,
                R::Denied => Kind::Denied,
                R::Unavailable => Kind::Unavailable,
                R::Corrupt => Kind::Corrupt,
                R::Config => Kind::Internal,
            },
            Self::Interrupted { .. } => Kind::Unavailable,
            Self::NotFound { .. } => Kind::NotFound,
            Self::SnapshotExists { .. } => Kind::AlreadyExists,
            Self::SnapshotKey { .. }
            | Self::Archive { .. }
            | Self::FilePath { .. }
            | Self::FileTooLarge { .. } => Kind::Invalid,
            Self::Document { .. } | Self::Mismatch { .. } => Kind::Corrupt,
            Self::Layer { source, .. } => match &**source {
                UnpackError::DiskFull { .. } => Kind::Exhausted,
                UnpackError::Io { source, .. } => io_kind(source),
                UnpackError::Interrupted => Kind::Unavailable,
                _ => Kind::Corrupt,
            },
            Self::Io { source, .. } => io_kind(source),
            Self::Store(_) => Kind::Internal,
        }
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source: source.into(),
        }
    }
}

impl UnpackError {
    /// Whether other bytes may do better, on the same machine.
    pub(crate) fn is_of_its_bytes(&self) -> bool {
        match self {
            Self::Tar(_)
            | Self::Compression { .. }
            | Self::Entry { .. }
            | Self::Limit { .. }
            | Self::Mismatch { .. } => true,
            Self::DiskFull { .. } | Self::Io { .. } | Self::Interrupted => false,
        }
    }

    pub(crate) fn entry(path: &[u8], reason: impl Into<String>) -> Self {
        Self::Entry {
            path: show(path),
            reason: reason.into(),
        }
    }

    pub(crate) fn io(action: &'static str, path: &[u8], source: impl Into<std::io::Error>) -> Self {
        Self::Io {
            action,
            path: show(path),
            source: source.into(),
        }
    }
}

fn io_kind(e: &std::io::Error) -> Kind {
    match e.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Kind::Exhausted,
        _ => Kind::Internal,
    }
}

/// A name from an archive, bounded, for an error text (which escapes it).
pub(crate) fn show(path: &[u8]) -> String {
    const MOST: usize = 300;
    let mut text = String::from_utf8_lossy(&path[..path.len().min(MOST)]).into_owned();
    if path.len() > MOST {
        text.push('…');
    }
    text
}
