//! When something was last read or written, for the idle time-out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How long a client that is parted from may show no sign of reading what is left or of closing. A slow one is no silent one:
/// what lies in the buffers between us may take it minutes (`kubectl cp` over a thin line), and is lost if we close before.
pub const SILENCE: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 15_000 });
/// How long it may take in all: signs can be given for ever.
pub const PARTING: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 600 });

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

    /// Lets `parting` go on to its end as long as something is read or written, up to a limit.
    pub async fn part(&self, parting: impl Future<Output = ()>) {
        self.touch();
        tokio::select! {
            () = parting => {}
            () = self.idle(SILENCE) => tracing::debug!("a client neither reads nor closes: its connection is closed"),
            () = tokio::time::sleep(PARTING) => tracing::debug!("a client has not closed in {PARTING:?}: its connection is"),
        }
    }
}
