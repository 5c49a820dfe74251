//! Making a container, as far as the exec barrier.

use std::path::Path;
use std::sync::Arc;

use holdfast_images::{DeclaredVolume, IdMap, Image, PrepareOptions, Snapshot, Volume};
use holdfast_model::{
    ContainerId, ContainerRecord, ContainerUser, ResolvedImage, SandboxRecord, SelinuxLabels, Signal,
};
use holdfast_monitor_api::message::Rootfs;
use holdfast_monitor_api::{Client, Container};
use oci_spec::runtime::Spec;
use tracing::{debug, warn};

use super::{Context, files, link, scope};
use crate::Error;
use crate::adjust::{Subject, adjust, has_hooks};
use crate::config::bounds;
use crate::handlers;
use crate::lookup::{self, Extras, Identity};
use crate::lsm::selinux;
use crate::spec::{self, Inputs};

/// A container whose init waits.
pub(super) struct Built {
    pub container: Container,
    pub user: ContainerUser,
    pub stop_signal: Signal,
    pub image: ResolvedImage,
    pub mount_images: Vec<String>,
    pub oci_spec: String,
}

/// What could not be taken back is named.
pub(super) struct Failed {
    pub error: Error,
    pub leftovers: Vec<String>,
}

/// Everything that the operation works from.
pub(super) struct Plan {
    pub context: Arc<Context>,
    pub client: Client,
    pub pod: Arc<SandboxRecord>,
    pub record: Arc<ContainerRecord>,
    pub target_pid: Option<i32>,
}

pub(super) async fn build(plan: Plan) -> Result<Box<Built>, Failed> {
    let nothing = |error| Failed {
        error,
        leftovers: Vec::new(),
    };
    let image = plan.image(&plan.record.spec.image.image).map_err(nothing)?;
    // passwd, devices and the profile are read while the record is written and the upper directory made.
    let (disk, files) = tokio::join!(plan.reserve(&image), plan.read(&image));
    let snapshot = disk.map_err(nothing)?;
    debug!(container = %plan.record.id, "recorded");
    let built = match (snapshot, files) {
        (Ok(snapshot), Ok((identity, extras))) => plan.act(&image, snapshot, &identity, extras).await,
        (Err(error), _) | (_, Err(error)) => Err(error),
    };
    match built {
        Ok(built) => Ok(Box::new(built)),
        Err(error) => Err(Failed {
            error,
            leftovers: plan.unwind().await,
        }),
    }
}

impl Plan {
    fn image(&self, reference: &str) -> Result<Arc<Image>, Error> {
        let images = &self.context.shared.images;
        images.get(reference).ok_or_else(|| Error::NoImage {
            image: reference.chars().take(512).collect(),
        })
    }

    /// The record, and after it what it speaks of on disk: one after the other, on one thread. The outer error says that there
    /// is no record.
    async fn reserve(&self, image: &Arc<Image>) -> Result<Result<Snapshot, Error>, Error> {
        let (images, image, options) = (
            self.context.shared.images.clone(),
            image.clone(),
            self.prepare_options(),
        );
        let record = self.record.clone();
        let next = move || {
            let prepared = images.prepare(record.id.as_str(), &image.id, &options);
            prepared.map_err(|source| image_error(&record, "preparing the root file system", source))
        };
        self.context
            .shared
            .disk
            .put_container_then(self.record.clone(), next)
            .await
    }

    async fn read(&self, image: &Arc<Image>) -> Result<(Arc<Identity>, Extras), Error> {
        let shared = &self.context.shared;
        tokio::try_join!(
            shared.identities.of(&shared.images, image),
            lookup::extras(&self.record.spec, &shared.facts)
        )
    }

