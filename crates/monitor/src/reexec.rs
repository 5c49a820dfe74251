//! A new program for a running monitor, in place: same pid, same children, same connection.
//!
//! 1. The request's descriptor is the new executable. A child runs it with `--probe` on a snapshot of the state: a
//!    program that does not start, or does not understand the state, is found out before it matters.
//! 2. When no builder and no job is at work (a few seconds at most), the state goes into a memfd, descriptors lose
//!    close-on-exec, and execveat replaces the program. If that fails, everything is put back and the old one goes on.
//! 3. The new program, started with `--resume`, takes the descriptors by number and answers the request.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use holdfast_launcher::Barrier;
use holdfast_monitor_api::descriptors::Shape;
use holdfast_monitor_api::message::{Failure, FailureKind, Phase};
use holdfast_monitor_api::{ContainerDescriptors, SandboxDescriptors};
use holdfast_sys::exec::Image;
use holdfast_sys::pidfd::Ended;
use holdfast_sys::process::Control;
use holdfast_sys::{clone, heap, memfd, process};
use prost::Message;
use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::Error;
use crate::cgroup;
use crate::containers::Container;
use crate::error::{failed, failure};
use crate::exec::{Exec, Streaming};
use crate::frame::Stream;
use crate::link::{Link, Listener};
use crate::monitor::{Asker, Monitor};
use crate::output::Output;
use crate::poller::Token;
use crate::pump::{Running, Tap};
use crate::sandbox::Sandbox;
use crate::snapshot::{self, ContainerState, ExecState, OutputState, SandboxState, Snapshot, TapState};

/// How long a re-exec may wait for the probe and for work in flight.
const LIMIT: Duration = Duration::from_secs(10);
/// A snapshot at most: a thousand containers with their names and paths.
const SNAPSHOT: usize = 4 * 1024 * 1024;
const NAME: &str = "holdfast-monitor";

/// A re-exec that was asked for.
pub(crate) struct Pending {
    asker: Asker,
    executable: OwnedFd,
    probe: i32,
    probed: bool,
    pub deadline: Instant,
}

impl Monitor {
    pub(crate) fn reexec(&mut self, asker: Asker, descriptors: Vec<OwnedFd>) -> Result<(), Failure> {
        let Ok([executable]) = <[OwnedFd; 1]>::try_from(descriptors) else {
            return Err(failure(
                FailureKind::Invalid,
                "a re-exec needs the new program's descriptor",
            ));
        };
        if self.reexec.is_some() {
            return Err(failure(FailureKind::Precondition, "a re-exec is under way"));
        }
        let probe = self
            .snapshot(asker)
            .and_then(|(state, _)| memfd::sealed("monitor-probe", &state.encode_to_vec()))
            .and_then(|state| spawn_probe(&executable, &state))
            .map_err(|error| failed("cannot check the new program", &error))?;
        self.reexec = Some(Pending {
            asker,
            executable,
            probe,
            probed: false,
            deadline: Instant::now() + LIMIT,
        });
        Ok(())
    }

    /// Whether `pid` was the probe.
    pub(crate) fn probe_ended(&mut self, pid: i32, ended: Ended) -> bool {
        let Some(pending) = self.reexec.as_mut().filter(|pending| pending.probe == pid) else {
            return false;
        };
        pending.probe = 0;
        pending.probed = true;
        if ended != Ended::Exited(0) {
            let asker = pending.asker;
            let text = format!(
                "the new program does not take this monitor's state: its check ended with {}",
                ended.code()
            );
            self.reexec = None;
            self.answer_done(asker, Err(failure(FailureKind::Invalid, text)));
        }
        true
    }

    /// Goes through with a re-exec once nothing is in flight. Returns only if it did not happen.
    pub(crate) fn try_reexec(&mut self) {
        let Some(pending) = &self.reexec else {
            return;
        };
        if !pending.probed || !self.at_rest() {
            if Instant::now() >= pending.deadline {
                let asker = pending.asker;
                // A program that hangs in its check. Nobody has reaped it, so the number is its own.
                if let Some(probe) = Pid::from_raw(pending.probe) {
                    let _ = kill_process(probe, Signal::KILL);
                }
                self.reexec = None;
                let failure = failure(
                    FailureKind::Precondition,
                    "the monitor does not come to rest: try again",
                );
                self.answer_done(asker, Err(failure));
            }
            return;
        }
        let Some(pending) = self.reexec.take() else {
            return;
        };
        if let Some(link) = &mut self.link {
            link.settle();
        }
        let error = self.replace(&pending);
        self.answer_done(pending.asker, Err(failed("cannot run the new program", &error)));
    }

