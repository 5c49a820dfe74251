//! Section `parallel`: many pods, some at a time.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use k8s_cri::v1::NamespaceMode;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bench::{Bench, sleeper};
use crate::report::{FLOOR, Unit};
use crate::target::{Pod, Target};

pub async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let (pods, at_once) = (bench.args.pods, bench.args.at_once);
    let start = format!("{pods} pods, {at_once} at a time");
    let end = format!("{pods} pods stopped and removed, {at_once} at a time");
    for round in bench.rounds(bench.args.slow_runs) {
        for at in round.order {
            // Idle machine first: the last turn's namespaces and snapshots are gone.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let target = &bench.targets[at];
            let who = target.name.clone();
            match once(target, &bench.image, &bench.log_dir(), pods, at_once).await {
                Ok((up, down)) if round.counts => {
                    let rate = |took: Duration| pods as f64 / took.as_secs_f64();
                    bench.report.add(&start, Unit::PodsPerSecond, &who, rate(up));
                    bench.report.add(&end, Unit::PodsPerSecond, &who, rate(down));
                }
                Ok(_) => {}
                Err(error) => {
                    bench.report.fail(&start, Unit::PodsPerSecond, &who, &error);
                    target.sweep().await;
                }
            }
        }
        if let Some(floor) = &mut bench.floor {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let seconds = floor.many(pods)?;
            if round.counts {
                let rate = pods as f64 / seconds;
                bench.report.add(&start, Unit::PodsPerSecond, FLOOR, rate);
            }
        }
    }
    Ok(())
}

async fn once(
    target: &Target,
    image: &str,
    logs: &Path,
    pods: usize,
    at_once: usize,
) -> anyhow::Result<(Duration, Duration)> {
    let begin = Instant::now();
    let running = start(target, image, logs, pods, at_once).await?;
    let up = begin.elapsed();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begin = Instant::now();
    end(target, running, at_once).await?;
    Ok((up, begin.elapsed()))
}

/// Starts that many sleeping pods.
pub async fn start(
    target: &Target,
    image: &str,
    logs: &Path,
    pods: usize,
    at_once: usize,
) -> anyhow::Result<Vec<Pod>> {
    let slots = Arc::new(Semaphore::new(at_once));
    let mut tasks = JoinSet::new();
    for number in 0..pods {
        let (slots, target) = (Arc::clone(&slots), target.share());
        let (image, logs) = (image.to_owned(), logs.to_owned());
        tasks.spawn(async move {
            let _slot = slots.acquire().await.context("the semaphore is closed")?;
            let name = format!("many-{number}");
            target
                .start(&sleeper(&name, &image, &logs, NamespaceMode::Pod))
                .await
                .with_context(|| name.clone())
        });
    }
    let mut running = Vec::new();
    let mut failed = None;
    // A call that is given up half-way may still make its pod: every task comes to its end.
    while let Some(joined) = tasks.join_next().await {
        match joined? {
            Ok(pod) => running.push(pod),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(running), Err)
}

/// Stops and removes them.
pub async fn end(target: &Target, pods: Vec<Pod>, at_once: usize) -> anyhow::Result<()> {
    let slots = Arc::new(Semaphore::new(at_once));
    let mut tasks = JoinSet::new();
    for pod in pods {
        let (slots, target) = (Arc::clone(&slots), target.share());
        tasks.spawn(async move {
            let _slot = slots.acquire().await.context("the semaphore is closed")?;
            target.end(&pod).await.map(drop)
        });
    }
    let mut result = Ok(());
    while let Some(joined) = tasks.join_next().await {
        result = result.and(joined?);
    }
    result
}
