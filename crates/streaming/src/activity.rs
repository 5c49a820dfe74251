//! When something was last read or written, for the idle time-out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// How long a client that everything was sent to may show no sign of reading it or of closing. A slow one is no silent one: what lies in the
/// buffers between us may take it minutes (`kubectl cp` over a thin line), its pings' answers lie behind that, and it is lost if we close before.
pub const SILENCE: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 120_000 });
/// How long it may take in all: signs can be given for ever.
pub const PARTING: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 600 });
/// Clients of a server that get so long at a time.
pub const PARTINGS: usize = 256;
/// How long others get, so that who does not close cannot take all connections.
pub const CROWDED: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 15 });

#[derive(Debug, Clone)]
pub struct Activity(Arc<State>);

#[derive(Debug)]
struct State {
    begin: Instant,
    /// Milliseconds since then.
    last: AtomicU64,
    partings: Arc<Semaphore>,
}

impl Activity {
    /// `partings`: of all connections of the server.
    pub fn new(partings: Arc<Semaphore>) -> Self {
        Self(Arc::new(State {
            begin: Instant::now(),
            last: AtomicU64::new(0),
            partings,
        }))
    }

    pub fn touch(&self) {
        let now = u64::try_from(self.0.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last.store(now, Ordering::Relaxed);
    }

    /// Resolves when nothing has happened for `limit`.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let last = self.0.begin + Duration::from_millis(self.0.last.load(Ordering::Relaxed));
            if last.elapsed() >= limit {
                return;
            }
            tokio::time::sleep_until(last + limit).await;
        }
    }

    /// Waits until everything is `said` to a client, and then until it has `closed`, as long as it shows signs of life; up to a limit.
    pub async fn part(&self, said: impl Future<Output = ()>, closed: impl Future<Output = ()>) {
        let slot = self.0.partings.try_acquire();
        let limit = if slot.is_ok() { PARTING } else { CROWDED };
        let parting = async {
            // On a thin line the kernel may have no room for the next byte for minutes: that is no silence.
            said.await;
            self.touch();
            tokio::select! {
                () = closed => {}
                () = self.idle(SILENCE) => tracing::debug!("a client neither reads nor closes: its connection is closed"),
            }
        };
        if timeout(limit, parting).await.is_err() {
            tracing::debug!("a client has not closed in {limit:?}: its connection is");
        }
    }
}
