//! What is mounted in a container, in order.

use std::path::{Path, PathBuf};

use holdfast_images::{DeclaredVolume, Volume};
use holdfast_model::{ContainerSpec, Invalid, Mount as Wanted, NamespaceMode, Propagation};
use oci_spec::runtime::Mount;

use super::{Inputs, Modes, id_mappings};

/// The source that stands for the pod's shared memory.
const POD_SHM: &str = "pod:shm";

fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.into()));
    mount.set_destination(destination.into());
    mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

pub(crate) fn all(inputs: &Inputs<'_>, modes: &Modes) -> Result<Vec<Mount>, Invalid> {
    let mut wanted = Vec::with_capacity(inputs.container.mounts.len());
    for (n, item) in inputs.container.mounts.iter().enumerate() {
        wanted.push(match &item.image {
            None => {
                let source = item.host_path.as_str();
                from_host(
                    mount(
                        "bind",
                        source,
                        &clean(&item.container_path),
                        &options(n, item, false)?,
                    ),
                    item,
                )
            }
            Some(image) => match inputs.image_sources.get(n).and_then(Option::as_ref) {
                Some(source) => from_image(source, item, options(n, item, true)?, modes.user.is_some()),
                None => {
                    return Err(Invalid::new(
                        format!("mounts[{n}].image"),
                        format!("{:?} is not present: pull it first", image.image.image),
                    ));
                }
            },
        });
    }
    wanted.extend(inputs.image_volumes.iter().map(declared));
    // Parents before what is inside them, else in the client's order.
    wanted.sort_by_key(|mount| depth(mount.destination()));
    // What the client mounts itself, the runtime leaves alone, with everything that would be below it.
    let mut list: Vec<Mount> = defaults(inputs, modes);
    list.retain(|own| {
        !wanted
            .iter()
            .any(|mount| own.destination().starts_with(mount.destination()))
    });
    // The pod's own files lie over a volume at /etc: without them it would have no names. Not over one that propagates outward:
    // they would lie over the host's own files.
    let mut files = pod_files(inputs, modes.user.is_some());
    files.retain(|own| {
        let over = wanted
            .iter()
            .rfind(|mount| own.destination().starts_with(mount.destination()));
        over.is_none_or(|mount| own.destination() != mount.destination() && !propagates(mount))
    });
    let (before, below): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|mount| {
        files
            .iter()
            .all(|file| !mount.destination().starts_with(file.destination()))
    });
    list.extend(before);
    list.extend(files);
    list.extend(below);
    Ok(list)
}

fn propagates(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    options.iter().any(|option| option == "rshared")
}

fn depth(path: &Path) -> usize {
    path.components().count()
}

fn defaults(inputs: &Inputs<'_>, modes: &Modes) -> Vec<Mount> {
    let privileged = inputs.container.security.privileged;
    let mut list = vec![
        mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "tmpfs",
            "tmpfs",
            "/dev",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "devpts",
            "devpts",
            "/dev/pts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    let sys = if privileged { "rw" } else { "ro" };
    if modes.user.is_some() && modes.host_network() {
        // sysfs shows a network namespace, and may only be mounted by its owner: the host's is bound instead.
        list.push(mount(
            "bind",
            "/sys",
            "/sys",
            &["rbind", "rprivate", "nosuid", "noexec", "nodev", sys],
        ));
    } else {
        list.push(mount(
            "sysfs",
            "sysfs",
            "/sys",
            &["nosuid", "noexec", "nodev", sys],
        ));
    }
    list.push(mount(
        "cgroup",
        "cgroup",
        "/sys/fs/cgroup",
        &["nosuid", "noexec", "nodev", "relatime", sys],
    ));
    let shm = if modes.ipc == NamespaceMode::Node {
        "/dev/shm"
    } else {
        POD_SHM
    };
    list.push(mount(
        "bind",
        shm,
        "/dev/shm",
        &["rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"],
    ));
    list
}

fn pod_files(inputs: &Inputs<'_>, user_namespace: bool) -> Vec<Mount> {
    let access = if inputs.container.security.readonly_rootfs {
        "ro"
    } else {
        "rw"
    };
    let file = |source: &Path, destination: &str| {
        let source = source.to_string_lossy();
        let mut options = vec!["bind", "rprivate", "nosuid", "nodev", "noexec", access];
        if user_namespace {
            // They are the container's root's to change.
            options.push("idmap");
        }
        mount("bind", &source, destination, &options)
    };
    let mut list = vec![
        file(&inputs.files.resolv_conf, "/etc/resolv.conf"),
        file(&inputs.files.hostname, "/etc/hostname"),
    ];
    list.extend(
        inputs
            .files
            .hosts
            .as_deref()
            .map(|hosts| file(hosts, "/etc/hosts")),
    );
    list
}

/// Options of mount(8) that a client may add: they narrow what can be done, or say how times are kept.
const EXTRA_OPTIONS: &[&str] = &[
    "noexec",
    "exec",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noatime",
    "relatime",
    "strictatime",
    "nodiratime",
    "diratime",
    "nosymfollow",
];

/// What a client asks of a mount, whatever its source.
fn options(n: usize, wanted: &Wanted, image: bool) -> Result<Vec<&str>, Invalid> {
    let mut options = Vec::new();
    if !image {
        options.push("rbind");
    }
    options.push(match wanted.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    });
    options.push(match (wanted.readonly || image, wanted.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    });
    for option in &wanted.options {
        if !EXTRA_OPTIONS.contains(&option.as_str()) {
            return Err(Invalid::new(
                format!("mounts[{n}].mount_options"),
                format!("{option:?} is not one of {}", EXTRA_OPTIONS.join(", ")),
            ));
        }
        options.push(option);
    }
    Ok(options)
}

