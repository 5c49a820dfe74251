//! `hosts.toml` at work: order, capabilities, paths, headers, fallback.

use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_registry::{
    Blob, Client, Config, Descriptor, Digest, DigestMismatch, Error, Kind, Proxy, Pull, Reference, Resolved,
};

use crate::server::{Image, Reply, Server, client, content_range, not_found, platform, put_hosts, range};

async fn pull(dir: &std::path::Path, reference: &str) -> Pull {
    client(Some(dir))
        .pull(&Reference::parse(reference).unwrap(), None)
        .await
        .unwrap()
}

async fn all(pull: &Pull, image: &Resolved) -> Result<Vec<u8>, Error> {
    let read = pull.bytes(&image.manifest.layers[0], u64::MAX).await;
    read.map(Into::into)
}

#[tokio::test]
async fn mirrors_in_order_then_the_server() {
    let image = Image::new(1000);
    let copy = image.clone();
    let first = Server::start(|_| not_found()).await;
    let second = Server::start(|_| Reply::new(500, "broken")).await;
    let server = Server::start(move |seen| copy.serve(seen)).await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "server = \"{}\"\n[host.\"{}\"]\n[host.\"{}\"]\n[host.\"http://127.0.0.1:1\"]",
        server.url(),
        first.url(),
        second.url()
    );
    put_hosts(dir.path(), "images.example", &text);
    let pull = pull(dir.path(), "images.example/team/app:1").await;
    let resolved = pull.resolve(&platform()).await.unwrap();
    assert_eq!(all(&pull, &resolved).await.unwrap(), image.layer);
    assert_eq!(first.seen()[0].path, "/v2/team/app/manifests/1");
    assert_eq!(first.seen()[0].query, "ns=images.example");
    assert_eq!(second.count("manifests"), 2, "a mirror gets two attempts");
    assert_eq!(server.seen()[0].query, "ns=images.example");
}

#[tokio::test]
async fn what_was_tried_everywhere_is_told() {
    let first = Server::start(|_| not_found()).await;
    let server = Server::start(|_| Reply::new(403, "go away")).await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "server = \"{}\"\n[host.\"{}\"]\n[host.\"http://127.0.0.1:1\"]",
        server.url(),
        first.url()
    );
    put_hosts(dir.path(), "images.example", &text);
    let error = pull(dir.path(), "images.example/team/app:1")
        .await
        .resolve(&platform())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "pull images.example/team/app:1: 403 forbidden from {}: go away (tried before: 404 not found from {}: NAME_UNKNOWN repository \
             name not known to registry; cannot connect to 127.0.0.1:1: Connection refused (os error 111))",
            server.url(),
            first.url()
        )
    );
}

#[tokio::test]
async fn capabilities_paths_and_headers() {
    let image = Image::new(1000);
    let (a, b) = (image.clone(), image.clone());
    let blobs = Server::start(move |seen| a.serve(seen)).await;
    let names = Server::start(move |seen| b.serve(seen)).await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        r#"
[host."{}/cache/v2/proxy"]
capabilities = ["pull"]
override_path = true
header = {{ x-key = "k1", x-more = ["a", "b"] }}
[host."{}"]
capabilities = ["resolve"]
"#,
        blobs.url(),
        names.url()
    );
    put_hosts(dir.path(), "_default", &text);
    let pull = pull(dir.path(), "busybox:1").await;
    let resolved = pull.resolve(&platform()).await.unwrap();
    all(&pull, &resolved).await.unwrap();
    assert_eq!(names.seen().len(), 1);
    let seen = blobs.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(
        seen[0].path,
        format!("/cache/v2/proxy/library/busybox/blobs/{}", image.layer_digest)
    );
    assert_eq!(seen[0].query, "ns=docker.io");
    assert_eq!(seen[0].header("x-key"), "k1");
    assert_eq!(seen[0].headers.get_all("x-more").iter().count(), 2);
}

#[tokio::test]
async fn no_host_is_able() {
    let dir = tempfile::tempdir().unwrap();
    put_hosts(dir.path(), "images.example", "capabilities = [\"push\"]");
    let error = pull(dir.path(), "images.example/app")
        .await
        .resolve(&platform())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("images.example/hosts.toml may resolve"),
        "{error}"
    );
}

