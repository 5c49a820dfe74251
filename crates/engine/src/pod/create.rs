//! Making a container, as far as the exec barrier.

use std::path::Path;
use std::sync::Arc;

use holdfast_images::{IdMap, Image, PrepareOptions, Snapshot};
use holdfast_model::{ContainerId, ContainerRecord, ContainerUser, ResolvedImage, SandboxRecord, Signal};
use holdfast_monitor_api::message::Rootfs;
use holdfast_monitor_api::{Client, Container};
use tracing::{debug, warn};

use super::{Context, files, link};
use crate::adjust::{Subject, adjust};
use crate::config::bounds;
use crate::lookup::{self, Extras, Identity};
use crate::spec::{self, Inputs};
use crate::{Error, shared};

/// A container whose init waits.
pub(super) struct Built {
    pub container: Container,
    pub user: ContainerUser,
    pub stop_signal: Signal,
    pub image: ResolvedImage,
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
    let disk = &plan.context.shared.disk;
    if let Err(error) = disk.put_container(plan.record.clone()).await {
        return Err(Failed {
            error,
            leftovers: Vec::new(),
        });
    }
    debug!(container = %plan.record.id, "recorded");
    match plan.act().await {
        Ok(built) => Ok(Box::new(built)),
        Err(error) => Err(Failed {
            error,
            leftovers: plan.unwind().await,
        }),
    }
}

impl Plan {
    async fn act(&self) -> Result<Built, Error> {
        let wanted = &self.record.spec;
        if let Some(mount) = wanted.mounts.iter().find(|mount| mount.image.is_some()) {
            return Err(Error::Unsupported(format!(
                "mount {:?}: this release mounts no images as volumes",
                mount.container_path
            )));
        }
        let images = &self.context.shared.images;
        let image = images.get(&wanted.image.image).ok_or_else(|| Error::NoImage {
            image: wanted.image.image.chars().take(512).collect(),
        })?;
        // The upper directory is made while passwd, devices and the profile are read.
        let (snapshot, identity, extras) = tokio::try_join!(
            self.prepare(&image),
            self.context.shared.identities.of(images, &image),
            lookup::extras(wanted),
        )?;
        debug!(container = %self.record.id, "root file system prepared");
        let built = self.spec(&identity, extras)?;
        let subject = Subject {
            sandbox: &self.pod,
            container: &self.record,
        };
        let adjusted = adjust(subject, built.spec).await?;
        let oci_spec = serde_json::to_string(&adjusted).map_err(|e| Error::Internal {
            what: format!("the spec of {} cannot be written: {e}", self.record.id),
        })?;
        self.make_log_directory().await?;
        debug!(container = %self.record.id, "spec made");
        let mut message = link::container_message(&self.context, &self.pod, &self.record);
        message.spec = oci_spec.clone().into_bytes();
        message.rootfs = Some(rootfs(snapshot)?);
        let container = self
            .client
            .with_deadline(bounds::CREATE)
            .create_container(message)
            .await
            .map_err(Error::monitor("creating container", self.record.id))?;
        debug!(container = %self.record.id, "created");
        for warning in &container.warnings {
            warn!(container = %self.record.id, "{warning}");
        }
        let image = resolved(&image);
        Ok(Built {
            container,
            user: built.user,
            stop_signal: built.stop_signal,
            image,
            oci_spec,
        })
    }

    async fn prepare(&self, image: &Arc<Image>) -> Result<Snapshot, Error> {
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
        let options = PrepareOptions {
            uid_maps: maps.map(|user| convert(&user.uids)).unwrap_or_default(),
            gid_maps: maps.map(|user| convert(&user.gids)).unwrap_or_default(),
        };
        let images = &self.context.shared.images;
        let prepared = images.prepare(self.record.id.as_str(), &image.id, options).await;
        prepared.map_err(|source| Error::Image {
            step: "preparing the root file system",
            id: self.record.id.to_string(),
            source: Box::new(source),
        })
    }

    fn spec(&self, identity: &Identity, extras: Extras) -> Result<spec::Built, Error> {
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
            cgroup: &self.record.cgroup,
            target_pid: self.target_pid,
            image_sources: &[],
            rlimits: &self.context.shared.config.rlimits,
        };
        Ok(spec::build(&inputs)?)
    }

    /// The kubelet makes it; other clients may not have. Logs can be on any disk, hence not on this thread.
    async fn make_log_directory(&self) -> Result<(), Error> {
        let Some(parent) = Path::new(&self.record.log_path)
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
        else {
            return Ok(());
        };
        let parent = parent.to_path_buf();
        shared::blocking(move || {
            std::fs::create_dir_all(&parent).map_err(|source| Error::io("make log directory", parent, source))
        })
        .await
    }

    /// Everything that may have been done, whether it was or not.
    async fn unwind(&self) -> Vec<String> {
        remove(&self.context, Some(&self.client), &self.record).await
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
    // A monitor that took over from a dead one does not know what had ended before: the cgroup is looked at here too.
    let (hierarchy, cgroup) = (context.shared.hierarchy.clone(), record.cgroup.clone());
    let first = move || super::sweep_one(&hierarchy, &cgroup);
    if let Err(error) = context.shared.disk.remove_container(&id, first).await {
        return vec![error.chain()];
    }
    debug!(container = %id, "removed");
    if record.snapshot_owed {
        discard_later(context, id);
    }
    Vec::new()
}

/// Nobody waits for the disk: what the container wrote may take long to delete. Snapshots have records of their own,
/// and those of no container are discarded at the next start.
fn discard_later(context: &Context, id: ContainerId) {
    let shared = context.shared.clone();
    tokio::spawn(async move {
        let _turn = shared.discards.acquire().await;
        if let Err(error) = shared.images.discard(id.as_str()).await {
            warn!(container = %id, "root file system is left until the next start: {error}");
        }
    });
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
