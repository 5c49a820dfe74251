//! What brings one layer here: fetched on the runtime, unpacked aside on threads of its own.

use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use holdfast_registry::{Blob, Descriptor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::Feed;
use crate::error::UnpackError;
use crate::images::Shared;
use crate::inflight::Progress;
use crate::layers::{Claim, Claimed, Patience};
use crate::manifest::LayerPlan;
use crate::pipeline::{self, CHUNKS, COMPRESSED, Job, Refused};
use crate::unpack::Unpacked;
use crate::{Config, Error, Result, remove, threads};

/// Bytes between two reports of progress.
const REPORT: u64 = 128 << 10;

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
    /// Held, if it has one, until the layer is recorded.
    _claim: Option<Claim>,
}

/// One try to make a layer.
struct Tried {
    unpacked: std::result::Result<Unpacked, Refused>,
    dir: Aside,
    claim: Option<Claim>,
    slot: Option<OwnedSemaphorePermit>,
    /// The stream, if a registry gave it.
    blob: Option<Blob>,
    fetched: u64,
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

/// When layers of one pull are worked on.
pub(super) struct Turns {
    /// As many at a time.
    of_pull: Semaphore,
    /// One that needs no slot of those that all pulls share: others may hold these for as long as their registries like.
    own: Arc<Semaphore>,
}

impl Turns {
    pub fn new(config: &Config) -> Self {
        Self {
            of_pull: Semaphore::new(config.parallel_layers.max(1)),
            own: Arc::new(Semaphore::new(1)),
        }
    }

    /// None of the semaphores is ever closed.
    async fn slot(&self, shared: &Shared) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            biased;
            own = Arc::clone(&self.own).acquire_owned() => own.ok(),
            slot = Arc::clone(&shared.slots).acquire_owned() => slot.ok(),
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
    /// Bytes that this pull has fetched of all its layers.
    pub fetched: Arc<AtomicU64>,
}

impl Worker {
    pub async fn run(self, turns: Arc<Turns>) -> (usize, Result<Ready>) {
        (self.place, self.bring(&turns).await)
    }

    async fn bring(self, turns: &Turns) -> Result<Ready> {
        let claim = self.claim().await;
        // Asked under the claim: whoever held it before has recorded by now.
        if self.is_present() {
            return Ok(Ready::Present);
        }
        let _turn = turns.of_pull.acquire().await;
        let slot = turns.slot(&self.shared).await;
        // Somebody may have made it without a claim meanwhile.
        if self.is_present() {
            return Ok(Ready::Present);
        }
        let made = self.make(claim, slot).await?;
        Ok(Ready::Made(Box::new(made)))
    }

    /// The claim; `None` if another pull has it and comes no further. Then the layer is made twice, and recorded once.
    async fn claim(&self) -> Option<Claim> {
        let patience = Patience::new(self.shared.config.patience);
        loop {
            let busy = match self.shared.claims.claim(&self.plan.chain, &self.fetched) {
                Claimed::Mine(claim) => return Some(claim),
                Claimed::Busy(busy) => busy,
            };
            if !busy.over(patience).await {
                tracing::info!(layer = %self.plan.diff_id, "another pull comes no further with a layer, which is made once more");
                return None;
            }
        }
    }

    fn is_present(&self) -> bool {
        self.shared.state.layer(&self.plan.chain).is_some()
    }

    /// Makes the layer; once more where a host gave other bytes than it should have and another may have the right ones.
    async fn make(self, mut claim: Option<Claim>, mut slot: Option<OwnedSemaphorePermit>) -> Result<Made> {
        loop {
            let tried = self.attempt(claim, slot).await?;
            let refused = match tried.unpacked {
                Ok(left) => {
                    return Ok(Made {
                        place: self.place,
                        plan: self.plan,
                        dir: tried.dir,
                        left,
                        _claim: tried.claim,
                    });
                }
                Err(refused) => refused,
            };
            self.blame(tried.blob, refused)?;
            self.step
                .send_modify(|p| p.bytes_done = p.bytes_done.saturating_sub(tried.fetched));
            (claim, slot) = (tried.claim, tried.slot);
        }
    }

    /// Whether another host is asked for the layer; the error if that is of no use.
    fn blame(&self, blob: Option<Blob>, refused: Refused) -> Result<()> {
        let Refused { error, right } = refused;
        let Some(mut blob) = blob else {
            return Err(self.failed(error));
        };
        if let UnpackError::Mismatch {
            what: COMPRESSED,
            mismatch,
        } = error
        {
            return Ok(blob.reject(mismatch)?);
        }
        // Nobody has read these bytes to their end: another host may have others.
        if !right && error.is_of_its_bytes() && blob.suspect(&error) {
            return Ok(());
        }
        Err(self.failed(error))
    }

    fn failed(&self, source: UnpackError) -> Error {
        let blob = self.plan.blob.as_ref();
        Error::Layer {
            layer: blob.map_or(&self.plan.diff_id, |b| &b.digest).clone(),
            source: Box::new(source),
        }
    }

    async fn attempt(&self, claim: Option<Claim>, slot: Option<OwnedSemaphorePermit>) -> Result<Tried> {
        let places = &self.shared.places;
        let dir = Aside {
            path: places.aside(),
            tmp: places.tmp.clone(),
            taken: false,
        };
        let blob = &self.plan.blob;
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
            let made = std::fs::DirBuilder::new().create(&dir.path);
            let unpacked = made
                .map_err(|e| UnpackError::io("make", dir.path.as_os_str().as_bytes(), e).into())
                .and_then(|()| pipeline::run(job, counted));
            (unpacked, dir, claim, slot)
        })
        .map_err(|e| Error::io("start a thread for a layer in", &places.tmp, e))?;
        let (fed, fetched) = self.fetch(blob.clone(), chunks).await;
        let ended = unpacking.await;
        // A source that broke off explains whatever unpacking says of the rest.
        let blob = fed?;
        let (unpacked, dir, claim, slot) =
            ended.map_err(|e| Error::io("unpack a layer in", &places.tmp, std::io::Error::other(e)))?;
        Ok(Tried {
            unpacked,
            dir,
            claim,
            slot,
            blob,
            fetched,
        })
    }

    /// Feeds the pipeline, and counts what it gets.
    async fn fetch(
        &self,
        blob: Option<Descriptor>,
        chunks: mpsc::Sender<Bytes>,
    ) -> (Result<Option<Blob>>, u64) {
        let (counted, mut arriving) = mpsc::channel::<Bytes>(1);
        let feeding = (self.feed)(blob, self.place, counted);
        let (unreported, fetched) = (AtomicU64::new(0), AtomicU64::new(0));
        let report = |least: u64| {
            if unreported.load(Ordering::Relaxed) >= least.max(1) {
                let bytes = unreported.swap(0, Ordering::Relaxed);
                self.step.send_modify(|p| p.bytes_done += bytes);
            }
        };
        let passing = async {
            while let Some(chunk) = arriving.recv().await {
                unreported.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                fetched.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                self.fetched.fetch_add(chunk.len() as u64, Ordering::Relaxed);
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
        (fed, fetched.into_inner())
    }
}
