//! What pods and containers use: descriptors that are kept open, samples that were taken, and the answers made of both.
//!
//! - Processor, memory, pressure and tasks are read when they are asked for, through descriptors that are open already
//!   ([`readers`]). A sampler takes the processor time now and then, so that a rate can be told at once.
//! - Interfaces are told from the last sample, with its time: reading them can wait for a lock of the kernel's network
//!   configuration.
//! - Writable layers are read from the file system's accounts when they are asked for, where it keeps such; else they are told
//!   as the last walk over the disk found them, with its time ([`layers`]).
//! - What only metrics tell ([`metrics`]) is read when they are asked for, away from the runtime's threads.
//!
//! Everything of a container or a pod is closed when it ends.

mod files;
mod layers;
mod metrics;
mod readers;
mod sampler;
mod walk;
mod window;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_cgroups::Stats;
use holdfast_model::{ContainerId, ContainerRecord, ContainerState, SandboxId, SandboxRecord};
use holdfast_network::PodLinks;
use tokio::sync::Notify;

use crate::shared::{Shared, now};
use readers::{ContainerMeter, PodMeter};

pub use files::OpenFiles;
pub use holdfast_cgroups::{
    CpuStat, Detail, HugetlbStat, IoStat, MemoryStat, PidsStat, Pressure, Pressures, Stall,
};
pub use holdfast_network::LinkCounters;
pub use layers::{FileSystem, Layer};
pub use metrics::{ContainerMetrics, PodMetrics};
pub use readers::NetworkUsage;
pub(crate) use sampler::start;

/// Bounds and intervals.
pub mod bounds {
    use std::time::Duration;

    /// How often processor time and interfaces are sampled.
    pub const SAMPLE_EVERY: Duration = Duration::from_secs(10);
    /// After a start, how long the sampler waits for more of them before it takes the first sample.
    pub const SAMPLE_FIRST: Duration = Duration::from_millis(100);
    /// A rate over less than this says little.
    pub const SHORTEST_WINDOW: Duration = Duration::from_secs(1);
    /// A single pod's interfaces are read when asked for, but nobody waits for them longer than this.
    pub const NETWORK_WAIT: Duration = Duration::from_millis(500);
    /// How often a writable layer is walked, at the most.
    pub const LAYER_EVERY: Duration = Duration::from_secs(10);
    /// How often what is on a layer's account is compared with a walk, where a container could change that; [`LAYER_EVERY`]
    /// after a walk that found more.
    pub const LAYER_CHECK: Duration = Duration::from_secs(300);
    /// Walks in a row that find more than the account, by more than this, after which it is not believed any more.
    pub const LAYER_DOUBTS: u32 = 3;
    pub const LAYER_SLACK: u64 = 64 << 20;
    /// How long anybody waits for a disk to tell what is on accounts.
    pub const LAYER_WAIT: Duration = Duration::from_millis(500);
    /// A layer that took long is left alone for this many times as long.
    pub const LAYER_REST: u32 = 20;
    /// Entries between two rests of a walk, and the rest.
    pub const WALK_STRIDE: u64 = 2000;
    pub const WALK_REST: Duration = Duration::from_millis(5);
    /// Directories below each other that a walk goes into; each keeps a descriptor open.
    pub const WALK_DEPTH: usize = 128;
    /// Files with several names that a walk remembers, so as to count each once.
    pub const WALK_LINKS: usize = 1 << 16;
    /// Entries of a layer's first measurement, if metrics are asked for before the walk has come by.
    pub const WALK_FIRST: u64 = 1000;
    /// How old the count of a container's open files may be.
    pub const FILES_AGE: Duration = Duration::from_secs(10);
    /// Processes of a container, and descriptors of each, that are looked at; more are counted as they come, not looked at.
    pub const FILES_PROCESSES: usize = 256;
    pub const FILES_DESCRIPTORS: usize = 4096;
    /// Containers that are read before other work gets its turn.
    pub const TURN: usize = 16;
}

/// Figures of a cgroup, or of several together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// When they were read: nanoseconds since 1970.
    pub at: i64,
    pub cpu: CpuStat,
    /// Billionths of a processor, over the seconds before; `None`: it is not known yet.
    pub nano_cores: Option<u64>,
    pub memory: MemoryStat,
    pub pids: PidsStat,
    pub pressure: Pressures,
}

/// A container with what it uses.
#[derive(Debug, Clone)]
pub struct ContainerUsage {
    pub record: Arc<ContainerRecord>,
    /// `None`: it does not run.
    pub usage: Option<Usage>,
    /// `None`: not measured yet.
    pub layer: Option<Layer>,
}

/// A pod with what it uses.
#[derive(Debug, Clone)]
pub struct PodUsage {
    pub record: Arc<SandboxRecord>,
    /// Of the pod's cgroup where it has one to itself, else of its containers and its pause process together.
    pub usage: Option<Usage>,
    /// `None`: it has none of its own, or was not looked at yet.
    pub network: Option<NetworkUsage>,
    pub containers: Vec<ContainerUsage>,
}

