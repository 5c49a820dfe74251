//! A server in namespaces of its own, and the commands that talk to it.
//!
//! Needs root, the helpers (`HOLDFAST_HELPERS`) and busybox-static.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Node {
    pub dir: tempfile::TempDir,
    _reaper: holdfast_testkit::Reaper,
}

impl Node {
    /// The namespaces are this thread's, and so of all that it starts.
    pub fn new() -> Self {
        let helpers =
            std::env::var_os("HOLDFAST_HELPERS").expect("HOLDFAST_HELPERS names the helpers' directory");
        let cgroup = format!("/holdfast-test-serve-{}", std::process::id());
        let reaper = holdfast_testkit::Reaper::of_cgroup(&cgroup);
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        let (none, private) = (
            None::<&str>,
            nix::mount::MsFlags::MS_SLAVE | nix::mount::MsFlags::MS_REC,
        );
        nix::mount::mount(none, "/", none, private, none).unwrap();
        // As on every node: exec and its kin are served on loopback.
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(up.success());
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let text = format!(
            "root = \"{0}/root\"\nstate = \"{0}/state\"\nhelpers = \"{1}\"\n[network]\ncni_conf_dir = \"{0}/cni\"\n\
             [pods]\ncgroup = \"{cgroup}/pods\"\nmonitor_cgroup = \"{cgroup}/monitors\"\n",
            dir.path().display(),
            PathBuf::from(&helpers).display()
        );
        std::fs::write(dir.path().join("config.toml"), text).unwrap();
        Self { dir, _reaper: reaper }
    }

    /// Has the server use copies of the helpers, which the test may replace.
    pub fn own_helpers(&self) -> PathBuf {
        let (given, own) = (
            PathBuf::from(std::env::var_os("HOLDFAST_HELPERS").unwrap()),
            self.path("helpers"),
        );
        std::fs::create_dir(&own).unwrap();
        for name in ["holdfast-monitor", "holdfast-pause"] {
            std::fs::copy(given.join(name), own.join(name)).unwrap();
        }
        let config = self.path("config.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let changed = text.replace(
            &format!("\"{}\"", given.display()),
            &format!("\"{}\"", own.display()),
        );
        assert_ne!(text, changed);
        std::fs::write(&config, changed).unwrap();
        own
    }

    /// An archive of a small image with this name.
    pub fn archive(&self, name: &str) -> PathBuf {
        let archive = self.path("busybox.tar");
        let builder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../hack/busybox-image");
        let built = Command::new(builder).arg(&archive).arg(name).output().unwrap();
        assert!(built.status.success(), "{}", said(&built));
        archive
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("state/holdfast.sock")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command
            .args(args)
            .env("CONTAINER_RUNTIME_ENDPOINT", self.socket());
        command
    }

    pub fn serve(&self) -> Daemon<'_> {
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.path("log"))
            .unwrap();
        let config = self.path("config.toml");
        let child = self
            .command(&["serve", "--config", config.to_str().unwrap()])
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Daemon { node: self, child };
        self.until("the server answers", || {
            self.command(&["version"]).output().unwrap().status.success()
        });
        daemon
    }

    pub fn run(&self, args: &[&str]) -> String {
        let out = self.command(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}\n{}", said(&out), self.log());
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(
                start.elapsed() < PATIENCE,
                "waited in vain: {what}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Killed when dropped, so that a failed test leaves no server behind.
pub struct Daemon<'a> {
    pub node: &'a Node,
    pub child: Child,
}

impl Daemon<'_> {
    pub fn signal(mut self, signal: Signal) -> std::process::ExitStatus {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            let _ = self.node.command(&["rm", "--force", "--all"]).output();
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

pub fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}
