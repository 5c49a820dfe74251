//! A registry on loopback, in this process, that can misbehave.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::Built;

/// How a blob is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends after so many bytes, every time.
    Truncated(usize),
    /// No length, and no end.
    Endless,
    /// Served when [`Registry::open_gate`] was called.
    Gated,
}

#[derive(Default)]
struct State {
    manifests: HashMap<String, (String, Vec<u8>)>,
    blobs: HashMap<String, Vec<u8>>,
    faults: HashMap<String, Fault>,
    asked: Vec<String>,
    gate: bool,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

pub struct Registry {
    pub address: String,
    shared: Shared,
}

impl Registry {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Shared::default();
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || serve(&connection, &shared));
            }
        });
        Self { address, shared }
    }

    pub fn reference(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    /// Makes an image available as `repository:tag`, and by digest.
    pub fn push(&self, repository: &str, tag: &str, image: &Built) {
        self.manifest(
            repository,
            tag,
            "application/vnd.oci.image.manifest.v1+json",
            &image.manifest,
        );
        self.manifest(
            repository,
            image.digest().as_str(),
            "application/vnd.oci.image.manifest.v1+json",
            &image.manifest,
        );
        self.shared.0.lock().unwrap().blobs.extend(image.blobs.clone());
    }

    pub fn manifest(&self, repository: &str, name: &str, media_type: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/manifests/{name}");
        self.shared
            .0
            .lock()
            .unwrap()
            .manifests
            .insert(path, (media_type.into(), bytes.to_vec()));
    }

    /// Serves other bytes under a digest.
    pub fn tamper(&self, digest: &str, bytes: Vec<u8>) {
        self.shared
            .0
            .lock()
            .unwrap()
            .blobs
            .insert(digest.to_owned(), bytes);
    }

    pub fn fault(&self, digest: &str, fault: Option<Fault>) {
        let mut state = self.shared.0.lock().unwrap();
        match fault {
            Some(fault) => state.faults.insert(digest.to_owned(), fault),
            None => state.faults.remove(digest),
        };
    }

    pub fn open_gate(&self) {
        self.shared.0.lock().unwrap().gate = true;
        self.shared.1.notify_all();
    }

    /// How often a path with this ending was asked for.
    pub fn asked(&self, ending: &str) -> usize {
        self.shared
            .0
            .lock()
            .unwrap()
            .asked
            .iter()
            .filter(|path| path.ends_with(ending))
            .count()
    }
}

fn serve(connection: &TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut parts = line.split(' ');
        let (method, path) = (
            parts.next().unwrap_or("").to_owned(),
            // Without the `ns` that mirrors are told.
            parts
                .next()
                .unwrap_or("")
                .split('?')
                .next()
                .unwrap_or("")
                .to_owned(),
        );
        let mut header = String::new();
        while reader.read_line(&mut header).unwrap_or(0) > 2 {
            header.clear();
        }
        if answer(connection, shared, &method, &path).is_none() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

/// `None` ends the connection.
fn answer(mut connection: &TcpStream, shared: &Shared, method: &str, path: &str) -> Option<()> {
    let digest = path.rsplit('/').next().unwrap_or("").to_owned();
    let (found, fault) = {
        let mut state = shared.0.lock().unwrap();
        state.asked.push(path.to_owned());
        let manifest = state.manifests.get(path).cloned();
        let blob = || {
            state
                .blobs
                .get(&digest)
                .map(|b| ("application/octet-stream".to_owned(), b.clone()))
        };
        let found = manifest.or_else(|| if path.contains("/blobs/") { blob() } else { None });
        (found, state.faults.get(&digest).copied())
    };
    if path == "/v2/" {
        return connection
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            .ok();
    }
    let Some((media_type, bytes)) = found else {
        return connection
            .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            .ok();
    };
    if fault == Some(Fault::Endless) {
        connection
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .ok()?;
        loop {
            connection.write_all(b"1000\r\n").ok()?;
            connection.write_all(&[0; 0x1000]).ok()?;
            connection.write_all(b"\r\n").ok()?;
        }
    }
    if fault == Some(Fault::Gated) {
        let mut state = shared.0.lock().unwrap();
        while !state.gate {
            state = shared.1.wait_timeout(state, Duration::from_secs(30)).unwrap().0;
        }
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\n\r\n",
        bytes.len()
    );
    connection.write_all(head.as_bytes()).ok()?;
    if method == "HEAD" {
        return Some(());
    }
    if let Some(Fault::Truncated(most)) = fault {
        let _ = connection.write_all(&bytes[..most.min(bytes.len())]);
        return None;
    }
    connection.write_all(&bytes).ok()
}
