//! One update of limits: what has to be written, what takes it back, and doing either. Everything blocks.

use holdfast_cgroups::{Cgroup, Hierarchy, Limits, Plan};
use holdfast_model::{ContainerId, Resources};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::score::{self, Of};
use crate::waiters::Reply;
use crate::{Error, Kind, resources, spec};

/// New limits of a pod as a whole.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodResources {
    pub overhead: Option<Resources>,
    pub resources: Option<Resources>,
}

/// What an update is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Container(ContainerId),
    Pod,
}

/// An update on its way.
pub(super) struct Update {
    pub target: Target,
    /// The cgroup, its first process and whether that process's score may be left where it cannot be lowered.
    pub cgroup: String,
    pub first: Option<i32>,
    pub clamp: bool,
    pub old_score: i32,
    /// Under the systemd driver: the unit that the cgroup belongs to.
    pub unit: Option<String>,
    /// What is written.
    pub write: Resources,
    /// A pod's limits that would bind a container which has none of its own.
    pub partial: Partial,
    pub kept: Kept,
    pub plan: Plan,
    /// What could not be taken back of an earlier one.
    pub owed: Option<Undo>,
    /// Under the systemd driver: what the container's spec limits, which systemd does not know all of.
    pub old: Option<Limits>,
    /// Not all of this one could be taken back.
    pub left: bool,
    pub reply: Reply<()>,
}

/// What is on record afterwards.
#[derive(Default)]
pub(super) enum Kept {
    #[default]
    Nothing,
    Container(Box<Resources>),
    Pod(Box<PodResources>),
}

/// See [`Pod::partial`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Partial {
    pub cpu: bool,
    pub memory: bool,
}

/// How an update that was cut off, or could not be taken back whole, is taken back: kept in the record as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Undo {
    pub plan: Plan,
    pub score: bool,
}

impl Undo {
    fn nothing(&self) -> bool {
        self.plan.changes.is_empty() && !self.score
    }

    /// Strings and lists: there is nothing that JSON could not hold.
    pub(super) fn to_json(&self) -> Option<serde_json::Value> {
        serde_json::to_value(self).ok()
    }
}

