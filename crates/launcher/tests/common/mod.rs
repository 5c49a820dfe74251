//! A laboratory for the launcher: a private mount namespace, a busybox image, a pod, and a check that nothing is left.

#![allow(clippy::unwrap_used, dead_code)]

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_cgroups::Hierarchy;
use holdfast_launcher::{
    Built, CgroupRef, ContainerPlan, ExecPlan, Handler, Hooked, IdMap, PodNamespaces, Rootfs, SandboxPlan,
    Stdio, create_container, create_sandbox, exec,
};
use holdfast_sys::{clone, namespace, pidfd};
use holdfast_testkit::Reaper;
use serde_json::{Value, json};

const APPLETS: &[&str] = &[
    "sh", "cat", "ls", "id", "mount", "umount", "mkdir", "echo", "sleep", "readlink", "stat", "test", "true",
    "false", "hostname", "touch", "grep", "ps", "kill", "head", "wc", "env", "pwd", "tty", "dd", "ln", "rm",
    "chmod", "ip", "stty", "cp", "chroot", "nsenter", "unshare", "uniq", "mknod", "df", "seq", "usleep",
    "find", "cut", "sort", "tr", "chown", "nc", "sync",
];

pub struct Lab {
    pub dir: tempfile::TempDir,
    pub hierarchy: Hierarchy,
    pub cgroup: String,
    /// Bind sources that the containers to come relabel.
    pub relabel: std::cell::RefCell<Vec<PathBuf>>,
    /// Whose namespaces the containers to come may name.
    pub targets: std::cell::RefCell<Vec<(i32, OwnedFd)>>,
    /// Set: containers to come are those of the launcher for hooks, with their bundles here.
    pub bundles: std::cell::RefCell<Option<PathBuf>>,
    before: Snapshot,
    next: std::cell::Cell<u32>,
    _reaper: Reaper,
}

#[derive(PartialEq, Debug)]
struct Snapshot {
    mounts: Vec<String>,
    fds: usize,
}

impl Snapshot {
    fn take() -> Self {
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let mounts = table
            .lines()
            .map(|l| l.split(' ').nth(4).unwrap().to_owned())
            .collect();
        Self {
            mounts,
            fds: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }
}

pub struct Pod {
    pub built: Built,
}

/// A test that fails leaves no pause behind.
impl Drop for Pod {
    fn drop(&mut self) {
        let _gone = pidfd::signal(self.built.pidfd.as_fd(), libc::SIGKILL);
    }
}

impl Pod {
    pub fn namespaces(&self) -> &PodNamespaces {
        &self.built.namespaces
    }

    pub fn stop(self) -> Option<i32> {
        pidfd::signal(self.built.pidfd.as_fd(), libc::SIGTERM).unwrap();
        Some(pidfd::reap(self.built.pidfd.as_fd()).unwrap().code())
    }
}

#[derive(Debug)]
pub struct Output {
    pub out: String,
    pub err: String,
    pub code: i32,
    pub warnings: Vec<String>,
}

impl Output {
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.out, self.err);
        self.out
    }
}

/// A container that stands at its barrier or runs, with the read ends of its output.
pub struct Running {
    pub built: Built,
    pub out: Option<std::fs::File>,
    pub err: Option<std::fs::File>,
    pub cgroup: String,
    pub id: String,
}

impl Running {
    pub fn release(&self) -> Result<(), holdfast_launcher::ExecFailure> {
        let barrier = self.built.barrier.as_ref().unwrap();
        barrier.release().unwrap();
        barrier.wait()
    }

    pub fn kill(&self) {
        pidfd::signal(self.built.pidfd.as_fd(), libc::SIGKILL).unwrap();
    }

    pub fn wait(self, lab: &Lab) -> Output {
        let read = |file: Option<std::fs::File>| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                if let Some(mut file) = file {
                    let _ = file.read_to_end(&mut text);
                }
                String::from_utf8_lossy(&text).into_owned()
            })
        };
        let (out, err) = (read(self.out), read(self.err));
        let code = pidfd::reap(self.built.pidfd.as_fd()).unwrap().code();
        lab.remove_cgroup(&self.cgroup);
        Output {
            out: out.join().unwrap(),
            err: err.join().unwrap(),
            code,
            warnings: self.built.warnings,
        }
    }
}

