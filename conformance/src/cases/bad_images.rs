//! Images that lie, that are damaged, or that mean harm: the pull says what is wrong, leaves no image, and the next one works.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tonic::Code;

use super::{Pod, cases};
use crate::builder::{Entry, Layer, Packing, busybox_layer, pack};
use crate::cri::{container_config, must_fail};
use crate::hostile::{Fault, Hostile};
use crate::{Context, NotApplicable, expect};

cases!["bad_images";
    wrong_digest,
    truncated_blob within 20,
    never_ending_blob within 10 => "the peer reads on for as long as the registry sends",
    manifest_of_100_megabytes,
    manifest_that_is_none,
    layer_that_is_no_archive,
    names_that_leave_the_layer => "the peer takes `..` as far as the root of the layer goes, and unpacks there",
    hard_link_to_the_host,
    absolute_links_stay_inside,
    bomb => "the peer has no limit for what a layer unpacks to",
];

const REFUSED: &[Code] = &[
    Code::InvalidArgument,
    Code::Unknown,
    Code::Internal,
    Code::DataLoss,
    Code::FailedPrecondition,
    Code::ResourceExhausted,
    Code::Unavailable,
    Code::NotFound,
    Code::OutOfRange,
];

/// The pull of `reference` must fail with an error that has all `words`, and leave nothing; a good image of the same
/// registry is pulled after it.
async fn refused(c: &Context, hostile: &Hostile, reference: &str, words: &[&str]) -> anyhow::Result<()> {
    let before = c.cri.images().await?.len();
    must_fail(c.cri.pull(reference).await, REFUSED, words)?;
    ensure!(
        c.cri.image_status(reference).await?.is_none(),
        "a refused pull left {reference}"
    );
    expect!(c.cri.images().await?.len(), before, "images after a refused pull");
    let mut tar = Layer::default();
    tar.file("good", reference.as_bytes(), 0o644);
    let good = c.cri.pull(&hostile.image("good", &tar.finish(), None)?).await?;
    c.cri.remove_image(&good).await?;
    Ok(())
}

fn tar() -> Vec<u8> {
    // What gzip cannot make small, so that a part of it is less than the whole.
    let noise: Vec<u8> = (0..100_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes())
        .collect();
    Layer::default().file("noise", &noise, 0o644).finish()
}

async fn wrong_digest(c: Arc<Context>) -> anyhow::Result<()> {
    let hostile = Hostile::start()?;
    let mut blob = pack(&tar(), Packing::Gzip)?;
    let middle = blob.len() / 2;
    blob[middle] ^= 1;
    let reference = hostile.image("wrong-digest", &tar(), Some(Fault::Other(blob)))?;
    refused(&c, &hostile, &reference, &["blob sha256:", "digest is sha256:"]).await
}

async fn truncated_blob(c: Arc<Context>) -> anyhow::Result<()> {
    let hostile = Hostile::start()?;
    let reference = hostile.image("truncated", &tar(), Some(Fault::Truncated(1000)))?;
    refused(
        &c,
        &hostile,
        &reference,
        &["truncated", "blob sha256:", "after 1000 of"],
    )
    .await
}

async fn never_ending_blob(c: Arc<Context>) -> anyhow::Result<()> {
    let hostile = Hostile::start()?;
    let reference = hostile.image("endless", &tar(), Some(Fault::Endless))?;
    refused(&c, &hostile, &reference, &["endless", "longer than its"]).await
}

async fn manifest_of_100_megabytes(c: Arc<Context>) -> anyhow::Result<()> {
    let hostile = Hostile::start()?;
    let mut bytes = br#"{"schemaVersion": 2, "x": ""#.to_vec();
    bytes.resize(100 << 20, b'x');
    bytes.extend_from_slice(b"\"}");
    let reference = hostile.manifest("large-manifest", bytes);
    let start = Instant::now();
    refused(&c, &hostile, &reference, &["large-manifest", "limit"]).await?;
    ensure!(
        start.elapsed() < Duration::from_secs(10),
        "took {:?}",
        start.elapsed()
    );
    Ok(())
}

