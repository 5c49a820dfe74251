//! The owner's loop, and what concerns the pod as a whole. Its containers are in `containers.rs`, the comparison with
//! a monitor's inventory in `reconcile.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::{ContainerId, ContainerRecord, SandboxEvent, SandboxId, SandboxRecord, SandboxState};
use holdfast_monitor_api::{Client, MonitorEvent, SandboxDescriptors};
use holdfast_network::PodLinks;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::announce::Told;
use super::container::Container;
use super::limits::PodResources;
use super::link::{self, Estate, Link, Orphan};
use super::update::Queue;
use super::{Command, Context, Done, recover, run, stop, title};
use crate::config::bounds;
use crate::shared::Shared;
use crate::waiters::{Reply, Waiters};
use crate::{Error, Happened};

/// How a pod comes to have an owner.
pub(crate) enum Birth {
    New {
        reply: Reply<SandboxId>,
    },
    /// From its record, at the daemon's start; `ready` is dropped when it is clear what is left of it.
    Recovered {
        containers: Vec<Arc<ContainerRecord>>,
        ready: oneshot::Sender<()>,
    },
}

pub(crate) struct Pod {
    pub(super) context: Arc<Context>,
    pub(super) record: Arc<SandboxRecord>,
    pub(super) containers: BTreeMap<ContainerId, Container>,
    pub(super) link: Option<Link>,
    /// Kept so that a dead monitor's replacement can carry on; closed when the pod stops.
    pub(super) vault: Option<SandboxDescriptors>,
    pub(super) work: JoinSet<Done>,
    pub(super) execs: Arc<Semaphore>,
    /// Clean-up that failed, or a monitor that could not be replaced, is tried again then.
    pub(super) retry: Option<Retry>,
    /// Requests that wait until the monitor is found or replaced.
    pub(super) parked: Vec<Command>,
    inbox: mpsc::Receiver<Command>,
    creating: Option<Waiters<SandboxId>>,
    pub(super) unclaimed_until: Option<Instant>,
    /// A stop is wanted.
    stop: Option<Waiters<()>>,
    stop_running: bool,
    /// A removal is wanted.
    removal: Option<Waiters<()>>,
    removal_running: bool,
    pub(super) recovering: Option<oneshot::Sender<()>>,
    pub(super) relinking: bool,
    finished: bool,
    pub(super) told: Told,
    pub(super) updates: Queue<PodResources>,
}

pub(super) struct Retry {
    at: Instant,
    pause: Duration,
}

enum Wake {
    Monitor(MonitorEvent),
    Done(Done),
    Command(Command),
    Timer,
    /// The engine has let go of this pod.
    Released,
}

impl Pod {
    /// Starts the owner of a pod and says how to reach it.
    pub(crate) fn start(shared: &Arc<Shared>, record: SandboxRecord, birth: Birth) {
        let (mailbox, inbox) = mpsc::channel(bounds::MAILBOX);
        let id = record.id;
        let dir = shared.config.pod_dir(&id);
        let context = Arc::new(Context {
            shared: shared.clone(),
            id,
            dir,
        });
        let mut pod = Self {
            context: context.clone(),
            record: Arc::new(record),
            containers: BTreeMap::new(),
            link: None,
            vault: None,
            work: JoinSet::new(),
            execs: Arc::new(Semaphore::new(bounds::EXECS)),
            retry: None,
            parked: Vec::new(),
            inbox,
            creating: None,
            unclaimed_until: None,
            stop: None,
            stop_running: false,
            removal: None,
            removal_running: false,
            recovering: None,
            relinking: false,
            finished: false,
            told: Told::default(),
            updates: Queue::default(),
        };
        match birth {
            Birth::New { reply } => {
                pod.creating = Some(Waiters::one(reply));
                let record = pod.record.clone();
                pod.work
                    .spawn(async move { Done::SandboxBuilt(run::build(context, record).await) });
            }
            Birth::Recovered { containers, ready } => {
                pod.recovering = Some(ready);
                pod.told = Told::of(pod.record.state);
                for record in containers {
                    pod.containers.insert(record.id, Container::new(record));
                }
                let (record, cgroups) = (pod.record.clone(), pod.cgroups());
                pod.work.spawn(async move {
                    let found = recover::look(&context, &record).await;
                    // Without a monitor nothing that still runs can be served: its output has lost its reader.
                    if found.live.is_none() && found.silent.is_none() {
                        for failure in stop::sweep(&context, cgroups).await {
                            warn!(pod = %context.id, "leftover processes: {failure}");
                        }
                    }
                    Done::Recovered(Box::new(found))
                });
            }
        }
        shared.pods.add(id, mailbox);
        tokio::spawn(pod.own());
    }

