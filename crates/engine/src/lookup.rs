//! What has to be looked up on the machine or in an image before a spec can be made.

use std::collections::HashMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_cgroups::{Hierarchy, Mode};
use holdfast_images::{Image, ImageId, Images};
use holdfast_model::{ContainerSpec, Invalid, SecurityProfile};

use crate::config::{Config, bounds};
use crate::lsm::{AppArmor, Selinux, apparmor};
use crate::spec::{self, GrantedDevice, HostDevice, HostFacts, ImageDefaults, Seccomp};
use crate::{Error, shared};

/// Images whose passwd and group are remembered.
const IDENTITIES: usize = 256;
/// Device nodes that a privileged container gets.
const DEVICES: usize = 4096;

/// What an image contributes to a spec. Layers never change, so it is read once.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    pub defaults: ImageDefaults,
    pub passwd: Option<Vec<u8>>,
    pub group: Option<Vec<u8>>,
    /// Paths that the image declares as volumes, cleaned.
    pub volumes: Vec<String>,
}

#[derive(Default)]
pub(crate) struct Identities(Mutex<HashMap<ImageId, Arc<Identity>>>);

impl Identities {
    pub(crate) async fn of(&self, images: &Images, image: &Arc<Image>) -> Result<Arc<Identity>, Error> {
        if let Some(known) = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&image.id)
        {
            return Ok(known.clone());
        }
        let (images, wanted) = (images.clone(), image.clone());
        let identity = shared::blocking(move || read_identity(&images, &wanted)).await?;
        let identity = Arc::new(identity);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= IDENTITIES {
            known.clear();
        }
        known.insert(image.id.clone(), identity.clone());
        Ok(identity)
    }
}

fn read_identity(images: &Images, image: &Image) -> Result<Identity, Error> {
    let read = |path: &'static str| {
        images
            .read_file(&image.id, path, bounds::IDENTITY_FILE)
            .map_err(|source| Error::Image {
                step: "reading users and groups",
                id: image.id.to_string(),
                source: Box::new(source),
            })
    };
    let mut defaults = ImageDefaults::default();
    let mut volumes = Vec::new();
    if let Some(config) = image.config.config() {
        defaults.entrypoint = config.entrypoint().clone().unwrap_or_default();
        defaults.cmd = config.cmd().clone().unwrap_or_default();
        defaults.env = config.env().clone().unwrap_or_default();
        defaults.user = config.user().clone().unwrap_or_default();
        defaults.working_dir = config.working_dir().clone().unwrap_or_default();
        defaults.stop_signal = config.stop_signal().clone().unwrap_or_default();
        volumes = spec::declared_volumes(config.volumes().as_deref().unwrap_or_default());
    }
    Ok(Identity {
        defaults,
        passwd: read("/etc/passwd")?,
        group: read("/etc/group")?,
        volumes,
    })
}

/// Asked once, at the start: none of it changes while the machine runs.
pub(crate) fn host_facts(hierarchy: &Hierarchy, config: &Config) -> HostFacts {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let last: usize = text("/proc/sys/kernel/cap_last_cap")
        .trim()
        .parse()
        .unwrap_or(CAPABILITIES.len() - 1);
    HostFacts {
        cgroup_v2: hierarchy.mode() == Mode::Unified,
        apparmor: AppArmor::prepare(config.apparmor),
        selinux: Selinux::probe(config.selinux),
        capabilities: CAPABILITIES
            .iter()
            .take(last + 1)
            .map(|name| format!("CAP_{name}"))
            .collect(),
    }
}

/// By number (capabilities(7)).
const CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The boot that processes of now belong to.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Devices, and the seccomp profile, that a container asks for.
#[derive(Default)]
pub(crate) struct Extras {
    pub devices: Vec<GrantedDevice>,
    pub host_devices: Vec<HostDevice>,
    pub seccomp: Seccomp,
}

/// Touches the disk only for what is asked for; most containers ask for nothing.
pub(crate) async fn extras(container: &ContainerSpec, host: &HostFacts) -> Result<Extras, Error> {
    if !matches!(host.apparmor, AppArmor::Absent(_)) {
        let (container, host) = (container.clone(), host.clone());
        shared::blocking(move || Ok(apparmor_is_loaded(&container, &host)?)).await?;
    }
    let profile = container.seccomp()?;
    let localhost = matches!(profile, Some(SecurityProfile::Localhost(_)));
    if container.devices.is_empty() && !container.security.privileged && !localhost {
        return Ok(Extras {
            seccomp: seccomp(profile)?,
            ..Extras::default()
        });
    }
    let (devices, privileged) = (container.devices.clone(), container.security.privileged);
    shared::blocking(move || {
        let mut extras = Extras {
            seccomp: seccomp(profile)?,
            ..Extras::default()
        };
        for (n, wanted) in devices.iter().enumerate() {
            extras.devices.extend(granted(n, wanted)?);
        }
        if privileged {
            walk_devices(Path::new("/dev"), &mut extras.host_devices);
        }
        Ok(extras)
    })
    .await
}

