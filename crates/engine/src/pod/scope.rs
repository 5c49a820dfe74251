//! The systemd driver's part in a pod's life: a scope before each process is made, its properties, and the slice's end.
//! Under cgroupfs all of this is nothing: the launcher makes the cgroups.

use holdfast_cgroups::systemd::{Property, before, properties, weight_after_idle};
use holdfast_cgroups::{Hierarchy, Limits, Plan, Stage};
use holdfast_model::{CgroupDriver, ContainerRecord, SandboxRecord, SandboxState, scope_unit};
use oci_spec::runtime::Spec;

use super::{Context, title};
use crate::Error;
use crate::shared::blocking;
use crate::systemd::{BusError, Helper, Scope, Systemd, common, owner};

/// A scope with our helper in it, until the process is there for which it was made. Dropped, the helper goes, and with
/// it, if nobody else is in it, the scope.
pub(super) struct Held<'a> {
    context: &'a Context,
    /// `None` under cgroupfs.
    scope: Option<(String, Helper, String)>,
}

impl Held<'_> {
    /// Init is in the scope and waits at its barrier, where its files have been given the limits that would have got in
    /// the way of making it. Now systemd is told of them, and the helper leaves.
    pub(super) async fn settle(self, limits: &Limits) -> Result<(), Error> {
        let Some((unit, helper, path)) = self.scope else {
            return Ok(());
        };
        let late = wanted(limits, Stage::Barrier, self.context.shared.hierarchy.mode())?;
        let told = tell(self.context, (&unit, path), late, limits).await;
        helper.leave().await;
        told
    }

    pub(super) async fn leave(self) {
        if let Some((_, helper, _)) = self.scope {
            helper.leave().await;
        }
    }
}

/// Sets properties, and the files again: with any property systemd writes all that it knows of the unit, and so takes back what
/// it keeps less exactly than asked (quotas), or not at all (`io.weight` of a device, `memory.oom.group` before version 253).
async fn tell(
    context: &Context,
    (unit, path): (&str, String),
    properties: Vec<Property>,
    limits: &Limits,
) -> Result<(), Error> {
    if properties.is_empty() {
        return Ok(());
    }
    let told = context.shared.systemd.set_properties(unit, &properties).await;
    told.map_err(failed("setting the limits", unit))?;
    let (hierarchy, limits) = (context.shared.hierarchy.clone(), limits.clone());
    blocking(move || write(&hierarchy, &path, &limits)).await
}

/// An update (the first of the two limits), which is in the files already: systemd is told of it, and the files, which it then
/// writes anew, are given all that is limited (the second).
pub(super) async fn updated(
    context: &Context,
    unit: &str,
    path: String,
    (limits, all): (&Limits, &Limits),
) -> Result<(), Error> {
    let hierarchy = context.shared.hierarchy.clone();
    let mut properties = wanted(limits, Stage::All, hierarchy.mode())?;
    if !properties.iter().any(|property| property.name == "CPUWeight") {
        let (path, limits) = (path.clone(), limits.clone());
        let weight = move || {
            let cgroup = hierarchy.open(&path);
            let weight = cgroup.and_then(|cgroup| weight_after_idle(&cgroup, &limits));
            weight.map_err(|source| Error::Cgroup {
                step: "reading the weight",
                path,
                source: Box::new(source),
            })
        };
        properties.extend(blocking(weight).await?);
    }
    tell(context, (unit, path), properties, all).await
}

/// What is to be as it was before an update.
pub(super) struct Back<'a> {
    pub unit: &'a str,
    pub path: String,
    pub plan: Plan,
    /// What the unit's files were given beside what the plan changes.
    pub limits: Option<Limits>,
}