/// All that is open, and the samples.
#[derive(Default)]
pub(crate) struct Meters {
    containers: Mutex<HashMap<ContainerId, Arc<ContainerMeter>>>,
    pods: Mutex<HashMap<SandboxId, Arc<PodMeter>>>,
    layers: layers::Layers,
    devices: metrics::DeviceNames,
    /// Something has started: it wants a first sample.
    started: Arc<Notify>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Meters {
    /// A pod is up. `netlink`: a route socket in its network namespace, if it has one of its own.
    pub(crate) fn pod_started(&self, id: SandboxId, netlink: Option<PodLinks>) {
        lock(&self.pods).insert(id, Arc::new(PodMeter::new(netlink)));
        self.started.notify_one();
    }

    /// A pod goes down: its namespace must be let go of.
    pub(crate) fn pod_ended(&self, id: &SandboxId) {
        lock(&self.pods).remove(id);
    }

    pub(crate) fn container_started(&self) {
        self.started.notify_one();
        self.layers.started.notify_one();
    }

    /// Called after readers have been shown that it has ended.
    pub(crate) fn container_ended(&self, id: &ContainerId) {
        lock(&self.containers).remove(id);
    }

    pub(crate) fn container_removed(&self, id: &ContainerId) {
        self.container_ended(id);
        self.layers.forget(id);
    }
}

impl Shared {
    /// The open descriptors of a container that is alive; opened now if they are not yet.
    fn container_meter(&self, id: &ContainerId) -> Option<Arc<ContainerMeter>> {
        let mut known = lock(&self.meters.containers);
        if let Some(meter) = known.get(id) {
            return Some(meter.clone());
        }
        // Under the lock: whoever ends it has changed the record before, and closes what was opened after.
        let record = self.views.containers.get(id)?;
        if !matches!(record.state, ContainerState::Created | ContainerState::Running) {
            return None;
        }
        let meter = Arc::new(ContainerMeter::open(&self.hierarchy, &record.cgroup)?);
        known.insert(*id, meter.clone());
        Some(meter)
    }

    fn pod_meter(&self, id: &SandboxId) -> Option<Arc<PodMeter>> {
        lock(&self.meters.pods).get(id).cloned()
    }

    fn container_usage(&self, record: &Arc<ContainerRecord>) -> ContainerUsage {
        let meter = self.container_meter(&record.id);
        ContainerUsage {
            usage: meter.and_then(|meter| meter.usage()),
            layer: self.meters.layers.get(&record.id),
            record: record.clone(),
        }
    }

    fn pod_usage(
        &self,
        record: &Arc<SandboxRecord>,
        containers: Vec<ContainerUsage>,
        alone: bool,
    ) -> PodUsage {
        let meter = self.pod_meter(&record.id);
        let usage = meter.as_ref().and_then(|meter| {
            if alone {
                meter.whole(&self.hierarchy, record)
            } else {
                let pause = meter.pause(&self.hierarchy, record);
                let parts = pause.into_iter().chain(containers.iter().filter_map(|c| c.usage));
                parts.reduce(together)
            }
        });
        PodUsage {
            network: meter.and_then(|meter| meter.network()),
            usage,
            containers,
            record: record.clone(),
        }
    }

    /// Whether a pod has its cgroup to itself: given by its maker, and no other pod was given the same.
    fn alone(&self) -> impl Fn(&SandboxRecord) -> bool {
        let mut pods: HashMap<String, usize> = HashMap::new();
        let present = |record: &Arc<SandboxRecord>| record.in_its_cgroup();
        for record in self.views.sandboxes.all().into_iter().filter(present) {
            *pods.entry(record.cgroup.clone()).or_default() += 1;
        }
        let default = self.config.default_cgroup.clone();
        move |record| record.cgroup != default && pods.get(&record.cgroup) == Some(&1)
    }
}

/// Two parts of one pod. Pressure does not add up.
fn together(a: Usage, b: Usage) -> Usage {
    let both = |a: Option<u64>, b: Option<u64>| Some(a? + b?);
    let either = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).reduce(|a, b| a + b);
    Usage {
        at: a.at.min(b.at),
        cpu: CpuStat {
            usage_us: a.cpu.usage_us + b.cpu.usage_us,
            user_us: a.cpu.user_us + b.cpu.user_us,
            system_us: a.cpu.system_us + b.cpu.system_us,
            periods: a.cpu.periods + b.cpu.periods,
            throttled_periods: a.cpu.throttled_periods + b.cpu.throttled_periods,
            throttled_us: a.cpu.throttled_us + b.cpu.throttled_us,
        },
        nano_cores: either(a.nano_cores, b.nano_cores),
        memory: MemoryStat {
            usage: a.memory.usage + b.memory.usage,
            working_set: a.memory.working_set + b.memory.working_set,
            rss: a.memory.rss + b.memory.rss,
            cache: a.memory.cache + b.memory.cache,
            mapped_file: a.memory.mapped_file + b.memory.mapped_file,
            page_faults: a.memory.page_faults + b.memory.page_faults,
            major_page_faults: a.memory.major_page_faults + b.memory.major_page_faults,
            swap_usage: either(a.memory.swap_usage, b.memory.swap_usage),
            limit: both(a.memory.limit, b.memory.limit),
            swap_limit: both(a.memory.swap_limit, b.memory.swap_limit),
        },
        pids: PidsStat {
            current: a.pids.current + b.pids.current,
            limit: both(a.pids.limit, b.pids.limit),
        },
        pressure: Pressures::default(),
    }
}

