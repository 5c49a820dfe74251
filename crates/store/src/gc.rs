//! What garbage collection needs: leases, and the walk from roots to everything that they keep.

use std::collections::HashSet;
use std::hash::Hash;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Keeps things that nothing refers to yet: the layers of a pull in flight, or of one that failed and may be tried again.
///
/// A lease ends by itself at a point in time, so that what a dead process held is freed without anyone remembering it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Keys of what is kept.
    pub holds: Vec<String>,
    /// Seconds since 1970 at which it ends.
    pub until: u64,
}

impl Lease {
    /// A lease on nothing yet, which ends `lasts` from now.
    #[must_use]
    pub fn lasting(lasts: Duration) -> Self {
        Self {
            holds: Vec::new(),
            until: seconds(SystemTime::now() + lasts),
        }
    }

    /// Adds `key` unless it is held already.
    pub fn hold(&mut self, key: &str) {
        if !self.holds.iter().any(|k| k == key) {
            self.holds.push(key.to_owned());
        }
    }

    /// Whether it has ended. A clock that jumped back by more than the lease's own `lasts` is not waited for.
    #[must_use]
    pub fn ended(&self, now: SystemTime, lasts: Duration) -> bool {
        let now = seconds(now);
        self.until <= now || self.until > now.saturating_add(2 * lasts.as_secs())
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Everything that can be reached from `roots` over `edges`, the roots included. Cycles are harmless.
pub fn reachable<K, I>(roots: impl IntoIterator<Item = K>, mut edges: impl FnMut(&K) -> I) -> HashSet<K>
where
    K: Hash + Eq + Clone,
    I: IntoIterator<Item = K>,
{
    let mut open: Vec<K> = roots.into_iter().collect();
    let mut seen = HashSet::new();
    while let Some(key) = open.pop() {
        if seen.insert(key.clone()) {
            open.extend(edges(&key));
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_takes_parents_and_survives_a_cycle() {
        let edges = |k: &u32| match k {
            1 => vec![2],
            2 => vec![3, 1],
            _ => vec![],
        };
        assert_eq!(reachable([1], edges), HashSet::from([1, 2, 3]));
        assert_eq!(reachable([9], edges), HashSet::from([9]));
    }

    #[test]
    fn a_lease_ends_also_when_the_clock_has_jumped_back() {
        let hour = Duration::from_secs(3600);
        let lease = Lease::lasting(hour);
        let now = SystemTime::now();
        assert!(!lease.ended(now, hour));
        assert!(lease.ended(now + hour * 2, hour));
        assert!(lease.ended(now - hour * 24, hour));
    }
}