    async fn own(mut self) {
        while !self.finished {
            match self.wake().await {
                Wake::Monitor(event) => self.on_monitor(event).await,
                Wake::Done(done) => self.on_done(done).await,
                Wake::Command(command) => self.on_command(command).await,
                Wake::Timer => self.on_timer().await,
                Wake::Released => return,
            }
            self.advance().await;
        }
        self.inbox.close();
        while let Some(command) = self.inbox.recv().await {
            self.after_the_end(command);
        }
    }

    async fn wake(&mut self) -> Wake {
        let deadline = self.next_deadline();
        let (link, work, inbox) = (&mut self.link, &mut self.work, &mut self.inbox);
        tokio::select! {
            biased;
            event = async { match link { Some(link) => link.next().await, None => std::future::pending().await } } =>
                Wake::Monitor(event),
            Some(done) = work.join_next() => match done {
                Ok(done) => Wake::Done(done),
                Err(panic) => {
                    error!(pod = %self.context.id, "an operation broke off: {panic}");
                    Wake::Done(Done::Nothing)
                }
            },
            () = async { match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            } } => Wake::Timer,
            command = inbox.recv() => command.map_or(Wake::Released, Wake::Command),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let own = [self.unclaimed_until, self.retry.as_ref().map(|retry| retry.at)];
        let theirs = self.containers.values().filter_map(Container::next_deadline);
        own.into_iter().flatten().chain(theirs).min()
    }

    pub(super) fn id(&self) -> SandboxId {
        self.context.id
    }

    pub(super) fn client(&self) -> Option<Client> {
        self.link.as_ref().map(|link| link.client.clone())
    }

    pub(super) fn edit(&mut self) -> &mut SandboxRecord {
        Arc::make_mut(&mut self.record)
    }

    fn cgroups(&self) -> Vec<String> {
        let mut cgroups = vec![link::pause_cgroup(&self.record)];
        cgroups.extend(
            self.containers
                .values()
                .map(|container| container.record.cgroup.clone()),
        );
        cgroups
    }

    /// Shows the record to readers, and keeps it. A failure is the disk's: what runs, runs on.
    pub(super) async fn save(&self) -> Result<(), Error> {
        self.context
            .shared
            .views
            .sandboxes
            .set(self.id(), self.record.clone());
        // As with a container: what is written after the removal would stay.
        if self.removal_running {
            return Ok(());
        }
        self.context.shared.disk.put_sandbox(self.record.clone()).await
    }

    pub(super) async fn save_or_warn(&self) {
        if let Err(error) = self.save().await {
            error!(pod = %self.id(), "{}", error.chain());
        }
    }

    pub(super) fn schedule_retry(&mut self) {
        let pause = match &self.retry {
            Some(retry) => (retry.pause * 2).min(bounds::RETRY_LAST),
            None => bounds::RETRY_FIRST,
        };
        self.retry = Some(Retry {
            at: Instant::now() + pause,
            pause,
        });
    }

    /// A container whose removal is not complete waits for its own retry, whatever else has worked.
    fn retry_removals(&mut self) {
        let waits =
            |c: &Container| c.state() == holdfast_model::ContainerState::Removing && c.removal.is_none();
        if self.containers.values().any(waits) {
            self.schedule_retry();
        }
    }

    /// Something lives in it that only a monitor can end well, and there is none.
    fn unreached(&self) -> bool {
        self.link.is_none() && self.containers.values().any(Container::live)
    }

