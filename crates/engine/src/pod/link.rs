//! The connection to a pod's monitor: made at the start, watched, and made anew when the monitor is gone.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use holdfast_model::{ContainerRecord, ContainerState, SandboxRecord};
use holdfast_monitor_api::message::{
    Cgroup, ContainerEntry, CreateContainer, CreateSandbox, Exit, IdMap, Init, KeyValue, OciRuntime, Phase,
};
use holdfast_monitor_api::{
    AdoptPlan, AdoptedContainer, Client, ContainerDescriptors, EventStream, MonitorEvent, MonitorInventory,
    SandboxDescriptors, Spawned,
};
use rustix::process::{Pid, PidfdFlags};
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::recover::{self, spool};
use super::{Context, stop, title};
use crate::Error;
use crate::config::bounds;
use holdfast_cgroups::Mode;

/// After the monitor's death, how long what it had sent before is still waited for.
const DRAIN: Duration = Duration::from_millis(50);

/// Score of pause: the last to go, but not untouchable as the node's own processes are.
const PAUSE_OOM_SCORE: i32 = -998;

/// A live monitor.
pub(super) struct Link {
    pub client: Client,
    pub pid: i32,
    events: EventStream,
    pidfd: AsyncFd<OwnedFd>,
    dead: bool,
}

impl Link {
    fn new(client: &Client, events: EventStream, pid: i32, pidfd: OwnedFd) -> Result<Self, Error> {
        // An OwnedFd keeps its number as long as it lives, which is all that the unsafe successor asks for.
        #[allow(deprecated)]
        let pidfd = AsyncFd::new(pidfd).map_err(|e| Error::Internal {
            what: format!("cannot watch monitor {pid}: {e}"),
        })?;
        Ok(Self {
            client: client.with_deadline(bounds::CALL),
            pid,
            events,
            pidfd,
            dead: false,
        })
    }

    pub(super) fn spawned(spawned: Spawned) -> Result<Self, Error> {
        Self::new(&spawned.client, spawned.events, spawned.pid, spawned.pidfd)
    }

    /// Connects to a monitor that runs already.
    pub(super) async fn connect(context: &Context) -> Result<Self, Error> {
        let (client, events, hello) = Client::connect(&context.socket())
            .await
            .map_err(Error::monitor("connecting to the monitor", context.id))?;
        // It answered just now, so the number is still its own.
        let pid = Pid::from_raw(hello.pid).ok_or_else(|| Error::Internal {
            what: format!("the monitor of {} says it is process 0", context.id),
        })?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| Error::Internal {
            what: format!("cannot watch monitor {}: {e}", hello.pid),
        })?;
        Self::new(&client, events, hello.pid, pidfd)
    }

    /// Ends a monitor that serves nobody: one that could not be told what for.
    pub(super) fn kill(&self) {
        let killed = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), rustix::process::Signal::KILL);
        if let Err(errno) = killed
            && errno != rustix::io::Errno::SRCH
        {
            tracing::error!(
                pid = self.pid,
                "a monitor without a pod cannot be killed: {errno}"
            );
        }
    }

    /// The next thing that the monitor says; [`MonitorEvent::Gone`] when it has died or hung up. Cancel-safe.
    ///
    /// The socket's end alone does not tell of a death: a container that waits at its barrier was cloned with a copy.
    pub(super) async fn next(&mut self) -> MonitorEvent {
        if self.dead {
            let rest = tokio::time::timeout(DRAIN, self.events.next()).await;
            return rest.ok().flatten().unwrap_or(MonitorEvent::Gone);
        }
        tokio::select! {
            biased;
            event = self.events.next() => event.unwrap_or(MonitorEvent::Gone),
            _ = self.pidfd.readable() => {
                self.dead = true;
                let rest = tokio::time::timeout(DRAIN, self.events.next()).await;
                rest.ok().flatten().unwrap_or(MonitorEvent::Gone)
            }
        }
    }
}

/// A monitor that knows nothing yet: the one that waits, or a new one.
pub(super) async fn spawn(context: &Context) -> Result<Link, Error> {
    if let Some(monitors) = &context.shared.monitors {
        monitors.ensure().await?;
    }
    let program = context.shared.config.monitor_program();
    if let Some(spare) = context.shared.spare.take(&program) {
        return Link::spawned(spare);
    }
    let spawned = tokio::time::timeout(bounds::SPAWN, holdfast_monitor_api::spawn(program))
        .await
        .map_err(|_| Error::Deadline {
            what: "starting the monitor",
            id: context.id.to_string(),
            limit: bounds::SPAWN,
        })?
        .map_err(Error::monitor("starting the monitor", context.id))?;
    Link::spawned(spawned)
}

