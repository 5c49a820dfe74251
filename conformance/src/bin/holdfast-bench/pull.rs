//! Section `pull`: a big image from a registry on loopback.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_conformance::builder::Pusher;
use serde_json::json;

use crate::bench::Bench;
use crate::image;
use crate::report::{FLOOR, Unit};
use crate::target::Target;

const LAYERS: usize = 5;

pub async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let what = format!("pull of {} MB, {LAYERS} gzip layers", bench.args.image_mb);
    let big = image::big(bench.args.image_mb, LAYERS)?;
    bench.report.notes.push(format!(
        "the pulled image: {} files, {:.0} MB, packed {:.0} MB",
        big.files,
        big.unpacked as f64 / 1e6,
        big.packed as f64 / 1e6
    ));
    let unpacked = big.unpacked;
    let blobs: Vec<Vec<u8>> = match bench.floor {
        Some(_) => big.layers.iter().map(|l| l.blob.clone()).collect(),
        None => Vec::new(),
    };
    let pusher = Pusher::new(&bench.registry.host, None);
    let config = json!({"Cmd": ["/bin/sh"]});
    let name = format!("bench/big:{}", bench.args.image_mb);
    let reference = pusher
        .push_packed(&name, big.layers, &config, false)
        .await
        .context("push the big image")?;
    for round in bench.rounds(bench.args.slow_runs) {
        for at in round.order {
            let target = &bench.targets[at];
            let who = target.name.clone();
            match once(target, &reference).await {
                Ok(took) if round.counts => {
                    bench.report.add(&what, Unit::Seconds, &who, took.as_secs_f64());
                }
                Ok(_) => {}
                Err(error) => bench.report.fail(&what, Unit::Seconds, &who, &error),
            }
        }
        if bench.floor.is_some() && round.counts {
            let inflated = image::inflate(&blobs)?.as_secs_f64();
            bench.report.add(
                "  inflating and digesting in memory",
                Unit::Seconds,
                FLOOR,
                inflated,
            );
            let written = write(&bench.scratch, unpacked)?.as_secs_f64();
            bench
                .report
                .add("  writing as much with fsync", Unit::Seconds, FLOOR, written);
        }
    }
    Ok(())
}

async fn once(target: &Target, reference: &str) -> anyhow::Result<Duration> {
    // Nobody else's dirty pages are written while the time runs.
    rustix::fs::sync();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begin = Instant::now();
    target.cri.pull(reference).await.context("PullImage")?;
    let took = begin.elapsed();
    target.cri.remove_image(reference).await.context("RemoveImage")?;
    Ok(took)
}

fn write(scratch: &Path, bytes: usize) -> anyhow::Result<Duration> {
    let path = scratch.join("floor.blob");
    let block = vec![0x5au8; 1 << 20];
    rustix::fs::sync();
    let begin = Instant::now();
    let mut file = File::create(&path)?;
    for _ in 0..bytes.div_ceil(block.len()) {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    let took = begin.elapsed();
    std::fs::remove_file(&path)?;
    Ok(took)
}