#[tokio::test]
async fn a_blob_moves_to_the_next_host_in_its_middle() {
    let image = Image::new(400_000);
    let (a, b) = (image.clone(), image.clone());
    let mirror = Server::start(move |seen| match range(seen) {
        _ if !seen.path.contains("/blobs/") => a.serve(seen),
        None => Reply::broken(200, 400_000, a.layer.slice(..150_000)),
        Some(first) => Reply::broken(206, 400_000 - first, Bytes::new())
            .with("content-range", &content_range(first, &a.layer)),
    })
    .await;
    let server = Server::start(move |seen| b.serve(seen)).await;
    let dir = tempfile::tempdir().unwrap();
    put_hosts(
        dir.path(),
        "images.example",
        &format!("server = \"{}\"\n[host.\"{}\"]", server.url(), mirror.url()),
    );
    let pull = pull(dir.path(), "images.example/app:1").await;
    let resolved = pull.resolve(&platform()).await.unwrap();
    assert_eq!(all(&pull, &resolved).await.unwrap(), image.layer);
    assert_eq!(server.seen().last().unwrap().header("range"), "bytes=150000-");
}

#[tokio::test]
async fn a_mirror_with_a_wrong_blob_is_avoided_the_next_time() {
    let image = Image::new(1000);
    let (a, b) = (image.clone(), image.clone());
    let mirror = Server::start(move |seen| {
        if seen.path.contains("/blobs/") {
            Reply::new(200, vec![1; 1000])
        } else {
            a.serve(seen)
        }
    })
    .await;
    let server = Server::start(move |seen| b.serve(seen)).await;
    let dir = tempfile::tempdir().unwrap();
    put_hosts(
        dir.path(),
        "images.example",
        &format!("server = \"{}\"\n[host.\"{}\"]", server.url(), mirror.url()),
    );
    let pull = pull(dir.path(), "images.example/app:1").await;
    let resolved = pull.resolve(&platform()).await.unwrap();
    let layer = &resolved.manifest.layers[0];
    let (blob, mismatch) = wrong(&pull, layer).await;
    blob.reject(mismatch).unwrap();
    assert_eq!(all(&pull, &resolved).await.unwrap(), image.layer);
    assert_eq!(mirror.count("/blobs/"), 1);
}

/// Reads a blob whose bytes are the wrong ones.
async fn wrong(pull: &Pull, layer: &Descriptor) -> (Blob, DigestMismatch) {
    let mut blob = pull.blob(layer).await.unwrap();
    let mut verifier = layer.digest.verifier();
    while let Some(chunk) = blob.chunk().await.unwrap() {
        verifier.update(&chunk);
    }
    (blob, verifier.finish().unwrap_err())
}

