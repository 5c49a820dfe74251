//! What containers have written over their images.
//!
//! Where the file system keeps accounts of projects, what is on a layer's account is read when it is asked for. Where it does
//! not, and for a layer without an account, a task walks the layers one after the other; everybody else is told what it found
//! last, and when.
//!
//! An account can be dodged by a container outside a user namespace (`holdfast_images` says how). Kubelet evicts pods by these
//! figures, so the task walks the layers of such containers too, seldom, and does not believe an account that says less.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use holdfast_images::{Accounting, Images, LayerUse};
use holdfast_model::{ContainerId, ContainerRecord, ContainerState};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use tokio::sync::Notify;
use tracing::{debug, warn};

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
    /// Whose turn it is to read accounts: a disk that hangs holds one thread, not one a call.
    turn: Arc<tokio::sync::Mutex<()>>,
}

struct Known {
    layer: Option<Layer>,
    /// When it is walked next.
    due: Instant,
    gone: Arc<AtomicBool>,
    /// Walks in a row that found more than is on its account.
    doubts: u32,
}

impl Known {
    fn new() -> Self {
        Self {
            layer: None,
            due: Instant::now(),
            gone: Arc::default(),
            doubts: 0,
        }
    }

    fn believed(&self) -> bool {
        self.doubts < bounds::LAYER_DOUBTS
    }
}

/// What a look at a layer that was due has found.
#[derive(Debug, Clone, Copy)]
enum Look {
    /// On its account, which nobody in the container can have changed.
    Account(LayerUse),
    /// By a walk; and the most that was on its account meanwhile, if it has one.
    Walk(Walked, Option<LayerUse>),
    Nothing,
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

    /// Whether what is on a layer's account is what it uses, as far as anybody knows.
    fn believed(&self, id: &ContainerId) -> bool {
        lock(&self.known).get(id).is_none_or(Known::believed)
    }

    fn put(&self, id: &ContainerId, layer: Layer) {
        lock(&self.known).entry(*id).or_insert_with(Known::new).layer = Some(layer);
    }

    /// If it is due: what ends the walk early.
    fn begin(&self, id: &ContainerId) -> Option<Arc<AtomicBool>> {
        let mut known = lock(&self.known);
        let entry = known.entry(*id).or_insert_with(Known::new);
        (entry.due <= Instant::now()).then(|| entry.gone.clone())
    }

    fn end(&self, id: &ContainerId, began: Instant, look: Look) {
        let took = began.elapsed();
        let mut known = lock(&self.known);
        let Some(entry) = known.get_mut(id) else { return };
        let mut every = bounds::LAYER_EVERY;
        match look {
            Look::Account(used) => entry.layer = Some(used.into()),
            Look::Walk(walked, used) => {
                if !walked.complete {
                    debug!(container = %id, "not all of its writable layer could be measured");
                }
                if let Some(used) = used.filter(|_| entry.believed()) {
                    entry.doubt(id, walked, used);
                }
                match used.filter(|_| entry.believed()) {
                    Some(used) => {
                        if entry.doubts == 0 {
                            every = bounds::LAYER_CHECK;
                        }
                        entry.layer = Some(used.into());
                    }
                    None => entry.layer = Some(walked.into()),
                }
            }
            Look::Nothing => {}
        }
        entry.due = Instant::now() + every.max(took * bounds::LAYER_REST);
    }

    pub(super) fn file_system(&self) -> Option<FileSystem> {
        lock(&self.file_system).clone()
    }

    /// Asks the disk on behalf of somebody who waits: one thread at a time, and nobody waits longer than
    /// [`bounds::LAYER_WAIT`], for his turn and the answer together. `None`: it has not answered.
    async fn in_turn<T: Send + 'static>(&self, ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let turn = self.turn.clone();
        let asked = async move {
            let turn = turn.lock_owned().await;
            let asked = tokio::task::spawn_blocking(move || {
                let answer = ask();
                drop(turn);
                answer
            });
            asked.await.ok()
        };
        let Ok(answer) = tokio::time::timeout(bounds::LAYER_WAIT, asked).await else {
            debug!("the file system of the writable layers does not answer: their figures are older");
            return None;
        };
        answer
    }
}

