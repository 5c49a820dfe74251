//! Containers: create, start, remove, and the care of their logs.
//!
//! ```text
//!  Building ──built, log open──> Created ──Start──> Running ──┐
//!     │                             │                         ├──init ends──> Exited ──Remove──> (gone)
//!     └──failed──> (gone)           └─────────────────────────┘
//! ```
//!
//! How an exit becomes a record and an event is in `exits`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use holdfast_launcher::{Barrier, Built, CgroupRef, ContainerPlan, ExecFailure, Rootfs, Stdio as ChildStdio};
use holdfast_monitor_api::message::{
    self, ContainerCreated, ContainerStarted, CreateContainer, Exit, Failure, FailureKind, OciRuntime, Phase,
    reply,
};
use holdfast_monitor_api::{ContainerDescriptors, Stdio};
use holdfast_sys::pidfd::Ended;
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cgroup;
use crate::clock;
use crate::error::{failed, failure, kind_of};
use crate::handlers;
use crate::job::Outcome;
use crate::monitor::{Asker, BUILD_LIMIT, Goal, Monitor, Purpose};
use crate::poller::{Poller, Token};
use crate::pump::{Pump, Reason, Streams};

/// Containers of one pod, exited ones included.
const CONTAINERS: usize = 1024;
/// Longest that a log may take to be opened at creation.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// How long a killed init may take to be reaped once its cgroup is empty.
const REAP_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Container {
    pub key: u32,
    pub id: String,
    pub name: String,
    pub cgroup: CgroupRef,
    pub log_path: String,
    pub manages_cgroup: bool,
    /// None: the built-in launcher.
    pub runtime: Option<OciRuntime>,
    /// We sent it the SIGKILL that it ends with: whatever the kernel has killed in it before, that is no OOM kill.
    pub killed_by_us: bool,
    /// Of a container with hooks that the built-in launcher makes; empty: it has none.
    pub bundle: String,
    /// Its runtime is being told to forget it.
    pub deleting: bool,
    /// It ended while a starter was still at work: told after the start.
    pub held_end: Option<Option<Ended>>,
    /// `Unspecified` while it is being built.
    pub phase: Phase,
    pub pid: i32,
    /// Our child; one that was adopted is not.
    pub ours: bool,
    pub own_pid_namespace: bool,
    /// None before it is built, and once it has ended and its output is drained.
    pub descriptors: Option<ContainerDescriptors>,
    pub creating: Option<Creating>,
    pub barrier: Option<Barrier>,
    pub starting: Option<Asker>,
    pub started_at: i64,
    pub log: Pump,
    pub reopening: Vec<Asker>,
    /// How it ended; the record waits for the OOM fact.
    pub ended: Option<(Option<Ended>, i64)>,
    pub exit: Option<Exit>,
    /// The event waits until the log is drained, at most until then.
    pub event_due: Option<Instant>,
    pub removing: Vec<Asker>,
    /// Its cgroup is removed, its processes are dead; the removal waits for init to be reaped, at most until then.
    pub gone_by: Option<Instant>,
    /// Out-of-memory kills in the pod's slice when it started, for where systemd is quicker than we: see
    /// [`cgroup::settle`]. `u64::MAX`: not known.
    pub slice_kills: u64,
    /// When to look again how an adopted container ended, and until when.
    pub retry: Option<(Instant, Instant)>,
}

/// What a creation still waits for.
#[derive(Debug)]
pub(crate) struct Creating {
    pub asker: Asker,
    /// The outer ends of the pipes; none with a terminal.
    stdio: Option<Stdio>,
    log_state: OwnedFd,
    pub opened: bool,
    warnings: Vec<String>,
    deadline: Instant,
}

impl Container {
    pub fn new(key: u32, create: &CreateContainer) -> Self {
        Container {
            key,
            id: create.container_id.clone(),
            name: create.name.clone(),
            cgroup: cgroup::reference(create.cgroup.as_ref()),
            log_path: create.log_path.clone(),
            manages_cgroup: create.manages_cgroup,
            runtime: create.runtime.clone(),
            killed_by_us: false,
            bundle: create.bundle.clone(),
            deleting: false,
            held_end: None,
            phase: Phase::Unspecified,
            pid: 0,
            ours: true,
            own_pid_namespace: true,
            descriptors: None,
            creating: None,
            barrier: None,
            starting: None,
            started_at: 0,
            log: Pump::default(),
            reopening: Vec::new(),
            ended: None,
            exit: None,
            event_due: None,
            removing: Vec::new(),
            gone_by: None,
            slice_kills: u64::MAX,
            retry: None,
        }
    }

