//! Pull, status, list and remove, with what a pulled image looks like from inside a container.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;
use tonic::Code;

use super::{Pod, cases};
use crate::Context;
use crate::cri::{container_config, must_fail};
use crate::expect;

cases!["images";
    pull_status_list_remove,
    file_system_usage => "the peer samples its usage every ten seconds, and says zero until then",
    by_digest,
    index_gives_this_platform,
    docker_media_types,
    layers_merge,
    directory_over_a_link => "the peer unpacks each layer beside the others, so that the directory hides the link",
    credentials_are_needed,
    six_forms_of_auth,
    removal_is_idempotent,
    not_there,
];

async fn pull_status_list_remove(c: Arc<Context>) -> anyhow::Result<()> {
    let reference = c.image("docker");
    let id = c.cri.pull(reference).await?;
    let image = c
        .cri
        .image_status(reference)
        .await?
        .context("the pulled image has no status")?;
    expect!(
        c.cri.pull(reference).await?,
        id,
        "a second pull gives the same image"
    );
    ensure!(
        image.repo_tags.iter().any(|t| t == reference),
        "no tag {reference} in {:?}",
        image.repo_tags
    );
    ensure!(
        image.repo_digests.len() == 1 && image.repo_digests[0].contains("@sha256:"),
        "{:?}",
        image.repo_digests
    );
    ensure!(image.size > 100_000, "size {}", image.size);
    let by_id = c.cri.image_status(&image.id).await?.context("no status by id")?;
    expect!(by_id.id, image.id, "status by id");
    ensure!(
        c.cri.images().await?.iter().any(|i| i.id == image.id),
        "the image is not listed"
    );
    c.cri.remove_image(&image.id).await?;
    ensure!(
        c.cri.image_status(reference).await?.is_none(),
        "still there after removal by id"
    );
    Ok(())
}

async fn file_system_usage(c: Arc<Context>) -> anyhow::Result<()> {
    c.cri.pull(c.image("busybox")).await?;
    let usage = c
        .cri
        .image
        .clone()
        .image_fs_info(cri::ImageFsInfoRequest {})
        .await?
        .into_inner();
    let fs = usage.image_filesystems.first().context("no image file system")?;
    ensure!(
        fs.timestamp > 0 && fs.used_bytes.is_some_and(|b| b.value > 0),
        "{fs:?}"
    );
    Ok(())
}

async fn by_digest(c: Arc<Context>) -> anyhow::Result<()> {
    c.cri.pull(c.image("busybox")).await?;
    let image = c
        .cri
        .image_status(c.image("busybox"))
        .await?
        .context("no status")?;
    let digest = image.repo_digests.first().context("no digest")?.clone();
    c.cri.remove_image(&image.id).await?;
    c.cri.pull(&digest).await?;
    let again = c
        .cri
        .image_status(&digest)
        .await?
        .context("no status by digest")?;
    expect!(again.id, image.id, "the same image by digest");
    ensure!(
        again.repo_tags.is_empty(),
        "a pull by digest makes no tag: {:?}",
        again.repo_tags
    );
    Ok(())
}

async fn index_gives_this_platform(c: Arc<Context>) -> anyhow::Result<()> {
    c.cri.pull(c.image("index")).await?;
    c.cri.pull(c.image("busybox")).await?;
    let index = c.cri.image_status(c.image("index")).await?.context("no status")?;
    let direct = c
        .cri
        .image_status(c.image("busybox"))
        .await?
        .context("no status")?;
    expect!(index.id, direct.id, "the index member of this platform");
    Ok(())
}

async fn docker_media_types(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("docker")).await?;
    let pod = Pod::run(&c, "docker-types").await?;
    let ended = pod.once(&c, &container_config("true", &image, &[])).await?;
    expect!(ended.status.exit_code, 0, "exit code of the image's own command");
    pod.end().await
}