impl Update {
    fn what(&self) -> &'static str {
        match self.target {
            Target::Container(_) => "container",
            Target::Pod => "pod",
        }
    }

    fn prefix(&self) -> &'static str {
        match self.target {
            Target::Container(_) => "linux",
            Target::Pod => "resources",
        }
    }

    /// A failure in the words of the request.
    fn failed(
        &self,
        id: &str,
        field: &str,
        cause: (Kind, Box<dyn std::error::Error + Send + Sync>),
    ) -> Error {
        Error::Update {
            what: self.what(),
            id: id.to_owned(),
            field: format!("{}.{field}", self.prefix()),
            left: Vec::new(),
            kind: cause.0,
            source: cause.1,
        }
    }

    fn cgroup_failed(&self, id: &str, file: Option<&str>, error: holdfast_cgroups::Error) -> Error {
        let file = file
            .map(str::to_owned)
            .or_else(|| error.file().map(str::to_owned));
        use holdfast_cgroups::Error as E;
        let field = match (file, &error) {
            (_, E::Limit { value, .. }) if self.write.unified.contains_key(value) => {
                format!("unified[{value:?}]")
            }
            (Some(file), _) => resources::field(&file, &self.write),
            (None, _) => "resources".into(),
        };
        self.failed(id, &field, (kind(&error), Box::new(error)))
    }

    /// Reads what is there. Blocks.
    pub(super) fn look(&mut self, id: &str, hierarchy: &Hierarchy) -> Result<(), Error> {
        let cgroup = match hierarchy.open(&self.cgroup) {
            Ok(cgroup) => cgroup,
            Err(error) => return Err(self.cgroup_failed(id, None, error)),
        };
        if let Err(error) = self.leave_unbound(id, &cgroup) {
            return Err(self.cgroup_failed(id, None, error));
        }
        match self.limits().and_then(|limits| cgroup.plan(&limits)) {
            Ok(plan) => {
                for warning in &plan.warnings {
                    warn!(id, "{warning}");
                }
                self.plan = plan;
                Ok(())
            }
            Err(error) => Err(self.cgroup_failed(id, None, error)),
        }
    }

    /// Drops those of a pod's limits that are a sum over some of its containers only.
    fn leave_unbound(&mut self, id: &str, cgroup: &Cgroup) -> Result<(), holdfast_cgroups::Error> {
        if self.partial.memory && self.write.memory_limit.is_some_and(|limit| limit > 0) {
            let limited = cgroup.stats()?.memory.limit.is_some();
            if !limited {
                info!(
                    pod = id,
                    "the sum of memory limits is not applied: a container without one runs in the pod"
                );
                (self.write.memory_limit, self.write.memory_swap_limit) = (None, None);
            }
        }
        if self.partial.cpu && self.write.cpu_quota.is_some_and(|quota| quota > 0) && !cgroup.has_quota()? {
            info!(
                pod = id,
                "the sum of cpu quotas is not applied: a container without one runs in the pod"
            );
            (self.write.cpu_quota, self.write.cpu_period) = (None, None);
        }
        Ok(())
    }

    pub(super) fn limits(&self) -> Result<Limits, holdfast_cgroups::Error> {
        Limits::from_oci(&spec::oci_resources(&self.write))
    }

    /// With what a container was limited to before; a pod's are told whole with each update.
    pub(super) fn all_limits(&self) -> Option<Limits> {
        match &self.kept {
            Kept::Container(all) => Limits::from_oci(&spec::oci_resources(all)).ok(),
            Kept::Pod(_) | Kept::Nothing => None,
        }
    }

    fn score(&self) -> Option<i32> {
        let wanted = i32::try_from(self.write.oom_score_adj).ok();
        wanted.filter(|score| *score != 0 && self.first.is_some())
    }

    /// Writes everything or nothing. Blocks.
    pub(super) fn carry_out(&mut self, id: &str, hierarchy: &Hierarchy) -> Result<(), Error> {
        let cgroup = match hierarchy.open(&self.cgroup) {
            Ok(cgroup) => cgroup,
            Err(error) => return Err(self.cgroup_failed(id, None, error)),
        };
        let scores = match (self.score(), self.first) {
            (Some(score), Some(first)) => score::set(&cgroup, Of::SameAs(first), score, self.clamp),
            _ => Ok(score::Changed::default()),
        };
        let scores = match scores {
            Ok(scores) => scores,
            Err(mut failed) => {
                let left = std::mem::take(&mut failed.left);
                self.left |= !left.is_empty();
                let error = self.failed(id, "oom_score_adj", (Kind::Internal, Box::new(failed)));
                return Err(error.with_left(left));
            }
        };
        if scores.clamped {
            warn!(
                container = id,
                "oom_score_adj stays as it is: the runtime may not set one so low"
            );
        }
        match cgroup.carry_out(&self.plan) {
            Ok(()) => Ok(()),
            Err(refused) => {
                let mut left: Vec<String> = refused.left.iter().map(chain).collect();
                left.extend(scores.put_back());
                self.left |= !left.is_empty();
                Err(self
                    .cgroup_failed(id, Some(&refused.file), refused.error)
                    .with_left(left))
            }
        }
    }

    /// After it was carried out. Blocks.
    pub(super) fn take_back(&self, hierarchy: &Hierarchy) -> Vec<String> {
        let mut left = take_back(hierarchy, &self.cgroup, &self.plan);
        if let (Some(_), Some(first), Ok(cgroup)) = (self.score(), self.first, hierarchy.open(&self.cgroup))
            && let Err(failed) = score::set(&cgroup, Of::SameAs(first), self.old_score, self.clamp)
        {
            left.push(failed.to_string());
        }
        left
    }

    /// What takes this one back, and with it what an earlier one has left.
    pub(super) fn undo(&self) -> Undo {
        let own = Undo {
            plan: self.plan.clone(),
            score: self.score().is_some(),
        };
        match &self.owed {
            Some(earlier) => Undo {
                plan: own.plan.after(&earlier.plan),
                score: own.score || earlier.score,
            },
            None => own,
        }
    }

    /// What is still to be taken back when this one is over, `made` or not.
    pub(super) fn owed_after(&self, made: bool) -> Option<Undo> {
        match &self.owed {
            // What it has set anew nobody wants back as it was.
            Some(earlier) if made => {
                let rest = Undo {
                    plan: earlier.plan.clone().without(&self.plan),
                    score: earlier.score && self.score().is_none(),
                };
                (!rest.nothing()).then_some(rest)
            }
            _ if made => None,
            _ if self.left => Some(self.undo()),
            earlier => earlier.clone(),
        }
    }
}

