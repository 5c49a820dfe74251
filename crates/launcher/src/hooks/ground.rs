//! Where a container with hooks is built: in a copy of the host's mount namespace, as hooks expect, not in one of pause's
//! tiny tree.
//!
//! ```text
//!  host ──copy with its peer groups──> the runtime's: the overlay at <bundle>/rootfs; kept until the container is deleted
//!                                          └──private copy──> the container's: all its mounts; the old root goes after
//!                                                             the hooks
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use holdfast_sys::clone::Child;
use holdfast_sys::mount::{Attributes, Propagation, set_attributes};
use holdfast_sys::{namespace, scm};
use rustix::fs::{Mode, OFlags};
use serde_json::Value;

use super::runner::{Order, Runner};
use super::{Hooks, Point};
use crate::bundle::{self, ROOT};
use crate::channel::{Word, listen_mounted, say, wait_for_release};
use crate::error::Kind;
use crate::external::spec::outline;
use crate::fault::{Context, Fault, Result};
use crate::namespaces::MOUNT;
use crate::plan::{ContainerPlan, Stdio};
use crate::procfs::Procfs;
use crate::staging;

/// The file that is there until the poststop hooks are run.
pub(super) const POSTSTOP: &str = "poststop";

#[derive(Debug)]
pub(crate) struct Ground<'a> {
    hooks: &'a Hooks,
    /// The runtime's mount namespace.
    mounts: OwnedFd,
    /// Attached nowhere yet.
    staging: OwnedFd,
    pause: BorrowedFd<'a>,
    runner: Runner,
}

impl<'a> Ground<'a> {
    /// Makes the bundle with `root` in it, and forks the process that runs hooks. `host` is the host's mount namespace;
    /// the caller is in the runtime's afterwards, and still in all other namespaces of the host.
    pub fn lay(
        hooks: &'a Hooks,
        plan: &'a ContainerPlan<'_>,
        (host, root): (BorrowedFd<'_>, BorrowedFd<'_>),
    ) -> Result<Self> {
        let pause = plan
            .namespaces
            .mnt
            .as_ref()
            .ok_or_else(|| Fault::invalid("the pod's mount namespace is not open"))?
            .as_fd();
        // The session is how what hangs is found if this process is killed. It fails only where we lead one already.
        let _led = rustix::process::setsid();
        namespace::join(pause, MOUNT).at(|| "join the pod's mount namespace")?;
        let staging = staging::root()
            .and_then(|tree| staging::clone_tree(tree.as_fd(), false).at(|| "clone the staging tree"));
        // From here, and from where an overlay of many layers was made.
        namespace::join(host, MOUNT).at(|| "go back to the host's mount namespace")?;
        let staging = staging?;
        bundle::make(&hooks.bundle)?;
        let mounts = bundle::enter_copy(&hooks.bundle, Procfs::shared()?)?;
        bundle::place(&hooks.bundle, ROOT, root)?;
        bundle::write(&hooks.bundle, &config(plan, &hooks.bundle)?)?;
        if hooks.has(Point::Poststop) {
            bundle::write_file(&hooks.bundle.join(POSTSTOP), &Value::Null)?;
        }
        Ok(Self {
            hooks,
            mounts,
            staging,
            pause,
            runner: Runner::fork(hooks)?,
        })
    }

    /// Makes the container's mount namespace, of which nothing shows in any other. Gives back the staging tree and the
    /// container's root in it.
    pub fn enter(&self) -> Result<(OwnedFd, OwnedFd)> {
        namespace::unshare(MOUNT).at(|| "make a mount namespace")?;
        let top = staging::root()?;
        let attributes = Attributes {
            propagation: Propagation::Private,
            recursive: true,
            ..Attributes::default()
        };
        set_attributes(top.as_fd(), attributes).at(|| "make the copied mounts private")?;
        bundle::place(&self.hooks.bundle, bundle::STAGING, self.staging.as_fd())?;
        Ok((self.open(bundle::STAGING)?, self.open(ROOT)?))
    }

    fn open(&self, name: &str) -> Result<OwnedFd> {
        let path = self.hooks.bundle.join(name);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty()).at(|| format!("open {}", path.display()))
    }

    /// The pod's own /dev/shm, as a mount that is attached nowhere.
    pub fn pod_shm(&self) -> Result<OwnedFd> {
        let here = Procfs::shared()?
            .namespace(0, "mnt")
            .at(|| "open the container's mount namespace")?;
        bundle::pod_shm(self.pause, here.as_fd())
    }

    /// Has the hooks of the creation run while init waits for them, and lets it go on.
    pub fn run_hooks(&self, init: &Child, socket: BorrowedFd<'_>) -> Result<()> {
        // Init will change the root of every process that has the old one.
        namespace::join(self.mounts.as_fd(), MOUNT).at(|| "leave the container's mount namespace")?;
        let process = init.pidfd.as_fd();
        let inside = listen_mounted(socket, process, "the container's init")?;
        self.runner.order(Order::Runtime { pid: init.pid }, process)?;
        self.runner.order(Order::Container { pid: inside }, process)?;
        scm::send(socket, b"G", &[]).at(|| "tell init that hooks have been run")
    }

    /// What hooks that are run later want to see.
    pub fn into_mounts(self) -> OwnedFd {
        self.mounts
    }
}

/// In init: everything is mounted, nothing is covered or read-only yet, and the host's tree is still there.
pub(crate) fn let_hooks_run(builder: &OwnedFd) -> Result<()> {
    let word = Word::Mounted {
        pid: super::run::own_pid(),
    };
    say(builder.as_fd(), &word, &[]).at(|| "report to the builder")?;
    match wait_for_release(builder) {
        true => Ok(()),
        false => Err(Fault::new(Kind::Internal, "the builder is gone")),
    }
}

/// The container as others find it: what hooks read at `<bundle>/config.json`.
fn config(plan: &ContainerPlan<'_>, bundle: &Path) -> Result<Value> {
    let tty = matches!(plan.stdio, Stdio::Terminal);
    let mut spec = outline(plan, bundle, tty)?;
    let shm = match plan.namespaces.ipc {
        Some(_) => format!("/proc/{}/root/{}", plan.pause_pid, staging::SHM),
        None => "/dev/shm".to_owned(),
    };
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        if mount["source"] == "pod:shm" {
            mount["source"] = shm.clone().into();
        }
    }
    Ok(spec)
}
