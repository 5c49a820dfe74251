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

/// How an update that was cut off is taken back: kept in the record as JSON.
#[derive(Serialize, Deserialize)]
pub(super) struct Undo {
    pub plan: Plan,
    pub score: bool,
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
    pub(super) fn carry_out(&self, id: &str, hierarchy: &Hierarchy) -> Result<(), Error> {
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

    pub(super) fn undo(&self) -> Option<serde_json::Value> {
        let undo = Undo {
            plan: self.plan.clone(),
            score: self.score().is_some(),
        };
        // Strings and lists: there is nothing that JSON could not hold.
        serde_json::to_value(undo).ok()
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
