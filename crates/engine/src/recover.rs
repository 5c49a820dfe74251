//! The daemon's start: every record gets its owner back, and what has no record is removed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use holdfast_cgroups::{Hierarchy, Mode};
use holdfast_images::Images;
use holdfast_model::{
    CgroupDriver, ContainerRecord, SCOPE_PREFIX, SandboxId, SandboxRecord, SandboxState, scope_unit,
};
use holdfast_network::Network;
use tokio::sync::{Semaphore, broadcast, oneshot};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::cdi::Cdi;
use crate::config::bounds;
use crate::disk::{Disk, Found};
use crate::handlers::{self, Handlers};
use crate::lookup::{self, Identities};
use crate::lsm::AppArmor;
use crate::meter::{self, Meters};
use crate::names::Names;
use crate::pod::{Birth, Pod, forsaken};
use crate::shared::{Pods, Shared, blocking};
use crate::spare::Spare;
use crate::systemd::{self, Address, Monitors, Systemd};
use crate::view::Views;
use crate::{Config, Error};

pub(crate) async fn open(config: Config, images: Images, network: Network) -> Result<Arc<Shared>, Error> {
    let (config, found, hierarchy, facts, boot_id, cdi, bundles) = blocking(move || {
        let found = Disk::open(&config)?;
        let hierarchy = Hierarchy::detect().map_err(|source| Error::Cgroup {
            step: "search",
            path: "the hierarchies".into(),
            source: Box::new(source),
        })?;
        let by_us = config.cgroup_driver == holdfast_model::CgroupDriver::Cgroupfs;
        let own = [&config.default_cgroup, &config.monitor_cgroup].into_iter();
        for cgroup in own.filter(|_| by_us) {
            let moved = hierarchy.step_aside(cgroup).map_err(|source| Error::Cgroup {
                step: "leaving the way",
                path: cgroup.clone(),
                source: Box::new(source),
            })?;
            if let Some(now) = moved {
                info!("the daemon has moved to the cgroup {now}, so that pods can be made beside it");
            }
        }
        make_state(&config)?;
        handlers::prepare(&config)?;
        let facts = lookup::host_facts(&hierarchy, &config);
        let cdi = Cdi::open(config.cdi_dirs.clone());
        let bundles = handlers::Bundles::open(&config);
        Ok((config, found, hierarchy, facts, lookup::boot_id(), cdi, bundles))
    })
    .await?;
    cdi.watch();
    let Found {
        disk,
        sandboxes,
        containers,
        damaged,
    } = found;
    if let AppArmor::NoDefault(why) = &facts.apparmor {
        warn!("AppArmor's default profile is not there, containers that do not ask run unconfined: {why}");
    }
    for text in &damaged {
        error!("damaged record: {text}");
    }
    let spare = Spare::new(config.monitor_program(), config.spare_monitor);
    let systemd = Arc::new(Systemd::new(Address::System));
    let by_systemd = config.cgroup_driver == CgroupDriver::Systemd;
    // On version 1 a monitor stays where the daemon is.
    let monitors = (by_systemd && hierarchy.mode() == Mode::Unified)
        .then(|| Monitors::new(systemd.clone(), hierarchy.clone(), &config));
    let handlers = Handlers::open(&config).await;
    let shared = Arc::new(Shared {
        config,
        images,
        network,
        cdi,
        hierarchy,
        facts,
        disk,
        views: Views::default(),
        names: Names::default(),
        pods: Pods::default(),
        events: broadcast::Sender::new(bounds::EVENTS),
        boot_id,
        identities: Identities::default(),
        spare,
        discards: Semaphore::new(bounds::DISCARDS),
        meters: Meters::default(),
        systemd,
        monitors,
        handlers,
        bundles,
    });
    if by_systemd {
        greet_systemd(&shared).await;
    }
    let known: BTreeSet<SandboxId> = sandboxes.iter().map(|record| record.id).collect();
    revive(&shared, sandboxes, containers).await;
    sweep(&shared, &known).await;
    meter::start(&shared);
    handlers::watch(&shared);
    Ok(shared)
}

