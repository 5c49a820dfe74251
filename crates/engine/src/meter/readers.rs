//! The descriptors of one container and of one pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use holdfast_cgroups::{Cgroup, Detail, Hierarchy, StatReader};
use holdfast_model::SandboxRecord;
use holdfast_network::{LinkCounters, PodLinks};
use tracing::debug;

use super::files::OpenFiles;
use super::window::Window;
use super::{Usage, lock};
use crate::shared::now;

/// The counters of a pod's interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkUsage {
    /// When they were read: nanoseconds since 1970.
    pub at: i64,
    pub links: Arc<[LinkCounters]>,
}

/// One cgroup's reader with what was sampled before.
pub(super) struct Meter {
    pub cgroup: Cgroup,
    reader: StatReader,
    window: Mutex<Window>,
}

impl Meter {
    fn open(hierarchy: &Hierarchy, path: &str) -> Option<Self> {
        let opened = hierarchy
            .open(path)
            .and_then(|cgroup| cgroup.stat_reader().map(|reader| (cgroup, reader)));
        match opened {
            Ok((cgroup, reader)) => Some(Self {
                cgroup,
                reader,
                window: Mutex::default(),
            }),
            Err(error) => {
                debug!(cgroup = path, "its figures cannot be read: {error}");
                None
            }
        }
    }

    /// `None`: it is gone.
    pub(super) fn usage(&self) -> Option<Usage> {
        match self.reader.read() {
            Ok(stats) => {
                let rate = lock(&self.window).rate(Instant::now(), stats.cpu.usage_us);
                Some(Usage::new(stats, rate))
            }
            Err(error) => {
                if !error.is_gone() {
                    debug!("{error}");
                }
                None
            }
        }
    }

    /// Takes a sample of processor time; with `first`, only if there is none yet.
    pub(super) fn sample(&self, first: bool) {
        if first && !lock(&self.window).is_empty() {
            return;
        }
        if let Ok(usage_us) = self.reader.cpu_usage_us() {
            lock(&self.window).push(Instant::now(), usage_us);
        }
    }
}

pub(super) struct ContainerMeter {
    pub meter: Meter,
    pub files: Mutex<Option<OpenFiles>>,
    /// The most huge pages that were seen, by size: version 2 of cgroups keeps no record of it.
    most_pages: Mutex<HashMap<String, u64>>,
}

impl ContainerMeter {
    pub(super) fn open(hierarchy: &Hierarchy, path: &str) -> Option<Self> {
        Some(Self {
            meter: Meter::open(hierarchy, path)?,
            files: Mutex::default(),
            most_pages: Mutex::default(),
        })
    }

    pub(super) fn detail(&self) -> Detail {
        let mut detail = self.meter.cgroup.detail();
        let mut most = lock(&self.most_pages);
        for pages in &mut detail.hugetlb {
            let known = most.entry(pages.page_size.clone()).or_default();
            *known = pages.usage.max(*known);
            pages.max_usage.get_or_insert(*known);
        }
        detail
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        self.meter.usage()
    }
}

pub(super) struct PodMeter {
    links: Option<Mutex<PodLinks>>,
    network: Mutex<Option<NetworkUsage>>,
    /// Of the whole pod and of its pause process, opened when first asked for: a pod needs one of them.
    whole: OnceLock<Option<Meter>>,
    pause: OnceLock<Option<Meter>>,
}

impl PodMeter {
    pub(super) fn new(links: Option<PodLinks>) -> Self {
        Self {
            links: links.map(Mutex::new),
            network: Mutex::default(),
            whole: OnceLock::new(),
            pause: OnceLock::new(),
        }
    }

    pub(super) fn whole_meter(&self, hierarchy: &Hierarchy, record: &SandboxRecord) -> Option<&Meter> {
        let open = || Meter::open(hierarchy, &record.cgroup);
        self.whole.get_or_init(open).as_ref()
    }

    fn pause_meter(&self, hierarchy: &Hierarchy, record: &SandboxRecord) -> Option<&Meter> {
        let open = || Meter::open(hierarchy, &record.cgroup_of(record.id.as_str()));
        self.pause.get_or_init(open).as_ref()
    }

    pub(super) fn whole(&self, hierarchy: &Hierarchy, record: &SandboxRecord) -> Option<Usage> {
        self.whole_meter(hierarchy, record)?.usage()
    }

    pub(super) fn pause(&self, hierarchy: &Hierarchy, record: &SandboxRecord) -> Option<Usage> {
        self.pause_meter(hierarchy, record)?.usage()
    }

    pub(super) fn sample(&self, hierarchy: &Hierarchy, record: &SandboxRecord, alone: bool, first: bool) {
        let meter = if alone {
            self.whole_meter(hierarchy, record)
        } else {
            self.pause_meter(hierarchy, record)
        };
        if let Some(meter) = meter {
            meter.sample(first);
        }
    }

    /// The last sample.
    pub(super) fn network(&self) -> Option<NetworkUsage> {
        lock(&self.network).clone()
    }

    /// Reads the interfaces, which may wait for the kernel. `true` if there was nothing to read or all went well.
    pub(super) fn read_network(&self) -> bool {
        let Some(links) = &self.links else { return true };
        let mut links = lock(links);
        match links.read() {
            Ok(found) => {
                *lock(&self.network) = Some(NetworkUsage {
                    at: now(),
                    links: found.into(),
                });
                true
            }
            Err(error) => {
                debug!("{error}");
                false
            }
        }
    }
}
