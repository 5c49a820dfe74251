//! From two readings of a counter to a rate.

use std::time::Instant;

use super::{bounds, nanos};

/// The last two samples of a cgroup's processor time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Window {
    older: Option<Sample>,
    newer: Option<Sample>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    usage_us: u64,
}

impl Window {
    pub(super) fn is_empty(&self) -> bool {
        self.newer.is_none()
    }

    pub(super) fn push(&mut self, at: Instant, usage_us: u64) {
        self.older = self.newer;
        self.newer = Some(Sample { at, usage_us });
    }

    /// Billionths of a processor from the newest sample that is old enough until now.
    pub(super) fn rate(&self, at: Instant, usage_us: u64) -> Option<u64> {
        let old_enough = |sample: &Sample| at.duration_since(sample.at) >= bounds::SHORTEST_WINDOW;
        let from = self.newer.filter(old_enough).or(self.older.filter(old_enough))?;
        let used = u128::from(usage_us.saturating_sub(from.usage_us)) * 1000;
        let time = u128::from(nanos(at.duration_since(from.at)));
        u64::try_from(used * 1_000_000_000 / time.max(1)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn rates() {
        let start = Instant::now();
        let later = |ms| start + Duration::from_millis(ms);
        let mut window = Window::default();
        assert_eq!(window.rate(start, 5), None);
        window.push(start, 1_000_000);
        // Too short to say.
        assert_eq!(window.rate(later(500), 1_500_000), None);
        // Half a second of work in two.
        assert_eq!(window.rate(later(2000), 1_500_000), Some(250_000_000));
        window.push(later(10_000), 6_000_000);
        assert_eq!(window.rate(later(10_100), 6_000_000), Some(495_049_504));
        assert_eq!(window.rate(later(12_000), 10_000_000), Some(2_000_000_000));
        // A counter that went back is no rate below zero.
        assert_eq!(window.rate(later(12_000), 5), Some(0));
    }
}