    /// No process of it lives, as far as is known.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Exited
    }

    /// What a running container has; for one that does not run, the error that says so.
    pub fn running(&self) -> Result<&ContainerDescriptors, Failure> {
        let state = match (self.phase, &self.descriptors) {
            (Phase::Running, Some(held)) if self.ended.is_none() => return Ok(held),
            (Phase::Created | Phase::Unspecified, _) => "was not started",
            _ => "has exited",
        };
        let text = format!("container {} is not running: it {state}", self.id);
        Err(failure(FailureKind::Precondition, text))
    }

    pub fn deadline(&self) -> Option<Instant> {
        let creating = self.creating.as_ref().map(|creating| creating.deadline);
        let retry = self.retry.map(|(at, _)| at);
        let log = self.log.paused_until;
        [creating, retry, log, self.event_due, self.gone_by]
            .into_iter()
            .flatten()
            .min()
    }
}

impl Monitor {
    pub(crate) fn container(&mut self, key: u32) -> Option<&mut Container> {
        self.containers.iter_mut().find(|container| container.key == key)
    }

    /// The container with this id that is past its creation.
    pub(crate) fn known(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers
            .iter_mut()
            .find(|container| container.id == id && container.phase != Phase::Unspecified)
            .ok_or_else(|| {
                failure(
                    FailureKind::NotFound,
                    format!("the monitor has no container {id}"),
                )
            })
    }

    pub(crate) fn create_container(&mut self, asker: Asker, create: &CreateContainer) -> Result<(), Failure> {
        let id = &create.container_id;
        check_id(id)?;
        handlers::check(create.runtime.as_ref(), &create.bundle)?;
        if self.containers.iter().any(|container| container.id == *id) {
            let text = format!("container {id} exists already");
            return Err(failure(FailureKind::Precondition, text));
        }
        if self.containers.len() >= CONTAINERS {
            let text = format!("the pod has {CONTAINERS} containers already");
            return Err(failure(FailureKind::Exhausted, text));
        }
        let sandbox = self.sandbox.as_ref().filter(|sandbox| sandbox.running());
        let sandbox =
            sandbox.ok_or_else(|| failure(FailureKind::Precondition, "the sandbox is not running"))?;
        let namespaces = sandbox
            .namespaces()
            .map_err(|error| failed("cannot duplicate the sandbox's descriptors", &error))?;
        let pause_pid = sandbox.pause_pid;
        let pipes =
            Pipes::new(create).map_err(|error| failed("cannot make the container's pipes", &error))?;
        let hierarchy = self.hierarchy()?;
        let running = self.containers.iter().filter_map(|container| {
            let held = container.running().ok()?;
            Some((container.pid, held.pidfd.as_fd()))
        });
        let targets: Vec<_> = running.collect();
        let plan = ContainerPlan {
            id,
            hierarchy: &hierarchy,
            name: &create.name,
            spec: &create.spec,
            rootfs: rootfs(create.rootfs.as_ref())?,
            cgroup: cgroup::reference(create.cgroup.as_ref()),
            namespaces: &namespaces,
            pause_pid,
            targets: &targets,
            stdio: pipes.inner,
            clamp_privileges: create.clamp_privileges,
            relabel: create.relabel.iter().map(PathBuf::from).collect(),
        };
        let handler = handlers::of(create.runtime.as_ref(), &create.bundle, &create.name);
        let building = handler
            .create(plan)
            .map_err(|error| crate::error::launcher(&error))?;
        let key = self.key();
        self.add_build(Goal::Container(key), building, BUILD_LIMIT)
            .map_err(|error| failed("cannot watch the builder", &error))?;
        let mut container = Container::new(key, create);
        let creating = Creating {
            asker,
            stdio: pipes.outer,
            log_state: pipes.log_state,
            opened: create.log_path.is_empty(),
            warnings: Vec::new(),
            deadline: Instant::now() + OPEN_LIMIT,
        };
        let streams = Streams {
            stdio: creating.stdio.as_ref(),
            state: creating.log_state.as_fd(),
            log_path: &container.log_path,
        };
        // While the builder works, the log is opened beside it.
        let started = match creating.opened {
            true => Ok(()),
            false => container.log.start(streams, Reason::Open),
        };
        container.creating = Some(creating);
        self.containers.push(container);
        self.watch_pump(key);
        if let Err(error) = started {
            self.create_failed(key, failed("cannot start a log pump", &error));
        }
        Ok(())
    }

