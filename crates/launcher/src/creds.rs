//! Who the process becomes: ids, groups, capabilities, no_new_privs, labels.

use std::ffi::CString;

use holdfast_sys::keyring;
use holdfast_sys::process::{self, Control};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process};
use rustix::process::getgroups;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::error::Kind;
use crate::fault::{Context, Fault, Result};

/// Names in the order of their numbers (capabilities(7), linux/capability.h).
const NAMES: [&str; 41] = [
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
/// Ids at and above this do not exist (CRI: int64 that must fit; 2^32 - 1 is "no id").
const ID_LIMIT: u32 = 1 << 31;
/// What a process has whose spec says nothing.
const DEFAULT_UMASK: u32 = 0o022;
/// NGROUPS_MAX.
const GROUP_LIMIT: usize = 65536;

/// Five sets, as bits by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caps {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// Everything that [`Credentials::assume`] sets.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    pub uid: u32,
    pub gid: u32,
    groups: Vec<u32>,
    umask: u32,
    pub caps: Caps,
    pub no_new_privs: bool,
}

impl Credentials {
    /// Reads the spec. With `clamp` what we do not hold ourselves is left out, with a warning.
    pub fn new(process: &Process, clamp: bool, warnings: &mut Vec<String>) -> Result<Self> {
        let user = process.user();
        let groups = user.additional_gids().clone().unwrap_or_default();
        if groups.len() > GROUP_LIMIT {
            return Err(Fault::invalid(format!("{} groups are too many", groups.len())));
        }
        for id in groups.iter().chain([&user.uid(), &user.gid()]) {
            if *id >= ID_LIMIT {
                return Err(Fault::invalid(format!(
                    "the user or group id {id} is out of range"
                )));
            }
        }
        let mut caps = process
            .capabilities()
            .as_ref()
            .map(Caps::of_spec)
            .unwrap_or_default();
        let held = capabilities(None).at(|| "read our own capabilities")?.permitted;
        caps.limit(held.bits(), clamp, warnings)?;
        Ok(Self {
            uid: user.uid(),
            gid: user.gid(),
            groups,
            umask: user.umask().unwrap_or(DEFAULT_UMASK),
            caps,
            no_new_privs: process.no_new_privileges().unwrap_or(false),
        })
    }

    /// Does `work` as the user, and becomes root again. Real and saved ids as well, which FUSE looks at; capabilities are
    /// kept, but not in effect.
    pub fn try_on<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let held = capabilities(None).at(|| "read our own capabilities")?;
        let groups = getgroups().at(|| "read our own groups")?;
        let groups: Vec<u32> = groups.into_iter().map(rustix::fs::Gid::as_raw).collect();
        process::control(Control::KeepCapabilities(true)).at(|| "keep capabilities")?;
        process::set_ids(self.uid, self.gid, &self.groups)
            .at(|| format!("become user {} and group {}", self.uid, self.gid))?;
        let done = work();
        set_capabilities(None, held).at(|| "take up capabilities again")?;
        process::set_ids(0, 0, &groups).at(|| "become root again")?;
        process::control(Control::KeepCapabilities(false)).at(|| "keep capabilities")?;
        // Each change of ids has set it anew.
        process::control(Control::Dumpable(false)).at(|| "become undumpable")?;
        Ok(done)
    }

    /// Becomes the user, with these capabilities and no more. Everything else that needs privileges was done before;
    /// installing a seccomp filter without no_new_privs is `seccomp`'s concern, called where it still may.
    pub fn assume(&self, seccomp: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut seccomp = Some(seccomp);
        if !self.no_new_privs
            && let Some(install) = seccomp.take()
        {
            install()?;
        }
        drop_bounding(self.caps.bounding)?;
        process::control(Control::KeepCapabilities(true)).at(|| "keep capabilities")?;
        process::set_ids(self.uid, self.gid, &self.groups)
            .at(|| format!("become user {} and group {}", self.uid, self.gid))?;
        process::control(Control::KeepCapabilities(false)).at(|| "keep capabilities")?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(self.umask & 0o777));
        self.set_capabilities()?;
        if self.no_new_privs {
            process::control(Control::NoNewPrivs).at(|| "set no_new_privs")?;
        }
        match seccomp {
            Some(install) => install(),
            None => Ok(()),
        }
    }

    fn set_capabilities(&self) -> Result<()> {
        let sets = CapabilitySets {
            effective: CapabilitySet::from_bits_retain(self.caps.effective),
            permitted: CapabilitySet::from_bits_retain(self.caps.permitted),
            inheritable: CapabilitySet::from_bits_retain(self.caps.inheritable),
        };
        set_capabilities(None, sets).at(|| "set capabilities")?;
        process::control(Control::ClearAmbient).at(|| "clear ambient capabilities")?;
        (0..64u32)
            .filter(|n| self.caps.ambient & (1 << n) != 0)
            .try_for_each(|n| process::control(Control::RaiseAmbient(n)))
            .at(|| "raise ambient capabilities")
    }
}

/// Keeps only `keep` in the bounding set.
pub(crate) fn drop_bounding(keep: u64) -> Result<()> {
    for number in (0..64u32).filter(|n| keep & (1 << n) == 0) {
        match process::control(Control::DropBounding(number)) {
            // The first number that this kernel does not know: there are no others above it.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            other => other.at(|| "drop capabilities from the bounding set")?,
        }
    }
    Ok(())
}

