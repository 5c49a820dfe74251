//! What can go wrong, in words for the person who reads a pod's events.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::digest::{Digest, DigestMismatch};

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("image reference {input:?} {reason}")]
    Reference { input: String, reason: String },
    #[error("digest {input:?} {reason}")]
    Digest { input: String, reason: String },
    #[error("platform {input:?} {reason}")]
    Platform { input: String, reason: String },
    /// The credential given with the pull cannot be read. Never quotes it.
    #[error("credential for {registry}: {reason}")]
    Credential { registry: String, reason: &'static str },
    /// `hosts.toml` or a file that it names; `line` counts from 1.
    #[error("{}{}: {reason}", path.display(), line.map(|l| format!(":{l}")).unwrap_or_default())]
    Hosts {
        path: PathBuf,
        line: Option<usize>,
        reason: String,
    },
    /// No host gave what was asked for. The last attempt is the registry's own, if it was reached.
    #[error("pull {reference}: {}", Attempts(attempts))]
    Failed {
        reference: String,
        attempts: Vec<Attempt>,
    },
    #[error("pull {reference}: no host in {} may {capability}", path.display())]
    NoHost {
        reference: String,
        path: PathBuf,
        capability: &'static str,
    },
    #[error("pull {reference}: index {digest} has no image for {wanted}; it has {offered}")]
    NoPlatform {
        reference: String,
        digest: Digest,
        wanted: String,
        offered: String,
    },
    #[error("pull {reference}: {reason}")]
    Manifest {
        reference: String,
        digest: Digest,
        reason: String,
    },
    #[error("pull {reference}: {digest} has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        reference: String,
        digest: Digest,
        size: u64,
        limit: u64,
    },
}

/// What kind of failure it is, for callers that answer with a status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request itself is wrong: reference, credential, platform name.
    Invalid,
    /// No such repository, tag, digest or platform.
    NotFound,
    /// The registry wants another credential, or none would do.
    Denied,
    /// Nobody could be reached, or answered with 5xx or 429; trying again may help.
    Unavailable,
    /// What came is not what was named: digest, size, manifest.
    Corrupt,
    /// This machine's configuration is wrong.
    Config,
}

impl Error {
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Reference { .. }
            | Self::Digest { .. }
            | Self::Platform { .. }
            | Self::Credential { .. } => Kind::Invalid,
            Self::Hosts { .. } | Self::NoHost { .. } => Kind::Config,
            Self::NoPlatform { .. } => Kind::NotFound,
            Self::Manifest { .. } | Self::TooLarge { .. } => Kind::Corrupt,
            Self::Failed { attempts, .. } => attempts.last().map_or(Kind::Unavailable, |a| a.fault.kind()),
        }
    }
}

/// One host that was asked.
#[derive(Debug)]
pub struct Attempt {
    /// Scheme, host and port; no path, no query.
    pub host: String,
    pub fault: Fault,
}

/// How one host failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("cannot resolve {name}")]
    Dns {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot connect to {address}")]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("no connection to {address} within {}", Seconds(*after))]
    ConnectTimeout { address: String, after: Duration },
    #[error("TLS with {name} failed{hint}")]
    Tls {
        name: String,
        hint: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "{name} is {address}, which is in this machine or where clouds keep their metadata services; a registry elsewhere may not name it"
    )]
    IntoMachine { name: String, address: IpAddr },
    #[error("proxy {proxy}: {reason}")]
    Proxy { proxy: String, reason: String },
    /// Reset, closed early, or not HTTP.
    #[error("connection to {host} failed{during}")]
    Http {
        host: String,
        during: &'static str,
        #[source]
        source: hyper::Error,
    },
    #[error("{status} {} from {host}{body}", reason(*status))]
    Status {
        status: u16,
        host: String,
        body: Quote,
        retry_after: Option<Duration>,
    },
    #[error("nothing from {host} for {}", Seconds(*after))]
    Stalled { host: String, after: Duration },
    #[error("{what} took more than {}", Seconds(*after))]
    Deadline { what: &'static str, after: Duration },
    #[error("redirect from {from}: {reason}")]
    Redirect { from: String, reason: String },
    /// The token service or the challenge that names it.
    #[error("authentication: {reason}")]
    Token {
        reason: String,
        #[source]
        source: Option<Box<Fault>>,
    },
    #[error("{what} ended after {got} of {expected} bytes")]
    Truncated { what: String, got: u64, expected: u64 },
    /// As `Truncated`, where the connection says so.
    #[error("{what} broke off after {got} of {expected} bytes")]
    Broken {
        what: String,
        got: u64,
        expected: u64,
        #[source]
        source: Box<Fault>,
    },
    #[error("{what} is longer than its {expected} bytes")]
    TooLong { what: String, expected: u64 },
    #[error("{what} is announced with {announced} bytes, {expected} were expected")]
    Size {
        what: String,
        announced: u64,
        expected: u64,
    },
    #[error("{what} of {announced} bytes is over the limit of {limit}")]
    Limit {
        what: &'static str,
        announced: String,
        limit: u64,
    },
    #[error("{what}: {mismatch}")]
    Mismatch { what: String, mismatch: DigestMismatch },
    /// Bytes that were not read to the end of their blob, so that nobody knows whether they are the right ones.
    #[error("{what}: {reason}")]
    Unusable { what: String, reason: String },
    #[error("{host} answered a range request with {reason}")]
    Range { host: String, reason: String },
    #[error("{reason}")]
    Protocol { reason: String },
}

