//! Namespaces, users and confinement.

use holdfast_cri_api::v1;
use holdfast_cri_api::v1::security_profile::ProfileType;
use holdfast_model::{
    Capabilities, ContainerId, ContainerSecurity, GroupsPolicy, IdMapping, Invalid, NamespaceMode,
    Namespaces, SandboxSecurity, SecurityProfile, SelinuxOptions, UserNamespace,
};

use super::enumeration;

const FIELD: &str = "linux.security_context";

#[allow(deprecated, reason = "old clients send the old field")]
pub fn sandbox_security(wire: v1::LinuxSandboxSecurityContext) -> Result<SandboxSecurity, Invalid> {
    Ok(SandboxSecurity {
        namespaces: wire
            .namespace_options
            .map(namespaces)
            .transpose()?
            .unwrap_or_default(),
        selinux: wire.selinux_options.map(selinux),
        run_as_user: wire.run_as_user.map(|n| n.value),
        run_as_group: wire.run_as_group.map(|n| n.value),
        readonly_rootfs: wire.readonly_rootfs,
        supplemental_groups: wire.supplemental_groups,
        groups_policy: groups_policy(wire.supplemental_groups_policy)?,
        privileged: wire.privileged,
        seccomp: wire.seccomp.map(|p| profile("seccomp", p)).transpose()?,
        apparmor: wire.apparmor.map(|p| profile("apparmor", p)).transpose()?,
        seccomp_profile_path: wire.seccomp_profile_path,
    })
}

#[allow(deprecated, reason = "shown as it came")]
pub fn sandbox_security_context(model: &SandboxSecurity) -> v1::LinuxSandboxSecurityContext {
    v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespace_options(&model.namespaces)),
        selinux_options: model.selinux.as_ref().map(selinux_option),
        run_as_user: int64(model.run_as_user),
        run_as_group: int64(model.run_as_group),
        readonly_rootfs: model.readonly_rootfs,
        supplemental_groups: model.supplemental_groups.clone(),
        supplemental_groups_policy: wire_groups_policy(model.groups_policy),
        privileged: model.privileged,
        seccomp: model.seccomp.as_ref().map(security_profile),
        apparmor: model.apparmor.as_ref().map(security_profile),
        seccomp_profile_path: model.seccomp_profile_path.clone(),
    }
}

#[allow(deprecated, reason = "old clients send the old fields")]
pub fn container_security(wire: v1::LinuxContainerSecurityContext) -> Result<ContainerSecurity, Invalid> {
    let capabilities = wire.capabilities.unwrap_or_default();
    Ok(ContainerSecurity {
        capabilities: Capabilities {
            add: capabilities.add_capabilities,
            drop: capabilities.drop_capabilities,
            add_ambient: capabilities.add_ambient_capabilities,
        },
        privileged: wire.privileged,
        namespaces: wire.namespace_options.map(namespaces).transpose()?,
        selinux: wire.selinux_options.map(selinux),
        run_as_user: wire.run_as_user.map(|n| n.value),
        run_as_group: wire.run_as_group.map(|n| n.value),
        run_as_username: wire.run_as_username,
        readonly_rootfs: wire.readonly_rootfs,
        supplemental_groups: wire.supplemental_groups,
        groups_policy: groups_policy(wire.supplemental_groups_policy)?,
        no_new_privs: wire.no_new_privs,
        masked_paths: wire.masked_paths,
        readonly_paths: wire.readonly_paths,
        seccomp: wire.seccomp.map(|p| profile("seccomp", p)).transpose()?,
        apparmor: wire.apparmor.map(|p| profile("apparmor", p)).transpose()?,
        seccomp_profile_path: wire.seccomp_profile_path,
        apparmor_profile: wire.apparmor_profile,
    })
}

#[allow(deprecated, reason = "shown as it came")]
pub fn container_security_context(model: &ContainerSecurity) -> v1::LinuxContainerSecurityContext {
    let capabilities = &model.capabilities;
    v1::LinuxContainerSecurityContext {
        capabilities: (*capabilities != Capabilities::default()).then(|| v1::Capability {
            add_capabilities: capabilities.add.clone(),
            drop_capabilities: capabilities.drop.clone(),
            add_ambient_capabilities: capabilities.add_ambient.clone(),
        }),
        privileged: model.privileged,
        namespace_options: model.namespaces.as_ref().map(namespace_options),
        selinux_options: model.selinux.as_ref().map(selinux_option),
        run_as_user: int64(model.run_as_user),
        run_as_group: int64(model.run_as_group),
        run_as_username: model.run_as_username.clone(),
        readonly_rootfs: model.readonly_rootfs,
        supplemental_groups: model.supplemental_groups.clone(),
        supplemental_groups_policy: wire_groups_policy(model.groups_policy),
        no_new_privs: model.no_new_privs,
        masked_paths: model.masked_paths.clone(),
        readonly_paths: model.readonly_paths.clone(),
        seccomp: model.seccomp.as_ref().map(security_profile),
        apparmor: model.apparmor.as_ref().map(security_profile),
        seccomp_profile_path: model.seccomp_profile_path.clone(),
        apparmor_profile: model.apparmor_profile.clone(),
    }
}

