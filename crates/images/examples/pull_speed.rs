//! Pulls an image into a fresh root some times over and says how long each took: `pull_speed REFERENCE [ROOT [TIMES]]`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use holdfast_images::{Config, Images, PullRequest};
use holdfast_registry::Client;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let reference = args.next().ok_or("usage: pull_speed REFERENCE [ROOT [TIMES]]")?;
    let root = args
        .next()
        .map_or_else(|| PathBuf::from("/var/tmp/holdfast-pull-speed"), PathBuf::from);
    let times = args.next().map_or(Ok(3), |n| n.parse())?;
    for _ in 0..times {
        if root.exists() {
            std::fs::remove_dir_all(&root)?;
        }
        let registry = Arc::new(Client::new(holdfast_registry::Config::default()));
        let images = Images::open(&root, Config::default(), registry)?;
        let begun = Instant::now();
        let id = images
            .pull(
                PullRequest {
                    reference: reference.clone(),
                    ..PullRequest::default()
                },
                |_| {},
            )
            .await?;
        let took = begun.elapsed();
        let size = images.get(id.as_str()).map_or(0, |image| image.size);
        println!("{:.3} s, {} MB on disk", took.as_secs_f64(), size / 1_000_000);
    }
    std::fs::remove_dir_all(&root)?;
    Ok(())
}
