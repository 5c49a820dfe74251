//! One node for a test: an engine on a scratch directory with a busybox image, in namespaces of its own.
#![allow(dead_code, clippy::unwrap_used)]

mod image;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_engine::{Config, Engine, ExecOutput, ExecRequest};
use holdfast_images::Images;
use holdfast_model::{
    ContainerMetadata, ContainerRecord, ContainerSpec, ContainerState, ImageSpec, NamespaceMode,
    SandboxMetadata, SandboxSpec,
};
use holdfast_network::Network;
use holdfast_testkit::{Leaks, NetNamespace, Reaper, Scope, Scratch, isolate_mounts};

/// Longest that anything here may take, in an emulated machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const IMAGE: &str = "localhost/busybox:latest";

pub struct Node {
    pub cgroup: String,
    /// The daemon's: it dies with it.
    runtime: Option<tokio::runtime::Runtime>,
    /// The images': they stay open.
    steady: tokio::runtime::Runtime,
    engine: Option<Engine>,
    images: Option<Images>,
    leaks: Option<Leaks>,
    unclaimed_after: Duration,
    bridge: String,
    /// Where the daemon finds its helpers from its next start on.
    pub helpers: PathBuf,
    // Last, for they are dropped in this order: nothing may be at work in the directories any more.
    pub scratch: Scratch,
    /// As short as an operator's would be; on a disk, for ids cannot be mapped on tmpfs before Linux 6.3.
    state: tempfile::TempDir,
    _reaper: Reaper,
}

fn helpers() -> PathBuf {
    let dir = std::env::var_os("HOLDFAST_HELPERS")
        .expect("HOLDFAST_HELPERS must name the directory of holdfast-monitor and holdfast-pause (`make test` sets it)");
    PathBuf::from(dir)
}

impl Node {
    pub fn new(name: &str) -> Self {
        Self::with(name, Duration::from_secs(300))
    }

    pub fn with(name: &str, unclaimed_after: Duration) -> Self {
        Self::make(name, unclaimed_after, |_| {})
    }

    /// A node whose root directory is prepared: a file system is mounted on it.
    pub fn on(name: &str, prepare: impl FnOnce(&Path)) -> Self {
        Self::make(name, Duration::from_secs(300), prepare)
    }

