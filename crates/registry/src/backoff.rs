//! How long to wait between attempts.

use std::time::{Duration, SystemTime};

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);
/// A registry may ask for more patience than ours, up to this.
pub(crate) const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The wait before attempt `n` (the first repetition is 1), with a quarter of jitter so that nodes do not march in step.
pub(crate) fn delay(n: u32, retry_after: Option<Duration>) -> Duration {
    let base = FIRST
        .saturating_mul(1 << n.saturating_sub(1).min(10))
        .min(LONGEST);
    let nanos = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    let jitter = base.mul_f64(f64::from(nanos % 1000) / 4000.0);
    (base + jitter).max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER))
}

/// `Retry-After` in seconds. Its other form, a date, depends on two clocks agreeing and is not used.
pub(crate) fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers
        .get(http::header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_is_bounded() {
        assert!(delay(1, None) >= FIRST && delay(1, None) <= FIRST * 2);
        assert!(delay(40, None) <= LONGEST * 2);
        assert!(delay(1, Some(Duration::from_secs(3))) >= Duration::from_secs(3));
        assert!(delay(1, Some(Duration::from_secs(9999))) <= LONGEST_RETRY_AFTER);
    }
}