/// An update that was taken back in the files, of which systemd may have been told: it is told what was before, and the files,
/// which it then writes anew, are put back again. What could not be done is named. A cgroup that is gone needs nothing.
pub(super) async fn taken_back(systemd: &Systemd, hierarchy: &Hierarchy, back: Back<'_>) -> Vec<String> {
    let Back {
        unit,
        path,
        plan,
        limits,
    } = back;
    let (at, place) = (hierarchy.clone(), path.clone());
    let looked = tokio::task::spawn_blocking(move || {
        // systemd would not ask whether a limit can be borne, and the kernel kills.
        let cgroup = at.exists(&place)?.then(|| at.open(&place)).transpose()?;
        let bearable = cgroup.map(|cgroup| cgroup.bearable(&plan));
        Ok::<_, holdfast_cgroups::Error>(bearable.map(|rest| (rest.changes.len() < plan.changes.len(), rest)))
    });
    let (outgrown, plan) = match looked.await {
        Ok(Ok(Some(found))) => found,
        // Gone, or the daemon ends.
        Ok(Ok(None)) | Err(_) => return Vec::new(),
        Ok(Err(error)) if error.is_gone() => return Vec::new(),
        Ok(Err(error)) => return vec![invalid(&error).chain()],
    };
    let properties = match before(&plan, hierarchy.mode()) {
        Ok(properties) if properties.is_empty() => return Vec::new(),
        Ok(properties) => properties,
        Err(error) => return vec![invalid(&error).chain()],
    };
    if let Err(error) = systemd.set_properties(unit, &properties).await {
        return vec![failed("putting the limits back", unit)(error).chain()];
    }
    let hierarchy = hierarchy.clone();
    let written = tokio::task::spawn_blocking(move || {
        let mut left = Vec::new();
        if let Some(limits) = limits {
            left.extend(write(&hierarchy, &path, &but_memory(limits, outgrown)).err());
        }
        let mut left: Vec<String> = left.iter().map(Error::chain).collect();
        left.extend(super::limits::take_back(&hierarchy, &path, &plan));
        left
    });
    written.await.unwrap_or_default()
}

/// Without a memory limit that was outgrown.
fn but_memory(mut limits: Limits, outgrown: bool) -> Limits {
    if outgrown {
        (limits.memory.limit, limits.memory.swap) = (None, None);
        limits.unified.remove("memory.max");
    }
    limits
}

/// Blocks.
fn write(hierarchy: &Hierarchy, path: &str, limits: &Limits) -> Result<(), Error> {
    let files = Limits {
        // A program of ours, which systemd leaves alone.
        devices: None,
        ..limits.clone()
    };
    let written = hierarchy
        .open(path)
        .and_then(|cgroup| cgroup.apply(&files, Stage::All));
    written.map(drop).map_err(|source| Error::Cgroup {
        step: "limits",
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// What the container's spec limits, after adjustment.
pub(super) fn limits(spec: &Spec) -> Result<Limits, Error> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.map_or_else(
        || Ok(Limits::default()),
        |it| Limits::from_oci(it).map_err(|error| invalid(&error)),
    )
}

pub(super) async fn of_pause<'a>(context: &'a Context, pod: &SandboxRecord) -> Result<Held<'a>, Error> {
    start(context, pod, pod.id.as_str(), (title(pod), &Limits::default())).await
}

pub(super) async fn of_container<'a>(
    context: &'a Context,
    pod: &SandboxRecord,
    container: &ContainerRecord,
    limits: &Limits,
) -> Result<Held<'a>, Error> {
    if container.runtime.is_some() {
        // An external runtime asks systemd itself, and refuses a scope that is there.
        return Ok(Held { context, scope: None });
    }
    let name = format!("{}/{}", title(pod), container.spec.metadata.name);
    start(context, pod, container.id.as_str(), (name, limits)).await
}

async fn start<'a>(
    context: &'a Context,
    pod: &SandboxRecord,
    id: &str,
    (name, limits): (String, &Limits),
) -> Result<Held<'a>, Error> {
    if pod.cgroup_driver == CgroupDriver::Cgroupfs {
        return Ok(Held { context, scope: None });
    }
    let shared = &context.shared;
    let unit = scope_unit(id);
    let mut properties = wanted(limits, Stage::Create, shared.hierarchy.mode())?;
    common(&mut properties);
    let helper = Helper::spawn(&shared.config.pause_program()).map_err(failed("making the scope", &unit))?;
    let scope = Scope {
        unit: &unit,
        slice: pod.slice_unit(),
        description: format!("{}: {name}", owner(&shared.config)),
        oom_group: limits
            .unified
            .get("memory.oom.group")
            .is_some_and(|it| it.trim() == "1"),
        properties,
    };
    let started = shared.systemd.start_scope(scope, helper.pid()).await;
    started.map_err(failed("making the scope", &unit))?;
    let path = pod.cgroup_of(id);
    if !shared.hierarchy.exists(&path).unwrap_or(false) {
        let elsewhere = BusError::Elsewhere {
            unit: unit.clone(),
            path: path.clone(),
        };
        return Err(failed("making the scope", &unit)(elsewhere));
    }
    Ok(Held {
        context,
        scope: Some((unit, helper, path)),
    })
}

