//! The layers of one image, from wherever they come, fetched and unpacked side by side and committed in order.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use holdfast_registry::{Descriptor, Digest};
use rustix::fs::{Mode, OFlags};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::images::Shared;
use crate::index::LayerRecord;
use crate::inflight::Progress;
use crate::layers::{Claim, Claimed};
use crate::manifest::{Documents, LayerPlan};
use crate::pipeline::{self, CHUNKS, Job};
use crate::state::{NewImage, NewLayer};
use crate::unpack::Unpacked;
use crate::{Error, Result, commit, content, remove};

/// Sends the bytes of a layer: its blob, its place in the image (0 is lowest), where to.
pub(crate) type Feed = Arc<dyn Fn(Option<Descriptor>, usize, mpsc::Sender<Bytes>) -> Feeding + Send + Sync>;
type Feeding = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Bytes between two reports of progress.
const REPORT: u64 = 1 << 20;

/// A layer that needs nothing any more, or only its commit.
enum Ready {
    Present,
    Made(Box<Made>),
}

/// A layer unpacked aside.
struct Made {
    place: usize,
    plan: LayerPlan,
    dir: Aside,
    left: Unpacked,
    /// Held until the layer is recorded.
    _claim: Claim,
}

/// A directory in `tmp` that is removed unless it was taken.
struct Aside {
    path: PathBuf,
    tmp: PathBuf,
    taken: bool,
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

/// Writes documents whose digests were checked.
pub(crate) async fn documents(shared: &Arc<Shared>, documents: Vec<(Digest, Bytes)>) -> Result<()> {
    blocking(shared, move |shared| {
        documents
            .iter()
            .try_for_each(|(digest, bytes)| content::put(&shared.places, digest, bytes))
    })
    .await
}

/// Makes documents durable, records the image, and frees what its names no longer mean.
pub(crate) async fn record(shared: &Arc<Shared>, lease: String, new: NewImage) -> Result<()> {
    blocking(shared, move |shared| {
        sync(&handle(&shared.places.layers)?, &shared.places.layers)?;
        shared.state.commit_image(&lease, new)?;
        // A pull's buffers are large and rare: what the allocator kept of them goes back.
        holdfast_sys::heap::trim();
        Ok(())
    })
    .await
}

/// Brings all layers here. What was whole before a failure stays under the lease.
pub(crate) async fn layers(
    shared: &Arc<Shared>,
    documents: &Documents,
    lease: &str,
    feed: Feed,
    step: &watch::Sender<Progress>,
) -> Result<()> {
    let count = documents.layers.len();
    let missing = documents
        .layers
        .iter()
        .filter(|l| shared.state.layer(&l.chain).is_none());
    let bytes = missing
        .filter_map(|l| Some(l.blob.as_ref()?.size))
        .fold(0, u64::saturating_add);
    step.send_modify(|p| {
        *p = Progress {
            layers: count,
            bytes,
            ..*p
        }
    });
    let disk = Arc::new(handle(&shared.places.layers)?);
    let permits = Arc::new(Semaphore::new(shared.config.parallel_layers.max(1)));
    let mut tasks = JoinSet::new();
    for (place, plan) in documents.layers.iter().cloned().enumerate() {
        let worker = Worker {
            shared: Arc::clone(shared),
            plan,
            place,
            feed: Arc::clone(&feed),
            step: step.clone(),
        };
        tasks.spawn(worker.run(Arc::clone(&permits)));
    }
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
                    &shared.places.tmp,
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
        let (done, disk) = (batch.len(), Arc::clone(&disk));
        let (chain, lease) = (documents.layers.clone(), lease.to_owned());
        let committed = blocking(shared, move |shared| {
            commit_batch(shared, &disk, (&chain, &lease), batch)
        })
        .await;
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

/// What brings one layer.
struct Worker {
    shared: Arc<Shared>,
    plan: LayerPlan,
    place: usize,
    feed: Feed,
    step: watch::Sender<Progress>,
}

impl Worker {
    async fn run(self, permits: Arc<Semaphore>) -> (usize, Result<Ready>) {
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
                    let Ok(_permit) = permits.acquire().await else {
                        continue;
                    };
                    return (
                        place,
                        self.make(claim).await.map(|made| Ready::Made(Box::new(made))),
                    );
                }
            }
        }
    }

    async fn make(self, claim: Claim) -> Result<Made> {
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
        // The claim and the directory go along: an aborted pull must not free them before the threads have stopped.
        let unpacking = tokio::task::spawn_blocking(move || {
            let made = std::fs::DirBuilder::new()
                .create(&dir.path)
                .map_err(|e| Error::io("make", &dir.path, e));
            let unpacked = made.and_then(|()| {
                pipeline::run(job, counted).map_err(|e| Error::Layer {
                    layer: name,
                    source: Box::new(e),
                })
            });
            (unpacked, dir, claim)
        });
        let fed = self.fetch(blob, chunks).await;
        let joined = unpacking.await;
        // A source that broke off explains whatever unpacking says of the rest.
        fed?;
        let (unpacked, dir, claim) = joined.map_err(|e| {
            Error::io(
                "unpack a layer in",
                &self.shared.places.tmp,
                std::io::Error::other(e),
            )
        })?;
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

/// Settles layers over each other, puts them in their places, syncs once, records.
fn commit_batch(
    shared: &Shared,
    disk: &OwnedFd,
    (chain, lease): (&[LayerPlan], &str),
    mut batch: Vec<Made>,
) -> Result<()> {
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
        commit::settle(&made.dir.path, &mut made.left, &lowers, &places.tmp).map_err(|e| Error::Layer {
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
    sync(disk, &places.layers)?;
    shared.state.commit_layers(lease, &new)?;
    for made in &mut batch {
        made.dir.taken = true;
    }
    Ok(())
}

/// A descriptor for [`sync`]. One that was opened before the writing reports errors of writes since then (syncfs(2)); each
/// pull has its own, as an error is reported once per descriptor.
fn handle(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| Error::io("open", dir, e))
}

/// Brings everything written so far on this file system to the disk: one call in place of an fsync for each of ten thousand files.
fn sync(disk: &OwnedFd, dir: &Path) -> Result<()> {
    rustix::fs::syncfs(disk).map_err(|e| Error::io("sync", dir, e))
}

async fn blocking<R: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<R> + Send + 'static,
) -> Result<R> {
    let shared = Arc::clone(shared);
    let at = shared.places.images.clone();
    match tokio::task::spawn_blocking(move || work(&shared)).await {
        Ok(result) => result,
        Err(e) => Err(Error::io("finish work on", at, std::io::Error::other(e))),
    }
}
