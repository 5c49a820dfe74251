//! Namespaces, identities and confinement, for pods and containers.

use serde::{Deserialize, Serialize};

use crate::ContainerId;

/// Whose namespace a process gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// The pod's, shared by its containers.
    #[default]
    Pod,
    /// One of the container's own.
    Container,
    /// The host's.
    Node,
    /// That of another container of the pod.
    Target(ContainerId),
}

/// One range of a user-namespace map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdMapping {
    pub host_id: u32,
    pub container_id: u32,
    pub length: u32,
}

/// `mode` is `Pod` (the maps are the pod's) or `Node` (no user namespace).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UserNamespace {
    pub mode: NamespaceMode,
    pub uids: Vec<IdMapping>,
    pub gids: Vec<IdMapping>,
}

/// CRI's `NamespaceOption`. Absent means: everything the pod's, no user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    pub user: Option<UserNamespace>,
}

impl Namespaces {
    /// The user namespace's maps, where one is asked for.
    pub fn user_maps(&self) -> Option<&UserNamespace> {
        self.user.as_ref().filter(|user| user.mode == NamespaceMode::Pod)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxOptions {
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: String,
}

impl SelinuxOptions {
    pub fn is_empty(&self) -> bool {
        self.user.is_empty() && self.role.is_empty() && self.kind.is_empty() && self.level.is_empty()
    }
}

/// SELinux labels that were chosen, of processes and of the file systems made for them. Both empty: none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxLabels {
    pub process: String,
    pub mount: String,
}

/// A seccomp or AppArmor profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecurityProfile {
    #[default]
    RuntimeDefault,
    Unconfined,
    /// Seccomp: absolute path of a profile on the node. AppArmor: name of a loaded profile.
    Localhost(String),
}

/// How groups of the image's `/etc/group` and of the pod combine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupsPolicy {
    /// The image's groups of the user, and those that the pod names.
    #[default]
    Merge,
    /// Only those that the pod names.
    Strict,
}

/// CRI's `LinuxSandboxSecurityContext`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSecurity {
    pub namespaces: Namespaces,
    pub selinux: Option<SelinuxOptions>,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub readonly_rootfs: bool,
    pub supplemental_groups: Vec<i64>,
    pub groups_policy: GroupsPolicy,
    pub privileged: bool,
    pub seccomp: Option<SecurityProfile>,
    pub apparmor: Option<SecurityProfile>,
    /// Deprecated spelling of `seccomp`: `runtime/default`, `unconfined`, `localhost/<path>`.
    pub seccomp_profile_path: String,
}

/// Names with or without `CAP_`; `ALL` is understood.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
    pub add_ambient: Vec<String>,
}

/// CRI's `LinuxContainerSecurityContext`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSecurity {
    pub capabilities: Capabilities,
    pub privileged: bool,
    /// `None`: as the pod has it.
    pub namespaces: Option<Namespaces>,
    pub selinux: Option<SelinuxOptions>,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    /// Empty: not asked for.
    pub run_as_username: String,
    pub readonly_rootfs: bool,
    pub supplemental_groups: Vec<i64>,
    pub groups_policy: GroupsPolicy,
    pub no_new_privs: bool,
    /// Taken literally: empty means that nothing is masked.
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub seccomp: Option<SecurityProfile>,
    pub apparmor: Option<SecurityProfile>,
    /// Deprecated spelling of `seccomp`.
    pub seccomp_profile_path: String,
    /// Deprecated spelling of `apparmor`.
    pub apparmor_profile: String,
}
