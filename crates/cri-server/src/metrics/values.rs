//! The values of one pod's metrics.

use std::collections::HashMap;

use holdfast_cri_api::v1;
use holdfast_engine::meter::{
    ContainerMetrics, Detail, FileSystem, IoStat, NetworkUsage, PodMetrics, Pressure, Usage,
};
use holdfast_model::{ContainerRecord, Resources, SandboxRecord};

use super::table::{BASE, M};

/// Nanoseconds and microseconds of a second.
const NANOS: i64 = 1_000_000_000;
const MICROS: u64 = 1_000_000;
/// What the kernel gives a cgroup for which nothing was asked.
const DEFAULT_PERIOD: u64 = 100_000;
const DEFAULT_SHARES: u64 = 1024;

pub fn of_pod(pod: &PodMetrics) -> v1::PodSandboxMetrics {
    let mut sheet = Sheet::of_pod(&pod.record);
    if let Some((usage, detail)) = &pod.whole {
        sheet.at = usage.at;
        sheet.cgroup(usage, detail);
        sheet.put(M::StartTime, &[], seconds(pod.record.created_at));
    }
    if let Some(network) = &pod.network {
        sheet.network(network);
    }
    let containers = pod.containers.iter().map(|container| v1::ContainerMetrics {
        container_id: container.record.id.to_string(),
        metrics: of_container(pod, container),
    });
    v1::PodSandboxMetrics {
        pod_sandbox_id: pod.record.id.to_string(),
        container_metrics: containers.collect(),
        metrics: sheet.out,
    }
}

fn of_container(pod: &PodMetrics, container: &ContainerMetrics) -> Vec<v1::Metric> {
    let record = &container.record;
    let mut sheet = Sheet::of_container(&pod.record, record);
    sheet.at = container.usage.at;
    sheet.cgroup(&container.usage, &container.detail);
    sheet.spec(&record.spec.resources, &container.usage);
    let started = match record.started_at {
        0 => record.created_at,
        started => started,
    };
    sheet.put(M::StartTime, &[], seconds(started));
    sheet.put(M::FileDescriptors, &[], container.files.descriptors);
    sheet.put(M::Sockets, &[], container.files.sockets);
    if let Some(limit) = container.files.limit {
        sheet.put(M::UlimitsSoft, &["max_open_files"], limit);
    }
    sheet.file_system(&pod.file_system);
    for stat in &container.detail.io {
        sheet.device(stat, &pod.devices);
    }
    if let Some(layer) = &container.layer {
        sheet.at = layer.at;
        sheet.put(M::FsUsage, &[&pod.file_system.device], layer.bytes);
    }
    sheet.out
}

fn seconds(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds / NANOS).unwrap_or(0)
}

/// The metrics of one subject, as they are written down.
struct Sheet {
    base: [String; BASE.len()],
    /// Of what is put next: nanoseconds since 1970.
    at: i64,
    out: Vec<v1::Metric>,
}

impl Sheet {
    /// Of the pod as a whole: no container, no image; the name is the runtime's, as with containers.
    fn of_pod(pod: &SandboxRecord) -> Self {
        Self {
            base: [
                String::new(),
                pod.cgroup.clone(),
                String::new(),
                pod.id.to_string(),
                pod.spec.metadata.namespace.clone(),
                pod.spec.metadata.name.clone(),
            ],
            at: 0,
            out: Vec::with_capacity(64),
        }
    }

    fn of_container(pod: &SandboxRecord, record: &ContainerRecord) -> Self {
        let image = &record.spec.image;
        let shown = if image.user_specified_image.is_empty() {
            &image.image
        } else {
            &image.user_specified_image
        };
        Self {
            base: [
                record.spec.metadata.name.clone(),
                record.cgroup.clone(),
                shown.clone(),
                record.id.to_string(),
                pod.spec.metadata.namespace.clone(),
                pod.spec.metadata.name.clone(),
            ],
            at: 0,
            out: Vec::with_capacity(64),
        }
    }

