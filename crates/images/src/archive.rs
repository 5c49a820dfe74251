//! Loading images from a file: an OCI layout (directory or archive), or what `docker save` writes.
//!
//! The archive gives names and content, never more: its paths are only looked up in a table of its own members, its digests are
//! checked, and what it holds goes the same way as a pulled image from there on.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_registry::{Descriptor, Digest, Manifest};
use serde::Deserialize;
use tokio::sync::watch;

use crate::bring::{Bringing, Feed};
use crate::images::Shared;
use crate::inflight::Progress;
use crate::manifest::{self, Parsed};
use crate::members::{Members, Piece};
use crate::names::Names;
use crate::state::NewImage;
use crate::{Error, ImageId, Result, pipeline, threads};

/// Annotations that name an image: containerd's full name, and the specification's, which may be a bare tag.
const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Indexes within indexes.
const MAX_DEPTH: usize = 3;
/// Images of one archive.
const MAX_IMAGES: usize = 1000;
/// Size of the pieces in which a layer is read.
const CHUNK: usize = 256 << 10;

/// An image found in an archive.
struct Found {
    id: Digest,
    config: Bytes,
    /// The manifest, with its bytes, if the archive has one.
    manifest: Option<(Digest, Bytes)>,
    layers: Vec<(Option<Descriptor>, Piece)>,
    names: Vec<String>,
}

/// The body of [`crate::Images::load_archive`].
pub(crate) async fn load(shared: &Arc<Shared>, path: &Path, name: Option<&str>) -> Result<Vec<ImageId>> {
    let (inner, place) = (Arc::clone(shared), path.to_path_buf());
    let found = tokio::task::spawn_blocking(move || find(&inner, &place)).await;
    let mut found = found.map_err(|e| Error::io("read", path, std::io::Error::other(e)))??;
    if let Some(name) = name {
        let [only] = found.as_mut_slice() else {
            let reason = format!(
                "it holds {} images, so that one name cannot be given",
                found.len()
            );
            return Err(Error::Archive {
                path: path.to_path_buf(),
                reason,
            });
        };
        only.names = vec![name.to_owned()];
    }
    let mut ids = Vec::with_capacity(found.len());
    for image in found {
        ids.push(one(shared, image).await?);
    }
    Ok(ids)
}

async fn one(shared: &Arc<Shared>, found: Found) -> Result<ImageId> {
    let id = found.id;
    let sources = found.layers.iter().map(|(blob, _)| blob.clone()).collect();
    let documents = manifest::join(id.clone(), &found.config, sources, &shared.config.limits)?;
    let mut names = Names::default();
    for name in &found.names {
        names.add(name, found.manifest.as_ref().map(|(digest, _)| digest))?;
    }
    let stored: Vec<(Digest, Bytes)> = std::iter::once((id.clone(), found.config))
        .chain(found.manifest)
        .collect();
    let blobs: Vec<Digest> = stored.iter().map(|(digest, _)| digest.clone()).collect();
    let blob_bytes = stored.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let chain: Vec<Digest> = documents.layers.iter().map(|layer| layer.chain.clone()).collect();
    let kept = shared
        .state
        .work_on(blobs.iter().chain(&chain).cloned().collect());
    let bringing = Bringing::begin(shared, format!("load {id}"), vec![kept])?;
    bringing.documents(stored).await?;
    let pieces = found.layers.into_iter().map(|(_, piece)| piece).collect();
    let (step, _) = watch::channel(Progress::default());
    bringing.layers(&documents, feed(pieces), &step).await?;
    let new = NewImage {
        id: id.clone(),
        names,
        layers: chain,
        blobs,
        blob_bytes,
        config: documents.config,
    };
    bringing.record(new).await?;
    tracing::info!(image = %id, names = ?found.names, "image loaded");
    Ok(id)
}