    fn make(name: &str, unclaimed_after: Duration, prepare: impl FnOnce(&Path)) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_test_writer()
            .with_max_level(tracing::Level::DEBUG)
            .try_init();
        isolate_mounts();
        NetNamespace::new().enter();
        let scratch = Scratch::new(name);
        let state = tempfile::Builder::new()
            .prefix("hf")
            .tempdir_in("/var/tmp")
            .unwrap();
        for dir in ["root", "logs"] {
            std::fs::create_dir_all(scratch.path().join(dir)).unwrap();
        }
        prepare(&scratch.path().join("root"));
        let cgroup = format!("/holdfast-test-{name}-{}", std::process::id());
        let reaper = Reaper::of_cgroup(&cgroup);
        let bridge = format!("hft{}", std::process::id() % 100_000);
        let mut node = Self {
            scratch,
            state,
            cgroup,
            runtime: None,
            steady: runtime(),
            engine: None,
            images: None,
            leaks: None,
            unclaimed_after,
            bridge,
            helpers: helpers(),
            _reaper: reaper,
        };
        node.open();
        node.load_image();
        let hierarchy = holdfast_cgroups::Hierarchy::detect().unwrap();
        for below in ["pods", "monitors"] {
            hierarchy.create(&format!("{}/{below}", node.cgroup)).unwrap();
        }
        // Parents of cgroups, the bridge and its rules stay once made; they are the node's, not a pod's.
        node.leaks = Some(Leaks::snapshot(&node.scope()));
        node
    }

    fn scope(&self) -> Scope {
        Scope::new(self.scratch.path().join("root"), self.state())
            .cgroup(&format!("{}/pods", self.cgroup))
            .cgroup(&format!("{}/monitors", self.cgroup))
            .bridge(&self.bridge)
            // No external plugins here: those files are another test's.
            .netns_prefix("none-of-ours")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// The monitor that waits for the next pod, as soon as there is one.
    pub fn spare(&self) -> i32 {
        let used: Vec<i32> = self
            .engine()
            .sandboxes()
            .iter()
            .filter_map(|pod| pod.monitor_pid)
            .collect();
        wait("a spare monitor", || {
            monitors().into_iter().find(|pid| !used.contains(pid))
        })
    }

    /// What a daemon does at its start.
    pub fn open(&mut self) {
        let (root, state) = (self.path("root"), self.state().to_path_buf());
        let _inside = self.steady.enter();
        let images = self.images.clone().unwrap_or_else(|| {
            let registry = holdfast_registry::Client::new(holdfast_registry::Config::default());
            Images::open(&root, holdfast_images::Config::default(), Arc::new(registry)).unwrap()
        });
        self.images = Some(images.clone());
        let mut network = holdfast_network::Config::new(&root, &state);
        network.cni_conf_dir = self.path("no-cni");
        network.bridge.name = self.bridge.clone();
        let _inside = self.runtime.get_or_insert_with(runtime).enter();
        let network = Network::open(network).unwrap();
        let mut config = Config::new(&root, &state, self.helpers.clone());
        config.default_cgroup = format!("{}/pods", self.cgroup);
        config.monitor_cgroup = format!("{}/monitors", self.cgroup);
        config.unclaimed_after = self.unclaimed_after;
        config.cdi_dirs = vec![self.path("cdi"), self.path("run/cdi")];
        self.engine = Some(self.block_on(Engine::open(config, images, network)).unwrap());
    }

    /// As `kill -9` leaves things: everything stops where it is, nobody tidies up, nobody says good-bye. (Images stay
    /// open: one process, one lock.)
    pub fn crash(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Writes to the disk cannot be broken off.
            runtime.shutdown_timeout(PATIENCE);
        }
        drop(self.engine.take());
    }

    /// The images are opened again too, as by another process.
    pub fn restart(&mut self) {
        self.crash();
        drop(self.images.take());
        self.open();
    }

    fn load_image(&self) {
        self.load(IMAGE, &[], &[]);
    }

    /// Busybox with layers above it and declared volumes, under a name of its own.
    pub fn load(&self, name: &str, above: &[fn(&Path)], volumes: &[&str]) {
        let layout = self.path("image");
        image::layout(&layout, name, above, volumes);
        let images = self.images.as_ref().unwrap();
        self.steady.block_on(images.load_archive(&layout, None)).unwrap();
        std::fs::remove_dir_all(&layout).unwrap();
    }

    pub fn images(&self) -> &Images {
        self.images.as_ref().unwrap()
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime().block_on(work)
    }

    fn runtime(&self) -> &tokio::runtime::Runtime {
        self.runtime.as_ref().expect("the daemon is open")
    }

    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime().spawn(work)
    }

    pub fn host_pod(&self, name: &str) -> SandboxSpec {
        let mut spec = self.pod(name);
        spec.security.namespaces.network = NamespaceMode::Node;
        spec
    }

    pub fn pod(&self, name: &str) -> SandboxSpec {
        SandboxSpec {
            metadata: SandboxMetadata {
                name: name.into(),
                namespace: "test".into(),
                uid: format!("uid-{name}"),
                attempt: 0,
            },
            log_directory: self.path("logs").join(name).to_string_lossy().into_owned(),
            ..SandboxSpec::default()
        }
    }

    /// A container that runs a shell script.
    pub fn script(&self, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            metadata: ContainerMetadata {
                name: name.into(),
                attempt: 0,
            },
            image: ImageSpec {
                image: IMAGE.into(),
                ..ImageSpec::default()
            },
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            log_path: format!("{name}.log"),
            ..ContainerSpec::default()
        }
    }

    pub fn run_pod(&self, spec: SandboxSpec) -> String {
        self.block_on(self.engine().run_pod_sandbox(spec, ""))
            .unwrap_or_else(|e| panic!("{}", e.chain()))
            .to_string()
    }

    pub fn create(&self, pod: &str, spec: ContainerSpec) -> String {
        let created = self.block_on(self.engine().create_container(pod, spec));
        created.unwrap_or_else(|e| panic!("{}", e.chain())).to_string()
    }

    pub fn start(&self, container: &str) {
        let started = self.block_on(self.engine().start_container(container));
        started.unwrap_or_else(|e| panic!("{}", e.chain()));
    }

    pub fn run(&self, pod: &str, spec: ContainerSpec) -> String {
        let id = self.create(pod, spec);
        self.start(&id);
        id
    }

    pub fn exec(&self, container: &str, command: &[&str]) -> ExecOutput {
        let request = ExecRequest {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: Some(PATIENCE),
        };
        let done = self.block_on(self.engine().exec_sync(container, request));
        done.unwrap_or_else(|e| panic!("{}", e.chain()))
    }

    pub fn sh(&self, container: &str, script: &str) -> String {
        let done = self.exec(container, &["/bin/sh", "-c", script]);
        assert_eq!(
            done.exit_code,
            0,
            "{script}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        String::from_utf8(done.stdout).unwrap()
    }

    pub fn status(&self, container: &str) -> Arc<ContainerRecord> {
        self.engine().container(container).unwrap()
    }

    pub fn wait_exit(&self, container: &str) -> Arc<ContainerRecord> {
        wait("the container to exit", || {
            Some(self.status(container)).filter(|record| record.state == ContainerState::Exited)
        })
    }

    /// Contents of the log without time stamps: `stdout F text`.
    pub fn log(&self, container: &str) -> String {
        let path = self.status(container).log_path.clone();
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        text.lines()
            .map(|line| format!("{}\n", line.split_once(' ').unwrap().1))
            .collect()
    }

    pub fn stop_pod(&self, pod: &str) {
        self.block_on(self.engine().stop_pod_sandbox(pod))
            .unwrap_or_else(|e| panic!("{}", e.chain()));
    }

    pub fn remove_pod(&self, pod: &str) {
        self.block_on(self.engine().remove_pod_sandbox(pod))
            .unwrap_or_else(|e| panic!("{}", e.chain()));
    }

    /// Nothing is left of any pod.
    pub fn assert_clean(&mut self) {
        assert!(self.engine().sandboxes().is_empty(), "pods are left");
        assert!(self.engine().containers().is_empty(), "containers are left");
        // The mount below which bundles lie is the node's, too; it is made with the first container that has hooks.
        let bundles = self.state().join("bundles");
        if let Ok(mut left) = std::fs::read_dir(&bundles) {
            assert!(left.next().is_none(), "bundles are left");
            rustix::mount::unmount(&bundles, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
        self.leaks.as_ref().unwrap().assert_clean(PATIENCE);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // After a failed test too: pods are ended, then the cgroup goes.
        if let Some(engine) = self.engine.take() {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.block_on(async {
                    for pod in engine.sandboxes() {
                        let _ = engine.remove_pod_sandbox(pod.id.as_str()).await;
                    }
                });
            }));
        }
        // Where a container with hooks was made.
        let _none =
            rustix::mount::unmount(self.state().join("bundles"), rustix::mount::UnmountFlags::empty());
        if let Ok(hierarchy) = holdfast_cgroups::Hierarchy::detect() {
            for below in ["/pods", "/monitors", ""] {
                let _ = hierarchy.remove_if_empty(&format!("{}{below}", self.cgroup));
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

/// Asks until there is an answer.
/// Monitors among the children of this process, which is the daemon here.
fn monitors() -> Vec<i32> {
    let me = std::process::id().to_string();
    let of = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let (state, parent) = (fields.next()?, fields.next()?);
        // A name ends at 15 bytes.
        (name == "holdfast-monito" && state != "Z" && parent == me).then(|| pid.parse().unwrap())
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| of(entry.file_name().to_str()?))
        .collect()
}

pub fn wait<T>(what: &str, check: impl FnMut() -> Option<T>) -> T {
    holdfast_testkit::wait_for(PATIENCE, what, check)
}

pub fn alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
        && !std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .unwrap_or_default()
            .contains(") Z ")
}

pub fn kill9(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

pub fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    println!("{what}: {:?}", start.elapsed());
    done
}
