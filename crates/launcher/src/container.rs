//! The builder of a container: everything up to the clone of its init, and the limits at the barrier.
//!
//! The order matters, and each step says why; decision record 1 has it call by call.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use holdfast_sys::clone::{Child, Clone3};
use holdfast_sys::mount::{Attributes, Propagation, set_attributes};
use holdfast_sys::{namespace, scm};
use oci_spec::runtime::{Hooks as OciHooks, Linux, LinuxSeccomp, Process, Spec};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::building::{Building, Made, Slot, start};
use crate::cgroup::{Place, kill_and_wait};
use crate::channel::listen;
use crate::creds::Credentials;
use crate::devices::Devices;
use crate::entering::Entering;
use crate::error::Error;
use crate::fault::{Context, Fault, Result, chain};
use crate::hooks::{Ground, Hooks};
use crate::init::{Init, close_others};
use crate::limits::{Limits, set_oom_score};
use crate::mounts::{Entry, Making, Placing};
use crate::namespaces::{Choice, Choices, MOUNT, USER};
use crate::overlay::Overlay;
use crate::place::{Root, attach};
use crate::plan::{ContainerPlan, PodNamespaces, Rootfs, Stdio};
use crate::procfs::Procfs;
use crate::selinux::Label;
use crate::staging;
use crate::userns::{self, Mapping};

/// Forks a builder that brings the container to its barrier.
pub fn create_container(plan: ContainerPlan<'_>) -> Result<Building, Error> {
    create(plan, None)
}

/// The same; `bundle` is where a container that has hooks gets its bundle.
pub(crate) fn create(plan: ContainerPlan<'_>, bundle: Option<&Path>) -> Result<Building, Error> {
    let building = start(plan.id, true, |barrier| build(&plan, bundle, barrier));
    // The container's ends of its pipes are the builder's now.
    drop(plan);
    building
}

/// The spec, taken apart and checked, before anything is done.
pub(crate) struct Parts {
    pub process: Process,
    pub linux: Linux,
    credentials: Credentials,
    limits: Limits,
    entries: Vec<Entry>,
    seccomp: Option<holdfast_seccomp::Program>,
    pub read_only: bool,
    hooks: Option<Hooks>,
    warnings: Vec<String>,
}

impl Parts {
    fn of(plan: &ContainerPlan<'_>, bundle: Option<&Path>) -> Result<Self> {
        let spec: Spec = serde_json::from_slice(plan.spec)
            .map_err(|e| Fault::invalid(format!("the spec of {} is unreadable: {e}", plan.name)))?;
        let missing = |what: &str| Fault::invalid(format!("the spec of {} has no {what}", plan.name));
        let hooks = hooks(plan, &spec, bundle)?;
        let process = spec.process().clone().ok_or_else(|| missing("process"))?;
        let linux = spec.linux().clone().ok_or_else(|| missing("linux part"))?;
        let mut warnings = Vec::new();
        Ok(Self {
            credentials: Credentials::new(&process, plan.clamp_privileges, &mut warnings)?,
            limits: Limits::new(process.rlimits().as_deref().unwrap_or_default())?,
            entries: Entry::parse_all(spec.mounts().as_deref().unwrap_or_default())?,
            seccomp: compile(linux.seccomp().as_ref())?,
            read_only: spec
                .root()
                .as_ref()
                .is_some_and(|r| r.readonly().unwrap_or(false)),
            hooks,
            process,
            linux,
            warnings,
        })
    }
}

/// A container without a bundle has none, and one with a user namespace cannot have any.
fn hooks(plan: &ContainerPlan<'_>, spec: &Spec, bundle: Option<&Path>) -> Result<Option<Hooks>> {
    let Some(bundle) = bundle else {
        let none = spec
            .hooks()
            .as_ref()
            .is_none_or(|hooks| *hooks == OciHooks::default());
        return match none {
            true => Ok(None),
            false => Err(Fault::unsupported(format!(
                "{} has OCI hooks, but no bundle was named for them",
                plan.name
            ))),
        };
    };
    if plan.namespaces.user.is_some() {
        return Err(Fault::unsupported(format!(
            "{} has OCI hooks and is in a pod with a user namespace: hooks there are not supported",
            plan.name
        )));
    }
    Hooks::parse(spec, plan.id, plan.name, bundle.to_owned()).map(Some)
}

pub(crate) fn compile(profile: Option<&LinuxSeccomp>) -> Result<Option<holdfast_seccomp::Program>> {
    profile
        .map(|profile| holdfast_seccomp::compile(profile, holdfast_seccomp::Machine::NATIVE))
        .transpose()
        .map_err(|e| Fault::invalid(format!("compile the seccomp profile: {}", chain(&e))))
}

