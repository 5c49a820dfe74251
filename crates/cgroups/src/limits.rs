//! What a cgroup may use, in one form for both versions.
//!
//! Units are the OCI specification's, and so are the meanings: `None` leaves the kernel's value alone, a negative
//! number lifts a limit. Leaves out how each is written (`v1`, `v2`) and where they come from (`oci`).

use crate::devices::DeviceRule;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The part of the limits to write. Memory limits and the device filter wait for the exec barrier, so that a small
/// limit is not hit, and no device refused, by the launcher's own work inside the cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the first process is in: cpu, cpuset, pids, io, hugepages.
    Create,
    /// Once the container's root is built: memory and devices.
    Barrier,
    /// Both: an update of a running container.
    All,
}

impl Stage {
    pub(crate) fn early(self) -> bool {
        self != Self::Barrier
    }

    pub(crate) fn late(self) -> bool {
        self != Self::Create
    }
}

/// Limits of one cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    pub cpu: Cpu,
    pub memory: Memory,
    /// Most processes and threads; negative or 0: no limit.
    pub pids: Option<i64>,
    /// Page size as the kernel names it (`2MB`, `1GB`) and bytes.
    pub hugepages: Vec<(String, u64)>,
    pub block_io: BlockIo,
    /// Rules in order, on top of "deny all"; the last one that fits decides. `None`: no filter at all.
    pub devices: Option<Vec<DeviceRule>>,
    /// Files of version 2 by name, written last and verbatim. An error on version 1, except `memory.oom.group`,
    /// which is left out with a warning.
    pub unified: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Version 1's scale, 2 to 262144; 0 counts as absent.
    pub shares: Option<u64>,
    /// Microseconds per period; negative: no limit; 0 counts as absent.
    pub quota: Option<i64>,
    /// Microseconds; 0 counts as absent.
    pub period: Option<u64>,
    pub burst: Option<u64>,
    /// 1: SCHED_IDLE for the whole cgroup.
    pub idle: Option<i64>,
    /// Lists such as `0-3,7`; empty counts as absent.
    pub cpus: Option<String>,
    pub mems: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Bytes; negative: no limit; 0 counts as absent.
    pub limit: Option<i64>,
    /// Memory AND swap, bytes; negative: no limit; 0 counts as absent.
    pub swap: Option<i64>,
    /// Protected from reclaim (`memory.low`), or version 1's soft limit.
    pub reservation: Option<i64>,
    /// Version 1 only, 0 to 100.
    pub swappiness: Option<u64>,
    /// Version 1 only.
    pub disable_oom_killer: Option<bool>,
    /// Refuse a limit below the present usage instead of reclaiming (and killing) down to it.
    pub check_before_update: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockIo {
    /// Version 1's scale, 10 to 1000; 0 counts as absent.
    pub weight: Option<u16>,
    /// Device and weight.
    pub weight_device: Vec<(u32, u32, u16)>,
    pub throttle: Vec<Throttle>,
}

/// Rates of one block device; `None` leaves that one alone, 0 lifts it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Throttle {
    pub major: u32,
    pub minor: u32,
    pub read_bps: Option<u64>,
    pub write_bps: Option<u64>,
    pub read_iops: Option<u64>,
    pub write_iops: Option<u64>,
}
