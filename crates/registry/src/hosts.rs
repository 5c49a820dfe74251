//! Which hosts serve a registry's content: `certs.d/<host>/hosts.toml` in containerd's format, and the defaults.
//!
//! The directory of a host is `host_port_`, `host:port` or `_default`, whichever exists first. Without `hosts.toml` its
//! `*.crt` files are authorities and its `*.cert` and `*.key` pairs client certificates, as Docker has it. Every pull
//! stats the files it depends on, and reads them again if one changed.

mod parse;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue};

use crate::error::Error;
use crate::tls::{Tls, TlsFiles};
use crate::transport::{is_loopback, is_written_into_machine};

const FILE: &str = "hosts.toml";
const DEFAULT_DIR: &str = "_default";
const MAX_FILE: u64 = 1 << 20;
/// Registries whose settings are remembered.
const MAX_CACHED: usize = 256;

/// Scheme, host and port of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub https: bool,
    /// Lower case, with its port if that is not the scheme's own.
    pub authority: String,
}

impl Origin {
    pub fn new(https: bool, authority: &str) -> Self {
        let authority = authority.to_ascii_lowercase();
        let usual = if https { ":443" } else { ":80" };
        let authority = authority
            .strip_suffix(usual)
            .map(str::to_owned)
            .unwrap_or(authority);
        Self { https, authority }
    }

    pub fn of(uri: &http::Uri) -> Option<Self> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        (!authority.as_str().contains('@') && !authority.host().is_empty())
            .then(|| Self::new(https, authority.as_str()))
    }

    /// Host without port or brackets.
    pub fn host(&self) -> &str {
        match self.authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(""),
            None => self.authority.split(':').next().unwrap_or(""),
        }
    }

    pub fn is_loopback(&self) -> bool {
        is_loopback(self.host())
    }

    /// Whether a registry elsewhere has no business to name it: loopback, or where clouds keep their metadata services. What a
    /// name leads to is seen only when it is connected to.
    pub fn is_into_machine(&self) -> bool {
        is_written_into_machine(self.host())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}",
            if self.https { "https" } else { "http" },
            self.authority
        )
    }
}

/// One host that may be asked.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub origin: Origin,
    /// What stands before `/<repository>/manifests/...`: `/v2`, unless the path is overridden.
    pub path: String,
    pub pull: bool,
    pub resolve: bool,
    /// Extra headers, for this host only.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub tls: Tls,
    pub connect: Duration,
    /// The registry's own address (or its `server`), not a mirror.
    pub is_registry: bool,
    /// The file or directory that says all this.
    pub source: PathBuf,
}

/// An endpoint as the file has it, before any other file is read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub origin: Origin,
    pub path: String,
    pub pull: bool,
    pub resolve: bool,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub tls: TlsFiles,
    pub dial_timeout: Option<Duration>,
    pub is_registry: bool,
}

/// The settings of all registries, read when they are needed.
pub(crate) struct HostFiles {
    dirs: Vec<PathBuf>,
    connect: Duration,
    cache: Mutex<HashMap<String, Cached>>,
}

#[derive(Clone)]
struct Cached {
    stamps: Vec<(PathBuf, Stamp)>,
    endpoints: Arc<[Endpoint]>,
}

/// What changes when a file does; `None` if there is none.
type Stamp = Option<(SystemTime, u64, u64)>;

impl HostFiles {
    pub fn new(dirs: Vec<PathBuf>, connect: Duration) -> Self {
        Self {
            dirs,
            connect,
            cache: Mutex::default(),
        }
    }

    /// The hosts to try for a registry, in order, the registry itself last.
    pub async fn endpoints(&self, registry: &str) -> Result<Arc<[Endpoint]>, Error> {
        let known = self
            .cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(registry)
            .cloned();
        let (dirs, connect, name) = (self.dirs.clone(), self.connect, registry.to_owned());
        let load = tokio::task::spawn_blocking(move || match known {
            Some(cached)
                if cached
                    .stamps
                    .iter()
                    .all(|(path, stamp)| self::stamp(path) == *stamp) =>
            {
                Ok(cached)
            }
            _ => load(&dirs, &name, connect),
        });
        let cached = load.await.map_err(|e| Error::Hosts {
            path: PathBuf::new(),
            line: None,
            reason: e.to_string(),
        })??;
        let endpoints = cached.endpoints.clone();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= MAX_CACHED && !cache.contains_key(registry) {
            cache.clear();
        }
        cache.insert(registry.to_owned(), cached);
        Ok(endpoints)
    }
}

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino()))
}