impl Fault {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Status {
                status: 401 | 403 | 407,
                ..
            }
            | Self::Token { source: None, .. } => Kind::Denied,
            Self::Broken { source: inner, .. }
            | Self::Token {
                source: Some(inner), ..
            } => inner.kind(),
            Self::Status {
                status: 404 | 410, ..
            } => Kind::NotFound,
            Self::Truncated { .. }
            | Self::TooLong { .. }
            | Self::Size { .. }
            | Self::Limit { .. }
            | Self::Mismatch { .. }
            | Self::Unusable { .. }
            | Self::Range { .. }
            | Self::Protocol { .. } => Kind::Corrupt,
            _ => Kind::Unavailable,
        }
    }

    /// How long the registry asks to be left alone, bounded.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Broken { source: inner, .. }
            | Self::Token {
                source: Some(inner), ..
            } => inner.retry_after(),
            _ => None,
        }
    }

    /// Whether the same request to the same host may do better in a moment. A refused connection or an unknown name is
    /// not repeated: the caller repeats pulls with a back-off of its own, and the user should see the cause at once.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Http { source, .. } => !source.is_parse() && !is_tls_alert(source),
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Stalled { .. } | Self::Truncated { .. } => true,
            Self::Connect { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::Interrupted
                )
            }
            Self::Tls { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe
                )
            }
            Self::Broken { source: inner, .. }
            | Self::Token {
                source: Some(inner), ..
            } => inner.is_transient(),
            _ => false,
        }
    }
}

/// A refusal by TLS that comes after the handshake, such as a missing client certificate; it will not change its mind.
fn is_tls_alert(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|s| s.downcast_ref::<io::Error>());
    source.is_some_and(|io| io.kind() == io::ErrorKind::InvalidData)
}

/// A registry's own words, bounded and free of control characters; displays as nothing or `: "words"`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quote(pub(crate) String);

impl fmt::Display for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.0)
        }
    }
}

struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.subsec_millis() == 0 {
            write!(f, "{} s", self.0.as_secs())
        } else {
            write!(f, "{:.1} s", self.0.as_secs_f64())
        }
    }
}

/// The last attempt first, as it is the registry's; then the mirrors. Sources are part of it, for one line in an event.
struct Attempts<'a>(&'a [Attempt]);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((last, mirrors)) = self.0.split_last() else {
            return f.write_str("no host was tried");
        };
        write_chain(f, last)?;
        for (n, mirror) in mirrors.iter().enumerate() {
            f.write_str(if n == 0 { " (tried before: " } else { "; " })?;
            write_chain(f, mirror)?;
        }
        f.write_str(if mirrors.is_empty() { "" } else { ")" })
    }
}

fn write_chain(f: &mut fmt::Formatter<'_>, attempt: &Attempt) -> fmt::Result {
    let text = attempt.fault.to_string();
    let bare = attempt
        .host
        .split_once("://")
        .map_or(attempt.host.as_str(), |(_, rest)| rest);
    if !text.contains(bare) {
        write!(f, "{}: ", attempt.host)?;
    }
    f.write_str(&text)?;
    let mut source = std::error::Error::source(&attempt.fault);
    while let Some(inner) = source {
        write!(f, ": {}", crate::text::clip(&inner.to_string(), 300))?;
        source = inner.source();
    }
    Ok(())
}

fn reason(status: u16) -> String {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("status")
        .to_lowercase()
}
