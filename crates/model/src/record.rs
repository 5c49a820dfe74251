//! What is kept of a pod and a container on disk: enough to answer for them and to clean up after them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    ContainerEvent, ContainerId, ContainerSpec, ContainerState, Illegal, SandboxEvent, SandboxId,
    SandboxSpec, SandboxState, SelinuxLabels, Signal,
};

/// A program that makes containers in place of the built-in launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OciRuntime {
    pub program: PathBuf,
    /// Its state directory.
    pub root: PathBuf,
    /// Options before the command.
    #[serde(default)]
    pub options: Vec<String>,
}

/// One pod. Times are nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: SandboxId,
    pub spec: SandboxSpec,
    pub state: SandboxState,
    pub created_at: i64,
    /// Runtime handler that was asked for; empty: the default.
    pub handler: String,
    /// What that handler was then: the pod keeps it, whatever the configuration says later. `None`: built in.
    #[serde(default)]
    pub runtime: Option<OciRuntime>,
    /// The pod's cgroup, relative to the hierarchy's root; where its processes are, [`Self::cgroup_of`] says.
    pub cgroup: String,
    /// Who makes the cgroups below it. A pod keeps its driver when the daemon's configuration changes.
    #[serde(default)]
    pub cgroup_driver: CgroupDriver,
    /// The pod's cgroup was not there before: it is removed with the pod.
    #[serde(default)]
    pub cgroup_made: bool,
    pub hostname: String,
    pub pause_pid: Option<i32>,
    pub monitor_pid: Option<i32>,
    /// Boot id of the kernel that the pod's processes run under: of another boot nothing can be alive.
    pub boot_id: String,
    /// Host path of the bound network namespace; empty: none.
    #[serde(default)]
    pub netns_path: String,
    /// The network was asked for: teardown is owed.
    #[serde(default)]
    pub network_owed: bool,
    /// What the network set up, as the `network` crate wrote it.
    #[serde(default)]
    pub network: Option<serde_json::Value>,
    /// Addresses, the primary one first.
    #[serde(default)]
    pub ips: Vec<String>,
    /// What the pod's containers are labelled with where they ask for nothing else.
    #[serde(default)]
    pub selinux: SelinuxLabels,
    /// How an update of the pod's limits that is under way is taken back, as the `cgroups` crate wrote it.
    #[serde(default)]
    pub undo: Option<serde_json::Value>,
}

impl SandboxRecord {
    /// Moves on, or says why not; the record is unchanged then.
    pub fn apply(&mut self, event: SandboxEvent) -> Result<(), Illegal> {
        self.state = self.state.transition(event)?;
        Ok(())
    }

    pub fn ready(&self) -> bool {
        self.state == SandboxState::Ready
    }

    /// Whether anything of it can be in its cgroup. What is stopped or being removed has nothing there any more, and a sandbox that
    /// is made anew is given its predecessor's.
    pub fn in_its_cgroup(&self) -> bool {
        !matches!(self.state, SandboxState::Stopped | SandboxState::Removing)
    }

    /// The cgroup of pause (the pod's own id) or of a container, relative to the hierarchy's root.
    pub fn cgroup_of(&self, id: &str) -> String {
        match self.cgroup_driver {
            CgroupDriver::Cgroupfs => format!("{}/{id}", self.cgroup),
            CgroupDriver::Systemd => format!("{}/{}", self.cgroup, scope_unit(id)),
        }
    }

    /// The same as OCI's `linux.cgroupsPath` has it: for systemd `slice:prefix:name`.
    pub fn oci_cgroup_of(&self, id: &str) -> String {
        match self.cgroup_driver {
            CgroupDriver::Cgroupfs => self.cgroup_of(id),
            CgroupDriver::Systemd => format!("{}:{SCOPE_PREFIX}:{id}", self.slice_unit()),
        }
    }