    pub(crate) fn container_built(&mut self, key: u32, built: Built) {
        let early = self.early.take(built.pid, built.pidfd.as_fd());
        let Some(container) = self.container(key) else {
            // Given up meanwhile: without its barrier init ends by itself.
            return;
        };
        let Some(creating) = &mut container.creating else {
            return;
        };
        let stdio = match (creating.stdio.take(), built.pty_master) {
            (Some(stdio), _) => stdio,
            (None, Some(master)) => {
                let _ = nonblocking(&master);
                Stdio::Tty { master }
            }
            (None, None) => {
                let failure = failure(FailureKind::Internal, "the launcher gave no terminal");
                return self.create_failed(key, failure);
            }
        };
        let log_state = match creating.log_state.try_clone() {
            Ok(log_state) => log_state,
            Err(error) => {
                let failure = failed("cannot duplicate the log state", &error);
                return self.create_failed(key, failure);
            }
        };
        creating.warnings = built.warnings;
        container.descriptors = Some(ContainerDescriptors {
            pidfd: built.pidfd,
            stdio,
            log_state: Some(log_state),
            mounts: built.namespaces.mnt,
        });
        container.pid = built.pid;
        container.own_pid_namespace = leads_pid_namespace(built.pid);
        container.barrier = built.barrier;
        if let Some(ended) = early {
            self.container_ended(key, Some(ended));
        }
        self.creation_progress(key);
    }

    /// Answers a create once everything it waits for is there.
    pub(crate) fn creation_progress(&mut self, key: u32) {
        let Some(container) = self.containers.iter_mut().find(|container| container.key == key) else {
            return;
        };
        let ready = container
            .creating
            .as_ref()
            .is_some_and(|creating| creating.opened);
        let (true, Some(descriptors)) = (ready, &container.descriptors) else {
            return;
        };
        let Some(creating) = container.creating.take() else {
            return;
        };
        if container.phase == Phase::Unspecified {
            container.phase = Phase::Created;
        }
        let shape = descriptors.shape();
        let created = ContainerCreated {
            pid: container.pid,
            tty: shape.tty,
            has_stdin: shape.has_stdin,
            warnings: creating.warnings,
            has_log_state: shape.has_log_state,
            has_mounts: shape.has_mounts,
        };
        let fds = descriptors.as_fds();
        let link = self.link.as_mut();
        if let Some(link) = link.filter(|link| link.generation == creating.asker.generation) {
            link.reply(creating.asker.id, reply::Body::ContainerCreated(created), &fds);
        }
        self.watch_output(key);
    }

    /// Takes back a container that did not come to be, and says so once nothing of it is left.
    pub(crate) fn create_failed(&mut self, key: u32, failure: Failure) {
        let builder = self
            .builds
            .iter()
            .position(|build| matches!(build.goal, Goal::Container(k) if k == key))
            .map(|index| self.drop_build(index));
        let Some(mut container) = self.take_container(key) else {
            return;
        };
        let Some(creating) = container.creating.take() else {
            return;
        };
        let purpose = Purpose::Unwind {
            asker: creating.asker,
            failure,
            removing: std::mem::take(&mut container.removing),
        };
        let traces = container.traces();
        self.start_cgroup_job(purpose, |all| {
            // What it is just making would come after the removal.
            if let Some(build) = &builder {
                cgroup::wait_for_death(build.building.builder());
                traces.abandon(build.building.builder_pid());
            }
            let _ = cgroup::kill(all, &container.cgroup);
            traces.delete_with(|| cgroup::remove(all, &container.cgroup))
        });
    }

    /// Takes a container off the list and lets go of all that belongs to it.
    fn take_container(&mut self, key: u32) -> Option<Container> {
        let index = self
            .containers
            .iter()
            .position(|container| container.key == key)?;
        let mut container = self.containers.remove(index);
        if let Some(running) = &container.log.running {
            self.poller.forget(&running.control);
        }
        container.log.abandon();
        let_go(&self.poller, &mut container);
        Some(container)
    }