fn build(plan: &ContainerPlan<'_>, bundle: Option<&Path>, barrier: &OwnedFd) -> Result<Made> {
    rustix::process::umask(rustix::fs::Mode::empty());
    let proc = Procfs::shared()?;
    let mut parts = Parts::of(plan, bundle)?;
    let hooks = parts.hooks.take();
    let linux = &parts.linux;
    let pod = plan.namespaces;
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let choices = Choices::resolve(namespaces, pod, plan.targets)?;
    let mapping = match &pod.user {
        Some(user) => Some(Mapping::new(
            user.as_fd(),
            linux.uid_mappings().as_ref(),
            linux.gid_mappings().as_ref(),
        )?),
        None => None,
    };
    let console = matches!(plan.stdio, Stdio::Terminal);
    let devices = Devices::new(
        linux.devices().as_deref().unwrap_or_default(),
        console,
        mapping.as_ref(),
    )?;
    // The cgroup is there before the mounts: what the container sees at /sys/fs/cgroup is cloned from it.
    let resources = linux.resources().as_ref();
    let mut place = Place::create(plan.hierarchy, &plan.cgroup, resources, &mut parts.warnings)?;

    let label = Label::new(linux.mount_label().as_deref().unwrap_or_default())?;
    let making = Making {
        mapping: mapping.as_ref(),
        cgroup: place.cgroup(),
        private_cgroups: matches!(choices.cgroup, Choice::New),
        proc,
        pod_shm: pod.ipc.is_some(),
        label,
        relabel: &plan.relabel,
    };
    // What lies on the host is opened in the host's mount namespace.
    let host = match &hooks {
        Some(_) => Some(
            proc.namespace(0, "mnt")
                .at(|| "open the host's mount namespace")?,
        ),
        None => None,
    };
    let open_root = || open_rootfs(&plan.rootfs, proc, mapping.as_ref(), label);
    let entries = std::mem::take(&mut parts.entries);
    let (root, mut prepared) = if mapping.is_none() {
        // The root first: mountinfo is sorted by age, and programs read its first line as `/`.
        (open_root()?, making.of_host(entries)?)
    } else {
        // With id maps an overlay is made in a copy of that namespace, which lacks the peer groups that binds may need.
        let prepared = making.of_host(entries)?;
        (open_root()?, prepared)
    };
    making.overlays(&mut prepared)?;
    let ground = match (&hooks, &host) {
        (Some(hooks), Some(host)) => Some(Ground::lay(hooks, plan, (host.as_fd(), root.as_fd()))?),
        _ => None,
    };
    let whole_proc = mapping.is_some().then(Procfs::of_host).transpose()?;
    if let Some(score) = parts.process.oom_score_adj() {
        set_oom_score(score, plan.clamp_privileges, proc, &mut parts.warnings)?;
    }
    parts.limits.prepare(plan.clamp_privileges, &mut parts.warnings)?;

    // From here on in the pod's namespaces, and in a copy of pause's tiny mount namespace; with hooks, of the host's.
    choices.enter()?;
    let (base, root) = match &ground {
        None => (enter_staging(pod)?, root),
        Some(ground) => ground.enter()?,
    };
    let shm = || match &ground {
        None => {
            let shm = staging::open(base.as_fd(), staging::SHM)?;
            staging::clone_tree(shm.as_fd(), false).at(|| "clone the pod's /dev/shm")
        }
        Some(ground) => ground.pod_shm(),
    };
    making.of_pod(&mut prepared, shm)?;
    match (&whole_proc, &ground) {
        // It lies in its bundle.
        (_, Some(_)) => {}
        // Over the staging tree's own root, so that nothing has to be taken off again (see `enter_root`).
        (None, None) => attach(root.as_fd(), base.as_fd()).at(|| "attach the container's root")?,
        (Some(whole), None) => {
            let at = staging::open(base.as_fd(), staging::ROOT)?;
            attach(root.as_fd(), at.as_fd()).at(|| "attach the container's root")?;
            let at = staging::open(base.as_fd(), staging::PROC)?;
            attach(whole.as_fd(), at.as_fd()).at(|| "attach the host's /proc")?;
        }
    }
    let placing = Placing {
        root: Root {
            fd: root.as_fd(),
            owner: mapping.as_ref().map_or((0, 0), Mapping::root),
        },
        devices: &devices,
    };
    devices.make_elsewhere(placing.root)?;
    let later = placing.place(prepared)?;

    if let Some(mapping) = &mapping {
        userns::give(&plan.stdio, mapping.root());
    }
    let (ours, theirs) = scm::pair().at(|| "make a socket pair")?;
    let entering = Entering {
        parts: &parts,
        choices: &choices,
        later: &later,
        devices: &devices,
        base: &base,
        root: &root,
        in_user_namespace: mapping.is_some(),
        hooks_by: ground.as_ref().map(|_| &theirs),
    };
    let init = Init {
        container_id: plan.id,
        process: &parts.process,
        credentials: &parts.credentials,
        limits: &parts.limits,
        seccomp: parts.seccomp.as_ref(),
        stdio: &plan.stdio,
        make_directory: true,
        console,
        tasks: &place.tasks,
        proc,
        builder: &theirs,
        barrier,
        hooks: hooks.as_ref(),
    };
    let run = || {
        let mut keep = init.descriptors();
        keep.extend(entering.descriptors());
        keep.push(pod.user.as_ref().map_or(proc.as_fd(), AsFd::as_fd));
        match close_others(&keep) {
            Ok(()) => init.run(|_| entering.enter()),
            Err(_) => 1,
        }
    };
    let child = match &pod.user {
        None => {
            let flags = choices.enter_pid()?;
            place.spawn(flags, run).at(|| "clone the container's init")?
        }
        Some(user) => spawn_in(user.as_fd(), &choices, &place, run)?,
    };
    drop(theirs);
    let run = match &ground {
        Some(ground) => ground.run_hooks(&child, ours.as_fd()),
        None => Ok(()),
    };
    let heard = run
        .and_then(|()| listen(ours.as_fd(), child.pidfd.as_fd(), "the container's init"))
        .and_then(|heard| place.limit(&mut parts.warnings).map(|()| heard));
    let (more, terminal) = heard.inspect_err(|_| kill_and_wait(child.pidfd.as_fd()))?;
    place.keep();
    let mut fds = vec![(Slot::Init, child.pidfd)];
    fds.extend(terminal.map(|fd| (Slot::Terminal, fd)));
    fds.extend(ground.map(|ground| (Slot::Mnt, ground.into_mounts())));
    parts.warnings.extend(more);
    Ok(Made {
        pid: child.pid,
        fds,
        warnings: parts.warnings,
    })
}

