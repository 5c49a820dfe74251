//! A real monitor with a real pod: a mount namespace of its own, a busybox root, a client, and a look afterwards that
//! nothing is left.

#![allow(clippy::unwrap_used, dead_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_monitor_api::message::{
    Cgroup, CreateContainer, CreateSandbox, ExecFinished, ExecSync, Exit, Init, Rootfs,
};
use holdfast_monitor_api::{Client, Container, EventStream, MonitorEvent, Sandbox, Spawned};
use holdfast_testkit::Reaper;
use serde_json::{Value, json};

const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "sleep", "true", "false", "printf", "yes", "head", "kill", "dd", "mkdir", "ls",
    "grep", "seq", "rm", "test", "readlink", "usleep", "id", "stty",
];
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
];

/// Longest that anything here may take, in an emulated machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` as a single-threaded async program in a mount namespace of its own.
pub fn privileged<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    assert!(rustix::process::geteuid().is_root(), "privileged tests need root");
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let flags = rustix::mount::MountPropagationFlags::DOWNSTREAM | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test());
}

pub fn monitor_program() -> PathBuf {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_holdfast-monitor"));
    std::env::var_os("HOLDFAST_MONITOR").map_or(built, PathBuf::from)
}

fn pause_program() -> PathBuf {
    let path = std::env::var_os("HOLDFAST_PAUSE").expect(
        "HOLDFAST_PAUSE must name the pause executable (`make pause` builds it): these tests run real pods",
    );
    let path = PathBuf::from(path);
    assert!(
        path.is_absolute() && path.exists(),
        "HOLDFAST_PAUSE={} is not there",
        path.display()
    );
    path
}

pub struct Pod {
    pub dir: tempfile::TempDir,
    pub id: String,
    cgroup: String,
    pub monitor: Spawned,
    pub sandbox: Sandbox,
    /// Events that were read while waiting for another.
    pub seen: Vec<MonitorEvent>,
    _reaper: Reaper,
}

pub struct Started {
    pub id: String,
    pub container: Container,
    pub create: CreateContainer,
    pub log: PathBuf,
}

impl Pod {
    pub async fn start() -> Self {
        Self::start_with(monitor_program()).await
    }

