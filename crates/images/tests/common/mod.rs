//! What the tests share: archives and images made by hand, a registry with faults, and a listing of trees.

#![allow(dead_code, clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub)]

pub mod registry;
pub mod tree;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_images::{Config, Error, ImageId, Images, PullRequest, Snapshot};
use holdfast_registry::{Client, Digest};

/// A tar archive made member by member, right or wrong.
#[derive(Clone, Default)]
pub struct Tar(Vec<u8>);

/// Fields of a member; the rest has defaults.
pub struct Member<'a> {
    pub name: &'a str,
    pub flag: u8,
    pub mode: u32,
    pub owner: (u32, u32),
    pub link: &'a str,
    pub device: (u32, u32),
    pub data: &'a [u8],
}

impl Default for Member<'_> {
    fn default() -> Self {
        Self {
            name: "",
            flag: b'0',
            mode: 0o644,
            owner: (0, 0),
            link: "",
            device: (0, 0),
            data: b"",
        }
    }
}

impl Tar {
    pub fn member(mut self, m: &Member<'_>) -> Self {
        assert!(
            m.name.len() <= 100 && m.link.len() <= 100,
            "use pax for long names"
        );
        let mut block = [0u8; 512];
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, m.name);
        put(100, &format!("{:07o}", m.mode));
        put(108, &format!("{:07o}", m.owner.0));
        put(116, &format!("{:07o}", m.owner.1));
        put(124, &format!("{:011o}", m.data.len()));
        put(136, &format!("{:011o}", 1_600_000_000));
        put(157, m.link);
        put(257, "ustar\x0000");
        put(329, &format!("{:07o}", m.device.0));
        put(337, &format!("{:07o}", m.device.1));
        block[148..156].fill(b' ');
        block[156] = m.flag;
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(m.data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.member(&Member {
            name,
            data,
            ..Member::default()
        })
    }

    pub fn dir(self, name: &str, mode: u32, owner: (u32, u32)) -> Self {
        self.member(&Member {
            name,
            flag: b'5',
            mode,
            owner,
            ..Member::default()
        })
    }

    pub fn symlink(self, name: &str, link: &str) -> Self {
        self.member(&Member {
            name,
            flag: b'2',
            link,
            mode: 0o777,
            ..Member::default()
        })
    }

    pub fn hard_link(self, name: &str, link: &str) -> Self {
        self.member(&Member {
            name,
            flag: b'1',
            link,
            ..Member::default()
        })
    }

    /// An extended header for the next member.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut len = body + 1;
            while len != body + len.to_string().len() {
                len = body + len.to_string().len();
            }
            data.extend_from_slice(format!("{len} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.member(&Member {
            name: "pax",
            flag: b'x',
            data: &data,
            ..Member::default()
        })
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pack {
    Plain,
    Gzip,
    Zstd,
}

pub fn pack(tar: &[u8], how: Pack) -> Vec<u8> {
    match how {
        Pack::Plain => tar.to_vec(),
        Pack::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(tar).unwrap();
            out.finish().unwrap()
        }
        Pack::Zstd => zstd::encode_all(tar, 1).unwrap(),
    }
}

/// An image in the form of a registry or layout.
#[derive(Clone)]
pub struct Built {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    /// Blobs by digest, the configuration included.
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub layers: Vec<Digest>,
}

impl Built {
    pub fn id(&self) -> ImageId {
        Digest::sha256(&self.config)
    }

    pub fn digest(&self) -> Digest {
        Digest::sha256(&self.manifest)
    }
}

