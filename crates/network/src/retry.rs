//! Teardowns that failed, repeated in the background until they succeed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::network::Shared;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// A plugin that hangs costs its whole deadline; this many may hang at a time.
const AT_ONCE: usize = 4;

pub(crate) struct Retry {
    shared: Weak<Shared>,
    /// Sandboxes being repeated; bounded by the number of records.
    ids: Arc<Mutex<BTreeSet<String>>>,
    turns: Arc<Semaphore>,
}

impl Retry {
    pub(crate) fn start(shared: Weak<Shared>) -> Self {
        Self {
            shared,
            ids: Arc::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Repeats the teardown of a sandbox, after a pause.
    pub(crate) fn add(&self, id: String) {
        self.begin(id, FIRST);
    }

    /// Tears a sandbox down in the background, first at once.
    pub(crate) fn now(&self, id: String) {
        self.begin(id, Duration::ZERO);
    }

    fn begin(&self, id: String, first: Duration) {
        let lock = |ids: &Mutex<BTreeSet<String>>, change: &dyn Fn(&mut BTreeSet<String>) -> bool| {
            change(&mut ids.lock().unwrap_or_else(PoisonError::into_inner))
        };
        if !lock(&self.ids, &|ids| ids.insert(id.clone())) {
            return;
        }
        let (shared, ids, turns) = (
            Weak::clone(&self.shared),
            Arc::clone(&self.ids),
            Arc::clone(&self.turns),
        );
        tokio::spawn(async move {
            let mut pause = first;
            loop {
                tokio::time::sleep(pause).await;
                let Ok(_turn) = turns.acquire().await else {
                    return;
                };
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                match shared.teardown(&id).await {
                    Ok(()) => break,
                    Err(error) => {
                        pause = (pause * 2).clamp(FIRST, LONGEST);
                        warn!(sandbox = %id, error = error.chain(), again_in = ?pause, "network teardown failed again");
                    }
                }
            }
            lock(&ids, &|ids| ids.remove(&id));
            info!(sandbox = %id, "network taken down in the background");
        });
    }
}
