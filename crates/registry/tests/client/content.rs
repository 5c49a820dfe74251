//! Manifests and blobs: the good case, then everything that can be wrong with them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use holdfast_registry::{Client, Config, Digest, Error, Fault, Kind, Limits, Platform, Pull, Resolved};

use crate::server::{Image, Reply, Seen, Server, client, content_range, platform, range};

async fn resolve(server: &Server, rest: &str) -> Result<Resolved, Error> {
    client(None)
        .pull(&server.reference(rest), None)
        .await
        .unwrap()
        .resolve(&platform())
        .await
}

async fn read(pull: &Pull, image: &Resolved) -> Result<Vec<u8>, Error> {
    let read = pull.bytes(&image.manifest.layers[0], u64::MAX).await;
    read.map(Into::into)
}

/// Pulls an image whose blob requests are answered by `handler`, which is told how many came before.
async fn blob(
    size: usize,
    handler: impl Fn(&Image, &Seen, usize) -> Reply + Send + Sync + 'static,
) -> (Result<Vec<u8>, Error>, Image, Server) {
    let image = Image::new(size);
    let (copy, calls) = (image.clone(), AtomicUsize::new(0));
    let server = Server::start(move |seen| {
        if seen.path.contains("/blobs/") {
            handler(&copy, seen, calls.fetch_add(1, Ordering::SeqCst))
        } else {
            copy.serve(seen)
        }
    })
    .await;
    let pull = client(None)
        .pull(&server.reference("team/app:1"), None)
        .await
        .unwrap();
    let resolved = pull.resolve(&platform()).await.unwrap();
    let result = read(&pull, &resolved).await;
    (result, image, server)
}