    fn at_rest(&self) -> bool {
        let moving = |container: &Container| {
            container.creating.is_some()
                || container.starting.is_some()
                || !container.reopening.is_empty()
                || container.deleting
                || !container.removing.is_empty()
        };
        // Who waits for the sandbox's end is not handed over.
        let stopping = |sandbox: &Sandbox| !sandbox.stopping.is_empty();
        self.builds.is_empty()
            && self.jobs.is_empty()
            && !self.sandbox.as_ref().is_some_and(stopping)
            && !self.containers.iter().any(moving)
            && !self.execs.iter().any(|exec| exec.failure.is_some())
    }

    fn replace(&self, pending: &Pending) -> io::Error {
        let attempt = || {
            let (state, kept) = self.snapshot(pending.asker)?;
            let memfd = memfd::sealed("monitor-state", &state.encode_to_vec())?;
            let mut kept = kept;
            kept.push(memfd.as_fd());
            let image = image("--resume", &memfd)?;
            for fd in &kept {
                rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
            }
            let error = image.exec_fd(pending.executable.as_fd());
            for fd in &kept {
                rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
            }
            Err::<(), _>(error)
        };
        match attempt() {
            Err(error) => error,
            Ok(()) => io::Error::other("execveat returned"),
        }
    }

    /// The state, and the descriptors that it names.
    fn snapshot(&self, asker: Asker) -> io::Result<(Snapshot, Vec<BorrowedFd<'_>>)> {
        let mut kept = Kept::default();
        let state = Snapshot {
            init: self.init.clone(),
            sandbox: self
                .sandbox
                .as_ref()
                .map(|sandbox| sandbox_state(sandbox, &mut kept)),
            containers: self
                .containers
                .iter()
                .map(|it| container_state(it, &mut kept))
                .collect(),
            execs: self
                .execs
                .iter()
                .map(|exec| exec_state(exec, &mut kept))
                .collect(),
            link: self.link.as_ref().map(|link| kept.add(link.as_fd())),
            listener: self.listener.as_ref().map(|listener| kept.add(listener.as_fd())),
            generation: self.generation,
            last_key: self.last_key,
            asker: asker.id,
            valid: true,
        };
        match state.encoded_len() <= SNAPSHOT {
            true => Ok((state, kept.0)),
            false => Err(io::Error::other("the monitor's state is too large")),
        }
    }
}

fn spawn_probe(executable: &OwnedFd, state: &OwnedFd) -> io::Result<i32> {
    let image = image("--probe", state)?;
    let child = clone::fork(|| {
        let _ = process::control(Control::ParentDeathSignal(libc::SIGKILL));
        let _ = process::close_all_but(&mut [executable.as_raw_fd(), state.as_raw_fd()]);
        let _ = rustix::io::fcntl_setfd(state, FdFlags::empty());
        image.exec_fd(executable.as_fd()).raw_os_error().unwrap_or(1)
    })?;
    Ok(child.pid)
}

fn image(mode: &str, state: &OwnedFd) -> io::Result<Image> {
    let arguments = [NAME.to_owned(), mode.to_owned(), state.as_raw_fd().to_string()];
    let arguments: Result<Vec<_>, _> = arguments.into_iter().map(CString::new).collect();
    Ok(Image::new(arguments?, Vec::new()))
}

/// Descriptors that must outlive the exec.
#[derive(Default)]
struct Kept<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Kept<'a> {
    fn add(&mut self, fd: BorrowedFd<'a>) -> i32 {
        self.0.push(fd);
        fd.as_raw_fd()
    }

    fn add_all(&mut self, fds: Vec<BorrowedFd<'a>>) -> Vec<i32> {
        fds.into_iter().map(|fd| self.add(fd)).collect()
    }
}

