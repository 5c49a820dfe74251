//! What containers have written over their images. A task walks the layers one after the other; everybody else is told
//! what it found last, and when.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use holdfast_model::{ContainerId, ContainerState};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use tokio::sync::Notify;
use tracing::debug;

use super::walk::{Walked, walk};
use super::{bounds, lock};
use crate::shared::{Shared, now};

/// A container's writable layer, as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// When it was measured: nanoseconds since 1970.
    pub at: i64,
    pub bytes: u64,
    pub inodes: u64,
}

/// The file system that the layers are on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// What is mounted, as /proc/self/mountinfo has it: `/dev/vda`.
    pub device: String,
    pub bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

#[derive(Default)]
pub(super) struct Layers {
    known: Mutex<HashMap<ContainerId, Known>>,
    file_system: Mutex<Option<FileSystem>>,
    /// A container has started: it has a layer that nobody has measured.
    pub(super) started: Arc<Notify>,
}

struct Known {
    layer: Option<Layer>,
    /// When it is measured next.
    due: Instant,
    gone: Arc<AtomicBool>,
}

impl Layers {
    pub(super) fn get(&self, id: &ContainerId) -> Option<Layer> {
        lock(&self.known).get(id)?.layer
    }

    pub(super) fn forget(&self, id: &ContainerId) {
        if let Some(known) = lock(&self.known).remove(id) {
            known.gone.store(true, Ordering::Relaxed);
        }
    }

    /// If it is due: what ends the walk early.
    fn begin(&self, id: &ContainerId) -> Option<Arc<AtomicBool>> {
        let mut known = lock(&self.known);
        let entry = known.entry(*id).or_insert_with(|| Known {
            layer: None,
            due: Instant::now(),
            gone: Arc::default(),
        });
        (entry.due <= Instant::now()).then(|| entry.gone.clone())
    }

    fn end(&self, id: &ContainerId, began: Instant, walked: Option<Walked>) {
        let took = began.elapsed();
        if let Some(entry) = lock(&self.known).get_mut(id) {
            entry.due = Instant::now() + bounds::LAYER_EVERY.max(took * bounds::LAYER_REST);
            if let Some(walked) = walked {
                if !walked.complete {
                    debug!(container = %id, "not all of its writable layer could be measured");
                }
                entry.layer = Some(Layer {
                    at: now(),
                    bytes: walked.bytes,
                    inodes: walked.inodes,
                });
            }
        }
    }

    pub(super) fn file_system(&self) -> Option<FileSystem> {
        lock(&self.file_system).clone()
    }
}

/// Measures what is due until the engine is gone.
pub(super) async fn measure(engine: Weak<Shared>) {
    let Some(started) = engine
        .upgrade()
        .map(|shared| shared.meters.layers.started.clone())
    else {
        return;
    };
    loop {
        let Some(shared) = engine.upgrade() else { return };
        round(&shared).await;
        drop(shared);
        tokio::select! {
            () = tokio::time::sleep(bounds::LAYER_EVERY) => {}
            () = started.notified() => {}
        }
    }
}

async fn round(shared: &Arc<Shared>) {
    let path = shared.images.path();
    let facts = tokio::task::spawn_blocking(move || file_system(&path)).await;
    if let Ok(Some(facts)) = facts {
        *lock(&shared.meters.layers.file_system) = Some(facts);
    }
    let layers = &shared.meters.layers;
    for record in shared.views.containers.all() {
        if record.state == ContainerState::Creating {
            continue;
        }
        let Some(gone) = layers.begin(&record.id) else {
            continue;
        };
        let began = Instant::now();
        let Some(snapshot) = shared.images.snapshot(record.id.as_str()) else {
            layers.end(&record.id, began, None);
            continue;
        };
        let walked = tokio::task::spawn_blocking(move || walk(&snapshot.upper, u64::MAX, &gone));
        let walked = walked.await.ok().and_then(Result::ok);
        layers.end(&record.id, began, walked);
    }
    lock(&layers.known).retain(|id, _| shared.views.containers.get(id).is_some());
}

impl Shared {
    /// For metrics: of a container that the task has not come to yet, a first look of bounded length. Blocks.
    pub(super) fn layer_now(&self, id: &ContainerId) -> Option<Layer> {
        let layers = &self.meters.layers;
        if let Some(layer) = layers.get(id) {
            return Some(layer);
        }
        let snapshot = self.images.snapshot(id.as_str())?;
        let walked = walk(&snapshot.upper, bounds::WALK_FIRST, &AtomicBool::new(false)).ok()?;
        Some(Layer {
            at: now(),
            bytes: walked.bytes,
            inodes: walked.inodes,
        })
    }

    /// For metrics: blocks, the first time.
    pub(super) fn file_system_now(&self) -> FileSystem {
        let known = self.meters.layers.file_system();
        known
            .or_else(|| file_system(&self.images.path()))
            .unwrap_or_default()
    }
}

fn file_system(path: &Path) -> Option<FileSystem> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(FileSystem {
        device: device(path).unwrap_or_default(),
        bytes: stat.f_blocks * stat.f_frsize,
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
    })
}

fn device(path: &Path) -> Option<String> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
    let text = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    source_of(&text, stat.stx_mnt_id)
}

/// The source of the mount with this id (proc_pid_mountinfo(5)).
fn source_of(mountinfo: &str, id: u64) -> Option<String> {
    let id = id.to_string();
    let line = mountinfo
        .lines()
        .find(|line| line.split(' ').next() == Some(&id))?;
    let (_, rest) = line.split_once(" - ")?;
    rest.split(' ').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sources() {
        let text = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                    23 22 0:21 / /proc rw - proc proc rw\n";
        assert_eq!(source_of(text, 22).as_deref(), Some("/dev/vda"));
        assert_eq!(source_of(text, 23).as_deref(), Some("proc"));
        assert_eq!(source_of(text, 2), None);
        let here = file_system(Path::new("/var/tmp")).unwrap();
        assert!(here.bytes > 0 && !here.device.is_empty(), "{here:?}");
    }

    #[test]
    fn a_layer_that_took_long_rests_long() {
        let layers = Layers::default();
        let id = ContainerId::from_bytes([1; 32]);
        assert!(layers.begin(&id).is_some());
        let long = std::time::Duration::from_secs(5);
        let began = Instant::now().checked_sub(long).unwrap();
        layers.end(&id, began, Some(Walked::default()));
        assert!(layers.begin(&id).is_none());
        let due = lock(&layers.known)[&id].due;
        assert!(due >= Instant::now() + long * (bounds::LAYER_REST - 1));
        assert_eq!(layers.get(&id).map(|layer| layer.bytes), Some(0));
        let gone = lock(&layers.known)[&id].gone.clone();
        layers.forget(&id);
        assert!(gone.load(Ordering::Relaxed));
        assert_eq!(layers.get(&id), None);
    }
}
