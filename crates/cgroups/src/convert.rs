//! Conversions from version 1's scales to version 2's. Pure.

use crate::Error;
use crate::limits::Memory;

/// `cpu.weight` for `cpu.shares`: the quadratic that maps 2 to 1, 1024 to 100 and 262144 to 10000, which Kubernetes'
/// runtimes agreed on in 2025 (the older straight line gave 1024 shares a weight of 39, less than any other service's
/// default of 100).
#[must_use]
pub fn cpu_weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // The error of the powers must not lift 1024's exact 100 to 101.
    ((10f64.powf(exponent) - 1e-9).ceil() as u64).clamp(1, 10_000)
}

/// `io.weight` (1 to 10000) for `blkio.weight` (10 to 1000).
pub(crate) fn io_weight_of_blkio(weight: u16) -> u64 {
    let weight = u64::from(weight.clamp(10, 1000));
    1 + (weight - 10) * 9999 / 990
}

/// What to write to `memory.max` or the like: `max` for "no limit".
pub(crate) fn max_or(value: i64) -> String {
    if value < 0 {
        "max".into()
    } else {
        value.to_string()
    }
}

/// `memory.swap.max` from version 1's "memory and swap together"; `None`: leave it alone.
pub(crate) fn swap_alone(memory: &Memory) -> Result<Option<String>, Error> {
    let Some(swap) = memory.swap.filter(|swap| *swap != 0) else {
        return Ok(None);
    };
    if swap < 0 {
        return Ok(Some("max".into()));
    }
    match memory.limit {
        Some(limit) if limit > 0 && swap >= limit => Ok(Some((swap - limit).to_string())),
        Some(limit) if limit > 0 => Err(Error::Limit {
            field: "memory swap limit",
            value: swap.to_string(),
            problem: "it counts memory and swap together, so it cannot be below the memory limit",
        }),
        _ => Err(Error::Limit {
            field: "memory swap limit",
            value: swap.to_string(),
            problem: "it needs a memory limit beside it",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        let table = [
            (0, 1),
            (1, 1),
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ];
        for (shares, weight) in table {
            assert_eq!(cpu_weight_of_shares(shares), weight, "{shares}");
        }
        let mut last = 0;
        for shares in 2..=262_144 {
            let weight = cpu_weight_of_shares(shares);
            assert!(
                weight >= last && (1..=10_000).contains(&weight),
                "{shares} gives {weight}"
            );
            last = weight;
        }
    }

    #[test]
    fn blkio_weights_keep_their_ends() {
        assert_eq!(io_weight_of_blkio(10), 1);
        assert_eq!(io_weight_of_blkio(1000), 10_000);
        assert_eq!(io_weight_of_blkio(0), 1);
    }

    #[test]
    fn swap_is_split_from_memory() {
        let memory = |limit, swap| Memory {
            limit,
            swap,
            ..Memory::default()
        };
        assert_eq!(swap_alone(&memory(None, None)).unwrap(), None);
        assert_eq!(swap_alone(&memory(Some(5), Some(0))).unwrap(), None);
        assert_eq!(
            swap_alone(&memory(None, Some(-1))).unwrap().as_deref(),
            Some("max")
        );
        assert_eq!(
            swap_alone(&memory(Some(5), Some(5))).unwrap().as_deref(),
            Some("0")
        );
        assert_eq!(
            swap_alone(&memory(Some(5), Some(12))).unwrap().as_deref(),
            Some("7")
        );
        assert!(swap_alone(&memory(Some(5), Some(4))).is_err());
        assert!(swap_alone(&memory(None, Some(4))).is_err());
        assert!(swap_alone(&memory(Some(-1), Some(4))).is_err());
    }
}