fn sandbox_state<'a>(sandbox: &'a Sandbox, kept: &mut Kept<'a>) -> SandboxState {
    let held = sandbox.descriptors.as_ref();
    SandboxState {
        pause_pid: sandbox.pause_pid,
        ours: sandbox.ours,
        created: held.map(|held| held.announce(sandbox.pause_pid, Vec::new())),
        descriptors: kept.add_all(held.map(SandboxDescriptors::as_fds).unwrap_or_default()),
        mnt: sandbox.mnt.as_ref().map(|fd| kept.add(fd.as_fd())),
        cgroup: Some(snapshot::cgroup(&sandbox.cgroup)),
        netns_path: sandbox.netns_path.clone(),
        exit: sandbox.exit.clone(),
    }
}

fn container_state<'a>(container: &'a Container, kept: &mut Kept<'a>) -> ContainerState {
    let held = container.descriptors.as_ref();
    let shape = held.map(ContainerDescriptors::shape);
    let pump = container.log.running.as_ref();
    ContainerState {
        id: container.id.clone(),
        name: container.name.clone(),
        cgroup: Some(snapshot::cgroup(&container.cgroup)),
        log_path: container.log_path.clone(),
        manages_cgroup: container.manages_cgroup,
        phase: container.phase.into(),
        pid: container.pid,
        ours: container.ours,
        own_pid_namespace: container.own_pid_namespace,
        descriptors: kept.add_all(held.map(ContainerDescriptors::as_fds).unwrap_or_default()),
        tty: shape.is_some_and(|shape| shape.tty),
        has_stdin: shape.is_some_and(|shape| shape.has_stdin),
        has_log_state: shape.is_some_and(|shape| shape.has_log_state),
        has_mounts: shape.is_some_and(|shape| shape.has_mounts),
        runtime: container.runtime.clone(),
        killed_by_us: container.killed_by_us,
        bundle: container.bundle.clone(),
        barrier: container
            .barrier
            .as_ref()
            .map(|barrier| kept.add(barrier.status_fd())),
        started_at: container.started_at,
        pump_pid: pump.filter(|pump| !pump.reaped).map_or(0, |pump| pump.pid),
        pump_control: pump.map(|pump| kept.add(pump.control.as_fd())),
        pump_finishing: container.log.finishing,
        pump_drained: container.log.drained,
        stdout_ended: container.log.stdout_ended,
        stderr_ended: container.log.stderr_ended,
        exit: container.exit.clone(),
        event_due: container.event_due.is_some(),
        taps: container
            .log
            .taps
            .iter()
            .map(|tap| tap_state(tap, kept))
            .collect(),
    }
}

fn tap_state<'a>(tap: &'a Tap, kept: &mut Kept<'a>) -> TapState {
    TapState {
        key: tap.key,
        stderr: tap.stream == Stream::Stderr,
        fd: kept.add(tap.fd.as_fd()),
        missed: tap.missed,
    }
}

fn exec_state<'a>(exec: &'a Exec, kept: &mut Kept<'a>) -> ExecState {
    let left = |at: Option<Instant>| {
        at.map(|at| {
            let left = at.saturating_duration_since(Instant::now()).as_millis();
            u64::try_from(left).unwrap_or(u64::MAX)
        })
    };
    let mut number = |fd: Option<BorrowedFd<'a>>| fd.map(|fd| kept.add(fd));
    let streaming = exec.streaming.as_ref();
    ExecState {
        streaming: streaming.is_some(),
        told: streaming.is_some_and(|streaming| streaming.told),
        terminal: number(
            streaming
                .and_then(|streaming| streaming.terminal.as_ref())
                .map(AsFd::as_fd),
        ),
        generation: exec.asker.generation,
        asker: exec.asker.id,
        container_id: exec.container_id.clone(),
        cgroup: Some(snapshot::cgroup(&exec.cgroup)),
        leaf: exec.leaf.clone(),
        pid: exec.pid,
        pidfd: number(exec.pidfd.as_ref().map(AsFd::as_fd)),
        barrier: number(exec.barrier.as_ref().map(Barrier::status_fd)),
        stdout: number(exec.stdout.as_ref().map(AsFd::as_fd)),
        stderr: number(exec.stderr.as_ref().map(AsFd::as_fd)),
        out: Some(output_state(&exec.out, &mut number)),
        err: Some(output_state(&exec.err, &mut number)),
        limit: exec.limit,
        times_out_in: left(exec.times_out),
        timed_out: exec.timed_out,
        dies_in: left(exec.dies_by),
    }
}

fn output_state<'a>(
    output: &'a Output,
    number: &mut impl FnMut(Option<BorrowedFd<'a>>) -> Option<i32>,
) -> OutputState {
    OutputState {
        small: output.small().to_vec(),
        large: number(output.large()),
        size: output.size(),
        discarded: output.discarded,
    }
}