fn namespaces(wire: v1::NamespaceOption) -> Result<Namespaces, Invalid> {
    let mode = |kind: &str, number: i32| {
        let field = format!("{FIELD}.namespace_options.{kind}");
        match enumeration(&field, number)? {
            v1::NamespaceMode::Pod => Ok(NamespaceMode::Pod),
            v1::NamespaceMode::Container => Ok(NamespaceMode::Container),
            v1::NamespaceMode::Node => Ok(NamespaceMode::Node),
            v1::NamespaceMode::Target => ContainerId::parse(&wire.target_id)
                .map(NamespaceMode::Target)
                .map_err(|e| Invalid::new(format!("{FIELD}.namespace_options.target_id"), e.to_string())),
        }
    };
    let user = match &wire.userns_options {
        None => None,
        Some(user) => Some(UserNamespace {
            mode: mode("userns_options.mode", user.mode)?,
            uids: id_mappings(&user.uids),
            gids: id_mappings(&user.gids),
        }),
    };
    Ok(Namespaces {
        network: mode("network", wire.network)?,
        pid: mode("pid", wire.pid)?,
        ipc: mode("ipc", wire.ipc)?,
        user,
    })
}

pub fn namespace_options(model: &Namespaces) -> v1::NamespaceOption {
    let target = [model.network, model.pid, model.ipc]
        .into_iter()
        .find_map(|mode| match mode {
            NamespaceMode::Target(id) => Some(id.to_string()),
            _ => None,
        });
    v1::NamespaceOption {
        network: wire_mode(model.network),
        pid: wire_mode(model.pid),
        ipc: wire_mode(model.ipc),
        target_id: target.unwrap_or_default(),
        userns_options: model.user.as_ref().map(|user| v1::UserNamespace {
            mode: wire_mode(user.mode),
            uids: wire_mappings(&user.uids),
            gids: wire_mappings(&user.gids),
        }),
    }
}

fn wire_mode(mode: NamespaceMode) -> i32 {
    match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod,
        NamespaceMode::Container => v1::NamespaceMode::Container,
        NamespaceMode::Node => v1::NamespaceMode::Node,
        NamespaceMode::Target(_) => v1::NamespaceMode::Target,
    }
    .into()
}

pub fn id_mappings(wire: &[v1::IdMapping]) -> Vec<IdMapping> {
    wire.iter()
        .map(|m| IdMapping {
            host_id: m.host_id,
            container_id: m.container_id,
            length: m.length,
        })
        .collect()
}

pub fn wire_mappings(model: &[IdMapping]) -> Vec<v1::IdMapping> {
    model
        .iter()
        .map(|m| v1::IdMapping {
            host_id: m.host_id,
            container_id: m.container_id,
            length: m.length,
        })
        .collect()
}

fn groups_policy(number: i32) -> Result<GroupsPolicy, Invalid> {
    let field = format!("{FIELD}.supplemental_groups_policy");
    Ok(match enumeration(&field, number)? {
        v1::SupplementalGroupsPolicy::Merge => GroupsPolicy::Merge,
        v1::SupplementalGroupsPolicy::Strict => GroupsPolicy::Strict,
    })
}

fn wire_groups_policy(policy: GroupsPolicy) -> i32 {
    match policy {
        GroupsPolicy::Merge => v1::SupplementalGroupsPolicy::Merge,
        GroupsPolicy::Strict => v1::SupplementalGroupsPolicy::Strict,
    }
    .into()
}

fn profile(kind: &str, wire: v1::SecurityProfile) -> Result<SecurityProfile, Invalid> {
    let field = format!("{FIELD}.{kind}.profile_type");
    Ok(match enumeration(&field, wire.profile_type)? {
        ProfileType::RuntimeDefault => SecurityProfile::RuntimeDefault,
        ProfileType::Unconfined => SecurityProfile::Unconfined,
        // Some clients repeat the prefix of the deprecated fields here.
        ProfileType::Localhost => {
            let name = wire.localhost_ref.strip_prefix("localhost/");
            SecurityProfile::Localhost(name.map_or_else(|| wire.localhost_ref.clone(), str::to_owned))
        }
    })
}

fn security_profile(model: &SecurityProfile) -> v1::SecurityProfile {
    let (kind, reference) = match model {
        SecurityProfile::RuntimeDefault => (ProfileType::RuntimeDefault, ""),
        SecurityProfile::Unconfined => (ProfileType::Unconfined, ""),
        SecurityProfile::Localhost(name) => (ProfileType::Localhost, name.as_str()),
    };
    v1::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: reference.to_owned(),
    }
}

fn selinux(wire: v1::SeLinuxOption) -> SelinuxOptions {
    SelinuxOptions {
        user: wire.user,
        role: wire.role,
        kind: wire.r#type,
        level: wire.level,
    }
}

fn selinux_option(model: &SelinuxOptions) -> v1::SeLinuxOption {
    v1::SeLinuxOption {
        user: model.user.clone(),
        role: model.role.clone(),
        r#type: model.kind.clone(),
        level: model.level.clone(),
    }
}

fn int64(value: Option<i64>) -> Option<v1::Int64Value> {
    value.map(|value| v1::Int64Value { value })
}
