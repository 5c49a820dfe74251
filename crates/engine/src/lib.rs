//! The life of pods and containers: reserve, record, act, unwind, recover.
//!
//! One task owns each pod and makes all of its changes (`pod`); everything that only looks reads immutable records
//! from `view`, so no List or Status ever waits for a pod. What a container is to the kernel is decided by the pure
//! [`spec`]; carrying it out is the monitor's, reached through `monitor-api`. Image content is the `images` crate's,
//! addresses are the `network` crate's, and this crate calls both in an order that can always be undone.
//!
//! Ids in calls may be shortened as long as they stay unique.

#![forbid(unsafe_code)]

mod adjust;
mod cdi;
pub mod config;
mod disk;
mod engine;
mod error;
mod handlers;
mod hooks;
mod lookup;
mod lsm;
pub mod meter;
mod names;
mod pod;
mod pod_cidr;
mod recover;
mod resources;
mod score;
mod shared;
mod spare;
pub mod spec;
mod streams;
pub mod systemd;
#[cfg(test)]
mod testing;
mod types;
mod view;
mod waiters;

pub use cdi::CdiStatus;
pub use config::{Config, Handler, Hooks, OciHandler, Rlimit};
pub use engine::Engine;
pub use error::{Error, Kind};
pub use handlers::{Found, HandlerStatus};
pub use holdfast_model::{CgroupDriver, hostname_of};
pub use holdfast_monitor_api::LOG_CHUNK;
pub use lsm::{AppArmor, Selinux};
pub use types::{
    Ended, Event, ExecOutput, ExecRequest, Happened, PodDetails, Readiness, Reexec, StreamRequest, Streams,
    Subject, Wanted,
};
