//! The client against a registry that is not ours: Debian's `docker-registry`, started on loopback.

#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_registry::{Auth, Client, Config, Descriptor, Digest, Kind, Platform, Reference};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// `user:s3cret`, with bcrypt, which is the only form that the registry reads.
const HTPASSWD: &str = "user:$2b$05$eqP3UvsFBBrOaW61.PdTaejishaabuGhn.BB2zbxZKmUZMfnycu6G\n";
const BASIC: &str = "dXNlcjpzM2NyZXQ=";

struct Registry {
    child: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(path: &Path, text: &str) {
    let mut file = std::fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
}

impl Registry {
    async fn start(basic: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {0}/data}}}}\nhttp: {{addr: \"{address}\"}}\n",
            dir.path().display()
        );
        if basic {
            write(&dir.path().join("htpasswd"), HTPASSWD);
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: test, path: {}/htpasswd}}}}\n",
                dir.path().display()
            ));
        }
        let file = dir.path().join("config.yml");
        write(&file, &config);
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .expect("the tests need the package docker-registry");
        let registry = Self {
            child,
            address,
            _dir: dir,
        };
        let began = Instant::now();
        while TcpStream::connect(&registry.address).await.is_err() {
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "docker-registry does not listen"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        registry
    }

    /// One request without any of the crate's own code; gives status and head.
    async fn request(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> (u16, String) {
        let mut tcp = TcpStream::connect(&self.address).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nAuthorization: Basic {BASIC}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        tcp.write_all(head.as_bytes()).await.unwrap();
        tcp.write_all(body).await.unwrap();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }

    async fn push_blob(&self, repository: &str, blob: &[u8], media_type: &str) -> Descriptor {
        let (status, head) = self
            .request("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"")
            .await;
        assert_eq!(status, 202, "{head}");
        let location = head
            .lines()
            .find_map(|l| l.strip_prefix("Location: "))
            .unwrap()
            .trim();
        let path = location
            .split_once(&self.address)
            .map_or(location, |(_, path)| path);
        let digest = Digest::sha256(blob);
        let path = format!("{path}&digest={digest}");
        let (status, head) = self.request("PUT", &path, "application/octet-stream", blob).await;
        assert_eq!(status, 201, "{head}");
        serde_json::from_value(
            serde_json::json!({"mediaType": media_type, "digest": digest, "size": blob.len()}),
        )
        .unwrap()
    }

    async fn push_manifest(&self, repository: &str, name: &str, media_type: &str, body: &str) -> Digest {
        let (status, head) = self
            .request(
                "PUT",
                &format!("/v2/{repository}/manifests/{name}"),
                media_type,
                body.as_bytes(),
            )
            .await;
        assert_eq!(status, 201, "{head}");
        Digest::sha256(body.as_bytes())
    }

    fn reference(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.address)).unwrap()
    }
}

fn client() -> Client {
    Client::new(Config {
        certs_d: Vec::new(),
        ..Config::default()
    })
}

/// Pushes one image as an OCI index of one manifest under `team/app:1`, and gives its layer and the index's digest.
async fn push(registry: &Registry, size: usize) -> (Vec<u8>, Digest) {
    let layer: Vec<u8> = (0..size).map(|n| (n * 7 % 253) as u8).collect();
    let config = registry
        .push_blob("team/app", b"{}", "application/vnd.oci.image.config.v1+json")
        .await;
    let blob = registry
        .push_blob("team/app", &layer, "application/vnd.oci.image.layer.v1.tar")
        .await;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [blob]})
            .to_string();
    let digest = registry
        .push_manifest("team/app", "only", media_type, &manifest)
        .await;
    let index_type = "application/vnd.oci.image.index.v1+json";
    let platform = serde_json::json!({"os": "linux", "architecture": "amd64"});
    let entry = serde_json::json!({"mediaType": media_type, "digest": digest, "size": manifest.len(), "platform": platform});
    let index =
        serde_json::json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [entry]}).to_string();
    let index = registry.push_manifest("team/app", "1", index_type, &index).await;
    (layer, index)
}

#[tokio::test]
async fn an_image_through_an_index() {
    let registry = Registry::start(false).await;
    let (layer, index) = push(&registry, 5_000_000).await;
    let pull = client()
        .pull(&registry.reference("team/app:1"), None)
        .await
        .unwrap();
    assert_eq!(pull.head().await.unwrap(), Some(index.clone()));
    let image = pull
        .resolve(&Platform::new("linux", "amd64", Some("v3")))
        .await
        .unwrap();
    assert_eq!(image.root.digest, index);
    assert_ne!(image.document.digest, index);
    assert_eq!(pull.bytes(&image.manifest.config, 1024).await.unwrap(), "{}");
    let mut blob = pull.blob(&image.manifest.layers[0]).await.unwrap();
    let mut got = Vec::new();
    while let Some(chunk) = blob.chunk().await.unwrap() {
        got.extend_from_slice(&chunk);
    }
    assert!(got == layer);
    let by_digest = registry.reference(&format!("team/app@{index}"));
    let again = client()
        .pull(&by_digest, None)
        .await
        .unwrap()
        .resolve(&Platform::new("linux", "amd64", None))
        .await
        .unwrap();
    assert_eq!(again.document.digest, image.document.digest);
}

#[tokio::test]
async fn its_errors_are_quoted() {
    let registry = Registry::start(false).await;
    let error = client()
        .pull(&registry.reference("no/such:1"), None)
        .await
        .unwrap()
        .resolve(&Platform::host())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    let wanted = format!(
        "pull {0}/no/such:1: 404 not found from http://{0}: MANIFEST_UNKNOWN manifest unknown",
        registry.address
    );
    assert_eq!(error.to_string(), wanted);
}

#[tokio::test]
async fn basic_authentication() {
    let registry = Registry::start(true).await;
    push(&registry, 1000).await;
    let reference = registry.reference("team/app:1");
    let platform = Platform::new("linux", "amd64", None);
    let auth = Auth {
        username: "user".into(),
        password: "s3cret".into(),
        ..Auth::default()
    };
    let client = client();
    client
        .pull(&reference, Some(&auth))
        .await
        .unwrap()
        .resolve(&platform)
        .await
        .unwrap();
    let auth = Auth {
        auth: BASIC.into(),
        ..Auth::default()
    };
    client
        .pull(&reference, Some(&auth))
        .await
        .unwrap()
        .resolve(&platform)
        .await
        .unwrap();
    for wrong in [
        None,
        Some(Auth {
            username: "user".into(),
            password: "guess".into(),
            ..Auth::default()
        }),
    ] {
        let error = client
            .pull(&reference, wrong.as_ref())
            .await
            .unwrap()
            .resolve(&platform)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        assert!(
            error
                .to_string()
                .contains("401 unauthorized from http://127.0.0.1"),
            "{error}"
        );
        assert!(!format!("{error} {error:?}").contains("guess"));
    }
}
