//! What brings one layer here: fetched on the runtime, unpacked aside on threads of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use holdfast_registry::Descriptor;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::Feed;
use crate::images::Shared;
use crate::inflight::Progress;
use crate::layers::{Claim, Claimed};
use crate::manifest::LayerPlan;
use crate::pipeline::{self, CHUNKS, Job};
use crate::unpack::Unpacked;
use crate::{Error, Result, remove, threads};

/// Bytes between two reports of progress.
const REPORT: u64 = 1 << 20;

/// A layer that needs nothing any more, or only its commit.
pub(super) enum Ready {
    Present,
    Made(Box<Made>),
}

/// A layer unpacked aside.
pub(super) struct Made {
    pub place: usize,
    pub plan: LayerPlan,
    pub dir: Aside,
    pub left: Unpacked,
    /// Held until the layer is recorded.
    _claim: Claim,
}

/// A directory in `tmp` that is removed unless it was taken.
pub(super) struct Aside {
    pub path: PathBuf,
    tmp: PathBuf,
    pub taken: bool,
}

impl Drop for Aside {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let (path, tmp) = (std::mem::take(&mut self.path), std::mem::take(&mut self.tmp));
        let removal = move || {
            if let Err(error) = remove::tree(&path, &tmp) {
                tracing::warn!(dir = %path.display(), %error, "an unfinished layer could not be removed");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(removal)),
            Err(_) => removal(),
        }
    }
}

/// What brings one layer.
pub(super) struct Worker {
    pub shared: Arc<Shared>,
    pub plan: LayerPlan,
    pub place: usize,
    pub feed: Feed,
    pub step: watch::Sender<Progress>,
}

impl Worker {
    pub async fn run(self, permits: Arc<Semaphore>) -> (usize, Result<Ready>) {
        let place = self.place;
        loop {
            match self.shared.claims.claim(&self.plan.chain) {
                Claimed::Busy(mut busy) => {
                    // Ends when the other one does; whether it went well shows in the next turn.
                    while busy.changed().await.is_ok() {}
                }
                Claimed::Mine(claim) => {
                    // Asked under the claim: whoever held it before has recorded by now.
                    if self.shared.state.layer(&self.plan.chain).is_some() {
                        return (place, Ok(Ready::Present));
                    }
                    // Of this pull, and of all. Neither is ever closed.
                    let _permit = permits.acquire().await;
                    let slot = Arc::clone(&self.shared.slots).acquire_owned().await.ok();
                    let made = self.make(claim, slot).await;
                    return (place, made.map(|made| Ready::Made(Box::new(made))));
                }
            }
        }
    }

    async fn make(self, claim: Claim, slot: Option<OwnedSemaphorePermit>) -> Result<Made> {
        let places = &self.shared.places;
        let dir = Aside {
            path: places.aside(),
            tmp: places.tmp.clone(),
            taken: false,
        };
        let blob = self.plan.blob.clone();
        let name = blob.as_ref().map_or(&self.plan.diff_id, |b| &b.digest).clone();
        let job = Job {
            blob: blob.as_ref().map(|b| b.digest.clone()),
            diff_id: self.plan.diff_id.clone(),
            // Without a compressed size there is no ratio; the bound on a layer's bytes holds.
            size: blob.as_ref().map_or(u64::MAX, |b| b.size),
            target: dir.path.clone(),
            scratch: places.tmp.clone(),
            limits: self.shared.config.limits.clone(),
        };
        let (chunks, counted) = mpsc::channel::<Bytes>(CHUNKS);
        // Claim, directory and slot go along: an aborted pull must not free them before the threads have stopped.
        let unpacking = threads::run("inflate", move || {
            let made = std::fs::DirBuilder::new()
                .create(&dir.path)
                .map_err(|e| Error::io("make", &dir.path, e));
            let unpacked = made.and_then(|()| {
                pipeline::run(job, counted).map_err(|e| Error::Layer {
                    layer: name,
                    source: Box::new(e),
                })
            });
            drop(slot);
            (unpacked, dir, claim)
        })
        .map_err(|e| Error::io("start a thread for a layer in", &places.tmp, e))?;
        let fed = self.fetch(blob, chunks).await;
        let ended = unpacking.await;
        // A source that broke off explains whatever unpacking says of the rest.
        fed?;
        let (unpacked, dir, claim) =
            ended.map_err(|e| Error::io("unpack a layer in", &places.tmp, std::io::Error::other(e)))?;
        Ok(Made {
            place: self.place,
            plan: self.plan,
            dir,
            left: unpacked?,
            _claim: claim,
        })
    }

    /// Feeds the pipeline and counts.
    async fn fetch(&self, blob: Option<Descriptor>, chunks: mpsc::Sender<Bytes>) -> Result<()> {
        let (counted, mut arriving) = mpsc::channel::<Bytes>(1);
        let feeding = (self.feed)(blob, self.place, counted);
        let unreported = AtomicU64::new(0);
        let report = |least: u64| {
            if unreported.load(Ordering::Relaxed) >= least.max(1) {
                let bytes = unreported.swap(0, Ordering::Relaxed);
                self.step.send_modify(|p| p.bytes_done += bytes);
            }
        };
        let passing = async {
            while let Some(chunk) = arriving.recv().await {
                unreported.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                report(REPORT);
                if chunks.send(chunk).await.is_err() {
                    break;
                }
            }
            // Tells the source that nobody listens any more.
            arriving.close();
            while arriving.recv().await.is_some() {}
            drop(chunks);
        };
        let (fed, ()) = tokio::join!(feeding, passing);
        report(0);
        fed
    }
}
