//! What to write on version 2, controller by controller. Pure: `cgroup` does the writing.

use crate::Error;
use crate::convert::{cpu_weight_of_shares, io_weight_of_blkio, max_or, swap_alone};
use crate::limits::{BlockIo, Cpu, Memory};

/// One value for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub file: String,
    pub value: String,
    /// If the file is missing: go on, with this as a warning. `None`: that is an error.
    pub tolerate: Option<&'static str>,
}

pub(crate) fn must(file: impl Into<String>, value: impl Into<String>) -> Write {
    Write {
        file: file.into(),
        value: value.into(),
        tolerate: None,
    }
}

pub(crate) fn may(file: impl Into<String>, value: impl Into<String>, warning: &'static str) -> Write {
    Write {
        tolerate: Some(warning),
        ..must(file, value)
    }
}

pub(crate) fn cpu(cpu: &Cpu) -> Vec<Write> {
    let mut out = Vec::new();
    if let Some(idle) = cpu.idle {
        out.push(must("cpu.idle", idle.to_string()));
    }
    // The kernel refuses a weight where the whole cgroup is SCHED_IDLE.
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && cpu.idle != Some(1)) {
        out.push(must("cpu.weight", cpu_weight_of_shares(shares).to_string()));
    }
    let quota = cpu.quota.filter(|quota| *quota != 0);
    let period = cpu.period.filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let value = match (quota, period) {
            (Some(quota), None) => max_or(quota),
            (quota, Some(period)) => format!("{} {period}", max_or(quota.unwrap_or(-1))),
            (None, None) => String::new(),
        };
        out.push(must("cpu.max", value));
    }
    if let Some(burst) = cpu.burst {
        out.push(must("cpu.max.burst", burst.to_string()));
    }
    out
}

pub(crate) fn cpuset(cpu: &Cpu) -> Vec<Write> {
    let mut out = Vec::new();
    for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            out.push(must(file, value.clone()));
        }
    }
    out
}

pub(crate) fn pids(limit: i64) -> Vec<Write> {
    vec![must(
        "pids.max",
        if limit <= 0 {
            "max".into()
        } else {
            limit.to_string()
        },
    )]
}

pub(crate) fn memory(memory: &Memory) -> Result<(Vec<Write>, Vec<String>), Error> {
    let mut out = Vec::new();
    let mut warnings = Vec::new();
    if let Some(swap) = swap_alone(memory)? {
        out.push(match swap.as_str() {
            // No swap accounting and no swap allowed, or no limit wanted: nothing is lost.
            "0" | "max" => may("memory.swap.max", swap, ""),
            _ => may(
                "memory.swap.max",
                swap,
                "the kernel does no swap accounting (memory.swap.max is missing): swap is not limited",
            ),
        });
    }
    if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
        out.push(must("memory.max", max_or(limit)));
    }
    if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
        out.push(must("memory.low", max_or(reservation)));
    }
    if memory.swappiness.is_some() {
        warnings.push("memory swappiness is per cgroup on version 1 only: left out".into());
    }
    if memory.disable_oom_killer == Some(true) {
        warnings.push("the OOM killer cannot be switched off on cgroup version 2: left on".into());
    }
    Ok((out, warnings))
}

pub(crate) fn hugepages(pages: &[(String, u64)], has_reservation: impl Fn(&str) -> bool) -> Vec<Write> {
    let mut out = Vec::new();
    for (size, bytes) in pages {
        let file = format!("hugetlb.{size}.max");
        out.push(match bytes {
            // The kubelet says 0 for every size that the node may have.
            0 => may(file, "0", ""),
            _ => must(file, bytes.to_string()),
        });
        let reservation = format!("hugetlb.{size}.rsvd.max");
        if has_reservation(&reservation) {
            out.push(must(reservation, bytes.to_string()));
        }
    }
    out
}

pub(crate) fn block_io(io: &BlockIo, has_bfq: bool) -> Vec<Write> {
    let warning =
        "the kernel's I/O schedulers take no weights (io.weight and io.bfq.weight are missing): left out";
    let weight = |weight: u16| match has_bfq {
        true => weight.to_string(),
        false => io_weight_of_blkio(weight).to_string(),
    };
    let file = if has_bfq { "io.bfq.weight" } else { "io.weight" };
    let mut out = Vec::new();
    if let Some(value) = io.weight.filter(|weight| *weight != 0) {
        out.push(may(file, weight(value), warning));
    }
    for (major, minor, value) in &io.weight_device {
        out.push(may(file, format!("{major}:{minor} {}", weight(*value)), warning));
    }
    for device in &io.throttle {
        let mut value = format!("{}:{}", device.major, device.minor);
        let rates = [
            ("rbps", device.read_bps),
            ("wbps", device.write_bps),
            ("riops", device.read_iops),
            ("wiops", device.write_iops),
        ];
        for (name, rate) in rates.into_iter().filter_map(|(name, rate)| Some((name, rate?))) {
            let rate = if rate == 0 { "max".into() } else { rate.to_string() };
            value.push_str(&format!(" {name}={rate}"));
        }
        out.push(must("io.max", value));
    }
    out
}