    pub(crate) fn start_container(&mut self, asker: Asker, id: &str) -> Result<(), Failure> {
        let hierarchy = self.hierarchy()?;
        let container = self.known(id)?;
        let before = cgroup::slice_kills(&hierarchy, &container.cgroup);
        let key = container.key;
        if container.phase != Phase::Created || container.starting.is_some() {
            let text = format!("container {id} is not waiting to be started");
            return Err(failure(FailureKind::Precondition, text));
        }
        let starter = container
            .handler()
            .start(container.made(), container.barrier.as_ref())
            .map_err(|error| crate::error::launcher(&error))?;
        if starter.is_some() {
            container.barrier = starter;
        }
        container.starting = Some(asker);
        container.slice_kills = before;
        let container = self.containers.iter().find(|container| container.key == key);
        if let Some(barrier) = container.and_then(|container| container.barrier.as_ref()) {
            self.poller
                .watch(barrier.status_fd(), Token::Barrier(key))
                .map_err(|error| failed("cannot watch the exec barrier", &error))?;
        }
        Ok(())
    }

    pub(crate) fn barrier_ready(&mut self, key: u32) {
        let Some(container) = self.containers.iter_mut().find(|container| container.key == key) else {
            return;
        };
        let Some(outcome) = container.barrier.as_ref().and_then(Barrier::outcome) else {
            return;
        };
        self.past_barrier(key, outcome);
    }

    /// Init is dead. Its end of the barrier is closed, but whoever looks through /proc may hold it for a moment longer:
    /// a start that still waits is answered now, and the exit says the rest. A starter speaks for itself.
    pub(crate) fn barrier_over(&mut self, key: u32) {
        self.barrier_ready(key);
        let waits = |container: &mut Container| {
            let starter = container.barrier.as_ref().is_some_and(Barrier::has_starter);
            container.starting.is_some() && !starter
        };
        if self.container(key).is_some_and(waits) {
            self.past_barrier(key, Ok(()));
        }
    }

    fn past_barrier(&mut self, key: u32, outcome: Result<(), ExecFailure>) {
        let Some(container) = self.containers.iter_mut().find(|container| container.key == key) else {
            return;
        };
        if let Some(barrier) = container.barrier.take() {
            self.poller.forget(barrier.status_fd());
            if let (true, Err(_), Some(held)) =
                (barrier.has_starter(), &outcome, container.descriptors.as_ref())
            {
                // What does not start must not wait for ever; an init at our own barrier has ended already.
                container.killed_by_us |=
                    holdfast_sys::pidfd::signal(held.pidfd.as_fd(), libc::SIGKILL).is_ok();
            }
        }
        let held_end = container.held_end.take();
        if outcome.is_ok() && container.phase == Phase::Created {
            container.phase = Phase::Running;
            container.started_at = clock::now();
        }
        let started_at = container.started_at;
        let Some(asker) = container.starting.take() else {
            return;
        };
        let body = match outcome {
            Ok(()) => reply::Body::ContainerStarted(ContainerStarted { started_at }),
            Err(why) => reply::Body::Error(Failure {
                kind: kind_of(why.kind).into(),
                message: why.message,
                errno: why.errno,
            }),
        };
        self.answer(asker, body);
        if let Some(ended) = held_end {
            self.container_ended(key, ended);
        }
    }

    pub(crate) fn remove_container(&mut self, asker: Asker, id: &str) -> Result<(), Failure> {
        let Some(container) = self.containers.iter_mut().find(|container| container.id == id) else {
            // Gone already.
            self.answer_done(asker, Ok(()));
            return Ok(());
        };
        let key = container.key;
        if container.creating.is_some() {
            // Whoever began it is gone or has given up: nobody would want what comes of it.
            container.removing.push(asker);
            let text = format!("container {id} was removed while it was created");
            self.create_failed(key, failure(FailureKind::Precondition, text));
            return Ok(());
        }
        container.removing.push(asker);
        if container.removing.len() == 1 && !container.deleting {
            self.begin_removal(key);
        }
        Ok(())
    }

