//! A registry that lies: it serves images whose blobs are not what their manifests say.
//!
//! One thread per connection, one request per connection, read only. The honest registry is `crate::registry`.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use crate::builder::{Packing, host_architecture, pack, sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// A client that does not read is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a client gets that asks for a layer.
#[derive(Clone)]
pub enum Fault {
    /// These bytes in its place.
    Other(Vec<u8>),
    /// So many bytes of it, and the end of the connection; each time.
    Truncated(usize),
    /// All of it, and then zeros for ever.
    Endless,
}

/// Media type and bytes; a fault for layers.
struct Served {
    kind: &'static str,
    bytes: Vec<u8>,
    fault: Option<Fault>,
}

type Documents = Arc<Mutex<HashMap<String, Arc<Served>>>>;

pub struct Hostile {
    documents: Documents,
    pub host: String,
}

impl Hostile {
    /// Its threads end with the process.
    pub fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("bind the registry that lies")?;
        let host = listener.local_addr()?.to_string();
        let documents = Documents::default();
        let served = Arc::clone(&documents);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = Arc::clone(&served);
                // The client may go away at any byte: that is what the cases are about.
                std::thread::spawn(move || answer(stream, &served).ok());
            }
        });
        Ok(Self { documents, host })
    }

    /// An image of one layer; `fault` is in the layer. Its reference.
    pub fn image(&self, name: &str, tar: &[u8], fault: Option<Fault>) -> anyhow::Result<String> {
        let layer = pack(tar, Packing::Gzip)?;
        let config = serde_json::to_vec(&json!({
            "architecture": host_architecture(), "os": "linux", "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(tar)]},
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": sha256(&config), "size": config.len()},
            "layers": [{"mediaType": LAYER, "digest": sha256(&layer), "size": layer.len()}],
        }))?;
        self.serve(
            format!("/v2/{name}/blobs/{}", sha256(&config)),
            CONFIG,
            config,
            None,
        );
        self.serve(
            format!("/v2/{name}/blobs/{}", sha256(&layer)),
            LAYER,
            layer,
            fault,
        );
        Ok(self.manifest(name, manifest))
    }

    /// Any bytes as the manifest; its reference.
    pub fn manifest(&self, name: &str, bytes: Vec<u8>) -> String {
        self.serve(
            format!("/v2/{name}/manifests/{}", sha256(&bytes)),
            MANIFEST,
            bytes.clone(),
            None,
        );
        self.serve(format!("/v2/{name}/manifests/1"), MANIFEST, bytes, None);
        format!("{}/{name}:1", self.host)
    }

    fn serve(&self, path: String, kind: &'static str, bytes: Vec<u8>, fault: Option<Fault>) {
        let served = Arc::new(Served { kind, bytes, fault });
        self.documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path, served);
    }
}

fn answer(stream: TcpStream, documents: &Documents) -> std::io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && line != "\r\n" {
        line.clear();
    }
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    let found = documents
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(path)
        .cloned();
    let mut out = stream;
    let Some(found) = found else {
        let status = if path == "/v2/" { "200 OK" } else { "404 Not Found" };
        return write!(
            out,
            "HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        );
    };
    let digest = sha256(&found.bytes);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nDocker-Content-Digest: {digest}\r\nConnection: close\r\n",
        found.kind
    );
    if matches!(found.fault, Some(Fault::Endless)) && method == "GET" {
        write!(
            out,
            "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n",
            found.bytes.len()
        )?;
        out.write_all(&found.bytes)?;
        let zeros = vec![0; 65536];
        loop {
            write!(out, "\r\n10000\r\n")?;
            out.write_all(&zeros)?;
        }
    }
    let body = match &found.fault {
        Some(Fault::Other(bytes)) => bytes,
        _ => &found.bytes,
    };
    write!(out, "{head}Content-Length: {}\r\n\r\n", body.len())?;
    match (method, &found.fault) {
        ("GET", Some(Fault::Truncated(length))) => out.write_all(&body[..body.len().min(*length)]),
        ("GET", _) => out.write_all(body),
        _ => Ok(()),
    }
}
