//! What the daemon remembers, in two classes of durability.
//!
//! - [`Records`]: one checksummed, versioned file per record, written beside and renamed, never synced. It survives the death
//!   of every process and an orderly reboot; what a power cut takes is found (and quarantined) by the scan at open. Pods,
//!   containers and snapshots live here, because nothing on a pod's start path may wait for a disk.
//! - [`Db`]: one redb file whose commits are on the disk when they return. Images live here: data is synced before the record
//!   that names it.
//!
//! [`gc`] has the two things that garbage collection needs on top: [`gc::Lease`]s, which keep content of a pull in flight, and
//! the walk from roots. This crate knows no image, pod or container: it leaves out what a record means.

#![forbid(unsafe_code)]

mod db;
mod error;
mod frame;
pub mod gc;
mod records;

pub use db::{Db, Reader, Table, Writer};
pub use error::Error;
pub use records::{MAX_KEY, MAX_RECORD, Opened, Quarantined, Record, Records};

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
