//! Who is unpacking which layer: the same layer in two pulls at the same time is unpacked once.
//!
//! A claim is by what an image's configuration says of the layer, which nobody has checked yet, and lasts as long as some
//! registry likes. So it saves work, and gives no right: who has waited in vain makes the layer too, and who is first records it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_registry::Digest;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// Bytes that make another [`Patience::window`] of waiting worthwhile: some 4 KiB a second.
const WORTHWHILE: u64 = 128 << 10;
/// Windows in all, whatever comes.
const WINDOWS: u32 = 20;

type Map = Arc<Mutex<HashMap<Digest, Busy>>>;

/// Layers being made, by chain id.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    claimed: Map,
}

/// The answer to [`Claims::claim`].
#[derive(Debug)]
pub(crate) enum Claimed {
    /// The caller makes the layer, and holds this until it is recorded or given up.
    Mine(Claim),
    /// Another pull makes it.
    Busy(Busy),
}

/// A layer that another pull makes.
#[derive(Debug, Clone)]
pub(crate) struct Busy {
    /// Closes when that is over, well or not.
    over: watch::Receiver<()>,
    /// Bytes that the other pull has fetched, of all its layers: one of them may wait for the others.
    fetched: Arc<AtomicU64>,
}

/// How long others are waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    window: Duration,
    end: Instant,
}

impl Patience {
    /// Begins now.
    pub fn new(window: Duration) -> Self {
        Self {
            window,
            end: Instant::now() + window.saturating_mul(WINDOWS),
        }
    }
}

impl Busy {
    /// Waits for the end of the other's work. False if it comes no further, or the patience is at its end.
    pub async fn over(mut self, patience: Patience) -> bool {
        loop {
            let before = self.fetched.load(Ordering::Relaxed);
            let window = patience
                .window
                .min(patience.end.saturating_duration_since(Instant::now()));
            let ended = async { while self.over.changed().await.is_ok() {} };
            if timeout(window, ended).await.is_ok() {
                return true;
            }
            let came = self.fetched.load(Ordering::Relaxed) - before;
            if came < WORTHWHILE || Instant::now() >= patience.end {
                return false;
            }
        }
    }
}

/// The right to make one layer.
#[derive(Debug)]
pub(crate) struct Claim {
    layer: Digest,
    claimed: Map,
    /// Closes when this is dropped.
    _over: watch::Sender<()>,
}

impl Claims {
    /// Claims a layer for a pull that counts what it fetches in `fetched`.
    pub fn claim(&self, layer: &Digest, fetched: &Arc<AtomicU64>) -> Claimed {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(busy) = claimed.get(layer) {
            return Claimed::Busy(busy.clone());
        }
        let (end, over) = watch::channel(());
        let busy = Busy {
            over,
            fetched: Arc::clone(fetched),
        };
        claimed.insert(layer.clone(), busy);
        Claimed::Mine(Claim {
            layer: layer.clone(),
            claimed: Arc::clone(&self.claimed),
            _over: end,
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Before the channel closes, so that who wakes up finds the claim free.
        self.claimed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.layer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(claims: &Claims, fetched: &Arc<AtomicU64>) -> Claimed {
        claims.claim(&Digest::sha256(b"x"), fetched)
    }

    #[tokio::test]
    async fn a_claim_is_exclusive_until_it_is_dropped() {
        let (claims, fetched) = (Claims::default(), Arc::default());
        let Claimed::Mine(mine) = claimed(&claims, &fetched) else {
            panic!("nobody else has it")
        };
        let Claimed::Busy(busy) = claimed(&claims, &fetched) else {
            panic!("it is taken")
        };
        drop(mine);
        assert!(busy.over(Patience::new(Duration::from_secs(60))).await);
        assert!(matches!(claimed(&claims, &fetched), Claimed::Mine(_)));
    }

    #[tokio::test]
    async fn who_comes_no_further_is_not_waited_for() {
        let (claims, fetched) = (Claims::default(), Arc::<AtomicU64>::default());
        let Claimed::Mine(_mine) = claimed(&claims, &fetched) else {
            panic!("nobody else has it")
        };
        let Claimed::Busy(busy) = claimed(&claims, &fetched) else {
            panic!("it is taken")
        };
        let window = Duration::from_millis(100);
        // A trickle that never stalls is no progress.
        let count = Arc::clone(&fetched);
        let trickle = tokio::spawn(async move {
            loop {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let begun = Instant::now();
        assert!(!busy.clone().over(Patience::new(window)).await);
        assert!(begun.elapsed() >= window && begun.elapsed() < window * WINDOWS / 2);
        trickle.abort();
        // Much is, but not for ever.
        let count = Arc::clone(&fetched);
        let flood = tokio::spawn(async move {
            loop {
                count.fetch_add(WORTHWHILE, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let begun = Instant::now();
        assert!(!busy.over(Patience::new(window)).await);
        assert!(begun.elapsed() >= window * WINDOWS / 2);
        flood.abort();
    }
}
