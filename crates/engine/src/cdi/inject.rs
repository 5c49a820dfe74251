//! Edits of CDI specs, carried out on the OCI runtime spec of a container.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use oci_spec::runtime::{
    Hook as OciHook, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, Mount as OciMount,
    Spec as OciSpec,
};

use super::spec::{DeviceNode, Edits, Hook, Mount};
use crate::hooks;

/// Why edits cannot be made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The machine has not got what the spec names.
    Missing(String),
    /// Nothing here can do that.
    Unsupported(String),
}

/// Blocks: devices are looked up on the machine.
pub(super) fn apply(edits: &Edits, spec: &mut OciSpec) -> Result<(), Refusal> {
    if edits.intel_rdt.is_some() {
        return Err(Refusal::Unsupported("intelRdt: resctrl is not supported".into()));
    }
    if let Some(device) = edits.net_devices.first() {
        return Err(Refusal::Unsupported(format!(
            "netDevices: moving the interface {:?} into a pod is not supported",
            device.host_interface_name
        )));
    }
    for text in &edits.env {
        set_env(spec, text);
    }
    for node in &edits.device_nodes {
        add_node(spec, node)?;
    }
    for mount in &edits.mounts {
        add_mount(spec, mount);
    }
    if !edits.mounts.is_empty()
        && let Some(mounts) = spec.mounts_mut()
    {
        // Parents before what is inside them, else as they came.
        mounts.sort_by_key(|mount| mount.destination().components().count());
    }
    for hook in &edits.hooks {
        add_hook(spec, hook);
    }
    add_groups(spec, &edits.additional_gids);
    Ok(())
}

fn add_groups(spec: &mut OciSpec, more: &[u32]) {
    let Some(process) = spec.process_mut() else { return };
    let mut user = process.user().clone();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    for gid in more {
        if *gid != 0 && !groups.contains(gid) {
            groups.push(*gid);
        }
    }
    user.set_additional_gids(Some(groups));
    process.set_user(user);
}

/// The last one of a name counts; it keeps its place.
fn set_env(spec: &mut OciSpec, text: &str) {
    let Some(process) = spec.process_mut() else { return };
    let mut env = process.env().clone().unwrap_or_default();
    let key = text.split_once('=').map_or(text, |(key, _)| key);
    let same = |known: &String| known.split_once('=').is_some_and(|(other, _)| other == key);
    match env.iter_mut().find(|known| same(known)) {
        Some(known) => text.clone_into(known),
        None => env.push(text.to_owned()),
    }
    process.set_env(Some(env));
}

/// What the machine says of a device node.
struct Host {
    kind: LinuxDeviceType,
    major: i64,
    minor: i64,
    mode: u32,
}

fn look_up(path: &str) -> Result<Host, String> {
    let meta = std::fs::symlink_metadata(path).map_err(|e| e.to_string())?;
    let file = meta.file_type();
    let kind = if file.is_block_device() {
        LinuxDeviceType::B
    } else if file.is_char_device() {
        LinuxDeviceType::C
    } else if file.is_fifo() {
        LinuxDeviceType::P
    } else {
        return Err("is not a device node".into());
    };
    Ok(Host {
        kind,
        major: i64::from(rustix::fs::major(meta.rdev())),
        minor: i64::from(rustix::fs::minor(meta.rdev())),
        mode: meta.mode() & 0o7777,
    })
}

fn add_node(spec: &mut OciSpec, node: &DeviceNode) -> Result<(), Refusal> {
    let host_path = if node.host_path.is_empty() {
        &node.path
    } else {
        &node.host_path
    };
    let host = look_up(host_path);
    let stated = match node.kind.as_str() {
        "b" => Some(LinuxDeviceType::B),
        "c" | "u" => Some(LinuxDeviceType::C),
        "p" => Some(LinuxDeviceType::P),
        _ => None,
    };
    // A device that says everything about itself need not be there yet.
    let complete = stated.is_some() && (node.major != 0 || stated == Some(LinuxDeviceType::P));
    let (kind, major, minor) = match (&host, stated) {
        (_, Some(kind)) if complete => (kind, node.major, node.minor),
        (Ok(host), stated) if stated.is_none_or(|kind| kind == host.kind) => {
            if node.major == 0 {
                (host.kind, host.major, host.minor)
            } else {
                (host.kind, node.major, node.minor)
            }
        }
        (Ok(_), _) => {
            return Err(Refusal::Missing(format!(
                "the device node {host_path} is not of the type {:?}",
                node.kind
            )));
        }
        (Err(reason), _) => return Err(Refusal::Missing(format!("the device node {host_path}: {reason}"))),
    };
    let (uid, gid) = spec
        .process()
        .as_ref()
        .map_or((0, 0), |process| (process.user().uid(), process.user().gid()));
    let mut own = LinuxDevice::default();
    own.set_path(node.path.clone().into());
    own.set_typ(kind);
    own.set_major(major);
    own.set_minor(minor);
    own.set_file_mode(
        node.file_mode
            .map(|mode| mode & 0o7777)
            .or(host.ok().map(|h| h.mode)),
    );
    own.set_uid(Some(node.uid.unwrap_or(uid)));
    own.set_gid(Some(node.gid.unwrap_or(gid)));
    let Some(linux) = spec.linux_mut() else {
        return Ok(());
    };
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|known| known.path() != own.path());
    devices.push(own);
    linux.set_devices(Some(devices));
    let access = match node.permissions.as_str() {
        "" => "rwm",
        "none" => "",
        some => some,
    };
    if kind == LinuxDeviceType::P || access.is_empty() {
        return Ok(());
    }
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true);
    rule.set_typ(Some(kind));
    rule.set_major(Some(major));
    rule.set_minor(Some(minor));
    rule.set_access(Some(access.to_owned()));
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(rule);
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    Ok(())
}

fn add_mount(spec: &mut OciSpec, mount: &Mount) {
    let in_user_namespace = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref())
        .is_some_and(|list| list.iter().any(|one| one.typ() == LinuxNamespaceType::User));
    let mut options = mount.options.clone();
    let bind = options.iter().any(|option| option == "bind" || option == "rbind") || mount.kind == "bind";
    let mapped = options
        .iter()
        .any(|option| option == "idmap" || option == "ridmap");
    if bind && in_user_namespace && !mapped {
        // What is root's on the host is root's in there.
        options.push("idmap".to_owned());
    }
    let mut own = OciMount::default();
    own.set_destination(mount.container_path.clone().into());
    own.set_source(Some(mount.host_path.clone().into()));
    own.set_typ((!mount.kind.is_empty()).then(|| mount.kind.clone()));
    own.set_options(Some(options));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.retain(|known| known.destination() != Path::new(&mount.container_path));
    mounts.push(own);
    spec.set_mounts(Some(mounts));
}

fn add_hook(spec: &mut OciSpec, hook: &Hook) {
    let mut own = OciHook::default();
    own.set_path(hook.path.clone().into());
    own.set_args((!hook.args.is_empty()).then(|| hook.args.clone()));
    own.set_env((!hook.env.is_empty()).then(|| hook.env.clone()));
    own.set_timeout(hook.timeout);
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    // The specs that were read have no other names.
    if let Some(place) = hooks::at(&mut hooks, &hook.name) {
        place.get_or_insert_with(Vec::new).push(own);
    }
    spec.set_hooks(Some(hooks));
}
