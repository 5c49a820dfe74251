//! What a pod and a container are: ids, specs, records and both state machines, with the checks that need no I/O.
//!
//! Everything here is plain data and pure functions. The specs mirror what the container runtime interface (CRI) can
//! ask for, in types that cannot hold a contradiction that CRI's own messages could; the records are what survives
//! the daemon. Translation from the wire is `cri-server`'s, acting on it is `engine`'s.

#![forbid(unsafe_code)]

mod container;
mod id;
mod record;
mod resources;
mod sandbox;
mod security;
mod signal;
mod state;
mod validate;

pub use container::{
    ContainerMetadata, ContainerSpec, Device, EnvVar, ImageSpec, Mount, MountImage, Propagation,
};
pub use id::{ContainerId, IdError, SandboxId};
pub use record::{
    CgroupDriver, ContainerReason, ContainerRecord, ContainerUser, ExitInfo, OciRuntime, ResolvedImage,
    SCOPE_PREFIX, SandboxRecord, scope_unit,
};
pub use resources::{HugepageLimit, Resources};
pub use sandbox::{DnsConfig, PortMapping, Protocol, SandboxMetadata, SandboxSpec};
pub use security::{
    Capabilities, ContainerSecurity, GroupsPolicy, IdMapping, NamespaceMode, Namespaces, SandboxSecurity,
    SecurityProfile, SelinuxLabels, SelinuxOptions, UserNamespace,
};
pub use signal::{Signal, SignalError};
pub use state::{ContainerEvent, ContainerState, Illegal, SandboxEvent, SandboxState};
pub use validate::{
    Invalid, SysctlNamespace, hostname_of, limits, seccomp_from_legacy_path, sysctl_namespace,
};
