//! Pod networks: the built-in bridge, and CNI plugins.
//!
//! ```text
//!            setup                                     teardown
//!   (none) ────────▶ Reserved ──acted──▶ Ready ──────────────────▶ Draining ──released──▶ (none)
//!                        └────────────── failed, crashed ─────────────▲
//! ```
//!
//! A record (file in `<root>/network/pods`) is written before the kernel or a plugin is touched and removed last of
//! all, so whatever dies in between, [`Network::reconcile`] finds what there is to take down. Each record says which
//! network made the attachment, and that one takes it down, even if the configuration has changed since.
//!
//! - no file in the CNI directory: the built-in bridge (`bridge`), over netlink, no process executed;
//! - a file there: CNI 0.3.1 to 1.1 plugins (`cni`).
//!
//! Left out: the network namespace itself (the launcher makes it), resolv.conf, and limits of bandwidth on the
//! built-in network.
#![forbid(unsafe_code)]

mod bridge;
mod cni;
mod config;
mod error;
mod links;
mod netlink;
mod network;
mod probe;
mod record;
mod retry;
mod types;

pub use config::{BridgeConfig, Config, Subnet};
pub use error::{Error, Kind};
pub use links::{LinkCounters, PodLinks};
pub use network::Network;
pub use probe::{Probe, probe};
pub use types::{
    Bandwidth, Dns, Interface, NetResult, NetworkStatus, POD_INTERFACE, PodNetwork, PortMapping, Protocol,
    Reconciled,
};

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
