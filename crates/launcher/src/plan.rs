//! What the monitor asks for: the inputs of the three operations.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use holdfast_cgroups::Hierarchy;

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    #[default]
    Cgroupfs,
    Systemd,
}

/// Where processes are accounted and limited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupRef {
    pub driver: CgroupDriver,
    /// Relative to the hierarchy's root, such as `/kubepods/pod1/<id>`, or `slice:prefix:name` for systemd. Empty: the
    /// process stays in the builder's own cgroup.
    pub path: String,
}

/// One line of a user namespace's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    pub container_id: u32,
    pub host_id: u32,
    pub size: u32,
}

/// A pod's sandbox: the namespaces that its containers share, held by pause.
#[derive(Debug)]
pub struct SandboxPlan<'a> {
    pub id: &'a str,
    /// Detected once by the monitor; the builder inherits it.
    pub hierarchy: &'a Hierarchy,
    /// Absolute path of the pause executable.
    pub pause: PathBuf,
    /// New namespaces wanted; what is not set is the host's.
    pub new_net: bool,
    pub new_ipc: bool,
    pub new_uts: bool,
    pub new_pid: bool,
    /// Both empty: no user namespace.
    pub uid_maps: Vec<IdMap>,
    pub gid_maps: Vec<IdMap>,
    /// Set where `new_uts`; empty: the host's name is kept.
    pub hostname: String,
    /// Names as sysctl(8) takes them, with dots or slashes. Only those of the new namespaces are accepted.
    pub sysctls: Vec<(String, String)>,
    pub cgroup: CgroupRef,
    /// OCI `linux.resources` JSON for the pod's cgroup; empty: none.
    pub resources: &'a [u8],
    /// Bytes of the pod's /dev/shm, made where `new_ipc`; 0: the default of 64 MiB.
    pub shm_size: u64,
    /// Host path at which to bind the network namespace (for external CNI plugins). Parent directories are made.
    pub netns_path: Option<PathBuf>,
    pub oom_score_adj: i32,
    /// Clamp `oom_score_adj` to what we may set, with a warning, instead of failing.
    pub clamp_privileges: bool,
    /// SELinux label of pause, and that of the pod's /dev/shm; empty: none.
    pub selinux_label: &'a str,
    pub mount_label: &'a str,
}

/// The namespaces of a pod that are its own. What is `None` is the host's, but for `mnt`, which every pod has.
#[derive(Debug, Default)]
pub struct PodNamespaces {
    pub net: Option<OwnedFd>,
    pub ipc: Option<OwnedFd>,
    pub uts: Option<OwnedFd>,
    pub pid: Option<OwnedFd>,
    pub user: Option<OwnedFd>,
    /// Pause's mount namespace: an empty read-only root and, with a new IPC namespace, the pod's /dev/shm.
    /// [`PodNamespaces::reopen_mnt`] gets it again from a running pause.
    pub mnt: Option<OwnedFd>,
}

impl PodNamespaces {
    /// Opens the mount namespace of a running pause process (a replacement monitor is not handed it).
    pub fn reopen_mnt(&mut self, pause_pid: i32, pause: BorrowedFd<'_>) -> Result<(), crate::Error> {
        let fd = crate::namespaces::of_process(pause_pid, pause, "mnt")?;
        self.mnt = Some(fd);
        Ok(())
    }
}

/// The root file system of a container, before it is mounted.
#[derive(Clone, Debug)]
pub enum Rootfs {
    /// Lower directories, uppermost first, and further mount options such as `volatile`.
    Overlay {
        lowers: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
        options: Vec<String>,
    },
    /// A directory that is the root itself.
    Bind { source: PathBuf },
}

/// Standard descriptors of the new process, which are handed over and closed in the caller.
#[derive(Debug)]
pub enum Stdio {
    /// The process's ends. `None` is the container's /dev/null.
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    },
    /// A pseudo-terminal of the container's own devpts, of the size that the process's `consoleSize` says; its master is
    /// [`crate::Built::pty_master`].
    Terminal,
}

impl Stdio {
    /// The process's ends, in order.
    pub(crate) fn ends(&self) -> [Option<BorrowedFd<'_>>; 3] {
        match self {
            Self::Terminal => [None; 3],
            Self::Pipes {
                stdin,
                stdout,
                stderr,
            } => [stdin, stdout, stderr].map(|end| end.as_ref().map(AsFd::as_fd)),
        }
    }
}

/// A container, up to the exec barrier.
#[derive(Debug)]
pub struct ContainerPlan<'a> {
    pub id: &'a str,
    /// Detected once by the monitor; the builder inherits it.
    pub hierarchy: &'a Hierarchy,
    /// `namespace/pod/container`, for error texts.
    pub name: &'a str,
    /// OCI runtime spec (JSON). A namespace with no path is new, one that is not listed is the host's; the path `pod:`
    /// is the sandbox's own, `pid:N` process N's. The mount source `pod:shm` is the pod's /dev/shm (the host's where the
    /// pod has the host's IPC namespace). Users are numbers already. `root.path` and `hostname` are not read.
    pub spec: &'a [u8],
    pub rootfs: Rootfs,
    pub cgroup: CgroupRef,
    pub namespaces: &'a PodNamespaces,
    /// Pause, whose namespaces `namespaces` are: an external runtime joins them by path.
    pub pause_pid: i32,
    /// The processes that `pid:N` may name, with what rules out a reused number: the pod's running containers.
    pub targets: &'a [(i32, BorrowedFd<'a>)],
    pub stdio: Stdio,
    /// Clamp `oom_score_adj`, rlimits and capabilities to what we hold, with a warning, instead of failing.
    pub clamp_privileges: bool,
    /// Sources of bind mounts that get the spec's `mountLabel`, with all that is in them.
    pub relabel: Vec<PathBuf>,
}

/// A process in a running container.
#[derive(Debug)]
pub struct ExecPlan<'a> {
    pub container_id: &'a str,
    /// Detected once by the monitor; the builder inherits it.
    pub hierarchy: &'a Hierarchy,
    /// `namespace/pod/container`, for error texts.
    pub name: &'a str,
    /// OCI `process` (JSON).
    pub process: &'a [u8],
    /// OCI `linux.seccomp` (JSON) of the container; empty: unconfined.
    pub seccomp: &'a [u8],
    /// The container's init, which must be running.
    pub init_pid: i32,
    pub init: BorrowedFd<'a>,
    /// The container's own cgroup.
    pub cgroup: CgroupRef,
    /// Name of the leaf cgroup to make below it; empty: join the container's itself (or, where it has cgroups below
    /// its own, that of init).
    pub leaf: &'a str,
    pub stdio: Stdio,
    pub clamp_privileges: bool,
}