impl Caps {
    fn of_spec(spec: &LinuxCapabilities) -> Self {
        let bits =
            |set: &Option<Capabilities>| set.iter().flatten().map(number).fold(0, |all, n| all | 1 << n);
        Self {
            bounding: bits(spec.bounding()),
            effective: bits(spec.effective()),
            permitted: bits(spec.permitted()),
            inheritable: bits(spec.inheritable()),
            ambient: bits(spec.ambient()),
        }
    }

    /// The sets as a spec has them.
    pub fn to_spec(self) -> serde_json::Value {
        let names = |bits: u64| -> Vec<String> {
            let held = (0..)
                .zip(NAMES)
                .filter(|(number, _)| bits & (1u64 << number) != 0);
            held.map(|(_, name): (u32, _)| format!("CAP_{name}")).collect()
        };
        serde_json::json!({
            "bounding": names(self.bounding),
            "effective": names(self.effective),
            "permitted": names(self.permitted),
            "inheritable": names(self.inheritable),
            "ambient": names(self.ambient),
        })
    }

    /// Nobody can be given what we do not have.
    fn limit(&mut self, held: u64, clamp: bool, warnings: &mut Vec<String>) -> Result<()> {
        let asked = self.bounding | self.effective | self.permitted | self.inheritable;
        let missing = asked & !held;
        if missing != 0 {
            let names: Vec<String> = (0..64u32)
                .filter(|n| missing & (1 << n) != 0)
                .map(|n| {
                    NAMES
                        .get(n as usize)
                        .map_or_else(|| n.to_string(), |s| format!("CAP_{s}"))
                })
                .collect();
            let text = format!(
                "capabilities that the runtime does not hold itself: {}",
                names.join(", ")
            );
            if !clamp {
                return Err(Fault::unsupported(format!("asked for {text}")));
            }
            warnings.push(format!("left out {text}"));
        }
        self.bounding &= held;
        self.permitted &= held;
        self.effective &= self.permitted;
        self.inheritable &= held;
        // The kernel's rule: ambient is within both.
        self.ambient &= self.permitted & self.inheritable;
        Ok(())
    }
}

fn number(cap: &Capability) -> u32 {
    let name = cap.to_string();
    NAMES.iter().position(|n| *n == name).map_or(63, |n| n as u32) // unknown: a bit that no kernel has, and that nobody holds
}

/// Without it, keys that a process adds to its session could be used by every other container and by the monitor. Where the
/// process has an SELinux label the keyring gets it too, or the policy would keep it from its own. `proc` shows the caller.
pub(crate) fn join_keyring(
    container_id: &str,
    process: &Process,
    proc: &crate::procfs::Procfs,
) -> Result<()> {
    if let Some(label) = process.selinux_label().as_deref().filter(|l| !l.is_empty()) {
        // It is for this thread's next keys, and gone with execve.
        proc.write("thread-self/attr/keycreate", label.as_bytes())
            .map_err(|e| Fault::system(format!("ask for the SELinux label {label} for keys"), &e))?;
    }
    // Ids have no NUL; and the name is the one that runc's users know.
    let name = CString::new(format!("_ses.{container_id}")).unwrap_or_default();
    match keyring::join_session(&name) {
        // A kernel without keys, or a runtime that may not use them: then neither may what it starts.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EDQUOT) => Err(Fault::system(
            "make the container's session keyring (the quota of its user is used up: /proc/key-users; \
             kernel.keys.root_maxkeys and kernel.keys.maxkeys of sysctl raise it)",
            &e,
        )),
        other => other.at(|| "make the container's session keyring"),
    }
}

/// Asks for AppArmor's or SELinux's label on the next execve. `proc` is a procfs that shows the caller.
pub(crate) fn label(process: &Process, proc: &crate::procfs::Procfs) -> Result<()> {
    if let Some(profile) = process.apparmor_profile().as_deref().filter(|p| !p.is_empty()) {
        let value = format!("exec {profile}");
        proc.write("thread-self/attr/apparmor/exec", value.as_bytes())
            .map_err(|e| {
                let fault = Fault::system(format!("ask for the AppArmor profile {profile}"), &e);
                match e.raw_os_error() {
                    // A kernel that was built with AppArmor and runs without it has the file, and answers EINVAL.
                    Some(libc::ENOENT | libc::EINVAL) => Fault::new(
                        Kind::NotFound,
                        format!(
                            "{}: the profile is not loaded (apparmor_parser(8) loads it), or this kernel has no AppArmor",
                            fault.message
                        ),
                    ),
                    _ => fault,
                }
            })?;
    }
    match process.selinux_label().as_deref() {
        None | Some("") => Ok(()),
        Some(label) => crate::selinux::on_exec(label, proc),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(number(&Capability::Chown), 0);
        assert_eq!(number(&Capability::SysAdmin), 21);
        assert_eq!(number(&Capability::CheckpointRestore), 40);
    }

    #[test]
    fn what_is_not_held_is_clamped_or_refused() {
        let asked = Caps {
            bounding: 0b111,
            effective: 0b101,
            permitted: 0b101,
            inheritable: 0b100,
            ambient: 0b101,
        };
        let mut warnings = Vec::new();
        let mut caps = asked;
        caps.limit(0b110, true, &mut warnings)
            .unwrap_or_else(|f| panic!("{}", f.message));
        assert_eq!(
            (caps.bounding, caps.effective, caps.ambient),
            (0b110, 0b100, 0b100)
        );
        assert_eq!(
            warnings,
            ["left out capabilities that the runtime does not hold itself: CAP_CHOWN"]
        );
        let mut caps = asked;
        assert!(caps.limit(0b110, false, &mut warnings).is_err());
    }
}