    async fn act(
        &self,
        image: &Image,
        snapshot: Snapshot,
        identity: &Identity,
        extras: Extras,
    ) -> Result<Built, Error> {
        let (mount_images, sources) = self.mount_images().await?;
        let volumes = self.declared_volumes(image, identity).await?;
        debug!(container = %self.record.id, "root file system prepared");
        let built = self.spec(identity, extras, (&sources, &volumes))?;
        self.check_labels(&built)?;
        let subject = Subject {
            sandbox: &self.pod,
            container: &self.record,
            cdi: &self.context.shared.cdi,
        };
        let mut adjusted = adjust(subject, built.spec).await?;
        self.context
            .shared
            .handlers
            .adjust(&self.pod.handler, &mut adjusted);
        let oci_spec = serde_json::to_string(&adjusted).map_err(|e| Error::Internal {
            what: format!("the spec of {} cannot be written: {e}", self.record.id),
        })?;
        debug!(container = %self.record.id, "spec made");
        if self.record.runtime.is_none() && has_hooks(&adjusted) {
            handlers::reserve(&self.context.shared, self.record.id).await?;
        }
        let mut message = link::container_message(&self.context, &self.pod, &self.record);
        message.spec = oci_spec.clone().into_bytes();
        message.rootfs = Some(rootfs(snapshot)?);
        message.relabel = self.relabelled(&adjusted);
        let limits = scope::limits(&adjusted)?;
        let held = scope::of_container(&self.context, &self.pod, &self.record, &limits).await?;
        let container = self
            .client
            .with_deadline(bounds::CREATE)
            .create_container(message)
            .await
            .map_err(Error::monitor("creating container", self.record.id))?;
        held.settle(&limits).await?;
        debug!(container = %self.record.id, "created");
        for warning in &container.warnings {
            warn!(container = %self.record.id, "{warning}");
        }
        let mut user = built.user;
        if let Some(groups) = adjusted
            .process()
            .as_ref()
            .and_then(|p| p.user().additional_gids().clone())
        {
            // Devices may bring groups.
            user.groups = groups;
        }
        Ok(Built {
            container,
            user,
            stop_signal: built.stop_signal,
            image: resolved(image),
            mount_images,
            oci_spec,
        })
    }

    fn check_labels(&self, built: &spec::Built) -> Result<(), Error> {
        let text = |label: Option<&String>| label.cloned().unwrap_or_default();
        let (process, linux) = (built.spec.process().as_ref(), built.spec.linux().as_ref());
        let labels = SelinuxLabels {
            process: text(process.and_then(|process| process.selinux_label().as_ref())),
            mount: text(linux.and_then(|linux| linux.mount_label().as_ref())),
        };
        Ok(selinux::check(&labels)?)
    }

    /// What must be the container's to read: the pod's own files, and the volumes of which the client says so.
    fn relabelled(&self, spec: &Spec) -> Vec<String> {
        let label = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.mount_label().as_ref());
        if label.is_none() {
            return Vec::new();
        }
        let files = files::places(&self.context.dir);
        let own = [Some(files.resolv_conf), Some(files.hostname), files.hosts];
        let own = own
            .into_iter()
            .flatten()
            .map(|path| path.to_string_lossy().into_owned());
        let volumes = self.record.spec.mounts.iter();
        let volumes = volumes.filter(|mount| mount.selinux_relabel && mount.image.is_none());
        own.chain(volumes.map(|mount| mount.host_path.clone())).collect()
    }

    /// The images among the mounts: their ids, and where they are. Both have an entry for each mount, or are empty.
    async fn mount_images(&self) -> Result<(Vec<String>, Vec<Option<Volume>>), Error> {
        let mounts = &self.record.spec.mounts;
        let (mut ids, mut volumes) = (Vec::new(), Vec::new());
        if mounts.iter().all(|mount| mount.image.is_none()) {
            return Ok((ids, volumes));
        }
        for (n, mount) in mounts.iter().enumerate() {
            let Some(wanted) = &mount.image else {
                ids.push(String::new());
                volumes.push(None);
                continue;
            };
            let image = self.image(&wanted.image.image)?;
            let (key, images) = (volume_key(&self.record.id, n), &self.context.shared.images);
            let volume = images.volume(&key, &image.id, &wanted.sub_path).await;
            volumes.push(Some(volume.map_err(|source| {
                image_error(&self.record, "mounting an image", source)
            })?));
            ids.push(image.id.to_string());
        }
        Ok((ids, volumes))
    }

    async fn declared_volumes(
        &self,
        image: &Image,
        identity: &Identity,
    ) -> Result<Vec<DeclaredVolume>, Error> {
        let paths = spec::remaining_volumes(&identity.volumes, &self.record.spec);
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let images = &self.context.shared.images;
        let made = images.declared_volumes(self.record.id.as_str(), &image.id, paths, self.prepare_options());
        made.await
            .map_err(|source| image_error(&self.record, "making the image's volumes", source))
    }

    fn prepare_options(&self) -> PrepareOptions {
        let maps = self.pod.spec.security.namespaces.user_maps();
        let convert = |maps: &[holdfast_model::IdMapping]| -> Vec<IdMap> {
            maps.iter()
                .map(|map| IdMap {
                    container: map.container_id,
                    host: map.host_id,
                    count: map.length,
                })
                .collect()
        };
        PrepareOptions {
            uid_maps: maps.map(|user| convert(&user.uids)).unwrap_or_default(),
            gid_maps: maps.map(|user| convert(&user.gids)).unwrap_or_default(),
        }
    }

    fn spec(
        &self,
        identity: &Identity,
        extras: Extras,
        (sources, volumes): (&[Option<Volume>], &[DeclaredVolume]),
    ) -> Result<spec::Built, Error> {
        let files = files::places(&self.context.dir);
        let inputs = Inputs {
            sandbox: &self.pod,
            id: &self.record.id,
            container: &self.record.spec,
            image: &identity.defaults,
            passwd: identity.passwd.as_deref(),
            group: identity.group.as_deref(),
            host: &self.context.shared.facts,
            files: &files,
            devices: &extras.devices,
            host_devices: &extras.host_devices,
            seccomp: extras.seccomp,
            cgroup: &self.pod.oci_cgroup_of(self.record.id.as_str()),
            target_pid: self.target_pid,
            image_sources: sources,
            image_volumes: volumes,
            rlimits: &self.context.shared.config.rlimits,
        };
        Ok(spec::build(&inputs)?)
    }

    /// Everything that may have been done, whether it was or not.
    async fn unwind(&self) -> Vec<String> {
        remove(&self.context, Some(&self.client), &self.record).await
    }
}