/// A profile that is not there would be noticed at the start of the container only, and by nobody's name.
fn apparmor_is_loaded(container: &ContainerSpec, host: &HostFacts) -> Result<(), Invalid> {
    let asked = container.apparmor()?;
    let wrong = |why: String| Invalid::new("linux.security_context.apparmor", why);
    if let Some(SecurityProfile::Localhost(name)) = &asked {
        return match apparmor::is_loaded(name) {
            Ok(true) => Ok(()),
            Ok(false) => Err(wrong(format!(
                "profile {name:?} is not loaded on this node (apparmor_parser(8) loads it)"
            ))),
            Err(error) => Err(wrong(format!("cannot look for profile {name:?}: {error}"))),
        };
    }
    if host.apparmor == AppArmor::Ready && spec::needs_default_profile(container, asked.as_ref()) {
        apparmor::ensure_default().map_err(wrong)?;
    }
    Ok(())
}

fn default_profile(capabilities: &[&str]) -> oci_spec::runtime::LinuxSeccomp {
    holdfast_seccomp::default_profile(capabilities, holdfast_seccomp::Machine::NATIVE)
}

/// Nothing asked for means unconfined, as in the field's other runtimes; the kubelet always asks.
fn seccomp(profile: Option<SecurityProfile>) -> Result<Seccomp, Error> {
    Ok(match profile {
        None | Some(SecurityProfile::Unconfined) => Seccomp::Unconfined,
        Some(SecurityProfile::RuntimeDefault) => Seccomp::RuntimeDefault(default_profile),
        Some(SecurityProfile::Localhost(path)) => {
            let loaded = holdfast_seccomp::load_localhost(Path::new(&path)).map_err(|error| {
                let cause = std::error::Error::source(&error)
                    .map(|cause| format!(": {cause}"))
                    .unwrap_or_default();
                Invalid::new(
                    "linux.security_context.seccomp.localhost_ref",
                    format!("{error}{cause}"),
                )
            })?;
            Seccomp::Profile(Box::new(loaded))
        }
    })
}

fn host_device(path: &Path) -> Option<HostDevice> {
    let meta = std::fs::metadata(path).ok()?;
    let kind = meta.file_type();
    (kind.is_block_device() || kind.is_char_device()).then(|| HostDevice {
        path: path.to_path_buf(),
        block: kind.is_block_device(),
        major: rustix::fs::major(meta.rdev()),
        minor: rustix::fs::minor(meta.rdev()),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
    })
}

/// One device, or with a directory (such as /dev/snd) all that are in it.
fn granted(n: usize, wanted: &holdfast_model::Device) -> Result<Vec<GrantedDevice>, Invalid> {
    let inside = if wanted.container_path.is_empty() {
        &wanted.host_path
    } else {
        &wanted.container_path
    };
    let permissions = if wanted.permissions.is_empty() {
        "rwm"
    } else {
        &wanted.permissions
    };
    let host = Path::new(&wanted.host_path);
    if let Some(device) = host_device(host) {
        let one = GrantedDevice {
            container_path: inside.clone(),
            permissions: permissions.to_owned(),
            device,
        };
        return Ok(vec![one]);
    }
    let mut found = Vec::new();
    if host.is_dir() {
        walk_devices(host, &mut found);
    }
    if found.is_empty() {
        let field = format!("devices[{n}].host_path");
        return Err(Invalid::new(
            field,
            format!(
                "{:?} is neither a device nor a directory of devices",
                wanted.host_path
            ),
        ));
    }
    let place = |device: HostDevice| {
        let below = device
            .path
            .strip_prefix(host)
            .unwrap_or(&device.path)
            .to_path_buf();
        let path: PathBuf = Path::new(inside).join(below);
        GrantedDevice {
            container_path: path.to_string_lossy().into_owned(),
            permissions: permissions.to_owned(),
            device,
        }
    };
    Ok(found.into_iter().map(place).collect())
}

/// Directories of /dev that hold other file systems, or what each container has of its own.
const NOT_DEVICES: &[&str] = &[
    "pts",
    "shm",
    "mqueue",
    "fd",
    "hugepages",
    ".lxc",
    ".lxd-mounts",
    ".udev",
];
/// Nodes that each container has of its own.
const OWN_NODES: &[&str] = &["console", "ptmx"];

fn walk_devices(dir: &Path, found: &mut Vec<HostDevice>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if found.len() >= DEVICES {
            return;
        }
        let name = entry.file_name();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            if !NOT_DEVICES.iter().any(|own| name == *own) {
                walk_devices(&entry.path(), found);
            }
        } else if (kind.is_block_device() || kind.is_char_device())
            && !OWN_NODES.iter().any(|own| name == *own)
        {
            found.extend(host_device(&entry.path()));
        }
    }
}
