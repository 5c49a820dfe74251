//! The floor's processes: a sandbox that holds namespaces, a container in them, an exec in that.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, bail};
use holdfast_sys::clone::{self, Child, Clone3};
use holdfast_sys::{mount, namespace, net, pidfd, process};
use rustix::fs::{CWD, FileType, Mode, makedev};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount};
use rustix::pipe::{PipeFlags, pipe_with};

use super::Node;
use super::cgroup::{self, Cgroup};
use super::files::{Place, program};

/// Ends a process with SIGKILL.
const KILL: i32 = 9;

pub struct Sandbox {
    child: Child,
    cgroup: Cgroup,
    /// The pod's network namespace, or the node's.
    pub network: OwnedFd,
    own_network: bool,
    ended: bool,
}

impl Sandbox {
    pub fn new(node: &Node, number: u32, own_network: bool) -> anyhow::Result<Self> {
        let cgroup = node.cgroups.create(&format!("pod-{number}"))?;
        let (read, write) = pipe()?;
        let sleep = program(&["sleep", "100000"])?;
        let mut namespaces = clone::NEWNS | clone::NEWUTS | clone::NEWIPC | clone::NEWPID;
        if own_network {
            namespaces |= clone::NEWNET;
        }
        let clone = Clone3 {
            namespaces,
            sibling: false,
            cgroup: cgroup.v2(),
        };
        let child = clone.spawn(|| {
            let _ = (&read, &write);
            let ready = || -> anyhow::Result<()> {
                cgroup.join()?;
                rustix::system::sethostname(b"floor")?;
                if own_network {
                    net::loopback_up()?;
                }
                empty_root()
            };
            failed(ready().map(|()| sleep.exec_fd(node.files.busybox.as_fd()).into()))
        })?;
        drop(write);
        until_closed(read).context("the sandbox's process")?;
        let network = File::open(format!("/proc/{}/ns/net", child.pid))?.into();
        Ok(Self {
            child,
            cgroup,
            network,
            own_network,
            ended: false,
        })
    }

    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    pub fn end(mut self) -> anyhow::Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        kill(&self.child.pidfd)?;
        self.cgroup.remove()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Only after an error, which is reported already.
        let _ = self.finish();
    }
}

/// A tmpfs with nothing but /dev/shm as the root of the calling process.
fn empty_root() -> anyhow::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("tmpfs", "/tmp", "tmpfs", flags, c"size=64k")?;
    rustix::process::chdir("/tmp")?;
    rustix::fs::mkdir("shm", Mode::from_raw_mode(0o1777))?;
    mount("shm", "shm", "tmpfs", flags, c"size=67108864")?;
    mount_remount(".", flags | MountFlags::RDONLY | MountFlags::BIND, c"")?;
    mount::pivot_here()?;
    mount::detach_here()?;
    Ok(())
}

pub struct Container {
    pid: i32,
    init: OwnedFd,
    cgroup: Cgroup,
    place: Place,
    /// Written to let it go; then `running` is closed by its execve.
    barrier: Option<File>,
    running: Option<File>,
    /// The read ends that a runtime would copy from.
    _output: [File; 2],
    ended: bool,
}

impl Container {
    pub fn create(node: &Node, number: u32, sandbox: &Sandbox) -> anyhow::Result<Self> {
        let cgroup = node.cgroups.create(&format!("container-{number}"))?;
        let place = node.files.place(number)?;
        let (barrier, release) = pipe()?;
        let (running, ready) = pipe()?;
        let (mut reported, report) = pipe()?;
        let (stdout, out) = pipe()?;
        let (stderr, err) = pipe()?;
        let sleep = program(&["sleep", "100000"])?;
        let init = Init {
            barrier,
            report,
            ready,
            output: [out, err],
        };
        let builder = clone::fork(|| match build(node, sandbox, &cgroup, &place, &init, &sleep) {
            Ok(()) => 0,
            Err(error) => failed(Err(error)),
        })?;
        drop(init);
        let mut pid = [0; 4];
        let mut running = running;
        reported.read_exact(&mut pid).context("the container's builder")?;
        let pid = i32::from_ne_bytes(pid);
        let init = pidfd::open(pid)?;
        pidfd::reap(builder.pidfd.as_fd())?;
        // A byte says that it stands at the barrier.
        running.read_exact(&mut [0]).context("the container's init")?;
        Ok(Self {
            pid,
            init,
            cgroup,
            place,
            barrier: Some(release),
            running: Some(running),
            _output: [stdout, stderr],
            ended: false,
        })
    }