impl Usage {
    fn new(stats: Stats, nano_cores: Option<u64>) -> Self {
        Self {
            at: now(),
            cpu: stats.cpu,
            nano_cores,
            memory: stats.memory,
            pids: stats.pids,
            pressure: stats.pressure,
        }
    }
}

/// What the calls ask. None of it waits for another pod, nor for a disk any longer than [`bounds::LAYER_WAIT`].
impl Shared {
    pub(crate) async fn usage_of_container(&self, record: &Arc<ContainerRecord>) -> ContainerUsage {
        self.read_accounts(std::slice::from_ref(record)).await;
        self.container_usage(record)
    }

    pub(crate) async fn usage_of_containers(&self, records: &[Arc<ContainerRecord>]) -> Vec<ContainerUsage> {
        self.read_accounts(records).await;
        self.figures(records).await
    }

    /// Without a look at the disk.
    async fn figures(&self, records: &[Arc<ContainerRecord>]) -> Vec<ContainerUsage> {
        let mut all = Vec::with_capacity(records.len());
        for turn in records.chunks(bounds::TURN) {
            all.extend(turn.iter().map(|record| self.container_usage(record)));
            tokio::task::yield_now().await;
        }
        all
    }

    /// With interfaces as they are now, if that is told soon.
    pub(crate) async fn usage_of_pod(self: &Arc<Self>, record: &Arc<SandboxRecord>) -> PodUsage {
        if let Some(meter) = self.pod_meter(&record.id) {
            let read = tokio::task::spawn_blocking(move || meter.read_network());
            let _ = tokio::time::timeout(bounds::NETWORK_WAIT, read).await;
        }
        let mut found = self.usage_of_pods(std::slice::from_ref(record)).await;
        found.pop().unwrap_or_else(|| PodUsage {
            record: record.clone(),
            usage: None,
            network: None,
            containers: Vec::new(),
        })
    }

    pub(crate) async fn usage_of_pods(&self, records: &[Arc<SandboxRecord>]) -> Vec<PodUsage> {
        let mut of_pod = self.containers_by_pod();
        let asked: HashSet<SandboxId> = records.iter().map(|record| record.id).collect();
        of_pod.retain(|id, _| asked.contains(id));
        self.read_accounts(&of_pod.values().flatten().cloned().collect::<Vec<_>>())
            .await;
        let alone = self.alone();
        let mut all = Vec::with_capacity(records.len());
        for record in records {
            let containers = of_pod.remove(&record.id).unwrap_or_default();
            let usages = self.figures(&containers).await;
            all.push(self.pod_usage(record, usages, alone(record)));
        }
        all
    }

    fn containers_by_pod(&self) -> HashMap<SandboxId, Vec<Arc<ContainerRecord>>> {
        let mut of_pod: HashMap<SandboxId, Vec<Arc<ContainerRecord>>> = HashMap::new();
        let shown = self.views.containers.all().into_iter();
        for record in shown.filter(|record| record.state != ContainerState::Creating) {
            of_pod.entry(record.sandbox).or_default().push(record);
        }
        of_pod
    }
}

/// Saturates, for comparisons.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_and_pressure_does_not() {
        let part = |usage, limit, nano_cores| Usage {
            at: usage as i64,
            nano_cores,
            memory: MemoryStat {
                usage,
                limit,
                swap_usage: Some(1),
                ..MemoryStat::default()
            },
            pressure: Pressures {
                cpu: Some(holdfast_cgroups::Pressure::default()),
                ..Pressures::default()
            },
            ..Usage::default()
        };
        let sum = together(part(5, Some(10), None), part(7, None, Some(3)));
        assert_eq!((sum.at, sum.memory.usage, sum.memory.limit), (5, 12, None));
        assert_eq!((sum.nano_cores, sum.memory.swap_usage), (Some(3), Some(2)));
        assert_eq!(sum.pressure, Pressures::default());
        let sum = together(part(5, Some(10), None), part(7, Some(2), None));
        assert_eq!((sum.memory.limit, sum.nano_cores), (Some(12), None));
    }
}
