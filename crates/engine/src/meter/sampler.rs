//! The task that takes samples for as long as the engine lives.

use std::sync::{Arc, Weak};

use holdfast_model::{ContainerId, ContainerState, SandboxRecord};
use tokio::time::Instant;

use super::readers::PodMeter;
use super::{bounds, layers, lock};
use crate::shared::Shared;

/// Starts sampling; it ends by itself after the last owner of `shared` is gone.
pub(crate) fn start(shared: &Arc<Shared>) {
    tokio::spawn(sample(Arc::downgrade(shared)));
    tokio::spawn(layers::measure(Arc::downgrade(shared)));
}

async fn sample(engine: Weak<Shared>) {
    let Some(started) = engine.upgrade().map(|shared| shared.meters.started.clone()) else {
        return;
    };
    let mut next = Instant::now();
    loop {
        let first = tokio::select! {
            () = tokio::time::sleep_until(next) => false,
            () = started.notified() => true,
        };
        if first {
            // A start is not made slower by its own measurement, and others may follow it.
            tokio::time::sleep(bounds::SAMPLE_FIRST).await;
        } else {
            next = Instant::now() + bounds::SAMPLE_EVERY;
        }
        let Some(shared) = engine.upgrade() else { return };
        round(&shared, first).await;
    }
}

/// One sample of everything; with `first`, of what has none yet.
async fn round(shared: &Arc<Shared>, first: bool) {
    let live: Vec<ContainerId> = shared
        .views
        .containers
        .all()
        .iter()
        .filter(|record| matches!(record.state, ContainerState::Created | ContainerState::Running))
        .map(|record| record.id)
        .collect();
    for turn in live.chunks(bounds::TURN) {
        for id in turn {
            if let Some(meter) = shared.container_meter(id) {
                meter.meter.sample(first);
            }
        }
        tokio::task::yield_now().await;
    }
    let pods: Vec<(Arc<SandboxRecord>, Arc<PodMeter>)> = shared
        .views
        .sandboxes
        .all()
        .into_iter()
        .filter_map(|record| shared.pod_meter(&record.id).map(|meter| (record, meter)))
        .collect();
    let alone = shared.alone();
    for turn in pods.chunks(bounds::TURN) {
        for (record, meter) in turn {
            meter.sample(&shared.hierarchy, record, alone(record), first);
        }
        tokio::task::yield_now().await;
    }
    // Each may wait for the kernel's lock of network configuration: not on this thread.
    let read = tokio::task::spawn_blocking(move || {
        for (_, meter) in pods {
            if !first || meter.network().is_none() {
                meter.read_network();
            }
        }
    });
    let _ = read.await;
    lock(&shared.meters.containers).retain(|id, _| {
        let record = shared.views.containers.get(id);
        record.is_some_and(|record| matches!(record.state, ContainerState::Created | ContainerState::Running))
    });
}