pub(super) fn init_message(context: &Context, record: &SandboxRecord) -> Init {
    let config = &context.shared.config;
    // On version 1 moving a process costs 9 ms of RCU grace: there the monitor stays where the daemon is.
    let monitor_cgroup = match context.shared.hierarchy.mode() {
        Mode::Unified => monitor_cgroup(context),
        Mode::Hybrid | Mode::Legacy => String::new(),
    };
    Init {
        sandbox_id: context.id.to_string(),
        pod: title(record),
        state_dir: context.dir.to_string_lossy().into_owned(),
        pause_path: config.pause_program().to_string_lossy().into_owned(),
        monitor_cgroup,
    }
}

pub(super) fn monitor_cgroup(context: &Context) -> String {
    format!("{}/{}", context.shared.config.monitor_cgroup, context.id)
}

pub(super) fn pause_cgroup(record: &SandboxRecord) -> String {
    record.cgroup_of(record.id.as_str())
}

/// Of pause (the pod's own id) or of a container.
fn cgroup(pod: &SandboxRecord, id: &str) -> Cgroup {
    Cgroup {
        path: pod.oci_cgroup_of(id),
        driver: pod.cgroup_driver.as_str().into(),
    }
}

pub(super) fn sandbox_message(context: &Context, record: &SandboxRecord) -> CreateSandbox {
    let spec = &record.spec;
    let maps = spec.security.namespaces.user_maps();
    let id_maps = |maps: &[holdfast_model::IdMapping]| {
        let map = |map: &holdfast_model::IdMapping| IdMap {
            container_id: map.container_id,
            host_id: map.host_id,
            size: map.length,
        };
        maps.iter().map(map).collect()
    };
    let sysctl = |(key, value): (&String, &String)| KeyValue {
        key: key.clone(),
        value: value.clone(),
    };
    CreateSandbox {
        new_net: !spec.host_network(),
        new_ipc: !spec.host_ipc(),
        // The host's name goes with the host's network.
        new_uts: !spec.host_network(),
        new_pid: !spec.host_pid(),
        uid_maps: maps.map(|user| id_maps(&user.uids)).unwrap_or_default(),
        gid_maps: maps.map(|user| id_maps(&user.gids)).unwrap_or_default(),
        hostname: if spec.host_network() {
            String::new()
        } else {
            record.hostname.clone()
        },
        sysctls: spec.sysctls.iter().map(sysctl).collect(),
        cgroup: Some(cgroup(record, record.id.as_str())),
        shm_size: context.shared.config.shm_size,
        netns_path: record.netns_path.clone(),
        oom_score_adj: PAUSE_OOM_SCORE,
        resources: Vec::new(),
        clamp_privileges: context.shared.config.clamp_privileges,
        // Privileged or not, pause may do nothing: it keeps the pod's label.
        selinux_label: record.selinux.process.clone(),
        mount_label: record.selinux.mount.clone(),
    }
}

/// What a monitor must know of a container to run it on; without the root file system, which is mounted already.
pub(super) fn container_message(
    context: &Context,
    pod: &SandboxRecord,
    record: &ContainerRecord,
) -> CreateContainer {
    CreateContainer {
        container_id: record.id.to_string(),
        name: format!("{}/{}", title(pod), record.spec.metadata.name),
        spec: record.oci_spec.clone().into_bytes(),
        rootfs: None,
        cgroup: Some(cgroup(pod, record.id.as_str())),
        log_path: record.log_path.clone(),
        stdin: record.spec.stdin,
        stdin_once: record.spec.stdin_once,
        tty: record.spec.tty,
        // With the whole machine in its hands and the hierarchy writable, it may make cgroups of its own.
        manages_cgroup: record.spec.security.privileged,
        clamp_privileges: context.shared.config.clamp_privileges,
        // Filled in where the container is made.
        relabel: Vec::new(),
        runtime: record.runtime.as_ref().map(|runtime| OciRuntime {
            handler: pod.handler.clone(),
            program: runtime.program.to_string_lossy().into_owned(),
            root: runtime.root.to_string_lossy().into_owned(),
            bundle: (context.shared.config.bundles().join(record.id.as_str()))
                .to_string_lossy()
                .into_owned(),
            options: runtime.options.clone(),
        }),
        bundle: match &record.runtime {
            Some(_) => String::new(),
            None => bundle(context, record),
        },
    }
}

/// Of a container with hooks that the built-in launcher makes; empty: it has none.
fn bundle(context: &Context, record: &ContainerRecord) -> String {
    let shared = &context.shared;
    let bundle = shared.bundles.of(&shared.config, &record.id);
    bundle.map_or_else(String::new, |bundle| bundle.to_string_lossy().into_owned())
}

/// One container to hand over.
pub(super) struct Orphan {
    pub record: std::sync::Arc<ContainerRecord>,
    pub descriptors: Option<ContainerDescriptors>,
}