    pub(crate) fn begin_removal(&mut self, key: u32) {
        let Some(container) = self.containers.iter_mut().find(|container| container.key == key) else {
            return;
        };
        drop_barrier(&self.poller, container);
        if let Some(descriptors) = container
            .descriptors
            .as_ref()
            .filter(|_| container.exit.is_none())
        {
            let _ = holdfast_sys::pidfd::signal(descriptors.pidfd.as_fd(), libc::SIGKILL);
        }
        let (cgroup, traces) = (container.cgroup.clone(), container.traces());
        self.start_cgroup_job(Purpose::Remove { container: key }, move |all| {
            let _ = cgroup::kill(all, &cgroup);
            traces.delete_with(|| cgroup::remove(all, &cgroup))
        });
    }

    /// The cgroup is gone, or could not be made to go.
    pub(crate) fn removed(&mut self, key: u32, outcome: Outcome) {
        // A process leaves its cgroup a moment before it can be reaped.
        self.reap();
        let Some(container) = self.container(key) else {
            return;
        };
        match outcome {
            Err(failure) => self.finish_removal(key, &Err(failure)),
            Ok(_) if container.exit.is_some() || !container.ours => self.finish_removal(key, &Ok(())),
            Ok(_) => container.gone_by = Some(Instant::now() + REAP_LIMIT),
        }
    }

    /// Forgets a container whose end is on record, and tells those who wait for that.
    pub(crate) fn finish_removal(&mut self, key: u32, outcome: &Result<(), Failure>) {
        self.send_exit(key);
        let Some(container) = self.container(key) else {
            return;
        };
        container.gone_by = None;
        let askers = std::mem::take(&mut container.removing);
        if outcome.is_ok()
            && let Some(container) = self.take_container(key)
        {
            self.forget_exit(&container.id);
        }
        for asker in askers {
            self.answer_done(asker, outcome.clone());
        }
    }

    pub(crate) fn containers_on_time(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let keys: Vec<_> = self
            .containers
            .iter()
            .filter(|container| due(container.deadline()))
            .map(|container| container.key)
            .collect();
        for key in keys {
            let Some(container) = self.container(key) else {
                continue;
            };
            if due(container.creating.as_ref().map(|creating| creating.deadline)) {
                let opened = container
                    .creating
                    .as_ref()
                    .is_some_and(|creating| creating.opened);
                if opened {
                    // The builder has its own limit.
                    if let Some(creating) = &mut container.creating {
                        creating.deadline = now + BUILD_LIMIT;
                    }
                } else {
                    let text = format!("log {} cannot be opened: the disk hangs", container.log_path);
                    self.create_failed(key, failure(FailureKind::Internal, text));
                }
                continue;
            }
            if due(container.gone_by) {
                let text = format!("container {} was killed but does not end", container.id);
                self.finish_removal(key, &Err(failure(FailureKind::Precondition, text)));
                continue;
            }
            let event_due = due(container.event_due);
            let retry_due = due(container.retry.map(|(at, _)| at));
            if due(container.log.paused_until) {
                container.log.paused_until = None;
                self.watch_output(key);
            }
            if event_due {
                self.send_exit(key);
            }
            if retry_due {
                self.adopted_ended(key);
            }
        }
    }
}

/// An init that waits at its barrier ends by that.
fn drop_barrier(poller: &Poller, container: &mut Container) {
    if let Some(barrier) = container.barrier.take() {
        poller.forget(barrier.status_fd());
    }
}

/// Closes a container's descriptors.
pub(crate) fn let_go(poller: &Poller, container: &mut Container) {
    drop_barrier(poller, container);
    if let Some(descriptors) = container.descriptors.take() {
        for fd in descriptors.as_fds() {
            poller.forget(fd);
        }
    }
    // Those who are attached have got everything.
    for tap in container.log.taps.drain(..) {
        poller.forget(&tap.fd);
    }
}

/// The two ends of a new container's standard streams.
struct Pipes {
    inner: ChildStdio,
    outer: Option<Stdio>,
    log_state: OwnedFd,
}

impl Pipes {
    fn new(create: &CreateContainer) -> std::io::Result<Self> {
        let log_state = rustix::fs::memfd_create("holdfast-log", rustix::fs::MemfdFlags::CLOEXEC)?;
        if create.tty {
            return Ok(Pipes {
                inner: ChildStdio::Terminal,
                outer: None,
                log_state,
            });
        }
        let (stdout, out) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, err) = pipe_with(PipeFlags::CLOEXEC)?;
        nonblocking(&stdout)?;
        nonblocking(&stderr)?;
        let (inner_stdin, stdin) = match create.stdin {
            true => pipe_with(PipeFlags::CLOEXEC).map(|(read, write)| (Some(read), Some(write)))?,
            false => (None, None),
        };
        // The daemon writes to it, on threads that must not wait.
        stdin.as_ref().map_or(Ok(()), nonblocking)?;
        Ok(Pipes {
            inner: ChildStdio::Pipes {
                stdin: inner_stdin,
                stdout: Some(out),
                stderr: Some(err),
            },
            outer: Some(Stdio::Pipes {
                stdout,
                stderr,
                stdin,
            }),
            log_state,
        })
    }
}

