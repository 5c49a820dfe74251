//! Which namespaces a process joins and which are made for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holdfast_sys::clone::{NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWUSER, NEWUTS};
use holdfast_sys::{namespace, pidfd};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use crate::error::{Error, Kind};
use crate::fault::{Context, Fault, Result};
use crate::plan::PodNamespaces;
use crate::procfs::Procfs;

/// A namespace of a running process, opened such that a reused pid is noticed.
pub(crate) fn of_process(pid: i32, process: BorrowedFd<'_>, kind: &str) -> Result<OwnedFd, Error> {
    let open = || {
        let proc = Procfs::shared().map_err(|f| io::Error::other(f.message))?;
        let fd = proc.namespace(pid, kind)?;
        // The pidfd still answers, so the number was still its process's when the link was opened.
        pidfd::signal(process, 0)?;
        Ok(fd)
    };
    open().map_err(|source| Error::Namespace {
        pid,
        kind: kind.to_owned(),
        source,
    })
}

/// What is to become of one kind of namespace.
#[derive(Debug, Default)]
pub(crate) enum Choice {
    #[default]
    Host,
    New,
    Join(OwnedFd),
}

/// The namespaces of a container but for its mount and user namespaces, which every one has or the pod decides.
#[derive(Debug, Default)]
pub(crate) struct Choices {
    pub net: Choice,
    pub ipc: Choice,
    pub uts: Choice,
    pub pid: Choice,
    pub cgroup: Choice,
}

impl Choices {
    /// Reads the spec's list. `targets` are the processes that `pid:N` may name.
    pub fn resolve(
        list: &[LinuxNamespace],
        pod: &PodNamespaces,
        targets: &[(i32, BorrowedFd<'_>)],
    ) -> Result<Self> {
        let mut choices = Self::default();
        for entry in list {
            let (slot, kind, of_pod) = match entry.typ() {
                LinuxNamespaceType::Network => (&mut choices.net, "net", pod.net.as_ref()),
                LinuxNamespaceType::Ipc => (&mut choices.ipc, "ipc", pod.ipc.as_ref()),
                LinuxNamespaceType::Uts => (&mut choices.uts, "uts", pod.uts.as_ref()),
                LinuxNamespaceType::Pid => (&mut choices.pid, "pid", pod.pid.as_ref()),
                LinuxNamespaceType::Cgroup => (&mut choices.cgroup, "cgroup", None),
                LinuxNamespaceType::Mount | LinuxNamespaceType::User => continue,
                LinuxNamespaceType::Time => {
                    return Err(Fault::unsupported("time namespaces are not supported"));
                }
            };
            *slot = match entry.path().as_ref().map(|p| p.to_string_lossy()) {
                None => Choice::New,
                // A pod that shares the host's namespace has none of its own to join.
                Some(path) if path == "pod:" => match of_pod {
                    Some(fd) => Choice::Join(duplicate(fd.as_fd())?),
                    None => Choice::Host,
                },
                Some(path) => Choice::Join(at_path(&path, kind, targets)?),
            };
        }
        Ok(choices)
    }

    /// Joins or makes the IPC, UTS and network namespaces.
    pub fn enter(&self) -> Result<()> {
        let all = [
            (&self.ipc, NEWIPC, "ipc"),
            (&self.uts, NEWUTS, "uts"),
            (&self.net, NEWNET, "net"),
        ];
        let mut new = 0;
        for (choice, flag, name) in all {
            match choice {
                Choice::Join(fd) => {
                    namespace::join(fd.as_fd(), flag).at(|| format!("join the {name} namespace"))?;
                }
                Choice::New => new |= flag,
                Choice::Host => {}
            }
        }
        if new != 0 {
            namespace::unshare(new).at(|| "make new namespaces")?;
        }
        Ok(())
    }

    /// Has the next child be born in the right PID namespace, and returns the flags to clone it with.
    pub fn enter_pid(&self) -> Result<u64> {
        match &self.pid {
            Choice::Join(fd) => namespace::join(fd.as_fd(), NEWPID)
                .at(|| "join the pid namespace")
                .map(|()| 0),
            Choice::New => Ok(NEWPID),
            Choice::Host => Ok(0),
        }
    }

    /// In the new process, once it is in its cgroup: the namespace's root is the cgroup of whoever makes it.
    pub fn enter_cgroup(&self) -> Result<()> {
        match &self.cgroup {
            Choice::Join(fd) => namespace::join(fd.as_fd(), NEWCGROUP),
            Choice::New => namespace::unshare(NEWCGROUP),
            Choice::Host => Ok(()),
        }
        .at(|| "enter the cgroup namespace")
    }
}

fn at_path(path: &str, kind: &str, targets: &[(i32, BorrowedFd<'_>)]) -> Result<OwnedFd> {
    let Some(pid) = path.strip_prefix("pid:") else {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        return rustix::fs::open(path, flags, rustix::fs::Mode::empty())
            .at(|| format!("open the {kind} namespace {path}"));
    };
    of_target(pid, kind, targets).map(|(_, namespace)| namespace)
}

/// A namespace of the process that `pid:` is followed by: its number and the namespace.
pub(crate) fn of_target(pid: &str, kind: &str, targets: &[(i32, BorrowedFd<'_>)]) -> Result<(i32, OwnedFd)> {
    let what = || format!("open the {kind} namespace of process {pid}");
    let (pid, process) = targets
        .iter()
        .find(|(number, _)| number.to_string() == pid)
        .ok_or_else(|| {
            let text = format!("{}: no running container of the pod has it", what());
            Fault::new(Kind::Precondition, text)
        })?;
    let opened = of_process(*pid, *process, kind).map_err(|e| match e {
        Error::Namespace { source, .. } => source,
        other => io::Error::other(other),
    });
    Ok((*pid, opened.at(what)?))
}

pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().at(|| "duplicate a descriptor")
}

/// Every kind that an exec joins at once; the cgroup namespace follows after the clone (clone3 into a cgroup wants the
/// caller to see where it comes from), the user namespace only where it differs from ours (else EINVAL).
pub(crate) const OF_EXEC: u64 = NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS;
pub(crate) const CGROUP: u64 = NEWCGROUP;
pub(crate) const USER: u64 = NEWUSER;
pub(crate) const MOUNT: u64 = NEWNS;
