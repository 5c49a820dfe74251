//! Init's way into its root: what only it can mount, what is covered, and the change of the root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holdfast_sys::mount::{ATTR_RDONLY, Attributes, Propagation, set_attributes};
use holdfast_sys::namespace;

use crate::container::Parts;
use crate::devices::Devices;
use crate::fault::{Context, Result};
use crate::hooks::let_hooks_run;
use crate::init::{become_root, ensure_working_directory, enter_root, pivot};
use crate::mounts::{Placing, Prepared, make_read_only, mask};
use crate::namespaces::{Choice, Choices, MOUNT};
use crate::place::{Root, attach};
use crate::procfs::Procfs;
use crate::{staging, sysctl};

/// What init needs for it.
pub(crate) struct Entering<'a> {
    pub parts: &'a Parts,
    pub choices: &'a Choices,
    pub later: &'a [Prepared],
    pub devices: &'a Devices,
    /// The staging tree and the container's root, in the builder's mount namespace.
    pub base: &'a OwnedFd,
    pub root: &'a OwnedFd,
    pub in_user_namespace: bool,
    /// The builder, which has the hooks of the creation run where there are any; the root is in a bundle then.
    pub hooks_by: Option<&'a OwnedFd>,
}

impl Entering<'_> {
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds: Vec<_> = self
            .later
            .iter()
            .filter_map(|p| p.mount.as_ref())
            .map(AsFd::as_fd)
            .collect();
        if let Choice::Join(fd) = &self.choices.cgroup {
            fds.push(fd.as_fd());
        }
        fds.extend([self.base.as_fd(), self.root.as_fd()]);
        fds
    }

    pub fn enter(&self) -> Result<()> {
        self.choices.enter_cgroup()?;
        if let Some(builder) = self.hooks_by {
            self.fill(self.base.as_fd(), self.root.as_fd(), Some(builder))?;
            // Of what is here the root is not the oldest mount: in a clone it is, and mountinfo is sorted by age.
            let root = staging::clone_tree(self.root.as_fd(), true).at(|| "clone the root")?;
            // What is taken off with the old root must not be taken off for the peers of a volume that lies on it: only the
            // clone stays among them.
            let attributes = Attributes {
                propagation: Propagation::Private,
                recursive: true,
                ..Attributes::default()
            };
            set_attributes(self.root.as_fd(), attributes).at(|| "make the old root private")?;
            attach(root.as_fd(), self.root.as_fd()).at(|| "attach the clone of the root")?;
            // What is below is a copy of the host's tree: it goes.
            pivot(root.as_fd())?;
            return self.share(root.as_fd());
        }
        if !self.in_user_namespace {
            self.fill(self.base.as_fd(), self.root.as_fd(), None)?;
            enter_root(self.root.as_fd())?;
            return self.share(self.root.as_fd());
        }
        become_root()?;
        // A copy that belongs to the user namespace: its mounts are locked to what the host has made of them.
        namespace::unshare(MOUNT).at(|| "make the user namespace's mount namespace")?;
        let base = staging::root()?;
        let locked = staging::open(base.as_fd(), staging::ROOT)?;
        // A locked mount cannot become the root: its clone can.
        let root = staging::clone_tree(locked.as_fd(), true).at(|| "clone the root")?;
        attach(root.as_fd(), locked.as_fd()).at(|| "attach the clone of the root")?;
        self.fill(base.as_fd(), root.as_fd(), None)?;
        pivot(root.as_fd())?;
        self.share(root.as_fd())
    }

    /// What is left to be done in the root; `hooks_by` has hooks run when everything is mounted.
    fn fill(&self, base: BorrowedFd<'_>, root: BorrowedFd<'_>, hooks_by: Option<&OwnedFd>) -> Result<()> {
        let placing = Placing {
            root: Root {
                fd: root,
                owner: (0, 0),
            },
            devices: self.devices,
        };
        for prepared in self.later {
            placing.place_one(prepared)?;
        }
        if let Some(builder) = hooks_by {
            let_hooks_run(builder)?;
        }
        if let Some(sysctls) = self.parts.linux.sysctl().as_ref().filter(|s| !s.is_empty()) {
            sysctl::apply(sysctls, self.own_namespaces(), &Procfs::new_instance()?)?;
        }
        let linux = &self.parts.linux;
        let masked = linux.masked_paths().as_deref().unwrap_or_default();
        if !masked.is_empty() {
            let empty = staging::open(base, staging::EMPTY)?;
            let null = staging::open(base, staging::NULL)?;
            mask(placing.root, masked, empty.as_fd(), null.as_fd())?;
        }
        make_read_only(
            placing.root,
            linux.readonly_paths().as_deref().unwrap_or_default(),
        )?;
        self.finish_root(placing.root)
    }

    /// Once it is the root: pivot_root(2) takes no shared mount as the new one.
    fn share(&self, root: BorrowedFd<'_>) -> Result<()> {
        match self.parts.linux.rootfs_propagation().as_deref() {
            Some("shared" | "rshared") => {
                let attributes = Attributes {
                    propagation: Propagation::Shared,
                    ..Attributes::default()
                };
                set_attributes(root, attributes).at(|| "set the propagation of the root")
            }
            _ => Ok(()),
        }
    }

    /// What the root lacks is made before it becomes read-only.
    fn finish_root(&self, root: Root<'_>) -> Result<()> {
        match ensure_working_directory(root, self.parts.process.cwd()) {
            // It is there, or is not to be made by root: its user is the one to try.
            Err(denied) if denied.errno == libc::EACCES => {}
            other => drop(other?),
        }
        let attributes = Attributes {
            set: if self.parts.read_only { ATTR_RDONLY } else { 0 },
            ..Attributes::default()
        };
        set_attributes(root.fd, attributes).at(|| "set the flags of the root")
    }

    fn own_namespaces(&self) -> u64 {
        use holdfast_sys::clone::{NEWIPC, NEWNET, NEWUTS};
        let list = [
            (&self.choices.net, NEWNET),
            (&self.choices.ipc, NEWIPC),
            (&self.choices.uts, NEWUTS),
        ];
        list.iter()
            .filter(|(choice, _)| !matches!(choice, Choice::Host))
            .fold(0, |all, (_, flag)| all | flag)
    }
}
