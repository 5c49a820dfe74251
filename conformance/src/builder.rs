//! Images that the conformance suite makes itself, and pushes with `oci-client`.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::Context as _;
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::manifest::{self, OciImageManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How a layer is packed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// What stands at one path of a layer.
#[derive(Clone)]
pub enum Entry {
    Dir,
    File(Vec<u8>),
    Link(String),
    HardLink(String),
    /// Character device, major and minor.
    CharDevice(u32, u32),
}

/// An uncompressed tar in the making; entries are written in the order given.
#[derive(Default)]
pub struct Layer {
    bytes: Vec<u8>,
}

impl Layer {
    pub fn add(&mut self, path: &str, entry: &Entry, mode: u32, owner: (u32, u32)) -> &mut Self {
        let (kind, size, link, device) = match entry {
            Entry::Dir => (b'5', 0, "", (0, 0)),
            Entry::File(data) => (b'0', data.len(), "", (0, 0)),
            Entry::Link(to) => (b'2', 0, to.as_str(), (0, 0)),
            Entry::HardLink(to) => (b'1', 0, to.as_str(), (0, 0)),
            Entry::CharDevice(major, minor) => (b'3', 0, "", (*major, *minor)),
        };
        let mut header = [0u8; 512];
        put(&mut header[0..100], path.as_bytes());
        octal(&mut header[100..108], u64::from(mode));
        octal(&mut header[108..116], u64::from(owner.0));
        octal(&mut header[116..124], u64::from(owner.1));
        octal(&mut header[124..136], size as u64);
        octal(&mut header[136..148], 1_700_000_000);
        header[148..156].fill(b' ');
        header[156] = kind;
        put(&mut header[157..257], link.as_bytes());
        put(&mut header[257..265], b"ustar\x0000");
        octal(&mut header[329..337], u64::from(device.0));
        octal(&mut header[337..345], u64::from(device.1));
        let sum: u64 = header.iter().map(|&b| u64::from(b)).sum();
        octal(&mut header[148..155], sum);
        header[155] = b' ';
        self.bytes.extend_from_slice(&header);
        if let Entry::File(data) = entry {
            self.bytes.extend_from_slice(data);
            self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        }
        self
    }

    pub fn dir(&mut self, path: &str, mode: u32) -> &mut Self {
        self.add(path, &Entry::Dir, mode, (0, 0))
    }

    pub fn file(&mut self, path: &str, data: &[u8], mode: u32) -> &mut Self {
        self.add(path, &Entry::File(data.to_vec()), mode, (0, 0))
    }

    pub fn link(&mut self, path: &str, to: &str) -> &mut Self {
        self.add(path, &Entry::Link(to.to_owned()), 0o777, (0, 0))
    }

    pub fn hard_link(&mut self, path: &str, to: &str) -> &mut Self {
        self.add(path, &Entry::HardLink(to.to_owned()), 0o644, (0, 0))
    }

    /// The finished tar.
    pub fn finish(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }
}

fn put(field: &mut [u8], value: &[u8]) {
    let n = value.len().min(field.len());
    field[..n].copy_from_slice(&value[..n]);
}

fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    put(field, format!("{value:0width$o}").as_bytes());
}

pub fn sha256(data: &[u8]) -> String {
    let hex: String = Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

pub fn pack(tar: &[u8], packing: Packing) -> anyhow::Result<Vec<u8>> {
    Ok(match packing {
        Packing::Plain => tar.to_vec(),
        Packing::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(tar)?;
            out.finish()?
        }
        Packing::Zstd => zstd::encode_all(tar, 1)?,
    })
}

/// One image: layers in order, and what its config says besides.
pub struct ImageSource {
    /// Uncompressed tars with their packing, lowest first.
    pub layers: Vec<(Vec<u8>, Packing)>,
    /// The `config` member of the image config (`Cmd`, `Env`, `User`, …).
    pub config: Value,
    /// Docker's media types instead of OCI's.
    pub docker: bool,
}

impl ImageSource {
    pub fn new(layers: Vec<(Vec<u8>, Packing)>, config: Value) -> Self {
        Self {
            layers,
            config,
            docker: false,
        }
    }
}