/// Reads everything about a registry. The stamps are taken first, so that a change in between is seen by the next pull.
fn load(dirs: &[PathBuf], registry: &str, connect: Duration) -> Result<Cached, Error> {
    let mut stamps = Vec::new();
    let mut note = |path: &Path| {
        let stamp = stamp(path);
        stamps.push((path.to_owned(), stamp));
        stamp.is_some()
    };
    let candidates = dirs
        .iter()
        .flat_map(|dir| names(registry).into_iter().map(move |name| dir.join(name)));
    let dir = candidates.into_iter().find(|path| note(path));
    let (entries, source) = match &dir {
        None => (
            vec![Entry::default_for(registry, TlsFiles::default())],
            PathBuf::new(),
        ),
        Some(dir) => {
            let file = dir.join(FILE);
            if note(&file) {
                (parse::parse(&file, &read(&file)?, registry)?, file)
            } else {
                (
                    vec![Entry::default_for(registry, docker_files(dir)?)],
                    dir.clone(),
                )
            }
        }
    };
    for entry in &entries {
        entry.tls.ca.iter().for_each(|path| {
            note(path);
        });
        for (cert, key) in &entry.tls.client {
            note(cert);
            key.iter().for_each(|path| {
                note(path);
            });
        }
    }
    let endpoints = entries
        .into_iter()
        .map(|entry| entry.endpoint(connect, &source))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Cached {
        stamps,
        endpoints: endpoints.into(),
    })
}

/// Directory names for a registry, best first. `host_port_` is for file systems that dislike colons.
fn names(registry: &str) -> Vec<String> {
    let mut out = Vec::new();
    let split = match registry.rfind(']') {
        Some(bracket) => registry[bracket..].find(':').map(|at| bracket + at),
        None => registry.find(':'),
    };
    if let Some(at) = split {
        out.push(format!("{}_{}_", &registry[..at], &registry[at + 1..]));
    }
    out.push(registry.to_owned());
    out.push(DEFAULT_DIR.to_owned());
    out
}

fn read(path: &Path) -> Result<String, Error> {
    let bad = |reason: String| Error::Hosts {
        path: path.to_owned(),
        line: None,
        reason,
    };
    let meta = std::fs::metadata(path).map_err(|e| bad(format!("cannot be read: {e}")))?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(bad(format!("is not a regular file of at most {MAX_FILE} bytes")));
    }
    std::fs::read_to_string(path).map_err(|e| bad(format!("cannot be read: {e}")))
}

/// Docker's layout of the same directory: `ca.crt`, `client.cert` with `client.key`.
fn docker_files(dir: &Path) -> Result<TlsFiles, Error> {
    let bad = |reason: String| Error::Hosts {
        path: dir.to_owned(),
        line: None,
        reason,
    };
    let mut files = TlsFiles::default();
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| bad(format!("cannot be read: {e}")))? {
        paths.push(entry.map_err(|e| bad(format!("cannot be read: {e}")))?.path());
    }
    paths.sort();
    for path in paths {
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => files.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                if !key.exists() {
                    return Err(bad(format!(
                        "has {} without its key {}",
                        path.display(),
                        key.display()
                    )));
                }
                files.client.push((path, Some(key)));
            }
            _ => {}
        }
    }
    Ok(files)
}

impl Entry {
    /// The registry's own address. Docker Hub's API has another name; loopback is http unless it has certificates.
    pub fn default_for(registry: &str, tls: TlsFiles) -> Self {
        let authority = if registry == "docker.io" {
            "registry-1.docker.io"
        } else {
            registry
        };
        let bare = Origin::new(true, authority);
        let https = !bare.is_loopback() || tls != TlsFiles::default() || authority.ends_with(":443");
        Self {
            origin: Origin::new(https, authority),
            path: "/v2".into(),
            pull: true,
            resolve: true,
            headers: Vec::new(),
            tls,
            dial_timeout: None,
            is_registry: true,
        }
    }

    fn endpoint(self, connect: Duration, source: &Path) -> Result<Endpoint, Error> {
        let tls = Tls::load(&self.tls).map_err(|bad| Error::Hosts {
            path: source.to_owned(),
            line: None,
            reason: format!("{} {}", bad.path.display(), bad.reason),
        })?;
        Ok(Endpoint {
            origin: self.origin,
            path: self.path,
            pull: self.pull,
            resolve: self.resolve,
            headers: self.headers,
            tls,
            connect: self.dial_timeout.unwrap_or(connect),
            is_registry: self.is_registry,
            source: source.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests;
