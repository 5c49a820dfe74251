//! What to write on version 1, and in which order: some of its files refuse a value that another file makes right.
//!
//! Lists of writes, as for version 2; memory and cpu bandwidth must look at what is there first.

use crate::Error;
use crate::io::{self, Root};
use crate::limits::{BlockIo, Cpu, Memory};
use crate::v2::{Write, may, must};

/// Microseconds of a period that may be used (`None`: all), and the period.
pub(crate) type Bandwidth = (Option<u64>, u64);

const QUOTA: &str = "cpu.cfs_quota_us";
const PERIOD: &str = "cpu.cfs_period_us";
const LIMIT: &str = "memory.limit_in_bytes";
const TOTAL: &str = "memory.memsw.limit_in_bytes";

/// What the cgroup has now.
pub(crate) fn bandwidth(root: &Root, dir: &str) -> Result<Bandwidth, Error> {
    let text = io::read(root, dir, QUOTA)?;
    let quota: i64 = text.trim().parse().map_err(|_| Error::Parse {
        file: io::name(root, dir, QUOTA),
        text,
    })?;
    Ok((u64::try_from(quota).ok(), number(root, dir, PERIOD)?))
}

/// "Memory and swap" of now; `None`: the kernel does no swap accounting.
pub(crate) fn total(root: &Root, dir: &str) -> Result<Option<u64>, Error> {
    match number(root, dir, TOTAL) {
        Ok(total) => Ok(Some(total)),
        Err(error) if error.is_gone() && io::exists(root, dir, LIMIT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bandwidth: the kernel holds quota over period against the parent's at each write, so what is written first must not,
/// with the old value of the other, come to more than before and after. `now` is asked where both are given.
pub(crate) fn cpu(cpu: &Cpu, now: impl FnOnce() -> Result<Bandwidth, Error>) -> Result<Vec<Write>, Error> {
    let mut out = Vec::new();
    if let Some(idle) = cpu.idle {
        out.push(must("cpu.idle", idle.to_string()));
    }
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && cpu.idle != Some(1)) {
        out.push(must("cpu.shares", shares.clamp(2, 262_144).to_string()));
    }
    let quota = cpu.quota.filter(|quota| *quota != 0).map(|quota| quota.max(-1));
    let period = cpu.period.filter(|period| *period != 0);
    let writes = |quota: i64| must(QUOTA, quota.to_string());
    match (quota, period) {
        (Some(quota), Some(period)) => {
            let (old_quota, old_period) = now()?;
            let share = |quota: Option<u64>, period: u64| match quota {
                Some(quota) => quota as f64 / period.max(1) as f64,
                None => f64::INFINITY,
            };
            let period_first = share(old_quota, period);
            let quota_first = share(u64::try_from(quota).ok(), old_period);
            let mut pair = [must(PERIOD, period.to_string()), writes(quota)];
            if quota_first < period_first {
                pair.reverse();
            }
            out.extend(pair);
        }
        (Some(quota), None) => out.push(writes(quota)),
        (None, Some(period)) => out.push(must(PERIOD, period.to_string())),
        (None, None) => {}
    }
    if let Some(burst) = cpu.burst {
        out.push(must("cpu.cfs_burst_us", burst.to_string()));
    }
    Ok(out)
}

/// The limit may never be above "memory and swap", so raising begins with the one and lowering with the other. `now` is
/// asked, for "memory and swap" of now, where that is to be limited.
pub(crate) fn memory(
    memory: &Memory,
    now: impl FnOnce() -> Result<Option<u64>, Error>,
) -> Result<(Vec<Write>, Vec<String>), Error> {
    let (mut out, mut warnings) = (Vec::new(), Vec::new());
    let limit = memory.limit.filter(|limit| *limit != 0).map(|it| it.max(-1));
    let mut total = memory.swap.filter(|swap| *swap != 0).map(|it| it.max(-1));
    crate::convert::swap_alone(memory)?;
    let mut raising = false;
    if let Some(wanted) = total {
        match now()? {
            Some(now) => raising = u64::try_from(wanted).map_or(true, |wanted| wanted >= now),
            None => {
                if wanted != -1 && total != limit {
                    warnings.push(format!(
                        "the kernel does no swap accounting ({TOTAL} is missing): swap is not limited"
                    ));
                }
                total = None;
            }
        }
    }
    let mut pair = Vec::new();
    pair.extend(limit.map(|limit| must(LIMIT, limit.to_string())));
    pair.extend(total.map(|total| must(TOTAL, total.to_string())));
    if raising {
        pair.reverse();
    }
    out.extend(pair);
    if let Some(reservation) = memory.reservation.filter(|it| *it != 0) {
        out.push(must(
            "memory.soft_limit_in_bytes",
            reservation.max(-1).to_string(),
        ));
    }
    if let Some(swappiness) = memory.swappiness {
        if swappiness > 100 {
            return Err(Error::Limit {
                field: "memory swappiness",
                value: swappiness.to_string(),
                problem: "it goes from 0 to 100",
            });
        }
        out.push(must("memory.swappiness", swappiness.to_string()));
    }
    if memory.disable_oom_killer == Some(true) {
        out.push(must("memory.oom_control", "1"));
    }
    Ok((out, warnings))
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
    fn bandwidth_never_comes_to_more_than_before_and_after() {
        let order = |now: Bandwidth, quota, period| {
            let wanted = Cpu {
                quota: Some(quota),
                period: Some(period),
                ..Cpu::default()
            };
            let writes = cpu(&wanted, || Ok(now)).unwrap();
            writes[0].file.clone()
        };
        // The other order would come to 5 processors, to 1, or to all; then from a limit to none, and to a longer period.
        assert_eq!(order((Some(50_000), 100_000), 20_000, 10_000), QUOTA);
        assert_eq!(order((Some(100_000), 100_000), 10_000, 100_000), QUOTA);
        assert_eq!(order((None, 100_000), 10_000, 50_000), QUOTA);
        assert_eq!(order((Some(50_000), 100_000), -1, 200_000), PERIOD);
        assert_eq!(order((Some(50_000), 50_000), 60_000, 200_000), PERIOD);
        let alone = Cpu {
            period: Some(1),
            ..Cpu::default()
        };
        let asked = || panic!("nobody needs to know");
        assert_eq!(lines(&cpu(&alone, asked).unwrap()), ["cpu.cfs_period_us=1"]);
    }

    #[test]
    fn memory_is_raised_from_the_top_and_lowered_from_the_bottom() {
        let order = |now: Option<u64>, limit, swap| {
            let wanted = Memory {
                limit,
                swap,
                ..Memory::default()
            };
            let (writes, warnings) = memory(&wanted, || Ok(now)).unwrap();
            (lines(&writes), warnings.len())
        };
        let (limit, total) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        assert_eq!(
            order(Some(100), Some(200), Some(200)).0,
            [format!("{total}=200"), format!("{limit}=200")]
        );
        assert_eq!(
            order(Some(100), Some(50), Some(60)).0,
            [format!("{limit}=50"), format!("{total}=60")]
        );
        assert_eq!(
            order(Some(100), Some(-1), Some(-1)).0,
            [format!("{total}=-1"), format!("{limit}=-1")]
        );
        assert_eq!(order(None, Some(50), Some(60)), (vec![format!("{limit}=50")], 1));
        assert_eq!(order(None, Some(50), Some(50)), (vec![format!("{limit}=50")], 0));
    }
}