impl Known {
    /// Compares a walk with the account. One that found more may have seen what was removed in the meantime; several in a
    /// row have not. Less is no reason: files that were deleted and are still open are on the account alone.
    fn doubt(&mut self, id: &ContainerId, walked: Walked, used: LayerUse) {
        if walked.bytes <= used.bytes + bounds::LAYER_SLACK {
            self.doubts = 0;
            return;
        }
        self.doubts += 1;
        if !self.believed() {
            warn!(
                container = %id,
                walked = walked.bytes,
                account = used.bytes,
                "its writable layer has more than is on its account with the file system: something in it changed the project \
                 ids of its files (FS_IOC_FSSETXATTR); from now on it is measured by walking it. In a pod with a user \
                 namespace it could not have"
            );
        }
    }
}

impl From<LayerUse> for Layer {
    fn from(used: LayerUse) -> Self {
        Self {
            at: now(),
            bytes: used.bytes,
            inodes: used.inodes,
        }
    }
}

impl From<Walked> for Layer {
    fn from(walked: Walked) -> Self {
        Self {
            at: now(),
            bytes: walked.bytes,
            inodes: walked.inodes,
        }
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
        let (images, id) = (shared.images.clone(), record.id);
        let fenced = shared.fenced(&record);
        let look = tokio::task::spawn_blocking(move || look(&images, &id, fenced, &gone));
        layers.end(&record.id, began, look.await.unwrap_or(Look::Nothing));
    }
    lock(&layers.known).retain(|id, _| shared.views.containers.get(id).is_some());
}

/// `fenced`: nobody in the container can change what is on its account.
fn look(images: &Images, id: &ContainerId, fenced: bool, gone: &AtomicBool) -> Look {
    let before = images.layer_use(id.as_str());
    if let Some(used) = before.filter(|_| fenced) {
        return Look::Account(used);
    }
    let Some(snapshot) = images.snapshot(id.as_str()) else {
        return Look::Nothing;
    };
    let Ok(walked) = walk(&snapshot.upper, u64::MAX, gone) else {
        return Look::Nothing;
    };
    // What it was before the walk, or after: whichever is more in its favour.
    let after = images.layer_use(id.as_str());
    let most = before.into_iter().chain(after).max_by_key(|used| used.bytes);
    Look::Walk(walked, most)
}

impl Shared {
    /// Whether a container is in a user namespace of its pod's: the kernel then lets it change no project id.
    fn fenced(&self, record: &ContainerRecord) -> bool {
        let pod = self.views.sandboxes.get(&record.sandbox);
        pod.is_some_and(|pod| pod.spec.security.namespaces.user_maps().is_some())
    }

    /// Brings up to now the figures of those layers that the file system accounts for; others stay as they are, and all of
    /// them do if the disk does not answer in time.
    pub(super) async fn read_accounts(&self, records: &[Arc<ContainerRecord>]) {
        if *self.images.accounting() != Accounting::ProjectQuota {
            return;
        }
        let layers = &self.meters.layers;
        let ids = records.iter().map(|record| record.id);
        let ids: Vec<ContainerId> = ids.filter(|id| layers.believed(id)).collect();
        let images = self.images.clone();
        let read = layers.in_turn(move || {
            let one = |id: ContainerId| Some((id, Layer::from(images.layer_use(id.as_str())?)));
            ids.into_iter()
                .filter_map(one)
                .collect::<Vec<(ContainerId, Layer)>>()
        });
        let read = read.await.unwrap_or_default();
        read.iter().for_each(|(id, layer)| layers.put(id, *layer));
    }

    /// For metrics: of what nobody has measured yet, a first look of bounded length. What is found late counts the next time.
    pub(super) async fn look_first(self: &Arc<Self>) {
        let layers = &self.meters.layers;
        let records = self.views.containers.all().into_iter();
        let new: Vec<ContainerId> = records
            .filter(|record| record.state != ContainerState::Creating && layers.get(&record.id).is_none())
            .map(|record| record.id)
            .collect();
        if new.is_empty() && layers.file_system().is_some() {
            return;
        }
        let shared = self.clone();
        let _looked = layers.in_turn(move || shared.first_look(&new)).await;
    }