    /// What could not be done a while ago is tried once more.
    fn try_again(&mut self) {
        // The pause is kept, so that the next one is longer; far in the future, so that it does not fire by itself.
        if let Some(retry) = &mut self.retry {
            retry.at = Instant::now() + bounds::RETRY_LAST * 60;
        }
        for container in self.containers.values_mut() {
            if container.state() == holdfast_model::ContainerState::Removing && !container.removal_running {
                container.removal.get_or_insert_default();
            }
        }
        match self.record.state {
            SandboxState::Removing if !self.removal_running => drop(self.removal.get_or_insert_default()),
            SandboxState::Stopping if !self.stop_running => drop(self.stop.get_or_insert_default()),
            SandboxState::Ready if self.link.is_none() => self.lost(),
            SandboxState::Dead if self.unreached() => self.lost(),
            _ => {}
        }
    }

    async fn on_timer(&mut self) {
        let now = Instant::now();
        if self.unclaimed_until.is_some_and(|until| until <= now) {
            info!(pod = %self.id(), "nobody came back for this pod: it is removed");
            self.unclaimed_until = None;
            self.removal.get_or_insert_default();
        }
        if self.retry.as_ref().is_some_and(|retry| retry.at <= now) {
            self.try_again();
        }
        self.on_container_timers(now);
    }

    async fn on_command(&mut self, command: Command) {
        match command {
            Command::Join { spec, handler, reply } => self.join(&spec, &handler, reply),
            Command::Stop { reply } => {
                self.unclaimed_until = None;
                let id = self.id();
                self.stop.get_or_insert_default().add(id.as_str(), reply);
            }
            Command::Remove { reply } => {
                self.unclaimed_until = None;
                let id = self.id();
                self.removal.get_or_insert_default().add(id.as_str(), reply);
            }
            other if self.relinking || self.recovering.is_some() => {
                if self.parked.len() < bounds::MAILBOX {
                    self.parked.push(other);
                } else {
                    other.refuse(Error::Busy {
                        id: self.id().to_string(),
                        reason: "its monitor is being replaced",
                    });
                }
            }
            other => self.with_monitor(other).await,
        }
    }

    /// What is parked while the monitor is looked for.
    pub(super) async fn with_monitor(&mut self, command: Command) {
        match command {
            Command::Reexec { reply } => self.reexec(reply),
            other => self.on_container_command(other).await,
        }
    }

    /// The same request again: joined to the one in flight, or given the result that nobody took.
    fn join(&mut self, spec: &holdfast_model::SandboxSpec, handler: &str, reply: Reply<SandboxId>) {
        let id = self.id();
        let same = *spec == self.record.spec && handler == self.record.handler;
        match &mut self.creating {
            Some(waiters) if same => waiters.add(id.as_str(), reply),
            _ if same && self.unclaimed_until.is_some() => {
                if reply.send(Ok(id)).is_ok() {
                    self.unclaimed_until = None;
                }
            }
            _ => {
                let name = self.record.spec.metadata.to_string();
                let _ = reply.send(Err(Error::Exists {
                    what: "pod",
                    name,
                    id: id.to_string(),
                }));
            }
        }
    }

    fn reexec(&mut self, reply: Reply<()>) {
        let Some(client) = self.client() else {
            // Stopped pods have no monitor, and need none.
            let wanted = self.record.state == SandboxState::Ready || self.unreached();
            let _ = reply.send(if wanted { Err(self.no_monitor()) } else { Ok(()) });
            return;
        };
        let context = self.context.clone();
        self.work
            .spawn(async move { Done::Reexeced(link::reexec(&context, client).await, reply) });
    }

    async fn on_done(&mut self, done: Done) {
        match done {
            Done::SandboxBuilt(Ok(built)) => self.built(*built).await,
            Done::SandboxBuilt(Err(failed)) => self.not_built(failed).await,
            Done::Recovered(found) => self.recovered(*found).await,
            Done::Relinked(relinked) => self.relinked(*relinked).await,
            Done::Reexeced(outcome, reply) => {
                let _ = reply.send(outcome);
            }
            Done::SandboxStopped(failures) => self.stopped(failures).await,
            Done::SandboxRemoved(failures) => self.removed(failures),
            Done::UpdatePlanned(update, outcome) => self.update_planned(update, outcome).await,
            Done::Updated(update, outcome) => self.updated(update, outcome).await,
            Done::CutOffTakenBack(target, outcome) => self.cut_off_taken_back(target, outcome).await,
            Done::Nothing => {}
            other => self.on_container_done(other).await,
        }
    }

