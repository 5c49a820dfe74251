//! What systemd must be told of limits that are also written to the cgroup's files, so that it reverts none of them
//! when it looks at its units again (`systemctl daemon-reload`, another unit's change). Pure: who speaks D-Bus sends it.
//!
//! Units and defaults are those of org.freedesktop.systemd1(5). What systemd has no property for (hugetlb, rdma, misc,
//! `cpu.max.burst`, `memory.oom.group`) it leaves alone, and so do we. The device filter is one of those on version 2:
//! with `DevicePolicy=auto` and no list systemd attaches no program, and ours stays.

use crate::convert::{cpu_weight_of_shares, io_weight_of_blkio, swap_alone};
use crate::hierarchy::Home;
use crate::io;
use crate::limits::{Limits, Stage};
use crate::plan::{Change, Plan};
use crate::{Cgroup, Controller, Error, Mode};

/// "No limit", as systemd's D-Bus interface spells it.
pub const INFINITY: u64 = u64::MAX;
/// Of `cpu.max` and `cpu.cfs_period_us` where nobody said otherwise, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;
/// `CPUWeight=idle` on D-Bus.
const WEIGHT_IDLE: u64 = 0;
/// A transient unit's `CPUQuota=` is kept in whole percent, so 10 ms of each second: a quota in between is rounded up,
/// lest the container be given less after a reload than it was promised.
const QUOTA_STEP: u64 = 10_000;
/// What `memory.limit_in_bytes` reads where there is no limit: the largest number of whole pages, whatever their size.
const UNLIMITED: u64 = (i64::MAX as u64) - (1 << 20);
/// CPU and node numbers that make sense.
const MAX_LIST: usize = 8192;

/// A value with its D-Bus type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `t`
    Number(u64),
    /// `s`
    Text(String),
    /// `ay`
    Bytes(Vec<u8>),
    /// `a(st)`: device nodes and rates.
    Rates(Vec<(String, u64)>),
}

/// One property of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    pub name: &'static str,
    pub value: Value,
}

/// The properties that say what `limits` says, for one stage (see [`Stage`]). At [`Stage::Create`] limits that systemd
/// sets by itself (`DefaultTasksMax=`) are lifted where nothing was asked for.
pub fn properties(limits: &Limits, stage: Stage, mode: Mode) -> Result<Vec<Property>, Error> {
    let mut out = Properties(Vec::new());
    let unified = mode == Mode::Unified;
    if stage.early() {
        out.cpu(limits, unified);
        if unified {
            out.cpuset(limits)?;
            out.block_io(limits);
        }
        match limits.pids {
            Some(limit) => out.set("TasksMax", Value::Number(positive_or_infinity(limit))),
            None if stage == Stage::Create => out.set("TasksMax", Value::Number(INFINITY)),
            None => {}
        }
    }
    if stage.late() {
        out.memory(limits, unified)?;
    }
    for (file, value) in &limits.unified {
        let late = file.starts_with("memory.");
        if unified && ((late && stage.late()) || (!late && stage.early())) {
            out.unified(file, value)?;
        }
    }
    Ok(out.0)
}

/// What ends being idle, for which systemd has no word of its own: the weight that the kernel has given back. To be asked after the
/// files were written; `None` where `limits` speak of nothing of the kind.
pub fn weight_after_idle(cgroup: &Cgroup, limits: &Limits) -> Result<Option<Property>, Error> {
    let ends = |value: &String| value.trim() == "0";
    let ended = limits.cpu.idle == Some(0) || limits.unified.get("cpu.idle").is_some_and(ends);
    let Some(Home::V2(root)) = cgroup.hierarchy().home(Controller::Cpu).filter(|_| ended) else {
        return Ok(None);
    };
    let text = io::read(root, &cgroup.dir_in(root), "cpu.weight")?;
    Ok(Some(Property {
        name: "CPUWeight",
        value: Value::Number(number("cpu.weight", text.trim())?),
    }))
}

/// The properties that say what the files held before `plan`: systemd forgets an update with them. Of the files that
/// [`properties`] speaks of, no others: systemd would be told of what it has not been told.
pub fn before(plan: &Plan, mode: Mode) -> Result<Vec<Property>, Error> {
    let mut out = Properties(Vec::new());
    // In the order in which the files are put back.
    let held: Vec<(&str, &str)> = plan.changes.iter().rev().flat_map(Change::held).collect();
    if mode == Mode::Unified {
        for (file, value) in held {
            out.unified(file, value)?;
        }
    } else {
        out.legacy(&held)?;
    }
    Ok(out.0)
}