    pub fn start(&mut self) -> anyhow::Result<()> {
        let mut barrier = self.barrier.take().context("started before")?;
        barrier.write_all(b"!")?;
        until_closed(self.running.take().context("started before")?)?;
        match pidfd::try_reap(self.init.as_fd())? {
            Some(ended) => bail!("the container ended with {ended:?}"),
            None => Ok(()),
        }
    }

    /// `true` in the container's namespaces, until it is gone and its output read.
    pub fn exec(&self, node: &Node) -> anyhow::Result<()> {
        let (mut stdout, out) = pipe()?;
        let (mut stderr, err) = pipe()?;
        let (mut report, to_parent) = pipe()?;
        let leaf = node.cgroups.leaf(&format!("exec-{}", self.pid))?;
        let program = program(&["true"])?;
        let helper = clone::fork(|| {
            let enter = || -> anyhow::Result<()> {
                let kinds = clone::NEWNS | clone::NEWUTS | clone::NEWIPC | clone::NEWPID | clone::NEWCGROUP;
                namespace::join_process(self.init.as_fd(), kinds)?;
                let clone = Clone3 {
                    namespaces: 0,
                    sibling: true,
                    cgroup: leaf.as_ref().map(|(_, file)| file.as_fd()),
                };
                let child = clone.spawn(|| {
                    let become_it = || -> anyhow::Result<()> {
                        self.cgroup.join()?;
                        process::set_stdio(out.as_fd(), 1)?;
                        process::set_stdio(err.as_fd(), 2)?;
                        Ok(())
                    };
                    failed(become_it().map(|()| program.exec(c"/bin/busybox").into()))
                })?;
                (&to_parent).write_all(&child.pid.to_ne_bytes())?;
                Ok(())
            };
            match enter() {
                Ok(()) => 0,
                Err(error) => failed(Err(error)),
            }
        })?;
        drop((out, err, to_parent));
        let mut pid = [0; 4];
        report.read_exact(&mut pid).context("the helper of an exec")?;
        pidfd::reap(helper.pidfd.as_fd())?;
        let process = pidfd::open(i32::from_ne_bytes(pid))?;
        let mut text = Vec::new();
        stdout.read_to_end(&mut text)?;
        stderr.read_to_end(&mut text)?;
        let ended = pidfd::reap(process.as_fd())?;
        if let Some((dir, _)) = leaf {
            cgroup::remove(&dir)?;
        }
        if ended != pidfd::Ended::Exited(0) {
            bail!("true ended with {ended:?}: {}", String::from_utf8_lossy(&text));
        }
        Ok(())
    }

    pub fn end(mut self) -> anyhow::Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        kill(&self.init)?;
        self.cgroup.remove()?;
        self.place.remove()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Only after an error, which is reported already.
        let _ = self.finish();
    }
}

/// What the container's first process is given.
struct Init {
    barrier: File,
    /// Where the builder says its pid.
    report: File,
    ready: File,
    output: [File; 2],
}