/// A layer as it goes over the wire.
pub struct PackedLayer {
    /// Digest of the uncompressed tar.
    pub diff_id: String,
    pub blob: Vec<u8>,
    pub packing: Packing,
}

/// Pushes images to a registry on loopback.
pub struct Pusher {
    client: Client,
    auth: RegistryAuth,
    host: String,
}

impl Pusher {
    pub fn new(host: &str, login: Option<(&str, &str)>) -> Self {
        let config = ClientConfig {
            protocol: ClientProtocol::Http,
            ..Default::default()
        };
        let auth = login.map_or(RegistryAuth::Anonymous, |(user, password)| {
            RegistryAuth::Basic(user.to_owned(), password.to_owned())
        });
        Self {
            client: Client::new(config),
            auth,
            host: host.to_owned(),
        }
    }

    /// Pushes and gives back `host/name:tag`.
    pub async fn push(&self, name: &str, image: &ImageSource) -> anyhow::Result<String> {
        let mut layers = Vec::new();
        for (tar, packing) in &image.layers {
            layers.push(PackedLayer {
                diff_id: sha256(tar),
                blob: pack(tar, *packing)?,
                packing: *packing,
            });
        }
        self.push_packed(name, layers, &image.config, image.docker).await
    }

    /// As [`Pusher::push`], of layers that were packed before.
    pub async fn push_packed(
        &self,
        name: &str,
        packed: Vec<PackedLayer>,
        config: &Value,
        docker: bool,
    ) -> anyhow::Result<String> {
        let full = format!("{}/{name}", self.host);
        let reference: Reference = full.parse().with_context(|| format!("parse {full}"))?;
        let diff_ids: Vec<String> = packed.iter().map(|layer| layer.diff_id.clone()).collect();
        let layers: Vec<ImageLayer> = packed
            .into_iter()
            .map(|layer| {
                let media_type = match (docker, layer.packing) {
                    (true, _) => manifest::IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE,
                    (false, Packing::Plain) => manifest::IMAGE_LAYER_MEDIA_TYPE,
                    (false, Packing::Gzip) => manifest::IMAGE_LAYER_GZIP_MEDIA_TYPE,
                    (false, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
                };
                ImageLayer::new(layer.blob, media_type.to_owned(), None)
            })
            .collect();
        let config_type = if docker {
            manifest::IMAGE_DOCKER_CONFIG_MEDIA_TYPE
        } else {
            manifest::IMAGE_CONFIG_MEDIA_TYPE
        };
        let config = Config::new(image_config(&diff_ids, config)?, config_type.to_owned(), None);
        let mut manifest = OciImageManifest::build(&layers, &config, None);
        manifest.media_type = Some(
            if docker {
                manifest::IMAGE_MANIFEST_MEDIA_TYPE
            } else {
                manifest::OCI_IMAGE_MEDIA_TYPE
            }
            .to_owned(),
        );
        self.client
            .push(&reference, &layers, config, &self.auth, Some(manifest))
            .await
            .with_context(|| format!("push {full}"))?;
        Ok(full)
    }

    /// Pushes an index over images pushed before: (architecture, reference).
    pub async fn push_index(&self, name: &str, members: &[(&str, &str)]) -> anyhow::Result<String> {
        let full = format!("{}/{name}", self.host);
        let mut entries = Vec::new();
        for (architecture, member) in members {
            let reference: Reference = member.parse()?;
            let (raw, digest) = self
                .client
                .pull_manifest_raw(&reference, &self.auth, &[manifest::OCI_IMAGE_MEDIA_TYPE])
                .await
                .with_context(|| format!("read back {member}"))?;
            entries.push(json!({
                "mediaType": manifest::OCI_IMAGE_MEDIA_TYPE, "digest": digest, "size": raw.len(),
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let index = json!({"schemaVersion": 2, "mediaType": manifest::OCI_IMAGE_INDEX_MEDIA_TYPE, "manifests": entries});
        let reference: Reference = full.parse()?;
        let index: manifest::OciManifest = serde_json::from_value(index)?;
        self.client
            .push_manifest(&reference, &index)
            .await
            .with_context(|| format!("push index {full}"))?;
        Ok(full)
    }
}

fn image_config(diff_ids: &[String], config: &Value) -> anyhow::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&json!({
        "architecture": host_architecture(), "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))?)
}

/// The architecture of this machine, as image platforms name it.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The static busybox of this machine.
pub fn busybox_path() -> anyhow::Result<&'static str> {
    ["/usr/bin/busybox", "/bin/busybox"]
        .into_iter()
        .find(|path| std::path::Path::new(path).is_file())
        .context("no busybox: install Debian's busybox-static")
}

/// The layer of a busybox root file system, made from Debian's `busybox-static`.
pub fn busybox_layer() -> anyhow::Result<Layer> {
    let binary = std::fs::read(busybox_path()?)?;
    let list = std::process::Command::new("busybox")
        .arg("--list")
        .output()
        .context("run busybox --list")?;
    let mut layer = Layer::default();
    for (dir, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("proc", 0o555),
        ("sys", 0o555),
        ("dev", 0o755),
        ("tmp", 0o1777),
        ("root", 0o700),
        ("home", 0o755),
        ("var", 0o755),
    ] {
        layer.dir(dir, mode);
    }
    layer.file("bin/busybox", &binary, 0o755);
    for applet in String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter(|a| *a != "busybox")
    {
        layer.add(
            &format!("bin/{applet}"),
            &Entry::HardLink("bin/busybox".to_owned()),
            0o755,
            (0, 0),
        );
    }
    let users = [
        ("root", 0, "/root"),
        ("www-data", 33, "/home"),
        ("app", 1000, "/home"),
        ("nobody", 65534, "/"),
    ];
    let passwd: String = users
        .iter()
        .map(|(n, id, home)| format!("{n}:x:{id}:{id}::{home}:/bin/sh\n"))
        .collect();
    layer.file("etc/passwd", passwd.as_bytes(), 0o644);
    layer.file(
        "etc/group",
        b"root:x:0:\nwww-data:x:33:\napp:x:1000:\nextra:x:2000:app\nnogroup:x:65534:\n",
        0o644,
    );
    Ok(layer)
}

/// Adds a program of this machine with the shared libraries that it needs.
fn add_program(layer: &mut Layer, program: &str) -> anyhow::Result<()> {
    layer.dir("usr", 0o755).dir("usr/bin", 0o755);
    let data =
        std::fs::read(program).with_context(|| format!("read {program}: install its Debian package"))?;
    layer.file(program.trim_start_matches('/'), &data, 0o755);
    let ldd = std::process::Command::new("ldd")
        .arg(program)
        .output()
        .context("run ldd")?;
    let text = String::from_utf8(ldd.stdout)?;
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let data = std::fs::read(library).with_context(|| format!("read {library}"))?;
        layer.file(library.trim_start_matches('/'), &data, 0o755);
    }
    Ok(())
}

/// Images whose configuration or passwd has users that can be, and that cannot.
async fn with_users(
    pusher: &Pusher,
    base: &[u8],
    names: &mut BTreeMap<&'static str, String>,
) -> anyhow::Result<()> {
    let mut odd = Layer::default();
    odd.file(
        "etc/passwd",
        b"root:x:0:0::/root:/bin/sh\ngiant:x:3000000000:1::/:/bin/sh\nodd:x:5:5::/home\x0b/odd:/bin/sh\n",
        0o644,
    );
    let odd = odd.finish();
    let plain = |user: &str| json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "User": user});
    for (name, config) in [
        ("numbered", plain("1234:5")),
        ("user-too-large", plain("2147483648")),
        ("group-too-large", plain("1000:4294967295")),
        ("user-unknown", plain("nobody-knows")),
        ("user-of-passwd-too-large", plain("giant")),
        ("home-of-passwd-with-control", plain("odd")),
        (
            "home-with-newline",
            json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "HOME=/root\nx:0:0::/:/bin/sh"]}),
        ),
    ] {
        let layers = vec![(base.to_vec(), Packing::Gzip), (odd.clone(), Packing::Plain)];
        let image = ImageSource::new(layers, config);
        names.insert(name, pusher.push(&format!("test/{name}:1"), &image).await?);
    }
    Ok(())
}