fn fault(error: &Error) -> &Fault {
    match error {
        Error::Failed { attempts, .. } => &attempts.last().unwrap().fault,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_good_image() {
    let image = Image::new(3_000_000);
    let copy = image.clone();
    let server = Server::start(move |seen| copy.serve(seen)).await;
    let pull = client(None)
        .pull(&server.reference("team/app:1"), None)
        .await
        .unwrap();
    assert_eq!(pull.head().await.unwrap(), Some(image.digest.clone()));
    let resolved = pull.resolve(&platform()).await.unwrap();
    assert_eq!(resolved.root.digest, image.digest);
    assert_eq!(resolved.root.bytes, image.manifest);
    assert_eq!(
        pull.bytes(&resolved.manifest.config, 100).await.unwrap(),
        image.config
    );
    assert_eq!(read(&pull, &resolved).await.unwrap(), image.layer);
    let error = pull.bytes(&resolved.manifest.layers[0], 100).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("3000000 bytes, more than the limit of 100"),
        "{error}"
    );
    assert!(
        server
            .seen()
            .iter()
            .all(|s| s.header("authorization").is_empty() && s.header("user-agent").starts_with("holdfast/"))
    );
}

#[tokio::test]
async fn by_digest() {
    let image = Image::new(10);
    let copy = image.clone();
    let server = Server::start(move |seen| copy.serve(seen)).await;
    let resolved = resolve(&server, &format!("team/app:ignored@{}", image.digest))
        .await
        .unwrap();
    assert_eq!(resolved.root.digest, image.digest);
    assert_eq!(server.count("ignored"), 0);
}

#[tokio::test]
async fn index_by_platform_and_sha512() {
    let image = Image::new(10);
    let long = Digest::of(holdfast_registry::Algorithm::Sha512, &image.manifest);
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[
{{"digest":"{}","size":5,"platform":{{"os":"linux","architecture":"arm64"}}}},
{{"digest":"{long}","size":{},"platform":{{"os":"linux","architecture":"amd64"}}}},
{{"digest":"{0}","size":5,"platform":{{"os":"unknown","architecture":"unknown"}},"annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}}}]}}"#,
        Digest::sha256(b"x"),
        image.manifest.len(),
    );
    let (copy, name) = (image.clone(), long.to_string());
    let server = Server::start(move |seen| match seen.path.rsplit('/').next().unwrap() {
        n if n == name => Reply::new(200, copy.manifest.clone()),
        _ => Reply::new(200, index.clone()).with("content-type", "application/vnd.oci.image.index.v1+json"),
    })
    .await;
    let resolved = resolve(&server, "team/app:1").await.unwrap();
    assert_eq!(resolved.document.digest, long);
    assert!(resolved.root.media_type.is_index());
    assert_eq!(resolved.platform, Some(platform()));
    let pull = client(None)
        .pull(&server.reference("team/app:1"), None)
        .await
        .unwrap();
    let error = pull
        .resolve(&Platform::new("linux", "s390x", None))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(
        error
            .to_string()
            .ends_with("no image for linux/s390x; it has linux/arm64, linux/amd64"),
        "{error}"
    );
}

/// Indexes within indexes: document `n` points to document `n - 1`.
fn nested(n: usize) -> (String, Digest) {
    let inner = if n == 0 {
        (String::new(), Digest::sha256(b""))
    } else {
        nested(n - 1)
    };
    let (digest, size) = (inner.1, inner.0.len());
    let text = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":{size}}}]}}"#);
    (text.clone(), Digest::sha256(text.as_bytes()))
}

#[tokio::test]
async fn indexes_in_indexes_end() {
    let server = Server::start(|seen| {
        let name = seen.path.rsplit('/').next().unwrap_or("");
        let depth = (0..7).find(|n| nested(*n).1.as_str() == name).unwrap_or(7);
        Reply::new(200, nested(depth).0)
    })
    .await;
    let error = resolve(&server, "team/app:1").await.unwrap_err();
    assert!(error.to_string().contains("nested more than 3 deep"), "{error}");
}

#[tokio::test]
async fn wrong_manifest_digests() {
    let image = Image::new(10);
    let copy = image.clone();
    let server = Server::start(move |_| {
        Reply::new(200, copy.manifest.clone()).with("docker-content-digest", Digest::sha256(b"else").as_str())
    })
    .await;
    let error = resolve(&server, "team/app:1").await.unwrap_err();
    assert!(error.to_string().contains("Docker-Content-Digest"), "{error}");
    assert_eq!(error.kind(), Kind::Corrupt);
    let server = Server::start(move |_| Reply::new(200, image.manifest.clone())).await;
    let other = Digest::sha256(b"else");
    let error = resolve(&server, &format!("team/app@{other}")).await.unwrap_err();
    assert!(
        matches!(fault(&error), Fault::Mismatch { mismatch, .. } if mismatch.expected == other),
        "{error}"
    );
}

#[tokio::test]
async fn a_huge_manifest_is_refused_before_it_is_read() {
    let server = Server::start(|_| {
        Reply::endless(Bytes::from_static(&[b' '; 65536])).with("content-length", "104857600")
    })
    .await;
    let error = resolve(&server, "team/app:1").await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("manifest of 104857600 bytes is over the limit of 4194304"),
        "{error}"
    );
    let server = Server::start(|_| Reply::endless(Bytes::from_static(&[b' '; 65536]))).await;
    let error = resolve(&server, "team/app:1").await.unwrap_err();
    assert!(error.to_string().contains("more than 4194304"), "{error}");
}

#[tokio::test]
async fn schema_1_and_rubbish() {
    let server = Server::start(|_| Reply::new(200, r#"{"schemaVersion":1,"fsLayers":[]}"#)).await;
    let error = resolve(&server, "team/app:1").await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!(
            "pull {}: the image has a Docker schema 1 manifest",
            server.reference("team/app:1")
        )),
        "{error}"
    );
    let server = Server::start(|_| Reply::new(200, "<html>\u{1b}[2J")).await;
    let error = resolve(&server, "team/app:1").await.unwrap_err().to_string();
    assert!(error.contains("not valid JSON"), "{error}");
}

#[tokio::test]
async fn errors_carry_the_registry_s_words_cleaned() {
    let server = Server::start(|_| {
        Reply::new(
            404,
            "{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\",\"message\":\"no \\u001b[31msuch\\n tag\"}]}",
        )
    })
    .await;
    let error = resolve(&server, "team/app:1").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "pull {}/team/app:1: 404 not found from {}: MANIFEST_UNKNOWN no ?[31msuch tag",
            server.address,
            server.url()
        )
    );
    assert_eq!(error.kind(), Kind::NotFound);
    let server = Server::start(|_| Reply::endless(Bytes::from_static(b"blah ")).with("x", "y")).await;
    assert!(
        resolve(&server, "team/app:1")
            .await
            .unwrap_err()
            .to_string()
            .len()
            < 600
    );
}

