//! One pull: documents first, then layers, then the record.

use std::sync::Arc;

use holdfast_registry::{Auth, Descriptor, Digest, Platform, Pull};
use tokio::sync::watch;

use crate::bring::{Bringing, Feed};
use crate::images::Shared;
use crate::inflight::{Key, Progress};
use crate::manifest;
use crate::names::Names;
use crate::state::NewImage;
use crate::{ImageId, Result, content};

/// What to pull, with which credential, for whom.
#[derive(Debug, Clone, Default)]
pub struct PullRequest {
    /// Any form that a pod specification may hold.
    pub reference: String,
    /// Credential of this request; never used for another.
    pub auth: Option<Auth>,
    /// Platform, if not [`crate::Config::platform`].
    pub platform: Option<Platform>,
    /// Runtime handler for which the image is pulled.
    pub handler: String,
}

/// The body of a pull that others may have joined.
pub(crate) async fn run(shared: &Arc<Shared>, key: &Key, step: &watch::Sender<Progress>) -> Result<ImageId> {
    let limits = &shared.config.limits;
    // The registry is asked whatever is here already: the tag may have moved, and the credential must be good for it.
    let pull = shared.registry.pull(&key.reference, key.auth.as_ref()).await?;
    let resolved = pull.resolve(&key.platform).await?;
    let descriptor = resolved.manifest.config.clone();
    manifest::check(&resolved.manifest, resolved.document.digest.as_str(), limits)?;
    let id = descriptor.digest.clone();
    let mut blobs = vec![id.clone(), resolved.document.digest.clone()];
    if resolved.root.digest != resolved.document.digest {
        blobs.push(resolved.root.digest.clone());
    }
    let kept = shared.state.work_on(blobs.clone());
    let config = match content::get(&shared.places, &id, limits.config_bytes) {
        Ok(bytes) => bytes.into(),
        Err(_) => pull.bytes(&descriptor, limits.config_bytes).await?,
    };
    let sources = resolved.manifest.layers.iter().cloned().map(Some).collect();
    let documents = manifest::join(id.clone(), &config, sources, limits)?;
    let chain: Vec<Digest> = documents.layers.iter().map(|layer| layer.chain.clone()).collect();
    let kept = vec![kept, shared.state.work_on(chain.clone())];
    let bringing = Bringing::begin(shared, format!("{} {}", key.reference, id), kept)?;
    let stored = [
        (&id, &config),
        (&resolved.document.digest, &resolved.document.bytes),
        (&resolved.root.digest, &resolved.root.bytes),
    ];
    let stored: Vec<_> = stored
        .into_iter()
        .map(|(digest, bytes)| (digest.clone(), bytes.clone()))
        .collect();
    let blob_bytes = stored[..blobs.len()]
        .iter()
        .map(|(_, bytes)| bytes.len() as u64)
        .sum();
    bringing.documents(stored).await?;
    bringing.layers(&documents, feed(pull), step).await?;
    let names = Names::pulled(&key.reference, &resolved.root.digest);
    let new = NewImage {
        id: id.clone(),
        names,
        layers: chain,
        blobs,
        blob_bytes,
        config: documents.config,
    };
    bringing.record(new).await?;
    tracing::info!(image = %id, reference = %key.reference, "image pulled");
    Ok(id)
}

/// Layers come as streams from the registry; the pipeline hashes them.
fn feed(pull: Pull) -> Feed {
    Arc::new(move |layer: Option<Descriptor>, _, chunks| {
        let pull = pull.clone();
        Box::pin(async move {
            let Some(layer) = layer else { return Ok(None) };
            let mut blob = pull.blob(&layer).await?;
            while let Some(chunk) = blob.chunk().await? {
                // Closed only when the other side has failed, and that says why.
                if chunks.send(chunk).await.is_err() {
                    break;
                }
            }
            Ok(Some(blob))
        })
    })
}