    async fn built(&mut self, built: run::Built) {
        let run::Built {
            link,
            sandbox,
            network,
        } = built;
        let record = self.edit();
        record.pause_pid = Some(sandbox.pause_pid);
        record.monitor_pid = Some(link.pid);
        record.ips = network
            .iter()
            .flat_map(|result| result.ips.iter().map(ToString::to_string))
            .collect();
        record.network = network.and_then(|result| serde_json::to_value(result).ok());
        self.link = Some(link);
        self.keep(sandbox.descriptors);
        let waiters = self.creating.take().unwrap_or_default();
        if let Err(illegal) = self.edit().apply(SandboxEvent::Created) {
            error!(pod = %self.id(), "{illegal}");
        }
        if let Err(error) = self.save().await {
            waiters.settle(Err(error));
            self.removal.get_or_insert_default();
            return;
        }
        self.announce(Happened::Created);
        self.announce(Happened::Started);
        debug!(pod = %self.id(), "ready");
        if !waiters.settle(Ok(self.id())) {
            self.unclaimed_until = Some(Instant::now() + self.context.shared.config.unclaimed_after);
        }
    }

    /// Puts the pod's descriptors into the vault, and has what it uses measured.
    pub(super) fn keep(&mut self, descriptors: SandboxDescriptors) {
        let socket = descriptors.netlink.as_ref().and_then(|fd| fd.try_clone().ok());
        let links = socket.map(PodLinks::new);
        self.context.shared.meters.pod_started(self.id(), links);
        self.vault = Some(descriptors);
    }

    async fn not_built(&mut self, failed: run::Failed) {
        let waiters = self.creating.take().unwrap_or_default();
        let _ = self.edit().apply(SandboxEvent::Unwound);
        if failed.leftovers.is_empty() {
            self.finish();
        } else {
            warn!(pod = %self.id(), "not everything could be taken back: {}", failed.leftovers.join("; "));
            self.save_or_warn().await;
            self.schedule_retry();
        }
        waiters.settle(Err(failed.error));
    }

    async fn on_monitor(&mut self, event: MonitorEvent) {
        match event {
            MonitorEvent::Exited(exit) => self.on_exit(&exit).await,
            MonitorEvent::PauseExited(_) => self.died("its pause process ended").await,
            MonitorEvent::LogTrouble(trouble) if trouble.error.is_empty() => {
                info!(
                    container = trouble.container_id,
                    dropped = trouble.dropped_bytes,
                    "log works again"
                );
            }
            MonitorEvent::LogTrouble(trouble) => {
                warn!(
                    container = trouble.container_id,
                    dropped = trouble.dropped_bytes,
                    "log: {}",
                    trouble.error
                );
            }
            // A new connection brings a whole inventory.
            MonitorEvent::Lagged => self.lost(),
            MonitorEvent::Gone => self.lost(),
        }
    }

    /// The pod's own process is gone, and with it its namespaces.
    pub(super) async fn died(&mut self, why: &str) {
        if self.record.state == SandboxState::Ready && self.edit().apply(SandboxEvent::Died).is_ok() {
            warn!(pod = %self.id(), "pod is no longer ready: {why}");
            self.edit().pause_pid = None;
            self.save_or_warn().await;
            self.announce(Happened::Stopped);
        }
    }

    /// The monitor hung up. While the pod goes down it is meant to.
    fn lost(&mut self) {
        self.link = None;
        if self.stop_running || self.removal_running || self.relinking {
            return;
        }
        if !matches!(
            self.record.state,
            SandboxState::Ready | SandboxState::Dead | SandboxState::Stopping
        ) {
            return;
        }
        warn!(pod = %self.id(), name = title(&self.record), "lost the monitor: looking for it");
        self.relinking = true;
        let estate = self.vault.take().map(|sandbox| Estate {
            record: self.record.clone(),
            sandbox,
            containers: self
                .containers
                .values_mut()
                .filter(|container| container.live())
                .map(|container| Orphan {
                    record: container.record.clone(),
                    descriptors: container.vault.take(),
                })
                .collect(),
        });
        let (context, record, cgroups) = (self.context.clone(), self.record.clone(), self.cgroups());
        self.work.spawn(async move {
            let relinked = match estate {
                Some(estate) => link::relink(&context, estate).await,
                None => link::find(&context, &record, cgroups).await,
            };
            Done::Relinked(Box::new(relinked))
        });
    }

