//! What the programs of this package share: a CRI client, image building, and a registry on loopback.
//!
//! Owns: how a CRI socket is spoken to and where images come from. Leaves out: the cases (`main.rs`) and the
//! measurements (`bin/holdfast-bench`).

pub mod builder;
pub mod cri;
pub mod guarded;
pub mod hostile;
pub mod newer;
pub mod registry;
pub mod server;
pub mod streams;
pub mod stub;
