//! System calls and file systems.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use holdfast_sys::{clone, pidfd, seccomp};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{FsOpenFlags, OpenTreeFlags, fsopen, open_tree};

use super::{Finding, reason};
use crate::config::Config;
use crate::serve::{privileges, user_namespaces};

/// The oldest kernel that is part of the daily test.
const TESTED: (u32, u32) = (6, 1);

pub(super) fn all(config: &Config) -> Vec<Finding> {
    vec![
        version(),
        overlay(),
        mount_api(),
        user_namespaces(config),
        recursive_read_only(),
        path_resolution(),
        exit_codes(),
        seccomp_filters(),
        security_module(),
    ]
}

fn version() -> Finding {
    const CHECK: &str = "kernel";
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let found = format!("Linux {release}");
    if privileges::kernel_at_least(TESTED.0, TESTED.1) {
        return Finding::ok(CHECK, found);
    }
    Finding::degraded(
        CHECK,
        found,
        "it is older than any kernel that holdfast is tested on",
        "use Linux 6.1 or newer",
    )
}

fn overlay() -> Finding {
    const CHECK: &str = "overlay";
    match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => Finding::ok(CHECK, "the file system is there"),
        Err(errno) => Finding::missing(
            CHECK,
            reason(&errno.into()),
            "containers have no root file system",
            "load the overlay module (`modprobe overlay`), or use a kernel that has it",
        ),
    }
}

fn mount_api() -> Finding {
    const CHECK: &str = "mount API";
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match open_tree(CWD, "/", flags) {
        Ok(_) => Finding::ok(CHECK, "open_tree, move_mount, fsopen, mount_setattr"),
        Err(errno) => Finding::missing(
            CHECK,
            format!("open_tree: {}", reason(&errno.into())),
            "volumes cannot be mounted",
            "run as root with CAP_SYS_ADMIN on Linux 5.12 or newer",
        ),
    }
}

fn user_namespaces(config: &Config) -> Finding {
    const CHECK: &str = "user namespaces";
    // Before the first start the root directory is not there: its parent's file system will hold it.
    let existing = config
        .root
        .ancestors()
        .find(|dir| dir.is_dir())
        .unwrap_or(Path::new("/"));
    match user_namespaces::check(existing) {
        Ok(()) => Finding::ok(CHECK, "ids are mapped on the images' file system and on tmpfs"),
        Err(error) => Finding::degraded(
            CHECK,
            format!("{error:#}"),
            "pods with hostUsers: false are refused (the runtime does not advertise user namespaces)",
            "use Linux 6.3 or newer, with the root directory on a file system that maps ids (ext4, xfs, btrfs), and \
             user.max_user_namespaces above 0",
        ),
    }
}

fn recursive_read_only() -> Finding {
    const CHECK: &str = "read-only mounts";
    if privileges::kernel_at_least(5, 12) {
        return Finding::ok(CHECK, "recursive");
    }
    Finding::degraded(
        CHECK,
        "not recursive",
        "recursiveReadOnly volumes are refused",
        "use Linux 5.12 or newer",
    )
}

fn path_resolution() -> Finding {
    const CHECK: &str = "openat2";
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(_) => Finding::ok(
            CHECK,
            "paths are resolved inside a container's root by the kernel",
        ),
        Err(errno) => Finding::missing(
            CHECK,
            reason(&errno.into()),
            "paths that containers control cannot be followed safely",
            "use Linux 5.6 or newer; a seccomp filter around holdfast may forbid openat2",
        ),
    }
}

/// PIDFD_INFO_EXIT: the exit code of a process that was another's child.
fn exit_codes() -> Finding {
    const CHECK: &str = "exit codes";
    let tried = clone::fork(|| 7).and_then(|child| {
        let ended = pidfd::reap(child.pidfd.as_fd())?;
        pidfd::exit_status(child.pidfd.as_fd()).map(|seen| seen.is_some_and(|seen| seen == ended))
    });
    if let Ok(true) = tried {
        return Finding::ok(CHECK, "also of processes whose monitor was killed");
    }
    Finding::degraded(
        CHECK,
        "of a monitor's own children only",
        "a container that ends just as its monitor has been killed is reported with exit code 137, unknown",
        "use Linux 6.15 or newer",
    )
}

fn seccomp_filters() -> Finding {
    const CHECK: &str = "seccomp";
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) => {
            let notify =
                actions.contains("user_notif") && seccomp::flags_supported(seccomp::FLAG_NEW_LISTENER);
            let found = format!(
                "filters{}{}",
                if actions.contains("log") { ", logging" } else { "" },
                if notify { ", notifications" } else { "" }
            );
            Finding::ok(CHECK, found)
        }
        Err(error) => Finding::missing(
            CHECK,
            reason(&error),
            "containers with a seccomp profile (RuntimeDefault among them) are refused",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn security_module() -> Finding {
    const CHECK: &str = "AppArmor, SELinux";
    let apparmor =
        fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.trim() == "Y");
    let selinux = fs::read_to_string("/sys/fs/selinux/enforce").map(|on| on.trim() == "1");
    let mut found = Vec::new();
    if apparmor {
        found.push("AppArmor is on");
    }
    match selinux {
        Ok(true) => found.push("SELinux is enforcing"),
        Ok(false) => found.push("SELinux is permissive"),
        Err(_) => {}
    }
    if apparmor && !Path::new("/sys/kernel/security/apparmor").is_dir() {
        return Finding::degraded(
            CHECK,
            "AppArmor is on, but /sys/kernel/security is not mounted",
            "profiles cannot be looked up",
            "mount securityfs there (systemd does)",
        );
    }
    if apparmor && holdfast_engine::AppArmor::parser().is_none() {
        return Finding::degraded(
            CHECK,
            "AppArmor is on, but apparmor_parser is not installed",
            "the default profile: containers that ask for it are refused, those that ask for nothing run unconfined",
            "install the package apparmor and restart the daemon",
        );
    }
    if !found.is_empty() {
        return Finding::ok(CHECK, found.join(", "));
    }
    Finding::degraded(
        CHECK,
        "neither is on",
        "containers that ask for a profile or a label are refused; the others are confined by namespaces, capabilities \
         and seccomp alone",
        "boot with `apparmor=1 security=apparmor`, or with SELinux, if the node's policy wants one",
    )
}
