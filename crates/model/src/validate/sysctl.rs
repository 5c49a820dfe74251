//! Which kernel parameters belong to a namespace, and may thus be set for a pod.

use super::{Invalid, limits};
use crate::SandboxSpec;

/// The namespace that a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SysctlNamespace {
    Ipc,
    Network,
}

/// `None`: not namespaced, or not a parameter's name. Takes dots or slashes as separators, as sysctl(8) does.
pub fn sysctl_namespace(name: &str) -> Option<SysctlNamespace> {
    // The first separator decides which of the two is meant; the other is then part of a component (`eth0.100`).
    let separator = name.chars().find(|c| matches!(c, '.' | '/'))?;
    let parts: Vec<&str> = name.split(separator).collect();
    let fine = |part: &&str| {
        !part.is_empty()
            && *part != "."
            && *part != ".."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':' | b'@' | b'/'))
            // In dotted names `/` stands for a dot inside a component; it must not spell a way up.
            && !part.split('/').any(|piece| piece.is_empty() || piece == "..")
    };
    if !parts.iter().all(fine) {
        return None;
    }
    match parts.as_slice() {
        // Named one by one in Linux's ipc/ipc_sysctl.c; everything else under kernel is the machine's.
        [
            "kernel",
            "sem" | "shmall" | "shmmax" | "shmmni" | "shm_rmid_forced" | "msgmax" | "msgmnb" | "msgmni"
            | "auto_msgmni" | "msg_next_id" | "sem_next_id" | "shm_next_id",
        ] => Some(SysctlNamespace::Ipc),
        ["fs", "mqueue", _] => Some(SysctlNamespace::Ipc),
        ["net", _, ..] => Some(SysctlNamespace::Network),
        _ => None,
    }
}

pub(super) fn check(spec: &SandboxSpec) -> Result<(), Invalid> {
    super::count("linux.sysctls", spec.sysctls.len(), limits::SYSCTLS)?;
    for (name, value) in &spec.sysctls {
        let shown: String = name.chars().take(80).collect();
        let field = format!("linux.sysctls[{shown:?}]");
        if value.len() > 4096 || value.contains(['\0', '\n']) {
            return Err(Invalid::new(
                field,
                "has a value with a newline or NUL, or longer than 4096 bytes",
            ));
        }
        match sysctl_namespace(name) {
            None => {
                return Err(Invalid::new(
                    field,
                    "is not a parameter of a namespace, so it cannot be set for a pod",
                ));
            }
            Some(SysctlNamespace::Ipc) if spec.host_ipc() => {
                return Err(Invalid::new(
                    field,
                    "would change the host: the pod has the host's IPC namespace",
                ));
            }
            Some(SysctlNamespace::Network) if spec.host_network() => {
                return Err(Invalid::new(
                    field,
                    "would change the host: the pod has the host's network namespace",
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}