/// A daemon that cannot reach systemd serves the pods that run, says in its status that it can make no more, and tries
/// again.
async fn greet_systemd(shared: &Arc<Shared>) {
    let greeted = match &shared.monitors {
        Some(monitors) => monitors.ensure().await,
        None => shared
            .systemd
            .version()
            .await
            .map(drop)
            .map_err(|source| Error::Systemd {
                step: "greeting",
                id: "systemd".into(),
                source: Box::new(source),
            }),
    };
    if let Err(error) = greeted {
        error!("{}", error.chain());
    }
    shared.systemd.watch();
}

fn make_state(config: &Config) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = config.state.join("pods");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(&dir)
        .map_err(|source| Error::io("make", dir, source))
}

/// Gives every pod its owner and waits until each knows what is left of its pod. One that takes long is not waited
/// for by the others.
async fn revive(
    shared: &Arc<Shared>,
    sandboxes: Vec<Arc<SandboxRecord>>,
    containers: Vec<Arc<ContainerRecord>>,
) {
    let mut by_pod: HashMap<SandboxId, Vec<Arc<ContainerRecord>>> = HashMap::new();
    for record in containers {
        by_pod.entry(record.sandbox).or_default().push(record);
    }
    let mut waiting = Vec::with_capacity(sandboxes.len());
    for record in sandboxes {
        let containers = by_pod.remove(&record.id).unwrap_or_default();
        if let Err(holder) = shared.names.reserve(&record.spec.metadata, record.id) {
            error!(pod = %record.id, %holder, "two pods on record have the name {}", record.spec.metadata);
        }
        shared.views.sandboxes.set(record.id, record.clone());
        for container in &containers {
            shared.views.containers.set(container.id, container.clone());
        }
        let (ready, revived) = oneshot::channel();
        waiting.push(revived);
        Pod::start(
            shared,
            Arc::unwrap_or_clone(record),
            Birth::Recovered { containers, ready },
        );
    }
    for revived in waiting {
        // Dropped, not sent, when it is ready.
        let _ = revived.await;
    }
    for orphan in by_pod.into_values().flatten() {
        warn!(container = %orphan.id, "has a record, but its pod {} has none", orphan.sandbox);
        if let Err(error) = handlers::sweep(shared, &orphan).await {
            error!(container = %orphan.id, "{}", error.chain());
        }
        let (hierarchy, cgroup) = (shared.hierarchy.clone(), orphan.cgroup.clone());
        let first = move || crate::pod::sweep_one(&hierarchy, &cgroup);
        if let Err(error) = shared.disk.remove_container(&orphan.id, first).await {
            error!(container = %orphan.id, "{}", error.chain());
        }
    }
}

/// Removes what no record names: directories, snapshots, cgroups, network attachments.
async fn sweep(shared: &Arc<Shared>, known: &BTreeSet<SandboxId>) {
    sweep_directories(shared, known).await;
    sweep_cgroups(shared, known).await;
    sweep_scopes(shared, known).await;
    handlers::sweep_strays(shared).await;
    sweep_snapshots(shared).await;
    let live = shared.views.sandboxes.all().into_iter().filter(|record| {
        record.network_owed
            && record.boot_id == shared.boot_id
            && matches!(
                record.state,
                SandboxState::Ready | SandboxState::Dead | SandboxState::Stopping
            )
    });
    let live: Vec<String> = live.map(|record| record.id.to_string()).collect();
    match shared.network.reconcile(live).await {
        Ok(done) if done.removed.is_empty() && done.stray_links.is_empty() => {}
        Ok(done) => {
            info!(removed = ?done.removed, links = ?done.stray_links, "took down network of pods that are gone");
        }
        Err(error) => error!("network could not be compared with the records: {error}"),
    }
}

