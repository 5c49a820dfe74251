//! After the daemon's start: what is left of a pod, and what became of its containers meanwhile.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::{SandboxRecord, SandboxState};
use holdfast_monitor_api::message::Exit;
use holdfast_monitor_api::{Error as MonitorError, MonitorInventory};
use prost::Message;
use tracing::{info, warn};

use super::link::Link;
use super::{Context, stop};
use crate::config::bounds;
use crate::shared::Shared;
use crate::{Error, shared};

/// Exit records of one pod that are read.
const SPOOL: usize = bounds::CONTAINERS;
/// How long the monitor of a half-made pod is looked for.
const LATE_ATTEMPTS: usize = 10;
const LATE_PAUSE: Duration = Duration::from_millis(50);
/// An exit record is some dozens of bytes.
const EXIT_BYTES: u64 = 64 * 1024;

/// What there is of a pod.
pub(super) struct Found {
    /// The monitor and everything it knows; `None`: it is dead, or belongs to an earlier boot.
    pub live: Option<(Link, MonitorInventory)>,
    /// Exits that the monitor wrote down and the daemon has not taken.
    pub exits: Vec<Exit>,
    /// The monitor may be there but does not answer.
    pub silent: Option<Error>,
}

pub(super) async fn look(context: &Context, record: &SandboxRecord) -> Found {
    let exits = spool(context).await;
    if record.boot_id != context.shared.boot_id {
        return Found {
            live: None,
            exits,
            silent: None,
        };
    }
    let linked = tokio::time::timeout(bounds::RECOVER, async {
        let link = connect(context, record).await?;
        let inventory = link.client.inventory().await;
        let inventory =
            inventory.map_err(Error::monitor("asking the monitor for its inventory", context.id))?;
        Ok::<_, Error>((link, inventory))
    });
    match linked.await {
        Ok(Ok(live)) => Found {
            live: Some(live),
            exits,
            silent: None,
        },
        Ok(Err(error)) => {
            info!(pod = %context.id, "no monitor: {}", error.chain());
            Found {
                live: None,
                exits,
                silent: (!is_death(&error)).then_some(error),
            }
        }
        Err(_) => {
            let id = context.id.to_string();
            let silent = Error::Deadline {
                what: "reaching the monitor",
                id,
                limit: bounds::RECOVER,
            };
            Found {
                live: None,
                exits,
                silent: Some(silent),
            }
        }
    }
}

/// Whether it says that nobody is there. Anything else may be our own trouble, or a monitor's that lives: where one is stopped, the
/// attempts that were given up fill its socket's queue (EAGAIN of connect(2)).
fn is_death(error: &Error) -> bool {
    match error.monitor_cause() {
        Some(MonitorError::Gone) => true,
        Some(MonitorError::Connect { source, .. }) => {
            matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
        }
        _ => false,
    }
}

/// The monitor of a half-made pod may just be reading what the dead daemon had sent, and have no socket yet.
async fn connect(context: &Context, record: &SandboxRecord) -> Result<Link, Error> {
    for _ in 0..LATE_ATTEMPTS {
        match Link::connect(context).await {
            Err(_) if record.state == SandboxState::Creating && context.dir.join("monitor.log").exists() => {
                tokio::time::sleep(LATE_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
    Link::connect(context).await
}

/// `<state>/pods/<id>/exits`, each file one exit.
pub(super) async fn spool(context: &Context) -> Vec<Exit> {
    let dir = context.dir.join("exits");
    shared::blocking(move || Ok(read_spool(&dir)))
        .await
        .unwrap_or_default()
}

fn read_spool(dir: &Path) -> Vec<Exit> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut exits = Vec::new();
    for entry in entries.flatten().take(SPOOL) {
        // What is being written has no id for a name.
        let name = entry.file_name();
        if holdfast_model::ContainerId::parse(&name.to_string_lossy()).is_err() {
            continue;
        }
        let small = entry
            .metadata()
            .is_ok_and(|meta| meta.is_file() && meta.len() <= EXIT_BYTES);
        match small.then(|| std::fs::read(entry.path())) {
            Some(Ok(bytes)) => match Exit::decode(bytes.as_slice()) {
                Ok(exit) => exits.push(exit),
                Err(error) => warn!(path = %entry.path().display(), "exit record cannot be read: {error}"),
            },
            _ => warn!(path = %entry.path().display(), "exit record cannot be read"),
        }
    }
    exits
}

/// A pod's directory without a record: its processes are ended and it is removed. Can only come of a damaged record.
pub(crate) async fn forsaken(shared: Arc<Shared>, id: holdfast_model::SandboxId) -> Vec<String> {
    let dir = shared.config.pod_dir(&id);
    let context = Context { shared, id, dir };
    if let Ok(Ok(link)) = tokio::time::timeout(bounds::RECOVER, Link::connect(&context)).await {
        let client = link.client.with_deadline(bounds::KILL);
        if let Ok(inventory) = client.inventory().await {
            for container in inventory.containers {
                let _ = client.remove(&container.entry.container_id).await;
            }
        }
        let _ = client.stop_sandbox().await;
        let _ = client.shutdown().await;
    }
    let removed = shared::blocking({
        let dir = context.dir.clone();
        move || match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", dir, error))
            }
            _ => Ok(()),
        }
    });
    let mut failures = Vec::new();
    if let Err(error) = removed.await {
        failures.push(error.chain());
    }
    failures.extend(stop::sweep(&context, vec![super::link::monitor_cgroup(&context)]).await);
    failures
}
