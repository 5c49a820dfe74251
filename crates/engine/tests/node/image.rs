//! An OCI layout directory with one image: busybox in one uncompressed layer.

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

/// `dir` must not exist.
pub fn busybox_layout(dir: &Path, name: &str) {
    let root = dir.join("root");
    holdfast_testkit::busybox_rootfs(&root);
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let tar = dir.join("layer.tar");
    let mut pack = Command::new(holdfast_testkit::BUSYBOX);
    let packed = pack.arg("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".");
    assert!(packed.status().unwrap().success(), "busybox tar failed");
    let layer = blob(
        dir,
        "application/vnd.oci.image.layer.v1.tar",
        &std::fs::read(&tar).unwrap(),
    );
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = json!({
        "architecture": arch,
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
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
        "layers": [layer],
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
