//! One CDI spec: reading it, and what it must hold (CDI 1.1.0). Pure but for [`read`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use super::name::{check_device, check_kind};
use crate::hooks;

/// Largest spec. Those that are generated for a node full of accelerators have some hundred KiB.
const FILE_BYTES: u64 = 4 << 20;
/// Devices in one spec.
const DEVICES: usize = 16_384;

/// Released versions of the specification. What it says of a file's version is checked as far as it says anything: a file
/// must not use what its version has not got.
const VERSIONS: &[&str] = &[
    "0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Spec {
    #[serde(rename = "cdiVersion")]
    version: String,
    /// `vendor/class`.
    pub kind: String,
    #[serde(default, deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable")]
    pub devices: Vec<Device>,
    /// Of every container that gets a device of this spec.
    #[serde(default, deserialize_with = "nullable")]
    pub container_edits: Edits,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Device {
    pub name: String,
    #[serde(default, deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable")]
    pub container_edits: Edits,
}

/// What is changed in the OCI runtime spec of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Edits {
    #[serde(default, deserialize_with = "nullable")]
    pub env: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub device_nodes: Vec<DeviceNode>,
    #[serde(default, deserialize_with = "nullable")]
    pub net_devices: Vec<NetDevice>,
    #[serde(default, deserialize_with = "nullable")]
    pub mounts: Vec<Mount>,
    #[serde(default, deserialize_with = "nullable")]
    pub hooks: Vec<Hook>,
    pub intel_rdt: Option<IntelRdt>,
    /// 0 is passed over.
    #[serde(default, deserialize_with = "nullable")]
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DeviceNode {
    /// In the container.
    pub path: String,
    /// Empty: as `path`.
    #[serde(default, deserialize_with = "nullable")]
    pub host_path: String,
    /// `b`, `c`, `u`, `p`; empty: the host's.
    #[serde(default, rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    #[serde(default, deserialize_with = "nullable")]
    pub major: i64,
    #[serde(default, deserialize_with = "nullable")]
    pub minor: i64,
    #[serde(default, deserialize_with = "mode")]
    pub file_mode: Option<u32>,
    /// Of `rwm`; empty: all of them, `none`: none.
    #[serde(default, deserialize_with = "nullable")]
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Mount {
    pub host_path: String,
    pub container_path: String,
    #[serde(default, deserialize_with = "nullable")]
    pub options: Vec<String>,
    #[serde(default, rename = "type", deserialize_with = "nullable")]
    pub kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Hook {
    #[serde(rename = "hookName")]
    pub name: String,
    pub path: String,
    #[serde(default, deserialize_with = "nullable")]
    pub args: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NetDevice {
    pub host_interface_name: String,
    pub name: String,
}

/// Read so that its fields are checked; nothing here acts upon it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code, reason = "only their presence counts")]
pub(crate) struct IntelRdt {
    #[serde(rename = "closID")]
    clos_id: Option<String>,
    l3_cache_schema: Option<String>,
    mem_bw_schema: Option<String>,
    schemata: Option<Vec<String>>,
    #[serde(default, deserialize_with = "nullable")]
    enable_monitoring: bool,
    /// Of the versions before 1.1.0.
    #[serde(rename = "enableCMT")]
    enable_cmt: Option<bool>,
    #[serde(rename = "enableMBM")]
    enable_mbm: Option<bool>,
}

/// `null` is nothing, as the tools that write these files have it.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// A number; in YAML `0660` is octal to the field's tools, and a text to the YAML of today.
fn mode<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Mode {
        Number(u32),
        Text(String),
    }
    match Option::<Mode>::deserialize(from)? {
        None => Ok(None),
        Some(Mode::Number(number)) => Ok(Some(number)),
        Some(Mode::Text(text)) => {
            let digits = text.strip_prefix("0o").or_else(|| text.strip_prefix('0'));
            digits
                .and_then(|digits| u32::from_str_radix(digits, 8).ok())
                .map(Some)
                .ok_or_else(|| serde::de::Error::custom(format!("fileMode: {text:?} is not a mode")))
        }
    }
}

/// Why a file is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    pub path: PathBuf,
    pub reason: String,
    /// `vendor/class`, where the file says so much.
    pub kind: Option<String>,
}

/// Reads one file. Blocks.
pub(super) fn read(path: &Path) -> Result<Spec, Broken> {
    let broken = |reason: String, kind| Broken {
        path: path.to_path_buf(),
        reason,
        kind,
    };
    let bytes = contents(path).map_err(|reason| broken(reason, None))?;
    let text = String::from_utf8(bytes).map_err(|_| broken("is not UTF-8".into(), None))?;
    parse(&text, path.extension().is_some_and(|ext| ext == "json"))
        .map_err(|reason| broken(reason, kind_of(&text)))
}

fn contents(path: &Path) -> Result<Vec<u8>, String> {
    use rustix::fs::{Mode, OFlags, open};
    // A pipe among the files must hold up nobody.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty()).map_err(|e| std::io::Error::from(e).to_string())?;
    let file = std::fs::File::from(file);
    if !file.metadata().map_err(|e| e.to_string())?.is_file() {
        return Err("is not a regular file".into());
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| e.to_string())?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(format!("is larger than {FILE_BYTES} bytes"));
    }
    Ok(bytes)
}

/// What a file that cannot be used says of its kind: whose devices are missed.
fn kind_of(text: &str) -> Option<String> {
    let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).ok()?;
    let kind = value.get("kind")?.as_str()?;
    check_kind(kind).is_ok().then(|| kind.to_owned())
}