/// What can be asked of a pod in these tests.
#[derive(Clone, Default)]
pub struct PodOptions {
    pub host: bool,
    pub user: bool,
    pub sysctls: Vec<(String, String)>,
    pub netns_path: Option<PathBuf>,
    /// SELinux labels: pause's and that of its /dev/shm.
    pub labels: (String, String),
}

pub const MAP: IdMap = IdMap {
    container_id: 0,
    host_id: 200_000,
    size: 65536,
};

impl Lab {
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "privileged tests need root");
        let cgroup = format!("/holdfast-test-{}", std::process::id());
        let reaper = Reaper::of_cgroup(&cgroup);
        namespace::unshare(clone::NEWNS).unwrap();
        rustix::mount::mount_change(
            "/",
            rustix::mount::MountPropagationFlags::DOWNSTREAM | rustix::mount::MountPropagationFlags::REC,
        )
        .unwrap();
        holdfast_launcher::warm_up().unwrap();
        let dir = tempfile::Builder::new()
            .prefix("holdfast-test-")
            .tempdir()
            .unwrap();
        let hierarchy = Hierarchy::detect().unwrap();
        let lab = Self {
            cgroup,
            hierarchy,
            dir,
            relabel: std::cell::RefCell::default(),
            targets: std::cell::RefCell::default(),
            bundles: std::cell::RefCell::default(),
            before: Snapshot::take(),
            next: 0.into(),
            _reaper: reaper,
        };
        lab.make_image();
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn make_image(&self) {
        let image = self.path("image");
        for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "home/u"] {
            std::fs::create_dir_all(image.join(dir)).unwrap();
        }
        let busybox = ["/usr/bin/busybox", "/bin/busybox"]
            .iter()
            .find(|p| Path::new(p).exists())
            .expect("busybox-static is installed");
        std::fs::copy(busybox, image.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", image.join("bin").join(applet)).unwrap();
        }
        std::fs::write(
            image.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nu:x:1000:1000:u:/home/u:/bin/sh\n",
        )
        .unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(image.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
        std::fs::set_permissions(self.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn pause() -> PathBuf {
        let exe = std::env::current_exe().unwrap();
        let target = exe.ancestors().nth(3).unwrap();
        let mut places = vec![
            exe.with_file_name("holdfast-pause"),
            target.join("helpers/holdfast-pause"),
            target.join("release/holdfast-pause"),
        ];
        places.extend(target.parent().map(|t| t.join("helpers/holdfast-pause")));
        places.extend(std::env::var_os("HOLDFAST_PAUSE").map(PathBuf::from));
        places
            .into_iter()
            .find(|p| p.exists())
            .expect("holdfast-pause is built (`make pause`)")
    }

    pub fn pod(&self) -> Pod {
        self.pod_with(&PodOptions::default())
    }

    pub fn pod_with(&self, options: &PodOptions) -> Pod {
        self.try_pod(options).unwrap_or_else(|e| panic!("{e}: {e:?}"))
    }

    pub fn try_pod(&self, options: &PodOptions) -> Result<Pod, holdfast_launcher::Error> {
        let maps = if options.user { vec![MAP] } else { Vec::new() };
        let new = !options.host;
        let plan = SandboxPlan {
            id: "pod",
            hierarchy: &self.hierarchy,
            pause: Self::pause(),
            new_net: new,
            new_ipc: new,
            new_uts: new,
            new_pid: new,
            uid_maps: maps.clone(),
            gid_maps: maps,
            hostname: if new { "pod-host".into() } else { String::new() },
            sysctls: options.sysctls.clone(),
            cgroup: CgroupRef {
                path: format!("{}/pause", self.cgroup),
                ..CgroupRef::default()
            },
            resources: b"",
            shm_size: 1 << 20,
            netns_path: options.netns_path.clone(),
            oom_score_adj: 0,
            clamp_privileges: true,
            selinux_label: &options.labels.0,
            mount_label: &options.labels.1,
        };
        let built = create_sandbox(plan)?.wait()?;
        Ok(Pod { built })
    }

    /// A spec as the engine makes it, that runs `script` in a shell.
    pub fn spec(&self, pod: &Pod, script: &str) -> Value {
        let user = pod.namespaces().user.is_some();
        let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
        for kind in ["network", "ipc", "uts", "pid"] {
            namespaces.push(json!({"type": kind, "path": "pod:"}));
        }
        namespaces.retain(|n| n["type"] != "pid");
        namespaces.push(json!({"type": "pid"}));
        let caps = json!([
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FSETID",
            "CAP_FOWNER",
            "CAP_MKNOD",
            "CAP_NET_RAW",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SETFCAP",
            "CAP_SETPCAP",
            "CAP_NET_BIND_SERVICE",
            "CAP_SYS_CHROOT",
            "CAP_KILL"
        ]);
        let maps = if user {
            json!([{"containerID": 0, "hostID": MAP.host_id, "size": MAP.size}])
        } else {
            json!([])
        };
        json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs", "readonly": false},
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": ["sh", "-c", script],
                "env": ["PATH=/usr/bin:/bin"],
                "cwd": "/",
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
                "noNewPrivileges": true,
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev/shm", "type": "bind", "source": "pod:shm", "options": ["rbind", "nosuid", "noexec", "nodev", "rw"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev", "relatime"]},
            ],
            "linux": {
                "uidMappings": maps,
                "gidMappings": maps,
                "resources": {},
                "namespaces": namespaces,
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/acpi", "/sys/firmware", "/proc/not-there"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/proc/bus"],
            }
        })
    }

    pub fn rootfs(&self, name: &str) -> Rootfs {
        self.layered(name, vec![self.path("image")])
    }

    pub fn layered(&self, name: &str, lowers: Vec<PathBuf>) -> Rootfs {
        let (upper, work) = (
            self.path(&format!("{name}/upper")),
            self.path(&format!("{name}/work")),
        );
        std::fs::create_dir_all(&upper).unwrap();
        std::fs::create_dir_all(&work).unwrap();
        Rootfs::Overlay {
            lowers,
            upper,
            work,
            options: vec!["volatile".into()],
        }
    }

    pub fn try_create(&self, pod: &Pod, spec: &Value) -> Result<Running, holdfast_launcher::Error> {
        self.try_create_on(pod, spec, None)
    }

    /// In the given cgroup, where there is one.
    #[track_caller]
    pub fn create_in(&self, pod: &Pod, spec: &Value, cgroup: Option<String>) -> Running {
        self.try_create_full(pod, spec, None, cgroup)
            .unwrap_or_else(|e| panic!("create: {e}"))
    }

    pub fn try_create_on(
        &self,
        pod: &Pod,
        spec: &Value,
        rootfs: Option<Rootfs>,
    ) -> Result<Running, holdfast_launcher::Error> {
        self.try_create_full(pod, spec, rootfs, None)
    }

    fn try_create_full(
        &self,
        pod: &Pod,
        spec: &Value,
        rootfs: Option<Rootfs>,
        cgroup: Option<String>,
    ) -> Result<Running, holdfast_launcher::Error> {
        let number = self.next.replace(self.next.get() + 1);
        let id = format!("c{number}");
        let cgroup = cgroup.unwrap_or_else(|| format!("{}/{id}", self.cgroup));
        let bytes = serde_json::to_vec(spec).unwrap();
        let terminal = spec["process"]["terminal"] == true;
        let (out, err, stdio) = if terminal {
            (None, None, Stdio::Terminal)
        } else {
            let (out, out_end) = pipe();
            let (err, err_end) = pipe();
            let stdio = Stdio::Pipes {
                stdin: None,
                stdout: Some(out_end),
                stderr: Some(err_end),
            };
            (Some(out), Some(err), stdio)
        };
        let targets = self.targets.borrow();
        let targets: Vec<_> = targets.iter().map(|(pid, fd)| (*pid, fd.as_fd())).collect();
        let plan = ContainerPlan {
            id: &id,
            hierarchy: &self.hierarchy,
            name: "default/pod/c",
            spec: &bytes,
            rootfs: rootfs.unwrap_or_else(|| self.rootfs(&id)),
            cgroup: CgroupRef {
                path: cgroup.clone(),
                ..CgroupRef::default()
            },
            namespaces: pod.namespaces(),
            pause_pid: pod.built.pid,
            targets: &targets,
            stdio,
            clamp_privileges: true,
            relabel: self.relabel.borrow().clone(),
        };
        let building = match self.hooked(&id) {
            None => create_container(plan)?,
            Some(hooked) => hooked.create(plan)?,
        };
        let built = building.wait()?;
        Ok(Running {
            built,
            out,
            err,
            cgroup,
            id,
        })
    }

    /// Starts to make a container that has hooks.
    pub fn begin(
        &self,
        pod: &Pod,
        hooked: &Hooked,
        (spec, id, cgroup): (&[u8], &str, &str),
    ) -> holdfast_launcher::Building {
        let plan = ContainerPlan {
            id,
            hierarchy: &self.hierarchy,
            name: "default/pod/c",
            spec,
            rootfs: self.rootfs(id),
            cgroup: CgroupRef {
                path: cgroup.to_owned(),
                ..CgroupRef::default()
            },
            namespaces: pod.namespaces(),
            pause_pid: pod.built.pid,
            targets: &[],
            stdio: Stdio::Pipes {
                stdin: None,
                stdout: None,
                stderr: None,
            },
            clamp_privileges: true,
            relabel: Vec::new(),
        };
        hooked.create(plan).unwrap()
    }

    pub fn hooked(&self, id: &str) -> Option<Hooked> {
        self.bundles.borrow().as_ref().map(|bundles| Hooked {
            name: "default/pod/c".into(),
            bundle: bundles.join(id),
        })
    }

    #[track_caller]
    pub fn create(&self, pod: &Pod, spec: &Value) -> Running {
        self.try_create(pod, spec)
            .unwrap_or_else(|e| panic!("create: {e}"))
    }

    #[track_caller]
    pub fn run(&self, pod: &Pod, spec: &Value) -> Output {
        let running = self.create(pod, spec);
        running.release().unwrap_or_else(|e| panic!("start: {e}"));
        running.wait(self)
    }

    #[track_caller]
    pub fn sh(&self, pod: &Pod, script: &str) -> Output {
        self.run(pod, &self.spec(pod, script))
    }

    pub fn try_exec(
        &self,
        target: &Running,
        process: &Value,
        leaf: &str,
    ) -> Result<Running, holdfast_launcher::Error> {
        let bytes = serde_json::to_vec(process).unwrap();
        let terminal = process["terminal"] == true;
        let (out, out_end) = pipe();
        let (err, err_end) = pipe();
        let stdio = if terminal {
            Stdio::Terminal
        } else {
            Stdio::Pipes {
                stdin: None,
                stdout: Some(out_end),
                stderr: Some(err_end),
            }
        };
        let plan = ExecPlan {
            container_id: &target.id,
            hierarchy: &self.hierarchy,
            name: "default/pod/c",
            process: &bytes,
            seccomp: b"",
            init_pid: target.built.pid,
            init: target.built.pidfd.as_fd(),
            cgroup: CgroupRef {
                path: target.cgroup.clone(),
                ..CgroupRef::default()
            },
            leaf,
            stdio,
            clamp_privileges: true,
        };
        let built = exec(plan)?.wait()?;
        Ok(Running {
            built,
            out: Some(out),
            err: Some(err),
            cgroup: format!("{}/{leaf}", target.cgroup),
            id: leaf.to_owned(),
        })
    }

    pub fn remove_cgroup(&self, path: &str) {
        if let Ok(cgroup) = self.hierarchy.open(path) {
            cgroup.kill().unwrap();
            cgroup.wait_empty(Duration::from_secs(60)).unwrap();
            cgroup.remove(Duration::from_secs(60)).unwrap();
        }
    }

    /// Removes the test's cgroups and checks that no child, mount, descriptor or cgroup is left.
    pub fn finish(self) {
        self.targets.take();
        let deadline = Instant::now() + Duration::from_secs(60);
        // Short-lived helpers of the launcher are this process's children, too.
        while pidfd::reap_any().unwrap().is_some() {}
        self.remove_cgroup(&format!("{}/pause", self.cgroup));
        let left = self.hierarchy.children(&self.cgroup).unwrap_or_default();
        assert!(left.is_empty(), "cgroups left: {left:?}");
        self.remove_cgroup(&self.cgroup);
        let mut after = Snapshot::take();
        while after != self.before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            after = Snapshot::take();
        }
        assert_eq!(after, self.before, "something was left behind");
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
        assert_eq!(children, "", "children were left");
        let left: BTreeSet<String> = self
            .hierarchy
            .children("/")
            .unwrap()
            .into_iter()
            .filter(|n| *n == self.cgroup[1..])
            .collect();
        assert!(left.is_empty());
    }
}

pub fn pipe() -> (std::fs::File, OwnedFd) {
    let (r, w) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (r.into(), w)
}

/// The error of a create that must fail; a child it may have left is reaped by `finish`.
#[track_caller]
pub fn refused(result: Result<Running, holdfast_launcher::Error>) -> holdfast_launcher::Error {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(e) => e,
    }
}