/// Makes a mount namespace as a copy of pause's. Gives back the staging tree, which is its root.
fn enter_staging(pod: &PodNamespaces) -> Result<OwnedFd> {
    let mnt = pod
        .mnt
        .as_ref()
        .ok_or_else(|| Fault::invalid("the pod's mount namespace is not open"))?;
    namespace::join(mnt.as_fd(), MOUNT).at(|| "join the pod's mount namespace")?;
    namespace::unshare(MOUNT).at(|| "make a mount namespace")?;
    staging::root()
}

/// The root file system as a detached mount.
pub(crate) fn open_rootfs(
    rootfs: &Rootfs,
    proc: &Procfs,
    mapping: Option<&Mapping<'_>>,
    label: Option<Label<'_>>,
) -> Result<OwnedFd> {
    match rootfs {
        Rootfs::Overlay {
            lowers,
            upper,
            work,
            options,
        } => Overlay {
            lowers,
            upper: Some((upper, work)),
            options,
            label,
        }
        .mount(proc, mapping),
        Rootfs::Bind { source } => {
            let what = || format!("open the root file system {}", source.display());
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let clone = open_tree(CWD, source, flags).at(what)?;
            let attributes = Attributes {
                propagation: Propagation::Private,
                idmap: mapping.map(|m| m.user),
                recursive: true,
                ..Attributes::default()
            };
            set_attributes(clone.as_fd(), attributes).at(what)?;
            Ok(clone)
        }
    }
}

/// Clones init as a child of the user namespace's root, so that its PID namespace belongs to that: by way of a sibling,
/// since the builder could not come back from there to write limits.
fn spawn_in(
    user: BorrowedFd<'_>,
    choices: &Choices,
    place: &Place,
    run: impl FnOnce() -> i32,
) -> Result<Child> {
    let step = || {
        let flags = choices.enter_pid()?;
        namespace::join(user, USER).at(|| "join the pod's user namespace")?;
        place.spawn(flags, run).at(|| "clone the container's init")
    };
    by_stepper(step).map(|(child, _)| child)
}

/// Runs `step`, which clones a process, in a sibling of the caller, and brings back what it made.
pub(crate) fn by_stepper<T: Into<Stepped>>(
    step: impl FnOnce() -> Result<T>,
) -> Result<(Child, Option<OwnedFd>)> {
    let (ours, theirs) = scm::pair().at(|| "make a socket pair")?;
    let stepper = Clone3 {
        sibling: true,
        ..Clone3::default()
    };
    let stepper = stepper
        .spawn(|| match step().map(Into::into) {
            Ok(Stepped { child, more }) => {
                let mut fds = vec![child.pidfd.as_fd()];
                fds.extend(more.as_ref().map(AsFd::as_fd));
                let word = crate::channel::Word::Ready {
                    warnings: vec![child.pid.to_string()],
                };
                crate::channel::say(theirs.as_fd(), &word, &fds).map_or(1, |()| 0)
            }
            Err(fault) => {
                let word = crate::channel::Word::Failed(fault.into());
                crate::channel::say(theirs.as_fd(), &word, &[]).map_or(1, |()| 0)
            }
        })
        .at(|| "clone a step into the user namespace")?;
    drop(theirs);
    let (words, fds) = crate::channel::listen_all(ours.as_fd(), stepper.pidfd.as_fd(), "the step")?;
    let mut fds = fds.into_iter();
    let pid = words.first().and_then(|w| w.parse().ok());
    match (pid, fds.next()) {
        (Some(pid), Some(pidfd)) => Ok((Child { pid, pidfd }, fds.next())),
        _ => Err(Fault::invalid("the step into the user namespace sent no process")),
    }
}

/// What a step made: a process, and perhaps a socket.
pub(crate) struct Stepped {
    pub child: Child,
    pub more: Option<OwnedFd>,
}

impl From<Child> for Stepped {
    fn from(child: Child) -> Self {
        Self { child, more: None }
    }
}