/// Reads layers from their places in the archive.
fn feed(pieces: Vec<Piece>) -> Feed {
    let pieces = Arc::new(pieces);
    Arc::new(move |_, place, chunks| {
        let piece = pieces[place].clone();
        Box::pin(async move {
            // Waits for the other side, which may wait for its turn.
            let reading = threads::run("read layer", move || {
                let mut at = 0;
                while at < piece.len() {
                    let bytes = piece.read(at, CHUNK)?;
                    at += bytes.len() as u64;
                    // Closed when the other side has failed, which says why.
                    if chunks.blocking_send(bytes).is_err() {
                        break;
                    }
                }
                Ok(None)
            })
            .map_err(|e| Error::io("start a thread to read", "an archive", e))?;
            reading
                .await
                .unwrap_or_else(|e| Err(Error::io("read", "an archive", std::io::Error::other(e))))
        })
    })
}

fn find(shared: &Shared, path: &Path) -> Result<Vec<Found>> {
    let members = Members::open(path, &shared.places.tmp, &shared.config.limits)?;
    let finder = Finder {
        shared,
        path,
        members,
    };
    let found = if finder.members.find("index.json")?.is_some() {
        finder.oci()?
    } else if finder.members.find("manifest.json")?.is_some() {
        finder.docker()?
    } else {
        return Err(finder.refuse("it has neither index.json (OCI layout) nor manifest.json (docker save)"));
    };
    if found.is_empty() {
        return Err(finder.refuse(format!("it holds no image for {}", shared.config.platform)));
    }
    Ok(found)
}

struct Finder<'a> {
    shared: &'a Shared,
    path: &'a Path,
    members: Members,
}

