//! Where things are below the root directory.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{IFlags, Mode, OFlags};

use crate::index::LayerRecord;
use crate::{Error, Result};

/// The directories, all made at open.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub images: PathBuf,
    pub layers: PathBuf,
    /// An empty directory that anyone may read.
    pub empty: PathBuf,
    pub tmp: PathBuf,
    pub blobs: PathBuf,
    pub snapshots: PathBuf,
    pub snapshot_records: PathBuf,
}

impl Places {
    pub fn make(root: &Path) -> Result<Self> {
        let images = root.join("images");
        let places = Self {
            layers: images.join("l"),
            empty: images.join("empty"),
            tmp: images.join("tmp"),
            blobs: images.join("content/blobs"),
            snapshots: root.join("snapshots"),
            snapshot_records: root.join("records/snapshots"),
            images,
        };
        let (sha256, sha512) = (places.blobs.join("sha256"), places.blobs.join("sha512"));
        let records = root.join("records");
        for dir in [
            &records,
            &places.layers,
            &places.tmp,
            &sha256,
            &sha512,
            &places.snapshots,
            &places.snapshot_records,
        ] {
            use std::os::unix::fs::DirBuilderExt;
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|e| Error::io("make", dir, e))?;
            if *dir == records {
                // Those that come next, and the engine's: they change with every pod.
                spread(dir);
            }
        }
        let empty = &places.empty;
        if !empty.exists() {
            std::fs::create_dir(empty).map_err(|e| Error::io("make", empty, e))?;
        }
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(empty, open).map_err(|e| Error::io("change the mode of", empty, e))?;
        spread(&places.tmp);
        // Overlay makes and removes files of its own in each, and for minutes the file system passes over what was removed.
        spread(&places.snapshots);
        Ok(places)
    }

    /// A name in `tmp` that nobody has.
    pub fn aside(&self) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.tmp.join(format!(
            "{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ))
    }

    pub fn layer(&self, record: &LayerRecord) -> PathBuf {
        self.layers.join(record.dir.to_string())
    }
}

/// Everything in a directory.
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io("list", dir, e);
    std::fs::read_dir(dir)
        .map_err(failed)?
        .map(|entry| Ok(entry.map_err(failed)?.path()))
        .collect()
}

/// Asks ext4 to place what is made in `dir` far apart, as it does with directories below `/home`. Layers unpacked side by side
/// then do not wait for the same block group, nor look for free inodes among those that a removal has just left (which ext4
/// does not give out again for minutes). Other file systems have no such flag and need none.
fn spread(dir: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let asked = rustix::fs::open(dir, flags, Mode::empty()).and_then(|fd| {
        let now = rustix::fs::ioctl_getflags(&fd)?;
        rustix::fs::ioctl_setflags(&fd, now | IFlags::TOPDIR)
    });
    if let Err(error) = asked {
        tracing::debug!(dir = %dir.display(), %error, "the file system does not spread directories on request");
    }
}