#[tokio::test]
async fn transient_errors_are_repeated_and_bounded() {
    let (result, image, server) = blob(100, |image, seen, n| match n {
        0 => Reply::new(503, "busy"),
        1 => Reply::new(429, "slow down").with("retry-after", "1"),
        _ => image.serve(seen),
    })
    .await;
    assert_eq!(result.unwrap(), image.layer);
    assert_eq!(server.count("/blobs/"), 3);
    let (result, _, server) = blob(100, |_, _, _| Reply::new(502, "bad gateway")).await;
    let error = result.unwrap_err();
    assert_eq!(server.count("/blobs/"), 3);
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().ends_with(": bad gateway"), "{error}");
    let (result, _, server) = blob(100, |_, _, _| Reply::new(403, "no")).await;
    assert_eq!(result.unwrap_err().kind(), Kind::Denied);
    assert_eq!(server.count("/blobs/"), 1, "a refusal is not repeated");
}

#[tokio::test]
async fn a_broken_blob_is_resumed_by_range() {
    let (result, image, server) = blob(5_000_000, |image, seen, n| {
        let first = range(seen).unwrap_or(0);
        let rest = image.layer.slice(first..);
        match n {
            0 => Reply::broken(200, rest.len(), rest.slice(..2_000_000)),
            1 => Reply::broken(206, rest.len(), rest.slice(..1_000_000))
                .with("content-range", &content_range(first, &image.layer)),
            _ => image.serve(seen),
        }
    })
    .await;
    assert_eq!(result.unwrap(), image.layer);
    let seen = server.seen();
    let ranges: Vec<&str> = seen
        .iter()
        .filter(|s| s.path.contains("/blobs/"))
        .map(|s| s.header("range"))
        .collect();
    assert_eq!(ranges, ["", "bytes=2000000-", "bytes=3000000-"]);
}

#[tokio::test]
async fn a_server_without_ranges_sends_again() {
    let (result, image, _) = blob(300_000, |image, _, n| match n {
        0 => Reply::broken(200, 300_000, image.layer.slice(..200_000)),
        _ => Reply::new(200, image.layer.clone()),
    })
    .await;
    assert_eq!(result.unwrap(), image.layer);
}

#[tokio::test]
async fn a_wrong_content_range_is_refused() {
    let (result, _, _) = blob(1000, |image, _, n| match n {
        0 => Reply::broken(200, 1000, image.layer.slice(..500)),
        _ => Reply::new(206, image.layer.slice(400..900)).with("content-range", "bytes 400-899/1000"),
    })
    .await;
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("bytes \"bytes 400-899/1000\", 500-999/1000 was wanted"),
        "{error}"
    );
}

#[tokio::test]
async fn a_truncated_blob_is_an_error() {
    let (result, _, server) = blob(1000, |image, seen, _| {
        let first = range(seen).unwrap_or(0);
        let body = futures::stream::iter([Ok(image.layer.slice(first..first.max(600)))]).boxed();
        let status = if first > 0 { 206 } else { 200 };
        Reply::chunks(status, body).with("content-range", &content_range(first, &image.layer))
    })
    .await;
    let error = result.unwrap_err();
    assert!(
        error.to_string().contains("ended after 600 of 1000 bytes"),
        "{error}"
    );
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(server.count("/blobs/") <= 4);
}

#[tokio::test]
async fn a_never_ending_blob_is_cut_off() {
    let (result, ..) = blob(100_000, |_, _, _| Reply::endless(Bytes::from_static(&[7; 4096]))).await;
    let error = result.unwrap_err();
    assert!(
        error.to_string().contains("is longer than its 100000 bytes"),
        "{error}"
    );
}

#[tokio::test]
async fn a_size_that_differs_is_refused_at_once() {
    let (result, ..) = blob(1000, |image, _, _| Reply::new(200, image.layer.slice(..999))).await;
    let error = result.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("announced with 999 bytes, 1000 were expected"),
        "{error}"
    );
}

#[tokio::test]
async fn a_wrong_blob_is_refused_at_its_end() {
    let (result, image, _) = blob(1000, |_, _, _| Reply::new(200, vec![0; 1000])).await;
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(
        matches!(fault(&error), Fault::Mismatch { mismatch, .. } if mismatch.expected == image.layer_digest),
        "{error}"
    );
}

