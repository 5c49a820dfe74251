//! The metrics that there are: names, kinds, labels. Values are whole numbers in the CRI, so seconds are whole seconds.

use holdfast_cri_api::v1;
use holdfast_cri_api::v1::MetricType::{Counter, Gauge};

/// Labels of every metric, in this order; a metric's own come after them.
pub const BASE: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];
const PAGESIZE: &[&str] = &["pagesize"];

pub struct Family {
    pub name: &'static str,
    pub kind: v1::MetricType,
    /// Labels beside [`BASE`].
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

macro_rules! families {
    ($($variant:ident $name:literal $kind:ident $labels:expr, $help:literal;)*) => {
        /// One metric; its number is its place in the table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum M { $($variant),* }

        pub const FAMILIES: &[Family] = &[
            $(Family { name: $name, kind: $kind, labels: $labels, help: $help }),*
        ];
    };
}

families! {
    BlkioUsage "container_blkio_device_usage_total" Counter &["device", "major", "minor", "operation"],
        "Bytes read from and written to a block device";
    CpuPeriods "container_cpu_cfs_periods_total" Counter &[],
        "Periods of the processor's bandwidth limit in which the cgroup could run";
    CpuThrottledPeriods "container_cpu_cfs_throttled_periods_total" Counter &[],
        "Periods in which the cgroup was throttled";
    CpuThrottledSeconds "container_cpu_cfs_throttled_seconds_total" Counter &[],
        "Seconds for which the cgroup was throttled";
    CpuSystem "container_cpu_system_seconds_total" Counter &[],
        "Seconds of processor time in the kernel";
    CpuUsage "container_cpu_usage_seconds_total" Counter &["cpu"],
        "Seconds of processor time, of all processors together";
    CpuUser "container_cpu_user_seconds_total" Counter &[],
        "Seconds of processor time in user mode";
    FileDescriptors "container_file_descriptors" Gauge &[],
        "Open file descriptors of all processes";
    FsInodesFree "container_fs_inodes_free" Gauge DEVICE,
        "Free inodes of the file system that holds the writable layer";
    FsInodesTotal "container_fs_inodes_total" Gauge DEVICE,
        "Inodes of the file system that holds the writable layer";
    FsLimit "container_fs_limit_bytes" Gauge DEVICE,
        "Size of the file system that holds the writable layer";
    FsReadBytes "container_fs_reads_bytes_total" Counter DEVICE,
        "Bytes read from a block device";
    FsReads "container_fs_reads_total" Counter DEVICE,
        "Reads from a block device";
    FsUsage "container_fs_usage_bytes" Gauge DEVICE,
        "Bytes on disk of the writable layer, at the time of its last measurement";
    FsWriteBytes "container_fs_writes_bytes_total" Counter DEVICE,
        "Bytes written to a block device";
    FsWrites "container_fs_writes_total" Counter DEVICE,
        "Writes to a block device";
    HugetlbMaxUsage "container_hugetlb_max_usage_bytes" Gauge PAGESIZE,
        "The most memory in huge pages; where the kernel does not record it, the most that was seen";
    HugetlbUsage "container_hugetlb_usage_bytes" Gauge PAGESIZE,
        "Memory in huge pages";
    LastSeen "container_last_seen" Gauge &[],
        "When the figures were read, in seconds since 1970";
    MemoryCache "container_memory_cache" Gauge &[],
        "Bytes of page cache";
    MemoryFailcnt "container_memory_failcnt" Counter &[],
        "How often the memory limit was met";
    MemoryFailures "container_memory_failures_total" Counter &["failure_type", "scope"],
        "Page faults, by kind";
    MemoryKernel "container_memory_kernel_usage" Gauge &[],
        "Bytes of kernel memory";
    MemoryMapped "container_memory_mapped_file" Gauge &[],
        "Bytes of mapped files";
    MemoryMax "container_memory_max_usage_bytes" Gauge &[],
        "The most memory that was ever in use";
    MemoryRss "container_memory_rss" Gauge &[],
        "Bytes of anonymous memory";
    MemorySwap "container_memory_swap" Gauge &[],
        "Bytes of swap";
    MemoryUsage "container_memory_usage_bytes" Gauge &[],
        "Bytes of memory in use, page cache included";
    MemoryWorkingSet "container_memory_working_set_bytes" Gauge &[],
        "Bytes of memory in use without the inactive page cache";
    NetRxBytes "container_network_receive_bytes_total" Counter INTERFACE,
        "Bytes received";
    NetRxErrors "container_network_receive_errors_total" Counter INTERFACE,
        "Errors while receiving";
    NetRxDropped "container_network_receive_packets_dropped_total" Counter INTERFACE,
        "Received packets that were dropped";
    NetRxPackets "container_network_receive_packets_total" Counter INTERFACE,
        "Packets received";
    NetTxBytes "container_network_transmit_bytes_total" Counter INTERFACE,
        "Bytes sent";
    NetTxErrors "container_network_transmit_errors_total" Counter INTERFACE,
        "Errors while sending";
    NetTxDropped "container_network_transmit_packets_dropped_total" Counter INTERFACE,
        "Packets to send that were dropped";
    NetTxPackets "container_network_transmit_packets_total" Counter INTERFACE,
        "Packets sent";
    OomEvents "container_oom_events_total" Counter &[],
        "Processes that the kernel killed for want of memory";
    PressureCpuStalled "container_pressure_cpu_stalled_seconds_total" Counter &[],
        "Seconds in which no task could go on for want of processor time";
    PressureCpuWaiting "container_pressure_cpu_waiting_seconds_total" Counter &[],
        "Seconds in which a task waited for processor time";
    PressureIoStalled "container_pressure_io_stalled_seconds_total" Counter &[],
        "Seconds in which no task could go on for waiting for input or output";
    PressureIoWaiting "container_pressure_io_waiting_seconds_total" Counter &[],
        "Seconds in which a task waited for input or output";
    PressureMemoryStalled "container_pressure_memory_stalled_seconds_total" Counter &[],
        "Seconds in which no task could go on for want of memory";
    PressureMemoryWaiting "container_pressure_memory_waiting_seconds_total" Counter &[],
        "Seconds in which a task waited for memory";
    Processes "container_processes" Gauge &[],
        "Processes";
    Sockets "container_sockets" Gauge &[],
        "Open sockets of all processes";
    SpecCpuPeriod "container_spec_cpu_period" Gauge &[],
        "Microseconds of the period of the processor's bandwidth limit";
    SpecCpuQuota "container_spec_cpu_quota" Gauge &[],
        "Microseconds of processor time in a period";
    SpecCpuShares "container_spec_cpu_shares" Gauge &[],
        "Weight against others where processor time is scarce";
    SpecMemoryLimit "container_spec_memory_limit_bytes" Gauge &[],
        "Limit of memory; 0: none";
    SpecMemoryReservation "container_spec_memory_reservation_limit_bytes" Gauge &[],
        "Memory that is protected from reclaim; 0: none";
    SpecMemorySwapLimit "container_spec_memory_swap_limit_bytes" Gauge &[],
        "Limit of swap alone; 0: no swap, or no limit";
    StartTime "container_start_time_seconds" Gauge &[],
        "When it was started, in seconds since 1970";
    Threads "container_threads" Gauge &[],
        "Threads of all processes";
    ThreadsMax "container_threads_max" Gauge &[],
        "Limit of threads; 0: none";
    UlimitsSoft "container_ulimits_soft" Gauge &["ulimit"],
        "Soft resource limits of the first process";
}

impl M {
    pub fn family(self) -> &'static Family {
        &FAMILIES[self as usize]
    }
}

pub fn descriptors() -> Vec<v1::MetricDescriptor> {
    let describe = |family: &Family| v1::MetricDescriptor {
        name: family.name.to_owned(),
        help: family.help.to_owned(),
        label_keys: BASE
            .iter()
            .chain(family.labels)
            .map(|key| (*key).to_owned())
            .collect(),
    };
    FAMILIES.iter().map(describe).collect()
}
