//! Checks of a container's spec.

use super::sandbox::namespaces;
use super::{
    Invalid, absolute_path, bounded_map, count, groups, id_mappings, limits, no_nul, profile,
    relative_inside, required_name, resources, seccomp_from_legacy_path, user_id,
};
use crate::{ContainerSpec, Device, EnvVar, Mount, NamespaceMode, Propagation, SandboxSpec, SecurityProfile};

const SECURITY: &str = "linux.security_context";

impl ContainerSpec {
    /// Checks everything that can be checked without looking at the machine or the image.
    pub fn validate(&self, sandbox: &SandboxSpec) -> Result<(), Invalid> {
        required_name("metadata.name", &self.metadata.name)?;
        if self.image.image.is_empty() {
            return Err(Invalid::new("image.image", "is missing"));
        }
        no_nul("image.image", &self.image.image)?;
        bounded_map("labels", &self.labels)?;
        bounded_map("annotations", &self.annotations)?;
        self.process()?;
        if !self.log_path.is_empty() {
            // In a pod without a log_directory it means nothing: there is no log then, as with the field's other runtimes.
            relative_inside("log_path", &self.log_path)?;
        }
        count("mounts", self.mounts.len(), limits::MOUNTS)?;
        for (n, item) in self.mounts.iter().enumerate() {
            mount(&format!("mounts[{n}]"), item)?;
            mapped_like_pod(&format!("mounts[{n}].uidMappings"), item, sandbox)?;
        }
        count("devices", self.devices.len(), limits::DEVICES)?;
        for (n, item) in self.devices.iter().enumerate() {
            device(&format!("devices[{n}]"), item)?;
        }
        count("CDI_devices", self.cdi_devices.len(), limits::DEVICES)?;
        resources("linux.resources", &self.resources)?;
        self.security_context(sandbox)
    }

    fn process(&self) -> Result<(), Invalid> {
        let mut total = 0;
        for (field, list) in [("command", &self.command), ("args", &self.args)] {
            count(field, list.len(), limits::ARGS)?;
            for (n, arg) in list.iter().enumerate() {
                no_nul(&format!("{field}[{n}]"), arg)?;
                if arg.len() > limits::ARG_BYTES {
                    return Err(Invalid::new(
                        format!("{field}[{n}]"),
                        format!("is longer than {} bytes", limits::ARG_BYTES),
                    ));
                }
                total += arg.len() + 1;
            }
        }
        count("envs", self.envs.len(), limits::ARGS)?;
        for (n, env) in self.envs.iter().enumerate() {
            env_var(&format!("envs[{n}]"), env)?;
            total += env.key.len() + env.value.len() + 2;
        }
        if total > limits::ARGS_AND_ENV_BYTES {
            return Err(Invalid::new(
                "envs",
                format!("and the arguments take {total} bytes, more than execve accepts"),
            ));
        }
        if !self.working_dir.is_empty() {
            absolute_path("working_dir", &self.working_dir)?;
        }
        Ok(())
    }

