//! An OCI layout directory with one image: busybox in one uncompressed layer, and others over it.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Puts bytes where their digest says and gives their descriptor.
fn blob(layout: &Path, kind: &str, bytes: &[u8]) -> Value {
    let mut hex = String::new();
    for byte in Sha256::digest(bytes) {
        write!(hex, "{byte:02x}").unwrap();
    }
    std::fs::write(layout.join("blobs/sha256").join(&hex), bytes).unwrap();
    json!({ "mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len() })
}

/// `dir` must not exist. `above` fills the directories of further layers; `volumes` are declared.
pub fn layout(dir: &Path, name: &str, above: &[fn(&Path)], volumes: &[&str]) {
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let first: fn(&Path) = holdfast_testkit::busybox_rootfs;
    let layers: Vec<Value> = std::iter::once(&first)
        .chain(above)
        .enumerate()
        .map(|(n, fill)| {
            let (root, tar) = (dir.join(format!("root{n}")), dir.join(format!("{n}.tar")));
            std::fs::create_dir_all(&root).unwrap();
            fill(&root);
            let mut pack = Command::new(holdfast_testkit::BUSYBOX);
            let packed = pack.arg("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".");
            assert!(packed.status().unwrap().success(), "busybox tar failed");
            let bytes = std::fs::read(&tar).unwrap();
            blob(dir, "application/vnd.oci.image.layer.v1.tar", &bytes)
        })
        .collect();
    let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let volumes: serde_json::Map<String, Value> = volumes
        .iter()
        .map(|path| ((*path).to_owned(), json!({})))
        .collect();
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = json!({
        "architecture": arch,
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "Volumes": volumes },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob(
        dir,
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    });
    let mut manifest = blob(
        dir,
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    manifest["annotations"] =
        json!({ "org.opencontainers.image.ref.name": name, "io.containerd.image.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