/// Checks the name of a file in `unified`: a limit's, in this directory; not one that moves processes or kills.
pub(crate) fn check_unified(name: &str) -> Result<(), Error> {
    let refuse = |problem| {
        Err(Error::Limit {
            field: "unified cgroup setting",
            value: name.chars().take(256).collect(),
            problem,
        })
    };
    if name.contains(['/', '\0', '\n']) || !name.contains('.') || name.starts_with('.') {
        return refuse("it is not the name of a cgroup file");
    }
    // These do something, or wait for it, instead of holding a value.
    if name.ends_with(".pressure") || name.ends_with(".peak") || name == "memory.reclaim" {
        return refuse("it is not a setting");
    }
    if name.starts_with("cgroup.") && name != "cgroup.max.depth" && name != "cgroup.max.descendants" {
        return refuse("files of the core that are not limits cannot be set");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(writes: &[Write]) -> Vec<String> {
        writes
            .iter()
            .map(|it| format!("{}={}", it.file, it.value))
            .collect()
    }

    #[test]
    fn cpu_values() {
        let it = |cpu_: Cpu| lines(&cpu(&cpu_));
        assert!(it(Cpu::default()).is_empty());
        let base = Cpu {
            shares: Some(1024),
            quota: Some(50_000),
            period: Some(100_000),
            ..Cpu::default()
        };
        assert_eq!(it(base.clone()), ["cpu.weight=100", "cpu.max=50000 100000"]);
        let unlimited = Cpu {
            quota: Some(-1),
            ..base.clone()
        };
        assert_eq!(it(unlimited)[1], "cpu.max=max 100000");
        let quota_only = Cpu {
            period: None,
            shares: Some(0),
            ..base.clone()
        };
        assert_eq!(it(quota_only), ["cpu.max=50000"]);
        let idle = Cpu {
            idle: Some(1),
            burst: Some(7),
            ..base
        };
        assert_eq!(
            it(idle),
            ["cpu.idle=1", "cpu.max=50000 100000", "cpu.max.burst=7"]
        );
    }

    #[test]
    fn memory_and_pids_values() {
        let (writes, warnings) = memory(&Memory {
            limit: Some(100),
            swap: Some(150),
            reservation: Some(50),
            swappiness: Some(1),
            ..Memory::default()
        })
        .unwrap();
        assert_eq!(
            lines(&writes),
            ["memory.swap.max=50", "memory.max=100", "memory.low=50"]
        );
        assert_eq!(warnings.len(), 1);
        assert_eq!(lines(&pids(0)), ["pids.max=max"]);
        assert_eq!(lines(&pids(5)), ["pids.max=5"]);
    }

    #[test]
    fn io_values() {
        let io = BlockIo {
            weight: Some(1000),
            weight_device: vec![(8, 0, 10)],
            throttle: vec![crate::Throttle {
                major: 8,
                minor: 16,
                read_bps: Some(1),
                write_iops: Some(0),
                ..crate::Throttle::default()
            }],
        };
        assert_eq!(
            lines(&block_io(&io, false)),
            [
                "io.weight=10000",
                "io.weight=8:0 1",
                "io.max=8:16 rbps=1 wiops=max"
            ]
        );
        assert_eq!(lines(&block_io(&io, true))[0], "io.bfq.weight=1000");
    }

    #[test]
    fn unified_names_are_checked() {
        for good in ["memory.oom.group", "memory.high", "cgroup.max.depth", "io.max"] {
            check_unified(good).unwrap();
        }
        for bad in [
            "cgroup.procs",
            "cgroup.kill",
            "cpu.pressure",
            "memory.reclaim",
            "memory.peak",
            "../memory.max",
            "a/b.c",
            "memory",
            ".x",
            "x.\n",
        ] {
            assert!(check_unified(bad).is_err(), "{bad:?}");
        }
    }
}
