//! What the engine is told at its start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_model::CgroupDriver;
pub use oci_spec::runtime::Hooks;

/// Bounds and deadlines. Each is named here so that no queue, wait or retry is without one.
pub mod bounds {
    use std::time::Duration;

    /// Requests waiting for one pod; more are told that it is busy.
    pub const MAILBOX: usize = 256;
    /// Callers that may wait for one operation.
    pub const WAITERS: usize = 256;
    /// Containers on record in one pod.
    pub const CONTAINERS: usize = 4096;
    /// Root file systems that are being deleted at a time.
    pub const DISCARDS: usize = 4;
    /// Execs running in one pod at a time.
    pub const EXECS: usize = 512;
    /// What an attached client may be behind: a pipe of this size, which costs only what is in it. The kernel's default
    /// (64 KiB) where it grants no more.
    pub const ATTACH_PIPE: usize = 1 << 20;
    /// Clients attached to one container at a time.
    pub const ATTACHED: usize = 64;
    /// Connecting to a port of a pod, for each address family.
    pub const CONNECT: Duration = Duration::from_secs(10);
    /// How long a finished create waits for its caller to come back.
    pub const UNCLAIMED: Duration = Duration::from_secs(300);
    /// Spawning a monitor and its hello.
    pub const SPAWN: Duration = Duration::from_secs(30);
    /// Creating a sandbox or a container.
    pub const CREATE: Duration = Duration::from_secs(120);
    pub const NETWORK_SETUP: Duration = Duration::from_secs(120);
    pub const NETWORK_TEARDOWN: Duration = Duration::from_secs(120);
    /// From SIGKILL to the exit's report.
    pub const KILL: Duration = Duration::from_secs(30);
    /// Everything else that a monitor is asked.
    pub const CALL: Duration = Duration::from_secs(30);
    /// Reaching one pod's monitor at the daemon's start.
    pub const RECOVER: Duration = Duration::from_secs(10);
    /// First and last pause between attempts to clean up.
    pub const RETRY_FIRST: Duration = Duration::from_secs(1);
    pub const RETRY_LAST: Duration = Duration::from_secs(60);
    /// ExecSync's output: one gRPC message of 16 MiB with room for the rest of it.
    pub const EXEC_OUTPUT: u64 = 16 * 1024 * 1024 - 64 * 1024;
    /// passwd and group of an image.
    pub const IDENTITY_FILE: u64 = 1 << 20;
    /// Events that a slow subscriber may be behind; each keeps records of its pod in memory.
    pub const EVENTS: usize = 1024;
}

/// A resource limit of every container's first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    /// As `RLIMIT_NOFILE`.
    pub kind: String,
    pub soft: u64,
    pub hard: u64,
}

/// One runtime handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// Name as in a RuntimeClass; the empty name is the default.
    pub name: String,
    /// `None`: the built-in launcher.
    pub runtime: Option<OciHandler>,
}

impl Handler {
    /// The built-in launcher under this name.
    pub fn built_in(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            runtime: None,
        }
    }
}

/// An OCI runtime, called as runc is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciHandler {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Its state directory, which is holdfast's alone.
    pub root: PathBuf,
    /// Options before the command.
    pub options: Vec<String>,
    /// What every container of this handler has run.
    pub hooks: Option<Hooks>,
}

#[derive(Debug, Clone)]
pub struct Config {
    /// Records are in `<root>/records`.
    pub root: PathBuf,
    /// Pods' sockets and small files are in `<state>/pods`.
    pub state: PathBuf,
    /// Holds `holdfast-monitor` and `holdfast-pause`.
    pub helpers: PathBuf,
    /// Who makes the cgroups of new pods.
    pub cgroup_driver: CgroupDriver,
    /// cgroup of pods that name no parent, and of the monitors: `/holdfast`, `/holdfast-monitors`; under systemd a slice
    /// and a scope, `/holdfast.slice` and `/system.slice/holdfast-monitors.scope`.
    pub default_cgroup: String,
    pub monitor_cgroup: String,
    /// Clamp `oom_score_adj` and capabilities to what holdfast itself holds.
    pub clamp_privileges: bool,
    /// Use these where the kernel has them; else as if it had not.
    pub apparmor: bool,
    pub selinux: bool,
    /// Limits of every container; empty: what the daemon itself has.
    pub rlimits: Vec<Rlimit>,
    /// Bytes of a pod's /dev/shm.
    pub shm_size: u64,
    /// Where pods that ask for the node's name resolution find it.
    pub host_resolv_conf: PathBuf,
    pub handlers: Vec<Handler>,
    /// Directories of CDI specs; a later one goes before an earlier one.
    pub cdi_dirs: Vec<PathBuf>,
    /// Keep a monitor started for the next pod.
    pub spare_monitor: bool,
    /// How long a finished create waits for its caller to come back.
    pub unclaimed_after: Duration,
}

impl Config {
    /// The defaults below these three directories.
    pub fn new(root: impl Into<PathBuf>, state: impl Into<PathBuf>, helpers: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            state: state.into(),
            helpers: helpers.into(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            default_cgroup: "/holdfast".into(),
            monitor_cgroup: "/holdfast-monitors".into(),
            clamp_privileges: true,
            apparmor: true,
            selinux: true,
            rlimits: Vec::new(),
            shm_size: 64 << 20,
            host_resolv_conf: "/etc/resolv.conf".into(),
            handlers: vec![Handler::built_in(""), Handler::built_in("holdfast")],
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            spare_monitor: true,
            unclaimed_after: bounds::UNCLAIMED,
        }
    }

    pub fn monitor_program(&self) -> PathBuf {
        self.helpers.join("holdfast-monitor")
    }

    pub fn pause_program(&self) -> PathBuf {
        self.helpers.join("holdfast-pause")
    }

    /// `<state>/pods/<id>`.
    pub fn pod_dir(&self, id: &holdfast_model::SandboxId) -> PathBuf {
        self.state.join("pods").join(id.as_str())
    }

    /// Directory of the bundles of external runtimes.
    pub fn bundles(&self) -> PathBuf {
        self.state.join("bundles")
    }

    pub fn records(&self, kind: &str) -> PathBuf {
        Path::new(&self.root).join("records").join(kind)
    }
}
