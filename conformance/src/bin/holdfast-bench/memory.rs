//! Section `memory`: what a pod costs in helper processes, and what the daemon holds. Read from /proc.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use crate::bench::Bench;
use crate::parallel;
use crate::report::Unit;

/// Processes that a runtime keeps beside a pod's containers, by the name of their executable.
const HELPERS: &[&str] = &[
    "holdfast-monitor",
    "holdfast-pause",
    "containerd-shim-runc-v2",
    "conmon",
    "conmonrs",
    "pause",
];

/// Resident set of a process, in MiB.
pub fn rss(pid: i32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kib = field(&text, "VmRSS:").with_context(|| format!("no VmRSS in {path}"))?;
    Ok(kib / 1024.0)
}

pub async fn run(bench: &mut Bench<'_>) {
    for at in 0..bench.targets.len() {
        if let Err(error) = one(bench, at).await {
            let who = bench.targets[at].name.clone();
            bench.report.fail(WHAT, Unit::KiB, &who, &error);
            bench.targets[at].sweep().await;
        }
    }
}

const WHAT: &str = "PSS of helpers and pause, per pod";

async fn one(bench: &mut Bench<'_>, at: usize) -> anyhow::Result<()> {
    let target = &bench.targets[at];
    let who = target.name.clone();
    let count = bench.args.memory_pods;
    let before = helpers(target.pid)?;
    let pods = parallel::start(target, &bench.image, &bench.log_dir(), count, bench.args.at_once).await?;
    // Whatever start-up left to be given back is given back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut total: BTreeMap<&'static str, (f64, usize)> = BTreeMap::new();
    for (pid, name) in helpers(target.pid)?
        .into_iter()
        .filter(|helper| !before.contains(helper))
    {
        let pss = pss(pid)?;
        let sum = total.entry(name).or_default();
        sum.0 += pss;
        sum.1 += 1;
    }
    let daemon = rss(target.pid)?;
    parallel::end(target, pods, bench.args.at_once).await?;
    anyhow::ensure!(
        !total.is_empty(),
        "no helper process appeared: looked for {}",
        HELPERS.join(", ")
    );
    let sum: f64 = total.values().map(|(kib, _)| kib).sum();
    bench.report.add(WHAT, Unit::KiB, &who, sum / count as f64);
    for (name, (kib, processes)) in &total {
        bench.report.notes.push(format!(
            "{who}: {processes} processes {name} for {count} pods, {:.0} KiB PSS a pod",
            kib / count as f64
        ));
    }
    let what = format!("daemon RSS, with {count} pods");
    bench.report.add(&what, Unit::MiB, &who, daemon);
    Ok(())
}

/// The helper processes that live now beside `daemon`: they, or (of pause) their parents, are in its mount namespace.
/// A runtime on the same machine that has nothing to do with this run is thereby left out.
fn helpers(daemon: i32) -> anyhow::Result<BTreeSet<(i32, &'static str)>> {
    let home = mount_namespace(daemon).context("the daemon is gone")?;
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").context("read /proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        // A process that has just ended, or a kernel thread, has no executable.
        let Ok(exe) = std::fs::read_link(entry.path().join("exe")) else {
            continue;
        };
        // A program that is run from a detached mount, as holdfast-monitor is, has no path.
        let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let started_as = Path::new(line.split('\0').next().unwrap_or_default());
        let name = exe.file_name().or_else(|| started_as.file_name());
        let name = name.map(|n| n.to_string_lossy().into_owned());
        let name = name.as_deref().map(|n| n.trim_end_matches(" (deleted)"));
        let Some(known) = HELPERS.iter().find(|known| Some(**known) == name) else {
            continue;
        };
        let at_home = |pid: i32| mount_namespace(pid).as_ref() == Some(&home);
        if at_home(pid) || parent(pid).is_some_and(at_home) {
            found.insert((pid, *known));
        }
    }
    Ok(found)
}

fn mount_namespace(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

fn parent(pid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    field(&text, "PPid:").map(|pid| pid as i32)
}

/// Proportional set size, in KiB.
fn pss(pid: i32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text =
        std::fs::read_to_string(Path::new(&path)).with_context(|| format!("read {path}: is this root?"))?;
    field(&text, "Pss:").with_context(|| format!("no Pss in {path}"))
}

fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        let text = "Rss:      1816 kB\nPss:       133 kB\nPss_Dirty:  60 kB\n";
        assert_eq!(field(text, "Pss:"), Some(133.0));
        assert_eq!(field(text, "Swap:"), None);
    }
}