/// `--probe`: whether this program understands the state. Touches nothing.
pub(crate) fn probe(memfd: &str) -> Result<(), Error> {
    read(memfd).map(drop)
}

fn read(memfd: &str) -> Result<Snapshot, Error> {
    let broken = |what: String| Error::Resume { what };
    let number: i32 = memfd.parse().map_err(|_| Error::Usage)?;
    let memfd = take(number)?;
    let bytes = memfd::read_sealed(memfd, SNAPSHOT).map_err(|error| broken(error.to_string()))?;
    let state = Snapshot::decode(bytes.as_slice()).map_err(|error| broken(error.to_string()))?;
    match state.valid {
        true => Ok(state),
        false => Err(broken("it is not marked valid".to_owned())),
    }
}

/// `--resume`: carries on with the state that the old program of this process has left.
pub(crate) fn resume(memfd: &str) -> Result<Monitor, Error> {
    heap::stay_small();
    let _ = rustix::thread::set_name(c"holdfast-monito");
    let state = read(memfd)?;
    process::control(process::Control::ChildSubreaper(true)).map_err(Error::setup("become a subreaper"))?;
    let mut monitor = Monitor::new()?;
    monitor.last_key = state.last_key;
    monitor.generation = state.generation;
    if let Some(number) = state.listener {
        let directory = state
            .init
            .as_ref()
            .map(|init| init.state_dir.clone())
            .unwrap_or_default();
        let listener = Listener::resume(take(number)?, directory.as_ref());
        watch(&monitor, &listener, Token::Listener)?;
        monitor.listener = Some(listener);
    }
    if state.init.is_some() && monitor.hierarchy.is_none() {
        let detected = cgroup::detect().map_err(|failure| Error::Resume {
            what: failure.message,
        })?;
        monitor.hierarchy = Some(detected);
    }
    monitor.init = state.init;
    if let Some(number) = state.link {
        let link = Link::new(take(number)?, state.generation).map_err(Error::setup("take the connection"))?;
        watch(&monitor, &link, Token::Link)?;
        monitor.link = Some(link);
    }
    if let Some(sandbox) = state.sandbox {
        monitor.resume_sandbox(sandbox)?;
    }
    for container in state.containers {
        monitor.resume_container(container)?;
    }
    for exec in state.execs {
        monitor.resume_exec(exec)?;
    }
    let asker = Asker {
        generation: state.generation,
        id: state.asker,
    };
    monitor.answer_done(asker, Ok(()));
    // SIGCHLD of the time between may have been taken by the old program.
    monitor.reap();
    Ok(monitor)
}

impl Monitor {
    fn resume_sandbox(&mut self, state: SandboxState) -> Result<(), Error> {
        let mut sandbox = Sandbox::new(state.pause_pid, &Default::default());
        sandbox.ours = state.ours;
        sandbox.cgroup = cgroup::reference(state.cgroup.as_ref());
        sandbox.netns_path = state.netns_path;
        sandbox.exit = state.exit;
        sandbox.mnt = state.mnt.map(take).transpose()?;
        if let Some(created) = state.created {
            let held = SandboxDescriptors::take(&created, &mut take_all(state.descriptors)?)
                .map_err(|error| resume_error(&error))?;
            if !sandbox.ours && sandbox.exit.is_none() {
                watch(self, &held.pidfd, Token::PausePidfd)?;
            }
            sandbox.descriptors = Some(held);
        }
        self.sandbox = Some(sandbox);
        Ok(())
    }

