//! Changing the limits of what runs: whole or not at all, and on record.
//!
//! ```text
//!  request ─▶ queue ─▶ plan (reads the files) ─▶ record what takes it back ─▶ carry out ─▶ record the new limits
//!                        │ refused                  │ disk                     │ refused     │ disk
//!                        ▼                          ▼                          ▼             ▼
//!                      told                       told                 all put back, told  all put back, told
//! ```
//!
//! A daemon that dies in between finds in the record how to take it back, and does ([`undo`]); there it stays, too, while
//! something could not be put back. Updates of one container (or of the pod) are made one after the other; its removal waits for
//! the one under way.

use std::collections::VecDeque;
use std::sync::Arc;

use holdfast_cgroups::Plan;
use holdfast_model::{
    CgroupDriver, ContainerId, ContainerRecord, ContainerState, Invalid, Resources, SandboxId, SandboxRecord,
    SandboxState, scope_unit,
};
use tracing::{debug, warn};

use super::limits::{Kept, Partial, PodResources, Target, Undo, Update};
use super::owner::Pod;
use super::{Context, Done, scope, undo};
use crate::config::bounds;
use crate::waiters::Reply;
use crate::{Error, resources};

/// Updates that wait for their turn.
pub(super) struct Queue<T> {
    waiting: VecDeque<(T, Reply<()>)>,
    /// One is being made.
    pub running: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            running: false,
        }
    }
}

impl<T> Queue<T> {
    fn add(&mut self, id: String, wanted: T, reply: Reply<()>) {
        if self.waiting.len() < bounds::WAITERS {
            self.waiting.push_back((wanted, reply));
        } else {
            let reason = "too many updates wait for it";
            let _ = reply.send(Err(Error::Busy { id, reason }));
        }
    }
}

/// The files, then systemd where it has a say in them: all or nothing. `None`: the daemon ends.
async fn carry_out(
    context: &Arc<Context>,
    id: String,
    update: Box<Update>,
) -> Option<(Box<Update>, Result<(), Error>)> {
    let hierarchy = context.shared.hierarchy.clone();
    let written = tokio::task::spawn_blocking(move || {
        let mut update = update;
        let outcome = update.carry_out(&id, &hierarchy);
        (update, outcome)
    });
    let (update, outcome) = written.await.ok()?;
    let (Ok(()), Some(unit), Ok(limits)) = (&outcome, &update.unit, update.limits()) else {
        return Some((update, outcome));
    };
    let all = update.all_limits().unwrap_or_else(|| limits.clone());
    match scope::updated(context, unit, update.cgroup.clone(), (&limits, &all)).await {
        Ok(()) => Some((update, Ok(()))),
        Err(error) => {
            let (update, left) = take_back(context, update).await?;
            Some((update, Err(error.with_left(left))))
        }
    }
}

/// After it was carried out: in the files, and at systemd. `None`: the daemon ends.
async fn take_back(context: &Context, update: Box<Update>) -> Option<(Box<Update>, Vec<String>)> {
    let hierarchy = context.shared.hierarchy.clone();
    let back = tokio::task::spawn_blocking(move || {
        let left = update.take_back(&hierarchy);
        (update, left)
    });
    let (mut update, mut left) = back.await.ok()?;
    if let Some(unit) = &update.unit {
        let back = scope::Back {
            unit,
            path: update.cgroup.clone(),
            plan: update.plan.clone(),
            limits: update.old.clone(),
        };
        left.extend(scope::taken_back(&context.shared.systemd, &context.shared.hierarchy, back).await);
    }
    update.left |= !left.is_empty();
    Some((update, left))
}

