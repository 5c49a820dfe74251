//! The versioned protocol between the daemon and a pod's monitor, and the client that speaks it.
//!
//! [`message`] is what is said, [`codec`] how it is put into SEQPACKET datagrams, [`descriptors`] which descriptors go
//! with which message. With the feature `client` there is also the daemon's side: [`Client`], [`spawn()`]. What the
//! monitor does with a request is in the `monitor` crate.

#![forbid(unsafe_code)]

mod address;
pub mod codec;
pub mod descriptors;
mod error;
pub mod message;

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod pending;
#[cfg(feature = "client")]
mod spawn;
#[cfg(feature = "client")]
mod streams;

pub use address::socket_address;
pub use descriptors::{ContainerDescriptors, SandboxDescriptors, Stdio};
pub use error::Error;

#[cfg(feature = "client")]
pub use client::{
    AdoptPlan, AdoptedContainer, Client, Container, EventStream, InventoryContainer, MonitorEvent,
    MonitorInventory, Sandbox,
};
#[cfg(feature = "client")]
pub use spawn::{Spawned, ended, spawn};
#[cfg(feature = "client")]
pub use streams::{RunningExec, Sockets};

/// Bytes of a container's line that one entry of its log holds at most: what kubelet's readers expect, and the peers' default.
pub const LOG_CHUNK: usize = 16 * 1024;

/// Sent in [`message::Hello::revision`], for people.
pub const REVISION: u32 = 1;

/// Features this release understands, for [`message::Hello::features`].
pub const FEATURES: &[&str] = &[
    "reexec",
    "adopt",
    "exec-sync",
    "log-state",
    "exec-stream",
    "attach",
    "pod-sockets",
    "oci-runtime",
];
