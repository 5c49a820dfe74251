//! The builder of a pod's sandbox: its namespaces, pause in them, and what the daemon needs to reach them.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use holdfast_sys::clone::{NEWIPC, NEWNET, NEWPID, NEWUTS};
use holdfast_sys::exec::Image;
use holdfast_sys::mount::{ATTR_RDONLY, Attributes, Propagation, set_attributes};
use holdfast_sys::process::{self, Control};
use holdfast_sys::{namespace, net, scm};
use oci_spec::runtime::LinuxResources;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, open, openat, unlinkat};
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_change, open_tree, unmount,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::building::{Building, Made, Slot, start};
use crate::cgroup::{Place, kill_and_wait};
use crate::channel::{Word, listen_exec, say};
use crate::container::{Stepped, by_stepper};
use crate::creds::drop_bounding;
use crate::error::Error;
use crate::fault::{Context, Fault, Result};
use crate::init::{become_root, close_others, pivot};
use crate::limits::set_oom_score;
use crate::mounts::tmpfs;
use crate::namespaces::{MOUNT, USER};
use crate::place::attach;
use crate::plan::{IdMap, SandboxPlan};
use crate::procfs::Procfs;
use crate::selinux::Label;
use crate::{selinux, staging, sysctl, userns};

/// Who pause is: an id that images do not use.
const PAUSE_ID: u32 = 65535;
const DEFAULT_SHM: u64 = 64 << 20;

/// Forks a builder that starts pause in the pod's namespaces.
pub fn create_sandbox(plan: SandboxPlan<'_>) -> Result<Building, Error> {
    let building = start(plan.id, false, |_| build(&plan));
    drop(plan);
    building
}

fn build(plan: &SandboxPlan<'_>) -> Result<Made> {
    rustix::process::umask(Mode::empty());
    let proc = Procfs::shared()?;
    let mut warnings = Vec::new();
    let resources: Option<LinuxResources> = match plan.resources {
        [] => None,
        bytes => serde_json::from_slice(bytes)
            .map_err(|e| Fault::invalid(format!("the pod's resources are unreadable: {e}")))?,
    };
    let mut place = Place::create(plan.hierarchy, &plan.cgroup, resources.as_ref(), &mut warnings)?;
    set_oom_score(plan.oom_score_adj, plan.clamp_privileges, proc, &mut warnings)?;
    let user = if plan.uid_maps.is_empty() && plan.gid_maps.is_empty() {
        None
    } else {
        Some(userns::create(&plan.uid_maps, &plan.gid_maps, proc)?)
    };
    let hosts_mnt = proc.namespace(0, "mnt").at(|| "open our own mount namespace")?;
    let pause = Pause::open(plan)?;
    let (ours, theirs) = scm::pair().at(|| "make a socket pair")?;
    let stage = || Stage::run(plan, proc, &pause, &place, user.as_ref(), &theirs);
    // With a user namespace another process goes there: we must come back.
    let (child, netlink) = match &user {
        None => stage().map(|s| (s.child, s.more))?,
        Some(_) => by_stepper(stage)?,
    };
    drop(theirs);
    let finish = || {
        listen_exec(ours.as_fd(), "start pause")?;
        place.limit(&mut warnings)?;
        let fds = open_namespaces(plan, child.pid, proc, user)?;
        if let Some(path) = &plan.netns_path {
            namespace::join(hosts_mnt.as_fd(), MOUNT).at(|| "return to the host")?;
            let net = fds.iter().find(|(slot, _)| *slot == Slot::Net);
            let (_, net) =
                net.ok_or_else(|| Fault::invalid("a path for the network namespace of a pod that has none"))?;
            bind_namespace(net, path)?;
        }
        Ok(fds)
    };
    let mut fds = finish().inspect_err(|_: &Fault| kill_and_wait(child.pidfd.as_fd()))?;
    place.keep();
    fds.push((Slot::Init, child.pidfd));
    fds.extend(netlink.map(|fd| (Slot::Netlink, fd)));
    Ok(Made {
        pid: child.pid,
        fds,
        warnings,
    })
}

/// Pause's program as a read-only mount of its own: not even the pod's /proc/1/exe can be written to.
struct Pause {
    program: OwnedFd,
    id: u32,
}