    /// Blocks.
    fn first_look(&self, new: &[ContainerId]) {
        let layers = &self.meters.layers;
        if layers.file_system().is_none() {
            *lock(&layers.file_system) = file_system(&self.images.path());
        }
        for id in new {
            let Some(snapshot) = self.images.snapshot(id.as_str()) else {
                continue;
            };
            let walked = walk(&snapshot.upper, bounds::WALK_FIRST, &AtomicBool::new(false));
            // The task may have come by meanwhile, and has looked at all of it.
            if let Ok(walked) = walked
                && layers.get(id).is_none()
                && self.views.containers.get(id).is_some()
            {
                layers.put(id, walked.into());
            }
        }
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

    #[tokio::test]
    async fn a_disk_that_hangs_holds_one_thread_and_nobody_for_long() {
        let layers = Layers::default();
        let (wake, woken) = std::sync::mpsc::channel::<()>();
        let began = Instant::now();
        assert_eq!(layers.in_turn(move || woken.recv().is_ok()).await, None);
        let asked = Arc::new(AtomicBool::new(false));
        for _ in 0..2 {
            let asked = asked.clone();
            assert_eq!(
                layers.in_turn(move || asked.store(true, Ordering::Relaxed)).await,
                None
            );
        }
        assert!(began.elapsed() < bounds::LAYER_WAIT * 6, "{:?}", began.elapsed());
        assert!(!asked.load(Ordering::Relaxed));
        drop(wake);
        assert_eq!(layers.in_turn(|| 7).await, Some(7));
    }

    #[test]
    fn a_layer_that_took_long_rests_long() {
        let layers = Layers::default();
        let id = ContainerId::from_bytes([1; 32]);
        assert!(layers.begin(&id).is_some());
        let long = std::time::Duration::from_secs(5);
        let began = Instant::now().checked_sub(long).unwrap();
        layers.end(&id, began, Look::Walk(Walked::default(), None));
        assert!(layers.begin(&id).is_none());
        let due = lock(&layers.known)[&id].due;
        assert!(due >= Instant::now() + long * (bounds::LAYER_REST - 1));
        assert_eq!(layers.get(&id).map(|layer| layer.bytes), Some(0));
        let gone = lock(&layers.known)[&id].gone.clone();
        layers.forget(&id);
        assert!(gone.load(Ordering::Relaxed));
        assert_eq!(layers.get(&id), None);
    }

    #[test]
    fn an_account_is_believed_until_walks_find_more_again_and_again() {
        const LITTLE: LayerUse = LayerUse { bytes: 1, inodes: 1 };
        let (layers, id) = (Layers::default(), ContainerId::from_bytes([1; 32]));
        let walked = |bytes| Walked {
            bytes,
            inodes: 2,
            complete: true,
        };
        let check = |bytes, used| {
            layers.end(&id, Instant::now(), Look::Walk(walked(bytes), used));
            (
                layers.believed(&id),
                layers.get(&id).map(|layer| (layer.bytes, layer.inodes)),
            )
        };
        let much = bounds::LAYER_SLACK + 2;
        assert!(layers.begin(&id).is_some());
        assert_eq!(check(much - 1, Some(LITTLE)), (true, Some((1, 1))));
        assert!(
            lock(&layers.known)[&id].due > Instant::now() + bounds::LAYER_EVERY,
            "a check is not often"
        );
        // Once may be a file that was removed meanwhile.
        for _ in 0..bounds::LAYER_DOUBTS - 1 {
            assert_eq!(check(much, Some(LITTLE)), (true, Some((1, 1))));
        }
        assert_eq!(check(1, Some(LITTLE)), (true, Some((1, 1))));
        for _ in 0..bounds::LAYER_DOUBTS - 1 {
            assert_eq!(check(much, Some(LITTLE)), (true, Some((1, 1))));
        }
        assert!(
            lock(&layers.known)[&id].due <= Instant::now() + bounds::LAYER_EVERY,
            "a doubt is settled soon"
        );
        assert_eq!(check(much, Some(LITTLE)), (false, Some((much, 2))));
        // For good, and it is walked as often as one without an account.
        assert_eq!(check(1, Some(LITTLE)), (false, Some((1, 2))));
        assert!(lock(&layers.known)[&id].due <= Instant::now() + bounds::LAYER_EVERY);
        // More on the account than there is to see: what was deleted and is still open.
        let other = ContainerId::from_bytes([2; 32]);
        assert!(layers.begin(&other).is_some());
        let used = LayerUse {
            bytes: 1 << 40,
            inodes: 3,
        };
        layers.end(&other, Instant::now(), Look::Walk(walked(1), Some(used)));
        assert_eq!(layers.get(&other).map(|layer| layer.bytes), Some(1 << 40));
    }
}
