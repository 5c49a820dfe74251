//! What to write on version 1, and in which order: some of its files refuse a value that another file makes right.
//!
//! Most of it is a list of writes, as for version 2; memory and cpu bandwidth must look at what is there first.

use crate::Error;
use crate::io::{self, Root};
use crate::limits::{BlockIo, Cpu, Memory};
use crate::v2::{Write, may, must};

/// Bandwidth: the kernel checks quota against period at each write, so a pair can be refused in one order and taken
/// in the other.
pub(crate) fn apply_cpu(root: &Root, dir: &str, cpu: &Cpu) -> Result<(), Error> {
    let set = |file: &str, value: String| io::write(root, dir, file, &value);
    if let Some(idle) = cpu.idle {
        set("cpu.idle", idle.to_string())?;
    }
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && cpu.idle != Some(1)) {
        set("cpu.shares", shares.clamp(2, 262_144).to_string())?;
    }
    let mut period = cpu.period.filter(|period| *period != 0);
    let quota = cpu.quota.filter(|quota| *quota != 0).map(|quota| quota.max(-1));
    if let Some(value) = period {
        match set("cpu.cfs_period_us", value.to_string()) {
            Ok(()) => period = None,
            Err(error) if error.errno() == Some(libc::EINVAL) && quota.is_some() => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(value) = quota {
        set("cpu.cfs_quota_us", value.to_string())?;
    }
    if let Some(value) = period {
        set("cpu.cfs_period_us", value.to_string())?;
    }
    if let Some(burst) = cpu.burst {
        set("cpu.cfs_burst_us", burst.to_string())?;
    }
    Ok(())
}

/// The limit may never be above "memory and swap", so raising begins with the one and lowering with the other.
pub(crate) fn apply_memory(root: &Root, dir: &str, memory: &Memory) -> Result<Vec<String>, Error> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const TOTAL: &str = "memory.memsw.limit_in_bytes";
    let set = |file: &str, value: String| io::write(root, dir, file, &value);
    let mut warnings = Vec::new();
    let limit = memory.limit.filter(|limit| *limit != 0).map(|it| it.max(-1));
    let mut total = memory.swap.filter(|swap| *swap != 0).map(|it| it.max(-1));
    crate::convert::swap_alone(memory)?;
    if total.is_some() && !io::exists(root, dir, TOTAL) {
        if total != Some(-1) && total != limit {
            warnings.push(format!(
                "the kernel does no swap accounting ({TOTAL} is missing): swap is not limited"
            ));
        }
        total = None;
    }
    match (limit, total) {
        (Some(limit), Some(total)) => {
            let now = number(root, dir, TOTAL)?;
            let raising = total < 0 || u64::try_from(total).is_ok_and(|total| total >= now);
            let (first, second) = if raising {
                ((TOTAL, total), (LIMIT, limit))
            } else {
                ((LIMIT, limit), (TOTAL, total))
            };
            set(first.0, first.1.to_string())?;
            set(second.0, second.1.to_string())?;
        }
        (Some(limit), None) => set(LIMIT, limit.to_string())?,
        (None, Some(total)) => set(TOTAL, total.to_string())?,
        (None, None) => {}
    }
    if let Some(reservation) = memory.reservation.filter(|it| *it != 0) {
        set("memory.soft_limit_in_bytes", reservation.max(-1).to_string())?;
    }
    if let Some(swappiness) = memory.swappiness {
        if swappiness > 100 {
            return Err(Error::Limit {
                field: "memory swappiness",
                value: swappiness.to_string(),
                problem: "it goes from 0 to 100",
            });
        }
        set("memory.swappiness", swappiness.to_string())?;
    }
    if memory.disable_oom_killer == Some(true) {
        set("memory.oom_control", "1".into())?;
    }
    Ok(warnings)
}

pub(crate) fn hugepages(pages: &[(String, u64)], has_reservation: impl Fn(&str) -> bool) -> Vec<Write> {
    let mut out = Vec::new();
    for (size, bytes) in pages {
        let file = format!("hugetlb.{size}.limit_in_bytes");
        out.push(match bytes {
            0 => may(file, "0", ""),
            _ => must(file, bytes.to_string()),
        });
        let reservation = format!("hugetlb.{size}.rsvd.limit_in_bytes");
        if has_reservation(&reservation) {
            out.push(must(reservation, bytes.to_string()));
        }
    }
    out
}

pub(crate) fn block_io(io: &BlockIo, has_bfq: bool) -> Vec<Write> {
    let warning = "the kernel's I/O schedulers take no weights (blkio.weight and blkio.bfq.weight are missing): left out";
    let prefix = if has_bfq {
        "blkio.bfq.weight"
    } else {
        "blkio.weight"
    };
    let mut out = Vec::new();
    if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
        out.push(may(prefix, weight.to_string(), warning));
    }
    for (major, minor, weight) in &io.weight_device {
        out.push(may(
            format!("{prefix}_device"),
            format!("{major}:{minor} {weight}"),
            warning,
        ));
    }
    for device in &io.throttle {
        let rates = [
            ("read_bps", device.read_bps),
            ("write_bps", device.write_bps),
            ("read_iops", device.read_iops),
            ("write_iops", device.write_iops),
        ];
        for (name, rate) in rates.into_iter().filter_map(|(name, rate)| Some((name, rate?))) {
            out.push(must(
                format!("blkio.throttle.{name}_device"),
                format!("{}:{} {rate}", device.major, device.minor),
            ));
        }
    }
    out
}

pub(crate) fn number(root: &Root, dir: &str, file: &str) -> Result<u64, Error> {
    let text = io::read(root, dir, file)?;
    text.trim().parse().map_err(|_| Error::Parse {
        file: io::name(root, dir, file),
        text,
    })
}
