//! A registry with a token service, which can be told to hold a layer back: for the forms of credentials that
//! `docker-registry` has no service for, and for what happens while a pull is under way.
//!
//! One thread per connection, one request per connection, read only.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;

use crate::builder::{Packing, host_architecture, pack, sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// A layer is held back this long at most.
const PATIENCE: Duration = Duration::from_secs(40);

/// `user:password`, and what it is in base64.
pub const USER: &str = "pod";
pub const PASSWORD: &str = "secret word";
pub const BASIC: &str = "cG9kOnNlY3JldCB3b3Jk";
/// A refresh token, and the bearer token that the service gives for it or for the password.
pub const IDENTITY: &str = "identity-of-the-pod";
pub const BEARER: &str = "bearer-of-the-pod";
/// What those who show nothing get: good for repositories below `public/`.
const ANONYMOUS: &str = "bearer-of-nobody";

#[derive(Default)]
struct State {
    documents: Mutex<HashMap<String, (&'static str, Vec<u8>)>>,
    hold: AtomicBool,
    /// Layers that are being held back now, and those whose client went away meanwhile.
    held: AtomicUsize,
    abandoned: AtomicUsize,
    manifests: AtomicUsize,
}

pub struct Guarded {
    state: Arc<State>,
    pub host: String,
}

impl Guarded {
    /// Its threads end with the process.
    pub fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("bind the registry with tokens")?;
        let host = listener.local_addr()?.to_string();
        let state = Arc::new(State::default());
        let (served, name) = (Arc::clone(&state), host.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (served, name) = (Arc::clone(&served), name.clone());
                // The client may go away at any byte.
                std::thread::spawn(move || answer(stream, &served, &name).ok());
            }
        });
        Ok(Self { state, host })
    }

    /// An image of one layer; its reference.
    pub fn image(&self, name: &str, tar: &[u8]) -> anyhow::Result<String> {
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
        let mut documents = self
            .state
            .documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (path, kind, bytes) in [
            (format!("/v2/{name}/blobs/{}", sha256(&config)), CONFIG, config),
            (format!("/v2/{name}/blobs/{}", sha256(&layer)), LAYER, layer),
            (
                format!("/v2/{name}/manifests/{}", sha256(&manifest)),
                MANIFEST,
                manifest.clone(),
            ),
            (format!("/v2/{name}/manifests/1"), MANIFEST, manifest),
        ] {
            documents.insert(path, (kind, bytes));
        }
        Ok(format!("{}/{name}:1", self.host))
    }

    /// Layers wait from now on, or no longer.
    pub fn hold(&self, hold: bool) {
        self.state.hold.store(hold, Ordering::SeqCst);
    }

    pub fn held(&self) -> usize {
        self.state.held.load(Ordering::SeqCst)
    }

    pub fn abandoned(&self) -> usize {
        self.state.abandoned.load(Ordering::SeqCst)
    }

    /// Manifests that were asked for by tag so far, by HEAD or GET, and given.
    pub fn manifests(&self) -> usize {
        self.state.manifests.load(Ordering::SeqCst)
    }
}

struct Request {
    method: String,
    path: String,
    authorization: String,
    body: String,
}

fn read(reader: &mut BufReader<TcpStream>) -> std::io::Result<Request> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut authorization, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.trim_end().split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "authorization" => authorization = value.to_owned(),
                "content-length" => length = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    let mut body = vec![0; length.min(64 << 10)];
    reader.read_exact(&mut body)?;
    Ok(Request {
        method,
        path,
        authorization,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

fn answer(stream: TcpStream, state: &State, host: &str) -> std::io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let request = read(&mut reader)?;
    let mut out = stream;
    if request.path.starts_with("/token") {
        return token(&mut out, &request);
    }
    let path = request.path.split('?').next().unwrap_or_default();
    let allowed = request.authorization == format!("Bearer {BEARER}")
        || (request.authorization == format!("Bearer {ANONYMOUS}") && path.starts_with("/v2/public/"));
    if !allowed {
        let name = path
            .strip_prefix("/v2/")
            .and_then(|rest| {
                rest.split_once("/manifests/")
                    .or_else(|| rest.split_once("/blobs/"))
            })
            .map_or("", |(name, _)| name);
        return write!(
            out,
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"guarded\",\
             scope=\"repository:{name}:pull\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let found = state
        .documents
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(path)
        .cloned();
    let Some((kind, bytes)) = found else {
        let status = if path == "/v2/" { "200 OK" } else { "404 Not Found" };
        return write!(
            out,
            "HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        );
    };
    if path.ends_with("/manifests/1") {
        state.manifests.fetch_add(1, Ordering::SeqCst);
    }
    if kind == LAYER && request.method == "GET" && !wait(&out, state)? {
        return Ok(());
    }
    write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        sha256(&bytes),
        bytes.len()
    )?;
    match request.method.as_str() {
        "GET" => out.write_all(&bytes),
        _ => Ok(()),
    }
}

/// Holds a layer back for as long as that is wanted. `false`: its client has gone.
fn wait(stream: &TcpStream, state: &State) -> std::io::Result<bool> {
    state.held.fetch_add(1, Ordering::SeqCst);
    let begin = Instant::now();
    stream.set_read_timeout(Some(Duration::from_millis(20)))?;
    let mut here = true;
    while here && state.hold.load(Ordering::SeqCst) && begin.elapsed() < PATIENCE {
        here = match stream.peek(&mut [0]) {
            Ok(0) => false,
            Ok(_) => true,
            Err(e) => matches!(
                e.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            ),
        };
    }
    if !here {
        state.abandoned.fetch_add(1, Ordering::SeqCst);
    }
    state.held.fetch_sub(1, Ordering::SeqCst);
    Ok(here)
}

/// The token service: by GET with a password or nothing, by POST with a refresh token or a password.
fn token(out: &mut TcpStream, request: &Request) -> std::io::Result<()> {
    let form: HashMap<String, String> = request
        .body
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace('+', " ").replace("%20", " ")))
        .collect();
    let is = |name: &str, wanted: &str| form.get(name).is_some_and(|value| value == wanted);
    let given = match request.method.as_str() {
        "POST" if is("grant_type", "refresh_token") && is("refresh_token", IDENTITY) => Some(BEARER),
        "POST" if is("username", USER) && is("password", PASSWORD) => Some(BEARER),
        "GET" if request.authorization == format!("Basic {BASIC}") => Some(BEARER),
        "GET" if request.authorization.is_empty() => Some(ANONYMOUS),
        _ => None,
    };
    let Some(given) = given else {
        return write!(
            out,
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    };
    let body = json!({"token": given, "access_token": given, "expires_in": 300}).to_string();
    write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
