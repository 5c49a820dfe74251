//! Recorded images, layers and leases, with their mirror in memory; and what keeps a layer from being collected.
//!
//! Locks, in the order in which they may be taken: `change` (held over database commits), `documents` (over the removal of one
//! small file), `holds` and `index` (short, memory only). Readers and the pod's path take the last two alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use holdfast_registry::{Digest, Reference};
use holdfast_store::gc::Lease;
use holdfast_store::{Db, Table};
use oci_spec::image::ImageConfiguration;

use crate::image::User;
use crate::index::{ImageRecord, Index, LayerRecord};
use crate::names::Names;
use crate::places::{Places, list};
use crate::{Config, Error, Image, Result, content, remove};

const IMAGES: Table<ImageRecord> = Table::new("images", 1);
pub(crate) const LAYERS: Table<LayerRecord> = Table::new("layers", 1);
pub(crate) const LEASES: Table<Lease> = Table::new("leases", 1);

/// A layer whose directory is in place and synced.
#[derive(Debug)]
pub(crate) struct NewLayer {
    pub chain: Digest,
    pub record: LayerRecord,
}

/// An image whose layers are recorded and whose documents are synced.
#[derive(Debug)]
pub(crate) struct NewImage {
    pub id: Digest,
    pub names: Names,
    pub layers: Vec<Digest>,
    pub blobs: Vec<Digest>,
    pub blob_bytes: u64,
    pub config: ImageConfiguration,
}

/// What must not be collected, besides what images need.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    pub snapshots: HashMap<String, Vec<Digest>>,
    /// Layers and documents of pulls and loads in flight.
    pub working: BTreeMap<u64, Vec<Digest>>,
    next: u64,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) db: Db,
    index: RwLock<Index>,
    pub(crate) holds: Arc<Mutex<Holds>>,
    pub(crate) change: Mutex<()>,
    /// Held over the removal of a document, and where a pull begins to work on some.
    pub(crate) documents: Mutex<()>,
    next_dir: AtomicU64,
    pub(crate) retry_window: Duration,
    pinned: Vec<String>,
}

/// Keeps content of a pull in flight; dropped with it.
#[derive(Debug)]
pub(crate) struct Working {
    key: u64,
    holds: Arc<Mutex<Holds>>,
}

impl Drop for Working {
    fn drop(&mut self) {
        lock(&self.holds).working.remove(&self.key);
    }
}

impl State {
    /// Reads everything, and removes from disk and records what is not whole.
    pub fn open(places: &Places, config: &Config) -> Result<Self> {
        let db = Db::open(places.images.join("images.redb"))?;
        let reader = db.read()?;
        let (images, layers) = (reader.all(&IMAGES)?, reader.all(&LAYERS)?);
        drop(reader);
        for entry in list(&places.tmp)? {
            remove::tree(&entry, &places.tmp).map_err(|e| Error::io("remove", &entry, e))?;
        }
        let mut state = Self {
            db,
            index: RwLock::default(),
            holds: Arc::default(),
            change: Mutex::default(),
            documents: Mutex::default(),
            next_dir: AtomicU64::new(1),
            retry_window: config.retry_window,
            pinned: config.pinned.iter().map(|name| full_name(name)).collect(),
        };
        let mut index = Index::default();
        let mut lost_layers = Vec::new();
        for (chain, record) in layers {
            match Digest::parse(&chain) {
                Ok(digest) if places.layer(&record).is_dir() => {
                    index.layers.insert(digest, Arc::new(record));
                }
                _ => lost_layers.push(chain),
            }
        }
        let mut lost_images = Vec::new();
        for (key, record) in images {
            match state.restore(&key, &record, &index, places) {
                Ok(image) => index.put(Arc::new(image), record),
                Err(error) => {
                    tracing::warn!(image = key, %error, names = ?record.tags, "image is no longer whole and is forgotten");
                    lost_images.push(key);
                }
            }
        }
        state.forget(&lost_images, &lost_layers)?;
        state.sweep(places, &index)?;
        state.index = RwLock::new(index);
        Ok(state)
    }

    fn restore(&self, key: &str, record: &ImageRecord, index: &Index, places: &Places) -> Result<Image> {
        let id = Digest::parse(key)?;
        let damaged = |reason: &str| Error::Document {
            document: "image",
            digest: key.to_owned(),
            reason: reason.into(),
        };
        if record
            .layers
            .iter()
            .any(|chain| !index.layers.contains_key(chain))
        {
            return Err(damaged("a layer is missing"));
        }
        let json = content::get(places, &id, 1 << 30)?;
        let config = serde_json::from_slice(&json).map_err(|e| damaged(&e.to_string()))?;
        Ok(self.image(id, record, config, index))
    }