pub(crate) fn nonblocking(fd: &OwnedFd) -> std::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

/// Ids become file names.
pub(crate) fn check_id(id: &str) -> Result<(), Failure> {
    let fine = !id.is_empty()
        && id.len() <= 128
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    match fine {
        true => Ok(()),
        false => Err(failure(
            FailureKind::Invalid,
            format!("{id:?} is not a container id"),
        )),
    }
}

fn rootfs(rootfs: Option<&message::Rootfs>) -> Result<Rootfs, Failure> {
    let rootfs =
        rootfs.ok_or_else(|| failure(FailureKind::Invalid, "the container has no root file system"))?;
    match (rootfs.fs_type.as_str(), rootfs.lowers.as_slice()) {
        ("overlay", [_, ..]) => Ok(Rootfs::Overlay {
            lowers: rootfs.lowers.iter().map(PathBuf::from).collect(),
            upper: PathBuf::from(&rootfs.upper),
            work: PathBuf::from(&rootfs.work),
            options: rootfs.options.clone(),
        }),
        ("bind", [source]) => Ok(Rootfs::Bind {
            source: PathBuf::from(source),
        }),
        (fs_type, lowers) => {
            let text = format!(
                "a root file system of type {fs_type:?} with {} directories",
                lowers.len()
            );
            Err(failure(FailureKind::Unsupported, text))
        }
    }
}

/// Whether the process is pid 1 of a PID namespace of its own: then the kernel kills the rest when it ends. Of one that
/// is gone already nobody knows, and its cgroup is killed to be sure.
pub(crate) fn leads_pid_namespace(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| parse_leads(&status))
}

fn parse_leads(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let mut numbers = numbers.unwrap_or_default().split_ascii_whitespace();
    numbers.next().is_some() && numbers.next_back() == Some("1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_one_of_its_own_namespace() {
        assert!(parse_leads("Name:\tx\nNSpid:\t4711\t1\n"));
        assert!(parse_leads("NSpid:\t4711\t7\t1\n"));
        assert!(!parse_leads("NSpid:\t4711\t12\n"));
        assert!(!parse_leads("NSpid:\t4711\n"));
        assert!(!parse_leads("NSpid:\t1\n"));
        assert!(!parse_leads(""));
    }

    /// A builder that hangs in the kernel, though killed, keeps its duplicates.
    #[test]
    fn the_barrier_of_a_container_that_is_removed_is_not_heard_of_again() {
        let mut monitor = Monitor::new().unwrap();
        let (barrier, init) = holdfast_sys::scm::pair().unwrap();
        let _held = barrier.try_clone().unwrap();
        monitor.poller.watch(&barrier, Token::Barrier(1)).unwrap();
        let mut container = Container::new(1, &CreateContainer::default());
        container.barrier = Some(Barrier::from_fd(barrier));
        monitor.containers.push(container);
        monitor.begin_removal(1);
        drop(init);
        let mut tokens = Vec::new();
        monitor.poller.wait(Some(Duration::ZERO), &mut tokens).unwrap();
        assert_eq!(tokens, []);
    }

    #[test]
    fn ids_are_file_names() {
        assert!(check_id(&"a1".repeat(32)).is_ok());
        for bad in ["", ".", "..", "a/b", "a\n", "a\0", &"x".repeat(200)] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn root_file_systems() {
        let of = |fs_type: &str, count| {
            rootfs(Some(&message::Rootfs {
                fs_type: fs_type.to_owned(),
                lowers: vec!["/l".to_owned(); count],
                ..message::Rootfs::default()
            }))
        };
        assert!(of("overlay", 2).is_ok() && of("bind", 1).is_ok());
        assert!(of("overlay", 0).is_err() && of("bind", 2).is_err() && of("zfs", 1).is_err());
        assert!(rootfs(None).is_err());
    }
}
