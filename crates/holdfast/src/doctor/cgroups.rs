//! cgroups, and systemd where it makes them.

use std::time::Duration;

use holdfast_cgroups::{Cgroup, Controller, Hierarchy, Mode};
use holdfast_engine::{CgroupDriver, systemd};
use holdfast_sys::clone::Clone3;
use holdfast_sys::pidfd;
use std::os::fd::AsFd as _;
use std::path::Path;

use super::{Finding, reason};
use crate::config::Config;

/// How long a probe's cgroup may be busy.
const REMOVAL: Duration = Duration::from_secs(2);

pub(super) fn all(config: &Config) -> Vec<Finding> {
    let mut out = Vec::new();
    match Hierarchy::detect() {
        Ok(hierarchy) => {
            out.push(version(&hierarchy));
            out.push(controllers(&hierarchy));
            out.extend(protection(&hierarchy));
            out.extend(in_one_of_its_own(&hierarchy));
        }
        Err(error) => out.push(Finding::missing(
            "cgroups",
            error.to_string(),
            "no container can be limited, measured or killed as a whole",
            "mount cgroup2 at /sys/fs/cgroup",
        )),
    }
    out.push(manager(config));
    out
}

fn version(hierarchy: &Hierarchy) -> Finding {
    const CHECK: &str = "cgroups";
    let lost = "no freezer or kill of a whole tree by the kernel alone, no memory protection, no pressure figures, \
                slower starts; kubelets from 1.35 on refuse version 1 unless failCgroupV1 is false";
    let remedy = "boot with systemd.unified_cgroup_hierarchy=1 (the default of every current distribution)";
    match hierarchy.mode() {
        Mode::Unified => Finding::ok(CHECK, "version 2"),
        Mode::Hybrid => Finding::degraded(
            CHECK,
            "version 1 with a unified hierarchy beside it",
            lost,
            remedy,
        ),
        Mode::Legacy => Finding::degraded(CHECK, "version 1", lost, remedy),
    }
}

fn controllers(hierarchy: &Hierarchy) -> Finding {
    const CHECK: &str = "controllers";
    // Names as people know them, and what is lost without.
    let wanted = [
        (Controller::Cpu, "cpu", true),
        (Controller::Memory, "memory", true),
        (Controller::Pids, "pids", true),
        (Controller::Cpuset, "cpuset", false),
        (Controller::Io, "io", false),
        (Controller::Hugetlb, "hugetlb", false),
    ];
    let names = |there: bool| {
        let of = wanted
            .iter()
            .filter(|(controller, ..)| hierarchy.has(*controller) == there);
        of.map(|(_, name, _)| *name).collect::<Vec<_>>().join(" ")
    };
    let (found, absent) = (names(true), names(false));
    if absent.is_empty() {
        return Finding::ok(CHECK, found);
    }
    let lost = format!("limits of {absent} are refused");
    let remedy = "enable them on the kernel's command line (cgroup_enable=…) or use a kernel that has them";
    let needed = |(controller, _, needed): &(Controller, &str, bool)| *needed && !hierarchy.has(*controller);
    if wanted.iter().any(needed) {
        Finding::missing(CHECK, format!("{found}; not {absent}"), &lost, remedy)
    } else {
        Finding::degraded(CHECK, format!("{found}; not {absent}"), &lost, remedy)
    }
}