pub fn config_json(tars: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = tars.iter().map(|t| Digest::sha256(t).to_string()).collect();
    serde_json::json!({"architecture": holdfast_registry::Platform::host().architecture, "os": "linux",
        "config": {"User": "7:8", "Env": ["A=b"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string()
    .into_bytes()
}

/// Makes an image of layers, all OCI types.
pub fn build(tars: &[Vec<u8>], how: Pack) -> Built {
    let config = config_json(tars);
    let mut blobs = BTreeMap::new();
    let descriptor = |bytes: &[u8], media_type: &str| serde_json::json!({"mediaType": media_type, "digest": Digest::sha256(bytes).to_string(), "size": bytes.len()});
    let suffix = match how {
        Pack::Plain => "",
        Pack::Gzip => "+gzip",
        Pack::Zstd => "+zstd",
    };
    let mut layers = Vec::new();
    let mut digests = Vec::new();
    for tar in tars {
        let blob = pack(tar, how);
        layers.push(descriptor(
            &blob,
            &format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
        ));
        digests.push(Digest::sha256(&blob));
        blobs.insert(Digest::sha256(&blob).to_string(), blob);
    }
    let manifest =
        serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(&config, "application/vnd.oci.image.config.v1+json"), "layers": layers})
        .to_string()
        .into_bytes();
    blobs.insert(Digest::sha256(&config).to_string(), config.clone());
    Built {
        manifest,
        config,
        blobs,
        layers: digests,
    }
}

/// What `docker save` writes.
pub fn docker_archive(tars: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    let config = config_json(tars);
    let mut out = Tar::default().file("config.json", &config);
    let mut names = Vec::new();
    for (n, tar) in tars.iter().enumerate() {
        let name = format!("{n}/layer.tar");
        out = out.file(&name, tar);
        names.push(name);
    }
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": tags, "Layers": names}]).to_string();
    out.file("manifest.json", manifest.as_bytes()).end()
}

/// A root directory that goes away, with images in it.
pub struct Root {
    pub dir: tempfile::TempDir,
    pub images: Images,
}

impl Root {
    pub fn new() -> Self {
        Self::with(&Config::default())
    }

    pub fn with(config: &Config) -> Self {
        // Not /tmp: it may be a tmpfs, which has no user xattrs before Linux 6.6.
        let dir = tempfile::Builder::new()
            .prefix("holdfast-test-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let images = open(dir.path(), config);
        Self { dir, images }
    }

    /// One whose registries are those of `hosts.toml` for `registry`.
    pub fn behind(registry: &str, hosts: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("holdfast-test-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let host = dir.path().join("certs.d").join(registry);
        std::fs::create_dir_all(&host).unwrap();
        std::fs::write(host.join("hosts.toml"), hosts).unwrap();
        let client = Client::new(holdfast_registry::Config {
            certs_d: vec![dir.path().join("certs.d")],
            ..holdfast_registry::Config::default()
        });
        let images = Images::open(dir.path(), Config::default(), Arc::new(client)).unwrap();
        Self { dir, images }
    }

    /// Opens the same root again, as after a restart.
    pub fn reopen(self) -> Self {
        let Self { dir, images } = self;
        drop(images);
        let images = open(dir.path(), &Config::default());
        Self { dir, images }
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Loads layers as an image.
    pub async fn load(&self, tars: &[Vec<u8>]) -> holdfast_images::Result<ImageId> {
        let path = self.write("archive.tar", &docker_archive(tars, &["test:latest"]));
        let loaded = self.images.load_archive(&path, None).await;
        std::fs::remove_file(path).unwrap();
        Ok(loaded?.remove(0))
    }

    /// Why layers are refused, with all causes; checks that nothing is left of the try.
    pub async fn refusal(&self, tars: &[Vec<u8>]) -> String {
        let text = match self.load(tars).await {
            Ok(id) => panic!("{id} was accepted"),
            Err(e) => chain(&e),
        };
        self.assert_tmp_empty().await;
        assert!(self.images.list(None).is_empty());
        // Whole layers below the bad one are kept for another try.
        assert!(self.layer_dirs().len() < tars.len(), "layers are left");
        text
    }

    pub async fn pull(&self, reference: &str) -> holdfast_images::Result<ImageId> {
        self.images
            .pull(
                PullRequest {
                    reference: reference.into(),
                    ..PullRequest::default()
                },
                |_| {},
            )
            .await
    }

    /// Checks that neither images nor parts of them are here.
    pub async fn assert_empty(&self) {
        self.assert_tmp_empty().await;
        assert_eq!(self.layer_dirs().len(), 0, "layers are left");
        assert!(self.images.list(None).is_empty());
    }

    /// Waits for removals in the background, and checks that nothing half done is left.
    pub async fn assert_tmp_empty(&self) {
        let tmp = self.dir.path().join("images/tmp");
        for _ in 0..500 {
            if std::fs::read_dir(&tmp).unwrap().count() == 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!(
            "left in tmp: {:?}",
            std::fs::read_dir(&tmp).unwrap().collect::<Vec<_>>()
        );
    }

    pub fn layer_dirs(&self) -> Vec<PathBuf> {
        let listed = std::fs::read_dir(self.dir.path().join("images/l")).unwrap();
        listed.map(|e| e.unwrap().path()).collect()
    }

    /// The directory of the only layer of an image.
    pub async fn only_layer(&self, tar: Vec<u8>) -> PathBuf {
        let id = self
            .load(&[tar])
            .await
            .unwrap_or_else(|e| panic!("{}", chain(&e)));
        self.snapshot(&id).await.lowers.remove(0)
    }

    pub async fn snapshot(&self, id: &ImageId) -> Snapshot {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let key = format!("s{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        self.images
            .prepare(&key, id, &holdfast_images::PrepareOptions::default())
            .unwrap()
    }
}

fn open(dir: &Path, config: &Config) -> Images {
    let registry = Arc::new(Client::new(holdfast_registry::Config::default()));
    let begun = std::time::Instant::now();
    loop {
        match Images::open(dir, config.clone(), Arc::clone(&registry)) {
            Ok(images) => return images,
            // The last task of the handle before has not let go of the database yet.
            Err(Error::Store(_)) if begun.elapsed().as_secs() < 10 => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(e) => panic!("{}", chain(&e)),
        }
    }
}

/// An error with all its causes, as a person sees it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

/// Runs a command that must succeed.
pub fn run(program: &str, args: &[&str]) {
    let status = std::process::Command::new(program)
        .args(args)
        .status()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(status.success(), "{program} {args:?}: {status}");
}
