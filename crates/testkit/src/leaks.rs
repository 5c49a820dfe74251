//! Before and after: a test must leave what it found.

use crate::{Expected, Inventory, Scope};
use std::time::{Duration, Instant};

/// What was there before the test.
#[derive(Debug)]
pub struct Leaks {
    scope: Scope,
    before: Inventory,
}

impl Leaks {
    #[must_use]
    pub fn snapshot(scope: &Scope) -> Self {
        Self {
            scope: scope.clone(),
            before: Inventory::take(scope),
        }
    }

    /// Counts the descriptors of another daemon from now on, as after a restart; those before are forgotten.
    pub fn daemon_is(&mut self, pid: i32) {
        self.scope.daemon = Some(pid);
        self.before.descriptors = crate::descriptors_of(pid);
    }

    /// What differs now.
    #[must_use]
    pub fn differences(&self) -> Vec<String> {
        Inventory::take(&self.scope).differences(&self.before)
    }

    /// Panics with all differences if there still are any after `limit`. (Namespaces and veths die a little after
    /// the call that let them go.)
    pub fn assert_clean(&self, limit: Duration) {
        settle(limit, "something was left behind", || self.differences());
    }
}

impl Expected {
    /// Panics with all differences if the living records do not own exactly what is there, still after `limit`.
    pub fn assert_exact(&self, scope: &Scope, limit: Duration) {
        settle(limit, "what is there is not what the records own", || {
            self.differences(&Inventory::take(scope))
        });
    }
}

fn settle(limit: Duration, what: &str, mut look: impl FnMut() -> Vec<String>) {
    let start = Instant::now();
    loop {
        let differences = look();
        if differences.is_empty() {
            return;
        }
        assert!(
            start.elapsed() < limit,
            "{what}, after {limit:?}:\n  {}",
            differences.join("\n  ")
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