/// The images that the cases use: name → full reference.
pub async fn fill(pusher: &Pusher) -> anyhow::Result<BTreeMap<&'static str, String>> {
    let base = busybox_layer()?.finish();
    let mut names = BTreeMap::new();
    let busybox = ImageSource::new(
        vec![(base.clone(), Packing::Gzip)],
        json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}),
    );
    names.insert("busybox", pusher.push("test/busybox:1", &busybox).await?);

    let configured = ImageSource::new(
        vec![(base.clone(), Packing::Zstd)],
        json!({"Entrypoint": ["/bin/echo", "entry"], "Cmd": ["cmd"], "User": "app", "WorkingDir": "/home/work", "Env":
            ["PATH=/bin", "FROM_IMAGE=yes", "OVER=image"], "StopSignal": "SIGUSR1", "Labels": {"a": "b"}}),
    );
    names.insert("configured", pusher.push("test/configured:1", &configured).await?);

    let mut second = Layer::default();
    second
        .dir("data", 0o750)
        .file("data/kept", b"kept\n", 0o644)
        .file("data/gone", b"gone\n", 0o644);
    second
        .dir("data/opaque", 0o755)
        .file("data/opaque/old", b"old\n", 0o644);
    second
        .file("data/first", b"linked\n", 0o600)
        .hard_link("data/second", "data/first");
    second
        .dir("real", 0o755)
        .link("alias", "real")
        .link("other-alias", "real")
        .file("real/below", b"below\n", 0o644);
    second.add("data/device", &Entry::CharDevice(1, 3), 0o666, (0, 0));
    second.add("data/owned", &Entry::File(b"x".to_vec()), 0o4755, (1000, 2000));
    let mut third = Layer::default();
    third
        .file("data/.wh.gone", b"", 0o644)
        .file("data/opaque/.wh..wh..opq", b"", 0o644);
    third
        .file("data/opaque/new", b"new\n", 0o644)
        .file("alias/above", b"above\n", 0o644);
    let layered = ImageSource::new(
        vec![
            (base.clone(), Packing::Gzip),
            (second.finish(), Packing::Plain),
            (third.finish(), Packing::Zstd),
        ],
        json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}),
    );
    names.insert("layered", pusher.push("test/layered:1", &layered).await?);

    // Volumes, tags, and users that the cases of `image_semantics` and `security_context` look at.
    let mut volumes = ImageSource::new(
        layered.layers.clone(),
        json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Volumes": {"/data": {}, "/made/": {}}}),
    );
    names.insert("volumes", pusher.push("test/volumes:1", &volumes).await?);
    volumes.config = json!({"Cmd": ["/bin/true"], "Env": ["PATH=/bin", "TAGS=3"]});
    for (name, tag) in [("tags-1", "1"), ("tags-2", "2"), ("tags-3", "3")] {
        names.insert(name, pusher.push(&format!("test/tags:{tag}"), &volumes).await?);
    }
    with_users(pusher, &base, &mut names).await?;

    let mut socat = Layer::default();
    add_program(&mut socat, "/usr/bin/socat")?;
    let socat = ImageSource::new(
        vec![(base.clone(), Packing::Gzip), (socat.finish(), Packing::Gzip)],
        json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin:/usr/bin"]}),
    );
    names.insert("socat", pusher.push("test/socat:1", &socat).await?);

    let mut docker = ImageSource::new(vec![(base, Packing::Gzip)], json!({"Cmd": ["/bin/true"]}));
    docker.docker = true;
    names.insert("docker", pusher.push("test/docker:1", &docker).await?);
    let other = if host_architecture() == "amd64" {
        "arm64"
    } else {
        "amd64"
    };
    // A registry takes an index only when its members are in the same repository.
    let member_other = pusher.push("test/index:other", &configured).await?;
    let member_this = pusher.push("test/index:this", &busybox).await?;
    let members = [
        (other, member_other.as_str()),
        (host_architecture(), member_this.as_str()),
    ];
    names.insert("index", pusher.push_index("test/index:1", &members).await?);
    Ok(names)
}