async fn sweep_directories(shared: &Arc<Shared>, known: &BTreeSet<SandboxId>) {
    let dir = shared.config.state.join("pods");
    let listed = blocking(move || {
        let entries = std::fs::read_dir(&dir).map_err(|source| Error::io("list", dir, source))?;
        let names = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        Ok(names
            .filter_map(|name| SandboxId::parse(&name).ok())
            .collect::<Vec<_>>())
    });
    let strays = match listed.await {
        Ok(ids) => ids.into_iter().filter(|id| !known.contains(id)),
        Err(error) => return error!("{}", error.chain()),
    };
    let mut work = JoinSet::new();
    for id in strays {
        warn!(pod = %id, "has a directory but no record: it is ended and removed");
        let shared = shared.clone();
        work.spawn(async move { (id, forsaken(shared, id).await) });
    }
    while let Some(Ok((id, failures))) = work.join_next().await {
        for failure in failures {
            error!(pod = %id, "{failure}");
        }
    }
}

/// Only below the cgroups that are ours alone; the kubelet's are its own to clean.
async fn sweep_cgroups(shared: &Arc<Shared>, known: &BTreeSet<SandboxId>) {
    let (shared, mut known) = (
        shared.clone(),
        known.iter().map(ToString::to_string).collect::<BTreeSet<_>>(),
    );
    known.extend(
        shared
            .views
            .containers
            .all()
            .iter()
            .map(|record| record.id.to_string()),
    );
    let swept = blocking(move || {
        for parent in [&shared.config.default_cgroup, &shared.config.monitor_cgroup] {
            for name in shared.hierarchy.children(parent).unwrap_or_default() {
                if SandboxId::parse(&name).is_ok() && !known.contains(&name) {
                    warn!(cgroup = name, "belongs to no record: it is removed");
                    if let Err(error) = crate::pod::sweep_one(&shared.hierarchy, &format!("{parent}/{name}"))
                    {
                        error!("{}", error.chain());
                    }
                }
            }
        }
        Ok(())
    });
    let _ = swept.await;
}

/// Units of ours, in whatever slice, that no record names: made by a daemon that was killed before it could use them, or of
/// a pod whose record was damaged.
async fn sweep_scopes(shared: &Arc<Shared>, known: &BTreeSet<SandboxId>) {
    let pods = shared.views.sandboxes.all();
    let used = |record: &Arc<SandboxRecord>| record.cgroup_driver == CgroupDriver::Systemd;
    if shared.config.cgroup_driver != CgroupDriver::Systemd && !pods.iter().any(used) {
        return;
    }
    let mut names: BTreeSet<String> = known.iter().map(|id| scope_unit(id.as_str())).collect();
    let containers = shared.views.containers.all();
    names.extend(containers.iter().map(|record| scope_unit(record.id.as_str())));
    let ours = format!("{}: ", systemd::owner(&shared.config));
    let found = match shared.systemd.units(&format!("{SCOPE_PREFIX}-*.scope")).await {
        Ok(found) => found,
        Err(error) => {
            return error!(
                "units of pods that are gone are not looked for: {}",
                error.chain()
            );
        }
    };
    for unit in found {
        let id = unit
            .name
            .strip_prefix(SCOPE_PREFIX)
            .and_then(|rest| rest.strip_prefix('-'));
        let id = id.and_then(|rest| rest.strip_suffix(".scope"));
        let of_a_pod = id.is_some_and(|id| SandboxId::parse(id).is_ok());
        if !of_a_pod || names.contains(&unit.name) || !unit.description.starts_with(&ours) {
            continue;
        }
        warn!(unit = unit.name, "belongs to no record: it is stopped");
        if let Err(error) = shared.systemd.stop_unit(&unit.name).await {
            error!("{}", error.chain());
        }
    }
}

async fn sweep_snapshots(shared: &Arc<Shared>) {
    let known: BTreeSet<String> = shared
        .views
        .containers
        .all()
        .iter()
        .map(|record| record.id.to_string())
        .collect();
    for key in shared.images.snapshots() {
        // Of an image among a container's mounts: `<id>.<n>`.
        if known.contains(key.split('.').next().unwrap_or_default()) {
            continue;
        }
        info!(snapshot = key, "belongs to no container: it is discarded");
        if let Err(error) = shared.images.discard(&key).await {
            error!(snapshot = key, "{error}");
        }
    }
}
