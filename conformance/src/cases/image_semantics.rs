//! What an image is called, who may pull it, and what happens to pulls and removals that meet.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;
use tonic::Code;

use super::{Pod, cases};
use crate::Context;
use crate::builder::busybox_layer;
use crate::cri::{Cri, container_config, image_spec, invalid, must_fail};
use crate::expect;
use crate::guarded::{self, Guarded};

cases!["image_semantics";
    one_id_everywhere => "Debian 12's release of the peer has no image_id in the status of a container",
    listed_by_name => "the peer lists all, whatever is asked for",
    found_by_id_tag_and_digest,
    one_removal_takes_all_tags,
    removals_at_once,
    users_of_images,
    pulled_for_a_handler => "the peer's release is older than the field",
    forms_of_credentials => "the peer knows no registry_token",
    credentials_of_another_host,
    a_cancelled_call_cancels_the_pull,
    equal_pulls_are_joined => "the peer joins nothing",
    from_a_mirror,
    pinned => "the peer's release pins by a label",
];

async fn one_id_everywhere(c: Arc<Context>) -> anyhow::Result<()> {
    let id = c.cri.pull(c.image("busybox")).await?;
    ensure!(
        id.starts_with("sha256:") && id.len() == 71,
        "the answer of a pull is {id}"
    );
    expect!(c.cri.pull(c.image("busybox")).await?, id, "a second pull");
    let status = c
        .cri
        .image_status(c.image("busybox"))
        .await?
        .context("no status")?;
    expect!(status.id, id, "ImageStatus");
    let listed: Vec<String> = c.cri.images().await?.into_iter().map(|image| image.id).collect();
    ensure!(listed.contains(&id), "ListImages has {listed:?}");
    let pod = Pod::run(&c, "one-id").await?;
    // By tag, by id and by digest: the container's image is the same.
    let digest = status.repo_digests.first().context("no digest")?.clone();
    for (name, reference) in [("tag", c.image("busybox")), ("id", &id), ("digest", &digest)] {
        let made = pod
            .start(&container_config(name, reference, &["/bin/sleep", "3600"]))
            .await?;
        let status = c.cri.status(&made).await?;
        expect!(
            (status.image_id.as_str(), status.image.map(|i| i.image)),
            (id.as_str(), Some(reference.to_owned())),
            "a container made by {name}"
        );
        ensure!(
            status.image_ref == id || status.image_ref == digest,
            "image_ref is {}",
            status.image_ref
        );
        let listed = c.cri.containers(None).await?;
        let listed = listed.iter().find(|one| one.id == made).context("not listed")?;
        expect!(listed.image_id, id, "image_id in ListContainers, by {name}");
    }
    pod.end().await
}

async fn listed_by_name(c: Arc<Context>) -> anyhow::Result<()> {
    let id = c.cri.pull(c.image("busybox")).await?;
    c.cri.pull(c.image("docker")).await?;
    let filter = cri::ListImagesRequest {
        filter: Some(cri::ImageFilter {
            image: Some(image_spec(c.image("busybox"))),
        }),
    };
    let filtered = c.cri.image.clone().list_images(filter).await?.into_inner().images;
    expect!(
        filtered.iter().map(|image| &image.id).collect::<Vec<_>>(),
        [&id],
        "ListImages with a filter"
    );
    Ok(())
}

async fn found_by_id_tag_and_digest(c: Arc<Context>) -> anyhow::Result<()> {
    let id = c.cri.pull(c.image("busybox")).await?;
    let status = c
        .cri
        .image_status(c.image("busybox"))
        .await?
        .context("no status")?;
    let hex = id.trim_start_matches("sha256:");
    for reference in [&id, hex, &hex[..12], c.image("busybox"), &status.repo_digests[0]] {
        let found = c
            .cri
            .image_status(reference)
            .await?
            .with_context(|| format!("no status by {reference}"))?;
        expect!(found.id, id, "the image by {reference}");
    }
    let unknown = format!("sha256:{}", "0".repeat(64));
    for reference in [unknown.as_str(), "localhost/never:was", "000000000000"] {
        ensure!(
            c.cri.image_status(reference).await?.is_none(),
            "{reference} has a status"
        );
    }
    let nothing = c
        .cri
        .image
        .clone()
        .image_status(cri::ImageStatusRequest {
            image: None,
            verbose: false,
        })
        .await;
    must_fail(nothing, &[Code::InvalidArgument, Code::Unknown], &["image"])?;
    must_fail(
        c.cri.image_status("").await,
        &[Code::InvalidArgument, Code::Unknown],
        &["image"],
    )?;
    Ok(())
}

