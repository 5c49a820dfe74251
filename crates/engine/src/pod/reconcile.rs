//! What a monitor knows, compared with what the records say.

use std::time::Duration;

use holdfast_model::{ContainerEvent, ContainerId, ContainerState, SandboxState};
use holdfast_monitor_api::message::Phase;
use holdfast_monitor_api::{InventoryContainer, MonitorInventory};
use tracing::{info, warn};

use super::owner::Pod;
use super::{Done, recover};

impl Pod {
    /// At the daemon's start.
    pub(super) async fn recovered(&mut self, found: recover::Found) {
        for exit in &found.exits {
            self.on_exit(exit).await;
        }
        match (found.live, found.silent) {
            (Some((link, inventory)), _) => {
                self.edit().monitor_pid = Some(link.pid);
                self.link = Some(link);
                self.reconcile(inventory).await;
            }
            (None, Some(silent)) => {
                warn!(pod = %self.id(), "{}", silent.chain());
                self.schedule_retry();
            }
            (None, None) => self.abandoned().await,
        }
        self.resume();
        self.discard_half_made();
        self.take_back_updates();
        self.save_or_warn().await;
        let ids: Vec<ContainerId> = self.containers.keys().copied().collect();
        for id in ids {
            self.save_container_or_warn(id).await;
        }
        self.recovering = None;
        for command in std::mem::take(&mut self.parked) {
            self.with_monitor(command).await;
        }
    }

    /// There is no monitor and nothing to replace it with: what ran has ended, and nobody saw how.
    pub(super) async fn abandoned(&mut self) {
        let ids: Vec<ContainerId> = self.containers.keys().copied().collect();
        for id in ids {
            self.lost_container(id, "it ended together with its monitor, or with the machine")
                .await;
        }
        self.died("its monitor is gone").await;
    }

    /// A creation that was cut off by the daemon's end has nobody to answer to.
    fn discard_half_made(&mut self) {
        for container in self.containers.values_mut() {
            match container.state() {
                ContainerState::Creating => {
                    container.removal.get_or_insert_default();
                }
                ContainerState::Removing => drop(container.removal.get_or_insert_default()),
                ContainerState::Created | ContainerState::Running | ContainerState::Exited => {}
            }
        }
    }

    pub(super) async fn reconcile(&mut self, inventory: MonitorInventory) {
        let mut seen = Vec::with_capacity(inventory.containers.len());
        for entry in inventory.containers {
            seen.extend(ContainerId::parse(&entry.entry.container_id).ok());
            self.reconcile_container(entry).await;
        }
        let unseen: Vec<ContainerId> = self
            .containers
            .values()
            .filter(|container| container.live() && !seen.contains(&container.record.id))
            .map(|container| container.record.id)
            .collect();
        for id in unseen {
            self.lost_container(id, "its monitor does not know it").await;
        }
        match inventory.sandbox {
            Some(sandbox) if matches!(self.record.state, SandboxState::Ready | SandboxState::Stopping) => {
                if self.edit().pause_pid.is_none() {
                    self.edit().pause_pid = Some(sandbox.pause_pid);
                }
                self.keep(sandbox.descriptors);
            }
            Some(_) => {}
            None => self.died("its monitor has no sandbox").await,
        }
        if inventory.pause_exit.is_some() {
            self.died("its pause process ended").await;
        }
    }

    async fn reconcile_container(&mut self, found: InventoryContainer) {
        let InventoryContainer { entry, descriptors } = found;
        let known = ContainerId::parse(&entry.container_id)
            .ok()
            .filter(|id| self.containers.contains_key(id));
        let Some(id) = known else {
            warn!(pod = %self.id(), container = entry.container_id, "monitor runs a container without a record");
            self.remove_unknown(entry.container_id);
            return;
        };
        if let Some(exit) = &entry.exit {
            self.on_exit(exit).await;
            return;
        }
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        if !container.live() {
            return;
        }
        container.vault = descriptors;
        if entry.pid > 0 {
            container.edit().pid = Some(entry.pid);
        }
        if container.given_up {
            info!(container = %id, "was told as not started: it is killed");
            self.stop_container(id, Duration::ZERO, None);
            return;
        }
        // The daemon ended between the start and its record.
        if entry.phase == i32::from(Phase::Running)
            && container.state() == ContainerState::Created
            && container.apply(ContainerEvent::Started).is_ok()
        {
            container.edit().started_at = entry.started_at;
            info!(container = %id, "was started before the daemon ended");
            self.save_container_or_warn(id).await;
        }
    }

    fn remove_unknown(&mut self, id: String) {
        if let Some(client) = self.client() {
            self.work.spawn(async move {
                if let Err(error) = client.remove(&id).await {
                    warn!(container = id, "cannot be removed: {error}");
                }
                Done::Nothing
            });
        }
    }
}