fn from_host(mut mount: Mount, wanted: &Wanted) -> Mount {
    // The option says what the maps are for; validation saw to it that they are the pod's.
    if !wanted.uid_mappings.is_empty() {
        mount.set_uid_mappings(Some(id_mappings(&wanted.uid_mappings)));
        mount.set_gid_mappings(Some(id_mappings(&wanted.gid_mappings)));
        if let Some(options) = mount.options_mut() {
            options.push("idmap".to_owned());
        }
    }
    mount
}

/// An image as a volume (KEP-4639): an overlay without an upper directory, or a file of it.
fn from_image(source: &Volume, wanted: &Wanted, options: Vec<&str>, user_namespace: bool) -> Mount {
    let destination = clean(&wanted.container_path);
    let mut all: Vec<&str> = options;
    match source {
        Volume::File(path) => {
            all.push("bind");
            if user_namespace {
                all.push("idmap");
            }
            mount("bind", &path.to_string_lossy(), &destination, &all)
        }
        Volume::Directory { lowers } => {
            let lowers = layers(lowers);
            all.push(&lowers);
            mount("overlay", "overlay", &destination, &all)
        }
    }
}

/// What an image declares as a volume: writable, however the root is, and from the image's own content.
fn declared(volume: &DeclaredVolume) -> Mount {
    let lowers = layers(&volume.lowers);
    let upper = format!("upperdir={}", volume.upper.display());
    let work = format!("workdir={}", volume.work.display());
    let mut options = vec!["rprivate", "rw", &lowers, &upper, &work];
    options.extend(volume.options.iter().map(String::as_str));
    mount("overlay", "overlay", &volume.path, &options)
}

/// `lowerdir=` as mount(8) wants it.
fn layers(lowers: &[PathBuf]) -> String {
    let escaped: Vec<String> = lowers
        .iter()
        .map(|path| path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:"))
        .collect();
    format!("lowerdir={}", escaped.join(":"))
}

/// The volumes of an image's configuration that can be mounted: not the root, nor what the runtime mounts itself.
pub(crate) fn declared_volumes(paths: &[String]) -> Vec<String> {
    let mut list: Vec<String> = paths
        .iter()
        .map(|path| clean(path))
        .filter(|path| {
            let path = Path::new(path);
            path != Path::new("/") && !["/proc", "/sys", "/dev"].iter().any(|own| path.starts_with(own))
        })
        .collect();
    list.sort();
    list.dedup();
    list
}

/// Those of an image's volumes that the client mounts nothing at.
pub(crate) fn remaining_volumes(volumes: &[String], container: &ContainerSpec) -> Vec<String> {
    let taken = |path: &String| {
        container
            .mounts
            .iter()
            .any(|mount| clean(&mount.container_path) == *path)
    };
    volumes.iter().filter(|path| !taken(path)).cloned().collect()
}

/// Lexically, as the container will see it: `/a//b/../c/` is `/a/c`. The launcher resolves inside the root anyway.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// A volume that propagates outward needs a root that is not private.
pub(crate) fn root_propagation(container: &ContainerSpec) -> Option<&'static str> {
    let has = |propagation| {
        container
            .mounts
            .iter()
            .any(|mount| mount.propagation == propagation)
    };
    if has(Propagation::Bidirectional) {
        Some("rshared")
    } else if has(Propagation::HostToContainer) {
        Some("rslave")
    } else {
        None
    }
}
