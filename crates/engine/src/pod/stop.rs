//! Taking a pod down: its network, its sandbox, its traces. Everything here can be repeated, carries on past
//! failures and names them all.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_cgroups::Hierarchy;
use holdfast_model::{CgroupDriver, ContainerRecord, SandboxRecord};
use holdfast_monitor_api::message::FailureKind;
use holdfast_monitor_api::{Client, Error as MonitorError};
use tracing::{debug, warn};

use super::{Context, link, scope};
use crate::config::bounds;
use crate::{Error, shared};

/// A cgroup whose last process has just died can be busy for a moment.
const CGROUP_REMOVAL: Duration = Duration::from_secs(5);

/// How long a monitor may take to finish what it is about.
const ATTEMPTS: usize = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// Of a pod that never came to be, or that nobody wants: all of it.
pub(super) async fn clean_up(
    context: &Context,
    record: &SandboxRecord,
    client: Option<Client>,
) -> Vec<String> {
    let mut failures = halt(context, record, client, Vec::new()).await;
    if failures.is_empty() {
        failures = clear(context, record).await;
    }
    failures
}

/// StopPodSandbox: network, containers' remains, pause, namespaces, and the monitor, which has nothing left to do.
pub(super) async fn halt(
    context: &Context,
    record: &SandboxRecord,
    client: Option<Client>,
    containers: Vec<Arc<ContainerRecord>>,
) -> Vec<String> {
    let mut failures = Vec::new();
    if record.network_owed {
        teardown_network(context, &mut failures).await;
    }
    let halted = match client {
        Some(client) => leave(&client, &containers).await,
        // A monitor that was let go of in trouble may still be there.
        None => match tokio::time::timeout(bounds::RECOVER, link::Link::connect(context)).await {
            Ok(Ok(link)) => leave(&link.client, &containers).await,
            _ => {
                if record.boot_id == context.shared.boot_id {
                    kill_silent(context, record.monitor_pid);
                }
                Err(MonitorError::Gone)
            }
        },
    };
    match halted {
        Ok(()) => {}
        // Nobody is there to do it: by cgroup, then.
        Err(MonitorError::Gone) => {
            let mut cgroups = vec![link::pause_cgroup(record)];
            cgroups.extend(containers.iter().map(|container| container.cgroup.clone()));
            failures.extend(sweep(context, cgroups).await);
        }
        Err(source) => failures.push(Error::monitor("stopping the sandbox", context.id)(source).chain()),
    }
    if !record.netns_path.is_empty()
        && let Err(error) = release_netns(&record.netns_path).await
    {
        failures.push(error.chain());
    }
    failures
}

/// Ends a monitor that lives but does not answer: without its pod nobody would ever look for it.
fn kill_silent(context: &Context, pid: Option<i32>) {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let Some(pid) = pid.and_then(Pid::from_raw) else {
        return;
    };
    // Held before it is looked at, so that it cannot become another.
    let Ok(monitor) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let errors = std::fs::read_link(format!("/proc/{}/fd/2", pid.as_raw_nonzero()));
    if errors.is_ok_and(|file| file == context.dir.join("monitor.log")) {
        warn!(pod = %context.id, monitor = pid.as_raw_nonzero(), "does not answer: it is killed");
        let _gone = pidfd_send_signal(&monitor, Signal::KILL);
    }
}

/// A failure is not the caller's: the network goes on trying by itself until it succeeds.
async fn teardown_network(context: &Context, failures: &mut Vec<String>) {
    let teardown = context.shared.network.teardown(context.id.as_str());
    match tokio::time::timeout(bounds::NETWORK_TEARDOWN, teardown).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(pod = %context.id, "network teardown failed and will be repeated: {error}"),
        Err(_) => {
            let what = "taking down the network";
            let limit = bounds::NETWORK_TEARDOWN;
            failures.push(
                Error::Deadline {
                    what,
                    id: context.id.to_string(),
                    limit,
                }
                .to_string(),
            );
        }
    }
}

async fn leave(client: &Client, containers: &[Arc<ContainerRecord>]) -> Result<(), MonitorError> {
    let client = client.with_deadline(bounds::KILL);
    for container in containers {
        client.remove(container.id.as_str()).await?;
    }
    // After the daemon's own restart a half-made sandbox may still be in the making.
    when_possible(|| client.stop_sandbox()).await?;
    // Helpers of its own may still be at work, such as one that removes the leaf cgroup of the last exec.
    match when_possible(|| client.shutdown()).await {
        // It may be quicker to leave than to say so.
        Err(MonitorError::Gone) => Ok(()),
        outcome => outcome,
    }
}