async fn layers_merge(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("layered")).await?;
    let pod = Pod::run(&c, "layers").await?;
    let id = pod
        .start(&container_config("sleep", &image, &["/bin/sleep", "3600"]))
        .await?;
    expect!(
        c.cri
            .shell(&id, "cat /data/kept; ls /data/gone 2>/dev/null; ls /data/opaque")
            .await?,
        "kept\nnew",
        "whiteouts"
    );
    expect!(
        c.cri.shell(&id, "stat -c %a:%u:%g /data/owned").await?,
        "4755:1000:2000",
        "owner and mode"
    );
    expect!(
        c.cri
            .shell(&id, "stat -c %h /data/first; cat /data/second")
            .await?,
        "2\nlinked",
        "hard link"
    );
    expect!(
        c.cri.shell(&id, "stat -c %F:%t:%T /data/device").await?,
        "character special file:1:3",
        "device node"
    );
    expect!(
        c.cri.shell(&id, "stat -c %a /data").await?,
        "750",
        "a parent that a layer only implies"
    );
    pod.end().await
}

async fn directory_over_a_link(c: Arc<Context>) -> anyhow::Result<()> {
    // The third layer writes below `alias`, a link of the second: as if both had been unpacked onto each other.
    let image = c.cri.pull(c.image("layered")).await?;
    let pod = Pod::run(&c, "over-a-link").await?;
    let id = pod
        .start(&container_config("sleep", &image, &["/bin/sleep", "3600"]))
        .await?;
    expect!(
        c.cri.shell(&id, "ls /real; readlink /alias").await?,
        "above\nbelow\nreal",
        "a directory over a link"
    );
    pod.end().await
}

async fn credentials_are_needed(c: Arc<Context>) -> anyhow::Result<()> {
    let reference = &c.private.reference;
    let refused = c.cri.pull(reference).await;
    must_fail(
        refused,
        &[
            Code::Unauthenticated,
            Code::PermissionDenied,
            Code::Unknown,
            Code::Internal,
        ],
        &["40"],
    )?;
    let wrong = cri::AuthConfig {
        username: "pod".into(),
        password: "wrong".into(),
        ..Default::default()
    };
    ensure!(
        c.cri.pull_as(reference, Some(wrong)).await.is_err(),
        "a wrong password was taken"
    );
    ensure!(
        c.cri.image_status(reference).await?.is_none(),
        "a refused pull left an image"
    );
    let right = cri::AuthConfig {
        username: c.private.user.into(),
        password: c.private.password.into(),
        ..Default::default()
    };
    let id = c.cri.pull_as(reference, Some(right)).await?;
    c.cri.remove_image(&id).await?;
    ensure!(
        c.cri.pull(reference).await.is_err(),
        "the credentials of an earlier pull were used for one without"
    );
    Ok(())
}

async fn six_forms_of_auth(c: Arc<Context>) -> anyhow::Result<()> {
    // A registry with basic authentication tells two of the forms apart; the others need a token server.
    let auth = "cG9kOnNlY3JldCB3b3Jk"; // pod:secret word
    let form = cri::AuthConfig {
        auth: auth.into(),
        ..Default::default()
    };
    let id = c
        .cri
        .pull_as(&c.private.reference, Some(form))
        .await
        .context("auth")?;
    c.cri.remove_image(&id).await?;
    let server = c
        .private
        .reference
        .split('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let form = cri::AuthConfig {
        auth: auth.into(),
        server_address: format!("http://{server}"),
        ..Default::default()
    };
    let id = c
        .cri
        .pull_as(&c.private.reference, Some(form))
        .await
        .context("auth with server_address")?;
    c.cri.remove_image(&id).await?;
    Ok(())
}

async fn removal_is_idempotent(c: Arc<Context>) -> anyhow::Result<()> {
    let id = c.cri.pull(c.image("configured")).await?;
    c.cri.remove_image(&id).await?;
    c.cri.remove_image(&id).await?;
    c.cri.remove_image("localhost/never:was").await?;
    Ok(())
}

async fn not_there(c: Arc<Context>) -> anyhow::Result<()> {
    let host = c
        .image("busybox")
        .split('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let missing = format!("{host}/test/missing:1");
    must_fail(
        c.cri.pull(&missing).await,
        &[Code::NotFound, Code::Unknown],
        &["test/missing"],
    )?;
    ensure!(
        c.cri.image_status(&missing).await?.is_none(),
        "an image that never was has a status"
    );
    Ok(())
}