impl Pause {
    fn open(plan: &SandboxPlan<'_>) -> Result<Self> {
        let what = || format!("open {}", plan.pause.display());
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let program = open_tree(CWD, &plan.pause, flags).at(what)?;
        let attributes = Attributes {
            set: ATTR_RDONLY,
            propagation: Propagation::Private,
            ..Attributes::default()
        };
        set_attributes(program.as_fd(), attributes).at(what)?;
        Ok(Self {
            program,
            id: pause_id(&plan.uid_maps, &plan.gid_maps),
        })
    }
}

/// [`PAUSE_ID`], or the highest id that both maps have.
fn pause_id(uids: &[IdMap], gids: &[IdMap]) -> u32 {
    let highest = |maps: &[IdMap]| {
        maps.iter()
            .map(|m| m.container_id.saturating_add(m.size.saturating_sub(1)))
            .max()
            .unwrap_or(PAUSE_ID)
    };
    PAUSE_ID.min(highest(uids)).min(highest(gids))
}

/// The process that goes into the pod's namespaces and clones pause there.
struct Stage<'a> {
    plan: &'a SandboxPlan<'a>,
    proc: &'a Procfs,
    pause: &'a Pause,
    in_user_namespace: bool,
    /// The namespaces that are the pod's own, as clone flags.
    own: u64,
}

impl Stage<'_> {
    fn run(
        plan: &SandboxPlan<'_>,
        proc: &Procfs,
        pause: &Pause,
        place: &Place,
        user: Option<&OwnedFd>,
        status: &OwnedFd,
    ) -> Result<Stepped> {
        let own = [
            (plan.new_net, NEWNET),
            (plan.new_ipc, NEWIPC),
            (plan.new_uts, NEWUTS),
        ]
        .iter()
        .filter(|(new, _)| *new)
        .fold(0, |all, (_, flag)| all | flag);
        let stage = Stage {
            plan,
            proc,
            pause,
            in_user_namespace: user.is_some(),
            own,
        };
        stage.change_root()?;
        if let Some(user) = user {
            // Still as the host's root, if without its capabilities: else the cgroup would refuse the clone.
            namespace::join(user.as_fd(), USER).at(|| "join the pod's user namespace")?;
        }
        let netlink = stage.make_namespaces()?;
        let flags = if plan.new_pid { NEWPID } else { 0 };
        let child = place
            .spawn(flags, || {
                let fault = stage.start_pause(place, status);
                let _gone = say(status.as_fd(), &Word::Failed(fault.into()), &[]);
                1
            })
            .at(|| "clone pause")?;
        Ok(Stepped { child, more: netlink })
    }

    /// The staging tree becomes the root of a mount namespace that holds nothing else.
    fn change_root(&self) -> Result<()> {
        let tree = staging::make(Label::new(self.plan.mount_label)?)?;
        namespace::unshare(MOUNT).at(|| "make a mount namespace")?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .at(|| "make the copied mounts private")?;
        let base = staging::root()?;
        attach(tree.as_fd(), base.as_fd()).at(|| "attach pause's root")?;
        let at = staging::open(tree.as_fd(), staging::PAUSE)?;
        attach(self.pause.program.as_fd(), at.as_fd()).at(|| "attach pause's program")?;
        if self.plan.new_ipc {
            self.make_shm(&tree)?;
        }
        let attributes = Attributes {
            set: ATTR_RDONLY,
            ..Attributes::default()
        };
        set_attributes(tree.as_fd(), attributes).at(|| "make pause's root read-only")?;
        pivot(tree.as_fd())
    }

    fn make_shm(&self, tree: &OwnedFd) -> Result<()> {
        let size = match self.plan.shm_size {
            0 => DEFAULT_SHM,
            size => size,
        };
        let host = |maps: &[IdMap]| {
            let root = maps.iter().find(|m| m.container_id == 0);
            root.map_or(0, |m| m.host_id).to_string()
        };
        let mut options = vec![
            ("mode".to_owned(), Some("1777".to_owned())),
            ("size".to_owned(), Some(size.to_string())),
            ("uid".to_owned(), Some(host(&self.plan.uid_maps))),
            ("gid".to_owned(), Some(host(&self.plan.gid_maps))),
        ];
        options.extend(Label::new(self.plan.mount_label)?.map(Label::option));
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let shm = tmpfs(&options, attributes)?;
        let at = staging::open(tree.as_fd(), staging::SHM)?;
        attach(shm.as_fd(), at.as_fd()).at(|| "attach the pod's /dev/shm")
    }

    fn make_namespaces(&self) -> Result<Option<OwnedFd>> {
        let plan = self.plan;
        if self.own != 0 {
            namespace::unshare(self.own).at(|| "make the pod's namespaces")?;
        }
        if plan.new_uts && !plan.hostname.is_empty() {
            rustix::system::sethostname(plan.hostname.as_bytes())
                .at(|| format!("set the hostname {:?}", plan.hostname))?;
        }
        if !plan.new_net {
            return Ok(None);
        }
        net::loopback_up().at(|| "bring the loopback interface up")?;
        net::route_socket().at(|| "open a route socket").map(Some)
    }

    /// Becomes pause; returns only why it could not. Its status socket closes when it has.
    fn start_pause(&self, place: &Place, status: &OwnedFd) -> Fault {
        match self.become_pause(place, status) {
            Err(fault) => fault,
            Ok(error) => Fault::system("execute pause", &error),
        }
    }

    fn become_pause(&self, place: &Place, status: &OwnedFd) -> Result<std::io::Error> {
        let pause = self.pause;
        for tasks in &place.tasks {
            rustix::io::write(tasks, b"0").at(|| "join the cgroup")?;
        }
        close_others(&[status.as_fd(), self.proc.as_fd()]).at(|| "close descriptors")?;
        if self.in_user_namespace {
            // Some sysctls can be written by their namespace's root only.
            become_root()?;
        }
        let sysctls = self.plan.sysctls.iter().map(|(name, value)| (name, value));
        sysctl::apply(sysctls, self.own, self.proc)?;
        process::reset_signals().at(|| "reset signals")?;
        // An init that does not handle a signal does not get it: one sent before pause waits for it would be lost.
        process::block_signals(&[libc::SIGTERM, libc::SIGINT, libc::SIGCHLD]).at(|| "block signals")?;
        rustix::process::setsid().at(|| "make a session")?;
        if !self.plan.selinux_label.is_empty() {
            selinux::on_exec(self.plan.selinux_label, self.proc)?;
        }
        drop_bounding(0)?;
        process::set_ids(pause.id, pause.id, &[]).at(|| "become pause's user")?;
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none).at(|| "drop capabilities")?;
        process::control(Control::NoNewPrivs).at(|| "set no_new_privs")?;
        process::close_stdio();
        let name: CString = c"pause".to_owned();
        Ok(Image::new(vec![name], Vec::new()).exec(c"/pause"))
    }
}

