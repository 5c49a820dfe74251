//! The checks of a request that need no I/O. Each failure names the field as CRI spells it.

mod bandwidth;
mod container;
mod sandbox;
mod sysctl;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::{IdMapping, Resources, SecurityProfile};

pub use sandbox::hostname_of;
pub use sysctl::{SysctlNamespace, sysctl_namespace};

/// A request that cannot be carried out as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Invalid {
    /// Path of the field, such as `metadata.name` or `mounts[3].host_path`.
    pub field: String,
    pub reason: String,
}

impl Invalid {
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

/// Bounds on what one request may hold.
pub mod limits {
    /// A name: as long as a DNS subdomain.
    pub const NAME_BYTES: usize = 253;
    /// HOST_NAME_MAX of Linux.
    pub const HOSTNAME_BYTES: usize = 64;
    /// Kubernetes allows 256 KiB of annotations; labels are held to the same.
    pub const MAP_BYTES: usize = 256 * 1024;
    pub const MAP_ENTRIES: usize = 10_000;
    /// MAX_ARG_STRLEN of Linux: one argument or `KEY=value`.
    pub const ARG_BYTES: usize = 131_071;
    pub const ARGS: usize = 65_536;
    /// A quarter of an 8 MiB stack: what execve takes for arguments and environment together.
    pub const ARGS_AND_ENV_BYTES: usize = 2 * 1024 * 1024;
    pub const MOUNTS: usize = 4096;
    pub const DEVICES: usize = 4096;
    pub const PORTS: usize = 4096;
    pub const SYSCTLS: usize = 1024;
    /// NGROUPS_MAX of Linux.
    pub const GROUPS: usize = 65_536;
    /// Lines that the kernel takes in a uid_map.
    pub const ID_MAPPINGS: usize = 340;
    pub const PATH_BYTES: usize = 4095;
    pub const DNS_ENTRIES: usize = 64;
    pub const PATHS: usize = 1024;
}

/// Reads the deprecated spelling of a seccomp profile. `None`: empty, thus not given.
pub fn seccomp_from_legacy_path(field: &str, text: &str) -> Result<Option<SecurityProfile>, Invalid> {
    match text {
        "" => Ok(None),
        "unconfined" => Ok(Some(SecurityProfile::Unconfined)),
        "runtime/default" | "docker/default" => Ok(Some(SecurityProfile::RuntimeDefault)),
        _ => match text.strip_prefix("localhost/") {
            Some(path) if !path.is_empty() => Ok(Some(SecurityProfile::Localhost(path.to_owned()))),
            _ => Err(Invalid::new(
                field,
                format!("{text:?} is not `runtime/default`, `unconfined` or `localhost/<absolute path>`"),
            )),
        },
    }
}

fn no_nul(field: &str, text: &str) -> Result<(), Invalid> {
    if text.contains('\0') {
        return Err(Invalid::new(field, "contains a NUL byte"));
    }
    Ok(())
}

/// Part of a name: goes into paths, log lines and reservations.
fn name(field: &str, text: &str) -> Result<(), Invalid> {
    if text.len() > limits::NAME_BYTES {
        return Err(Invalid::new(
            field,
            format!("is longer than {} bytes", limits::NAME_BYTES),
        ));
    }
    if text == "." || text == ".." {
        return Err(Invalid::new(field, format!("{text:?} is not a name")));
    }
    match text.chars().find(|c| c.is_control() || matches!(c, '/' | '\\')) {
        Some('\0') => Err(Invalid::new(field, "contains a NUL byte")),
        Some('/') => Err(Invalid::new(field, "contains a slash")),
        Some(c) => Err(Invalid::new(field, format!("contains the character {c:?}"))),
        None => Ok(()),
    }
}

fn required_name(field: &str, text: &str) -> Result<(), Invalid> {
    if text.is_empty() {
        return Err(Invalid::new(field, "is missing"));
    }
    name(field, text)
}

fn absolute_path(field: &str, path: &str) -> Result<(), Invalid> {
    no_nul(field, path)?;
    if path.is_empty() {
        return Err(Invalid::new(field, "is missing"));
    }
    if !path.starts_with('/') {
        return Err(Invalid::new(field, format!("{path:?} is not an absolute path")));
    }
    if path.len() > limits::PATH_BYTES {
        return Err(Invalid::new(
            field,
            format!("is longer than {} bytes", limits::PATH_BYTES),
        ));
    }
    Ok(())
}

/// A path that stays below whatever it is joined to.
fn relative_inside(field: &str, path: &str) -> Result<(), Invalid> {
    no_nul(field, path)?;
    if path.starts_with('/') {
        return Err(Invalid::new(field, format!("{path:?} must be relative")));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(Invalid::new(field, format!("{path:?} leads outside with `..`")));
    }
    if path.len() > limits::PATH_BYTES {
        return Err(Invalid::new(
            field,
            format!("is longer than {} bytes", limits::PATH_BYTES),
        ));
    }
    Ok(())
}

fn bounded_map(field: &str, map: &BTreeMap<String, String>) -> Result<(), Invalid> {
    if map.len() > limits::MAP_ENTRIES {
        return Err(Invalid::new(
            field,
            format!("has more than {} entries", limits::MAP_ENTRIES),
        ));
    }
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > limits::MAP_BYTES {
        return Err(Invalid::new(
            field,
            format!("is larger than {} bytes in total", limits::MAP_BYTES),
        ));
    }
    if map.contains_key("") {
        return Err(Invalid::new(field, "has an empty key"));
    }
    Ok(())
}

fn count(field: &str, count: usize, most: usize) -> Result<(), Invalid> {
    if count > most {
        return Err(Invalid::new(
            field,
            format!("has {count} entries, more than {most}"),
        ));
    }
    Ok(())
}

/// Ids above 2^31-1 read as negative in many programs, and Kubernetes refuses them.
fn user_id(field: &str, id: i64) -> Result<(), Invalid> {
    if !(0..1 << 31).contains(&id) {
        return Err(Invalid::new(
            field,
            format!("{id} is not an id from 0 to 2147483647"),
        ));
    }
    Ok(())
}

fn groups(field: &str, ids: &[i64]) -> Result<(), Invalid> {
    count(field, ids.len(), limits::GROUPS)?;
    ids.iter()
        .enumerate()
        .try_for_each(|(n, id)| user_id(&format!("{field}[{n}]"), *id))
}

fn id_mappings(field: &str, maps: &[IdMapping]) -> Result<(), Invalid> {
    count(field, maps.len(), limits::ID_MAPPINGS)?;
    for (n, map) in maps.iter().enumerate() {
        if map.length == 0 {
            return Err(Invalid::new(format!("{field}[{n}].length"), "is 0"));
        }
        for start in [map.host_id, map.container_id] {
            // u32::MAX is "no id" to the kernel.
            if u64::from(start) + u64::from(map.length) > u64::from(u32::MAX) {
                return Err(Invalid::new(format!("{field}[{n}]"), "leaves the range of ids"));
            }
        }
    }
    for (n, a) in maps.iter().enumerate() {
        for b in &maps[n + 1..] {
            let overlap = |x: u32, y: u32| {
                u64::from(x) < u64::from(y) + u64::from(b.length)
                    && u64::from(y) < u64::from(x) + u64::from(a.length)
            };
            if overlap(a.host_id, b.host_id) || overlap(a.container_id, b.container_id) {
                return Err(Invalid::new(field, "has ranges that overlap"));
            }
        }
    }
    Ok(())
}

fn profile(field: &str, profile: Option<&SecurityProfile>, path: bool) -> Result<(), Invalid> {
    let Some(SecurityProfile::Localhost(text)) = profile else {
        return Ok(());
    };
    let field = format!("{field}.localhost_ref");
    if path {
        absolute_path(&field, text)
    } else if text.is_empty() {
        Err(Invalid::new(field, "is missing"))
    } else {
        no_nul(&field, text)
    }
}

impl Resources {
    /// Checks everything that can be checked without looking at the machine. `field`: where CRI has them.
    pub fn validate(&self, field: &str) -> Result<(), Invalid> {
        resources(field, self)
    }
}

fn cpu_list(field: &str, list: Option<&str>) -> Result<(), Invalid> {
    let Some(list) = list else { return Ok(()) };
    let number = |text: &str| text.trim().parse::<u32>().is_ok();
    let fine = list.split(',').all(|part| match part.split_once('-') {
        Some((from, to)) => number(from) && number(to),
        None => number(part),
    });
    if fine {
        Ok(())
    } else {
        Err(Invalid::new(
            field,
            format!("{list:?} is not a list such as 0-3,7"),
        ))
    }
}

fn resources(field: &str, resources: &Resources) -> Result<(), Invalid> {
    let least = |name: &str, value: Option<i64>, least: i64| match value {
        Some(value) if value < least => Err(Invalid::new(
            format!("{field}.{name}"),
            format!("{value} is less than {least}"),
        )),
        _ => Ok(()),
    };
    least("cpu_period", resources.cpu_period, 0)?;
    least("cpu_quota", resources.cpu_quota, -1)?;
    least("cpu_shares", resources.cpu_shares, 0)?;
    least("memory_limit_in_bytes", resources.memory_limit, -1)?;
    least("memory_swap_limit_in_bytes", resources.memory_swap_limit, -1)?;
    if let (Some(memory), Some(both)) = (resources.memory_limit, resources.memory_swap_limit)
        && memory > 0
        && both > 0
        && both < memory
    {
        return Err(Invalid::new(
            format!("{field}.memory_swap_limit_in_bytes"),
            format!("{both} (memory and swap) is less than the memory limit {memory}"),
        ));
    }
    if !(-1000..=1000).contains(&resources.oom_score_adj) {
        return Err(Invalid::new(
            format!("{field}.oom_score_adj"),
            format!("{} is not between -1000 and 1000", resources.oom_score_adj),
        ));
    }
    cpu_list(&format!("{field}.cpuset_cpus"), resources.cpuset_cpus.as_deref())?;
    cpu_list(&format!("{field}.cpuset_mems"), resources.cpuset_mems.as_deref())?;
    count(&format!("{field}.hugepage_limits"), resources.hugepages.len(), 64)?;
    for (n, limit) in resources.hugepages.iter().enumerate() {
        let digits = limit.page_size.trim_end_matches(|c: char| c.is_ascii_uppercase());
        let unit = &limit.page_size[digits.len()..];
        if digits.is_empty() || digits.parse::<u64>().is_err() || !matches!(unit, "KB" | "MB" | "GB" | "TB") {
            return Err(Invalid::new(
                format!("{field}.hugepage_limits[{n}].page_size"),
                format!("{:?} is not a page size such as 2MB", limit.page_size),
            ));
        }
    }
    count(&format!("{field}.unified"), resources.unified.len(), 256)?;
    for (key, value) in &resources.unified {
        let fine = key
            .split_once('.')
            .is_some_and(|(controller, rest)| !controller.is_empty() && !rest.is_empty())
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !fine {
            return Err(Invalid::new(
                format!("{field}.unified"),
                format!("{key:?} is not a file of a cgroup"),
            ));
        }
        if value.len() > 4096 || value.contains('\0') {
            return Err(Invalid::new(
                format!("{field}.unified[{key:?}]"),
                "is longer than 4096 bytes or contains NUL",
            ));
        }
    }
    Ok(())
}
