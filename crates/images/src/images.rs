//! The handle that the rest of holdfast has: one method per thing that can be done with images.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_registry::Client;
use tokio::sync::Semaphore;

use crate::inflight::{Inflight, Progress};
use crate::layers::Claims;
use crate::places::Places;
use crate::projects::{Accounting, LayerUse, Projects};
use crate::pull::PullRequest;
use crate::snapshot::{PrepareOptions, Snapshot, Snapshots};
use crate::state::State;
use crate::volume::{DeclaredVolume, Volume};
use crate::{Config, Error, FsInfo, Image, ImageId, Result, archive, inflight, merged, snapshot, volume};

/// The images and snapshots below one root directory. Cheap to clone; one process at a time can have a root open.
///
/// Methods that are not `async` take no lock that disk work holds, and answer from memory; but `prepare` makes directories,
/// `read_file` reads layers, and `layer_use` asks the file system, which may ask its disk.
#[derive(Debug, Clone)]
pub struct Images {
    shared: Arc<Shared>,
}

/// What the modules of this crate work on.
pub(crate) struct Shared {
    pub config: Config,
    pub registry: Arc<Client>,
    pub places: Places,
    pub state: State,
    pub claims: Claims,
    /// Layers that may be fetched and unpacked at the same time, of all pulls and loads.
    pub slots: Arc<Semaphore>,
    pub inflight: Inflight,
    pub snapshots: Snapshots,
    pub projects: Projects,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

impl Images {
    /// Opens or makes the state below `root` (`/var/lib/holdfast`): removes what a crash left half done, forgets images that
    /// are no longer whole, and frees layers that nothing needs. Blocks; a few milliseconds, plus what is to be removed.
    ///
    /// # Errors
    /// If the state cannot be read, is of a newer holdfast, or is open in another process.
    pub fn open(root: &Path, config: Config, registry: Arc<Client>) -> Result<Self> {
        let places = Places::make(root)?;
        let state = State::open(&places, &config)?;
        let snapshots = Snapshots::open(&places)?;
        for (key, layers) in snapshots.layers() {
            state.hold_snapshot(&key, layers);
        }
        let projects = Projects::open(&places.snapshots, &snapshots.keys());
        let slots = Arc::new(Semaphore::new(config.all_layers.max(1)));
        let shared = Shared {
            config,
            registry,
            places,
            state,
            claims: Claims::default(),
            slots,
            inflight: Inflight::default(),
            snapshots,
            projects,
        };
        shared.state.collect(&shared.places)?;
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Brings an image here. Always asks the registry what the reference is now, with the request's own credential; layers
    /// that are here already are not fetched again. Joins a pull in flight only if reference, platform, handler and credential
    /// are the same. Dropping the future of the last caller ends the pull.
    ///
    /// # Errors
    /// [`Error::Registry`], or what is wrong with the image. Layers that were whole are kept for [`Config::retry_window`].
    pub async fn pull(&self, request: PullRequest, progress: impl Fn(Progress) + Send) -> Result<ImageId> {
        inflight::pull(&self.shared, request, progress).await
    }

    /// Loads the images of an OCI layout (directory, or archive: plain, gzip or zstd) or of a `docker save` archive, and gives
    /// their ids. Names come from the archive, or from `name` if it holds one image.
    ///
    /// # Errors
    /// [`Error::Archive`], or what is wrong with one of its images; the images before it stay loaded.
    pub async fn load_archive(&self, path: &Path, name: Option<&str>) -> Result<Vec<ImageId>> {
        archive::load(&self.shared, path, name).await
    }

    /// All images, or the one that `filter` names, sorted by id.
    #[must_use]
    pub fn list(&self, filter: Option<&str>) -> Vec<Arc<Image>> {
        match filter.filter(|f| !f.is_empty()) {
            None => self.shared.state.images(),
            Some(reference) => self.get(reference).into_iter().collect(),
        }
    }

    /// The image that is meant by an id (`sha256:...`, bare hex, or an unambiguous beginning of 6 digits or more), a tag (with
    /// Docker's short forms) or a `name@digest`.
    #[must_use]
    pub fn get(&self, reference: &str) -> Option<Arc<Image>> {
        self.shared.state.find(reference)
    }

    /// Removes the image that `reference` means, with all its names. Layers stay while another image or a snapshot uses them.
    /// Removing what is not there succeeds.
    ///
    /// # Errors
    /// If the change cannot be recorded.
    pub async fn remove(&self, reference: &str) -> Result<()> {
        let Some(image) = self.get(reference) else {
            return Ok(());
        };
        self.blocking(move |shared| {
            shared.state.remove_image(&image.id)?;
            shared.state.collect(&shared.places)
        })
        .await
    }

    /// Bytes and inodes that images use, from memory.
    #[must_use]
    pub fn fs_info(&self) -> FsInfo {
        let (used_bytes, used_inodes) = self.shared.state.usage();
        FsInfo {
            at: std::time::SystemTime::now(),
            path: self.shared.places.images.clone(),
            used_bytes,
            used_inodes,
        }
    }

    /// Makes the writable part of a container on top of `image`. `key` is the container's id.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::SnapshotExists`], [`Error::SnapshotKey`] or [`Error::Io`]; nothing is left then.
    pub fn prepare(&self, key: &str, image: &ImageId, options: &PrepareOptions) -> Result<Snapshot> {
        snapshot::prepare(&self.shared, key, image, options)
    }

    /// Keeps the layers of `image` for a volume, under a key like that of a snapshot ([`Images::discard`] ends it), and says
    /// where `sub_path` of it is; empty: the whole image.
    ///
    /// # Errors
    /// As [`Images::prepare`], and [`Error::FilePath`] where the image has no such path.
    pub async fn volume(&self, key: &str, image: &ImageId, sub_path: &str) -> Result<Volume> {
        let (key, image, path) = (key.to_owned(), image.clone(), sub_path.to_owned());
        self.blocking(move |shared| snapshot::volume(shared, &key, &image, &path))
            .await
    }

    /// Makes what the volumes that `image` declares at `paths` need, inside the snapshot of `key`, which is there already.
    ///
    /// # Errors
    /// [`Error::FilePath`] where one is a file in the image, or [`Error::Io`].
    pub async fn declared_volumes(
        &self,
        key: &str,
        image: &ImageId,
        paths: Vec<String>,
        options: PrepareOptions,
    ) -> Result<Vec<DeclaredVolume>> {
        let (key, image) = (key.to_owned(), image.clone());
        self.blocking(move |shared| volume::declared(shared, &key, &image, &paths, &options))
            .await
    }

    /// The snapshot of `key` again, as [`Images::prepare`] gave it; for instance after a restart of the daemon.
    #[must_use]
    pub fn snapshot(&self, key: &str) -> Option<Snapshot> {
        snapshot::get(&self.shared, key)
    }

    /// How it is known what snapshots use: found out once, when this was opened.
    #[must_use]
    pub fn accounting(&self) -> &Accounting {
        self.shared.projects.accounting()
    }

    /// What the snapshot of `key` uses at this moment, by the file system's own account; `None` if it keeps none of this
    /// snapshot. Microseconds, but it may wait for the disk.
    #[must_use]
    pub fn layer_use(&self, key: &str) -> Option<LayerUse> {
        self.shared.projects.used(key)
    }

    /// Removes a snapshot with everything that its container wrote, and layers that nothing needs any more. Succeeds if there
    /// is none. It must not be mounted.
    ///
    /// # Errors
    /// [`Error::Io`]; what is left is still listed by [`Images::snapshots`].
    pub async fn discard(&self, key: &str) -> Result<()> {
        let key = key.to_owned();
        let collect = self
            .blocking(move |shared| snapshot::discard(shared, &key))
            .await?;
        if collect {
            // The layers were of an image that is gone. Nobody waits for the disk.
            let shared = Arc::clone(&self.shared);
            tokio::task::spawn_blocking(move || {
                if let Err(error) = shared.state.collect(&shared.places) {
                    tracing::warn!(%error, "layers of a removed image could not be freed");
                }
            });
        }
        Ok(())
    }

    /// Frees what nothing needs any more: layers of failed pulls whose time is over. Removals do this by themselves; the daemon
    /// calls it now and then.
    ///
    /// # Errors
    /// If the change cannot be recorded.
    pub async fn collect(&self) -> Result<()> {
        self.blocking(|shared| shared.state.collect(&shared.places)).await
    }

    /// Keys of all snapshots, those included whose record a power cut took.
    #[must_use]
    pub fn snapshots(&self) -> Vec<String> {
        self.shared.snapshots.keys()
    }

    /// The bytes of a regular file of the image, seen as its containers see it: upper layers hide lower ones, symbolic links
    /// stay inside. `None` if there is no such file.
    ///
    /// # Errors
    /// [`Error::NotFound`] about the image, [`Error::FileTooLarge`] if it has more than `limit` bytes, [`Error::FilePath`].
    pub fn read_file(&self, image: &ImageId, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let lowers = self.shared.state.lowers(image, &self.shared.places)?;
        merged::read_file(&lowers, image, path, limit)
    }

    /// Where the images are.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.shared.places.images.clone()
    }

    /// Runs file work off the async threads.
    async fn blocking<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let shared = Arc::clone(&self.shared);
        match tokio::task::spawn_blocking(move || work(&shared)).await {
            Ok(result) => result,
            // A panic in the work, or the end of the runtime.
            Err(e) => Err(Error::io(
                "finish work on",
                &self.shared.places.images,
                std::io::Error::other(e),
            )),
        }
    }
}