/// Asks again while the monitor says "not now".
async fn when_possible<F: Future<Output = Result<(), MonitorError>>>(
    call: impl Fn() -> F,
) -> Result<(), MonitorError> {
    for _ in 0..ATTEMPTS {
        match call().await {
            Err(MonitorError::Refused {
                kind: FailureKind::Precondition,
                ..
            }) => tokio::time::sleep(PAUSE).await,
            outcome => return outcome,
        }
    }
    call().await
}

/// RemovePodSandbox: what is left of a stopped pod, its record last.
pub(super) async fn clear(context: &Context, record: &SandboxRecord) -> Vec<String> {
    let cgroups = [link::pause_cgroup(record), link::monitor_cgroup(context)];
    let by_hand = record.cgroup_driver == CgroupDriver::Cgroupfs;
    let parent = (record.cgroup_made && by_hand).then(|| record.cgroup.clone());
    let hierarchy = context.shared.hierarchy.clone();
    let dir = context.dir.clone();
    let first = move || {
        for cgroup in cgroups {
            sweep_one(&hierarchy, &cgroup)?;
        }
        if let Some(parent) = parent {
            let removed = hierarchy.remove_if_empty(&parent);
            removed.map_err(|source| Error::Cgroup {
                step: "removal",
                path: parent,
                source: Box::new(source),
            })?;
        }
        remove_tree(&dir)
    };
    if record.cgroup_made
        && !by_hand
        && let Err(error) = scope::stop_slice(context, record).await
    {
        return vec![error.chain()];
    }
    match context.shared.disk.remove_sandbox(&context.id, first).await {
        Ok(()) => Vec::new(),
        Err(error) => vec![error.chain()],
    }
}

fn remove_tree(dir: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir, error)),
        _ => Ok(()),
    }
}

/// Kills whatever is in these cgroups and removes them, without a monitor's help. What could not be done is named.
pub(super) async fn sweep(context: &Context, cgroups: Vec<String>) -> Vec<String> {
    let hierarchy = context.shared.hierarchy.clone();
    let swept = move || Ok(sweep_all(&hierarchy, &cgroups));
    match context.shared.disk.removal(swept).await {
        Ok(errors) => errors.iter().map(Error::chain).collect(),
        Err(error) => vec![error.chain()],
    }
}

/// With one deadline for all of them. Blocks.
fn sweep_all(hierarchy: &Hierarchy, cgroups: &[String]) -> Vec<Error> {
    // All are killed before any is waited for: one that hangs must not keep the others alive.
    for path in cgroups {
        if let Ok(cgroup) = hierarchy.open(path) {
            let _ = cgroup.kill();
        }
    }
    let until = Instant::now() + bounds::KILL;
    let swept = cgroups.iter().map(|path| sweep_until(hierarchy, path, until));
    swept.filter_map(Result::err).collect()
}

/// Blocks.
pub(crate) fn sweep_one(hierarchy: &Hierarchy, path: &str) -> Result<(), Error> {
    sweep_until(hierarchy, path, Instant::now() + bounds::KILL)
}

fn sweep_until(hierarchy: &Hierarchy, path: &str, until: Instant) -> Result<(), Error> {
    let failed = |step| {
        let path = path.to_owned();
        move |source| Error::Cgroup {
            step,
            path,
            source: Box::new(source),
        }
    };
    if !hierarchy.exists(path).map_err(failed("search"))? {
        return Ok(());
    }
    debug!(path, "cgroup is still there");
    if let Ok(cgroup) = hierarchy.open(path) {
        cgroup.kill().map_err(failed("kill"))?;
        let left = until.saturating_duration_since(Instant::now());
        cgroup.wait_empty(left).map_err(failed("kill"))?;
        return cgroup.remove(CGROUP_REMOVAL).map_err(failed("removal"));
    }
    hierarchy
        .remove_if_empty(path)
        .map(drop)
        .map_err(failed("removal"))
}

/// The monitor does this; where it was killed, the mount is still there.
async fn release_netns(path: &str) -> Result<(), Error> {
    let path = path.to_owned();
    shared::blocking(move || {
        holdfast_sys::namespace::unbind(Path::new(&path)).map_err(|source| Error::io("release", path, source))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_swept_is_named_each() {
        let hierarchy = Hierarchy::detect().unwrap();
        let gone = format!("/holdfast-test-sweep-{}", std::process::id());
        let wrong = [gone, "/holdfast/../a".to_owned(), "/holdfast/../b".to_owned()];
        let errors: Vec<String> = sweep_all(&hierarchy, &wrong).iter().map(Error::chain).collect();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(
            errors[0].contains("../a") && errors[1].contains("../b"),
            "{errors:?}"
        );
    }
}
