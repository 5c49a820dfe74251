//! The writable part of a container over the layers of its image. Pod state: no fsync anywhere here.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use holdfast_registry::Digest;
use holdfast_store::{Record, Records};
use serde::{Deserialize, Serialize};

use crate::images::Shared;
use crate::places::Places;
use crate::{Error, ImageId, Result, remove, volume};

/// What the launcher mounts as a container's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// File-system type: `overlay`.
    pub fs_type: &'static str,
    /// Read-only layers, uppermost first. Never empty.
    pub lowers: Vec<PathBuf>,
    /// Where writes go.
    pub upper: PathBuf,
    /// Overlay's scratch directory, beside `upper`.
    pub work: PathBuf,
    /// Further mount options. `volatile`: a crash of the machine loses the upper, so nothing ever syncs it.
    pub options: Vec<String>,
}

/// One range of a user namespace's id map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id inside.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many.
    pub count: u32,
}

/// How a snapshot is made.
#[derive(Debug, Clone, Default)]
pub struct PrepareOptions {
    /// Maps of the pod's user namespace: the upper's root directory then belongs to the mapped ids, as everything that the
    /// container writes will.
    pub uid_maps: Vec<IdMap>,
    /// The same for groups.
    pub gid_maps: Vec<IdMap>,
}

/// What is remembered about a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    image: Digest,
    /// Chain ids, lowest first.
    layers: Vec<Digest>,
}

impl Record for SnapshotRecord {}

/// Records of snapshots, mirrored in memory. `None` is a directory without a record.
#[derive(Debug)]
pub(crate) struct Snapshots {
    records: Records<SnapshotRecord>,
    known: Mutex<BTreeMap<String, Option<SnapshotRecord>>>,
}

impl Snapshots {
    pub fn open(places: &Places) -> Result<Self> {
        let opened = Records::<SnapshotRecord>::open(&places.snapshot_records)?;
        for lost in &opened.quarantined {
            tracing::warn!(snapshot = lost.key, reason = lost.reason, moved_to = %lost.moved_to.display(), "damaged snapshot record");
        }
        let mut known: BTreeMap<_, _> = opened
            .records
            .into_iter()
            .map(|(key, record)| (key, Some(record)))
            .collect();
        let listed =
            std::fs::read_dir(&places.snapshots).map_err(|e| Error::io("list", &places.snapshots, e))?;
        for entry in listed {
            let entry = entry.map_err(|e| Error::io("list", &places.snapshots, e))?;
            match entry.file_name().into_string() {
                // No key: what a trial of the file system left that was cut off.
                Ok(name) if name.starts_with('.') => {
                    let path = entry.path();
                    remove::tree(&path, &places.snapshots).map_err(|e| Error::io("remove", path, e))?;
                }
                Ok(name) => {
                    known.entry(name).or_insert(None);
                }
                Err(_) => {}
            }
        }
        Ok(Self {
            records: opened.store,
            known: Mutex::new(known),
        })
    }

    /// Every key with the layers it uses.
    pub fn layers(&self) -> Vec<(String, Vec<Digest>)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .iter()
            .filter_map(|(k, r)| Some((k.clone(), r.as_ref()?.layers.clone())))
            .collect()
    }

    pub fn keys(&self) -> Vec<String> {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .cloned()
            .collect()
    }
}

/// Makes the directories of a snapshot and its record: reserved in memory, recorded, then made.
pub(crate) fn prepare(
    shared: &Shared,
    key: &str,
    image: &ImageId,
    options: &PrepareOptions,
) -> Result<Snapshot> {
    let record = reserve(shared, key, image)?;
    let made = shared
        .snapshots
        .records
        .put(key, &record)
        .map_err(Error::from)
        .and_then(|()| build(shared, key, &record, options));
    take_back(shared, key, made)
}

/// Keeps the layers of an image that is a volume, and says where it, or `sub_path` of it, is. [`discard`] ends that.
pub(crate) fn volume(shared: &Shared, key: &str, image: &ImageId, sub_path: &str) -> Result<volume::Volume> {
    let record = reserve(shared, key, image)?;
    let made = shared
        .snapshots
        .records
        .put(key, &record)
        .map_err(Error::from)
        .and_then(|()| volume::of_image(shared, image, sub_path));
    take_back(shared, key, made)
}

