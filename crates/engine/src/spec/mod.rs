//! From what CRI and the image ask for to the OCI runtime spec that a container is made from: pure, no I/O.
//!
//! Whatever must be looked up (the image's passwd, a seccomp profile, a device's numbers, what the kernel can do) is
//! looked up before and given in [`Inputs`]. Paths in namespaces are the launcher's: `pod:` is the sandbox's, `pid:N`
//! that of process N. Leaves out CDI, NRI and hooks, which adjust the result ([`crate::adjust`]).

mod capabilities;
mod mounts;
mod process;
mod resources;
mod security;
#[cfg(test)]
mod tests;
mod user;

use std::path::PathBuf;

use holdfast_images::{DeclaredVolume, Volume};
use holdfast_model::{
    ContainerId, ContainerSpec, ContainerUser, Invalid, NamespaceMode, SandboxRecord, Signal, UserNamespace,
};
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType,
    LinuxSeccomp, Root, Spec,
};

use crate::lsm::{AppArmor, Selinux};

pub use capabilities::DEFAULT as DEFAULT_CAPABILITIES;
pub(crate) use mounts::{declared_volumes, remaining_volumes};
pub use process::exec_process;
pub use resources::oci as oci_resources;
pub(crate) use security::needs_default_profile;

/// The version of the OCI runtime specification that containers are described in.
pub const OCI_VERSION: &str = "1.2.0";

/// What an image says about the containers made of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    /// `user[:group]`, by name or number.
    pub user: String,
    pub working_dir: String,
    pub stop_signal: String,
}

/// What the kernel and the machine can do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Only the unified hierarchy is mounted.
    pub cgroup_v2: bool,
    pub apparmor: AppArmor,
    pub selinux: Selinux,
    /// Capabilities that the kernel knows, as `CAP_…`, in the order of their numbers.
    pub capabilities: Vec<String>,
}

/// A device of the host as stat(2) shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    pub path: PathBuf,
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A device for this container: where it appears and what may be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantedDevice {
    pub container_path: String,
    pub permissions: String,
    pub device: HostDevice,
}

/// The pod's files that each container sees under /etc.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFiles {
    pub resolv_conf: PathBuf,
    pub hostname: PathBuf,
    /// `None`: the pod has the host's network and the client brings its own or none.
    pub hosts: Option<PathBuf>,
}

/// Which seccomp filter the container gets, loaded already.
#[derive(Debug, Clone, Default)]
pub enum Seccomp {
    #[default]
    Unconfined,
    /// The default profile, which depends on the capabilities: `spec::build` calls this with them.
    RuntimeDefault(fn(&[&str]) -> LinuxSeccomp),
    Profile(Box<LinuxSeccomp>),
}

/// Everything that a spec is made from.
pub struct Inputs<'a> {
    pub sandbox: &'a SandboxRecord,
    pub id: &'a ContainerId,
    pub container: &'a ContainerSpec,
    pub image: &'a ImageDefaults,
    /// `/etc/passwd` and `/etc/group` of the image.
    pub passwd: Option<&'a [u8]>,
    pub group: Option<&'a [u8]>,
    pub host: &'a HostFacts,
    pub files: &'a PodFiles,
    pub devices: &'a [GrantedDevice],
    /// Of a privileged container: every device of the host.
    pub host_devices: &'a [HostDevice],
    pub seccomp: Seccomp,
    /// Relative to the hierarchy's root.
    pub cgroup: &'a str,
    /// Process whose PID namespace is joined, for the mode `Target`.
    pub target_pid: Option<i32>,
    /// What stands for the images of image mounts, one for each entry of `container.mounts`.
    pub image_sources: &'a [Option<Volume>],
    /// Volumes that the image declares and the client does not replace.
    pub image_volumes: &'a [DeclaredVolume],
    pub rlimits: &'a [crate::Rlimit],
}

/// A spec with what statuses show of it.
#[derive(Debug, Clone)]
pub struct Built {
    pub spec: Spec,
    pub user: ContainerUser,
    pub stop_signal: Signal,
}

/// Modes of the container, with the pod's where it leaves them out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Modes {
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    pub user: Option<UserNamespace>,
}

impl Modes {
    pub(crate) fn of(sandbox: &SandboxRecord, container: &ContainerSpec) -> Self {
        let pods = &sandbox.spec.security.namespaces;
        let own = container.security.namespaces.as_ref().unwrap_or(pods);
        // The pod has no namespace of its own to share where it has the host's.
        let resolve = |own, pods| if own == NamespaceMode::Pod { pods } else { own };
        let pid = match own.pid {
            NamespaceMode::Pod if pods.pid == NamespaceMode::Node => NamespaceMode::Node,
            pid => pid,
        };
        Self {
            network: resolve(own.network, pods.network),
            pid,
            ipc: resolve(own.ipc, pods.ipc),
            user: pods.user_maps().cloned(),
        }
    }

    pub(crate) fn host_network(&self) -> bool {
        self.network == NamespaceMode::Node
    }
}

