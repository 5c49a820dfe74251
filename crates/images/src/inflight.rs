//! Pulls in flight: who may join one, and the end of one that nobody waits for any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use holdfast_registry::{Auth, Platform, Reference};
use tokio::sync::watch;

use crate::images::Shared;
use crate::pull::{self, PullRequest};
use crate::{Error, ImageId, Result};

/// How far a pull is. Sizes are of compressed layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Layers of the image; 0 while its manifest is not known.
    pub layers: usize,
    /// Layers that are here, those of earlier pulls included.
    pub layers_done: usize,
    /// Bytes to fetch, without layers that were here before.
    pub bytes: u64,
    /// Bytes fetched.
    pub bytes_done: u64,
}

/// What two requests must agree on to be one pull. A credential that differs may see another image behind the same name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Key {
    pub reference: Reference,
    pub platform: Platform,
    pub handler: String,
    pub auth: Option<Auth>,
}

type Outcome = Option<Result<ImageId, Arc<Error>>>;

/// One running pull. It lives as long as somebody waits for it.
#[derive(Debug)]
struct Running {
    key: Key,
    outcome: watch::Receiver<Outcome>,
    progress: watch::Receiver<Progress>,
    task: tokio::task::AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All running pulls, by reference.
#[derive(Debug, Default)]
pub(crate) struct Inflight {
    running: Mutex<HashMap<String, Vec<Weak<Running>>>>,
}

/// Joins the pull of an equal request, or begins one, and waits for it.
pub(crate) async fn pull(
    shared: &Arc<Shared>,
    request: PullRequest,
    progress: impl Fn(Progress) + Send,
) -> Result<ImageId> {
    let reference = Reference::parse(&request.reference)?;
    let key = Key {
        reference,
        platform: request.platform.unwrap_or_else(|| shared.config.platform.clone()),
        handler: request.handler,
        auth: request.auth,
    };
    let running = join_or_begin(shared, key);
    let (mut outcome, mut steps) = (running.outcome.clone(), running.progress.clone());
    loop {
        tokio::select! {
            ended = outcome.wait_for(Option::is_some) => {
                progress(*steps.borrow());
                let result = ended.ok().and_then(|o| o.clone());
                return match result {
                    Some(Ok(id)) => Ok(id),
                    Some(Err(error)) => Err(Error::Shared(error)),
                    None => Err(Error::Interrupted { reference: request.reference }),
                };
            }
            Ok(()) = steps.changed() => {
                let now = *steps.borrow_and_update();
                progress(now);
            }
        }
    }
}

fn join_or_begin(shared: &Arc<Shared>, key: Key) -> Arc<Running> {
    let mut all = shared
        .inflight
        .running
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    all.retain(|_, pulls| {
        pulls.retain(|p| p.strong_count() > 0);
        !pulls.is_empty()
    });
    let pulls = all.entry(key.reference.to_string()).or_default();
    let equal = pulls
        .iter()
        .filter_map(Weak::upgrade)
        .find(|p| p.key == key && p.outcome.borrow().is_none());
    if let Some(running) = equal {
        return running;
    }
    let (report, outcome) = watch::channel(None);
    let (step, progress) = watch::channel(Progress::default());
    let task = tokio::spawn({
        let (shared, key) = (Arc::clone(shared), key.clone());
        async move {
            let result = pull::run(&shared, &key, &step).await;
            report.send_replace(Some(result.map_err(Arc::new)));
        }
    });
    let running = Arc::new(Running {
        key,
        outcome,
        progress,
        task: task.abort_handle(),
    });
    pulls.push(Arc::downgrade(&running));
    running
}
