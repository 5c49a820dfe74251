//! Writing sysctls of the namespaces that the caller is in.

use holdfast_sys::clone::{NEWIPC, NEWNET, NEWUTS};

use crate::fault::{Context, Fault, Result};
use crate::procfs::Procfs;

/// The kind of namespace that a sysctl belongs to: its path below /proc/sys and the clone flag, or `None` for one of
/// the whole machine.
fn namespace_of(path: &str) -> Option<u64> {
    const IPC: [&str; 8] = [
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
    ];
    if path.starts_with("net/") {
        Some(NEWNET)
    } else if IPC.contains(&path) || path.starts_with("fs/mqueue/") {
        Some(NEWIPC)
    } else if path == "kernel/domainname" {
        Some(NEWUTS)
    } else {
        None
    }
}

/// Sets each sysctl, which must be of one of the namespaces in `own`.
pub(crate) fn apply<'a>(
    sysctls: impl IntoIterator<Item = (&'a String, &'a String)>,
    own: u64,
    proc: &Procfs,
) -> Result<()> {
    for (name, value) in sysctls {
        let path = path_of(name)?;
        match namespace_of(&path) {
            Some(kind) if own & kind != 0 => {}
            Some(_) => {
                return Err(Fault::invalid(format!(
                    "the sysctl {name} belongs to a namespace that is shared with the host"
                )));
            }
            None => {
                return Err(Fault::invalid(format!(
                    "the sysctl {name} belongs to the whole machine, not to a namespace"
                )));
            }
        }
        proc.write(format!("sys/{path}"), value.as_bytes())
            .at(|| format!("set the sysctl {name} to {value:?}"))?;
    }
    Ok(())
}

/// sysctl(8)'s rule: whichever of `.` and `/` comes first separates; the other one is part of a name.
fn path_of(name: &str) -> Result<String> {
    let path: String = match name.find(['.', '/']).and_then(|i| name[i..].chars().next()) {
        Some('.') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    };
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if path.split('/').all(plain) && path.contains('/') && !path.contains('\0') {
        Ok(path)
    } else {
        Err(Fault::invalid(format!("{name:?} is no name of a sysctl")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        let path = |name| path_of(name).ok();
        assert_eq!(
            path("net.ipv4.ip_forward").as_deref(),
            Some("net/ipv4/ip_forward")
        );
        assert_eq!(
            path("net.ipv4.conf.eth0/1.x").as_deref(),
            Some("net/ipv4/conf/eth0.1/x")
        );
        assert_eq!(
            path("net/ipv4/conf/eth0.1/x").as_deref(),
            Some("net/ipv4/conf/eth0.1/x")
        );
        assert_eq!(path("net/../kernel/panic"), None);
        assert_eq!(path("x"), None);
    }

    #[test]
    fn namespaces_are_known() {
        assert_eq!(namespace_of("net/core/somaxconn"), Some(NEWNET));
        assert_eq!(namespace_of("kernel/shmmax"), Some(NEWIPC));
        assert_eq!(namespace_of("fs/mqueue/msg_max"), Some(NEWIPC));
        assert_eq!(namespace_of("kernel/panic"), None);
        assert_eq!(namespace_of("vm/swappiness"), None);
    }
}
