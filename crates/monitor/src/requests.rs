//! The daemon's requests, by kind. Those that change sandbox, containers and execs are in their modules.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use holdfast_monitor_api::codec::MAX_DESCRIPTORS;
use holdfast_monitor_api::message::{
    ContainerEntry, Failure, FailureKind, Hello, Init, Inventory, Signal, reply, request,
};
use holdfast_monitor_api::{ContainerDescriptors, FEATURES, REVISION};
use holdfast_sys::{pidfd, process};

use crate::cgroup;
use crate::containers::{Container, check_id};
use crate::error::{failed, failure};
use crate::exits;
use crate::link::Listener;
use crate::monitor::{Asker, Monitor, Purpose};
use crate::poller::Token;

/// Containers in one datagram of an inventory, however few descriptors they have.
const ENTRIES: usize = 100;

impl Monitor {
    pub(crate) fn request(&mut self, asker: Asker, body: Option<request::Body>, descriptors: Vec<OwnedFd>) {
        use request::Body;
        let outcome = match body {
            None => Err(failure(
                FailureKind::Unsupported,
                "this monitor does not know that request",
            )),
            Some(Body::Hello(_)) => {
                self.answer(asker, reply::Body::Hello(self.hello()));
                Ok(())
            }
            Some(Body::Init(init)) => self.initialise(init).map(|()| self.answer_done(asker, Ok(()))),
            Some(Body::CreateSandbox(create)) => self.create_sandbox(asker, &create),
            Some(Body::CreateContainer(create)) => self.create_container(asker, &create),
            Some(Body::StartContainer(it)) => self.start_container(asker, &it.container_id),
            Some(Body::Signal(signal)) => self.signal(asker, &signal),
            Some(Body::ExecSync(exec)) => self.exec_sync(asker, &exec),
            Some(Body::ExecStream(exec)) => self.exec_stream(asker, &exec, descriptors),
            Some(Body::Attach(attach)) => self.attach(asker, &attach, descriptors),
            Some(Body::PodSockets(_)) => self.pod_sockets(asker),
            Some(Body::ReopenLog(it)) => self.reopen_log(asker, &it.container_id),
            Some(Body::RemoveContainer(it)) => self.remove_container(asker, &it.container_id),
            Some(Body::StopSandbox(_)) => self.stop_sandbox(asker),
            Some(Body::ForgetExit(it)) => {
                let checked = check_id(&it.container_id);
                checked.map(|()| {
                    self.forget_exit(&it.container_id);
                    self.answer_done(asker, Ok(()));
                })
            }
            Some(Body::Inventory(_)) => {
                self.inventory(asker);
                Ok(())
            }
            Some(Body::Reexec(_)) => self.reexec(asker, descriptors),
            Some(Body::Adopt(adopt)) => self
                .adopt(adopt, descriptors)
                .map(|()| self.answer_done(asker, Ok(()))),
            Some(Body::Shutdown(_)) => self.shut_down().map(|()| self.answer_done(asker, Ok(()))),
        };
        if let Err(failure) = outcome {
            self.answer(asker, reply::Body::Error(failure));
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            revision: REVISION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: FEATURES.iter().map(|name| (*name).to_owned()).collect(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            sandbox_id: self
                .init
                .as_ref()
                .map(|init| init.sandbox_id.clone())
                .unwrap_or_default(),
        }
    }

    pub(crate) fn initialise(&mut self, init: Init) -> Result<(), Failure> {
        if let Some(known) = &self.init {
            return match known.sandbox_id == init.sandbox_id {
                true => Ok(()),
                false => {
                    let text = format!("this monitor serves sandbox {}", known.sandbox_id);
                    Err(failure(FailureKind::Precondition, text))
                }
            };
        }
        check_id(&init.sandbox_id)?;
        let state_dir = Path::new(&init.state_dir);
        if !state_dir.is_absolute() || !Path::new(&init.pause_path).is_absolute() {
            return Err(failure(
                FailureKind::Invalid,
                "state_dir and pause_path must be absolute",
            ));
        }
        own_log(state_dir)
            .map_err(|error| failed(&format!("cannot open {}/monitor.log", init.state_dir), &error))?;
        if let Some(unprotected) = self.unprotected.take() {
            eprintln!("holdfast-monitor: {unprotected}");
        }
        exits::prepare(state_dir)
            .map_err(|error| failed(&format!("cannot make {}/exits", init.state_dir), &error))?;
        let listener = Listener::bind(state_dir)
            .map_err(|error| failed(&format!("cannot listen in {}", init.state_dir), &error))?;
        self.poller
            .watch(&listener, Token::Listener)
            .map_err(|error| failed("cannot watch the monitor's socket", &error))?;
        let hierarchy = match self.hierarchy.take() {
            Some(hierarchy) => hierarchy,
            None => cgroup::detect()?,
        };
        if !init.monitor_cgroup.is_empty() {
            // In this process, for a move of oneself is the cheap one; before there is anything to hold up.
            cgroup::join(&hierarchy, &init.monitor_cgroup)?;
        }
        self.hierarchy = Some(hierarchy);
        self.listener = Some(listener);
        self.init = Some(init);
        Ok(())
    }

    fn signal(&mut self, asker: Asker, signal: &Signal) -> Result<(), Failure> {
        // A signal to one that has ended and not been reaped is no error: an OOM kill would then pass for ours.
        self.reap();
        let container = self.known(&signal.container_id)?;
        let id = &signal.container_id;
        if !(1..=64).contains(&signal.signal) || (signal.all && signal.signal != libc::SIGKILL) {
            let text = format!("signal {} cannot be sent to container {id}", signal.signal);
            return Err(failure(FailureKind::Invalid, text));
        }
        let held = container
            .descriptors
            .as_ref()
            .filter(|_| container.ended.is_none());
        let Some(held) = held else {
            return Err(failure(
                FailureKind::NotFound,
                format!("container {id} has exited"),
            ));
        };
        if container.runtime.is_some() && signal.signal != libc::SIGKILL {
            let key = container.key;
            return self.signal_by_handler(asker, key, signal.signal);
        }
        match pidfd::signal(held.pidfd.as_fd(), signal.signal) {
            Ok(()) => container.killed_by_us |= signal.signal == libc::SIGKILL,
            // It is ending now.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(failed(&format!("cannot signal container {id}"), &error)),
        }
        if signal.all {
            let cgroup = container.cgroup.clone();
            self.start_cgroup_job(Purpose::KillAll { asker }, move |all| cgroup::kill(all, &cgroup));
        } else {
            self.answer_done(asker, Ok(()));
        }
        Ok(())
    }

    /// Everything, in as many replies as its descriptors need.
    fn inventory(&mut self, asker: Asker) {
        let Some(link) = self
            .link
            .as_mut()
            .filter(|link| link.generation == asker.generation)
        else {
            return;
        };
        let mut part = Inventory::default();
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        if let Some(sandbox) = &self.sandbox {
            part.pause_exit = sandbox.exit.clone();
            if let Some(held) = &sandbox.descriptors {
                part.sandbox = Some(held.announce(sandbox.pause_pid, Vec::new()));
                fds = held.as_fds();
            }
        }
        for container in self
            .containers
            .iter()
            .filter(|container| container.creating.is_none())
        {
            let own = container
                .descriptors
                .as_ref()
                .map(ContainerDescriptors::as_fds)
                .unwrap_or_default();
            if fds.len() + own.len() >= MAX_DESCRIPTORS || part.containers.len() >= ENTRIES {
                part.more = true;
                link.reply(asker.id, reply::Body::Inventory(std::mem::take(&mut part)), &fds);
                fds.clear();
            }
            part.containers.push(entry(container));
            fds.extend(own);
        }
        link.reply(asker.id, reply::Body::Inventory(part), &fds);
    }

    fn shut_down(&mut self) -> Result<(), Failure> {
        let alive = self.containers.iter().find(|container| !container.is_over());
        if let Some(container) = alive {
            let text = format!("container {} has not exited", container.id);
            return Err(failure(FailureKind::Precondition, text));
        }
        let pause = self
            .sandbox
            .as_ref()
            .is_some_and(|sandbox| sandbox.exit.is_none());
        if pause || !self.builds.is_empty() || !self.jobs.is_empty() {
            return Err(failure(
                FailureKind::Precondition,
                "the sandbox has not been stopped",
            ));
        }
        for container in &mut self.containers {
            container.log.abandon();
        }
        self.leaving = true;
        Ok(())
    }
}

/// Makes `monitor.log` in the pod's directory the standard error, which was the daemon's until now.
fn own_log(state_dir: &Path) -> io::Result<()> {
    let path = state_dir.join("monitor.log");
    let log = File::options().append(true).create(true).mode(0o600).open(path)?;
    process::set_stdio(log.as_fd(), 2)
}

pub(crate) fn entry(container: &Container) -> ContainerEntry {
    let shape = container.descriptors.as_ref().map(ContainerDescriptors::shape);
    ContainerEntry {
        container_id: container.id.clone(),
        phase: container.phase.into(),
        pid: container.pid,
        exit: container.exit.clone(),
        started_at: container.started_at,
        descriptors: container
            .descriptors
            .as_ref()
            .map_or(0, |held| u32::try_from(held.as_fds().len()).unwrap_or(0)),
        tty: shape.is_some_and(|shape| shape.tty),
        has_stdin: shape.is_some_and(|shape| shape.has_stdin),
        has_log_state: shape.is_some_and(|shape| shape.has_log_state),
        has_mounts: shape.is_some_and(|shape| shape.has_mounts),
    }
}
