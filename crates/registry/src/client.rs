//! The client and one pull: which hosts may serve it, with which credential, in which order.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::auth::Auth;
use crate::blob::{self, Blob, Wrong};
use crate::digest::Digest;
use crate::error::{Attempt, Error, Fault};
use crate::hosts::{Endpoint, HostFiles};
use crate::manifest::Descriptor;
use crate::proxy::Proxy;
use crate::reference::Reference;
use crate::request::Session;
use crate::token::TokenCache;
use crate::transport::Pool;

/// How to build a [`Client`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Directories of per-host directories, searched in order; the first that has one for the host decides.
    pub certs_d: Vec<PathBuf>,
    pub limits: Limits,
    pub proxy: Proxy,
    /// `User-Agent`.
    pub user_agent: String,
}

impl Default for Config {
    /// `/etc/holdfast/certs.d`, no proxy, default limits.
    fn default() -> Self {
        Self {
            certs_d: vec!["/etc/holdfast/certs.d".into()],
            limits: Limits::default(),
            proxy: Proxy::default(),
            user_agent: concat!("holdfast/", env!("CARGO_PKG_VERSION")).into(),
        }
    }
}

/// The bounds of everything that a registry can make this client do.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A connection with its TLS handshake; `dial_timeout` of `hosts.toml` overrides it.
    pub connect: Duration,
    /// From a sent request to the head of the response.
    pub response: Duration,
    /// Between two reads of a body.
    pub stall: Duration,
    /// A whole manifest, token or error body.
    pub document: Duration,
    /// Bytes a second below which a blob is given up, once it had the time of all attempts; only waiting for the network
    /// counts, and what has come, not what was promised.
    pub min_rate: u64,
    /// Waiting for one blob from one host, however large it is.
    pub blob: Duration,
    /// Bytes of a manifest or an index.
    pub manifest_size: u64,
    /// Requests to the registry itself for one thing; a mirror that has others behind it gets two.
    pub attempts: u32,
    /// Redirects followed for one request.
    pub redirects: u32,
    /// Responses of one pull being read at the same time.
    pub streams: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            response: Duration::from_secs(60),
            stall: Duration::from_secs(30),
            document: Duration::from_secs(60),
            min_rate: 4 << 10,
            blob: Duration::from_secs(12 * 3600),
            manifest_size: 4 << 20,
            attempts: 4,
            redirects: 5,
            streams: 32,
        }
    }
}

/// A client for all registries. Cheap to clone; holds no connection between pulls.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    hosts: HostFiles,
    tokens: Arc<TokenCache>,
}

