//! The annotations by which a pod asks for limits of its traffic, in bits a second, written as a Kubernetes quantity
//! (`kubernetes.io/ingress-bandwidth: 10M`).

use super::Invalid;
use crate::SandboxSpec;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// 1k to 1P, as everywhere in Kubernetes.
const RANGE: std::ops::RangeInclusive<u128> = 1_000..=1_000_000_000_000_000;
/// More digits than any rate has, and few enough for the arithmetic.
const DIGITS: usize = 18;

impl SandboxSpec {
    /// Limits of the traffic towards the pod and from it.
    pub fn bandwidth(&self) -> Result<(Option<u64>, Option<u64>), Invalid> {
        let of = |name: &str| {
            self.annotations
                .get(name)
                .map(|text| rate(name, text))
                .transpose()
        };
        Ok((of(INGRESS)?, of(EGRESS)?))
    }
}

fn rate(name: &str, text: &str) -> Result<u64, Invalid> {
    let invalid = |why: &str| Invalid::new(format!("annotations[{name:?}]"), format!("{text:?} {why}"));
    let bits = quantity(text).ok_or_else(|| invalid("is no quantity, such as 500k or 10M"))?;
    if !RANGE.contains(&bits) {
        return Err(invalid("is not between 1k and 1P"));
    }
    u64::try_from(bits).map_err(|_| invalid("is too large"))
}

/// Rounded up, as Kubernetes does.
fn quantity(text: &str) -> Option<u128> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = [whole, part].concat();
    if digits.is_empty() || digits.len() > DIGITS || part.contains('.') {
        return None;
    }
    let (times, by) = scale(suffix)?;
    let by = by * 10_u128.pow(u32::try_from(part.len()).ok()?);
    Some(digits.parse::<u128>().ok()?.checked_mul(times)?.div_ceil(by))
}

/// What a suffix multiplies and divides by.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let decimal = |power: u32| Some((10_u128.pow(power), 1));
    let binary = |power: u32| Some((1024_u128.pow(power), 1));
    match suffix {
        "" => decimal(0),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1_000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            match u32::try_from(power) {
                Ok(power) if power <= 18 => decimal(power),
                Err(_) if power >= -9 => Some((1, 10_u128.pow(power.unsigned_abs()))),
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, bits) in [
            ("1000", 1_000),
            ("10M", 10_000_000),
            ("1.5k", 1_500),
            ("1Mi", 1_048_576),
            ("2e3", 2_000),
            ("1E6", 1_000_000),
            ("1234567m", 1_235),
            ("0.1G", 100_000_000),
            ("1P", 1_000_000_000_000_000),
        ] {
            assert_eq!(rate("a", text).unwrap(), bits, "{text}");
        }
    }

    #[test]
    fn what_is_none_or_out_of_range_is_refused_by_name() {
        for text in [
            "",
            "M",
            "-1M",
            "1.2.3M",
            "10Mb",
            "10 M",
            "1e",
            "1e99",
            "NaN",
            "999",
            "1.1P",
            "9999999999999999999",
        ] {
            let error = rate(INGRESS, text).unwrap_err().to_string();
            assert!(error.contains(INGRESS), "{text}: {error}");
        }
    }
}
