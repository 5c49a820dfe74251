//! Control groups, version 2 and the version 1 hybrid, behind one set of types.
//!
//! Owns: finding the hierarchies; creating, limiting, measuring, freezing, killing and removing cgroups; out-of-memory
//! counts; the device filter. Leaves out: when to do any of it, and the processes themselves. Synchronous throughout.
//!
//! A [`Hierarchy`] holds a descriptor of the root of every cgroup file system, and everything below is reached through
//! those, so it goes on working after the caller has changed its mount namespace. Paths such as `/kubepods/pod1/<id>`
//! count from the root of the hierarchy and are the same in all of them.
//!
//! On the hybrid (version 1 controllers plus a unified hierarchy, as systemd's `/sys/fs/cgroup/unified`) a cgroup has
//! a directory in each: the unified one serves `cgroup.kill`, `cgroup.freeze`, `cgroup.events` and whichever
//! controllers sit there (often hugetlb), the others serve their controller.
//!
//! The life of a container's cgroup:
//!
//! ```no_run
//! # fn main() -> Result<(), holdfast_cgroups::Error> {
//! use holdfast_cgroups::{Hierarchy, Limits, Stage};
//! let hierarchy = Hierarchy::detect()?;                      // once per process
//! let cgroup = hierarchy.create("/holdfast/pod/container")?; // parents too; controllers enabled along the path
//! # let limits = Limits::default();
//! let warnings = cgroup.apply(&limits, Stage::Create)?;      // cpu, cpuset, pids, io, hugepages
//! let into = cgroup.open_for_clone()?;                       // CLONE_INTO_CGROUP, wherever a unified hierarchy is
//! let join = cgroup.join_fds()?;                             // version 1: the child writes "0" to each
//! // ... clone; then, at the exec barrier, what must not be charged with the launcher's own work:
//! cgroup.apply(&limits, Stage::Barrier)?;                    // memory, the device filter
//! let plan = cgroup.plan(&limits)?;                          // later: an update, whole or not at all
//! cgroup.carry_out(&plan).map_err(|refused| refused.error)?;
//! let stats = cgroup.stat_reader()?;                         // open descriptors: reading is a few preads
//! let detail = cgroup.detail();                              // what is asked for less often: opened each time
//! let watch = cgroup.watch_empty()?;                         // poll for POLLPRI: the last process has gone
//! let leaf = cgroup.leaf("exec-1")?;                         // one exec: killed and removed by itself
//! leaf.kill()?;
//! leaf.remove(std::time::Duration::from_secs(1))?;
//! cgroup.kill()?;                                            // at once; does not wait
//! cgroup.wait_empty(std::time::Duration::from_secs(1))?;     // may block
//! cgroup.remove(std::time::Duration::from_secs(1))?;         // what is below it too
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]

mod cgroup;
mod convert;
mod devices;
mod error;
mod hierarchy;
mod io;
mod kill;
mod limits;
mod mountinfo;
mod oci;
mod oom;
mod path;
mod plan;
mod stats;
mod steps;
pub mod systemd;
mod undo;
mod v1;
mod v2;

pub use cgroup::{Cgroup, Watch};
pub use convert::cpu_weight_of_shares;
pub use devices::{DeviceKind, DeviceRule};
pub use error::Error;
pub use hierarchy::{Controller, Hierarchy, Mode};
pub use limits::{BlockIo, Cpu, Limits, Memory, Stage, Throttle};
pub use mountinfo::unescape;
pub use path::{slice_of_parent, slice_path, systemd_scope_path};
pub use plan::{Change, Plan, Refused};
pub use stats::{
    CpuStat, Detail, HugetlbStat, IoStat, MemoryStat, PidsStat, Pressure, Pressures, Stall, StatReader, Stats,
};
