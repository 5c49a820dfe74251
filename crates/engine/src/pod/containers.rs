//! What a pod's owner does with the pod's containers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::{
    ContainerEvent, ContainerId, ContainerRecord, ContainerSpec, ContainerState, ContainerUser, ExitInfo,
    NamespaceMode, ResolvedImage, SandboxState, Signal,
};
use holdfast_monitor_api::message::{ContainerStarted, ExecSync, Exit, FailureKind};
use holdfast_monitor_api::{Client, Error as MonitorError};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::container::{Container, Send, Stop};
use super::owner::Pod;
use super::{Command, Done, create, exit_info};
use crate::config::bounds;
use crate::shared::{new_container_id, new_exec_id, now};
use crate::waiters::{Reply, Waiters};
use crate::{Error, ExecOutput, ExecRequest, Happened, spec};

impl Pod {
    pub(super) async fn on_container_command(&mut self, command: Command) {
        match command {
            Command::CreateContainer { spec, reply } => self.create(*spec, reply),
            Command::StartContainer { id, reply } => self.start_container(id, reply),
            Command::StopContainer { id, grace, reply } => match self.containers.contains_key(&id) {
                true => self.stop_container(id, grace, Some(reply)),
                false => drop(reply.send(Ok(()))),
            },
            Command::RemoveContainer { id, reply } => match self.containers.get_mut(&id) {
                Some(container) => {
                    container.unclaimed_until = None;
                    container.removal.get_or_insert_default().add(id.as_str(), reply);
                }
                None => drop(reply.send(Ok(()))),
            },
            Command::Exec { id, request, reply } => match self.exec(id, &request) {
                Ok(run) => drop(self.work.spawn(async move {
                    let _ = reply.send(run.await);
                    Done::Nothing
                })),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::ReopenLog { id, reply } => self.reopen_log(id, reply),
            Command::UpdateContainer { id, resources, reply } => self.update_container(id, *resources, reply),
            Command::UpdatePod { resources, reply } => self.update_pod(*resources, reply),
            other => self.on_stream_command(other),
        }
    }

    pub(super) async fn on_container_done(&mut self, done: Done) {
        match done {
            Done::ContainerBuilt(id, Ok(built)) => self.container_built(id, *built).await,
            Done::ContainerBuilt(id, Err(failed)) => self.container_not_built(id, failed),
            Done::Started(id, outcome) => self.started(id, outcome).await,
            Done::SignalFailed(id, error) => self.signal_failed(id, error),
            Done::ContainerRemoved(id, failures) => self.container_removed(id, failures).await,
            Done::StdinBack(id, stdin) => self.stdin_back(id, stdin),
            _ => {}
        }
    }

    pub(super) fn on_container_timers(&mut self, now: Instant) {
        let ids: Vec<ContainerId> = self.containers.keys().copied().collect();
        for id in ids {
            let Some(container) = self.containers.get_mut(&id) else {
                continue;
            };
            if container.unclaimed_until.is_some_and(|until| until <= now) {
                info!(container = %id, "nobody came back for this container: it is removed");
                container.unclaimed_until = None;
                container.removal.get_or_insert_default();
            }
            let send = container.on_time(now);
            self.send(id, send);
        }
    }

    fn show_container(&self, id: ContainerId) {
        if let Some(container) = self.containers.get(&id) {
            let views = &self.context.shared.views;
            views.containers.set(id, container.record.clone());
        }
    }

    pub(super) async fn save_container(&self, id: ContainerId) -> Result<(), Error> {
        let Some(container) = self.containers.get(&id) else {
            return Ok(());
        };
        self.show_container(id);
        // The removal of the record may be done already: one that is written now would never go.
        if container.removal_running {
            return Ok(());
        }
        self.context
            .shared
            .disk
            .put_container(container.record.clone())
            .await
    }

    pub(super) async fn save_container_or_warn(&self, id: ContainerId) {
        if let Err(error) = self.save_container(id).await {
            error!(container = %id, "{}", error.chain());
        }
    }

    // ---- create

    fn create(&mut self, wanted: ContainerSpec, reply: Reply<ContainerId>) {
        if self.removing() || self.record.state != SandboxState::Ready {
            let (id, state) = (self.id().to_string(), self.record.state.name());
            let wanted = "containers are created in a ready pod only";
            let _ = reply.send(Err(Error::State {
                what: "pod",
                id,
                state,
                wanted,
            }));
            return;
        }
        // Who makes containers in it has claimed the pod, whether the answer to its creation was heard or not.
        self.unclaimed_until = None;
        if let Some(known) = self
            .containers
            .values_mut()
            .find(|c| c.record.spec.metadata == wanted.metadata)
        {
            join(known, &wanted, reply);
            return;
        }
        match self.new_container(wanted) {
            Ok((container, plan)) => {
                let id = container.record.id;
                let container = Container {
                    creating: Some(Waiters::one(reply)),
                    ..container
                };
                self.containers.insert(id, container);
                self.work
                    .spawn(async move { Done::ContainerBuilt(id, create::build(plan).await) });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn new_container(&self, wanted: ContainerSpec) -> Result<(Container, create::Plan), Error> {
        if self.containers.len() >= bounds::CONTAINERS {
            return Err(Error::TooMany {
                what: "containers on record",
                id: self.id().to_string(),
                limit: bounds::CONTAINERS,
            });
        }
        let client = self.client().ok_or_else(|| self.no_monitor())?;
        let id = new_container_id()?;
        let target_pid = match wanted
            .security
            .namespaces
            .as_ref()
            .map(|namespaces| namespaces.pid)
        {
            Some(NamespaceMode::Target(target)) => self
                .containers
                .get(&target)
                .filter(|container| container.state() == ContainerState::Running)
                .and_then(|container| container.record.pid),
            _ => None,
        };
        let log_path = if wanted.log_path.is_empty() || self.record.spec.log_directory.is_empty() {
            String::new()
        } else {
            Path::new(&self.record.spec.log_directory)
                .join(&wanted.log_path)
                .to_string_lossy()
                .into_owned()
        };
        let record = Arc::new(ContainerRecord {
            id,
            sandbox: self.id(),
            state: ContainerState::Creating,
            created_at: now(),
            started_at: 0,
            finished_at: 0,
            pid: None,
            exit: None,
            image: ResolvedImage::default(),
            cgroup: self.record.cgroup_of(id.as_str()),
            log_path,
            user: ContainerUser::default(),
            stop_signal: Signal::TERM,
            oci_spec: String::new(),
            snapshot_owed: true,
            mount_images: Vec::new(),
            undo: None,
            runtime: self.record.runtime.clone(),
            spec: wanted,
        });
        let plan = create::Plan {
            context: self.context.clone(),
            client,
            pod: self.record.clone(),
            record: record.clone(),
            target_pid,
        };
        Ok((Container::new(record), plan))
    }

    async fn container_built(&mut self, id: ContainerId, built: create::Built) {
        let unclaimed_after = self.context.shared.config.unclaimed_after;
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        let create::Built {
            container: made,
            user,
            stop_signal,
            image,
            mount_images,
            oci_spec,
        } = built;
        container.vault = Some(made.descriptors);
        let record = container.edit();
        (record.user, record.stop_signal, record.image) = (user, stop_signal, image);
        (record.pid, record.oci_spec) = (Some(made.pid), oci_spec);
        record.mount_images = mount_images;
        let waiters = container.creating.take().unwrap_or_default();
        if let Err(illegal) = container.apply(ContainerEvent::Created) {
            error!(container = %id, "{illegal}");
        }
        let saved = self.save_container(id).await;
        let stopping = self.removing() || self.record.state != SandboxState::Ready;
        let outcome = match saved {
            Ok(()) if stopping => Err(Error::State {
                what: "pod",
                id: self.id().to_string(),
                state: self.record.state.name(),
                wanted: "it was stopped while the container was created",
            }),
            other => other,
        };
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        if outcome.is_err() {
            container.removal.get_or_insert_default();
        }
        let failed = outcome.is_err();
        let heard = waiters.settle(outcome.map(|()| id));
        if failed {
            return;
        }
        if !heard {
            container.unclaimed_until = Some(Instant::now() + unclaimed_after);
        }
        self.announce_container(id, Happened::Created);
    }

    fn container_not_built(&mut self, id: ContainerId, failed: create::Failed) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        let waiters = container.creating.take().unwrap_or_default();
        if failed.leftovers.is_empty() {
            self.containers.remove(&id);
        } else {
            warn!(container = %id, "not everything could be taken back: {}", failed.leftovers.join("; "));
            let _ = container.apply(ContainerEvent::Unwound);
            self.schedule_retry();
        }
        waiters.settle(Err(failed.error));
    }

    // ---- start

    fn start_container(&mut self, id: ContainerId, reply: Reply<()>) {
        let client = self.client().ok_or_else(|| self.no_monitor());
        let Some(container) = self.containers.get_mut(&id) else {
            let _ = reply.send(Err(Error::NotFound {
                what: "container",
                id: id.to_string(),
            }));
            return;
        };
        container.unclaimed_until = None;
        if let Some(waiters) = &mut container.starting {
            waiters.add(id.as_str(), reply);
            return;
        }
        let ending = container.removal.is_some() || container.stop.is_some();
        if container.state() != ContainerState::Created || ending {
            let state = container.state().name();
            let wanted = match ending {
                true => "it is being stopped or removed",
                false => "only a created container can be started",
            };
            let _ = reply.send(Err(Error::State {
                what: "container",
                id: id.to_string(),
                state,
                wanted,
            }));
            return;
        }
        match client {
            Ok(client) => {
                container.starting = Some(Waiters::one(reply));
                self.work.spawn(async move {
                    let started = client.start(id.as_str()).await;
                    Done::Started(id, started.map_err(Error::monitor("starting container", id)))
                });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    async fn started(&mut self, id: ContainerId, outcome: Result<ContainerStarted, Error>) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        let waiters = container.starting.take().unwrap_or_default();
        match outcome {
            Ok(started) => {
                container.edit().started_at = started.started_at;
                // A short one may have ended already.
                let running = container.state() == ContainerState::Created
                    && container.apply(ContainerEvent::Started).is_ok();
                self.show_container(id);
                if running {
                    self.announce_container(id, Happened::Started);
                }
                // It runs, and the monitor knows: nobody waits for the record to say so too.
                waiters.settle(Ok(()));
                self.save_container_or_warn(id).await;
            }
            Err(error) => {
                let cause = error.monitor_cause();
                // It may yet come to run. What was told as not started must not: the client makes another. Where the monitor was
                // lost meanwhile, the one that is found or takes over is told (`reconcile`).
                if matches!(cause, Some(MonitorError::Deadline { .. } | MonitorError::Gone)) {
                    container.given_up = true;
                    self.stop_container(id, Duration::ZERO, None);
                } else if matches!(cause, Some(MonitorError::Refused { kind, .. }) if *kind != FailureKind::Precondition)
                    && container.apply(ContainerEvent::StartFailed).is_ok()
                {
                    let record = container.edit();
                    record.exit = Some(ExitInfo::start_failed(error.chain()));
                    record.pid = None;
                    if record.finished_at == 0 {
                        record.finished_at = now();
                    }
                    self.ended(id).await;
                }
                waiters.settle(Err(error));
            }
        }
    }

    // ---- stop

    pub(super) fn stop_container(&mut self, id: ContainerId, grace: Duration, reply: Option<Reply<()>>) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        container.unclaimed_until = None;
        let send = container.request_stop(grace, reply);
        self.send(id, send);
    }

    /// StopPodSandbox: without grace, all at once.
    pub(super) fn kill_all(&mut self) {
        let live: Vec<ContainerId> = self
            .containers
            .values()
            .filter(|container| container.live())
            .map(|container| container.record.id)
            .collect();
        for id in live {
            self.stop_container(id, Duration::ZERO, None);
        }
    }

    fn send(&mut self, id: ContainerId, send: Send) {
        let Some(container) = self.containers.get(&id) else {
            return;
        };
        let (signal, all) = match send {
            Send::Nothing => return,
            Send::StopSignal => (container.record.stop_signal.number(), false),
            Send::Kill => (Signal::KILL.number(), true),
        };
        let Some(client) = self.client() else {
            match self.containers.get_mut(&id).filter(|_| self.relinking) {
                Some(container) => container.signal_again(),
                None => self.signal_failed(id, self.no_monitor()),
            }
            return;
        };
        self.work.spawn(async move {
            match client.signal(id.as_str(), signal, all).await {
                Ok(()) => Done::Nothing,
                Err(error) => Done::SignalFailed(id, Error::monitor("signalling container", id)(error)),
            }
        });
    }

    fn signal_failed(&mut self, id: ContainerId, error: Error) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        if container.not_signalled(error.monitor_cause()) {
            return;
        }
        warn!(container = %id, "{}", error.chain());
        if let Some(Stop { waiters, .. }) = container.stop.take() {
            waiters.settle(Err(error.share()));
        }
        if let Some(waiters) = container.removal.take() {
            waiters.settle(Err(error));
        }
    }

    /// The monitor saw it end.
    pub(super) async fn on_exit(&mut self, exit: &Exit) {
        let Ok(id) = ContainerId::parse(&exit.container_id) else {
            return;
        };
        let Some(container) = self.containers.get_mut(&id) else {
            self.forget_exit(id);
            return;
        };
        let known = container.record.exit.is_some();
        if !known && container.apply(ContainerEvent::Exited).is_ok() {
            let record = container.edit();
            record.exit = Some(exit_info(exit));
            record.finished_at = if exit.finished_at > 0 {
                exit.finished_at
            } else {
                now()
            };
            record.pid = None;
            self.ended(id).await;
        }
        self.forget_exit(id);
    }

    /// Nobody saw it end.
    pub(super) async fn lost_container(&mut self, id: ContainerId, why: &str) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        if container.live() && container.apply(ContainerEvent::Exited).is_ok() {
            let record = container.edit();
            record.exit = Some(ExitInfo::unseen(why));
            record.finished_at = now();
            record.pid = None;
            self.ended(id).await;
        }
    }

    async fn ended(&mut self, id: ContainerId) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        container.vault = None;
        container.template = None;
        let code = container.record.exit.as_ref().map_or(0, |exit| exit.code);
        let (stop, attached) = (container.stop.take(), std::mem::take(&mut container.attached));
        self.save_container_or_warn(id).await;
        self.announce_container(id, Happened::Stopped);
        for client in attached {
            let _ = client.send(code);
        }
        if let Some(stop) = stop {
            stop.waiters.settle(Ok(()));
        }
    }

    /// It is in our record: the monitor need not keep it.
    fn forget_exit(&mut self, id: ContainerId) {
        if let Some(client) = self.client() {
            self.work.spawn(async move {
                // If this fails, the same exit comes again and changes nothing.
                let _ = client.forget_exit(id.as_str()).await;
                Done::Nothing
            });
        }
    }

    // ---- remove

    pub(super) async fn advance_container_removals(&mut self) {
        let wanted = |container: &&Container| container.removal.is_some() && !container.removal_running;
        let ids: Vec<ContainerId> = self
            .containers
            .values()
            .filter(wanted)
            .map(|container| container.record.id)
            .collect();
        for id in ids {
            self.advance_container_removal(id).await;
        }
    }

    async fn advance_container_removal(&mut self, id: ContainerId) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        if container.creating.is_some() || container.starting.is_some() || container.updates.running {
            return;
        }
        if container.live() {
            self.stop_container(id, Duration::ZERO, None);
            return;
        }
        let event = if container.state() == ContainerState::Creating {
            ContainerEvent::Unwound
        } else {
            ContainerEvent::RemoveRequested
        };
        let _ = container.apply(event);
        container.removal_running = true;
        let record = container.record.clone();
        let (context, client) = (self.context.clone(), self.client());
        self.work.spawn(async move {
            Done::ContainerRemoved(id, create::remove(&context, client.as_ref(), &record).await)
        });
    }