/// Of version 2 alone: version 1 protects no memory.
fn protection(hierarchy: &Hierarchy) -> Option<Finding> {
    const CHECK: &str = "memory protection";
    if hierarchy.mode() != Mode::Unified {
        return None;
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    Some(match is_recursive(&mounts) {
        true => Finding::ok(CHECK, "what protects a pod protects its containers"),
        false => Finding::degraded(
            CHECK,
            "cgroup2 is mounted without memory_recursiveprot",
            "memory.min and memory.low of a pod protect none of its containers (kubelet's MemoryQoS)",
            "mount -o remount,memory_recursiveprot /sys/fs/cgroup (the default of systemd)",
        ),
    })
}

/// cgroup-v2.rst, "Mounting".
fn is_recursive(mountinfo: &str) -> bool {
    mountinfo.lines().any(|line| {
        let file_system = line.split_once(" - ").map_or("", |(_, rest)| rest);
        let mut words = file_system.split(' ');
        words.next() == Some("cgroup2")
            && words
                .nth(1)
                .is_some_and(|options| options.split(',').any(|option| option == "memory_recursiveprot"))
    })
}

/// What must be tried in a cgroup: making it, being born in it, killing it.
fn in_one_of_its_own(hierarchy: &Hierarchy) -> Vec<Finding> {
    let path = format!("/holdfast-doctor-{}", std::process::id());
    let cgroup = match hierarchy.create(&path) {
        Ok(cgroup) => cgroup,
        Err(error) => {
            return vec![Finding::missing(
                "cgroup creation",
                format!("{error}"),
                "no pod can be made with cgroup_driver = \"cgroupfs\"",
                "run as root where the hierarchy is writable (in a container: with its cgroup namespace's root delegated)",
            )];
        }
    };
    let out = vec![
        Finding::ok("cgroup creation", "the hierarchy is writable"),
        birth(&cgroup),
        kill(hierarchy),
    ];
    // Nothing is in it any more.
    let _ = cgroup.remove(REMOVAL);
    out
}

fn birth(cgroup: &Cgroup) -> Finding {
    const CHECK: &str = "clone3 into cgroup";
    let lost = "a container's init moves into its cgroup after its birth, which costs milliseconds";
    let remedy = "use cgroup version 2 (or the hybrid) on Linux 5.7 or newer";
    let opened = match cgroup.open_for_clone() {
        Ok(Some(opened)) => opened,
        Ok(None) => return Finding::degraded(CHECK, "there is no unified hierarchy", lost, remedy),
        Err(error) => return Finding::degraded(CHECK, error.to_string(), lost, remedy),
    };
    let born = Clone3 {
        namespaces: 0,
        sibling: false,
        cgroup: Some(opened.as_fd()),
    }
    .spawn(|| 0)
    .and_then(|child| pidfd::reap(child.pidfd.as_fd()));
    match born {
        Ok(_) => Finding::ok(CHECK, "processes are born where they belong"),
        Err(error) => Finding::missing(CHECK, reason(&error), "containers cannot be started", remedy),
    }
}

fn kill(hierarchy: &Hierarchy) -> Finding {
    const CHECK: &str = "cgroup.kill";
    let place = match hierarchy.mode() {
        Mode::Unified => "/sys/fs/cgroup",
        Mode::Hybrid | Mode::Legacy => "/sys/fs/cgroup/unified",
    };
    let own = hierarchy.of_process(None).unwrap_or_default();
    // The root has none.
    let probe = format!("{place}/holdfast-doctor-{}/cgroup.kill", std::process::id());
    if Path::new(&probe).exists() || Path::new(&format!("{place}{own}/cgroup.kill")).exists() {
        return Finding::ok(CHECK, "whole trees die at once");
    }
    Finding::degraded(
        CHECK,
        "not there",
        "containers are frozen and killed process by process",
        "use cgroup version 2 (or the hybrid) on Linux 5.14 or newer",
    )
}

fn manager(config: &Config) -> Finding {
    const CHECK: &str = "systemd";
    let runs = Path::new("/run/systemd/system").is_dir();
    let driver = config.engine.cgroup_driver;
    if driver == CgroupDriver::Cgroupfs && !runs {
        return Finding::ok(
            CHECK,
            "not used (cgroup_driver is cgroupfs, and PID 1 is not systemd)",
        );
    }
    if driver == CgroupDriver::Cgroupfs {
        return Finding::degraded(
            CHECK,
            "runs this machine, but cgroup_driver is cgroupfs",
            "two write to one hierarchy: systemd can take a controller away from pods' cgroups; a kubelet's default is the \
             systemd driver",
            "set cgroup_driver = \"systemd\" in section [pods] here, and cgroupDriver: systemd for the kubelet",
        );
    }
    let answer = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
        .and_then(|runtime| {
            let asked = runtime.block_on(systemd::probe());
            asked.map_err(|error| format!("{:#}", anyhow::Error::from(error)))
        });
    match answer {
        Ok(version) if systemd::major(&version) < systemd::OOM_POLICY => Finding::degraded(
            CHECK,
            format!("version {version} answers over D-Bus"),
            "its scopes have no OOMPolicy=: with every daemon-reload it takes memory.oom.group back, which a kubelet sets, and \
             after that only one process of a container that runs out of memory is killed",
            "systemd 253 or newer",
        ),
        Ok(version) => Finding::ok(CHECK, format!("version {version} answers over D-Bus")),
        Err(error) => Finding::missing(
            CHECK,
            error,
            "no pod can be made (cgroup_driver is systemd); pods that run go on",
            "start the bus (`systemctl start dbus`, package dbus), or set cgroup_driver = \"cgroupfs\" here and for the \
             kubelet",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_version_2_is_mounted() {
        let mount = |options| {
            format!(
                "1 0 8:1 / / rw - ext4 /dev/sda rw,memory_recursiveprot\n\
                 30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 {options}\n"
            )
        };
        assert!(is_recursive(&mount("rw,nsdelegate,memory_recursiveprot")));
        assert!(!is_recursive(&mount("rw,nsdelegate")));
        assert!(!is_recursive(""));
    }
}
