//! The machine around it: privileges, disk, directories, helpers.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use holdfast_images::Accounting;
use nix::sys::statvfs::{FsFlags, statvfs};
use rustix::fs::statfs;

use super::Finding;
use crate::config::Config;
use crate::output;
use crate::serve::privileges;

/// statfs(2)
const TMPFS: u64 = 0x0102_1994;
const OVERLAY: u64 = 0x794c_7630;
/// Kubelet begins to remove images at 85 percent, and pods at 90.
const LEAST_FREE_PERCENT: u64 = 15;

pub(super) fn privileges() -> Vec<Finding> {
    let mut out = vec![match privileges::check() {
        Ok(()) => Finding::ok("privileges", "root with the capabilities that pods need"),
        Err(error) => Finding::missing(
            "privileges",
            format!("{error:#}"),
            "the daemon does not start",
            "run it as root, and this too",
        ),
    }];
    out.push(if privileges::has(privileges::SYS_RESOURCE) {
        Finding::ok("CAP_SYS_RESOURCE", "held")
    } else {
        Finding::degraded(
            "CAP_SYS_RESOURCE",
            "not held",
            "oom_score_adj below the daemon's own and rlimits above it cannot be set: they are cut (pods.restrict_oom_score_adj)",
            "do not take it away from the service (CapabilityBoundingSet=)",
        )
    });
    out
}

pub(super) fn all(config: &Config) -> Vec<Finding> {
    vec![
        root(config),
        space(config),
        layers(config),
        state(config),
        helpers(config),
    ]
}

fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|dir| dir.is_dir())
        .unwrap_or(Path::new("/"))
}

fn root(config: &Config) -> Finding {
    const CHECK: &str = "root directory";
    let dir = existing(&config.root);
    let kind = statfs(dir).map(|it| it.f_type as u64).unwrap_or_default();
    let found = format!("{} ({})", config.root.display(), file_system(kind));
    if kind == OVERLAY {
        return Finding::missing(
            CHECK,
            found,
            "an overlay cannot have its upper directory on another overlay",
            "put `root` on a disk's file system or a volume",
        );
    }
    if kind == TMPFS {
        return Finding::degraded(
            CHECK,
            found,
            "images are in memory, and gone after a reboot",
            "put `root` on a disk",
        );
    }
    Finding::ok(CHECK, found)
}

fn file_system(kind: u64) -> String {
    let name = match kind {
        TMPFS => "tmpfs",
        OVERLAY => "overlay",
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        _ => return format!("file system {kind:#x}"),
    };
    name.to_owned()
}

fn space(config: &Config) -> Finding {
    const CHECK: &str = "disk space";
    let Ok(disk) = statvfs(existing(&config.root)) else {
        return Finding::degraded(
            CHECK,
            "cannot be read",
            "nobody knows when the disk is full",
            "look at the file system of the root directory",
        );
    };
    let (free, all) = (
        disk.blocks_available() * disk.fragment_size(),
        disk.blocks() * disk.fragment_size(),
    );
    let percent = free.saturating_mul(100) / all.max(1);
    let found = format!("{} of {} free", output::size(free), output::size(all));
    if free <= config.images.limits.reserve_bytes {
        return Finding::missing(
            CHECK,
            found,
            "pulls are refused (images.reserve)",
            "make room; `holdfast image rm` removes images",
        );
    }
    if percent < LEAST_FREE_PERCENT {
        return Finding::degraded(
            CHECK,
            found,
            "the kubelet removes images, then evicts pods",
            "make room, or give the root directory a disk of its own",
        );
    }
    Finding::ok(CHECK, found)
}

fn layers(config: &Config) -> Finding {
    const CHECK: &str = "writable layers";
    // Where the daemon tries it: another directory may be of an administrator's project.
    match holdfast_images::try_accounting(existing(&config.root.join("snapshots"))) {
        Accounting::ProjectQuota => Finding::ok(
            CHECK,
            "measured by project quota, at the moment they are asked for",
        ),
        Accounting::Walk { reason } => Finding::degraded(
            CHECK,
            format!("measured by walking them: {reason}"),
            "what containers have written is known as of the last walk, which reads the disk",
            "give `root` an ext4 after `tune2fs -O project -Q prjquota DEVICE` (unmounted), or an XFS mounted with prjquota; \
             then start the daemon again",
        ),
    }
}

fn state(config: &Config) -> Finding {
    const CHECK: &str = "state directory";
    let kind = statfs(existing(&config.state))
        .map(|it| it.f_type as u64)
        .unwrap_or_default();
    let found = format!("{} ({})", config.state.display(), file_system(kind));
    if kind == TMPFS {
        return Finding::ok(CHECK, found);
    }
    Finding::degraded(
        CHECK,
        found,
        "what belongs to one boot outlives it, and every exit is written to a disk",
        "put `state` below /run",
    )
}

fn helpers(config: &Config) -> Finding {
    const CHECK: &str = "helpers";
    let remedy = "install the package, or set `helpers` to their directory";
    for program in [config.engine.monitor_program(), config.engine.pause_program()] {
        let runnable = std::fs::metadata(&program)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        if !runnable {
            let found = format!("{} is not an executable file", program.display());
            return Finding::missing(CHECK, found, "no pod can be made", remedy);
        }
    }
    let dir = &config.engine.helpers;
    if statvfs(dir.as_path()).is_ok_and(|disk| disk.flags().contains(FsFlags::ST_NOEXEC)) {
        return Finding::missing(
            CHECK,
            format!("{} is mounted noexec", dir.display()),
            "no pod can be made",
            remedy,
        );
    }
    Finding::ok(CHECK, format!("in {}", dir.display()))
}