/// JSON, or YAML, with everything checked that can be without the machine.
pub(super) fn parse(text: &str, json: bool) -> Result<Spec, String> {
    let spec: Spec = if json {
        serde_json::from_str(text).map_err(|e| e.to_string())?
    } else {
        serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?
    };
    spec.check()?;
    Ok(spec)
}

impl Spec {
    fn check(&self) -> Result<(), String> {
        let version = self.version.strip_prefix('v').unwrap_or(&self.version);
        let rank = |version: &str| VERSIONS.iter().position(|known| *known == version);
        let Some(stated) = rank(version) else {
            return Err(format!(
                "cdiVersion {:?} is unknown; the newest that is known is {}",
                self.version,
                VERSIONS[VERSIONS.len() - 1]
            ));
        };
        let (needed, what) = self.needs();
        if rank(needed).is_some_and(|needed| needed > stated) {
            return Err(format!(
                "cdiVersion {:?} has no {what}: that came with {needed}",
                self.version
            ));
        }
        check_kind(&self.kind)?;
        self.container_edits.check()?;
        if self.devices.is_empty() {
            return Err("has no devices".into());
        }
        if self.devices.len() > DEVICES {
            return Err(format!("has {} devices, more than {DEVICES}", self.devices.len()));
        }
        let mut names = BTreeSet::new();
        for device in &self.devices {
            check_device(&device.name)?;
            if !names.insert(&device.name) {
                return Err(format!("has the device {:?} twice", device.name));
            }
            let within = |reason| format!("device {:?}: {reason}", device.name);
            device.container_edits.check().map_err(within)?;
        }
        Ok(())
    }

    fn all_edits(&self) -> impl Iterator<Item = &Edits> {
        std::iter::once(&self.container_edits).chain(self.devices.iter().map(|d| &d.container_edits))
    }

    /// The oldest version that has everything that is used here, and what of it is new.
    fn needs(&self) -> (&'static str, &'static str) {
        let any = |has: fn(&Edits) -> bool| self.all_edits().any(has);
        if any(|e| !e.net_devices.is_empty()) {
            return ("1.1.0", "netDevices");
        }
        if any(|e| {
            e.intel_rdt
                .as_ref()
                .is_some_and(|r| r.schemata.is_some() || r.enable_monitoring)
        }) {
            return ("1.1.0", "schemata and enableMonitoring in intelRdt");
        }
        if any(|e| e.intel_rdt.is_some()) {
            return ("0.7.0", "intelRdt");
        }
        if any(|e| !e.additional_gids.is_empty()) {
            return ("0.7.0", "additionalGids");
        }
        if !self.annotations.is_empty() || self.devices.iter().any(|d| !d.annotations.is_empty()) {
            return ("0.6.0", "annotations");
        }
        if self
            .kind
            .split_once('/')
            .is_some_and(|(_, class)| class.contains('.'))
        {
            return ("0.6.0", "dots in a class");
        }
        if self
            .devices
            .iter()
            .any(|d| d.name.starts_with(|c: char| c.is_ascii_digit()))
        {
            return ("0.5.0", "device names that begin with a digit");
        }
        if any(|e| e.device_nodes.iter().any(|n| !n.host_path.is_empty())) {
            return ("0.5.0", "hostPath of a device node");
        }
        if any(|e| e.mounts.iter().any(|m| !m.kind.is_empty())) {
            return ("0.4.0", "type of a mount");
        }
        ("0.1.0", "")
    }
}

impl Edits {
    fn check(&self) -> Result<(), String> {
        environment(&self.env)?;
        for node in &self.device_nodes {
            let within = |reason: &str| Err(format!("device node {:?}: {reason}", node.path));
            for path in [&node.path, &node.host_path] {
                if path.contains('\0') || !(path.starts_with('/') || path.is_empty()) {
                    return within("is not an absolute path");
                }
            }
            if node.path.is_empty() {
                return within("has no path");
            }
            if !matches!(node.kind.as_str(), "" | "b" | "c" | "u" | "p") {
                return within(&format!("{:?} is no type of a device", node.kind));
            }
            let permissions = node.permissions.as_str();
            if permissions != "none" && !permissions.chars().all(|c| "rwm".contains(c)) {
                return within(&format!("{permissions:?} is not made of `r`, `w` and `m`"));
            }
        }
        for mount in &self.mounts {
            let (inside, source) = (&mount.container_path, &mount.host_path);
            let bad = |text: &str| text.is_empty() || text.contains('\0');
            if bad(source) || bad(inside) || !inside.starts_with('/') {
                return Err(format!(
                    "mount of {source:?} at {inside:?}: is not from a path to an absolute path"
                ));
            }
        }
        for hook in &self.hooks {
            let within = |reason: &str| Err(format!("hook {:?}: {reason}", hook.name));
            if !hooks::POINTS.contains(&hook.name.as_str()) {
                return within("there is no such hook");
            }
            if !hook.path.starts_with('/') {
                return within("its path is not absolute");
            }
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return within("its timeout is not greater than zero");
            }
            environment(&hook.env)?;
        }
        for device in &self.net_devices {
            if device.host_interface_name.is_empty() || device.name.is_empty() {
                return Err("a network device without a name".into());
            }
        }
        Ok(())
    }
}

fn environment(list: &[String]) -> Result<(), String> {
    let fine = |text: &&String| text.find('=').is_some_and(|at| at > 0) && !text.contains('\0');
    match list.iter().find(|text| !fine(text)) {
        Some(bad) => Err(format!("environment variable {bad:?} is not KEY=value")),
        // As in a request: many programs copy a home directory into files of lines.
        None if list
            .iter()
            .any(|text| text.starts_with("HOME=") && text.contains('\n')) =>
        {
            Err("environment variable HOME contains a newline".into())
        }
        None => Ok(()),
    }
}
