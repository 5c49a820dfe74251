//! Pulls from a registry in this process: what is fetched, shared, joined, removed, kept; and registries that misbehave.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::registry::{Fault, Registry};
use common::{Built, Pack, Root, Tar, build, chain};
use holdfast_images::{Config, Error, Kind, Progress, PullRequest, User};
use holdfast_registry::{Auth, Digest};

fn layer(name: &str) -> Vec<u8> {
    Tar::default()
        .dir("./", 0o755, (0, 0))
        .file(name, name.as_bytes())
        .end()
}

fn image(names: &[&str]) -> Built {
    build(&names.iter().map(|n| layer(n)).collect::<Vec<_>>(), Pack::Gzip)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_is_pulled_and_known_under_its_names() {
    let (registry, root) = (Registry::start(), Root::new());
    for (n, how) in [Pack::Plain, Pack::Gzip, Pack::Zstd].into_iter().enumerate() {
        let built = build(&[layer("base"), layer(&format!("top{n}"))], how);
        registry.push("app", &format!("v{n}"), &built);
        let tag = registry.reference(&format!("app:v{n}"));
        let id = root
            .pull(&tag)
            .await
            .unwrap_or_else(|e| panic!("{how:?}: {}", chain(&e)));
        assert_eq!(id, built.id());
        let image = root.images.get(&tag).unwrap();
        let digest = registry.reference(&format!("app@{}", built.digest()));
        assert_eq!(
            (image.repo_tags.as_slice(), image.repo_digests.as_slice()),
            (&[tag.clone()][..], &[digest.clone()][..])
        );
        assert_eq!(image.user, Some(User::Uid(7)));
        assert_eq!(
            image.config.config().as_ref().unwrap().env().as_ref().unwrap()[0],
            "A=b"
        );
        for reference in [
            &digest,
            id.as_str(),
            id.hex(),
            &id.hex()[..12],
            &format!("sha256:{}", &id.hex()[..12]),
        ] {
            assert_eq!(root.images.get(reference).unwrap().id, id, "{reference}");
        }
        let top = root
            .images
            .read_file(&id, &format!("/top{n}"), 100)
            .unwrap()
            .unwrap();
        assert_eq!(top, format!("top{n}").as_bytes());
    }
    assert_eq!(root.images.list(None).len(), 3);
    assert_eq!(root.images.list(Some(&registry.reference("app:v1"))).len(), 1);
    assert!(root.images.get("app:v1").is_none() && root.images.get("abcdef").is_none());
    // The base is the same archive, whatever it was packed in: it is unpacked once.
    assert_eq!(root.layer_dirs().len(), 4);
    let used = root.images.fs_info();
    assert!(
        used.used_bytes >= 4 * 4096 && used.used_inodes >= 4 * 2,
        "{used:?}"
    );
    root.assert_tmp_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_resolved_and_gives_the_digest() {
    let (registry, root) = (Registry::start(), Root::new());
    let built = image(&["one"]);
    registry.push("app", "one", &built);
    let platform = holdfast_registry::Platform::host();
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::sha256(b"other").to_string(), "size": 5,
            "platform": {"os": "windows", "architecture": "amd64"}},
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": built.digest().to_string(), "size": built.manifest.len(),
            "platform": {"os": "linux", "architecture": platform.architecture}}]})
    .to_string();
    registry.manifest(
        "app",
        "multi",
        "application/vnd.oci.image.index.v1+json",
        index.as_bytes(),
    );
    let id = root.pull(&registry.reference("app:multi")).await.unwrap();
    assert_eq!(id, built.id());
    let image = root.images.get(id.as_str()).unwrap();
    assert_eq!(
        image.repo_digests,
        [registry.reference(&format!("app@{}", Digest::sha256(index.as_bytes())))]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pull_asks_the_registry_but_fetches_no_layer_again() {
    let (registry, root) = (Registry::start(), Root::new());
    let built = image(&["one", "two"]);
    registry.push("app", "1", &built);
    registry.push("app", "2", &built);
    for tag in ["app:1", "app:1", "app:2"] {
        root.pull(&registry.reference(tag)).await.unwrap();
    }
    assert_eq!(registry.asked("/manifests/1"), 2);
    assert_eq!(registry.asked(built.layers[0].as_str()), 1);
    let image = root.images.get(&registry.reference("app:2")).unwrap();
    assert_eq!(image.repo_tags.len(), 2);
    assert_eq!(image.repo_digests.len(), 1);
    // A tag that moves leaves the image that had it with its digest.
    let other = build(&[layer("one"), layer("three")], Pack::Gzip);
    registry.push("app", "1", &other);
    root.pull(&registry.reference("app:1")).await.unwrap();
    assert_eq!(
        root.images.get(&registry.reference("app:1")).unwrap().id,
        other.id()
    );
    assert_eq!(
        root.images.get(built.id().as_str()).unwrap().repo_tags,
        [registry.reference("app:2")]
    );
    assert_eq!(registry.asked(built.layers[0].as_str()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_requests_join_and_others_do_not_but_share_layers() {
    let (registry, root) = (Arc::new(Registry::start()), Root::new());
    let built = image(&["one", "two"]);
    registry.push("app", "1", &built);
    registry.fault(built.layers[0].as_str(), Some(Fault::Gated));
    let request = |handler: &str, auth: Option<Auth>| PullRequest {
        reference: registry.reference("app:1"),
        handler: handler.into(),
        auth,
        ..PullRequest::default()
    };
    let secret = Some(Auth {
        username: "u".into(),
        password: "p".into(),
        ..Auth::default()
    });
    let requests = [
        request("", None),
        request("", None),
        request("kata", None),
        request("", secret),
    ];
    let pulls: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let images = root.images.clone();
            tokio::spawn(async move { images.pull(request, |_| {}).await })
        })
        .collect();
    while registry.asked("/manifests/1") < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(registry.asked("/manifests/1"), 3, "the two equal ones are one");
    registry.open_gate();
    for pull in pulls {
        assert_eq!(pull.await.unwrap().unwrap(), built.id());
    }
    assert_eq!(
        registry.asked(built.layers[0].as_str()),
        1,
        "a layer in flight is waited for"
    );
    assert_eq!(root.layer_dirs().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_another_pull_does_not_get_is_made_without_it() {
    let (slow, registry) = (Registry::start(), Registry::start());
    let root = Root::with(&Config {
        patience: Duration::from_millis(300),
        ..Config::default()
    });
    // The same base, which one of the registries never gives to its end.
    let (a, b) = (image(&["base", "one"]), image(&["base", "two"]));
    slow.push("app", "1", &a);
    registry.push("app", "1", &b);
    slow.fault(a.layers[0].as_str(), Some(Fault::Gated));
    let held_up = begin(&root, slow.reference("app:1"));
    while asked(&slow, &[&a]) < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let pull = begin(&root, registry.reference("app:1"));
    let pulled = tokio::time::timeout(Duration::from_secs(20), pull).await;
    let id = pulled.expect("it does not wait").unwrap().unwrap();
    let base = root.snapshot(&id).await.lowers[1].clone();
    slow.open_gate();
    assert_eq!(held_up.await.unwrap().unwrap(), a.id());
    // Who is first records it; the other's is removed, and nothing that was in use.
    root.assert_tmp_empty().await;
    let left = async {
        while root.layer_dirs().len() != 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let left = tokio::time::timeout(Duration::from_secs(20), left).await;
    left.unwrap_or_else(|_| panic!("{:?}", root.layer_dirs()));
    assert_eq!(root.snapshot(&a.id()).await.lowers[1], base);
    assert_eq!(std::fs::read(base.join("base")).unwrap(), b"base");
    let root = root.reopen();
    assert_eq!(root.images.list(None).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_nobody_waits_for_ends_and_leaves_nothing() {
    let (registry, root) = (Registry::start(), Root::new());
    let built = image(&["one"]);
    registry.push("app", "1", &built);
    registry.fault(built.layers[0].as_str(), Some(Fault::Gated));
    let reference = registry.reference("app:1");
    let given_up = tokio::time::timeout(Duration::from_millis(300), root.pull(&reference)).await;
    assert!(given_up.is_err());
    root.assert_empty().await;
    registry.open_gate();
    root.pull(&reference).await.unwrap();
}

/// Pulls in the background.
fn begin(
    root: &Root,
    reference: String,
) -> tokio::task::JoinHandle<holdfast_images::Result<holdfast_images::ImageId>> {
    let images = root.images.clone();
    let request = PullRequest {
        reference,
        ..PullRequest::default()
    };
    tokio::spawn(async move { images.pull(request, |_| {}).await })
}

/// Layers of these images that were asked for.
fn asked(registry: &Registry, images: &[&Built]) -> usize {
    let layers = images.iter().flat_map(|built| &built.layers);
    layers.map(|layer| registry.asked(layer.as_str())).sum()
}

#[test]
fn layers_that_do_not_come_hold_up_no_file_work() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (registry, root) = (Registry::start(), Root::new());
        let built = image(&["one", "two", "three"]);
        registry.push("app", "1", &built);
        for name in &built.layers {
            registry.fault(name.as_str(), Some(Fault::Gated));
        }
        let pull = begin(&root, registry.reference("app:1"));
        while asked(&registry, &[&built]) < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let short = Duration::from_secs(20);
        let collected = tokio::time::timeout(short, root.images.collect()).await;
        collected.expect("the only thread for file work is free").unwrap();
        let loaded = tokio::time::timeout(short, root.load(&[layer("four"), layer("five")])).await;
        loaded.expect("reading needs none either").unwrap();
        registry.open_gate();
        assert_eq!(pull.await.unwrap().unwrap(), built.id());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_all_pulls_have_one_bound() {
    let registry = Registry::start();
    let root = Root::with(&Config {
        all_layers: 1,
        ..Config::default()
    });
    let images = ["a", "b", "c"].map(|n| (n, image(&[&format!("{n}1"), &format!("{n}2"), &format!("{n}3")])));
    let built: Vec<&Built> = images.iter().map(|(_, built)| built).collect();
    for (name, image) in &images {
        registry.push(name, "1", image);
        for layer in &image.layers {
            registry.fault(layer.as_str(), Some(Fault::Gated));
        }
    }
    let pulls = images
        .each_ref()
        .map(|(name, _)| begin(&root, registry.reference(&format!("{name}:1"))));
    while asked(&registry, &built) < 4 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(asked(&registry, &built), 4, "one of each, and one more");
    registry.open_gate();
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(asked(&registry, &built), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_gives_nothing_holds_up_its_own_pulls_only() {
    let (slow, good) = (Registry::start(), Registry::start());
    let root = Root::with(&Config {
        all_layers: 2,
        ..Config::default()
    });
    let stuck = ["one", "two", "three"].map(|n| image(&[n, &format!("{n} more"), &format!("{n} again")]));
    let mut held_up = Vec::new();
    for (n, built) in stuck.iter().enumerate() {
        slow.push("app", &n.to_string(), built);
        for layer in &built.layers {
            slow.fault(layer.as_str(), Some(Fault::Gated));
        }
        held_up.push(begin(&root, slow.reference(&format!("app:{n}"))));
    }
    let all: Vec<&Built> = stuck.iter().collect();
    while asked(&slow, &all) < 5 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let built = image(&["a", "b", "c"]);
    good.push("app", "1", &built);
    let short = Duration::from_secs(20);
    let pulled = tokio::time::timeout(short, root.pull(&good.reference("app:1"))).await;
    assert_eq!(pulled.expect("it has a turn of its own").unwrap(), built.id());
    let loaded = tokio::time::timeout(short, root.load(&[layer("x"), layer("y")])).await;
    loaded.expect("and so has a load").unwrap();
    slow.open_gate();
    for pull in held_up {
        pull.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_goes_up_to_the_end() {
    let (registry, root) = (Registry::start(), Root::new());
    let built = image(&["one", "two", "three"]);
    registry.push("app", "1", &built);
    let seen = std::sync::Mutex::new(Vec::<Progress>::new());
    let request = PullRequest {
        reference: registry.reference("app:1"),
        ..PullRequest::default()
    };
    root.images
        .pull(request, |p| seen.lock().unwrap().push(p))
        .await
        .unwrap();
    let last = *seen.lock().unwrap().last().unwrap();
    let bytes: usize = built.layers.iter().map(|d| built.blobs[d.as_str()].len()).sum();
    assert_eq!(
        last,
        Progress {
            layers: 3,
            layers_done: 3,
            bytes: bytes as u64,
            bytes_done: bytes as u64
        }
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_takes_all_names_and_keeps_what_others_use() {
    let (registry, root) = (Registry::start(), Root::new());
    let (one, two) = (image(&["base", "one"]), image(&["base", "two"]));
    registry.push("app", "a", &one);
    registry.push("app", "b", &one);
    registry.push("app", "c", &two);
    for tag in ["app:a", "app:b", "app:c"] {
        root.pull(&registry.reference(tag)).await.unwrap();
    }
    let snapshot = root
        .images
        .prepare("pod", &one.id(), &holdfast_images::PrepareOptions::default())
        .unwrap();
    root.images.remove(&registry.reference("app:b")).await.unwrap();
    assert!(root.images.get(&registry.reference("app:a")).is_none());
    assert!(root.images.get(one.id().as_str()).is_none());
    assert_eq!(root.layer_dirs().len(), 3, "the snapshot needs them");
    assert!(snapshot.lowers.iter().all(|dir| dir.is_dir()));
    let root = root.reopen();
    assert_eq!(root.images.snapshots(), ["pod"]);
    assert_eq!(root.images.snapshot("pod").unwrap(), snapshot);
    root.images.discard("pod").await.unwrap();
    root.images.discard("pod").await.unwrap();
    for _ in 0..200 {
        if root.layer_dirs().len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(root.layer_dirs().len(), 2, "those of the other image");
    root.images.remove(two.id().as_str()).await.unwrap();
    root.images.remove(two.id().as_str()).await.unwrap();
    root.assert_empty().await;
    assert_eq!(root.images.fs_info().used_bytes, 0);
    let blobs = root.dir.path().join("images/content/blobs/sha256");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_images_and_sweeps_what_a_crash_left() {
    let (registry, root) = (Registry::start(), Root::new());
    let (one, two) = (image(&["one"]), image(&["two"]));
    registry.push("app", "1", &one);
    registry.push("app", "2", &two);
    root.pull(&registry.reference("app:1")).await.unwrap();
    root.pull(&registry.reference("app:2")).await.unwrap();
    let (tmp, layers) = (
        root.dir.path().join("images/tmp/7-7"),
        root.dir.path().join("images/l/77"),
    );
    for dir in [&tmp, &layers] {
        std::fs::create_dir_all(dir.join("half/done")).unwrap();
    }
    // A document that is not what its name says: the image is no longer whole.
    let config = root
        .dir
        .path()
        .join("images/content/blobs/sha256")
        .join(two.id().hex());
    std::fs::write(config, "{}").unwrap();
    let before = root.images.get(one.id().as_str()).unwrap();
    let root = root.reopen();
    assert!(!tmp.exists() && !layers.exists());
    let after = root.images.list(None);
    assert_eq!(after.len(), 1);
    assert_eq!(
        (&after[0].repo_tags, &after[0].layers, after[0].size),
        (&before.repo_tags, &before.layers, before.size)
    );
    assert_eq!(root.layer_dirs().len(), 1);
    root.pull(&registry.reference("app:2")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_a_failed_pull_are_kept_for_the_next_try() {
    let (registry, root) = (Registry::start(), Root::new());
    let built = image(&["one", "two"]);
    registry.push("app", "1", &built);
    let good = built.blobs[built.layers[1].as_str()].clone();
    registry.tamper(built.layers[1].as_str(), b"something else entirely".to_vec());
    root.pull(&registry.reference("app:1")).await.unwrap_err();
    registry.tamper(built.layers[1].as_str(), good);
    let root = root.reopen();
    assert_eq!(root.images.list(None).len(), 0);
    root.pull(&registry.reference("app:1")).await.unwrap();
    assert!(registry.asked(built.layers[0].as_str()) <= 2);
    root.assert_tmp_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_what_they_should_be_are_refused() {
    let (registry, root) = (Registry::start(), Root::new());
    let built = image(&["one"]);
    registry.push("app", "1", &built);
    let (name, reference) = (built.layers[0].clone(), registry.reference("app:1"));
    let good = built.blobs[name.as_str()].clone();
    let mut flipped = good.clone();
    let at = flipped.len() / 2;
    flipped[at] ^= 1;
    // Another layer, whole in itself, of the same length; one bit; another archive behind the right digest.
    let mut other = common::pack(&layer("xne"), Pack::Gzip);
    other.resize(good.len(), 0);
    for (what, bytes) in [("bit", flipped), ("layer", other)] {
        registry.tamper(name.as_str(), bytes);
        let error = root.pull(&reference).await.unwrap_err();
        let text = chain(&error);
        assert!(
            text.contains(name.as_str()) && text.contains("digest is sha256:"),
            "{what}: {text}"
        );
        assert_eq!(error.kind(), Kind::Corrupt);
        root.assert_empty().await;
    }
    registry.tamper(name.as_str(), good);
    let mut lying = build(&[layer("one")], Pack::Gzip);
    let config = common::config_json(&[layer("two")]);
    let manifest = String::from_utf8(lying.manifest.clone()).unwrap();
    lying.manifest = manifest
        .replace(
            Digest::sha256(&lying.config).as_str(),
            Digest::sha256(&config).as_str(),
        )
        .replace(
            &format!("\"size\":{}", lying.config.len()),
            &format!("\"size\":{}", config.len()),
        )
        .into_bytes();
    lying.blobs.insert(Digest::sha256(&config).to_string(), config);
    registry.push("app", "lying", &lying);
    let text = chain(&root.pull(&registry.reference("app:lying")).await.unwrap_err());
    assert!(text.contains("its unpacked digest is"), "{text}");
    root.assert_empty().await;
    root.pull(&reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_wrong_on_a_mirror_comes_from_the_registry() {
    let (mirror, registry) = (Registry::start(), Registry::start());
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]",
        registry.address, mirror.address
    );
    let root = Root::behind("images.example", &hosts);
    let built = image(&["one", "two"]);
    mirror.push("app", "1", &built);
    registry.push("app", "1", &built);
    let wrong = built.layers[1].as_str();
    mirror.tamper(wrong, vec![b'x'; built.blobs[wrong].len()]);
    let last = std::sync::Mutex::new(Progress::default());
    let request = PullRequest {
        reference: "images.example/app:1".into(),
        ..PullRequest::default()
    };
    let pulled = root.images.pull(request, |p| *last.lock().unwrap() = p).await;
    assert_eq!(pulled.unwrap_or_else(|e| panic!("{}", chain(&e))), built.id());
    assert_eq!((mirror.asked(wrong), registry.asked(wrong)), (1, 1));
    let last = *last.lock().unwrap();
    assert_eq!(last.bytes_done, last.bytes, "what was thrown away does not count");
    root.assert_tmp_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_left_for_damage_long_before_the_end() {
    let (mirror, registry) = (Registry::start(), Registry::start());
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]",
        registry.address, mirror.address
    );
    let root = Root::behind("images.example", &hosts);
    // More than is read on for a digest.
    let built = build(
        &[Tar::default().file("large", &vec![7; 40 << 20]).end()],
        Pack::Plain,
    );
    mirror.push("app", "1", &built);
    registry.push("app", "1", &built);
    let wrong = built.layers[0].as_str();
    mirror.tamper(wrong, vec![b'x'; built.blobs[wrong].len()]);
    let pulled = root.pull("images.example/app:1").await;
    assert_eq!(pulled.unwrap_or_else(|e| panic!("{}", chain(&e))), built.id());
    assert_eq!((mirror.asked(wrong), registry.asked(wrong)), (1, 1));
    // Where there is no other it is not asked twice, and what was wrong with the bytes is told.
    let alone = Root::new();
    let error = alone.pull(&mirror.reference("app:1")).await.unwrap_err();
    let text = chain(&error);
    assert!(
        text.contains(wrong) && text.contains("archive is malformed"),
        "{text}"
    );
    assert_eq!(error.kind(), Kind::Corrupt);
    assert_eq!(mirror.asked(wrong), 2);
    alone.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_and_endless_blobs_end() {
    let (registry, root) = (Registry::start(), Root::new());
    let built = image(&["one"]);
    registry.push("app", "1", &built);
    let name = built.layers[0].as_str();
    for (fault, part) in [
        (Fault::Truncated(20), "end of file"),
        (Fault::Endless, "longer than its"),
    ] {
        registry.fault(name, Some(fault));
        let begun = std::time::Instant::now();
        let text = chain(&root.pull(&registry.reference("app:1")).await.unwrap_err());
        assert!(text.contains(part), "{fault:?}: {text}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{fault:?}");
        root.assert_empty().await;
    }
    registry.fault(name, None);
    root.pull(&registry.reference("app:1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_are_too_much_are_refused_early() {
    let (registry, root) = (Registry::start(), Root::new());
    registry.manifest(
        "app",
        "huge",
        "application/vnd.oci.image.manifest.v1+json",
        &vec![b' '; 100 << 20],
    );
    let begun = std::time::Instant::now();
    let text = chain(&root.pull(&registry.reference("app:huge")).await.unwrap_err());
    assert!(text.contains("limit"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(60));
    let schema1 = br#"{"schemaVersion": 1, "name": "app", "fsLayers": []}"#;
    registry.manifest(
        "app",
        "old",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        schema1,
    );
    let text = chain(&root.pull(&registry.reference("app:old")).await.unwrap_err());
    assert!(text.contains("schema 1"), "{text}");
    let error = root.pull(&registry.reference("app:absent")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{}", chain(&error));
    let error = root.pull("Not/A Name").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    root.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_look_like_the_root_of_their_image() {
    use std::os::unix::fs::MetadataExt;
    let root = Root::new();
    let id = root
        .load(&[
            Tar::default().dir("./", 0o751, (10, 20)).end(),
            Tar::default().file("x", b"").end(),
        ])
        .await
        .unwrap();
    let map = |host| {
        vec![holdfast_images::IdMap {
            container: 0,
            host,
            count: 65536,
        }]
    };
    let options = holdfast_images::PrepareOptions {
        uid_maps: map(100_000),
        gid_maps: map(200_000),
    };
    let mapped = root.images.prepare("userns", &id, &options).unwrap();
    let plain = root.snapshot(&id).await;
    for (snapshot, owner) in [(&mapped, (100_010, 200_020)), (&plain, (10, 20))] {
        let meta = std::fs::metadata(&snapshot.upper).unwrap();
        assert_eq!((meta.mode() & 0o7777, (meta.uid(), meta.gid())), (0o751, owner));
        assert_eq!(snapshot.options, ["volatile"]);
    }
    let again = root
        .images
        .prepare("userns", &id, &holdfast_images::PrepareOptions::default());
    assert!(matches!(again, Err(Error::SnapshotExists { .. })));
    for key in ["", "..", "a/b", ".x", "nul\0"] {
        let made = root
            .images
            .prepare(key, &id, &holdfast_images::PrepareOptions::default());
        assert!(matches!(made, Err(Error::SnapshotKey { .. })), "{key:?}");
    }
    let unknown = Digest::sha256(b"unknown");
    let made = root
        .images
        .prepare("k", &unknown, &holdfast_images::PrepareOptions::default());
    assert!(matches!(made, Err(Error::NotFound { .. })));
    assert_eq!(root.images.snapshots().len(), 2);
}

/// What a rename between directories of two projects gets, and between two mounts, which every kernel has.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_discarded_where_nothing_can_be_moved_to_the_images() {
    use nix::mount::{MsFlags, mount, umount2};
    let root = Root::new();
    let id = root.load(&[layer("x")]).await.unwrap();
    let snapshot = root
        .images
        .prepare("pod", &id, &holdfast_images::PrepareOptions::default())
        .unwrap();
    // Deeper than directories are held open.
    std::fs::create_dir_all(snapshot.upper.join("d/".repeat(100))).unwrap();
    std::fs::write(snapshot.upper.join("file"), "x").unwrap();
    let tmp = root.dir.path().join("images/tmp");
    mount(Some(&tmp), &tmp, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let moved = std::fs::rename(snapshot.upper.join("file"), tmp.join("file")).unwrap_err();
    let discarded = root.images.discard("pod").await;
    umount2(&tmp, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(moved.kind(), std::io::ErrorKind::CrossesDevices);
    discarded.unwrap();
    assert!(root.images.snapshots().is_empty());
    assert_eq!(
        std::fs::read_dir(root.dir.path().join("snapshots"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_trial_left_is_no_snapshot() {
    let root = Root::new();
    let left = root.dir.path().join("snapshots/.holdfast-probe-1-1");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("file"), "x").unwrap();
    let root = root.reopen();
    assert!(root.images.snapshots().is_empty() && !left.exists());
}