fn open_namespaces(
    plan: &SandboxPlan<'_>,
    pid: i32,
    proc: &Procfs,
    user: Option<OwnedFd>,
) -> Result<Vec<(Slot, OwnedFd)>> {
    let wanted = [
        (plan.new_net, Slot::Net, "net"),
        (plan.new_ipc, Slot::Ipc, "ipc"),
        (plan.new_uts, Slot::Uts, "uts"),
        (plan.new_pid, Slot::Pid, "pid"),
        (true, Slot::Mnt, "mnt"),
    ];
    let mut fds = Vec::new();
    for (_, slot, name) in wanted.into_iter().filter(|(own, ..)| *own) {
        let fd = proc
            .namespace(pid, name)
            .at(|| format!("open pause's {name} namespace"))?;
        fds.push((slot, fd));
    }
    fds.extend(user.map(|fd| (Slot::User, fd)));
    Ok(fds)
}

/// Binds the network namespace at a host path, where CNI plugins look for it. What an earlier attempt left is replaced.
fn bind_namespace(net: &OwnedFd, path: &Path) -> Result<()> {
    let what = || format!("bind the network namespace at {}", path.display());
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).at(what)?;
    }
    let _absent = unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    let _absent = unlinkat(CWD, path, AtFlags::empty());
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::from_raw_mode(0o444)).at(what)?;
    let bind = || {
        let clone = staging::clone_tree(net.as_fd(), false).at(what)?;
        let at = open(
            path,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .at(what)?;
        attach(clone.as_fd(), at.as_fd()).at(what)
    };
    bind().inspect_err(|_| {
        let _best_effort = unlinkat(CWD, path, AtFlags::empty());
    })
}

/// Undoes [`SandboxPlan::netns_path`]: takes the mount off and removes the file. What is not there is no error.
pub fn unbind_namespace(path: &Path) -> Result<(), Error> {
    holdfast_sys::namespace::unbind(path).map_err(|source| Error::Unbind {
        path: path.to_path_buf(),
        source,
    })
}