/// One image of `docker save`'s `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Finder<'_> {
    fn oci(&self) -> Result<Vec<Found>> {
        let index = self.member("index.json", self.shared.config.limits.manifest_bytes)?;
        let Parsed::Index(index) =
            manifest::parse(&index).map_err(|e| self.refuse(format!("index.json: {e}")))?
        else {
            return Err(self.refuse("index.json is no index"));
        };
        let mut found: Vec<Found> = Vec::new();
        let entries = index.manifests.unwrap_or_default();
        if entries.len() > MAX_IMAGES {
            return Err(self.refuse(format!(
                "it holds {} images, {MAX_IMAGES} are allowed",
                entries.len()
            )));
        }
        for entry in entries {
            let names = names_of(&entry);
            let Some((descriptor, manifest, bytes)) = self.manifest(entry, 0)? else {
                continue;
            };
            // The same image under another name is listed once more.
            let same = found
                .iter_mut()
                .find(|f| f.manifest.as_ref().is_some_and(|(d, _)| *d == descriptor.digest));
            match same {
                Some(same) => same.names.extend(names),
                None => found.push(self.oci_image(&descriptor, &manifest, bytes, names)?),
            }
        }
        Ok(found)
    }

    /// Goes from an entry of the index to a manifest for this platform; `None` if there is none.
    fn manifest(&self, entry: Descriptor, depth: usize) -> Result<Option<(Descriptor, Manifest, Bytes)>> {
        let platform = &self.shared.config.platform;
        if entry
            .platform
            .as_ref()
            .is_some_and(|offered| platform.rank(offered).is_none())
        {
            return Ok(None);
        }
        let bytes = self.blob(&entry, self.shared.config.limits.manifest_bytes)?;
        let document = |reason| Error::Document {
            document: "manifest",
            digest: entry.digest.to_string(),
            reason,
        };
        let index = match manifest::parse(&bytes).map_err(document)? {
            Parsed::Manifest(manifest) => return Ok(Some((entry, *manifest, bytes))),
            Parsed::Index(index) => index,
        };
        if depth == MAX_DEPTH {
            return Err(document(format!("indexes are nested more than {MAX_DEPTH} deep")));
        }
        let offers = index.manifests.unwrap_or_default();
        let ranked = offers.into_iter().filter_map(|o| {
            // An entry without a platform is for any; one that says otherwise must fit.
            let rank = o
                .platform
                .as_ref()
                .map_or(Some(u32::MAX), |offered| platform.rank(offered));
            rank.map(|rank| (rank, o))
        });
        match ranked.min_by_key(|(rank, _)| *rank) {
            Some((_, best)) => self.manifest(best, depth + 1),
            None => Ok(None),
        }
    }

    fn oci_image(
        &self,
        descriptor: &Descriptor,
        manifest: &Manifest,
        bytes: Bytes,
        names: Vec<String>,
    ) -> Result<Found> {
        let limits = &self.shared.config.limits;
        manifest::check(manifest, descriptor.digest.as_str(), limits)?;
        let config = self.blob(&manifest.config, limits.config_bytes)?;
        let layers = manifest
            .layers
            .iter()
            .map(|layer| Ok((Some(layer.clone()), self.piece(layer)?)));
        Ok(Found {
            id: manifest.config.digest.clone(),
            config,
            layers: layers.collect::<Result<_>>()?,
            manifest: Some((descriptor.digest.clone(), bytes)),
            names,
        })
    }

    fn docker(&self) -> Result<Vec<Found>> {
        let limits = &self.shared.config.limits;
        let json = self.member("manifest.json", limits.manifest_bytes)?;
        let images: Vec<DockerImage> =
            serde_json::from_slice(&json).map_err(|e| self.refuse(format!("manifest.json: {e}")))?;
        if images.len() > MAX_IMAGES {
            return Err(self.refuse(format!(
                "it holds {} images, {MAX_IMAGES} are allowed",
                images.len()
            )));
        }
        let found = images.into_iter().map(|image| {
            let config = self.member(&image.config, limits.config_bytes)?;
            let layers = image.layers.unwrap_or_default().into_iter().map(|name| {
                let piece = self
                    .members
                    .find(&name)?
                    .ok_or_else(|| self.refuse(format!("it has no {name:?}")))?;
                Ok((None, piece))
            });
            Ok(Found {
                id: Digest::sha256(&config),
                layers: layers.collect::<Result<_>>()?,
                config,
                manifest: None,
                names: image.repo_tags.unwrap_or_default(),
            })
        });
        found.collect()
    }

    fn piece(&self, descriptor: &Descriptor) -> Result<Piece> {
        let name = format!(
            "blobs/{}/{}",
            descriptor.digest.algorithm().name(),
            descriptor.digest.hex()
        );
        let piece = self
            .members
            .find(&name)?
            .ok_or_else(|| self.refuse(format!("it has no {name}")))?;
        if piece.len() != descriptor.size {
            let reason = format!(
                "{name} has {} bytes, its descriptor says {}",
                piece.len(),
                descriptor.size
            );
            return Err(self.refuse(reason));
        }
        Ok(piece)
    }

    /// A document, checked by size and digest.
    fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes> {
        let piece = self.piece(descriptor)?;
        let bytes = self.whole(&piece, descriptor.digest.as_str(), limit)?;
        pipeline::verify(&descriptor.digest, &bytes).map_err(|mismatch| Error::Mismatch {
            what: format!("document in {}", self.path.display()),
            mismatch,
        })?;
        Ok(bytes)
    }

    fn member(&self, name: &str, limit: u64) -> Result<Bytes> {
        let piece = self
            .members
            .find(name)?
            .ok_or_else(|| self.refuse(format!("it has no {name:?}")))?;
        self.whole(&piece, name, limit)
    }

    fn whole(&self, piece: &Piece, name: &str, limit: u64) -> Result<Bytes> {
        if piece.len() > limit {
            return Err(self.refuse(format!("{name} has {} bytes, {limit} are allowed", piece.len())));
        }
        piece.read(0, usize::try_from(limit).unwrap_or(usize::MAX))
    }

    fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::Archive {
            path: self.path.to_path_buf(),
            reason: reason.into(),
        }
    }
}

/// Names from annotations; a bare tag names no repository and is left out.
fn names_of(entry: &Descriptor) -> Vec<String> {
    if let Some(full) = entry.annotations.get(FULL_NAME) {
        return vec![full.clone()];
    }
    let named = entry
        .annotations
        .get(REF_NAME)
        .filter(|name| name.contains(['/', ':']));
    named.into_iter().cloned().collect()
}