/// Another pod that is in a cgroup or below it.
fn other_in(cgroup: &str, but: SandboxId, pods: Vec<Arc<SandboxRecord>>) -> Option<Arc<SandboxRecord>> {
    let inside = |path: &str| {
        let rest = path.strip_prefix(cgroup);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    pods.into_iter()
        .find(|pod| pod.id != but && pod.in_its_cgroup() && inside(&pod.cgroup))
}

impl Pod {
    // ---- containers

    pub(super) fn update_container(&mut self, id: ContainerId, wanted: Resources, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(&id) else {
            let what = "container";
            let id = id.to_string();
            return drop(reply.send(Err(Error::NotFound { what, id })));
        };
        // Whoever updates it has been told of it.
        container.unclaimed_until = None;
        container.updates.add(id.to_string(), wanted, reply);
        self.next_container_update(id);
    }

    fn next_container_update(&mut self, id: ContainerId) {
        let clamp = self.context.shared.config.clamp_privileges;
        let unit = self.unit_of(Target::Container(id));
        loop {
            let Some(container) = self.containers.get_mut(&id).filter(|it| !it.updates.running) else {
                return;
            };
            let Some((wanted, reply)) = container.updates.waiting.pop_front() else {
                return;
            };
            let ready = matches!(
                container.state(),
                ContainerState::Created | ContainerState::Running
            );
            if !ready || container.removal.is_some() {
                let _ = reply.send(Err(Error::State {
                    what: "container",
                    id: id.to_string(),
                    state: container.state().name(),
                    wanted: "only one that is created or running can be updated",
                }));
                continue;
            }
            if wanted == Resources::default() {
                let _ = reply.send(Ok(()));
                continue;
            }
            let known = container.record.spec.resources.clone();
            let write = match resources::to_write("linux", &known, &wanted) {
                Ok(write) => write,
                Err(invalid) => {
                    let _ = reply.send(Err(invalid.into()));
                    continue;
                }
            };
            container.updates.running = true;
            let old = unit.as_ref().and_then(|_| container.limits());
            let update = Update {
                target: Target::Container(id),
                cgroup: container.record.cgroup.clone(),
                first: container.record.pid,
                clamp,
                unit: unit.clone(),
                old_score: i32::try_from(known.oom_score_adj).unwrap_or(0),
                write,
                partial: Partial::default(),
                kept: Kept::Container(Box::new(known.updated(&wanted))),
                plan: Plan::default(),
                owed: undo::read(container.record.undo.as_ref()),
                old,
                left: false,
                reply,
            };
            return self.plan_update(update);
        }
    }

    // ---- the pod

    pub(super) fn update_pod(&mut self, wanted: PodResources, reply: Reply<()>) {
        let id = self.id().to_string();
        self.updates.add(id, wanted, reply);
        self.next_pod_update();
    }

    fn next_pod_update(&mut self) {
        while !self.updates.running {
            let Some((wanted, reply)) = self.updates.waiting.pop_front() else {
                return;
            };
            match self.pod_update(&wanted) {
                Ok((write, kept)) => {
                    self.unclaimed_until = None;
                    self.updates.running = true;
                    let update = Update {
                        target: Target::Pod,
                        cgroup: self.record.cgroup.clone(),
                        first: None,
                        clamp: false,
                        unit: self.unit_of(Target::Pod),
                        old_score: 0,
                        write,
                        partial: self.partial(),
                        kept: Kept::Pod(Box::new(kept)),
                        plan: Plan::default(),
                        owed: undo::read(self.record.undo.as_ref()),
                        // Each update has all of them.
                        old: None,
                        left: false,
                        reply,
                    };
                    return self.plan_update(update);
                }
                Err(error) => drop(reply.send(Err(error))),
            }
        }
    }

    fn pod_update(&self, wanted: &PodResources) -> Result<(Resources, PodResources), Error> {
        if self.removing() || self.record.state != SandboxState::Ready {
            return Err(Error::State {
                what: "pod",
                id: self.id().to_string(),
                state: self.record.state.name(),
                wanted: "only a ready pod can be updated",
            });
        }
        for (field, given) in [("overhead", &wanted.overhead), ("resources", &wanted.resources)] {
            let Some(given) = given else { continue };
            given.validate(field)?;
            if given.oom_score_adj != 0 {
                let reason = "is a container's: a pod has none";
                return Err(Invalid::new(format!("{field}.oom_score_adj"), reason).into());
            }
        }
        self.has_own_cgroup()?;
        let spec = &self.record.spec;
        let kept = PodResources {
            overhead: wanted.overhead.clone().or_else(|| spec.overhead.clone()),
            resources: wanted.resources.clone().or_else(|| spec.resources.clone()),
        };
        let before = resources::of_pod(spec.overhead.as_ref(), spec.resources.as_ref());
        let now = resources::of_pod(kept.overhead.as_ref(), kept.resources.as_ref());
        let write = resources::to_write(
            "resources",
            &Resources::default(),
            &resources::lifting(&before, now),
        )?;
        Ok((write, kept))
    }

    /// A cgroup that other pods are in too is not this pod's to limit.
    fn has_own_cgroup(&self) -> Result<(), Error> {
        let shared = &self.context.shared;
        let own = &self.record.cgroup;
        let other = other_in(own, self.id(), shared.views.sandboxes.all());
        let reason = match other {
            Some(other) => format!("pod {} is in it too", other.id),
            None if *own == shared.config.default_cgroup => {
                "it holds all pods that named no parent".to_owned()
            }
            None if own.is_empty() => "it is the whole machine's".to_owned(),
            None => return Ok(()),
        };
        Err(Error::SharedCgroup {
            id: self.id().to_string(),
            cgroup: own.clone(),
            reason,
        })
    }

    /// Which of a pod's limits can be a sum that leaves somebody out. The kubelet adds up the limits of those containers
    /// that have one, and leaves the pod's cgroup without a limit as long as one of them has none (its cgroup it has set
    /// before it calls); such a sum must not be forced on that container. In a cgroup that we have made, the caller's word
    /// is all there is, and it is taken.
    fn partial(&self) -> Partial {
        let mut partial = Partial::default();
        if self.record.cgroup_made {
            return partial;
        }
        for container in self.containers.values().filter(|container| container.live()) {
            let own = &container.record.spec.resources;
            partial.cpu |= own.cpu_quota.is_none_or(|quota| quota <= 0);
            partial.memory |= own.memory_limit.is_none_or(|limit| limit <= 0);
        }
        partial
    }

    // ---- both

    fn plan_update(&mut self, mut update: Update) {
        let hierarchy = self.context.shared.hierarchy.clone();
        let id = self.name_of(update.target);
        self.work.spawn(async move {
            let done = tokio::task::spawn_blocking(move || {
                let outcome = update.look(&id, &hierarchy);
                (Box::new(update), outcome)
            });
            match done.await {
                Ok((update, outcome)) => Done::UpdatePlanned(update, outcome),
                Err(_) => Done::Nothing,
            }
        });
    }

    pub(super) async fn update_planned(&mut self, update: Box<Update>, outcome: Result<(), Error>) {
        if let Err(error) = outcome {
            return self.update_over(update.target, update.reply, Err(error));
        }
        self.set_undo(update.target, update.undo().to_json());
        if let Err(error) = self.save_target(update.target).await {
            self.set_undo(update.target, update.owed.as_ref().and_then(Undo::to_json));
            return self.update_over(update.target, update.reply, Err(error));
        }
        let (context, id) = (self.context.clone(), self.name_of(update.target));
        self.work.spawn(async move {
            match carry_out(&context, id, update).await {
                Some((update, outcome)) => Done::Updated(update, outcome),
                None => Done::Nothing,
            }
        });
    }

    pub(super) async fn updated(&mut self, mut update: Box<Update>, outcome: Result<(), Error>) {
        let target = update.target;
        let before = (self.record.clone(), self.container_record(target));
        let outcome = match outcome {
            Ok(()) => self.store(&mut update).await,
            Err(error) => return self.not_updated(*update, error).await,
        };
        debug!(id = self.name_of(target), "limits updated");
        let Err(error) = outcome else {
            return self.update_over(target, update.reply, Ok(()));
        };
        // What is not on record has not happened.
        self.put_limits(target, before);
        self.set_undo(target, update.undo().to_json());
        let context = self.context.clone();
        self.work.spawn(async move {
            match take_back(&context, update).await {
                Some((update, left)) => Done::Updated(update, Err(error.with_left(left))),
                None => Done::Nothing,
            }
        });
    }

    /// Puts the new limits on record.
    async fn store(&mut self, update: &mut Update) -> Result<(), Error> {
        self.keep_limits(update.target, std::mem::take(&mut update.kept))?;
        let owed = update.owed_after(true);
        self.set_undo(update.target, owed.as_ref().and_then(Undo::to_json));
        self.save_target(update.target).await
    }

    /// It is taken back, whole or in part: what is left is owed, and tried again at the daemon's next start.
    async fn not_updated(&mut self, update: Update, error: Error) {
        let owed = update.owed_after(false);
        self.set_undo(update.target, owed.as_ref().and_then(Undo::to_json));
        if let Err(error) = self.save_target(update.target).await {
            warn!(pod = %self.id(), "{}", error.chain());
        }
        self.update_over(update.target, update.reply, Err(error));
    }

    fn container_record(&self, target: Target) -> Option<Arc<ContainerRecord>> {
        match target {
            Target::Container(id) => self.containers.get(&id).map(|container| container.record.clone()),
            Target::Pod => None,
        }
    }

    /// Puts the limits of earlier records back.
    fn put_limits(&mut self, target: Target, before: (Arc<SandboxRecord>, Option<Arc<ContainerRecord>>)) {
        match (target, before) {
            (Target::Container(id), (_, Some(before))) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    let record = container.edit();
                    record.spec.resources = before.spec.resources.clone();
                    record.oci_spec.clone_from(&before.oci_spec);
                    container.template = None;
                }
            }
            (Target::Pod, (before, _)) => {
                let spec = &mut self.edit().spec;
                (spec.overhead, spec.resources) =
                    (before.spec.overhead.clone(), before.spec.resources.clone());
            }
            (Target::Container(_), (_, None)) => {}
        }
    }

    fn keep_limits(&mut self, target: Target, kept: Kept) -> Result<(), Error> {
        match (target, kept) {
            (Target::Container(id), Kept::Container(resources)) => {
                let Some(container) = self.containers.get_mut(&id) else {
                    return Ok(());
                };
                let spec = resources::into_spec(&container.record.oci_spec, &resources);
                let record = container.edit();
                record.oci_spec = spec.map_err(|e| Error::Internal {
                    what: format!("the recorded spec of {id} cannot be changed: {e}"),
                })?;
                record.spec.resources = *resources;
                // Later execs start from the new one.
                container.template = None;
            }
            (Target::Pod, Kept::Pod(kept)) => {
                let spec = &mut self.edit().spec;
                (spec.overhead, spec.resources) = (kept.overhead, kept.resources);
            }
            _ => {}
        }
        Ok(())
    }

    fn update_over(&mut self, target: Target, reply: Reply<()>, outcome: Result<(), Error>) {
        let _ = reply.send(outcome);
        self.next_update(target);
    }

    /// The one that was being made, or taken back, is over.
    pub(super) fn next_update(&mut self, target: Target) {
        match target {
            Target::Container(id) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.updates.running = false;
                }
                self.next_container_update(id);
            }
            Target::Pod => {
                self.updates.running = false;
                self.next_pod_update();
            }
        }
    }

    pub(super) fn name_of(&self, target: Target) -> String {
        match target {
            Target::Container(id) => id.to_string(),
            Target::Pod => self.id().to_string(),
        }
    }

    pub(super) fn set_undo(&mut self, target: Target, undo: Option<serde_json::Value>) {
        match target {
            Target::Container(id) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.edit().undo = undo;
                }
            }
            Target::Pod => self.edit().undo = undo,
        }
    }

    /// The unit whose limits they are, under the systemd driver.
    pub(super) fn unit_of(&self, target: Target) -> Option<String> {
        let by_systemd = self.record.cgroup_driver == CgroupDriver::Systemd;
        by_systemd.then(|| match target {
            Target::Container(id) => scope_unit(id.as_str()),
            Target::Pod => self.record.slice_unit().to_owned(),
        })
    }

    pub(super) async fn save_target(&self, target: Target) -> Result<(), Error> {
        match target {
            Target::Container(id) => self.save_container(id).await,
            Target::Pod => self.save().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::sandbox;

    #[test]
    fn whose_cgroup_it_is() {
        let own = SandboxId::from_bytes([1; 32]);
        let pod = |n: u8, cgroup: &str, state| {
            let mut record = sandbox(SandboxId::from_bytes([n; 32]));
            (record.cgroup, record.state) = (cgroup.to_owned(), state);
            vec![Arc::new(record)]
        };
        let other = |pods| other_in("/kube/pod1", own, pods).is_some();
        assert!(!other(pod(1, "/kube/pod1", SandboxState::Ready)), "itself");
        assert!(other(pod(2, "/kube/pod1", SandboxState::Ready)));
        assert!(other(pod(2, "/kube/pod1/below", SandboxState::Creating)));
        assert!(!other(pod(2, "/kube/pod12", SandboxState::Ready)));
        assert!(!other(pod(2, "/kube", SandboxState::Ready)));
        // Its predecessor, also one that cannot be removed.
        assert!(!other(pod(2, "/kube/pod1", SandboxState::Stopped)));
        assert!(!other(pod(2, "/kube/pod1", SandboxState::Removing)));
    }
}