async fn manifest_that_is_none(c: Arc<Context>) -> anyhow::Result<()> {
    let hostile = Hostile::start()?;
    for (name, bytes) in [
        ("empty-manifest", &b""[..]),
        ("no-json", b"<html>Sign in</html>"),
        ("no-layers", br#"{"schemaVersion": 2}"#),
    ] {
        let reference = hostile.manifest(name, bytes.to_vec());
        refused(&c, &hostile, &reference, &[name, "manifest"]).await?;
    }
    Ok(())
}

async fn layer_that_is_no_archive(c: Arc<Context>) -> anyhow::Result<()> {
    let hostile = Hostile::start()?;
    let reference = hostile.image("no-archive", &[b'x'; 4096], None)?;
    refused(
        &c,
        &hostile,
        &reference,
        &["layer sha256:", "archive is malformed"],
    )
    .await
}

async fn names_that_leave_the_layer(c: Arc<Context>) -> anyhow::Result<()> {
    let hostile = Hostile::start()?;
    let escaped = Path::new("/var/tmp/conformance-escaped");
    for (n, prefix) in [
        "../../../../../../..",
        "a/../../../../../../../..",
        "/../../../..",
    ]
    .iter()
    .enumerate()
    {
        let name = format!("{prefix}{}", escaped.display());
        let tar = Layer::default().file(&name, b"x", 0o644).finish();
        let reference = hostile.image(&format!("dots-{n}"), &tar, None)?;
        let result = refused(&c, &hostile, &reference, &["'..' in a path"]).await;
        let there = escaped.exists();
        if there {
            std::fs::remove_file(escaped)?;
        }
        ensure!(!there, "the layer has written {}", escaped.display());
        result?;
    }
    Ok(())
}

async fn hard_link_to_the_host(c: Arc<Context>) -> anyhow::Result<()> {
    let hostile = Hostile::start()?;
    let mut tar = Layer::default();
    tar.hard_link("stolen", "/etc/passwd");
    let reference = hostile.image("hard-link", &tar.finish(), None)?;
    refused(&c, &hostile, &reference, &["etc/passwd", "does not exist"]).await
}

async fn absolute_links_stay_inside(c: Arc<Context>) -> anyhow::Result<()> {
    let hostile = Hostile::start()?;
    let outside = c.scratch.join("outside");
    std::fs::create_dir_all(&outside)?;
    let target = outside.to_string_lossy().into_owned();
    let mut tar = busybox_layer()?;
    tar.link("abs", &target)
        .add("abs/written", &Entry::File(b"inside\n".to_vec()), 0o644, (0, 0))
        .link("up", &format!("../../../../../../../..{target}"))
        .file("up/also", b"inside\n", 0o644);
    let image = c.cri.pull(&hostile.image("links", &tar.finish(), None)?).await?;
    expect!(
        std::fs::read_dir(&outside)?.count(),
        0,
        "files that the layer has written on the host"
    );
    let pod = Pod::run(&c, "links").await?;
    // A program behind a link and a directory behind one are the image's own.
    let ended = pod
        .once(
            &c,
            &container_config("links", &image, &["/bin/cat", "/abs/written", "/up/also"]),
        )
        .await?;
    expect!(ended.text, "inside\ninside\n", "the files behind the links");
    pod.end().await?;
    c.cri.remove_image(&image).await?;
    Ok(())
}

async fn bomb(c: Arc<Context>) -> anyhow::Result<()> {
    let limit = c.layer_limit.ok_or(NotApplicable(
        "how much a layer may unpack to is not known (--layer-limit)",
    ))?;
    let hostile = Hostile::start()?;
    let zeros = vec![0; usize::try_from(limit)? + (1 << 20)];
    let tar = Layer::default().file("zeros", &zeros, 0o644).finish();
    let reference = hostile.image("bomb", &tar, None)?;
    drop((zeros, tar));
    refused(
        &c,
        &hostile,
        &reference,
        &["layer sha256:", &limit.to_string(), "unpacked"],
    )
    .await
}
