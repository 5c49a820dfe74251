//! When something was last read or written, for the idle time-out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug, Clone)]
pub struct Activity(Arc<(Instant, AtomicU64)>);

impl Activity {
    pub fn new() -> Self {
        Self(Arc::new((Instant::now(), AtomicU64::new(0))))
    }

    pub fn touch(&self) {
        let now = u64::try_from(self.0.0.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.1.store(now, Ordering::Relaxed);
    }

    /// Resolves when nothing has happened for `limit`.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let last = self.0.0 + Duration::from_millis(self.0.1.load(Ordering::Relaxed));
            if last.elapsed() >= limit {
                return;
            }
            tokio::time::sleep_until(last + limit).await;
        }
    }
}