async fn one_removal_takes_all_tags(c: Arc<Context>) -> anyhow::Result<()> {
    let tags = ["tags-1", "tags-2", "tags-3"].map(|name| c.image(name).to_owned());
    let mut ids = BTreeSet::new();
    for tag in &tags {
        ids.insert(c.cri.pull(tag).await?);
    }
    expect!(ids.len(), 1, "ids of one image with three tags");
    let id = ids.first().cloned().unwrap_or_default();
    let mut named = c.cri.image_status(&id).await?.context("no status")?.repo_tags;
    named.sort();
    expect!(named, tags, "its tags");
    let listed = c.cri.images().await?;
    expect!(
        listed.iter().filter(|image| image.id == id).count(),
        1,
        "entries in ListImages"
    );
    c.cri.remove_image(&tags[1]).await?;
    for tag in tags.iter().chain([&id]) {
        ensure!(c.cri.image_status(tag).await?.is_none(), "{tag} is left");
    }
    Ok(())
}

async fn removals_at_once(c: Arc<Context>) -> anyhow::Result<()> {
    for _ in 0..3 {
        let id = c.cri.pull(c.image("docker")).await?;
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..16 {
            let (cri, name) = (
                c.cri.clone(),
                if n % 2 == 0 {
                    id.clone()
                } else {
                    c.image("docker").to_owned()
                },
            );
            tasks.spawn(async move { cri.remove_image(&name).await });
        }
        while let Some(done) = tasks.join_next().await {
            done?.context("one of sixteen removals")?;
        }
        ensure!(c.cri.image_status(&id).await?.is_none(), "the image is left");
    }
    // Removals and pulls at once: each pull's answer was an image at that time, and the last pull's stays.
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (cri, name) = (c.cri.clone(), c.image("docker").to_owned());
        tasks.spawn(async move {
            if n % 2 == 0 {
                cri.pull(&name).await.map(drop)
            } else {
                cri.remove_image(&name).await
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done?.context("a pull among removals")?;
    }
    let id = c.cri.pull(c.image("docker")).await?;
    let pod = Pod::run(&c, "after-removals").await?;
    let ended = pod
        .once(&c, &container_config("true", &id, &["/bin/true"]))
        .await?;
    expect!(ended.status.exit_code, 0, "a container of it");
    pod.end().await
}

async fn users_of_images(c: Arc<Context>) -> anyhow::Result<()> {
    for (name, uid, username) in [
        ("busybox", None, ""),
        ("configured", None, "app"),
        ("numbered", Some(1234), ""),
    ] {
        c.cri.pull(c.image(name)).await?;
        let image = c.cri.image_status(c.image(name)).await?.context("no status")?;
        expect!(
            (image.uid.map(|uid| uid.value), image.username.as_str()),
            (uid, username),
            "uid and username of {name}"
        );
    }
    Ok(())
}

async fn pull_with(
    cri: &Cri,
    reference: &str,
    handler: &str,
    auth: Option<cri::AuthConfig>,
) -> Result<String, tonic::Status> {
    let mut image = image_spec(reference);
    image.runtime_handler = handler.to_owned();
    let request = cri::PullImageRequest {
        image: Some(image),
        auth,
        sandbox_config: None,
    };
    Ok(cri
        .image
        .clone()
        .pull_image(request)
        .await?
        .into_inner()
        .image_ref)
}

async fn pulled_for_a_handler(c: Arc<Context>) -> anyhow::Result<()> {
    let status = c
        .cri
        .runtime
        .clone()
        .status(cri::StatusRequest { verbose: false })
        .await?
        .into_inner();
    ensure!(!status.runtime_handlers.is_empty(), "Status names no handlers");
    let plain = c.cri.pull(c.image("busybox")).await?;
    for handler in &status.runtime_handlers {
        let id = pull_with(&c.cri, c.image("busybox"), &handler.name, None).await?;
        expect!(id, plain, "the image for the handler {:?}", handler.name);
    }
    must_fail(
        pull_with(&c.cri, c.image("busybox"), "no-such-handler", None).await,
        invalid(),
        &["image.runtime_handler", "no-such-handler"],
    )?;
    Ok(())
}

fn auth(edit: impl FnOnce(&mut cri::AuthConfig)) -> cri::AuthConfig {
    let mut auth = cri::AuthConfig::default();
    edit(&mut auth);
    auth
}

async fn forms_of_credentials(c: Arc<Context>) -> anyhow::Result<()> {
    let registry = Guarded::start()?;
    let tar = busybox_layer()?.finish();
    let private = registry.image("private/busybox", &tar)?;
    let host = registry.host.clone();
    let forms = [
        (
            "username and password",
            auth(|a| {
                a.username = guarded::USER.into();
                a.password = guarded::PASSWORD.into();
            }),
        ),
        ("auth", auth(|a| a.auth = guarded::BASIC.into())),
        (
            "auth and server_address",
            auth(|a| {
                a.auth = guarded::BASIC.into();
                a.server_address = format!("http://{host}");
            }),
        ),
        (
            "identity_token",
            auth(|a| a.identity_token = guarded::IDENTITY.into()),
        ),
        (
            "registry_token",
            auth(|a| a.registry_token = guarded::BEARER.into()),
        ),
    ];
    for (what, form) in forms {
        let id = pull_with(&c.cri, &private, "", Some(form))
            .await
            .with_context(|| what.to_owned())?;
        c.cri.remove_image(&id).await?;
    }
    // Anonymous, and as kubelet says so.
    let public = registry.image("public/busybox", &tar)?;
    for form in [None, Some(cri::AuthConfig::default())] {
        let id = pull_with(&c.cri, &public, "", form)
            .await
            .context("anonymously")?;
        c.cri.remove_image(&id).await?;
    }
    for (what, form) in [
        ("nothing", cri::AuthConfig::default()),
        (
            "a wrong password",
            auth(|a| {
                a.username = guarded::USER.into();
                a.password = "guess".into();
            }),
        ),
        (
            "a wrong identity token",
            auth(|a| a.identity_token = "guess".into()),
        ),
        (
            "a wrong registry token",
            auth(|a| a.registry_token = "guess".into()),
        ),
        ("rubbish as auth", auth(|a| a.auth = "!".into())),
    ] {
        let refused = pull_with(&c.cri, &private, "", Some(form)).await;
        ensure!(refused.is_err(), "{what} was enough");
        ensure!(
            c.cri.image_status(&private).await?.is_none(),
            "a pull with {what} left an image"
        );
    }
    Ok(())
}

async fn credentials_of_another_host(c: Arc<Context>) -> anyhow::Result<()> {
    let registry = Guarded::start()?;
    let private = registry.image("private/busybox", &busybox_layer()?.finish())?;
    let form = auth(|a| {
        a.auth = guarded::BASIC.into();
        a.server_address = "registry.example.com".into();
    });
    ensure!(
        pull_with(&c.cri, &private, "", Some(form)).await.is_err(),
        "credentials for another host were sent"
    );
    Ok(())
}

async fn until(what: &str, mut done: impl FnMut() -> bool) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !done() {
        ensure!(
            begin.elapsed() < Duration::from_secs(20),
            "not within 20 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn a_cancelled_call_cancels_the_pull(c: Arc<Context>) -> anyhow::Result<()> {
    let registry = Guarded::start()?;
    let reference = registry.image("public/held", &own_layer("cancelled")?)?;
    registry.hold(true);
    let (cri, name) = (c.cri.clone(), reference.clone());
    let pull = tokio::spawn(async move { cri.pull(&name).await });
    until("the layer is asked for", || registry.held() == 1).await?;
    pull.abort();
    until("the layer is given up", || {
        registry.abandoned() == 1 && registry.held() == 0
    })
    .await?;
    registry.hold(false);
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(
        c.cri.image_status(&reference).await?.is_none(),
        "a pull that was cancelled left an image"
    );
    // The next one begins anew and ends well.
    let id = c.cri.pull(&reference).await?;
    c.cri.remove_image(&id).await?;
    Ok(())
}

/// A layer that no other image has.
fn own_layer(mark: &str) -> anyhow::Result<Vec<u8>> {
    let mut layer = busybox_layer()?;
    layer.file("mark", mark.as_bytes(), 0o644);
    Ok(layer.finish())
}

async fn equal_pulls_are_joined(c: Arc<Context>) -> anyhow::Result<()> {
    let registry = Guarded::start()?;
    let reference = registry.image("public/joined", &own_layer("joined")?)?;
    registry.hold(true);
    let form = || {
        Some(auth(|a| {
            a.username = guarded::USER.into();
            a.password = guarded::PASSWORD.into();
        }))
    };
    let start = |auth: Option<cri::AuthConfig>, handler: &'static str| {
        let (cri, name) = (c.cri.clone(), reference.clone());
        tokio::spawn(async move { pull_with(&cri, &name, handler, auth).await })
    };
    let mut pulls = vec![start(None, "")];
    until("the layer is asked for", || registry.held() == 1).await?;
    let first = registry.manifests();
    // The same once more asks for nothing.
    pulls.push(start(None, ""));
    tokio::time::sleep(Duration::from_millis(500)).await;
    expect!(
        registry.manifests(),
        first,
        "manifests asked for by an equal pull"
    );
    // Other credentials must be good for themselves; another handler is another pull. The layer is fetched once all the same.
    pulls.push(start(form(), ""));
    until("other credentials are tried", || registry.manifests() > first).await?;
    let second = registry.manifests();
    pulls.push(start(None, "holdfast"));
    until("another handler asks", || registry.manifests() > second).await?;
    let third = registry.manifests();
    pulls.push(start(form(), ""));
    tokio::time::sleep(Duration::from_millis(500)).await;
    expect!(
        registry.manifests(),
        third,
        "manifests asked for by the second of equal credentials"
    );
    expect!(registry.held(), 1, "layers asked for");
    // One of two that wait goes away: the other gets its image.
    pulls.remove(0).abort();
    registry.hold(false);
    let mut ids = BTreeSet::new();
    for pull in pulls {
        ids.insert(pull.await??);
    }
    expect!(ids.len(), 1, "images of four pulls");
    c.cri.remove_image(&reference).await?;
    Ok(())
}

async fn from_a_mirror(c: Arc<Context>) -> anyhow::Result<()> {
    let certs = c.certs_dir()?;
    let (host, name) = c
        .image("busybox")
        .split_once('/')
        .context("a name without a host")?;
    let dir = certs.join("mirrored.test");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(
        dir.join("hosts.toml"),
        format!(
            "server = \"https://mirrored.test\"\n[host.\"http://{host}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        ),
    )?;
    let reference = format!("mirrored.test/{name}");
    let id = c.cri.pull(&reference).await?;
    expect!(id, c.cri.pull(c.image("busybox")).await?, "the image of a mirror");
    let image = c.cri.image_status(&reference).await?.context("no status")?;
    ensure!(
        image.repo_tags.contains(&reference)
            && image.repo_digests.iter().any(|d| d.starts_with("mirrored.test/")),
        "its names: {:?} {:?}",
        image.repo_tags,
        image.repo_digests
    );
    let pod = Pod::run(&c, "mirrored").await?;
    let ended = pod
        .once(
            &c,
            &container_config("true", &reference, &["/bin/echo", "mirrored"]),
        )
        .await?;
    expect!(ended.text, "mirrored\n", "a container of a mirrored image");
    pod.end().await?;
    c.cri.remove_image(&id).await?;
    // A mirror that cannot be reached, and one that has not got it, are passed over, and named when nobody has it.
    std::fs::write(
        dir.join("hosts.toml"),
        format!(
            "server = \"http://127.0.0.1:1\"\n[host.\"http://127.0.0.1:9\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
             [host.\"http://{host}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        ),
    )?;
    let id = c
        .cri
        .pull(&reference)
        .await
        .context("with a mirror before it that is away")?;
    c.cri.remove_image(&id).await?;
    must_fail(
        c.cri.pull("mirrored.test/never/was:1").await,
        &[Code::NotFound, Code::Unavailable, Code::Unknown],
        &["127.0.0.1"],
    )?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

async fn pinned(c: Arc<Context>) -> anyhow::Result<()> {
    // The server was told to pin `pinned.test/test/docker:1`.
    let certs = c.certs_dir()?;
    let (host, name) = c
        .image("docker")
        .split_once('/')
        .context("a name without a host")?;
    let dir = certs.join("pinned.test");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(
        dir.join("hosts.toml"),
        format!("[host.\"http://{host}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"),
    )?;
    c.cri.pull(c.image("busybox")).await?;
    let id = c.cri.pull(&format!("pinned.test/{name}")).await?;
    for image in c.cri.images().await? {
        expect!(image.pinned, image.id == id, "whether {} is pinned", image.id);
    }
    // Kubelet leaves it; who names it can remove it.
    c.cri.remove_image(&id).await?;
    ensure!(
        c.cri.image_status(&id).await?.is_none(),
        "a pinned image cannot be removed"
    );
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
