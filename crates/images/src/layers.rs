//! Who is unpacking which layer: the same layer in two pulls at the same time is unpacked once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_registry::Digest;
use tokio::sync::watch;

type Map = Arc<Mutex<HashMap<Digest, watch::Receiver<()>>>>;

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
    /// Another pull makes it; the channel closes when that is over, well or not.
    Busy(watch::Receiver<()>),
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
    pub fn claim(&self, layer: &Digest) -> Claimed {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(busy) = claimed.get(layer) {
            return Claimed::Busy(busy.clone());
        }
        let (over, busy) = watch::channel(());
        claimed.insert(layer.clone(), busy);
        Claimed::Mine(Claim {
            layer: layer.clone(),
            claimed: Arc::clone(&self.claimed),
            _over: over,
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

    #[test]
    fn a_claim_is_exclusive_until_it_is_dropped() {
        let claims = Claims::default();
        let layer = Digest::sha256(b"x");
        let Claimed::Mine(mine) = claims.claim(&layer) else {
            panic!("nobody else has it")
        };
        let Claimed::Busy(busy) = claims.claim(&layer) else {
            panic!("it is taken")
        };
        assert!(busy.has_changed().is_ok());
        drop(mine);
        assert!(busy.has_changed().is_err(), "the channel is closed");
        assert!(matches!(claims.claim(&layer), Claimed::Mine(_)));
    }
}