/// In a process of its own: the mount namespace, then the container's first process as a child of the parent.
fn build(
    node: &Node,
    sandbox: &Sandbox,
    cgroup: &Cgroup,
    place: &Place,
    init: &Init,
    sleep: &holdfast_sys::exec::Image,
) -> anyhow::Result<()> {
    let mut kinds = clone::NEWIPC | clone::NEWUTS;
    if sandbox.own_network {
        kinds |= clone::NEWNET;
    }
    namespace::join_process(sandbox.child.pidfd.as_fd(), kinds)?;
    namespace::unshare(clone::NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount(
        "overlay",
        &place.root,
        "overlay",
        MountFlags::empty(),
        place.overlay.as_c_str(),
    )?;
    rustix::process::chdir(&place.root)?;
    mounts(node).context("mounts")?;
    let clone = Clone3 {
        namespaces: clone::NEWPID,
        sibling: true,
        cgroup: cgroup.v2(),
    };
    let child = clone.spawn(|| failed(init.run(cgroup).map(|()| sleep.exec(c"/bin/busybox").into())))?;
    (&init.report).write_all(&child.pid.to_ne_bytes())?;
    Ok(())
}

impl Init {
    fn run(&self, cgroup: &Cgroup) -> anyhow::Result<()> {
        cgroup.join()?;
        namespace::unshare(clone::NEWCGROUP)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", "proc", "proc", flags, None)?;
        masks().context("masks")?;
        mount::pivot_here()?;
        mount::detach_here()?;
        process::set_stdio(self.output[0].as_fd(), 1)?;
        process::set_stdio(self.output[1].as_fd(), 2)?;
        (&self.ready).write_all(b"!")?;
        (&self.barrier).read_exact(&mut [0])?;
        Ok(())
    }
}

/// All but /proc, relative to the working directory.
fn mounts(node: &Node) -> anyhow::Result<()> {
    let none = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount(
        "tmpfs",
        "dev",
        "tmpfs",
        MountFlags::NOSUID,
        c"mode=755,size=65536k",
    )?;
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ] {
        let path = Path::new("dev").join(name);
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, mode, makedev(major, minor))?;
    }
    for (to, name) in [
        ("/proc/self/fd", "dev/fd"),
        ("/proc/self/fd/0", "dev/stdin"),
        ("/proc/self/fd/1", "dev/stdout"),
        ("/proc/self/fd/2", "dev/stderr"),
        ("pts/ptmx", "dev/ptmx"),
    ] {
        rustix::fs::symlink(to, name)?;
    }
    for name in ["dev/pts", "dev/shm", "dev/mqueue"] {
        rustix::fs::mkdir(name, Mode::from_raw_mode(0o755))?;
    }
    mount(
        "devpts",
        "dev/pts",
        "devpts",
        none,
        c"newinstance,ptmxmode=0666,mode=620,gid=5",
    )?;
    mount(
        "shm",
        "dev/shm",
        "tmpfs",
        none | MountFlags::NODEV,
        c"size=67108864",
    )?;
    mount("mqueue", "dev/mqueue", "mqueue", none | MountFlags::NODEV, None)?;
    mount(
        "sysfs",
        "sys",
        "sysfs",
        none | MountFlags::NODEV | MountFlags::RDONLY,
        None,
    )?;
    if let [one] = node.cgroups.mounts.as_slice() {
        mount_bind(one, "sys/fs/cgroup")?;
    } else {
        mount(
            "tmpfs",
            "sys/fs/cgroup",
            "tmpfs",
            none | MountFlags::NODEV,
            c"mode=755",
        )?;
        for hierarchy in &node.cgroups.mounts {
            let name = hierarchy.file_name().context("a cgroup hierarchy at the root")?;
            let target = Path::new("sys/fs/cgroup").join(name);
            rustix::fs::mkdir(&target, Mode::from_raw_mode(0o755))?;
            mount_bind(hierarchy, &target)?;
        }
    }
    Ok(())
}

/// What of /proc is hidden or read-only by Kubernetes' defaults, where this kernel has it.
fn masks() -> anyhow::Result<()> {
    for dir in ["proc/acpi", "proc/scsi", "sys/firmware", "proc/asound"] {
        if Path::new(dir).exists() {
            mount("tmpfs", dir, "tmpfs", MountFlags::RDONLY, c"size=0")?;
        }
    }
    for file in ["proc/kcore", "proc/keys", "proc/timer_list", "proc/latency_stats"] {
        if Path::new(file).exists() {
            mount_bind("dev/null", file)?;
        }
    }
    for path in [
        "proc/bus",
        "proc/fs",
        "proc/irq",
        "proc/sys",
        "proc/sysrq-trigger",
    ] {
        if Path::new(path).exists() {
            mount_bind(path, path)?;
            let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            mount_remount(path, flags | MountFlags::NOEXEC, c"")?;
        }
    }
    Ok(())
}

fn kill(process: &OwnedFd) -> anyhow::Result<()> {
    pidfd::signal(process.as_fd(), KILL)?;
    pidfd::reap(process.as_fd())?;
    Ok(())
}

/// A child says why it could not become what it should, and leaves.
fn failed(why: anyhow::Result<anyhow::Error>) -> i32 {
    let (Ok(error) | Err(error)) = why;
    eprintln!("floor: {error:#}");
    1
}

fn pipe() -> anyhow::Result<(File, File)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((read.into(), write.into()))
}

/// Reads until every writer has closed, which an execve does.
fn until_closed(mut read: File) -> anyhow::Result<()> {
    let mut rest = Vec::new();
    read.read_to_end(&mut rest)?;
    Ok(())
}