/// Everything that a replacement for a dead monitor needs.
pub(super) struct Estate {
    pub record: std::sync::Arc<SandboxRecord>,
    pub sandbox: SandboxDescriptors,
    pub containers: Vec<Orphan>,
}

/// How the search for a monitor ended.
pub(super) struct Relinked {
    pub outcome: Result<(Link, MonitorInventory), Error>,
    /// Given back where it was not needed or could not be handed over.
    pub estate: Option<Estate>,
    /// The monitor is another process than before.
    pub replaced: bool,
    /// The monitor may be there but does not answer: nothing is known to have ended.
    pub silent: bool,
    /// Exits that the old monitor wrote down and could not tell any more.
    pub exits: Vec<Exit>,
}

/// The monitor hung up: it is still there, or another takes its place.
pub(super) async fn relink(context: &Context, mut estate: Estate) -> Relinked {
    if let Ok(link) = Link::connect(context).await
        && let Ok(inventory) = link.client.inventory().await
    {
        return Relinked {
            outcome: Ok((link, inventory)),
            estate: Some(estate),
            replaced: false,
            silent: false,
            exits: Vec::new(),
        };
    }
    let exits = spool(context).await;
    // Those have been seen to end: the new monitor could only call them unknown.
    estate.containers.retain(|orphan| {
        !exits
            .iter()
            .any(|exit| exit.container_id == orphan.record.id.as_str())
    });
    let outcome = adopt(context, &estate).await;
    Relinked {
        outcome,
        estate: Some(estate),
        replaced: true,
        silent: false,
        exits,
    }
}

/// The same for a pod of which nothing is kept that could be handed over: its monitor did not answer when the daemon started.
pub(super) async fn find(context: &Context, record: &SandboxRecord, cgroups: Vec<String>) -> Relinked {
    let found = recover::look(context, record).await;
    let silent = found.silent.is_some();
    let outcome = match (found.live, found.silent) {
        (Some(live), _) => Ok(live),
        (None, Some(error)) => Err(error),
        (None, None) => {
            // What still runs has lost the reader of its output.
            for failure in stop::sweep(context, cgroups).await {
                warn!(pod = %context.id, "leftover processes: {failure}");
            }
            Err(Error::Busy {
                id: context.id.to_string(),
                reason: "its monitor is gone, and nothing was kept of it",
            })
        }
    };
    Relinked {
        outcome,
        estate: None,
        replaced: false,
        silent,
        exits: found.exits,
    }
}

async fn adopt(context: &Context, estate: &Estate) -> Result<(Link, MonitorInventory), Error> {
    // What is left of the old one would refuse the new one its place.
    let _ = std::fs::remove_file(context.socket());
    let link = spawn(context).await?;
    match hand_over(context, estate, &link.client).await {
        Ok(inventory) => Ok((link, inventory)),
        Err(error) => {
            // It has closed its copies of the vault by dying: the next one gets them afresh.
            link.kill();
            Err(error)
        }
    }
}

async fn hand_over(context: &Context, estate: &Estate, client: &Client) -> Result<MonitorInventory, Error> {
    let client = client.with_deadline(bounds::CREATE);
    let containers = estate.containers.iter().map(|orphan| AdoptedContainer {
        create: container_message(context, &estate.record, &orphan.record),
        entry: entry(orphan),
        descriptors: orphan.descriptors.as_ref(),
    });
    let plan = AdoptPlan {
        init: init_message(context, &estate.record),
        create_sandbox: sandbox_message(context, &estate.record),
        pause_pid: estate.record.pause_pid.unwrap_or(0),
        sandbox: &estate.sandbox,
        containers: containers.collect(),
    };
    client
        .adopt(plan)
        .await
        .map_err(Error::monitor("handing the pod to a new monitor", context.id))?;
    client.inventory().await.map_err(Error::monitor(
        "asking the new monitor for its inventory",
        context.id,
    ))
}

fn entry(orphan: &Orphan) -> ContainerEntry {
    let record = &orphan.record;
    let phase = match record.state {
        ContainerState::Creating | ContainerState::Created => Phase::Created,
        ContainerState::Running => Phase::Running,
        ContainerState::Exited | ContainerState::Removing => Phase::Exited,
    };
    ContainerEntry {
        container_id: record.id.to_string(),
        phase: phase.into(),
        pid: record.pid.unwrap_or(0),
        started_at: record.started_at,
        ..ContainerEntry::default()
    }
}

/// Moves a monitor onto the installed program, in place.
pub(super) async fn reexec(context: &Context, client: Client) -> Result<(), Error> {
    let program = context.shared.config.monitor_program();
    let path = program.clone();
    let file = crate::shared::blocking(move || {
        std::fs::File::open(&path).map_err(|source| Error::io("open", path.clone(), source))
    })
    .await?;
    client
        .reexec(file.as_fd())
        .await
        .map_err(Error::monitor("replacing the monitor's program", context.id))
}