    /// The pod's slice as systemd calls it; only of a pod of that driver.
    pub fn slice_unit(&self) -> &str {
        match self.cgroup.rsplit('/').next() {
            Some(name) if !name.is_empty() => name,
            _ => "-.slice",
        }
    }
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// We do, by mkdir.
    #[default]
    Cgroupfs,
    /// systemd does, asked over D-Bus: a scope for each container, in the pod's slice.
    Systemd,
}

impl CgroupDriver {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

/// What comes before the id in the name of a scope.
pub const SCOPE_PREFIX: &str = "holdfast";

/// The scope of pause or of a container.
pub fn scope_unit(id: &str) -> String {
    format!("{SCOPE_PREFIX}-{id}.scope")
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitInfo {
    /// 128 + signal where a signal ended it.
    pub code: i32,
    /// 0: it ended by itself.
    pub signal: i32,
    pub oom_killed: bool,
    /// Nobody saw the exit.
    pub unknown: bool,
    /// execve failed: the container never ran.
    pub start_failed: bool,
    /// For people; may be empty.
    pub message: String,
}

/// CRI's `reason` of a container that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContainerReason {
    Completed,
    Error,
    OomKilled,
    StartError,
    Unknown,
}

impl ContainerReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "ContainerStatusUnknown",
        }
    }
}

impl ExitInfo {
    /// Exit code of a container whose end nobody saw: what the kubelet itself uses for one that it lost.
    pub const UNKNOWN_CODE: i32 = 137;
    /// Exit code of a container whose program could not be executed.
    pub const START_ERROR_CODE: i32 = 128;

    pub fn unseen(message: impl Into<String>) -> Self {
        Self {
            code: Self::UNKNOWN_CODE,
            unknown: true,
            message: message.into(),
            ..Self::default()
        }
    }

    pub fn start_failed(message: impl Into<String>) -> Self {
        Self {
            code: Self::START_ERROR_CODE,
            start_failed: true,
            message: message.into(),
            ..Self::default()
        }
    }

    pub fn reason(&self) -> ContainerReason {
        if self.unknown {
            ContainerReason::Unknown
        } else if self.start_failed {
            ContainerReason::StartError
        } else if self.oom_killed {
            ContainerReason::OomKilled
        } else if self.code == 0 {
            ContainerReason::Completed
        } else {
            ContainerReason::Error
        }
    }
}

/// The identity that the container's init runs with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUser {
    pub uid: u32,
    pub gid: u32,
    /// Including the primary group.
    pub groups: Vec<u32>,
}

/// What the image reference came to at creation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedImage {
    /// The image id: `sha256:…` of its configuration.
    pub id: String,
    /// A repository digest where the image has one, else the id.
    pub reference: String,
}

/// One container. Times are nanoseconds since 1970; 0: not yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: ContainerId,
    pub sandbox: SandboxId,
    pub spec: ContainerSpec,
    pub state: ContainerState,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub pid: Option<i32>,
    pub exit: Option<ExitInfo>,
    pub image: ResolvedImage,
    /// Relative to the hierarchy's root.
    pub cgroup: String,
    /// Absolute; empty: no log.
    pub log_path: String,
    pub user: ContainerUser,
    pub stop_signal: Signal,
    /// The OCI runtime spec (JSON) as it was carried out, after adjustment.
    pub oci_spec: String,
    /// The root file system was prepared: it must be discarded.
    #[serde(default)]
    pub snapshot_owed: bool,
    /// Ids of the images that are mounted, one for each of the spec's mounts (empty for others); empty where no image is.
    #[serde(default)]
    pub mount_images: Vec<String>,
    /// How an update of its limits that is under way is taken back, as the `cgroups` crate wrote it.
    #[serde(default)]
    pub undo: Option<serde_json::Value>,
    /// The pod's, by which it is removed even where nobody knows the pod. `None`: built in.
    #[serde(default)]
    pub runtime: Option<OciRuntime>,
}

impl ContainerRecord {
    /// Moves on, or says why not; the record is unchanged then.
    pub fn apply(&mut self, event: ContainerEvent) -> Result<(), Illegal> {
        self.state = self.state.transition(event)?;
        Ok(())
    }
}