    fn resume_container(&mut self, state: ContainerState) -> Result<(), Error> {
        let key = self.key();
        let mut container = Container::new(key, &Default::default());
        container.id = state.id;
        container.name = state.name;
        container.cgroup = cgroup::reference(state.cgroup.as_ref());
        container.log_path = state.log_path;
        container.manages_cgroup = state.manages_cgroup;
        container.runtime = state.runtime;
        container.killed_by_us = state.killed_by_us;
        container.bundle = state.bundle;
        container.phase = Phase::try_from(state.phase).unwrap_or(Phase::Running);
        container.pid = state.pid;
        container.ours = state.ours;
        container.own_pid_namespace = state.own_pid_namespace;
        container.started_at = state.started_at;
        container.barrier = state.barrier.map(take).transpose()?.map(Barrier::from_fd);
        container.ended = state.exit.as_ref().map(|exit| (None, exit.finished_at));
        container.exit = state.exit;
        container.event_due = state.event_due.then(Instant::now);
        let log = &mut container.log;
        log.finishing = state.pump_finishing;
        log.drained = state.pump_drained;
        log.stdout_ended = state.stdout_ended;
        log.stderr_ended = state.stderr_ended;
        if let Some(control) = state.pump_control {
            log.running = Some(Running {
                pid: state.pump_pid,
                control: take(control)?,
                reaped: state.pump_pid == 0,
                opener: false,
            });
        }
        if !state.descriptors.is_empty() {
            let shape = Shape {
                tty: state.tty,
                has_stdin: state.has_stdin,
                has_log_state: state.has_log_state,
                has_mounts: state.has_mounts,
            };
            let held = ContainerDescriptors::take(shape, &mut take_all(state.descriptors)?)
                .map_err(|error| resume_error(&error))?;
            if !container.ours && container.ended.is_none() {
                watch(self, &held.pidfd, Token::Pidfd(key))?;
            }
            container.descriptors = Some(held);
        }
        for tap in state.taps {
            container.log.taps.push(self.resume_tap(&tap)?);
        }
        self.containers.push(container);
        self.watch_pump(key);
        self.watch_output(key);
        Ok(())
    }

    fn resume_tap(&self, state: &TapState) -> Result<Tap, Error> {
        let stream = match state.stderr {
            false => Stream::Stdout,
            true => Stream::Stderr,
        };
        let mut tap = Tap::new(state.key, stream, take(state.fd)?);
        tap.missed = state.missed;
        let watched = self.poller.watch_reader(&tap.fd, Token::Tap(tap.key));
        watched.map_err(Error::setup("watch who is attached"))?;
        Ok(tap)
    }

    fn resume_exec(&mut self, state: ExecState) -> Result<(), Error> {
        let key = self.key();
        let number = |number: Option<i32>| number.map(take).transpose();
        let at =
            |left: Option<u64>| left.and_then(|left| Instant::now().checked_add(Duration::from_millis(left)));
        let exec = Exec {
            key,
            asker: Asker {
                generation: state.generation,
                id: state.asker,
            },
            container_id: state.container_id,
            cgroup: cgroup::reference(state.cgroup.as_ref()),
            leaf: state.leaf,
            pid: state.pid,
            pidfd: number(state.pidfd)?,
            barrier: number(state.barrier)?.map(Barrier::from_fd),
            stdout: number(state.stdout)?,
            stderr: number(state.stderr)?,
            out: output(state.out.unwrap_or_default())?,
            err: output(state.err.unwrap_or_default())?,
            limit: state.limit,
            times_out: at(state.times_out_in),
            timed_out: state.timed_out,
            dies_by: at(state.dies_in),
            failure: None,
            streaming: match state.streaming {
                true => Some(Streaming {
                    terminal: number(state.terminal)?,
                    told: state.told,
                }),
                false => None,
            },
        };
        for fd in [&exec.stdout, &exec.stderr].into_iter().flatten() {
            watch(self, fd, Token::ExecOutput(key))?;
        }
        if let Some(barrier) = &exec.barrier {
            watch(self, barrier.status_fd(), Token::ExecBarrier(key))?;
        }
        self.execs.push(exec);
        Ok(())
    }
}

fn output(state: OutputState) -> Result<Output, Error> {
    let large = state.large.map(take).transpose()?;
    Ok(Output::resumed(state.small, large, state.size, state.discarded))
}

fn take(number: i32) -> Result<OwnedFd, Error> {
    process::adopt(number).map_err(Error::setup("take a descriptor of the old program"))
}

fn take_all(numbers: Vec<i32>) -> Result<std::vec::IntoIter<OwnedFd>, Error> {
    let fds: Result<Vec<_>, _> = numbers.into_iter().map(take).collect();
    Ok(fds?.into_iter())
}

fn resume_error(error: &holdfast_monitor_api::Error) -> Error {
    Error::Resume {
        what: error.to_string(),
    }
}

fn watch(monitor: &Monitor, fd: impl AsFd, token: Token) -> Result<(), Error> {
    monitor
        .poller
        .watch(fd, token)
        .map_err(Error::setup("watch a descriptor"))
}