    async fn relinked(&mut self, relinked: link::Relinked) {
        self.relinking = false;
        for exit in &relinked.exits {
            self.on_exit(exit).await;
        }
        if relinked.replaced || relinked.outcome.is_err() {
            self.cut_off_attached();
        }
        match relinked.outcome {
            Ok((link, inventory)) => {
                if relinked.replaced {
                    warn!(pod = %self.id(), monitor = link.pid, "a new monitor has taken over");
                }
                self.edit().monitor_pid = Some(link.pid);
                self.link = Some(link);
                self.retry = None;
                self.retry_removals();
                self.reconcile(inventory).await;
                self.save_or_warn().await;
            }
            Err(error) => {
                error!(pod = %self.id(), "{}", error.chain());
                match relinked.estate {
                    None if relinked.silent && !self.removing() => {}
                    // Whoever wants the pod gone does not wait for a monitor: the rest is done by cgroup.
                    Some(estate) if !self.removing() => self.take_back(estate),
                    _ => self.abandoned().await,
                }
                for command in std::mem::take(&mut self.parked) {
                    command.refuse(error.share());
                }
                self.schedule_retry();
            }
        }
        for command in std::mem::take(&mut self.parked) {
            self.with_monitor(command).await;
        }
    }

    fn take_back(&mut self, estate: Estate) {
        self.vault = Some(estate.sandbox);
        for orphan in estate.containers {
            if let Some(container) = self.containers.get_mut(&orphan.record.id)
                && container.live()
            {
                container.vault = orphan.descriptors;
            }
        }
    }

    /// What there is to do, from the state alone.
    async fn advance(&mut self) {
        if self.recovering.is_some() || self.relinking || self.creating.is_some() {
            return;
        }
        if self.stop.is_some() || self.removal.is_some() {
            self.advance_stop().await;
        }
        // A stop takes the containers' remains with it: no two hands at one cgroup.
        if !self.stop_running {
            self.advance_container_removals().await;
        }
        if self.removal.is_some() {
            self.advance_removal().await;
        }
    }

    async fn advance_stop(&mut self) {
        match self.record.state {
            SandboxState::Ready | SandboxState::Dead => {
                if self.edit().apply(SandboxEvent::StopRequested).is_ok() {
                    self.save_or_warn().await;
                }
            }
            SandboxState::Stopped | SandboxState::Removing => {
                if let Some(waiters) = self.stop.take() {
                    waiters.settle(Ok(()));
                }
                return;
            }
            SandboxState::Stopping | SandboxState::Creating => {}
        }
        if self.record.state != SandboxState::Stopping || self.stop_running {
            return;
        }
        if self.unreached() {
            self.lost();
            return;
        }
        self.kill_all();
        let busy = |container: &Container| {
            container.live()
                || container.creating.is_some()
                || container.starting.is_some()
                || container.removal_running
                || container.updates.running
        };
        if self.updates.running || self.containers.values().any(busy) {
            return;
        }
        self.stop_running = true;
        // Every descriptor of a namespace, or the namespace never dies.
        self.vault = None;
        self.context.shared.meters.pod_ended(&self.id());
        let containers = self
            .containers
            .values()
            .map(|container| container.record.clone())
            .collect();
        let (context, record, client) = (self.context.clone(), self.record.clone(), self.client());
        self.work.spawn(async move {
            Done::SandboxStopped(stop::halt(&context, &record, client, containers).await)
        });
    }

    async fn stopped(&mut self, failures: Vec<String>) {
        self.stop_running = false;
        self.link = None;
        let waiters = self.stop.take().unwrap_or_default();
        if failures.is_empty() {
            let _ = self.edit().apply(SandboxEvent::Stopped);
            self.edit().pause_pid = None;
            self.edit().monitor_pid = None;
            self.edit().network_owed = false;
            self.retry = None;
            self.retry_removals();
            debug!(pod = %self.id(), "stopped");
            self.save_or_warn().await;
            self.announce(Happened::Stopped);
            waiters.settle(Ok(()));
        } else {
            warn!(pod = %self.id(), "stop is not complete: {}", failures.join("; "));
            let error = Error::Incomplete {
                what: "stop",
                id: self.id().to_string(),
                failures,
            };
            if let Some(removal) = self.removal.take() {
                removal.settle(Err(error.share()));
            }
            waiters.settle(Err(error));
            self.schedule_retry();
        }
    }

