//! What the daemon does now and then, and as it leaves.

use std::time::Duration;

use holdfast_cgroups::Hierarchy;
use holdfast_images::Images;

/// Layers of failed pulls are kept for a while; this often it is seen whose time is over.
const COLLECT_EVERY: Duration = Duration::from_secs(60 * 60);

/// Collects image content for as long as the runtime lives.
pub fn collect_images(images: Images) {
    tokio::spawn(async move {
        let mut every = tokio::time::interval(COLLECT_EVERY);
        every.tick().await;
        loop {
            every.tick().await;
            if let Err(error) = images.collect().await {
                tracing::warn!(%error, "image content that nothing needs could not be freed");
            }
        }
    });
}

/// Removes the parents of cgroups that are gone. Pods that run on keep theirs.
pub fn remove_empty_cgroups(paths: &[String]) {
    let outcome = Hierarchy::detect().and_then(|hierarchy| {
        paths
            .iter()
            .try_for_each(|path| hierarchy.remove_if_empty(path).map(drop))
    });
    if let Err(error) = outcome {
        tracing::warn!(%error, "an empty cgroup stays behind");
    }
}
