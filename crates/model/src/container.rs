//! What a client asks of a container.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ContainerSecurity, IdMapping, Resources, Signal};

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerMetadata {
    pub name: String,
    pub attempt: u32,
}

/// CRI's `ImageSpec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// A reference or an image id.
    pub image: String,
    /// What the user wrote in the pod; clients may leave it out.
    pub user_specified_image: String,
    pub runtime_handler: String,
    pub annotations: BTreeMap<String, String>,
    /// Digest that an image volume resolved to; only in statuses.
    pub image_ref: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// An image as the source of a mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountImage {
    pub image: ImageSpec,
    /// Relative; empty: the image's root.
    pub sub_path: String,
}

/// CRI's `Mount`: from the host, or from an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub container_path: String,
    /// Empty where `image` is given.
    pub host_path: String,
    pub image: Option<MountImage>,
    pub readonly: bool,
    pub recursive_read_only: bool,
    pub selinux_relabel: bool,
    pub propagation: Propagation,
    pub uid_mappings: Vec<IdMapping>,
    pub gid_mappings: Vec<IdMapping>,
    /// Further options of mount(8), such as `noexec`.
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub container_path: String,
    pub host_path: String,
    /// Of `rwm`.
    pub permissions: String,
}

/// The value is bytes: CRI has it so since Kubernetes 1.37.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EnvVar {
    pub key: String,
    pub value: Vec<u8>,
}

impl EnvVar {
    pub fn new(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
        }
    }
}

/// CRI's `ContainerConfig` with its Linux part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub metadata: ContainerMetadata,
    pub image: ImageSpec,
    /// Replaces the image's entrypoint (and its cmd).
    pub command: Vec<String>,
    /// Replaces the image's cmd.
    pub args: Vec<String>,
    /// Empty: the image's, else `/`.
    pub working_dir: String,
    pub envs: Vec<EnvVar>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// Fully qualified CDI names, `vendor/class=name`.
    pub cdi_devices: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Relative to the pod's log directory; empty: no log.
    pub log_path: String,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub resources: Resources,
    pub security: ContainerSecurity,
    /// `None`: the image's, else SIGTERM.
    pub stop_signal: Option<Signal>,
}