    fn security_context(&self, sandbox: &SandboxSpec) -> Result<(), Invalid> {
        let security = &self.security;
        if let Some(wanted) = &security.namespaces {
            let field = format!("{SECURITY}.namespace_options");
            namespaces(&field, wanted)?;
            for (kind, own, pods) in [
                ("network", wanted.network, sandbox.security.namespaces.network),
                ("ipc", wanted.ipc, sandbox.security.namespaces.ipc),
            ] {
                if own == NamespaceMode::Pod && pods == NamespaceMode::Node {
                    // A client that leaves the container's options at their default means "as the pod has it".
                    continue;
                }
                if own != pods {
                    return Err(Invalid::new(format!("{field}.{kind}"), "differs from the pod's"));
                }
            }
            if wanted.user.is_some() && wanted.user_maps() != sandbox.security.namespaces.user_maps() {
                return Err(Invalid::new(
                    format!("{field}.userns_options"),
                    "differs from the pod's",
                ));
            }
        }
        if let Some(id) = security.run_as_user {
            user_id(&format!("{SECURITY}.run_as_user"), id)?;
            if !security.run_as_username.is_empty() {
                return Err(Invalid::new(
                    format!("{SECURITY}.run_as_username"),
                    "and run_as_user cannot both be given",
                ));
            }
        }
        if security.run_as_username.contains(['\0', '\n', ':', '/']) {
            return Err(Invalid::new(
                format!("{SECURITY}.run_as_username"),
                "contains a character that no user name can have",
            ));
        }
        if let Some(id) = security.run_as_group {
            user_id(&format!("{SECURITY}.run_as_group"), id)?;
            if security.run_as_user.is_none() && security.run_as_username.is_empty() {
                return Err(Invalid::new(
                    format!("{SECURITY}.run_as_group"),
                    "is given without run_as_user or run_as_username",
                ));
            }
        }
        groups(
            &format!("{SECURITY}.supplemental_groups"),
            &security.supplemental_groups,
        )?;
        for (field, list) in [
            ("masked_paths", &security.masked_paths),
            ("readonly_paths", &security.readonly_paths),
        ] {
            let field = format!("{SECURITY}.{field}");
            count(&field, list.len(), limits::PATHS)?;
            list.iter()
                .enumerate()
                .try_for_each(|(n, path)| absolute_path(&format!("{field}[{n}]"), path))?;
        }
        for (field, list) in [
            ("add_capabilities", &security.capabilities.add),
            ("drop_capabilities", &security.capabilities.drop),
            ("add_ambient_capabilities", &security.capabilities.add_ambient),
        ] {
            count(&format!("{SECURITY}.capabilities.{field}"), list.len(), 128)?;
        }
        if security.privileged && !sandbox.security.privileged {
            return Err(Invalid::new(
                format!("{SECURITY}.privileged"),
                "is set, but the pod is not privileged",
            ));
        }
        if security.privileged && sandbox.security.namespaces.user_maps().is_some() {
            // The kernel would deny most of what `privileged` promises.
            return Err(Invalid::new(
                format!("{SECURITY}.privileged"),
                "is not possible in a user namespace",
            ));
        }
        profile(&format!("{SECURITY}.seccomp"), security.seccomp.as_ref(), true)?;
        profile(&format!("{SECURITY}.apparmor"), security.apparmor.as_ref(), false)?;
        self.seccomp()?;
        self.apparmor()?;
        Ok(())
    }

    /// The seccomp profile, from the new or the deprecated field. `None`: not given.
    pub fn seccomp(&self) -> Result<Option<SecurityProfile>, Invalid> {
        match &self.security.seccomp {
            Some(profile) => Ok(Some(profile.clone())),
            None => {
                let field = format!("{SECURITY}.seccomp_profile_path");
                let found = seccomp_from_legacy_path(&field, &self.security.seccomp_profile_path)?;
                profile(&field, found.as_ref(), true)?;
                Ok(found)
            }
        }
    }

    /// The AppArmor profile, from the new or the deprecated field. `None`: not given.
    pub fn apparmor(&self) -> Result<Option<SecurityProfile>, Invalid> {
        if let Some(profile) = &self.security.apparmor {
            return Ok(Some(match profile {
                // Some clients write the deprecated field's prefix here, too.
                SecurityProfile::Localhost(name) => {
                    SecurityProfile::Localhost(name.strip_prefix("localhost/").unwrap_or(name).to_owned())
                }
                other => other.clone(),
            }));
        }
        let text = self.security.apparmor_profile.as_str();
        match text {
            "" => Ok(None),
            "unconfined" => Ok(Some(SecurityProfile::Unconfined)),
            "runtime/default" => Ok(Some(SecurityProfile::RuntimeDefault)),
            _ => match text.strip_prefix("localhost/") {
                Some(name) if !name.is_empty() => Ok(Some(SecurityProfile::Localhost(name.to_owned()))),
                _ => Err(Invalid::new(
                    format!("{SECURITY}.apparmor_profile"),
                    format!("{text:?} is not `runtime/default`, `unconfined` or `localhost/<name>`"),
                )),
            },
        }
    }
}

