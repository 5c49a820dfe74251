//! The floor's cgroups: a directory in every hierarchy, joined in the cheapest way that each version has.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::fs::Mode;

/// The mounted hierarchies, and a directory of ours in each.
pub struct Hierarchies {
    v1: Vec<V1>,
    /// The unified one, which on a hybrid machine has no controllers.
    v2: Option<PathBuf>,
    /// Where the hierarchies are mounted, to be shown to a container.
    pub mounts: Vec<PathBuf>,
}

struct V1 {
    ours: PathBuf,
    controllers: Vec<String>,
}

/// One cgroup, in all of them.
pub struct Cgroup {
    dirs: Vec<PathBuf>,
    tasks: Vec<File>,
    v2: Option<File>,
}

impl Hierarchies {
    pub fn find() -> anyhow::Result<Self> {
        let name = format!("holdfast-bench-{}", rustix::process::getpid().as_raw_nonzero());
        let text = std::fs::read_to_string("/proc/self/mountinfo")?;
        let (mut v1, mut v2, mut mounts) = (Vec::new(), None, Vec::new());
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let point = PathBuf::from(left.split(' ').nth(4).unwrap_or_default());
            let mut right = right.split(' ');
            let kind = right.next().unwrap_or_default();
            let options = right.nth(1).unwrap_or_default();
            match kind {
                "cgroup" => v1.push(V1 {
                    ours: point.join(&name),
                    controllers: options.split(',').map(str::to_owned).collect(),
                }),
                "cgroup2" => v2 = Some(point.join(&name)),
                _ => continue,
            }
            mounts.push(point);
        }
        let found = Self { v1, v2, mounts };
        for hierarchy in &found.v1 {
            mkdir(&hierarchy.ours)?;
            hierarchy.prepare(&hierarchy.ours)?;
        }
        if let Some(ours) = &found.v2 {
            mkdir(ours)?;
        }
        Ok(found)
    }

    pub fn create(&self, name: &str) -> anyhow::Result<Cgroup> {
        let (mut dirs, mut tasks) = (Vec::new(), Vec::new());
        for hierarchy in &self.v1 {
            let dir = hierarchy.ours.join(name);
            mkdir(&dir)?;
            hierarchy.prepare(&dir)?;
            tasks.push(OpenOptions::new().write(true).open(dir.join("tasks"))?);
            dirs.push(dir);
        }
        let mut v2 = None;
        if let Some(ours) = &self.v2 {
            let dir = ours.join(name);
            mkdir(&dir)?;
            v2 = Some(File::open(&dir)?);
            dirs.push(dir);
        }
        Ok(Cgroup { dirs, tasks, v2 })
    }

    /// A leaf for an exec: in the unified hierarchy, where it can be killed as a whole.
    pub fn leaf(&self, name: &str) -> anyhow::Result<Option<(PathBuf, File)>> {
        let Some(ours) = &self.v2 else { return Ok(None) };
        let dir = ours.join(name);
        mkdir(&dir)?;
        let file = File::open(&dir)?;
        Ok(Some((dir, file)))
    }
}

impl Drop for Hierarchies {
    fn drop(&mut self) {
        for ours in self.v1.iter().map(|h| &h.ours).chain(&self.v2) {
            // What an error left below; of a cgroup only directories can be removed.
            for left in std::fs::read_dir(ours).into_iter().flatten().flatten() {
                let _ = rustix::fs::rmdir(left.path());
            }
            if let Err(error) = remove(ours) {
                eprintln!("floor: {error:#}");
            }
        }
    }
}

impl V1 {
    /// What a new directory of this hierarchy needs before a process can join, and the shares of a pod.
    fn prepare(&self, dir: &Path) -> anyhow::Result<()> {
        for controller in &self.controllers {
            match controller.as_str() {
                "cpuset" => {
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        let parent = dir.parent().context("a cgroup without a parent")?;
                        std::fs::write(dir.join(file), std::fs::read(parent.join(file))?)?;
                    }
                }
                "cpu" => std::fs::write(dir.join("cpu.shares"), "1024")?,
                "devices" => {
                    std::fs::write(dir.join("devices.deny"), "a")?;
                    for device in DEVICES {
                        std::fs::write(dir.join("devices.allow"), device)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What every container may use.
const DEVICES: &[&str] = &[
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

impl Cgroup {
    /// For clone3.
    pub fn v2(&self) -> Option<BorrowedFd<'_>> {
        self.v2.as_ref().map(|file| file.as_fd())
    }

    /// Moves the calling process, which has one thread, into the version 1 directories.
    pub fn join(&self) -> std::io::Result<()> {
        self.tasks.iter().try_for_each(|mut file| file.write_all(b"0"))
    }

    pub fn remove(&self) -> anyhow::Result<()> {
        self.dirs.iter().try_for_each(|dir| remove(dir))
    }
}

fn mkdir(dir: &Path) -> anyhow::Result<()> {
    rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)).with_context(|| format!("create {}", dir.display()))
}

/// A cgroup is busy for a moment after its last process was reaped.
pub fn remove(dir: &Path) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        match rustix::fs::rmdir(dir) {
            Err(rustix::io::Errno::BUSY) if begin.elapsed() < Duration::from_secs(2) => {
                std::thread::yield_now();
            }
            result => return result.with_context(|| format!("remove {}", dir.display())),
        }
    }
}