#[tokio::test]
async fn a_stalled_blob_is_given_up() {
    let began = Instant::now();
    let (result, _, server) = blob(1000, |image, _, _| Reply::stalled(1000, image.layer.slice(..10))).await;
    let error = result.unwrap_err();
    assert!(
        error.to_string().contains("nothing from http://127.0.0.1"),
        "{error}"
    );
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(server.count("/blobs/") <= 4);
}

#[tokio::test]
async fn a_trickle_ends_whatever_size_was_promised() {
    let image = Image::new(10);
    let copy = image.clone();
    let server = Server::start(move |seen| {
        if !seen.path.contains("/blobs/") {
            return copy.serve(seen);
        }
        let drop = |()| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Some((Ok(Bytes::from_static(b"x")), ()))
        };
        Reply::chunks(200, futures::stream::unfold((), drop).boxed())
    })
    .await;
    let limits = Limits {
        document: Duration::from_secs(1),
        stall: Duration::from_millis(500),
        attempts: 1,
        ..Limits::default()
    };
    let client = Client::new(Config {
        limits,
        ..Config::default()
    });
    let pull = client.pull(&server.reference("team/app:1"), None).await.unwrap();
    let mut resolved = pull.resolve(&platform()).await.unwrap();
    // Of a petabyte, at a rate that earns no second.
    resolved.manifest.layers[0].size = 1 << 50;
    let error = tokio::time::timeout(Duration::from_secs(20), read(&pull, &resolved))
        .await
        .expect("it is given up")
        .unwrap_err();
    assert!(
        error.to_string().contains("the blob took more than 1 s"),
        "{error}"
    );
}

#[tokio::test]
async fn the_consumer_hashes() {
    let image = Image::new(100_000);
    let copy = image.clone();
    let server = Server::start(move |seen| copy.serve(seen)).await;
    let pull = client(None)
        .pull(&server.reference("team/app:1"), None)
        .await
        .unwrap();
    let resolved = pull.resolve(&platform()).await.unwrap();
    let mut blob = pull.blob(&resolved.manifest.layers[0]).await.unwrap();
    let mut verifier = resolved.manifest.layers[0].digest.verifier();
    while let Some(chunk) = blob.chunk().await.unwrap() {
        verifier.update(&chunk);
    }
    verifier.finish().unwrap();
    // The end stays one.
    assert!(blob.chunk().await.unwrap().is_none());
}

#[tokio::test]
async fn dropping_a_blob_closes_its_connection() {
    let image = Image::new(50_000_000);
    let copy = image.clone();
    let (gone, mut told) = tokio::sync::mpsc::unbounded_channel::<()>();
    let server = Server::start(move |seen| {
        if !seen.path.contains("/blobs/") {
            return copy.serve(seen);
        }
        // The stream owns a sender: hyper drops it with the connection.
        let gone = gone.clone();
        let layer = copy.layer.clone();
        let body = futures::stream::unfold(0, move |at| {
            let chunk = layer.slice(at..(at + 65536).min(layer.len()));
            let _hold = &gone;
            std::future::ready((at < layer.len()).then_some((Ok(chunk), at + 65536)))
        });
        Reply::chunks(200, body.boxed())
    })
    .await;
    let pull = client(None)
        .pull(&server.reference("team/app:1"), None)
        .await
        .unwrap();
    let resolved = pull.resolve(&platform()).await.unwrap();
    let mut blob = pull.blob(&resolved.manifest.layers[0]).await.unwrap();
    blob.chunk().await.unwrap().unwrap();
    let before = sockets();
    drop(blob);
    assert!(sockets() < before, "the socket is closed by the drop itself");
    assert!(told.try_recv().is_err());
}

fn sockets() -> usize {
    let links = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|e| std::fs::read_link(e.unwrap().path()).ok());
    links
        .filter(|l| l.to_string_lossy().starts_with("socket:"))
        .count()
}

#[tokio::test]
async fn connections_are_used_again() {
    let image = Image::new(10);
    let copy = image.clone();
    let server = Server::start(move |seen| copy.serve(seen)).await;
    let pull = client(None)
        .pull(&server.reference("team/app:1"), None)
        .await
        .unwrap();
    let resolved = pull.resolve(&platform()).await.unwrap();
    let before = sockets();
    for _ in 0..5 {
        read(&pull, &resolved).await.unwrap();
    }
    assert_eq!(sockets(), before);
    drop(pull);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(sockets() < before, "no connection outlives its pull");
}
