//! What every pod's owner and every call share.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use holdfast_cgroups::Hierarchy;
use holdfast_images::Images;
use holdfast_model::{ContainerId, SandboxId, SandboxMetadata};
use holdfast_network::Network;
use tokio::sync::{Semaphore, broadcast, mpsc};

use crate::cdi::Cdi;
use crate::disk::Disk;
use crate::handlers::{Bundles, Handlers};
use crate::lookup::Identities;
use crate::meter::Meters;
use crate::names::Names;
use crate::pod::Command;
use crate::spare::Spare;
use crate::spec::HostFacts;
use crate::systemd::{Monitors, Systemd};
use crate::view::Views;
use crate::{Config, Error, Event};

pub(crate) struct Shared {
    pub config: Config,
    pub images: Images,
    pub network: Network,
    pub cdi: Arc<Cdi>,
    pub hierarchy: Hierarchy,
    pub facts: HostFacts,
    pub disk: Disk,
    pub views: Views,
    pub names: Names<SandboxMetadata, SandboxId>,
    pub pods: Pods,
    pub events: broadcast::Sender<Event>,
    pub boot_id: String,
    pub identities: Identities,
    pub spare: Arc<Spare>,
    /// Discards of root file systems at a time.
    pub discards: Semaphore,
    pub meters: Meters,
    /// Connected to when a pod of that driver first needs it.
    pub systemd: Arc<Systemd>,
    /// Where the monitors are if systemd makes that too.
    pub monitors: Option<Monitors>,
    pub handlers: Handlers,
    pub bundles: Bundles,
}

/// How each pod's owner is reached.
#[derive(Default)]
pub(crate) struct Pods(RwLock<HashMap<SandboxId, mpsc::Sender<Command>>>);

impl Pods {
    pub(crate) fn add(&self, id: SandboxId, mailbox: mpsc::Sender<Command>) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, mailbox);
    }

    pub(crate) fn remove(&self, id: &SandboxId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    pub(crate) fn get(&self, id: &SandboxId) -> Option<mpsc::Sender<Command>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    pub(crate) fn ids(&self) -> Vec<SandboxId> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .copied()
            .collect()
    }

    /// Lets every owner go: each ends when its mailbox closes, and leaves its pod running.
    pub(crate) fn clear(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn random() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                return Err(Error::Internal {
                    what: format!("cannot get random bytes: {errno}"),
                });
            }
        }
    }
    Ok(bytes)
}

pub(crate) fn new_sandbox_id() -> Result<SandboxId, Error> {
    random().map(SandboxId::from_bytes)
}

pub(crate) fn new_container_id() -> Result<ContainerId, Error> {
    random().map(ContainerId::from_bytes)
}

/// Names the leaf cgroup of an exec.
pub(crate) fn new_exec_id() -> Result<String, Error> {
    random().map(|bytes| format!("exec-{}", &SandboxId::from_bytes(bytes).as_str()[..16]))
}

/// Work that can block, away from the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::Internal {
            what: "work in the background was cut off".into(),
        }),
    }
}
