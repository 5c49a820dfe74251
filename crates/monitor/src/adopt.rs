//! Carrying on for a monitor that was killed, with what the daemon's vault kept.
//!
//! The pod's processes are then children of somebody else: they are watched by pidfd, and how they end may stay unknown.
//! Their streams were never closed, since the daemon held them too.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use holdfast_launcher::PodNamespaces;
use holdfast_monitor_api::descriptors::Shape;
use holdfast_monitor_api::message::{
    Adopt, AdoptContainer, CreateSandbox, Failure, FailureKind, Phase, SandboxCreated,
};
use holdfast_monitor_api::{ContainerDescriptors, SandboxDescriptors};

use crate::containers::{Container, check_id, leads_pid_namespace};
use crate::error::{chain, failed, failure};
use crate::exits;
use crate::monitor::Monitor;
use crate::poller::Token;
use crate::sandbox::{PAUSE, Sandbox};

impl Monitor {
    pub(crate) fn adopt(&mut self, adopt: Adopt, descriptors: Vec<OwnedFd>) -> Result<(), Failure> {
        let mut descriptors = descriptors.into_iter();
        if let Some(init) = adopt.init {
            if self.init.is_some() {
                return Err(failure(
                    FailureKind::Precondition,
                    "this monitor has a pod already",
                ));
            }
            self.initialise(init)?;
        }
        if self.init.is_none() {
            return Err(failure(
                FailureKind::Invalid,
                "the first Adopt must say which pod",
            ));
        }
        if let Some(created) = adopt.sandbox {
            let create = adopt.create_sandbox.unwrap_or_default();
            self.adopt_sandbox(&created, &create, &mut descriptors)?;
        }
        for adopted in adopt.containers {
            self.adopt_container(adopted, &mut descriptors)?;
        }
        Ok(())
    }

    fn adopt_sandbox(
        &mut self,
        created: &SandboxCreated,
        create: &CreateSandbox,
        from: &mut impl Iterator<Item = OwnedFd>,
    ) -> Result<(), Failure> {
        let held = SandboxDescriptors::take(created, from)
            .map_err(|error| failure(FailureKind::Invalid, chain(&error)))?;
        let mut sandbox = Sandbox::new(created.pause_pid, create);
        sandbox.ours = false;
        sandbox.exit = self.recorded(PAUSE);
        let mut namespaces = PodNamespaces::default();
        // If pause is dead by now, there is no mount namespace to be had and no container to be made in it.
        match namespaces.reopen_mnt(created.pause_pid, held.pidfd.as_fd()) {
            Ok(()) => sandbox.mnt = namespaces.mnt,
            Err(error) => eprintln!("holdfast-monitor: {}", chain(&error)),
        }
        if sandbox.exit.is_none() {
            self.poller
                .watch(&held.pidfd, Token::PausePidfd)
                .map_err(|error| failed("cannot watch pause", &error))?;
        }
        sandbox.descriptors = Some(held);
        self.sandbox = Some(sandbox);
        Ok(())
    }

    fn adopt_container(
        &mut self,
        adopted: AdoptContainer,
        from: &mut impl Iterator<Item = OwnedFd>,
    ) -> Result<(), Failure> {
        let (Some(create), Some(entry)) = (adopted.create, adopted.entry) else {
            return Err(failure(
                FailureKind::Invalid,
                "an adopted container without its data",
            ));
        };
        check_id(&create.container_id)?;
        let held = match entry.descriptors {
            0 => None,
            _ => Some(
                ContainerDescriptors::take(Shape::from(&entry), from)
                    .map_err(|error| failure(FailureKind::Invalid, chain(&error)))?,
            ),
        };
        let key = self.key();
        let mut container = Container::new(key, &create);
        container.ours = false;
        container.pid = entry.pid;
        container.started_at = entry.started_at;
        container.phase = Phase::try_from(entry.phase).unwrap_or(Phase::Running);
        // The old monitor may have seen the end without having told anybody.
        container.exit = entry.exit.or_else(|| self.recorded(&create.container_id));
        container.own_pid_namespace = leads_pid_namespace(entry.pid);
        container.descriptors = held;
        let over = container.exit.is_some();
        let lost = !over && container.descriptors.is_none();
        if over {
            container.phase = Phase::Exited;
            container.ended = container.exit.as_ref().map(|exit| (None, exit.finished_at));
        }
        if let Some(held) = container.descriptors.as_ref().filter(|_| !over) {
            self.poller
                .watch(&held.pidfd, Token::Pidfd(key))
                .map_err(|error| failed("cannot watch an adopted container", &error))?;
        }
        self.containers.push(container);
        if lost {
            // Nothing is left to learn it from.
            self.container_ended(key, None);
        } else if over {
            self.tell_adopted_exit(key);
        } else {
            self.watch_output(key);
        }
        Ok(())
    }

    fn tell_adopted_exit(&mut self, key: u32) {
        if let Some(container) = self.container(key) {
            container.event_due = Some(std::time::Instant::now());
        }
        self.finish_log(key);
    }

    fn recorded(&self, id: &str) -> Option<holdfast_monitor_api::message::Exit> {
        let init = self.init.as_ref()?;
        exits::read(Path::new(&init.state_dir), id)
    }
}
