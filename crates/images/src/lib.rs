//! Images on this machine: pulled or loaded, unpacked into layers, mounted as snapshots, and freed when nothing needs them.
//!
//! [`Images`] is the handle. On disk, below the root directory:
//!
//! ```text
//! images/images.redb          which images, names, layers and leases there are (durable)
//! images/content/blobs/…      manifests, indexes and configs by digest; compressed layers are NOT kept
//! images/l/<number>/          one unpacked layer, ready to be an overlay lower; short, since mount options are
//! images/tmp/                 what is being unpacked or removed; emptied at open
//! images/empty/               an empty directory, for overlays that lack a layer
//! snapshots/<key>/{upper,work} the writable part of one container (no fsync), with volume<n>/{upper,work} of what its image declares
//! records/snapshots/<key>     which layers that container uses
//! ```
//!
//! Rules kept here:
//! - Data is on the disk before the record that names it: layers are unpacked aside, synced once with `syncfs`, renamed, and
//!   only then recorded. After a power cut a layer is whole or absent.
//! - A layer is streamed: fetched, hashed, inflated, hashed again and unpacked in one pass, in parallel with its neighbours.
//!   Both digests are checked before it is committed; the compressed bytes never touch the disk.
//! - A layer is unpacked before the layers below it are known. What it left open (parents that it only implies, directories
//!   over a lower symlink, hard links into lower layers) is settled at commit, in order, so that the mounted result is the
//!   one that unpacking all archives over each other would give.
//! - Everything that an archive names is resolved by descriptor inside its layer.
//! - Nothing in labels, annotations or archives is control input; names in an archive that the operator loads are names, not more.
//!
//! Not here: talking to registries ([`holdfast_registry`]), mounting (the launcher), what a container record means (the engine).

#![forbid(unsafe_code)]

mod archive;
mod bring;
mod collect;
mod commit;
mod config;
mod content;
mod copy_up;
mod effort;
mod error;
mod image;
mod images;
mod index;
mod inflight;
mod layers;
mod manifest;
mod members;
mod merged;
mod names;
mod pipeline;
mod places;
mod projects;
mod pull;
mod remove;
mod snapshot;
mod state;
mod tar;
mod threads;
mod unpack;
mod volume;

pub use config::{Config, Limits};
pub use error::{Error, Kind};
pub use image::{FsInfo, Image, ImageId, User};
pub use images::Images;
pub use inflight::Progress;
pub use projects::{Accounting, LayerUse, try_it as try_accounting};
pub use pull::PullRequest;
pub use snapshot::{IdMap, PrepareOptions, Snapshot};
pub use tar::TarError;
pub use volume::{DeclaredVolume, Volume};

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