fn image_error(record: &ContainerRecord, step: &'static str, source: holdfast_images::Error) -> Error {
    Error::Image {
        step,
        id: record.id.to_string(),
        source: Box::new(source),
    }
}

/// Takes away everything of a container but its log; what fails is named. Repeatable.
pub(super) async fn remove(
    context: &Context,
    client: Option<&Client>,
    record: &ContainerRecord,
) -> Vec<String> {
    let id = record.id;
    let removed = match client {
        Some(client) => client
            .with_deadline(bounds::KILL)
            .remove(id.as_str())
            .await
            .map_err(Error::monitor("removing the processes", id)),
        None => Ok(()),
    };
    if let Err(error) = removed {
        // Its root may still be in use.
        return vec![error.chain()];
    }
    // A monitor that took over from a dead one does not know what had ended before: it is looked at here too.
    if let Err(error) = handlers::sweep(&context.shared, record).await {
        return vec![error.chain()];
    }
    let (hierarchy, cgroup) = (context.shared.hierarchy.clone(), record.cgroup.clone());
    let first = move || super::sweep_one(&hierarchy, &cgroup);
    if let Err(error) = context.shared.disk.remove_container(&id, first).await {
        return vec![error.chain()];
    }
    debug!(container = %id, "removed");
    if record.snapshot_owed {
        let images = record.spec.mounts.iter().enumerate();
        let volumes = images
            .filter(|(_, mount)| mount.image.is_some())
            .map(|(n, _)| volume_key(&id, n));
        discard_later(context, std::iter::once(id.to_string()).chain(volumes).collect());
    }
    Vec::new()
}

/// Nobody waits for the disk: what the container wrote may take long to delete. Snapshots have records of their own,
/// and those of no container are discarded at the next start.
fn discard_later(context: &Context, keys: Vec<String>) {
    let shared = context.shared.clone();
    tokio::spawn(async move {
        let _turn = shared.discards.acquire().await;
        for key in keys {
            if let Err(error) = shared.images.discard(&key).await {
                warn!(
                    snapshot = key,
                    "root file system is left until the next start: {error}"
                );
            }
        }
    });
}

/// Under which an image among a container's mounts is kept.
fn volume_key(id: &ContainerId, mount: usize) -> String {
    format!("{id}.{mount}")
}

fn resolved(image: &Image) -> ResolvedImage {
    let id = image.id.to_string();
    ResolvedImage {
        reference: image.repo_digests.first().cloned().unwrap_or_else(|| id.clone()),
        id,
    }
}

fn rootfs(snapshot: Snapshot) -> Result<Rootfs, Error> {
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| Error::Internal {
            what: format!(
                "{} is not UTF-8, which the monitor's protocol cannot carry",
                path.display()
            ),
        })
    };
    Ok(Rootfs {
        fs_type: snapshot.fs_type.to_owned(),
        lowers: snapshot
            .lowers
            .iter()
            .map(|lower| text(lower))
            .collect::<Result<_, _>>()?,
        upper: text(&snapshot.upper)?,
        work: text(&snapshot.work)?,
        options: snapshot.options,
    })
}
