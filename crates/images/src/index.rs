//! What is known about images and layers, in memory: answers to List and Status come from here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use holdfast_registry::{Digest, Reference};
use serde::{Deserialize, Serialize};

use crate::Image;

/// What is recorded about an image, under its id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// `registry/repository:tag`. A tag belongs to one image.
    pub tags: Vec<String>,
    /// `registry/repository@digest`.
    pub digests: Vec<String>,
    /// Chain ids, lowest first.
    pub layers: Vec<Digest>,
    /// Documents in the content store: the configuration, manifests and indexes.
    pub blobs: Vec<Digest>,
    /// Bytes of these documents.
    pub blob_bytes: u64,
}

/// What is recorded about a layer, under its chain id (OCI image specification, "Layer ChainID").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Name of its directory.
    pub dir: u64,
    /// Chain id of the layer below.
    pub parent: Option<Digest>,
    pub diff_id: Digest,
    pub bytes: u64,
    pub inodes: u64,
    /// Its archive hides everything below (an opaque root, which overlayfs does not honour by itself).
    pub opaque: bool,
}

#[derive(Debug)]
pub(crate) struct Known {
    pub image: Arc<Image>,
    pub record: ImageRecord,
}

/// All of it. A change replaces parts under a short lock.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub images: BTreeMap<Digest, Known>,
    /// Tags and digests to image ids.
    pub names: HashMap<String, Digest>,
    pub layers: HashMap<Digest, Arc<LayerRecord>>,
}

/// Fewest digits that are taken as the beginning of an id.
const SHORTEST_PREFIX: usize = 6;

impl Index {
    /// The image that a reference means.
    pub fn find(&self, reference: &str) -> Option<&Known> {
        let by_id = |text: &str| Digest::parse(text).ok().and_then(|id| self.images.get(&id));
        let hex = reference.strip_prefix("sha256:").unwrap_or(reference);
        by_id(reference)
            .or_else(|| by_id(&format!("sha256:{hex}")))
            .or_else(|| self.by_name(reference))
            .or_else(|| self.by_prefix(hex))
    }

    fn by_name(&self, reference: &str) -> Option<&Known> {
        let reference = Reference::parse(reference).ok()?;
        let name = match reference.digest() {
            Some(digest) => reference.with_digest(digest),
            None => reference.tagged()?,
        };
        self.images.get(self.names.get(&name)?)
    }

    /// An id's beginning, as people copy it from a list; nothing if two ids begin so.
    fn by_prefix(&self, hex: &str) -> Option<&Known> {
        let digits =
            hex.len() >= SHORTEST_PREFIX && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut matching = self
            .images
            .iter()
            .filter(|(id, _)| digits && id.hex().starts_with(hex));
        let first = matching.next()?;
        matching.next().is_none().then_some(first.1)
    }

    /// Sets an image with its names.
    pub fn put(&mut self, image: Arc<Image>, record: ImageRecord) {
        self.names.retain(|_, id| *id != image.id);
        for name in record.tags.iter().chain(&record.digests) {
            self.names.insert(name.clone(), image.id.clone());
        }
        self.images.insert(image.id.clone(), Known { image, record });
    }

    pub fn remove(&mut self, id: &Digest) -> Option<Known> {
        self.names.retain(|_, named| named != id);
        self.images.remove(id)
    }

    /// Bytes of layers on disk, each counted once, for a chain of them.
    pub fn layer_bytes(&self, chain: &[Digest]) -> u64 {
        chain
            .iter()
            .filter_map(|c| self.layers.get(c))
            .map(|l| l.bytes)
            .sum()
    }
}