    async fn container_removed(&mut self, id: ContainerId, failures: Vec<String>) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        container.removal_running = false;
        // Of one that never came to be nobody was told.
        let told = container.record.finished_at != 0;
        let waiters = container.removal.take().unwrap_or_default();
        if failures.is_empty() {
            self.containers.remove(&id);
            self.context.shared.views.containers.remove(&id);
            self.context.shared.meters.container_removed(&id);
            if told {
                self.announce_container(id, Happened::Removed);
            }
            waiters.settle(Ok(()));
        } else {
            warn!(container = %id, "removal is not complete: {}", failures.join("; "));
            self.save_container_or_warn(id).await;
            self.removal_failed(&failures);
            waiters.settle(Err(Error::Incomplete {
                what: "removal",
                id: id.to_string(),
                failures,
            }));
        }
    }

    // ---- the rest

    pub(super) fn running(&mut self, id: ContainerId) -> Result<(&mut Container, Client), Error> {
        let client = self.client().ok_or_else(|| self.no_monitor());
        let container = self.containers.get_mut(&id).ok_or_else(|| Error::NotFound {
            what: "container",
            id: id.to_string(),
        })?;
        if container.state() != ContainerState::Running {
            let state = container.state().name();
            let wanted = "it must be running";
            return Err(Error::State {
                what: "container",
                id: id.to_string(),
                state,
                wanted,
            });
        }
        Ok((container, client?))
    }

    pub(super) fn exec_permit(&self) -> Result<OwnedSemaphorePermit, Error> {
        let permit = self.execs.clone().try_acquire_owned();
        permit.map_err(|_| Error::Busy {
            id: self.id().to_string(),
            reason: "too many execs run in it",
        })
    }

    fn exec(
        &mut self,
        id: ContainerId,
        request: &ExecRequest,
    ) -> Result<impl Future<Output = Result<ExecOutput, Error>> + std::marker::Send + use<>, Error> {
        let permit = self.exec_permit()?;
        let (container, client) = self.running(id)?;
        let template = container.template()?;
        let process = spec::exec_process(&template.spec, &request.command, false, None)?;
        let exec = ExecSync {
            container_id: id.to_string(),
            exec_id: new_exec_id()?,
            process: serde_json::to_vec(&process).map_err(|e| Error::Internal {
                what: format!("the exec in {id} cannot be written: {e}"),
            })?,
            timeout_ms: request.timeout.map_or(0, |limit| {
                u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1)
            }),
            output_limit: bounds::EXEC_OUTPUT,
            seccomp: template.seccomp.clone(),
            clamp_privileges: self.context.shared.config.clamp_privileges,
        };
        Ok(async move {
            let _permit = permit;
            let finished = client
                .exec_sync(exec)
                .await
                .map_err(Error::monitor("running a command in container", id))?;
            Ok(ExecOutput {
                exit_code: finished.exit_code,
                timed_out: finished.timed_out,
                stdout: finished.stdout,
                stderr: finished.stderr,
                discarded: finished.discarded,
            })
        })
    }

    fn reopen_log(&mut self, id: ContainerId, reply: Reply<()>) {
        match self.running(id) {
            Ok((_, client)) => drop(self.work.spawn(async move {
                let reopened = client.reopen_log(id.as_str()).await;
                let _ = reply.send(reopened.map_err(Error::monitor("reopening the log of container", id)));
                Done::Nothing
            })),
            Err(error) => drop(reply.send(Err(error))),
        }
    }
}

/// The same request again: joined to the one in flight, or given the result that nobody took.
fn join(known: &mut Container, wanted: &ContainerSpec, reply: Reply<ContainerId>) {
    let id = known.record.id;
    let same = *wanted == known.record.spec;
    match &mut known.creating {
        Some(waiters) if same => waiters.add(id.as_str(), reply),
        _ if same && known.unclaimed_until.is_some() => {
            if reply.send(Ok(id)).is_ok() {
                known.unclaimed_until = None;
            }
        }
        _ => {
            let metadata = &known.record.spec.metadata;
            let name = format!("{} (attempt {})", metadata.name, metadata.attempt);
            let _ = reply.send(Err(Error::Exists {
                what: "container",
                name,
                id: id.to_string(),
            }));
        }
    }
}
