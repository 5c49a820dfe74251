//! The orders of system calls of decision record 1, tried on the kernel and the cgroup layout at hand: plain, with a
//! user namespace, privileged with a Bidirectional volume, and an external OCI runtime with hooks.
//!
//! With `HOLDFAST_TEST_SYSTEMD` set, each container's cgroup is a scope that systemd makes for a helper process.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use common::{Lab, Pod, PodOptions};
use holdfast_cgroups::Mode;
use holdfast_sys::{clone, namespace, pidfd};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};
use serde_json::{Value, json};

/// A cgroup for one container, as the driver at hand makes it.
struct Scope {
    path: Option<String>,
    helper: Option<Child>,
}

impl Scope {
    fn new(name: &str) -> Self {
        if std::env::var_os("HOLDFAST_TEST_SYSTEMD").is_none() {
            return Self {
                path: None,
                helper: None,
            };
        }
        let helper = Command::new("sleep").arg("600").spawn().unwrap();
        let unit = format!("holdfast-test-{}-{name}.scope", std::process::id());
        let pid = helper.id().to_string();
        let made = Command::new("busctl")
            .args([
                "call",
                "org.freedesktop.systemd1",
                "/org/freedesktop/systemd1",
                "org.freedesktop.systemd1.Manager",
            ])
            .args(["StartTransientUnit", "ssa(sv)a(sa(sv))", &unit, "fail", "3"])
            .args([
                "PIDs",
                "au",
                "1",
                &pid,
                "Delegate",
                "b",
                "true",
                "Slice",
                "s",
                "system.slice",
                "0",
            ])
            .status()
            .unwrap();
        assert!(made.success(), "systemd made no scope");
        let path = format!("/system.slice/{unit}");
        for _ in 0..200 {
            let now = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            if now.contains(&path) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Self {
            path: Some(path),
            helper: Some(helper),
        }
    }

    /// The helper has done its duty once init is in the scope.
    fn helper_leaves(&mut self) {
        if let Some(mut helper) = self.helper.take() {
            helper.kill().unwrap();
            helper.wait().unwrap();
        }
    }
}

fn describe(lab: &Lab, what: &str) {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let driver = match std::env::var_os("HOLDFAST_TEST_SYSTEMD") {
        Some(_) => "systemd",
        None => "cgroupfs",
    };
    let mode = match lab.hierarchy.mode() {
        Mode::Unified => "v2",
        Mode::Hybrid => "v1 hybrid",
        Mode::Legacy => "v1",
    };
    println!("cell: {what} | {} | {mode} {driver}", kernel.trim());
}

fn run_in_scope(lab: &Lab, pod: &Pod, spec: &Value, name: &str) -> common::Output {
    let mut scope = Scope::new(name);
    let running = lab.create_in(pod, spec, scope.path.clone());
    scope.helper_leaves();
    if let Some(path) = &scope.path {
        let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", running.built.pid)).unwrap();
        assert!(
            cgroup.contains(path.as_str()),
            "init is not in the scope: {cgroup}"
        );
    }
    running.release().unwrap();
    running.wait(lab)
}

#[test]
fn plain() {
    let lab = Lab::new();
    describe(&lab, "plain");
    let pod = lab.pod();
    let mut spec = lab.spec(&pod, "echo $$; cut -d: -f3 /proc/self/cgroup | sort -u");
    spec["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 100}});
    assert_eq!(run_in_scope(&lab, &pod, &spec, "plain").ok(), "1\n/\n");
    pod.stop();
    lab.finish();
}

#[test]
fn user_namespace() {
    let lab = Lab::new();
    describe(&lab, "user namespace");
    let pod = lab.pod_with(&PodOptions {
        user: true,
        ..PodOptions::default()
    });
    let mut spec = lab.spec(
        &pod,
        "echo $$; id -u; stat -c %u /bin/busybox; cut -d: -f3 /proc/self/cgroup | sort -u",
    );
    spec["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 100}});
    assert_eq!(run_in_scope(&lab, &pod, &spec, "user").ok(), "1\n0\n0\n/\n");
    pod.stop();
    lab.finish();
}

/// A shared mount, as a kubelet's volumes directory lies on one.
fn volume(lab: &Lab) -> PathBuf {
    let volume = lab.path("volume");
    std::fs::create_dir_all(&volume).unwrap();
    mount(
        "tmpfs",
        &volume,
        "tmpfs",
        MountFlags::empty(),
        None::<&std::ffi::CStr>,
    )
    .unwrap();
    mount_change(&volume, MountPropagationFlags::SHARED).unwrap();
    std::fs::create_dir_all(volume.join("in")).unwrap();
    volume
}

#[test]
fn privileged_with_a_bidirectional_volume() {
    let lab = Lab::new();
    describe(&lab, "privileged, Bidirectional");
    let pod = lab.pod();
    let volume = volume(&lab);
    let mut spec = lab.spec(&pod, "mount -t tmpfs t /v/in && echo from-inside > /v/in/file; test -w /sys/fs/cgroup && echo cgroup; touch /proc/sys/net/core/somaxconn && echo sysctl");
    let held: Vec<String> = capabilities();
    spec["process"]["capabilities"] = json!({"bounding": held, "effective": held, "permitted": held});
    spec["process"]["noNewPrivileges"] = json!(false);
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    for entry in mounts.iter_mut() {
        let options = entry["options"].as_array_mut().unwrap();
        options.retain(|o| o != "ro");
    }
    mounts.push(
        json!({"destination": "/v", "type": "bind", "source": volume, "options": ["rbind", "rshared"]}),
    );
    assert_eq!(
        run_in_scope(&lab, &pod, &spec, "privileged").ok(),
        "cgroup\nsysctl\n"
    );
    assert_eq!(
        std::fs::read_to_string(volume.join("in/file")).unwrap(),
        "from-inside\n"
    );
    unmount(volume.join("in"), UnmountFlags::empty()).unwrap();
    unmount(&volume, UnmountFlags::empty()).unwrap();
    pod.stop();
    lab.finish();
}

fn capabilities() -> Vec<String> {
    [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "NET_ADMIN",
        "NET_RAW",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_ADMIN",
        "MKNOD",
    ]
    .iter()
    .map(|c| format!("CAP_{c}"))
    .collect()
}

/// Which OCI runtimes there are: beside the test (in a virtual machine) or installed.
fn runtimes() -> Vec<PathBuf> {
    let beside = std::env::current_exe().unwrap();
    let dirs = [
        beside.parent().unwrap().to_path_buf(),
        "/usr/sbin".into(),
        "/usr/bin".into(),
    ];
    ["runc", "crun"]
        .iter()
        .filter_map(|name| dirs.iter().map(|d| d.join(name)).find(|p| p.exists()))
        .collect()
}

#[test]
fn external_runtime_with_hooks() {
    let lab = Lab::new();
    describe(&lab, "external runtime with hooks");
    let found = runtimes();
    assert!(!found.is_empty(), "neither runc nor crun is installed");
    for runtime in found {
        let name = runtime.file_name().unwrap().to_string_lossy().into_owned();
        // crun refuses a hybrid whose unified hierarchy has a controller, as where hugetlb is left there.
        let refuses = name == "crun" && lab.hierarchy.mode() == Mode::Hybrid && unified_has_controllers();
        println!(
            "runtime: {name}{}",
            if refuses {
                " (cannot run on this hybrid)"
            } else {
                ""
            }
        );
        if refuses {
            continue;
        }
        run_external(&lab, &runtime, &name);
    }
    lab.finish();
}

fn unified_has_controllers() -> bool {
    std::fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").is_ok_and(|c| !c.trim().is_empty())
}

fn run_external(lab: &Lab, runtime: &Path, name: &str) {
    let volume = volume(lab);
    // The one private mount: what is mounted below it in a copy of the namespace stays there.
    let staging = lab.path("staging");
    let bundle = staging.join(name);
    std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
    mount_bind(&staging, &staging).unwrap();
    mount_change(&staging, MountPropagationFlags::PRIVATE).unwrap();
    std::fs::write(
        bundle.join("config.json"),
        external_config(lab, &bundle, &volume, name).to_string(),
    )
    .unwrap();
    let data = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        lab.path("image").display(),
        subdir(lab, &format!("{name}/upper")).display(),
        subdir(lab, &format!("{name}/work")).display()
    );
    let data = std::ffi::CString::new(data).unwrap();
    let helper = clone::fork(|| {
        // A copy of the host's namespace with its peer groups, so that volumes propagate; only the overlay is ours.
        namespace::unshare(clone::NEWNS).unwrap();
        mount(
            "overlay",
            bundle.join("rootfs"),
            "overlay",
            MountFlags::empty(),
            Some(data.as_c_str()),
        )
        .unwrap();
        let done = Command::new(runtime)
            .arg("--root")
            .arg(lab.path("runtime-state"))
            .args(["run", "--bundle"])
            .arg(&bundle)
            .arg(format!("holdfast-test-{}", std::process::id()))
            .stdin(std::process::Stdio::null())
            .status();
        done.ok().and_then(|s| s.code()).unwrap_or(99)
    })
    .unwrap();
    let ended = pidfd::reap(helper.pidfd.as_fd()).unwrap();
    let log = std::fs::read_to_string(bundle.join("log")).unwrap_or_default();
    assert_eq!(ended.code(), 0, "{log}");
    assert_eq!(log, "createRuntime sees the root\npoststop\n");
    assert_eq!(
        std::fs::read_to_string(volume.join("in/file")).unwrap(),
        "from-inside\n"
    );
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(!table.contains("/rootfs "), "the overlay reached the host");
    unmount(volume.join("in"), UnmountFlags::empty()).unwrap();
    unmount(&volume, UnmountFlags::empty()).unwrap();
    unmount(&staging, UnmountFlags::empty()).unwrap();
}

fn subdir(lab: &Lab, name: &str) -> PathBuf {
    let path = lab.path(name);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// runc's and crun's own idea of a small spec, with our volume and two hooks.
fn external_config(lab: &Lab, bundle: &Path, volume: &Path, name: &str) -> Value {
    let hook = |script: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    let log = bundle.join("log");
    let create = format!(
        "test -x {}/rootfs/bin/busybox && echo createRuntime sees the root >> {}",
        bundle.display(),
        log.display()
    );
    let stop = format!("echo poststop >> {}", log.display());
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
            "args": ["sh", "-c", "mount -t tmpfs t /v/in && echo from-inside > /v/in/file"],
            "capabilities": {"bounding": ["CAP_SYS_ADMIN"], "effective": ["CAP_SYS_ADMIN"], "permitted": ["CAP_SYS_ADMIN"]},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/v", "type": "bind", "source": volume, "options": ["rbind", "rshared"]},
        ],
        "hooks": {"createRuntime": hook(&create), "poststop": hook(&stop)},
        "linux": {
            "rootfsPropagation": "rshared",
            "cgroupsPath": format!("{}/{name}", lab.cgroup),
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}],
        },
    })
}