impl Client {
    /// Reads nothing yet: configuration and system certificates are read by the pulls that need them.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let hosts = HostFiles::new(config.certs_d.clone(), config.limits.connect);
        Self {
            shared: Arc::new(Shared {
                config,
                hosts,
                tokens: Arc::default(),
            }),
        }
    }

    /// Begins a pull: reads the host's configuration if it changed, and checks the credential. Nothing is sent yet.
    pub async fn pull(&self, reference: &Reference, auth: Option<&Auth>) -> Result<Pull, Error> {
        let shared = &self.shared;
        let credential = Auth::credential(auth, reference)?;
        let endpoints = shared.hosts.endpoints(reference.registry()).await?;
        let session = Session {
            limits: shared.config.limits.clone(),
            user_agent: shared.config.user_agent.clone(),
            repository: reference.repository().to_owned(),
            registry: reference.registry().to_owned(),
            credential,
            tokens: shared.tokens.clone(),
            pool: Pool::new(shared.config.proxy.clone(), shared.config.limits.streams),
        };
        let avoided = endpoints.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(Pull {
            inner: Arc::new(Inner {
                reference: reference.clone(),
                endpoints,
                avoided,
                wrong: Mutex::default(),
                session,
            }),
        })
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

/// One pull of one reference with one credential. Cheap to clone, for layers fetched in parallel; its connections are
/// its own and close with the last clone.
#[derive(Clone)]
pub struct Pull {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub reference: Reference,
    /// Mirrors in the order of `hosts.toml`, then the registry itself.
    pub endpoints: Arc<[Endpoint]>,
    /// Hosts that gave a wrong blob.
    avoided: Box<[AtomicBool]>,
    /// The first wrong blob of each that was left for another.
    wrong: Mutex<Vec<(usize, Digest, Wrong)>>,
    pub session: Session,
}

impl Pull {
    #[must_use]
    pub fn reference(&self) -> &Reference {
        &self.inner.reference
    }

    /// Streams a blob. A host that fails is left for the next one, in the middle of the blob too.
    pub async fn blob(&self, descriptor: &Descriptor) -> Result<Blob, Error> {
        Blob::open(self.clone(), descriptor).await
    }

    /// A whole small blob, such as an image's configuration, verified; refused beforehand if it is over `limit` bytes. A host
    /// that gives other bytes is left for the next one.
    pub async fn bytes(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, Error> {
        if descriptor.size > limit {
            return Err(Error::TooLarge {
                reference: self.inner.reference.to_string(),
                digest: descriptor.digest.clone(),
                size: descriptor.size,
                limit,
            });
        }
        // Ends: each turn but the last finds one host more that is to be avoided.
        loop {
            let mut blob = self.blob(descriptor).await?;
            let mut verifier = descriptor.digest.verifier();
            let mut out = BytesMut::new();
            while let Some(chunk) = blob.chunk().await? {
                verifier.update(&chunk);
                out.extend_from_slice(&chunk);
            }
            match verifier.finish() {
                Ok(()) => return Ok(out.freeze()),
                Err(mismatch) => blob.reject(mismatch)?,
            }
        }
    }

    /// How long a blob's reader may have waited for one host when `got` bytes have come. A blob's stated size would be the
    /// registry's own word for how long it may keep everybody waiting.
    pub(crate) fn patience(&self, got: u64) -> Duration {
        let limits = &self.inner.session.limits;
        let attempts = limits.stall.saturating_mul(limits.attempts.max(1));
        let earned = Duration::from_secs(got / limits.min_rate.max(1));
        limits
            .document
            .max(attempts)
            .saturating_add(earned)
            .min(limits.blob)
    }

    /// Endpoints with a capability, with the attempts that each may have.
    pub(crate) fn candidates(&self, capability: Capability) -> Result<Vec<(usize, u32)>, Error> {
        let able = |e: &Endpoint| match capability {
            Capability::Pull => e.pull,
            Capability::Resolve => e.resolve,
        };
        let mut list: Vec<usize> = self
            .inner
            .endpoints
            .iter()
            .enumerate()
            .filter(|(_, e)| able(e))
            .map(|(n, _)| n)
            .collect();
        let good = |n: &usize| !self.inner.avoided[*n].load(Ordering::Relaxed);
        if list.iter().any(good) {
            list.retain(good);
        }
        let attempts = self.inner.session.limits.attempts.max(1);
        let last = list.len().checked_sub(1).ok_or_else(|| Error::NoHost {
            reference: self.inner.reference.to_string(),
            path: self
                .inner
                .endpoints
                .first()
                .map(|e| e.source.clone())
                .unwrap_or_default(),
            capability: match capability {
                Capability::Pull => "pull",
                Capability::Resolve => "resolve",
            },
        })?;
        Ok(list
            .iter()
            .enumerate()
            .map(|(n, e)| (*e, if n == last { attempts } else { attempts.min(2) }))
            .collect())
    }

    /// Whether a host that may be asked for content has given no wrong blob yet.
    pub(crate) fn has_another(&self) -> bool {
        let all = self.inner.endpoints.iter().zip(&self.inner.avoided);
        all.into_iter()
            .any(|(endpoint, avoided)| endpoint.pull && !avoided.load(Ordering::Relaxed))
    }

    pub(crate) fn avoid(&self, endpoint: usize) {
        self.inner.avoided[endpoint].store(true, Ordering::Relaxed);
    }

    /// For the error, should the hosts fail that are asked now.
    pub(crate) fn remember(&self, endpoint: usize, digest: &Digest, wrong: &Wrong) {
        let mut all = self.inner.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().all(|(known, ..)| *known != endpoint) {
            all.push((endpoint, digest.clone(), wrong.clone()));
        }
    }

    pub(crate) fn failed(&self, attempts: Vec<(usize, Fault)>) -> Error {
        let wrong = self.inner.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        let before: Vec<(usize, Fault)> = wrong
            .iter()
            .filter(|(endpoint, ..)| attempts.iter().all(|(asked, _)| asked != endpoint))
            .map(|(endpoint, digest, wrong)| (*endpoint, wrong.clone().fault(blob::name(digest))))
            .collect();
        drop(wrong);
        let attempts = before
            .into_iter()
            .chain(attempts)
            .map(|(n, fault)| Attempt {
                host: self.inner.endpoints[n].origin.to_string(),
                fault,
            })
            .collect();
        Error::Failed {
            reference: self.inner.reference.to_string(),
            attempts,
        }
    }
}

impl std::fmt::Debug for Pull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pull")
            .field("reference", &self.inner.reference)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Capability {
    /// Content named by its digest.
    Pull,
    /// The digest that a tag names.
    Resolve,
}