/// Takes the key, and the image's layers out of the reach of collection.
fn reserve(shared: &Shared, key: &str, image: &ImageId) -> Result<SnapshotRecord> {
    if key.is_empty()
        || key.starts_with('.')
        || !key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    {
        return Err(Error::SnapshotKey { key: key.to_owned() });
    }
    let mut known = shared
        .snapshots
        .known
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if known.contains_key(key) {
        return Err(Error::SnapshotExists { key: key.to_owned() });
    }
    let layers = shared.state.hold_image(key, image)?;
    let record = SnapshotRecord {
        image: image.clone(),
        layers,
    };
    known.insert(key.to_owned(), Some(record.clone()));
    Ok(record)
}

fn take_back<T>(shared: &Shared, key: &str, made: Result<T>) -> Result<T> {
    made.inspect_err(|_| {
        if let Err(error) = discard(shared, key) {
            tracing::warn!(snapshot = key, %error, "a snapshot that could not be made could not be removed either");
        }
    })
}

/// The snapshot of `key`, if it has a record and its layers are here.
pub(crate) fn get(shared: &Shared, key: &str) -> Option<Snapshot> {
    let record = shared
        .snapshots
        .known
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(key)?
        .clone()?;
    describe(shared, key, &record).ok()
}

/// Removes a snapshot. Says whether layers may have become free by it.
pub(crate) fn discard(shared: &Shared, key: &str) -> Result<bool> {
    let known = shared
        .snapshots
        .known
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(key)
        .cloned();
    let Some(record) = known else { return Ok(false) };
    let dir = shared.places.snapshots.join(key);
    // Out of the way in one step, so that a crash in the middle leaves nothing that looks like a snapshot.
    let aside = shared.places.aside();
    match std::fs::rename(&dir, &aside) {
        // With itself as the scratch directory: the other may be of a project that takes nothing of this one.
        Ok(()) => remove::in_itself(&aside).map_err(|e| Error::io("remove", &aside, e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        // An administrator's project is on the images and not on the snapshots, or a mount is between them. The record is still
        // there: after a crash the rest is removed by it.
        Err(e) if e.kind() == std::io::ErrorKind::CrossesDevices => {
            remove::in_itself(&dir).map_err(|e| Error::io("remove", &dir, e))?;
        }
        Err(e) => return Err(Error::io("move aside", dir, e)),
    }
    shared.projects.release(key);
    if record.is_some() {
        shared.snapshots.records.remove(key)?;
    }
    shared
        .snapshots
        .known
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(key);
    Ok(shared.state.release_snapshot(key))
}

fn build(shared: &Shared, key: &str, record: &SnapshotRecord, options: &PrepareOptions) -> Result<Snapshot> {
    let snapshot = describe(shared, key, record)?;
    let dir = shared.places.snapshots.join(key);
    let io = |action, path: &Path| {
        let path = path.to_path_buf();
        move |e: std::io::Error| Error::io(action, path, e)
    };
    let make = |path: &Path, mode| {
        std::fs::DirBuilder::new()
            .mode(mode)
            .create(path)
            .map_err(io("make", path))
    };
    // What containers write is for root alone on the way in.
    make(&dir, 0o700)?;
    make(&snapshot.work, 0o700)?;
    make(&snapshot.upper, 0o700)?;
    shared.projects.assign(key, &snapshot.upper, &snapshot.work)?;
    // The upper's root is the container's `/`: it looks like that of the image.
    volume::look_like(&snapshot.upper, &snapshot.lowers[0], options)?;
    Ok(snapshot)
}

fn describe(shared: &Shared, key: &str, record: &SnapshotRecord) -> Result<Snapshot> {
    let dir = shared.places.snapshots.join(key);
    Ok(Snapshot {
        fs_type: "overlay",
        lowers: shared
            .state
            .lowers_of(&record.image, &record.layers, &shared.places)?,
        upper: dir.join("upper"),
        work: dir.join("work"),
        options: vec!["volatile".to_owned()],
    })
}

/// The id outside the user namespace; ids without a mapping, and all of them without a namespace, stay.
pub(crate) fn mapped(id: u32, maps: &[IdMap]) -> u32 {
    let map = maps
        .iter()
        .find(|m| id.checked_sub(m.container).is_some_and(|offset| offset < m.count));
    map.and_then(|m| m.host.checked_add(id - m.container))
        .unwrap_or(id)
}