    fn image(&self, id: Digest, record: &ImageRecord, config: ImageConfiguration, index: &Index) -> Image {
        let user = config
            .config()
            .as_ref()
            .and_then(|c| c.user().as_deref())
            .and_then(User::parse);
        let mut image = Image {
            id,
            repo_tags: record.tags.clone(),
            repo_digests: record.digests.clone(),
            size: index.layer_bytes(&record.layers) + record.blob_bytes,
            config,
            layers: record.layers.clone(),
            pinned: record
                .tags
                .iter()
                .chain(&record.digests)
                .any(|name| self.pinned.contains(name)),
            user,
        };
        image.repo_tags.sort_unstable();
        image.repo_digests.sort_unstable();
        image
    }

    fn forget(&self, images: &[String], layers: &[String]) -> Result<()> {
        if images.is_empty() && layers.is_empty() {
            return Ok(());
        }
        Ok(self.db.write(|tx| {
            images
                .iter()
                .try_for_each(|key| tx.remove(&IMAGES, key).map(drop))?;
            layers
                .iter()
                .try_for_each(|key| tx.remove(&LAYERS, key).map(drop))
        })?)
    }

    /// Removes layer directories and documents that no record names: a crash came between rename and record.
    fn sweep(&self, places: &Places, index: &Index) -> Result<()> {
        let named: HashSet<PathBuf> = index.layers.values().map(|layer| places.layer(layer)).collect();
        for dir in list(&places.layers)? {
            if let Some(number) = dir
                .file_name()
                .and_then(|n| n.to_str())
                .and_then(|n| n.parse::<u64>().ok())
            {
                self.next_dir.fetch_max(number + 1, Ordering::Relaxed);
            }
            if !named.contains(&dir) {
                remove::tree(&dir, &places.tmp).map_err(|e| Error::io("remove", &dir, e))?;
            }
        }
        let needed: HashSet<PathBuf> = index
            .images
            .values()
            .flat_map(|k| &k.record.blobs)
            .map(|digest| content::path(places, digest))
            .collect();
        for algorithm in list(&places.blobs)? {
            for blob in list(&algorithm)?
                .into_iter()
                .filter(|path| !needed.contains(path))
            {
                std::fs::remove_file(&blob).map_err(|e| Error::io("remove", &blob, e))?;
            }
        }
        Ok(())
    }

    pub fn images(&self) -> Vec<Arc<Image>> {
        self.index()
            .images
            .values()
            .map(|known| Arc::clone(&known.image))
            .collect()
    }

    pub fn find(&self, reference: &str) -> Option<Arc<Image>> {
        self.index().find(reference).map(|known| Arc::clone(&known.image))
    }

    pub fn layer(&self, chain: &Digest) -> Option<Arc<LayerRecord>> {
        self.index().layers.get(chain).cloned()
    }

    /// Bytes and inodes of all layers and documents.
    pub fn usage(&self) -> (u64, u64) {
        let index = self.index();
        let (bytes, inodes) = index
            .layers
            .values()
            .fold((0, 0), |(b, i), l| (b + l.bytes, i + l.inodes));
        let documents = index.images.values().fold((0, 0), |(b, i), known| {
            (b + known.record.blob_bytes, i + known.record.blobs.len() as u64)
        });
        (bytes + documents.0, inodes + documents.1)
    }

    /// A number for a layer's directory that was never used before in this root.
    pub fn next_dir(&self) -> u64 {
        self.next_dir.fetch_add(1, Ordering::Relaxed)
    }

    /// Directories of an image, uppermost first.
    pub fn lowers(&self, id: &Digest, places: &Places) -> Result<Vec<PathBuf>> {
        let layers = self
            .index()
            .images
            .get(id)
            .map(|known| known.record.layers.clone());
        self.lowers_of(id, &layers.ok_or_else(|| absent(id))?, places)
    }

    /// Directories of a chain of layers, uppermost first, down to one that hides the rest.
    pub fn lowers_of(&self, id: &Digest, chain: &[Digest], places: &Places) -> Result<Vec<PathBuf>> {
        let index = self.index();
        let mut lowers = Vec::with_capacity(chain.len());
        for layer in chain.iter().rev() {
            let layer = index.layers.get(layer).ok_or_else(|| absent(id))?;
            lowers.push(places.layer(layer));
            if layer.opaque {
                break;
            }
        }
        Ok(lowers)
    }

    /// Keeps `content` from being collected until the guard is dropped.
    pub fn work_on(&self, content: Vec<Digest>) -> Working {
        // A document is either held before it is removed, or known to be gone.
        let _documents = lock(&self.documents);
        let mut holds = lock(&self.holds);
        holds.next += 1;
        let key = holds.next;
        holds.working.insert(key, content);
        drop(holds);
        Working {
            key,
            holds: Arc::clone(&self.holds),
        }
    }

    /// Keeps an image's layers for a snapshot, and gives them, lowest first.
    pub fn hold_image(&self, key: &str, id: &Digest) -> Result<Vec<Digest>> {
        let mut holds = lock(&self.holds);
        let layers = self
            .index()
            .images
            .get(id)
            .map(|known| known.record.layers.clone())
            .ok_or_else(|| absent(id))?;
        holds.snapshots.insert(key.to_owned(), layers.clone());
        Ok(layers)
    }

