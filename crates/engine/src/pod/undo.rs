//! At the daemon's start: updates that an earlier one died in the middle of, or could not take back whole, are taken back. Nobody was
//! told that they were made.
//!
//! It is done beside the owner, which answers for its pod meanwhile; new updates, stops and removals wait for it.

use std::sync::Arc;

use holdfast_cgroups::{Hierarchy, Limits};
use tracing::{info, warn};

use super::limits::{self, Target, Undo};
use super::owner::Pod;
use super::{Context, Done, scope};
use crate::Error;
use crate::score::{self, Of};
use crate::shared::blocking;

/// What became of it.
pub(super) enum Back {
    Whole,
    /// There is no cgroup any more, after a reboot.
    NoCgroup,
    /// What could not be put back.
    Left(Vec<String>),
}

struct CutOff {
    target: Target,
    cgroup: String,
    unit: Option<String>,
    score: i64,
    clamp: bool,
    limits: Option<Limits>,
    undo: serde_json::Value,
}

/// The journal of a record. One that cannot be read is none: it could be no use to anybody.
pub(super) fn read(journal: Option<&serde_json::Value>) -> Option<Undo> {
    serde_json::from_value(journal?.clone()).ok()
}

impl Pod {
    pub(super) fn take_back_updates(&mut self) {
        for cut_off in self.cut_off() {
            let target = cut_off.target;
            match target {
                Target::Pod => self.updates.running = true,
                Target::Container(id) => {
                    if let Some(container) = self.containers.get_mut(&id) {
                        container.updates.running = true;
                    }
                }
            }
            let context = self.context.clone();
            self.work
                .spawn(async move { Done::CutOffTakenBack(target, take_back(&context, cut_off).await) });
        }
    }

    fn cut_off(&mut self) -> Vec<CutOff> {
        let clamp = self.context.shared.config.clamp_privileges;
        let pod = self.record.undo.clone().map(|undo| CutOff {
            target: Target::Pod,
            cgroup: self.record.cgroup.clone(),
            unit: self.unit_of(Target::Pod),
            score: 0,
            clamp,
            limits: None,
            undo,
        });
        let journals: Vec<_> = self
            .containers
            .iter()
            .filter_map(|(id, container)| Some((*id, container.record.undo.clone()?)))
            .collect();
        let mut all: Vec<CutOff> = pod.into_iter().collect();
        for (id, undo) in journals {
            let unit = self.unit_of(Target::Container(id));
            let Some(container) = self.containers.get_mut(&id) else {
                continue;
            };
            if !container.live() {
                // There is nothing in its cgroup that a limit could matter to. Who calls saves.
                container.edit().undo = None;
                continue;
            }
            all.push(CutOff {
                target: Target::Container(id),
                cgroup: container.record.cgroup.clone(),
                limits: unit.as_ref().and_then(|_| container.limits()),
                unit,
                score: container.record.spec.resources.oom_score_adj,
                clamp,
                undo,
            });
        }
        all
    }

    pub(super) async fn cut_off_taken_back(&mut self, target: Target, outcome: Result<Back, Error>) {
        let name = self.name_of(target);
        let done = match outcome {
            Ok(Back::Whole) => {
                info!(id = name, "an update that was cut off is taken back");
                true
            }
            Ok(Back::NoCgroup) => true,
            Ok(Back::Left(left)) => {
                warn!(
                    id = name,
                    "an update that was cut off is not taken back whole, which the next start of the daemon tries again: {}",
                    left.join("; ")
                );
                false
            }
            Err(error) => {
                warn!(id = name, "{}", error.chain());
                true
            }
        };
        if done {
            self.set_undo(target, None);
            if let Err(error) = self.save_target(target).await {
                warn!(id = name, "{}", error.chain());
            }
        }
        self.next_update(target);
    }
}

/// An error: the journal cannot be read.
async fn take_back(context: &Arc<Context>, cut_off: CutOff) -> Result<Back, Error> {
    let undo: Undo = serde_json::from_value(cut_off.undo.clone()).map_err(|e| Error::Internal {
        what: format!("the record of an update that was cut off cannot be read: {e}"),
    })?;
    let shared = &context.shared;
    let (hierarchy, plan) = (shared.hierarchy.clone(), undo.plan.clone());
    let (path, unit, old) = (
        cut_off.cgroup.clone(),
        cut_off.unit.clone(),
        cut_off.limits.clone(),
    );
    let mut left = match blocking(move || Ok(files(&hierarchy, &cut_off, &undo))).await {
        Ok(None) => return Ok(Back::NoCgroup),
        Ok(Some(left)) => left,
        // The daemon ends.
        Err(error) => vec![error.chain()],
    };
    if let Some(unit) = unit {
        let back = scope::Back {
            unit: &unit,
            path,
            plan,
            limits: old,
        };
        left.extend(scope::taken_back(&shared.systemd, &shared.hierarchy, back).await);
    }
    Ok(match left.is_empty() {
        true => Back::Whole,
        false => Back::Left(left),
    })
}

/// Blocks. `None`: there is no cgroup.
fn files(hierarchy: &Hierarchy, cut_off: &CutOff, undo: &Undo) -> Option<Vec<String>> {
    if hierarchy.exists(&cut_off.cgroup).is_ok_and(|there| !there) {
        return None;
    }
    let mut left = limits::take_back(hierarchy, &cut_off.cgroup, &undo.plan);
    if undo.score
        && let (Ok(cgroup), Ok(score)) = (hierarchy.open(&cut_off.cgroup), i32::try_from(cut_off.score))
        && let Err(failed) = score::set(&cgroup, Of::All, score, cut_off.clamp)
    {
        left.push(failed.to_string());
    }
    Some(left)
}