fn chain(error: &holdfast_cgroups::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What a client can do about it.
fn kind(error: &holdfast_cgroups::Error) -> Kind {
    use holdfast_cgroups::Error as E;
    match error {
        E::Limit { .. } => Kind::Invalid,
        E::InUse { .. } | E::NotDelegated { .. } | E::NotHandedDown { .. } => Kind::Precondition,
        E::NoController { .. } => Kind::Unsupported,
        E::Write { .. } | E::Open { .. } | E::Read { .. } => {
            match error.errno().map(Errno::from_raw_os_error) {
                // A value that the file does not take, or a file (a page size, say) that there is not.
                Some(Errno::INVAL | Errno::RANGE | Errno::NOENT | Errno::OPNOTSUPP) => Kind::Invalid,
                Some(Errno::BUSY | Errno::NOSPC) => Kind::Precondition,
                _ => Kind::Internal,
            }
        }
        _ => Kind::Internal,
    }
}

/// Blocks. A cgroup that is gone needs nothing.
pub(super) fn take_back(hierarchy: &Hierarchy, cgroup: &str, plan: &Plan) -> Vec<String> {
    match hierarchy.open(cgroup) {
        Ok(cgroup) => cgroup.take_back(plan).iter().map(chain).collect(),
        Err(error) if error.is_gone() => Vec::new(),
        Err(error) => vec![chain(&error)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(changes: &[(&str, &str)]) -> Plan {
        let changes: Vec<_> = changes
            .iter()
            .map(|(file, before)| {
                serde_json::json!({"hierarchy": "/sys/fs/cgroup", "file": file, "value": "7",
                    "before": [(file, before)]})
            })
            .collect();
        serde_json::from_value(serde_json::json!({"changes": changes, "warnings": []})).unwrap()
    }

    fn undo(changes: &[(&str, &str)], score: bool) -> Undo {
        Undo {
            plan: plan(changes),
            score,
        }
    }

    fn update(changes: &[(&str, &str)], owed: Option<Undo>, left: bool) -> Update {
        Update {
            target: Target::Pod,
            cgroup: String::new(),
            first: None,
            clamp: false,
            old_score: 0,
            unit: None,
            write: Resources::default(),
            partial: Partial::default(),
            kept: Kept::Nothing,
            plan: plan(changes),
            owed,
            old: None,
            left,
            reply: tokio::sync::oneshot::channel().0,
        }
    }

    #[test]
    fn what_could_not_be_taken_back_is_owed_until_it_is_set_anew() {
        let memory = [("memory.max", "5")];
        let both = [("memory.max", "5"), ("cpu.weight", "3")];
        // Whole, or made: nothing is left to do.
        assert_eq!(update(&memory, None, false).owed_after(false), None);
        assert_eq!(update(&memory, None, false).owed_after(true), None);
        let owed = update(&memory, None, true).owed_after(false);
        assert_eq!(owed, Some(undo(&memory, false)));
        // One of something else neither settles nor loses it, and is itself taken back with it.
        let other = [("cpu.weight", "3")];
        assert_eq!(update(&other, owed.clone(), false).owed_after(true), owed);
        assert_eq!(update(&other, owed.clone(), false).owed_after(false), owed);
        assert_eq!(
            update(&other, owed.clone(), true).owed_after(false),
            Some(undo(&both, false))
        );
        assert_eq!(update(&other, owed.clone(), false).undo(), undo(&both, false));
        // One of the same thing settles it, if it is made.
        let again = [("memory.max", "7")];
        assert_eq!(update(&again, owed.clone(), false).owed_after(true), None);
        assert_eq!(update(&again, owed.clone(), true).owed_after(false), owed);
        // Scores are owed by themselves.
        let score = Some(undo(&memory, true));
        assert_eq!(
            update(&again, score, false).owed_after(true),
            Some(undo(&[], true))
        );
    }
}