    pub async fn start_with(program: PathBuf) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("holdfast-test-")
            .tempdir()
            .unwrap();
        make_root(&dir.path().join("image"));
        std::fs::create_dir_all(dir.path().join("state")).unwrap();
        std::fs::create_dir_all(dir.path().join("logs")).unwrap();
        let id = "5a".repeat(32);
        let cgroup = format!("/holdfast-test-{}", std::process::id());
        let reaper = Reaper::of_cgroup(&cgroup);
        let monitor = holdfast_monitor_api::spawn(program).await.unwrap();
        let first = init(dir.path(), &id, &cgroup);
        monitor.client.init(first).await.unwrap();
        let sandbox = monitor
            .client
            .create_sandbox(create_sandbox(&cgroup))
            .await
            .unwrap();
        Pod {
            dir,
            id,
            cgroup,
            monitor,
            sandbox,
            seen: Vec::new(),
            _reaper: reaper,
        }
    }

    pub fn client(&self) -> &Client {
        &self.monitor.client
    }

    pub fn init(&self) -> Init {
        init(self.dir.path(), &self.id, &self.cgroup)
    }

    pub fn create_sandbox(&self) -> CreateSandbox {
        create_sandbox(&self.cgroup)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the engine would send for a container that runs `script`.
    pub fn container(&self, name: &str, script: &str) -> CreateContainer {
        let id = format!("{name}-{}", std::process::id());
        let (upper, work) = (
            self.path(&format!("{name}/upper")),
            self.path(&format!("{name}/work")),
        );
        std::fs::create_dir_all(&upper).unwrap();
        std::fs::create_dir_all(&work).unwrap();
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        CreateContainer {
            name: format!("test/pod/{name}"),
            spec: serde_json::to_vec(&spec(script)).unwrap(),
            rootfs: Some(Rootfs {
                fs_type: "overlay".to_owned(),
                lowers: vec![text(self.path("image"))],
                upper: text(upper),
                work: text(work),
                options: vec!["volatile".to_owned()],
            }),
            cgroup: Some(Cgroup {
                path: format!("{}/{id}", self.cgroup),
                driver: "cgroupfs".to_owned(),
            }),
            log_path: text(self.path(&format!("logs/{name}.log"))),
            clamp_privileges: true,
            container_id: id,
            ..CreateContainer::default()
        }
    }

    pub async fn create(&self, create: CreateContainer) -> Started {
        let container = self.client().create_container(create.clone()).await.unwrap();
        Started {
            id: create.container_id.clone(),
            log: PathBuf::from(&create.log_path),
            container,
            create,
        }
    }

    /// Creates and starts a container that runs `script`.
    pub async fn run(&self, name: &str, script: &str) -> Started {
        let started = self.create(self.container(name, script)).await;
        self.client().start(&started.id).await.unwrap();
        started
    }

    /// Waits for the exit of `id`; other events are kept in `seen`.
    pub async fn exit_of(&mut self, id: &str) -> Exit {
        let wait = async {
            loop {
                match self.monitor.events.next().await.unwrap() {
                    MonitorEvent::Exited(exit) if exit.container_id == id => return exit,
                    MonitorEvent::Gone => panic!("the monitor is gone; its log: {}", self.monitor_log()),
                    other => self.seen.push(other),
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("no exit came")
    }

    pub async fn exec(&self, id: &str, script: &str, timeout: Duration) -> ExecFinished {
        self.client()
            .exec_sync(exec_request(id, script, timeout))
            .await
            .unwrap()
    }

    pub fn monitor_log(&self) -> String {
        std::fs::read_to_string(self.path("monitor.log")).unwrap_or_default()
    }

    /// Ends everything in order, and looks whether anything is left.
    pub async fn stop(mut self) {
        let inventory = self.client().inventory().await.unwrap();
        for entry in inventory.containers {
            self.client().remove(&entry.entry.container_id).await.unwrap();
        }
        self.client().stop_sandbox().await.unwrap();
        // A helper may still be at work, such as one that removes the leaf of the last exec: the daemon asks again too.
        while let Err(error) = self.client().shutdown().await {
            assert!(error.to_string().contains("has not been stopped"), "{error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let gone =
            async { while !matches!(self.monitor.events.next().await, None | Some(MonitorEvent::Gone)) {} };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .expect("the monitor does not leave");
        assert_eq!(self.monitor_log(), "", "the monitor complained");
        assert!(!self.path("state/monitor.sock").exists());
        self.check_nothing_left();
    }

    /// For tests whose monitor was replaced: cgroups are gone, and no process has our directory's name.
    pub fn check_nothing_left(&self) {
        let hierarchy = holdfast_cgroups::Hierarchy::detect().unwrap();
        // Where the monitor was: the daemon's to remove.
        let monitor = hierarchy.open(&format!("{}/monitor", self.cgroup)).unwrap();
        monitor.wait_empty(PATIENCE).unwrap();
        monitor.remove(PATIENCE).unwrap();
        let left = hierarchy.children(&self.cgroup).unwrap();
        assert_eq!(left, Vec::<String>::new(), "cgroups are left");
        hierarchy.remove_if_empty(&self.cgroup).unwrap();
    }
}

impl Drop for Pod {
    /// A failed test leaves nothing behind either.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        if let Some(pid) = rustix::process::Pid::from_raw(self.monitor.pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        if let Ok(cgroup) = holdfast_cgroups::Hierarchy::detect().and_then(|all| all.open(&self.cgroup)) {
            let _ = cgroup.kill();
            let _ = cgroup.remove(Duration::from_secs(5));
        }
    }
}

pub async fn spawn() -> Spawned {
    holdfast_monitor_api::spawn(monitor_program()).await.unwrap()
}

pub async fn reconnect(pod: &Pod) -> (Client, EventStream) {
    let (client, events, hello) = Client::connect(&pod.path("state/monitor.sock")).await.unwrap();
    assert_eq!(hello.sandbox_id, pod.id);
    (client, events)
}

pub fn exec_request(id: &str, script: &str, timeout: Duration) -> ExecSync {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    ExecSync {
        container_id: id.to_owned(),
        exec_id: format!("e{number}"),
        process: serde_json::to_vec(&spec(script)["process"]).unwrap(),
        timeout_ms: timeout.as_millis() as u64,
        output_limit: 16 * 1024 * 1024 - 64 * 1024,
        clamp_privileges: true,
        ..ExecSync::default()
    }
}

fn init(dir: &Path, id: &str, cgroup: &str) -> Init {
    Init {
        sandbox_id: id.to_owned(),
        pod: "test/pod".to_owned(),
        state_dir: dir.join("state").to_str().unwrap().to_owned(),
        pause_path: pause_program().to_str().unwrap().to_owned(),
        monitor_cgroup: format!("{cgroup}/monitor"),
    }
}

fn create_sandbox(cgroup: &str) -> CreateSandbox {
    CreateSandbox {
        new_net: true,
        new_ipc: true,
        new_uts: true,
        hostname: "test-pod".to_owned(),
        cgroup: Some(Cgroup {
            path: format!("{cgroup}/pause"),
            driver: "cgroupfs".to_owned(),
        }),
        shm_size: 1 << 20,
        clamp_privileges: true,
        ..CreateSandbox::default()
    }
}

pub fn spec(script: &str) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "noNewPrivileges": true
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "bind", "source": "pod:shm", "options": ["rbind", "rw"]}
        ],
        "linux": {
            "resources": {},
            "namespaces": [
                {"type": "mount"}, {"type": "pid"}, {"type": "cgroup"},
                {"type": "network", "path": "pod:"}, {"type": "ipc", "path": "pod:"}, {"type": "uts", "path": "pod:"}
            ]
        }
    })
}