    async fn advance_removal(&mut self) {
        if self.removal_running
            || !matches!(self.record.state, SandboxState::Stopped | SandboxState::Removing)
        {
            return;
        }
        if !self.containers.is_empty() {
            for container in self.containers.values_mut() {
                container.removal.get_or_insert_default();
            }
            self.advance_container_removals().await;
            return;
        }
        self.removal_running = true;
        let halted = self.record.state == SandboxState::Stopped;
        if self.edit().apply(SandboxEvent::RemoveRequested).is_ok() {
            self.context
                .shared
                .views
                .sandboxes
                .set(self.id(), self.record.clone());
        }
        let (context, record, client) = (self.context.clone(), self.record.clone(), self.client());
        self.work.spawn(async move {
            Done::SandboxRemoved(if halted {
                stop::clear(&context, &record).await
            } else {
                stop::clean_up(&context, &record, client).await
            })
        });
    }

    fn removed(&mut self, failures: Vec<String>) {
        self.removal_running = false;
        let waiters = self.removal.take().unwrap_or_default();
        if failures.is_empty() {
            self.finish();
            waiters.settle(Ok(()));
        } else {
            warn!(pod = %self.id(), "removal is not complete: {}", failures.join("; "));
            self.fail_removal(failures, waiters);
        }
    }

    /// One of the pod's containers could not be removed, so neither can the pod.
    pub(super) fn removal_failed(&mut self, failures: &[String]) {
        if let Some(waiters) = self.removal.take() {
            self.fail_removal(failures.to_vec(), waiters);
        } else {
            self.schedule_retry();
        }
    }

    fn fail_removal(&mut self, failures: Vec<String>, waiters: Waiters<()>) {
        waiters.settle(Err(Error::Incomplete {
            what: "removal",
            id: self.id().to_string(),
            failures,
        }));
        self.schedule_retry();
    }

    /// Nothing is left: the name is free again.
    fn finish(&mut self) {
        let shared = &self.context.shared;
        shared.views.sandboxes.remove(&self.id());
        shared.names.release(&self.record.spec.metadata, self.id());
        shared.pods.remove(&self.id());
        shared.meters.pod_ended(&self.id());
        if let Some(waiters) = self.stop.take() {
            waiters.settle(Ok(()));
        }
        debug!(pod = %self.id(), "removed");
        self.announce(Happened::Removed);
        self.finished = true;
    }

    /// Came in while the last step was done.
    fn after_the_end(&self, command: Command) {
        match command {
            Command::Stop { reply } | Command::Remove { reply } => drop(reply.send(Ok(()))),
            Command::RemoveContainer { reply, .. } | Command::StopContainer { reply, .. } => {
                drop(reply.send(Ok(())));
            }
            Command::Join { reply, .. } => {
                let reason = "it has just been removed: try again";
                let _ = reply.send(Err(Error::Busy {
                    id: self.id().to_string(),
                    reason,
                }));
            }
            other => other.refuse(Error::NotFound {
                what: "pod",
                id: self.id().to_string(),
            }),
        }
    }

    /// A monitor is needed and there is none.
    pub(super) fn no_monitor(&self) -> Error {
        Error::Busy {
            id: self.id().to_string(),
            reason: "it has no monitor",
        }
    }

    pub(super) fn removing(&self) -> bool {
        self.removal.is_some() || self.stop.is_some()
    }

    /// Continues after a start of the daemon what was begun before it.
    pub(super) fn resume(&mut self) {
        match self.record.state {
            SandboxState::Creating => {
                let _ = self.edit().apply(SandboxEvent::Unwound);
                self.removal.get_or_insert_default();
            }
            SandboxState::Removing => drop(self.removal.get_or_insert_default()),
            SandboxState::Stopping => drop(self.stop.get_or_insert_default()),
            SandboxState::Ready | SandboxState::Dead | SandboxState::Stopped => {}
        }
    }
}
