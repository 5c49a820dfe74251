//! Limits of a container or a pod.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// `<size><unit>B`, as the kernel names its files: `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// CRI's `LinuxContainerResources`. There 0 and empty stand for "not given"; here that is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Microseconds.
    pub cpu_period: Option<i64>,
    /// Microseconds in a period; -1: no limit.
    pub cpu_quota: Option<i64>,
    pub cpu_shares: Option<i64>,
    /// Bytes.
    pub memory_limit: Option<i64>,
    /// Memory and swap together, bytes; -1: no limit.
    pub memory_swap_limit: Option<i64>,
    pub oom_score_adj: i64,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub hugepages: Vec<HugepageLimit>,
    /// Files of the v2 hierarchy, literally.
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// Lays an update over these limits: what it gives wins, what it leaves out stays.
    pub fn updated(&self, update: &Resources) -> Resources {
        let mut merged = self.clone();
        merged.cpu_period = update.cpu_period.or(self.cpu_period);
        merged.cpu_quota = update.cpu_quota.or(self.cpu_quota);
        merged.cpu_shares = update.cpu_shares.or(self.cpu_shares);
        merged.memory_limit = update.memory_limit.or(self.memory_limit);
        merged.memory_swap_limit = update.memory_swap_limit.or(self.memory_swap_limit);
        if update.oom_score_adj != 0 {
            merged.oom_score_adj = update.oom_score_adj;
        }
        merged.cpuset_cpus = update.cpuset_cpus.clone().or_else(|| self.cpuset_cpus.clone());
        merged.cpuset_mems = update.cpuset_mems.clone().or_else(|| self.cpuset_mems.clone());
        for limit in &update.hugepages {
            merged
                .hugepages
                .retain(|known| known.page_size != limit.page_size);
            merged.hugepages.push(limit.clone());
        }
        merged.unified.extend(
            update
                .unified
                .iter()
                .map(|(key, value)| (key.clone(), value.clone())),
        );
        merged
    }
}