fn env_var(field: &str, env: &EnvVar) -> Result<(), Invalid> {
    let key_field = format!("{field}.key");
    if env.key.is_empty() {
        return Err(Invalid::new(key_field, "is missing"));
    }
    if env.key.contains(['=', '\0', '\n']) {
        return Err(Invalid::new(
            key_field,
            format!("{:?} contains `=`, a newline or NUL", env.key),
        ));
    }
    let value_field = format!("{field}.value");
    if env.value.contains(&0) {
        return Err(Invalid::new(
            value_field,
            format!("({}) contains a NUL byte", env.key),
        ));
    }
    // A home directory is copied into line-based files by many programs (CVE-2022-4318 was a runtime doing so).
    if env.key == "HOME" && env.value.contains(&b'\n') {
        return Err(Invalid::new(value_field, "(HOME) contains a newline"));
    }
    if env.key.len() + env.value.len() + 1 > limits::ARG_BYTES {
        return Err(Invalid::new(
            value_field,
            format!("({}) is longer than {} bytes", env.key, limits::ARG_BYTES),
        ));
    }
    Ok(())
}

/// A volume's ids can be mapped as the pod's are, and in no other way: the kernel wants a user namespace for it.
fn mapped_like_pod(field: &str, mount: &Mount, sandbox: &SandboxSpec) -> Result<(), Invalid> {
    let maps = (&mount.uid_mappings, &mount.gid_mappings);
    match sandbox.security.namespaces.user_maps() {
        _ if mount.uid_mappings.is_empty() => Ok(()),
        Some(user) if maps == (&user.uids, &user.gids) => Ok(()),
        Some(_) => Err(Invalid::new(field, "and gidMappings differ from the pod's")),
        None => Err(Invalid::new(
            field,
            "are given, but the pod has no user namespace",
        )),
    }
}

fn mount(field: &str, mount: &Mount) -> Result<(), Invalid> {
    absolute_path(&format!("{field}.container_path"), &mount.container_path)?;
    if mount
        .container_path
        .split('/')
        .all(|part| part.is_empty() || part == ".")
    {
        return Err(Invalid::new(
            format!("{field}.container_path"),
            "is the container's root",
        ));
    }
    match &mount.image {
        Some(image) => {
            if !mount.host_path.is_empty() {
                return Err(Invalid::new(
                    format!("{field}.host_path"),
                    "and image cannot both be given",
                ));
            }
            if image.image.image.is_empty() {
                return Err(Invalid::new(format!("{field}.image.image"), "is missing"));
            }
            relative_inside(&format!("{field}.image_sub_path"), &image.sub_path)?;
            if !mount.readonly {
                return Err(Invalid::new(
                    format!("{field}.readonly"),
                    "must be set: an image is mounted read-only",
                ));
            }
        }
        None => absolute_path(&format!("{field}.host_path"), &mount.host_path)?,
    }
    if mount.recursive_read_only {
        if !mount.readonly {
            return Err(Invalid::new(
                format!("{field}.recursive_read_only"),
                "needs readonly",
            ));
        }
        if mount.propagation != Propagation::Private {
            return Err(Invalid::new(
                format!("{field}.recursive_read_only"),
                "is not possible with propagation: a mount that arrives later would be writable",
            ));
        }
    }
    id_mappings(&format!("{field}.uidMappings"), &mount.uid_mappings)?;
    id_mappings(&format!("{field}.gidMappings"), &mount.gid_mappings)?;
    if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
        return Err(Invalid::new(
            format!("{field}.uidMappings"),
            "and gidMappings must be given together",
        ));
    }
    count(&format!("{field}.mount_options"), mount.options.len(), 64)?;
    for option in &mount.options {
        no_nul(&format!("{field}.mount_options"), option)?;
    }
    Ok(())
}

fn device(field: &str, device: &Device) -> Result<(), Invalid> {
    absolute_path(&format!("{field}.host_path"), &device.host_path)?;
    if !device.container_path.is_empty() {
        absolute_path(&format!("{field}.container_path"), &device.container_path)?;
    }
    if device.permissions.len() > 3 || !device.permissions.chars().all(|c| matches!(c, 'r' | 'w' | 'm')) {
        return Err(Invalid::new(
            format!("{field}.permissions"),
            format!("{:?} is not made of `r`, `w` and `m`", device.permissions),
        ));
    }
    Ok(())
}
