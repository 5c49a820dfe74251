//! The layers of one image, from wherever they come, fetched and unpacked side by side and committed in order.

mod worker;

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_registry::{Blob, Descriptor, Digest};
use rustix::fs::{Mode, OFlags};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::commit::Ground;
use crate::effort::Effort;
use crate::images::Shared;
use crate::index::LayerRecord;
use crate::inflight::Progress;
use crate::manifest::{Documents, LayerPlan};
use crate::state::{NewImage, NewLayer, Working};
use crate::{Error, Result, commit, content, threads};
use worker::{Made, Ready, Turns, Worker};

/// Sends the bytes of a layer: its blob, its place in the image (0 is lowest), where to. Gives the registry's stream back, which
/// may have to be told that the bytes were wrong.
pub(crate) type Feed = Arc<dyn Fn(Option<Descriptor>, usize, mpsc::Sender<Bytes>) -> Feeding + Send + Sync>;
type Feeding = Pin<Box<dyn Future<Output = Result<Option<Blob>>> + Send>>;

/// One pull or load, from the first byte that it writes to its record. Dropping it asks work that is under way to stop; what the
/// work needs is kept until it has.
pub(crate) struct Bringing {
    work: Arc<Work>,
}

struct Work {
    shared: Arc<Shared>,
    lease: String,
    /// See [`handle`].
    disk: OwnedFd,
    effort: Effort,
    /// What must not be collected meanwhile.
    _kept: Vec<Working>,
}

impl Drop for Bringing {
    fn drop(&mut self) {
        self.work.effort.stop();
    }
}

impl Bringing {
    /// Before anything is written.
    pub fn begin(shared: &Arc<Shared>, lease: String, kept: Vec<Working>) -> Result<Self> {
        Ok(Self {
            work: Arc::new(Work {
                lease,
                disk: handle(&shared.places.layers)?,
                effort: Effort::new(shared.config.limits.lookups),
                _kept: kept,
                shared: Arc::clone(shared),
            }),
        })
    }

    /// Writes documents whose digests were checked.
    pub async fn documents(&self, documents: Vec<(Digest, Bytes)>) -> Result<()> {
        blocking(&self.work, move |work| {
            documents
                .iter()
                .try_for_each(|(digest, bytes)| content::put(&work.shared.places, digest, bytes))
        })
        .await
    }

    /// Makes documents durable, records the image, and frees what its names no longer mean.
    pub async fn record(&self, new: NewImage) -> Result<()> {
        blocking(&self.work, move |work| {
            sync(&work.disk, &work.shared.places.layers)?;
            work.shared.state.commit_image(&work.lease, new)?;
            // A pull's buffers are large and rare: what the allocator kept of them goes back.
            holdfast_sys::heap::trim();
            Ok(())
        })
        .await
    }

    /// Brings all layers here. What was whole before a failure stays under the lease.
    pub async fn layers(
        &self,
        documents: &Documents,
        feed: Feed,
        step: &watch::Sender<Progress>,
    ) -> Result<()> {
        let shared = &self.work.shared;
        announce(shared, documents, step);
        let turns = Arc::new(Turns::new(&shared.config));
        let fetched = Arc::default();
        let mut tasks = JoinSet::new();
        for (place, plan) in documents.layers.iter().cloned().enumerate() {
            let worker = Worker {
                shared: Arc::clone(shared),
                plan,
                place,
                feed: Arc::clone(&feed),
                step: step.clone(),
                fetched: Arc::clone(&fetched),
            };
            tasks.spawn(worker.run(Arc::clone(&turns)));
        }
        self.gather(documents, tasks, step).await
    }

    /// Commits layers as soon as all below them are there.
    async fn gather(
        &self,
        documents: &Documents,
        mut tasks: JoinSet<(usize, Result<Ready>)>,
        step: &watch::Sender<Progress>,
    ) -> Result<()> {
        let count = documents.layers.len();
        let mut ready: Vec<Option<Ready>> = (0..count).map(|_| None).collect();
        let mut next = 0;
        let mut failure = None;
        while let Some(joined) = tasks.join_next().await {
            match joined {
                Ok((place, Ok(layer))) => ready[place] = Some(layer),
                Ok((_, Err(error))) => {
                    failure.get_or_insert(error);
                    tasks.abort_all();
                }
                // Aborted after a failure, or at the end of the runtime.
                Err(e) if e.is_cancelled() => {}
                Err(e) => {
                    failure.get_or_insert(Error::io(
                        "unpack a layer in",
                        &self.work.shared.places.tmp,
                        std::io::Error::other(e),
                    ));
                    tasks.abort_all();
                }
            }
            let mut batch = Vec::new();
            while let Some(layer) = ready.get_mut(next).and_then(Option::take) {
                next += 1;
                match layer {
                    Ready::Made(made) => batch.push(*made),
                    Ready::Present => step.send_modify(|p| p.layers_done += 1),
                }
            }
            if batch.is_empty() {
                continue;
            }
            let (done, chain) = (batch.len(), documents.layers.clone());
            let committed = lasting(&self.work, move |work| commit_batch(work, &chain, batch)).await;
            match committed {
                Ok(()) => step.send_modify(|p| p.layers_done += done),
                Err(error) => {
                    failure.get_or_insert(error);
                    tasks.abort_all();
                }
            }
        }
        match failure {
            Some(error) => Err(error),
            None if next == count => Ok(()),
            None => Err(Error::Interrupted {
                reference: documents.id.to_string(),
            }),
        }
    }
}

