//! Where the monitors are under the systemd driver: one delegated scope for all of them, below which each has a cgroup of
//! its own, made by hand as delegation allows. It is no part of the service's cgroup, so a stop of the service finds no
//! process left over; and it is one unit, not one more for each pod.
//!
//! A helper of the daemon keeps it while no monitor is there.

use std::sync::Arc;

use holdfast_cgroups::Hierarchy;
use tokio::sync::Mutex;

use super::{BusError, Helper, Scope, Systemd, common};
use crate::Error;
use crate::shared::blocking;

/// The helper's cgroup below the scope: none may be in the scope itself, or its controllers could not be handed down.
const KEEPER: &str = "keeper";

pub(crate) struct Monitors {
    systemd: Arc<Systemd>,
    hierarchy: Hierarchy,
    /// The scope's cgroup, such as `/system.slice/holdfast-monitors.scope`.
    path: String,
    description: String,
    pause: std::path::PathBuf,
    keeper: Mutex<Option<Helper>>,
}

impl Monitors {
    pub(crate) fn new(systemd: Arc<Systemd>, hierarchy: Hierarchy, config: &crate::Config) -> Self {
        Self {
            systemd,
            hierarchy,
            path: config.monitor_cgroup.clone(),
            description: format!("{}: monitors", super::owner(config)),
            pause: config.pause_program(),
            keeper: Mutex::new(None),
        }
    }

    /// Makes the scope where it is not there. Cheap when it is.
    pub(crate) async fn ensure(&self) -> Result<(), Error> {
        let (unit, slice) = (part(&self.path, 0), part(&self.path, 1));
        let failed = |source| Error::Systemd {
            step: "making the monitors' scope",
            id: unit.to_owned(),
            source: Box::new(source),
        };
        let mut keeper = self.systemd.turn(&self.keeper).await.map_err(failed)?;
        let there = self.hierarchy.exists(&self.path).unwrap_or(false);
        if there && keeper.is_some() {
            return Ok(());
        }
        let known = self.systemd.units(unit).await.map_err(failed)?;
        let foreign = known.iter().find(|found| found.description != self.description);
        if let Some(found) = foreign {
            return Err(failed(BusError::Foreign {
                unit: unit.to_owned(),
                description: found.description.clone(),
            }));
        }
        let helper = Helper::spawn(&self.pause).map_err(failed)?;
        // From before the daemon's restart it holds the monitors of the pods that ran on.
        if !(there && known.len() == 1) {
            let mut properties = Vec::new();
            common(&mut properties);
            properties.push(super::unlimited_tasks());
            let scope = Scope {
                unit,
                slice,
                description: self.description.clone(),
                properties,
                oom_group: false,
            };
            self.systemd
                .start_scope(scope, helper.pid())
                .await
                .map_err(failed)?;
        }
        self.settle(&helper).await?;
        *keeper = Some(helper);
        Ok(())
    }

    /// Moves the helper below the scope, into a cgroup without controllers: as long as a process is in the scope itself the
    /// kernel would hand down those that know threads, and make the cgroups below fit for nothing else.
    async fn settle(&self, helper: &Helper) -> Result<(), Error> {
        let (path, hierarchy) = (self.path.clone(), self.hierarchy.clone());
        let pid = i32::try_from(helper.pid()).unwrap_or_default();
        blocking(move || {
            let moved = hierarchy
                .open(&path)
                .and_then(|scope| scope.leaf(KEEPER))
                .and_then(|keeper| keeper.add_process(pid));
            moved.map_err(|source| Error::Cgroup {
                step: "use",
                path,
                source: Box::new(source),
            })
        })
        .await
    }
}

/// A component of a path, counted from its end.
fn part(path: &str, from_end: usize) -> &str {
    match path.rsplit('/').nth(from_end) {
        Some(name) if !name.is_empty() => name,
        _ => "-.slice",
    }
}