/// Changes the spec of a create request.
pub fn with_spec(mut create: CreateContainer, change: impl FnOnce(&mut Value)) -> CreateContainer {
    let mut spec: Value = serde_json::from_slice(&create.spec).unwrap();
    change(&mut spec);
    create.spec = serde_json::to_vec(&spec).unwrap();
    create
}

fn make_root(image: &Path) {
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        std::fs::create_dir_all(image.join(dir)).unwrap();
    }
    let busybox = ["/usr/bin/busybox", "/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    std::fs::copy(
        busybox.expect("busybox-static is installed"),
        image.join("bin/busybox"),
    )
    .unwrap();
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", image.join("bin").join(applet)).unwrap();
    }
}

/// The entries of a CRI log: stream, tag and content.
pub fn entries(log: &Path) -> Vec<(String, String, String)> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // A write that is going on can be seen in part.
    let text = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    text.lines()
        .map(|line| {
            let mut fields = line.splitn(4, ' ');
            let stamp = fields.next().unwrap();
            assert!(stamp.len() == 30 && stamp.ends_with('Z'), "{line:?}");
            let mut next = || fields.next().unwrap_or_default().to_owned();
            (next(), next(), next())
        })
        .collect()
}

/// The contents of one stream.
pub fn lines(log: &Path, stream: &str) -> Vec<String> {
    let of_stream = entries(log).into_iter().filter(|(of, ..)| of == stream);
    of_stream.map(|(_, _, content)| content).collect()
}

pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The state letter of a process, or None when it is gone.
pub fn state_of(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

pub fn alive(pid: i32) -> bool {
    state_of(pid).is_some_and(|state| state != 'Z')
}
