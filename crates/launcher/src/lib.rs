//! From an OCI runtime spec to a process that waits at the exec barrier: namespaces, root file system, cgroup,
//! credentials, exec. Synchronous; it runs in the monitor's process and in children of it.
//!
//! # How a container comes to be
//!
//! ```text
//! monitor ── fork ──> builder ── clone3(CLONE_PARENT | CLONE_INTO_CGROUP | new namespaces) ──> init
//!    │                   │  mounts, cgroup, limits                                             │ /proc, cgroup mount,
//!    │<─ report: pid, ───┘                                                                     │ pivot_root, ids, caps
//!    │   descriptors                                                                           │
//!    └──────────────── barrier socket: release ─────────────────────────────────────────────── exec
//! ```
//!
//! [`create_sandbox`], [`create_container`] and [`exec`] fork a *builder* and return a [`Building`] at once: everything
//! that can block (a mount, an open on a dead NFS server) happens in the builder, which the monitor can kill. The
//! builder clones the *init* as its own sibling, so that init is the monitor's child, born in the container's cgroup
//! when all else is done. The monitor waits for [`Building::fd`] to be readable, calls [`Building::poll`], and has a
//! [`Built`]: a pid, a pidfd and a [`Barrier`] behind which init waits.
//!
//! Children to reap: the builder ends after its report; with a user namespace one more short-lived child of the monitor
//! exists (the *stepper*, which makes the PID namespace as the user namespace's root). A monitor reaps with
//! `waitpid(-1)` and ignores pids that it does not know. An init cannot end before its `Built`
//! was seen unless something kills it, since it waits at the barrier; its exit status, if it comes early, belongs to
//! the pid of the `Built` that follows.
//!
//! [`Handler`] is the seam between these and OCI runtimes that are installed beside us ([`External`]). A container that
//! has OCI hooks is built in another mount namespace and has further processes ([`Hooked`]).
//!
//! This crate leaves out: stdio pumping, exit records, cgroup removal after a container has ended (the monitor's),
//! and networking beyond making the namespace and its loopback.

#![forbid(unsafe_code)]

mod bind;
mod building;
mod bundle;
mod cgroup;
mod cgroupfs;
mod channel;
mod container;
mod creds;
mod devices;
mod entering;
mod error;
mod exec;
mod external;
mod fault;
mod handler;
mod hooks;
mod init;
mod limits;
mod mountinfo;
mod mounts;
mod namespaces;
mod options;
mod overlay;
mod place;
mod plan;
mod procfs;
mod program;
mod sandbox;
mod selinux;
mod staging;
mod sysctl;
mod userns;
mod walk;

pub use building::{Barrier, Building, Built, ExecFailure};
pub use container::create_container;
pub use error::{Error, Kind};
pub use exec::exec;
pub use external::External;
pub use handler::{BuiltIn, Handler, Made};
pub use hooks::Hooked;
pub use plan::{
    CgroupDriver, CgroupRef, ContainerPlan, ExecPlan, IdMap, PodNamespaces, Rootfs, SandboxPlan, Stdio,
};
pub use sandbox::{create_sandbox, unbind_namespace};
pub use walk::kill_tree;

/// Opens what every build of this process needs, which the first build does by itself otherwise: one descriptor.
pub fn warm_up() -> Result<(), Error> {
    procfs::Procfs::shared().map(drop).map_err(|fault| Error::Build {
        message: fault.message,
        kind: fault.kind,
        errno: fault.errno,
    })
}