    pub fn hold_snapshot(&self, key: &str, layers: Vec<Digest>) {
        lock(&self.holds).snapshots.insert(key.to_owned(), layers);
    }

    /// Ends the hold of a snapshot. Says whether no image needs one of its layers now.
    pub fn release_snapshot(&self, key: &str) -> bool {
        let Some(layers) = lock(&self.holds).snapshots.remove(key) else {
            return false;
        };
        let Some(top) = layers.last() else { return false };
        // Whoever needs the uppermost layer needs all of them.
        !self
            .index()
            .images
            .values()
            .any(|known| known.record.layers.contains(top))
    }

    /// Records layers, under the lease of the pull `lease`, so that a pull that fails later can be tried again. One that is on
    /// record already stays as it is: snapshots may use it. Says of each whether it was recorded.
    pub fn commit_layers(&self, lease: &str, new: &[NewLayer]) -> Result<Vec<bool>> {
        let _change = lock(&self.change);
        let recorded: Vec<bool> = {
            let index = self.index();
            new.iter()
                .map(|layer| !index.layers.contains_key(&layer.chain))
                .collect()
        };
        let fresh = || new.iter().zip(&recorded).filter(|(_, fresh)| **fresh);
        self.db.write(|tx| -> Result<()> {
            let mut held = tx.get(&LEASES, lease)?.unwrap_or_default();
            held.until = Lease::lasting(self.retry_window).until;
            for (layer, _) in fresh() {
                tx.put(&LAYERS, layer.chain.as_str(), &layer.record)?;
            }
            new.iter().for_each(|layer| held.hold(layer.chain.as_str()));
            Ok(tx.put(&LEASES, lease, &held)?)
        })?;
        let mut index = self.index_mut();
        for (layer, _) in fresh() {
            index
                .layers
                .insert(layer.chain.clone(), Arc::new(layer.record.clone()));
        }
        drop(index);
        Ok(recorded)
    }

    /// Records an image, takes its tags from those that had them, and ends the lease.
    pub fn commit_image(&self, lease: &str, new: NewImage) -> Result<()> {
        let _change = lock(&self.change);
        let mut record = ImageRecord {
            tags: new.names.tags,
            digests: new.names.digests,
            layers: new.layers,
            blobs: new.blobs,
            blob_bytes: new.blob_bytes,
        };
        let mut robbed = Vec::new();
        {
            let index = self.index();
            for (id, known) in &index.images {
                let mut other = known.record.clone();
                if *id == new.id {
                    // The same image under one more name. Documents that differ came from another manifest of it.
                    merge(&mut record.tags, &other.tags);
                    merge(&mut record.digests, &other.digests);
                    if merge(&mut record.blobs, &other.blobs) {
                        record.blob_bytes += other.blob_bytes;
                    }
                    continue;
                }
                other.tags.retain(|tag| !record.tags.contains(tag));
                other.digests.retain(|name| !record.digests.contains(name));
                if other != known.record {
                    robbed.push((Arc::clone(&known.image), other));
                }
            }
        }
        self.db.write(|tx| -> Result<()> {
            tx.put(&IMAGES, new.id.as_str(), &record)?;
            for (image, other) in &robbed {
                tx.put(&IMAGES, image.id.as_str(), other)?;
            }
            tx.remove(&LEASES, lease)?;
            Ok(())
        })?;
        let mut index = self.index_mut();
        for (old, other) in robbed {
            let image = self.image(old.id.clone(), &other, old.config.clone(), &index);
            index.put(Arc::new(image), other);
        }
        let image = self.image(new.id, &record, new.config, &index);
        index.put(Arc::new(image), record);
        Ok(())
    }

    pub fn remove_image(&self, id: &Digest) -> Result<()> {
        let _change = lock(&self.change);
        self.db.write(|tx| tx.remove(&IMAGES, id.as_str()))?;
        self.index_mut().remove(id);
        Ok(())
    }

    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As images are recorded: an operator may write `busybox`, and means `docker.io/library/busybox:latest`.
fn full_name(name: &str) -> String {
    let parsed = Reference::parse(name).ok();
    let full = parsed.and_then(|reference| match reference.digest() {
        Some(digest) => Some(reference.with_digest(digest)),
        None => reference.tagged(),
    });
    full.unwrap_or_else(|| name.to_owned())
}

fn absent(id: &Digest) -> Error {
    Error::NotFound {
        reference: id.to_string(),
    }
}

/// Adds what is missing; says whether anything was.
fn merge<T: Clone + PartialEq>(into: &mut Vec<T>, from: &[T]) -> bool {
    let before = into.len();
    for item in from {
        if !into.contains(item) {
            into.push(item.clone());
        }
    }
    into.len() != before
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
