//! What the machine lets us do: the one probe for privileges, and the limit of open files.

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Namespaces, mounts, network and cgroups need these.
const NEEDED: [(&str, u32); 3] = [
    ("CAP_SYS_ADMIN", 21),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_CHROOT", 18),
];

/// Fails with what is missing.
pub fn check() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let missing = missing(&status, nix::unistd::geteuid().is_root())?;
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "holdfast must run as root with its capabilities (missing: {}): containers cannot be made without them",
        missing.join(", ")
    )
}

fn effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

fn missing(status: &str, root: bool) -> Result<Vec<&'static str>> {
    let effective = effective(status).context("/proc/self/status holds no CapEff")?;
    let mut missing: Vec<&str> = Vec::new();
    if !root {
        missing.push("user id 0");
    }
    missing.extend(
        NEEDED
            .iter()
            .filter(|(_, bit)| effective & (1 << bit) == 0)
            .map(|(name, _)| *name),
    );
    Ok(missing)
}

/// CAP_SYS_RESOURCE
pub const SYS_RESOURCE: u32 = 24;

/// Whether a capability, by its number, is in our effective set.
pub fn has(capability: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective(&status).is_some_and(|held| held & (1 << capability) != 0)
}

/// Descriptors of every container's stdio are held here: the usual 1024 would end at about 150 pods.
pub fn raise_open_files() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read RLIMIT_NOFILE")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise RLIMIT_NOFILE")?;
    }
    Ok(())
}

/// Where a version is the only way to know.
pub fn kernel_at_least(major: u32, minor: u32) -> bool {
    let Ok(name) = nix::sys::utsname::uname() else {
        return false;
    };
    version(&name.release().to_string_lossy()).is_some_and(|found| found >= (major, minor))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert!(
            missing("Name:\tx\nCapEff:\t000001ffffffffff\n", true)
                .unwrap()
                .is_empty()
        );
        assert_eq!(
            missing("CapEff:\t0000000000000000\n", false).unwrap(),
            ["user id 0", "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_CHROOT"]
        );
        assert!(missing("", true).is_err());
    }

    #[test]
    fn versions() {
        assert_eq!(version("6.12.48+deb13-amd64"), Some((6, 12)));
        assert_eq!(version("5.4-x"), Some((5, 4)));
        assert_eq!(version("nonsense"), None);
    }
}