struct Properties(Vec<Property>);

impl Properties {
    /// The last word counts, as with the files.
    fn set(&mut self, name: &'static str, value: Value) {
        self.0.retain(|known| known.name != name);
        self.0.push(Property { name, value });
    }

    fn cpu(&mut self, limits: &Limits, unified: bool) {
        let cpu = &limits.cpu;
        let idle = cpu.idle == Some(1);
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && !idle) {
            match unified {
                true => self.set("CPUWeight", Value::Number(cpu_weight_of_shares(shares))),
                false => self.set("CPUShares", Value::Number(shares.clamp(2, 262_144))),
            }
        }
        if idle && unified {
            self.set("CPUWeight", Value::Number(WEIGHT_IDLE));
        }
        let period = cpu.period.filter(|period| *period != 0);
        if let Some(quota) = cpu.quota.filter(|quota| *quota != 0) {
            self.bandwidth(u64::try_from(quota).ok(), period);
        } else if period.is_some() {
            self.bandwidth(None, period);
        }
    }

    fn bandwidth(&mut self, quota: Option<u64>, period: Option<u64>) {
        if let Some(period) = period {
            self.set("CPUQuotaPeriodUSec", Value::Number(period));
        }
        let per_second = quota.map_or(INFINITY, |quota| {
            let period = u128::from(period.unwrap_or(DEFAULT_PERIOD));
            let exact = (u128::from(quota) * 1_000_000).div_ceil(period.max(1));
            let exact = u64::try_from(exact).unwrap_or(INFINITY);
            exact.div_ceil(QUOTA_STEP).saturating_mul(QUOTA_STEP)
        });
        self.set("CPUQuotaPerSecUSec", Value::Number(per_second));
    }

    fn cpuset(&mut self, limits: &Limits) -> Result<(), Error> {
        let lists = [
            ("AllowedCPUs", "cpus", &limits.cpu.cpus),
            ("AllowedMemoryNodes", "mems", &limits.cpu.mems),
        ];
        for (name, field, list) in lists {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                self.set(name, Value::Bytes(mask(field, list)?));
            }
        }
        Ok(())
    }

    fn memory(&mut self, limits: &Limits, unified: bool) -> Result<(), Error> {
        let memory = &limits.memory;
        let swap = swap_alone(memory)?;
        if !unified {
            if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
                self.set("MemoryLimit", Value::Number(positive_or_infinity(limit)));
            }
            return Ok(());
        }
        if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
            self.set("MemoryMax", Value::Number(positive_or_infinity(limit)));
        }
        if let Some(reservation) = memory.reservation.filter(|it| *it != 0) {
            self.set("MemoryLow", Value::Number(positive_or_infinity(reservation)));
        }
        if let Some(swap) = swap {
            self.set("MemorySwapMax", Value::Number(swap.parse().unwrap_or(INFINITY)));
        }
        Ok(())
    }

    fn block_io(&mut self, limits: &Limits) {
        let io = &limits.block_io;
        if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
            self.set("IOWeight", Value::Number(io_weight_of_blkio(weight)));
        }
        let node = |major, minor| format!("/dev/block/{major}:{minor}");
        let weights: Vec<_> = io
            .weight_device
            .iter()
            .map(|(major, minor, weight)| (node(*major, *minor), io_weight_of_blkio(*weight)))
            .collect();
        if !weights.is_empty() {
            self.set("IODeviceWeight", Value::Rates(weights));
        }
        type Pick = fn(&crate::Throttle) -> Option<u64>;
        let rates: [(&'static str, Pick); 4] = [
            ("IOReadBandwidthMax", |it| it.read_bps),
            ("IOWriteBandwidthMax", |it| it.write_bps),
            ("IOReadIOPSMax", |it| it.read_iops),
            ("IOWriteIOPSMax", |it| it.write_iops),
        ];
        for (name, pick) in rates {
            let set = |rate| if rate == 0 { INFINITY } else { rate };
            let all: Vec<_> = io
                .throttle
                .iter()
                .filter_map(|it| Some((node(it.major, it.minor), set(pick(it)?))))
                .collect();
            if !all.is_empty() {
                self.set(name, Value::Rates(all));
            }
        }
    }

    /// Files of version 1, and `pids.max`, which is the same on both.
    fn legacy(&mut self, held: &[(&str, &str)]) -> Result<(), Error> {
        let (mut quota, mut period) = (None, None);
        for (file, value) in held {
            let value = value.trim();
            match *file {
                "cpu.shares" => self.set("CPUShares", Value::Number(number(file, value)?)),
                // Both are one property, which comes last.
                "cpu.cfs_quota_us" => quota = Some(value),
                "cpu.cfs_period_us" => period = Some(number(file, value)?),
                "memory.limit_in_bytes" => {
                    let limit = match value {
                        "-1" => INFINITY,
                        text => number(file, text)?,
                    };
                    let limit = if limit >= UNLIMITED { INFINITY } else { limit };
                    self.set("MemoryLimit", Value::Number(limit));
                }
                "pids.max" => self.unified(file, value)?,
                _ => {}
            }
        }
        match quota {
            // Less than nothing: no quota.
            Some(text) if text.starts_with('-') => self.bandwidth(None, period),
            Some(text) => self.bandwidth(Some(number("cpu.cfs_quota_us", text)?), period),
            None if period.is_some() => self.bandwidth(None, period),
            None => {}
        }
        Ok(())
    }

    /// One of version 2's own files. What systemd has no property for is not in its way.
    fn unified(&mut self, file: &str, value: &str) -> Result<(), Error> {
        let value = value.trim();
        let name = match file {
            "cpu.weight" => "CPUWeight",
            "cpu.idle" if value == "1" => {
                self.set("CPUWeight", Value::Number(WEIGHT_IDLE));
                return Ok(());
            }
            "cpu.max" => {
                let (quota, period) = value.split_once(' ').unwrap_or((value, ""));
                let period = match period.trim() {
                    "" => None,
                    text => Some(number(file, text)?),
                };
                let quota = match quota {
                    "max" => None,
                    text => Some(number(file, text)?),
                };
                self.bandwidth(quota, period);
                return Ok(());
            }
            "cpuset.cpus" | "cpuset.mems" => {
                let name = if file == "cpuset.cpus" {
                    "AllowedCPUs"
                } else {
                    "AllowedMemoryNodes"
                };
                self.set(name, Value::Bytes(mask(file, value)?));
                return Ok(());
            }
            "memory.min" => "MemoryMin",
            "memory.low" => "MemoryLow",
            "memory.high" => "MemoryHigh",
            "memory.max" => "MemoryMax",
            "memory.swap.max" => "MemorySwapMax",
            "memory.zswap.max" => "MemoryZSwapMax",
            "pids.max" => "TasksMax",
            "io.weight" => {
                // `default N`, or lines for devices, which no property here mirrors.
                let plain = value.strip_prefix("default ").unwrap_or(value);
                if let Ok(weight) = plain.trim().parse() {
                    self.set("IOWeight", Value::Number(weight));
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        let value = match value {
            "max" => INFINITY,
            text => number(file, text)?,
        };
        self.set(name, Value::Number(value));
        Ok(())
    }
}

fn positive_or_infinity(value: i64) -> u64 {
    match u64::try_from(value) {
        Ok(value) if value > 0 => value,
        _ => INFINITY,
    }
}

/// Sizes in cgroup files may carry a unit (memparse of the kernel).
fn number(file: &str, text: &str) -> Result<u64, Error> {
    let refused = || Error::Limit {
        field: "unified cgroup setting",
        value: format!("{file}={}", text.chars().take(64).collect::<String>()),
        problem: "it is neither a number nor `max`",
    };
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let value: u64 = digits.parse().map_err(|_| refused())?;
    value.checked_mul(1 << shift).ok_or_else(refused)
}

/// A list such as `0-3,7` as a bit mask, least significant byte first.
fn mask(field: &str, list: &str) -> Result<Vec<u8>, Error> {
    let refused = |problem| Error::Limit {
        field: "cpuset",
        value: format!("{field}={}", list.chars().take(256).collect::<String>()),
        problem,
    };
    let mut out = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let parse = |text: &str| text.trim().parse::<usize>();
        let (Ok(first), Ok(last)) = (parse(first), parse(last)) else {
            return Err(refused("it is not a list such as 0-3,7"));
        };
        if first > last || last >= MAX_LIST {
            return Err(refused("a range in it runs backwards or too far"));
        }
        for bit in first..=last {
            if out.len() <= bit / 8 {
                out.resize(bit / 8 + 1, 0);
            }
            out[bit / 8] |= 1 << (bit % 8);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockIo, Cpu, Memory, Throttle};

    fn shown(limits: &Limits, stage: Stage) -> Vec<String> {
        properties(limits, stage, Mode::Unified)
            .unwrap()
            .iter()
            .map(|it| match &it.value {
                Value::Number(INFINITY) => format!("{}=infinity", it.name),
                Value::Number(number) => format!("{}={number}", it.name),
                Value::Bytes(bytes) => format!("{}={bytes:?}", it.name),
                Value::Rates(rates) => format!("{}={rates:?}", it.name),
                other => format!("{}={other:?}", it.name),
            })
            .collect()
    }

    #[test]
    fn nothing_asked_lifts_the_default_of_tasks_and_no_more() {
        assert_eq!(shown(&Limits::default(), Stage::Create), ["TasksMax=infinity"]);
        assert!(shown(&Limits::default(), Stage::Barrier).is_empty());
        assert!(shown(&Limits::default(), Stage::All).is_empty());
    }

    #[test]
    fn limits_come_in_their_stage() {
        let limits = Limits {
            cpu: Cpu {
                shares: Some(1024),
                quota: Some(50_000),
                period: Some(100_000),
                cpus: Some("0-1,9".into()),
                ..Cpu::default()
            },
            memory: Memory {
                limit: Some(1 << 20),
                swap: Some(3 << 20),
                reservation: Some(4096),
                ..Memory::default()
            },
            pids: Some(7),
            block_io: BlockIo {
                weight: Some(1000),
                throttle: vec![Throttle {
                    major: 8,
                    minor: 1,
                    read_bps: Some(5),
                    write_iops: Some(0),
                    ..Throttle::default()
                }],
                ..BlockIo::default()
            },
            ..Limits::default()
        };
        let early = [
            "CPUWeight=100",
            "CPUQuotaPeriodUSec=100000",
            "CPUQuotaPerSecUSec=500000",
            "AllowedCPUs=[3, 2]",
            "IOWeight=10000",
            "IOReadBandwidthMax=[(\"/dev/block/8:1\", 5)]",
            "IOWriteIOPSMax=[(\"/dev/block/8:1\", 18446744073709551615)]",
            "TasksMax=7",
        ];
        let late = ["MemoryMax=1048576", "MemoryLow=4096", "MemorySwapMax=2097152"];
        assert_eq!(shown(&limits, Stage::Create), early);
        assert_eq!(shown(&limits, Stage::Barrier), late);
        assert_eq!(shown(&limits, Stage::All), [&early[..], &late[..]].concat());
    }

    #[test]
    fn quotas_are_rounded_up_to_what_systemd_keeps() {
        let per_second = |quota, period| {
            let cpu = Cpu {
                quota: Some(quota),
                period,
                ..Cpu::default()
            };
            let limits = Limits {
                cpu,
                ..Limits::default()
            };
            shown(&limits, Stage::All).pop().unwrap()
        };
        for (quota, period, want) in [
            (25_500, None, "260000"),
            (1000, Some(100_000), "10000"),
            (10_000, Some(10_000), "1000000"),
            (-1, Some(50_000), "infinity"),
            (i64::MAX, Some(1), "infinity"),
        ] {
            let got = per_second(quota, period);
            assert_eq!(got, format!("CPUQuotaPerSecUSec={want}"), "{quota}");
        }
    }

    #[test]
    fn files_by_name_have_the_last_word() {
        let mut limits = Limits {
            memory: Memory {
                limit: Some(5),
                ..Memory::default()
            },
            ..Limits::default()
        };
        for (file, value) in [
            ("memory.max", "1M"),
            ("memory.high", "max"),
            ("memory.oom.group", "1"),
            ("cpu.max", "max 50000"),
            ("pids.max", "9"),
            ("hugetlb.2MB.max", "0"),
        ] {
            limits.unified.insert(file.into(), value.into());
        }
        assert_eq!(
            shown(&limits, Stage::All),
            [
                "CPUQuotaPeriodUSec=50000",
                "CPUQuotaPerSecUSec=infinity",
                "MemoryHigh=infinity",
                "MemoryMax=1048576",
                "TasksMax=9"
            ]
        );
        limits.unified.insert("memory.low".into(), "plenty".into());
        assert!(properties(&limits, Stage::All, Mode::Unified).is_err());
        assert!(properties(&limits, Stage::Create, Mode::Unified).is_ok());
    }

    /// A file, what is written to have it back, and whether it was empty.
    type Held<'a> = (&'a str, &'a [(&'a str, &'a str)], bool);

    /// A plan as it is kept in a record.
    fn plan(changes: &[Held<'_>]) -> Plan {
        let changes: Vec<_> = changes
            .iter()
            .map(|(file, before, was_empty)| {
                serde_json::json!({"hierarchy": "/sys/fs/cgroup", "file": file, "value": "7",
                    "before": before, "was_empty": was_empty})
            })
            .collect();
        serde_json::from_value(serde_json::json!({"changes": changes, "warnings": []})).unwrap()
    }

    fn held(plan: &Plan, mode: Mode) -> Vec<String> {
        let told = before(plan, mode).unwrap().into_iter();
        told.map(|it| match it.value {
            Value::Number(INFINITY) => format!("{}=infinity", it.name),
            Value::Number(number) => format!("{}={number}", it.name),
            other => format!("{}={other:?}", it.name),
        })
        .collect()
    }

    #[test]
    fn what_an_update_found_is_told_as_properties() {
        let found = plan(&[
            ("cpu.max", &[("cpu.max", "max 100000")], false),
            ("cpuset.cpus", &[("cpuset.cpus", "0-1")], true),
            ("cpu.idle", &[("cpu.idle", "0"), ("cpu.weight", "39")], false),
            ("memory.max", &[("memory.max", "max")], false),
            ("memory.swap.max", &[("memory.swap.max", "0")], false),
            ("pids.max", &[("pids.max", "9\n")], false),
            ("hugetlb.2MB.max", &[("hugetlb.2MB.max", "0")], false),
        ]);
        assert_eq!(
            held(&found, Mode::Unified),
            [
                "TasksMax=9",
                "MemorySwapMax=0",
                "MemoryMax=infinity",
                "CPUWeight=39",
                // An empty list is the parent's.
                "AllowedCPUs=Bytes([])",
                "CPUQuotaPeriodUSec=100000",
                "CPUQuotaPerSecUSec=infinity",
            ]
        );
    }

    #[test]
    fn what_an_update_found_is_told_on_version_1_too() {
        let found = plan(&[
            ("cpu.shares", &[("cpu.shares", "512")], false),
            ("cpu.cfs_period_us", &[("cpu.cfs_period_us", "50000")], false),
            ("cpu.cfs_quota_us", &[("cpu.cfs_quota_us", "25000")], false),
            ("cpuset.cpus", &[("cpuset.cpus", "0-1")], false),
            (
                "memory.limit_in_bytes",
                &[("memory.limit_in_bytes", "9223372036854771712")],
                false,
            ),
            (
                "memory.memsw.limit_in_bytes",
                &[("memory.memsw.limit_in_bytes", "5")],
                false,
            ),
            ("pids.max", &[("pids.max", "max")], false),
        ]);
        let told = [
            "TasksMax=infinity",
            "MemoryLimit=infinity",
            "CPUShares=512",
            "CPUQuotaPeriodUSec=50000",
            "CPUQuotaPerSecUSec=500000",
        ];
        assert_eq!(held(&found, Mode::Hybrid), told);
        assert_eq!(held(&found, Mode::Legacy), told);
        let limit = plan(&[
            (
                "memory.limit_in_bytes",
                &[("memory.limit_in_bytes", "4096")],
                false,
            ),
            ("cpu.cfs_quota_us", &[("cpu.cfs_quota_us", "-1")], false),
        ]);
        assert_eq!(
            held(&limit, Mode::Hybrid),
            ["MemoryLimit=4096", "CPUQuotaPerSecUSec=infinity"]
        );
    }

    #[test]
    fn idle_is_a_weight() {
        let limits = Limits {
            cpu: Cpu {
                idle: Some(1),
                shares: Some(5),
                ..Cpu::default()
            },
            ..Limits::default()
        };
        assert_eq!(shown(&limits, Stage::All), ["CPUWeight=0"]);
    }

    #[test]
    fn lists_that_are_none_are_refused() {
        for bad in ["x", "3-1", "0-99999", "-1", "1-"] {
            assert!(mask("cpus", bad).is_err(), "{bad}");
        }
        assert_eq!(mask("cpus", "0, 15").unwrap(), [1, 128]);
    }

    #[test]
    fn version_1_has_names_of_its_own() {
        let limits = Limits {
            cpu: Cpu {
                shares: Some(512),
                cpus: Some("0".into()),
                ..Cpu::default()
            },
            memory: Memory {
                limit: Some(9),
                ..Memory::default()
            },
            ..Limits::default()
        };
        let names: Vec<_> = properties(&limits, Stage::All, Mode::Hybrid)
            .unwrap()
            .into_iter()
            .map(|it| it.name)
            .collect();
        assert_eq!(names, ["CPUShares", "MemoryLimit"]);
    }
}
