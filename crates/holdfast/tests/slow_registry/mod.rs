//! A registry with one image of one layer, which it sends slowly enough for a bar to be seen.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const PIECES: usize = 20;
const PAUSE: Duration = Duration::from_millis(40);

struct Image {
    config: Vec<u8>,
    layer: Vec<u8>,
    manifest: Vec<u8>,
}

fn sum(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = child.wait_with_output().unwrap();
    format!("sha256:{}", String::from_utf8_lossy(&out.stdout[..64]))
}

fn image() -> Image {
    let dir = tempfile::tempdir().unwrap();
    // What does not compress would do; this layer is not compressed at all.
    std::fs::write(dir.path().join("file"), vec![b'x'; 400_000]).unwrap();
    let tar = Command::new("tar")
        .arg("-C")
        .arg(dir.path())
        .args(["-c", "file"])
        .output()
        .unwrap();
    let layer = tar.stdout;
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = format!(
        r#"{{"architecture": "{arch}", "os": "linux", "config": {{}}, "rootfs": {{"type": "layers", "diff_ids": ["{}"]}}}}"#,
        sum(&layer)
    )
    .into_bytes();
    let part = |kind: &str, bytes: &[u8]| {
        let digest = sum(bytes);
        format!(
            r#"{{"mediaType": "application/vnd.oci.image.{kind}", "digest": "{digest}", "size": {}}}"#,
            bytes.len()
        )
    };
    let manifest = format!(
        r#"{{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": {}, "layers": [{}]}}"#,
        part("config.v1+json", &config),
        part("layer.v1.tar", &layer)
    )
    .into_bytes();
    Image {
        config,
        layer,
        manifest,
    }
}

/// The image's reference. The threads end with the test's process.
pub fn start() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap();
    let image = Arc::new(image());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let image = Arc::clone(&image);
            std::thread::spawn(move || answer(stream, &image).ok());
        }
    });
    format!("{host}/slow:1")
}

fn answer(mut out: TcpStream, image: &Image) -> std::io::Result<()> {
    let mut reader = BufReader::new(out.try_clone()?);
    let (mut request, mut line) = (String::new(), String::new());
    reader.read_line(&mut request)?;
    while reader.read_line(&mut line)? > 0 && line != "\r\n" {
        line.clear();
    }
    let (kind, body) = if request.contains("/manifests/") {
        ("application/vnd.oci.image.manifest.v1+json", &image.manifest)
    } else if request.contains(&sum(&image.layer)) {
        ("application/octet-stream", &image.layer)
    } else {
        ("application/octet-stream", &image.config)
    };
    write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    if request.starts_with("HEAD") {
        return Ok(());
    }
    for piece in body.chunks(body.len().div_ceil(PIECES)) {
        out.write_all(piece)?;
        if body.len() > 100_000 {
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}