/// Stops the pod's slice, which systemd made along with its first scope, and which it keeps. Stopping it stops
/// everything in it, so it must be empty, and nobody else's.
pub(super) async fn stop_slice(context: &Context, pod: &SandboxRecord) -> Result<(), Error> {
    let shared = &context.shared;
    let pods = shared.views.sandboxes.all();
    let below = format!("{}/", pod.cgroup);
    // One that is being removed has left it: of two that go together, neither waits for the other.
    let used = |other: &SandboxRecord| {
        other.id != pod.id
            && other.state != SandboxState::Removing
            && (other.cgroup == pod.cgroup || other.cgroup.starts_with(&below))
    };
    if pods.iter().any(|other| used(other)) {
        return Ok(());
    }
    let (hierarchy, path) = (shared.hierarchy.clone(), pod.cgroup.clone());
    let empty = blocking(move || Ok(hierarchy.children(&path).is_ok_and(|names| names.is_empty())));
    if !empty.await? {
        return Ok(());
    }
    let slice = pod.slice_unit();
    let stopped = shared.systemd.stop_unit(slice).await;
    stopped.map_err(failed("stopping the slice", slice))
}

fn wanted(limits: &Limits, stage: Stage, mode: holdfast_cgroups::Mode) -> Result<Vec<Property>, Error> {
    properties(limits, stage, mode).map_err(|error| invalid(&error))
}

fn invalid(error: &holdfast_cgroups::Error) -> Error {
    holdfast_model::Invalid::new("linux.resources", error.to_string()).into()
}

fn failed(step: &'static str, unit: &str) -> impl FnOnce(BusError) -> Error {
    let id = unit.to_owned();
    move |source| Error::Systemd {
        step,
        id,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use holdfast_cgroups::Cpu;
    use holdfast_testkit::Reaper;

    use super::*;
    use crate::systemd::tests::{Mood, lab};

    const UNIT: &str = "holdfast-1.scope";

    fn limits(shares: u64, pids: i64) -> Limits {
        Limits {
            cpu: Cpu {
                shares: Some(shares),
                ..Cpu::default()
            },
            pids: Some(pids),
            ..Limits::default()
        }
    }

    /// In a real cgroup, with a systemd of our own that knows the processor's share otherwise, and writes it.
    #[tokio::test]
    async fn systemd_is_told_what_was_before_and_what_it_writes_anew_is_put_right() {
        let lab = lab(Mood::Well);
        lab.manager
            .units
            .lock()
            .unwrap()
            .insert(UNIT.into(), BTreeMap::new());
        let hierarchy = Hierarchy::detect().unwrap();
        let path = format!("/holdfast-test-back-{}", std::process::id());
        let _reaper = Reaper::of_cgroup(&path);
        let cgroup = hierarchy.create(&path).unwrap();
        let old = limits(512, 50);
        cgroup.apply(&old, Stage::All).unwrap();
        let shown = || serde_json::to_value(cgroup.plan(&old).unwrap()).unwrap();
        let before = shown();
        let update = Limits {
            pids: Some(9),
            ..Limits::default()
        };
        let plan = cgroup.plan(&update).unwrap();
        cgroup.carry_out(&plan).map_err(|refused| refused.error).unwrap();
        let own = hierarchy.open(&path).unwrap();
        *lab.manager.rewrites.lock().unwrap() = Some(Box::new(move || {
            own.apply(&limits(1024, 9), Stage::All).unwrap();
        }));
        let back = || Back {
            unit: UNIT,
            path: path.clone(),
            plan: plan.clone(),
            limits: Some(old.clone()),
        };
        let left = taken_back(&lab.systemd, &hierarchy, back()).await;
        assert!(left.is_empty(), "{left:?}");
        let told = lab.manager.units.lock().unwrap()[UNIT]["TasksMax"].clone();
        assert!(told.contains("50"), "{told}");
        assert_eq!(shown(), before);

        // What cannot be told is named; but of what has ended there is nothing to tell.
        lab.manager.units.lock().unwrap().clear();
        let left = taken_back(&lab.systemd, &hierarchy, back()).await;
        assert!(left.len() == 1 && left[0].contains("NoSuchUnit"), "{left:?}");
        cgroup.remove(std::time::Duration::from_secs(10)).unwrap();
        let left = taken_back(&lab.systemd, &hierarchy, back()).await;
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_memory_limit_that_was_outgrown_is_left_out() {
        let mut all = limits(5, 6);
        (all.memory.limit, all.memory.swap) = (Some(7), Some(8));
        all.unified.insert("memory.max".into(), "7".into());
        all.unified.insert("memory.low".into(), "1".into());
        assert_eq!(but_memory(all.clone(), false), all);
        let rest = but_memory(all, true);
        assert_eq!((rest.memory.limit, rest.memory.swap), (None, None));
        assert_eq!(rest.unified.keys().collect::<Vec<_>>(), ["memory.low"]);
        assert_eq!(rest.pids, Some(6));
    }
}