#[tokio::test]
async fn a_mirror_that_was_left_is_named_where_the_next_host_fails() {
    let image = Image::new(1000);
    let (a, b) = (image.clone(), image.clone());
    let mirror = Server::start(move |seen| {
        if seen.path.contains("/blobs/") {
            Reply::new(200, vec![1; 1000])
        } else {
            a.serve(seen)
        }
    })
    .await;
    let server = Server::start(move |seen| {
        if seen.path.contains("/blobs/") {
            not_found()
        } else {
            b.serve(seen)
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!("server = \"{}\"\n[host.\"{}\"]", server.url(), mirror.url());
    put_hosts(dir.path(), "images.example", &text);
    let first = pull(dir.path(), "images.example/app:1").await;
    let resolved = first.resolve(&platform()).await.unwrap();
    let layer = &resolved.manifest.layers[0];
    let before = |what: &str| {
        format!(
            "404 not found from {}: NAME_UNKNOWN repository name not known to registry (tried before: {}: blob {}: {what})",
            server.url(),
            mirror.url(),
            layer.digest
        )
    };
    let error = all(&first, &resolved).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    let mismatch = wrong(&pull(dir.path(), "images.example/app:1").await, layer)
        .await
        .1;
    assert!(
        error.to_string().ends_with(&before(&mismatch.to_string())),
        "{error}"
    );

    // Who could not use it, and did not read it to its end, has a reason too.
    let second = pull(dir.path(), "images.example/app:1").await;
    let mut blob = second.blob(layer).await.unwrap();
    assert!(blob.suspect(&std::io::Error::other("it is damaged")));
    let error = all(&second, &resolved).await.unwrap_err();
    assert!(error.to_string().ends_with(&before("it is damaged")), "{error}");
    assert_eq!(mirror.count("/blobs/"), 3);

    // Without another host there is nothing to be gained.
    put_hosts(
        dir.path(),
        "other.example",
        &format!("server = \"{}\"", mirror.url()),
    );
    let only = pull(dir.path(), "other.example/app:1").await;
    let mut blob = only.blob(layer).await.unwrap();
    assert!(!blob.suspect(&std::io::Error::other("it is damaged")));
}

#[tokio::test]
async fn a_small_blob_that_is_wrong_on_a_mirror_comes_from_the_next_host() {
    let image = Image::new(1000);
    let (a, b) = (image.clone(), image.clone());
    let mirror = Server::start(move |seen| {
        if seen.path.contains("/blobs/") {
            Reply::new(200, "[]")
        } else {
            a.serve(seen)
        }
    })
    .await;
    let server = Server::start(move |seen| b.serve(seen)).await;
    let dir = tempfile::tempdir().unwrap();
    put_hosts(
        dir.path(),
        "images.example",
        &format!("server = \"{}\"\n[host.\"{}\"]", server.url(), mirror.url()),
    );
    let first = pull(dir.path(), "images.example/app:1").await;
    let resolved = first.resolve(&platform()).await.unwrap();
    let config = &resolved.manifest.config;
    assert_eq!(first.bytes(config, 100).await.unwrap(), image.config);
    assert_eq!((mirror.count("/blobs/"), server.count("/blobs/")), (1, 1));
    // Where nobody has it, that is said, and nobody is asked twice.
    put_hosts(
        dir.path(),
        "other.example",
        &format!("server = \"{}\"", mirror.url()),
    );
    let other = pull(dir.path(), "other.example/app:1").await;
    let error = other.bytes(config, 100).await.unwrap_err().to_string();
    assert!(error.contains(Digest::sha256(b"[]").as_str()), "{error}");
    assert_eq!(mirror.count("/blobs/"), 2);
}

#[tokio::test]
async fn a_mirror_whose_wrong_part_another_host_completed_is_the_one_to_blame() {
    let image = Image::new(400_000);
    let (a, b) = (image.clone(), image.clone());
    let mirror = Server::start(move |seen| match range(seen) {
        _ if !seen.path.contains("/blobs/") => a.serve(seen),
        None => Reply::broken(200, 400_000, vec![1; 150_000].into()),
        Some(_) => not_found(),
    })
    .await;
    let server = Server::start(move |seen| b.serve(seen)).await;
    let dir = tempfile::tempdir().unwrap();
    put_hosts(
        dir.path(),
        "images.example",
        &format!("server = \"{}\"\n[host.\"{}\"]", server.url(), mirror.url()),
    );
    let pull = pull(dir.path(), "images.example/app:1").await;
    let resolved = pull.resolve(&platform()).await.unwrap();
    let (blob, mismatch) = wrong(&pull, &resolved.manifest.layers[0]).await;
    assert_ne!(server.seen().last().unwrap().header("range"), "");
    blob.reject(mismatch).unwrap();
    assert_eq!(all(&pull, &resolved).await.unwrap(), image.layer);
    assert_eq!(server.seen().last().unwrap().header("range"), "");
}

#[tokio::test]
async fn a_silent_mirror_costs_its_dial_timeout() {
    let image = Image::new(10);
    let copy = image.clone();
    let server = Server::start(move |seen| copy.serve(seen)).await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    // TLS to a socket that accepts and never speaks.
    let text = format!(
        "server = \"{}\"\n[host.\"https://{}\"]\ndial_timeout = \"300ms\"",
        server.url(),
        silent.local_addr().unwrap()
    );
    put_hosts(dir.path(), "images.example", &text);
    let began = Instant::now();
    pull(dir.path(), "images.example/app:1")
        .await
        .resolve(&platform())
        .await
        .unwrap();
    assert!(
        began.elapsed() > Duration::from_millis(280) && began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn http_is_not_spoken_to_strangers() {
    // A registry that is not loopback is asked by https only; this one does not exist, but the error says what was tried.
    let dir = tempfile::tempdir().unwrap();
    let error = pull(dir.path(), "registry.invalid:5000/app:1")
        .await
        .resolve(&platform())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("https://registry.invalid:5000")
            || error.contains("cannot resolve registry.invalid:5000"),
        "{error}"
    );
}

#[tokio::test]
async fn a_broken_file_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    put_hosts(
        dir.path(),
        "images.example",
        "[host.\"https://m\"]\nskip_verfy = true",
    );
    let reference = Reference::parse("images.example/app").unwrap();
    let error = client(Some(dir.path()))
        .pull(&reference, None)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("images.example/hosts.toml:2: unknown key \"skip_verfy\""),
        "{error}"
    );
}

#[tokio::test]
async fn proxies() {
    let image = Image::new(10);
    let proxy = Server::start(move |seen| match seen.method.as_str() {
        "CONNECT" => Reply::new(407, "who are you?"),
        _ => image.serve(seen),
    })
    .await;
    let url = format!("http://user:s3cret@{}", proxy.address);
    let dir = tempfile::tempdir().unwrap();
    put_hosts(dir.path(), "plain.example", "server = \"http://plain.example\"");
    let client = Client::new(Config {
        certs_d: vec![dir.path().into()],
        proxy: Proxy::new(Some(&url), Some(&url), None).unwrap(),
        ..Config::default()
    });
    let reference = Reference::parse("plain.example/team/app:1").unwrap();
    client
        .pull(&reference, None)
        .await
        .unwrap()
        .resolve(&platform())
        .await
        .unwrap();
    let seen = &proxy.seen()[0];
    assert_eq!(
        (seen.header("host"), seen.header("proxy-authorization")),
        ("plain.example", "Basic dXNlcjpzM2NyZXQ=")
    );
    let reference = Reference::parse("secure.example/team/app:1").unwrap();
    let error = client
        .pull(&reference, None)
        .await
        .unwrap()
        .resolve(&platform())
        .await
        .unwrap_err()
        .to_string();
    let wanted = format!(
        "proxy {}: refused CONNECT secure.example:443: HTTP/1.1 407",
        proxy.address
    );
    assert!(error.contains(&wanted) && !error.contains("s3cret"), "{error}");
}

/// A registry that is elsewhere, behind a proxy, which answers for it; what is called like loopback is reached directly.
async fn elsewhere(answer: impl Fn() -> Reply + Send + Sync + 'static) -> String {
    let proxy = Server::start(move |_| answer()).await;
    let dir = tempfile::tempdir().unwrap();
    put_hosts(dir.path(), "plain.example", "server = \"http://plain.example\"");
    let client = Client::new(Config {
        certs_d: vec![dir.path().into()],
        proxy: Proxy::new(Some(&proxy.url()), None, Some("127.1,2130706433")).unwrap(),
        ..Config::default()
    });
    let reference = Reference::parse("plain.example/team/app:1").unwrap();
    let pull = client.pull(&reference, None).await.unwrap();
    pull.resolve(&platform()).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_registry_elsewhere_cannot_point_into_this_machine_by_any_name() {
    let inner = Server::start(|_| Reply::new(200, r#"{"token":"t"}"#)).await;
    let port = inner.address.port();
    let error = elsewhere(move || Reply::redirect(&format!("http://127.1:{port}/"))).await;
    assert!(
        error.contains(&format!("127.1:{port} is 127.0.0.1, which is in this machine")),
        "{error}"
    );
    let realm = format!("Bearer realm=\"http://2130706433:{port}/token\"");
    let error = elsewhere(move || Reply::challenge(&realm)).await;
    assert!(
        error.contains(&format!(
            "2130706433:{port} is 127.0.0.1, which is in this machine"
        )),
        "{error}"
    );
    assert!(inner.seen().is_empty());
    // One that is in this machine itself may.
    let image = Image::new(10);
    let copy = image.clone();
    let blobs = Server::start(move |seen| copy.serve(seen)).await;
    let to = blobs.address.port();
    let registry =
        Server::start(move |seen| Reply::redirect(&format!("http://127.1:{to}{}", seen.path))).await;
    let pull = client(None)
        .pull(&registry.reference("team/app:1"), None)
        .await
        .unwrap();
    let resolved = pull.resolve(&platform()).await.unwrap();
    assert_eq!(all(&pull, &resolved).await.unwrap(), image.layer);
}
