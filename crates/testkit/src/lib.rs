//! Fixtures for tests on a real kernel, and the checker that nothing is left behind.
//!
//! Owns: isolated mount and network namespaces, scratch directories, a root file system from busybox, and
//! [`Inventory`]: everything in the kernel and on disk that belongs to one holdfast, to be compared with an earlier
//! state ([`Leaks`]) or with what the living records own ([`Expected`]); and [`Reaper`], which ends a killed test's
//! processes. Leaves out driving the runtime.
//!
//! Fixtures panic, with what failed, where a test could not go on anyway. Nothing skips: a privileged test that cannot
//! run fails.
//!
//! ```no_run
//! use holdfast_testkit::{Leaks, Scope, Scratch, isolate_mounts};
//! isolate_mounts();
//! let scratch = Scratch::new("lifecycle");
//! let scope = Scope::new(scratch.path().join("root"), scratch.path().join("state"))
//!     .cgroup("/holdfast-test-1").bridge("hft0");
//! let leaks = Leaks::snapshot(&scope);
//! // ... the test ...
//! leaks.assert_clean(std::time::Duration::from_secs(5));
//! ```

#![forbid(unsafe_code)]
#![allow(clippy::missing_panics_doc)]

mod disk;
mod expected;
mod inventory;
mod leaks;
mod mounts;
mod net;
mod procfs;
mod reaper;
mod rootfs;
mod scope;
mod scratch;

pub use disk::{Disk, DiskKind};
pub use expected::{Expected, Pod};
pub use inventory::Inventory;
pub use leaks::Leaks;
pub use mounts::{isolate_mounts, mount_tmpfs};
pub use net::NetNamespace;
pub use procfs::{Process, descriptors_of};
pub use reaper::Reaper;
pub use rootfs::{BUSYBOX, busybox_rootfs};
pub use scope::Scope;
pub use scratch::Scratch;

use std::time::{Duration, Instant};

/// Asks `check` again and again, for at most `limit`, until it has something. For conditions that nothing announces.
pub fn wait_for<T>(limit: Duration, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