    fn put(&mut self, metric: M, labels: &[&str], value: u64) {
        let family = metric.family();
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let own = labels.iter().map(|label| (*label).to_owned());
        self.out.push(v1::Metric {
            name: family.name.to_owned(),
            timestamp: self.at,
            metric_type: family.kind.into(),
            label_values: self.base.iter().cloned().chain(own).collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }

    /// What every cgroup has.
    fn cgroup(&mut self, usage: &Usage, detail: &Detail) {
        let cpu = &usage.cpu;
        self.put(M::CpuUsage, &["total"], cpu.usage_us / MICROS);
        self.put(M::CpuUser, &[], cpu.user_us / MICROS);
        self.put(M::CpuSystem, &[], cpu.system_us / MICROS);
        self.put(M::CpuPeriods, &[], cpu.periods);
        self.put(M::CpuThrottledPeriods, &[], cpu.throttled_periods);
        self.put(M::CpuThrottledSeconds, &[], cpu.throttled_us / MICROS);
        self.memory(usage, detail);
        self.put(M::Processes, &[], detail.processes.len() as u64);
        self.put(M::Threads, &[], usage.pids.current);
        self.put(M::ThreadsMax, &[], usage.pids.limit.unwrap_or(0));
        self.put(M::OomEvents, &[], detail.oom_kills);
        self.put(M::LastSeen, &[], seconds(usage.at));
        for pages in &detail.hugetlb {
            self.put(M::HugetlbUsage, &[&pages.page_size], pages.usage);
            if let Some(most) = pages.max_usage {
                self.put(M::HugetlbMaxUsage, &[&pages.page_size], most);
            }
        }
        let pressure = &usage.pressure;
        self.pressure(&pressure.cpu, M::PressureCpuWaiting, M::PressureCpuStalled);
        self.pressure(
            &pressure.memory,
            M::PressureMemoryWaiting,
            M::PressureMemoryStalled,
        );
        self.pressure(&pressure.io, M::PressureIoWaiting, M::PressureIoStalled);
    }

    fn memory(&mut self, usage: &Usage, detail: &Detail) {
        let memory = &usage.memory;
        self.put(M::MemoryUsage, &[], memory.usage);
        self.put(M::MemoryWorkingSet, &[], memory.working_set);
        self.put(M::MemoryRss, &[], memory.rss);
        self.put(M::MemoryCache, &[], memory.cache);
        self.put(M::MemoryMapped, &[], memory.mapped_file);
        self.put(M::MemorySwap, &[], memory.swap_usage.unwrap_or(0));
        self.put(M::MemoryKernel, &[], detail.kernel_memory);
        self.put(M::MemoryFailcnt, &[], detail.memory_failures);
        if let Some(most) = detail.memory_max_usage {
            self.put(M::MemoryMax, &[], most);
        }
        // Nothing is below that would not belong to it: both scopes are one.
        for scope in ["container", "hierarchy"] {
            self.put(M::MemoryFailures, &["pgfault", scope], memory.page_faults);
            self.put(
                M::MemoryFailures,
                &["pgmajfault", scope],
                memory.major_page_faults,
            );
        }
    }

    fn pressure(&mut self, pressure: &Option<Pressure>, waiting: M, stalled: M) {
        if let Some(pressure) = pressure {
            self.put(waiting, &[], pressure.some.total_us / MICROS);
            self.put(stalled, &[], pressure.full.total_us / MICROS);
        }
    }

    /// What was asked for.
    fn spec(&mut self, resources: &Resources, usage: &Usage) {
        let positive = |value: Option<i64>| u64::try_from(value?).ok().filter(|value| *value > 0);
        let period = positive(resources.cpu_period).unwrap_or(DEFAULT_PERIOD);
        self.put(M::SpecCpuPeriod, &[], period);
        let shares = positive(resources.cpu_shares).unwrap_or(DEFAULT_SHARES);
        self.put(M::SpecCpuShares, &[], shares);
        if let Some(quota) = positive(resources.cpu_quota) {
            self.put(M::SpecCpuQuota, &[], quota);
        }
        let memory = &usage.memory;
        let protected = resources
            .unified
            .get("memory.low")
            .and_then(|text| text.parse().ok());
        self.put(M::SpecMemoryLimit, &[], memory.limit.unwrap_or(0));
        self.put(M::SpecMemoryReservation, &[], protected.unwrap_or(0));
        self.put(M::SpecMemorySwapLimit, &[], memory.swap_limit.unwrap_or(0));
    }

    fn file_system(&mut self, on: &FileSystem) {
        let device = [on.device.as_str()];
        self.put(M::FsLimit, &device, on.bytes);
        self.put(M::FsInodesTotal, &device, on.inodes);
        self.put(M::FsInodesFree, &device, on.inodes_free);
    }

    fn device(&mut self, stat: &IoStat, names: &HashMap<(u32, u32), String>) {
        let device = names.get(&(stat.major, stat.minor)).map_or("", String::as_str);
        let (major, minor) = (stat.major.to_string(), stat.minor.to_string());
        self.put(M::BlkioUsage, &[device, &major, &minor, "Read"], stat.read_bytes);
        self.put(
            M::BlkioUsage,
            &[device, &major, &minor, "Write"],
            stat.write_bytes,
        );
        self.put(M::FsReadBytes, &[device], stat.read_bytes);
        self.put(M::FsReads, &[device], stat.reads);
        self.put(M::FsWriteBytes, &[device], stat.write_bytes);
        self.put(M::FsWrites, &[device], stat.writes);
    }

    fn network(&mut self, usage: &NetworkUsage) {
        self.at = usage.at;
        for link in usage.links.iter() {
            let name = [link.name.as_str()];
            self.put(M::NetRxBytes, &name, link.rx_bytes);
            self.put(M::NetRxPackets, &name, link.rx_packets);
            self.put(M::NetRxErrors, &name, link.rx_errors);
            self.put(M::NetRxDropped, &name, link.rx_dropped);
            self.put(M::NetTxBytes, &name, link.tx_bytes);
            self.put(M::NetTxPackets, &name, link.tx_packets);
            self.put(M::NetTxErrors, &name, link.tx_errors);
            self.put(M::NetTxDropped, &name, link.tx_dropped);
        }
    }
}
