//! How much looking at layers may cost. Paths and links of an image can be long, and lead through each other: a few KiB can ask
//! for billions of look-ups.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::io::Errno;

use crate::Limits;
use crate::error::UnpackError;

/// Steps that are left, one for each directory in which a name is looked up, and whether anybody wants the result.
#[derive(Debug)]
pub(crate) struct Effort {
    left: AtomicU64,
    spent: AtomicBool,
    stopped: AtomicBool,
}

impl Effort {
    pub fn new(steps: u64) -> Self {
        Self {
            left: AtomicU64::new(steps),
            spent: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        }
    }

    /// Nobody wants the result any more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// There were not enough steps.
    pub fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed)
    }

    /// Takes steps. The error is for whoever must stop; [`Effort::explain`] has the reason.
    pub fn spend(&self, steps: usize) -> rustix::io::Result<()> {
        if self.is_stopped() {
            return Err(Errno::CANCELED);
        }
        let steps = steps as u64;
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(steps)
            });
        taken.map(drop).map_err(|_| {
            self.spent.store(true, Ordering::Relaxed);
            Errno::TOOMANYREFS
        })
    }

    /// Why work on a layer ended that ended with `error`.
    pub fn explain(&self, error: UnpackError, limits: &Limits) -> UnpackError {
        if self.is_stopped() {
            UnpackError::Interrupted
        } else if self.is_spent() {
            UnpackError::Limit {
                what: "places to look up in the layers of its image",
                limit: limits.lookups,
            }
        } else {
            error
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_and_says_why() {
        let limits = Limits::default();
        let why = |effort: &Effort| effort.explain(UnpackError::entry(b"x", "is bad"), &limits);
        let effort = Effort::new(3);
        assert_eq!(effort.spend(2), Ok(()));
        assert!(matches!(why(&effort), UnpackError::Entry { .. }));
        assert!(effort.spend(2).is_err());
        assert!(matches!(why(&effort), UnpackError::Limit { .. }));
        effort.stop();
        assert!(effort.spend(0).is_err());
        assert!(matches!(why(&effort), UnpackError::Interrupted));
    }
}
