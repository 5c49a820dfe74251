//! Images from files: OCI layouts and what `docker save` writes, whole and damaged; and from Debian's registry.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use std::path::{Path, PathBuf};

use common::{Built, Pack, Root, Tar, build, chain, docker_archive, pack, run};

fn image() -> Built {
    build(
        &[Tar::default()
            .dir("etc/", 0o755, (0, 0))
            .file("etc/passwd", b"root:x:0:0::/:/bin/sh\n")
            .end()],
        Pack::Gzip,
    )
}

/// Writes a layout directory whose index names the image.
fn layout(dir: &Path, image: &Built, annotations: &serde_json::Value) -> PathBuf {
    let at = dir.join("layout");
    std::fs::create_dir_all(at.join("blobs/sha256")).unwrap();
    let mut blobs = image.blobs.clone();
    blobs.insert(image.digest().to_string(), image.manifest.clone());
    for (digest, bytes) in blobs {
        std::fs::write(at.join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.digest().to_string(),
        "size": image.manifest.len(), "annotations": annotations}]});
    std::fs::write(at.join("index.json"), index.to_string()).unwrap();
    std::fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn layouts_are_loaded_as_directory_and_in_every_packing() {
    let work = tempfile::tempdir().unwrap();
    let built = image();
    let dir = layout(
        work.path(),
        &built,
        &serde_json::json!({"io.containerd.image.name": "docker.io/library/tiny:1"}),
    );
    let tar = work.path().join("layout.tar");
    run(
        "tar",
        &["-C", dir.to_str().unwrap(), "-cf", tar.to_str().unwrap(), "."],
    );
    let bytes = std::fs::read(&tar).unwrap();
    let mut paths = vec![dir, tar];
    for (name, how) in [("l.tar.gz", Pack::Gzip), ("l.tar.zst", Pack::Zstd)] {
        paths.push(work.path().join(name));
        std::fs::write(paths.last().unwrap(), pack(&bytes, how)).unwrap();
    }
    for path in paths {
        let root = Root::new();
        let ids = root
            .images
            .load_archive(&path, None)
            .await
            .unwrap_or_else(|e| panic!("{path:?}: {}", chain(&e)));
        assert_eq!(ids, [built.id()], "{path:?}");
        let image = root.images.get("tiny:1").unwrap();
        assert_eq!(
            image.repo_digests,
            [format!("docker.io/library/tiny@{}", built.digest())]
        );
        assert!(
            root.images
                .read_file(&ids[0], "/etc/passwd", 100)
                .unwrap()
                .unwrap()
                .starts_with(b"root:")
        );
        root.assert_tmp_empty().await;
        let root = root.reopen();
        assert_eq!(root.images.get("tiny:1").unwrap().id, built.id());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_come_from_annotations_or_the_operator() {
    let work = tempfile::tempdir().unwrap();
    let built = image();
    let path = layout(
        work.path(),
        &built,
        &serde_json::json!({"org.opencontainers.image.ref.name": "latest"}),
    );
    let root = Root::new();
    root.images.load_archive(&path, None).await.unwrap();
    // A bare tag names no repository.
    assert!(root.images.list(None)[0].repo_tags.is_empty());
    root.images.load_archive(&path, Some("given/name")).await.unwrap();
    assert_eq!(
        root.images.list(None)[0].repo_tags,
        ["docker.io/given/name:latest"]
    );
    let wrong = root
        .images
        .load_archive(&path, Some("Wrong Name"))
        .await
        .unwrap_err();
    assert!(chain(&wrong).contains("Wrong Name"));
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_docker_save_are_loaded() {
    let root = Root::new();
    let layers = [
        Tar::default().file("a", b"1").end(),
        Tar::default().file("b", b"2").end(),
    ];
    let archive = docker_archive(&layers, &["one:1", "two:2"]);
    for (name, how) in [
        ("d.tar", Pack::Plain),
        ("d.tgz", Pack::Gzip),
        ("d.zst", Pack::Zstd),
    ] {
        let ids = root
            .images
            .load_archive(&root.write(name, &pack(&archive, how)), None)
            .await
            .unwrap();
        assert_eq!(ids.len(), 1);
    }
    let image = root.images.get("two:2").unwrap();
    assert_eq!(
        image.repo_tags,
        ["docker.io/library/one:1", "docker.io/library/two:2"]
    );
    assert_eq!(image.layers.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_archives_link_layers_that_they_hold_twice() {
    let root = Root::new();
    let tar = Tar::default().file("a", b"1").end();
    let config = common::config_json(&[tar.clone(), tar.clone()]);
    let manifest = r#"[{"Config": "c.json", "RepoTags": null, "Layers": ["1/layer.tar", "2/layer.tar"]}]"#;
    let archive = Tar::default()
        .file("1/layer.tar", &tar)
        .symlink("2/layer.tar", "../1/layer.tar")
        .file("c.json", &config)
        .file("manifest.json", manifest.as_bytes())
        .end();
    let ids = root
        .images
        .load_archive(&root.write("a.tar", &archive), None)
        .await
        .unwrap();
    assert_eq!(root.images.get(ids[0].as_str()).unwrap().layers.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_archives_are_refused_and_leave_nothing() {
    let root = Root::new();
    let refused = async |name: &str, bytes: &[u8]| {
        let path = root.write(name, bytes);
        let text = chain(&root.images.load_archive(&path, None).await.unwrap_err());
        root.assert_empty().await;
        text
    };
    let empty = Tar::default().end();
    assert!(refused("empty", &empty).await.contains("neither index.json"));
    assert!(refused("garbage", &[7; 5000]).await.contains("checksum"));
    let archive = docker_archive(&[Tar::default().file("a", b"1").end()], &[]);
    assert!(
        refused("cut", &archive[..archive.len() - 3000])
            .await
            .contains("archive")
    );
    let gzip = pack(&archive, Pack::Gzip);
    assert!(
        refused("cut.gz", &gzip[..gzip.len() - 100])
            .await
            .contains("cut.gz")
    );
    let outside = r#"[{"Config": "../../../etc/passwd", "Layers": []}]"#;
    let text = refused(
        "outside",
        &Tar::default().file("manifest.json", outside.as_bytes()).end(),
    )
    .await;
    assert!(text.contains("it has no \"../../../etc/passwd\""), "{text}");
    let work = tempfile::tempdir().unwrap();
    let built = image();
    let dir = layout(work.path(), &built, &serde_json::json!({}));
    std::fs::write(
        dir.join("blobs/sha256").join(built.id().hex()),
        vec![b' '; built.config.len()],
    )
    .unwrap();
    let text = chain(&root.images.load_archive(&dir, None).await.unwrap_err());
    assert!(text.contains("digest is"), "{text}");
    // A link out of the directory is not followed.
    let config = dir.join("blobs/sha256").join(built.id().hex());
    std::fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &config).unwrap();
    let text = chain(&root.images.load_archive(&dir, None).await.unwrap_err());
    assert!(text.contains("cannot open"), "{text}");
    root.assert_empty().await;
    let text = chain(
        &root
            .images
            .load_archive(Path::new("/nowhere"), None)
            .await
            .unwrap_err(),
    );
    assert!(text.contains("cannot open /nowhere"), "{text}");
}