/// Makes the OCI runtime spec.
pub fn build(inputs: &Inputs<'_>) -> Result<Built, Invalid> {
    let modes = Modes::of(inputs.sandbox, inputs.container);
    let security = &inputs.container.security;
    let identity = user::resolve(inputs)?;
    let capabilities = capabilities::resolve(inputs)?;
    let stop_signal = process::stop_signal(inputs)?;

    let mut root = Root::default();
    root.set_path("rootfs".into());
    root.set_readonly(Some(security.readonly_rootfs));

    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.into());
    spec.set_root(Some(root));
    spec.set_hostname(None);
    spec.set_mounts(Some(mounts::all(inputs, &modes)?));
    spec.set_process(Some(process::build(inputs, &identity, &capabilities)?));
    spec.set_linux(Some(linux(inputs, &modes, &capabilities)?));
    // For external runtimes and for hooks.
    let annotations = &inputs.container.annotations;
    let given = annotations
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()));
    spec.set_annotations(Some(given.collect()));
    Ok(Built {
        spec,
        user: identity.user,
        stop_signal,
    })
}

fn linux(inputs: &Inputs<'_>, modes: &Modes, capabilities: &capabilities::Granted) -> Result<Linux, Invalid> {
    let security = &inputs.container.security;
    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces(inputs, modes)?));
    linux.set_cgroups_path(Some(inputs.cgroup.into()));
    linux.set_resources(Some(resources::build(inputs)));
    linux.set_devices(Some(devices(inputs)));
    linux.set_rootfs_propagation(mounts::root_propagation(inputs.container).map(str::to_owned));
    let (masked, readonly) = if security.privileged {
        (Vec::new(), Vec::new())
    } else {
        (security.masked_paths.clone(), security.readonly_paths.clone())
    };
    linux.set_masked_paths(Some(masked));
    linux.set_readonly_paths(Some(readonly));
    linux.set_seccomp(security::seccomp(inputs, capabilities));
    linux.set_mount_label(security::mount_label(inputs)?);
    if let Some(user) = &modes.user {
        linux.set_uid_mappings(Some(id_mappings(&user.uids)));
        linux.set_gid_mappings(Some(id_mappings(&user.gids)));
    }
    Ok(linux)
}

fn id_mappings(maps: &[holdfast_model::IdMapping]) -> Vec<LinuxIdMapping> {
    maps.iter()
        .filter_map(|map| {
            LinuxIdMappingBuilder::default()
                .host_id(map.host_id)
                .container_id(map.container_id)
                .size(map.length)
                .build()
                // Every field is given; the builder has nothing to complain about.
                .ok()
        })
        .collect()
}

/// Absent from the list: the host's. Without a path: new.
fn namespaces(inputs: &Inputs<'_>, modes: &Modes) -> Result<Vec<LinuxNamespace>, Invalid> {
    let namespace = |kind, path: Option<&str>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace.set_path(path.map(PathBuf::from));
        namespace
    };
    let mut list = vec![namespace(LinuxNamespaceType::Mount, None)];
    match modes.pid {
        NamespaceMode::Pod => list.push(namespace(LinuxNamespaceType::Pid, Some("pod:"))),
        NamespaceMode::Container => list.push(namespace(LinuxNamespaceType::Pid, None)),
        NamespaceMode::Node => {}
        NamespaceMode::Target(target) => {
            let pid = inputs.target_pid.ok_or_else(|| {
                Invalid::new(
                    "linux.security_context.namespace_options.target_id",
                    format!("container {target} is not running in this pod"),
                )
            })?;
            list.push(namespace(LinuxNamespaceType::Pid, Some(&format!("pid:{pid}"))));
        }
    }
    if modes.ipc == NamespaceMode::Pod {
        list.push(namespace(LinuxNamespaceType::Ipc, Some("pod:")));
    }
    if !modes.host_network() {
        // A pod with the host's network has the host's name as well.
        list.push(namespace(LinuxNamespaceType::Network, Some("pod:")));
        list.push(namespace(LinuxNamespaceType::Uts, Some("pod:")));
    }
    if inputs.host.cgroup_v2 && !inputs.container.security.privileged {
        list.push(namespace(LinuxNamespaceType::Cgroup, None));
    }
    if modes.user.is_some() {
        list.push(namespace(LinuxNamespaceType::User, Some("pod:")));
    }
    Ok(list)
}

/// Device nodes beyond those that every container has.
fn devices(inputs: &Inputs<'_>) -> Vec<LinuxDevice> {
    let node = |path: PathBuf, device: &HostDevice| {
        let mut node = LinuxDevice::default();
        node.set_path(path);
        node.set_typ(resources::device_type(device));
        node.set_major(i64::from(device.major));
        node.set_minor(i64::from(device.minor));
        node.set_file_mode(Some(device.mode & 0o7777));
        node.set_uid(Some(device.uid));
        node.set_gid(Some(device.gid));
        node
    };
    let granted = inputs
        .devices
        .iter()
        .map(|granted| node(granted.container_path.clone().into(), &granted.device));
    let mut nodes: Vec<LinuxDevice> = granted.collect();
    if inputs.container.security.privileged {
        for device in inputs.host_devices {
            if !nodes.iter().any(|known| *known.path() == device.path) {
                nodes.push(node(device.path.clone(), device));
            }
        }
    }
    nodes
}