/// Says how much is to be done.
fn announce(shared: &Shared, documents: &Documents, step: &watch::Sender<Progress>) {
    let missing = documents
        .layers
        .iter()
        .filter(|l| shared.state.layer(&l.chain).is_none());
    let bytes = missing
        .filter_map(|l| Some(l.blob.as_ref()?.size))
        .fold(0, u64::saturating_add);
    step.send_modify(|p| {
        *p = Progress {
            layers: documents.layers.len(),
            bytes,
            ..*p
        }
    });
}

/// Settles layers over each other, puts them in their places, syncs once, records.
fn commit_batch(work: &Work, chain: &[LayerPlan], mut batch: Vec<Made>) -> Result<()> {
    let shared = &work.shared;
    let places = &shared.places;
    let first = batch.first().map_or(0, |made| made.place);
    let below: Vec<Digest> = chain[..first].iter().map(|plan| plan.chain.clone()).collect();
    let top = below.last().cloned().unwrap_or_else(|| chain[0].chain.clone());
    let mut lowers = shared.state.lowers_of(&top, &below, places)?;
    let mut at = first;
    for made in &mut batch {
        // Between two layers of a batch there may be some that were here before.
        for present in &chain[at..made.place] {
            lowers.splice(
                0..0,
                shared
                    .state
                    .lowers_of(&present.chain, std::slice::from_ref(&present.chain), places)?,
            );
        }
        at = made.place + 1;
        let ground = Ground {
            lowers: &lowers,
            scratch: &places.tmp,
            limits: &shared.config.limits,
            effort: &work.effort,
        };
        commit::settle(&made.dir.path, &mut made.left, &ground).map_err(|e| Error::Layer {
            layer: made
                .plan
                .blob
                .as_ref()
                .map_or(&made.plan.diff_id, |b| &b.digest)
                .clone(),
            source: Box::new(e),
        })?;
        if made.left.opaque_root {
            lowers.clear();
        }
        lowers.insert(0, made.dir.path.clone());
    }
    let mut new = Vec::with_capacity(batch.len());
    for made in &mut batch {
        let record = LayerRecord {
            dir: shared.state.next_dir(),
            parent: made.place.checked_sub(1).map(|n| chain[n].chain.clone()),
            diff_id: made.plan.diff_id.clone(),
            bytes: made.left.bytes,
            inodes: made.left.inodes,
            opaque: made.left.opaque_root,
        };
        let target = places.layer(&record);
        std::fs::rename(&made.dir.path, &target).map_err(|e| Error::io("move into place", &target, e))?;
        // From now on it is removed from there if the rest fails.
        made.dir.path = target;
        new.push(NewLayer {
            chain: made.plan.chain.clone(),
            record,
        });
    }
    sync(&work.disk, &places.layers)?;
    if work.effort.is_stopped() {
        // Nobody would know what they are for.
        return Err(Error::Interrupted {
            reference: work.lease.clone(),
        });
    }
    // One that another pull has recorded meanwhile is removed again.
    let recorded = shared.state.commit_layers(&work.lease, &new)?;
    for (made, taken) in batch.iter_mut().zip(recorded) {
        made.dir.taken = taken;
    }
    Ok(())
}

/// A descriptor for [`sync`]. One that was opened before the writing reports errors of writes since then (syncfs(2)); each
/// pull has one of its own, from its beginning to its record, as an error is reported once per descriptor.
fn handle(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| Error::io("open", dir, e))
}

/// Brings everything written so far on this file system to the disk: one call in place of an fsync for each of ten thousand files.
fn sync(disk: &OwnedFd, dir: &Path) -> Result<()> {
    rustix::fs::syncfs(disk).map_err(|e| Error::io("sync", dir, e))
}

/// Runs work whose length an image decides, such as copies of what it links to, on a thread of its own.
async fn lasting<R: Send + 'static>(
    of: &Arc<Work>,
    work: impl FnOnce(&Work) -> Result<R> + Send + 'static,
) -> Result<R> {
    let at = of.shared.places.layers.clone();
    let of = Arc::clone(of);
    let running = threads::run("commit", move || work(&of))
        .map_err(|e| Error::io("start a thread for work on", &at, e))?;
    running
        .await
        .unwrap_or_else(|e| Err(Error::io("finish work on", at, std::io::Error::other(e))))
}

async fn blocking<R: Send + 'static>(
    of: &Arc<Work>,
    work: impl FnOnce(&Work) -> Result<R> + Send + 'static,
) -> Result<R> {
    let at = of.shared.places.images.clone();
    let of = Arc::clone(of);
    match tokio::task::spawn_blocking(move || work(&of)).await {
        Ok(result) => result,
        Err(e) => Err(Error::io("finish work on", at, std::io::Error::other(e))),
    }
}
