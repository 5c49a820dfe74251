//! The HTTP server: listens, checks tokens, upgrades.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::activity::{Activity, PARTINGS};
use crate::backend::{AttachRequest, Backend, ExecRequest};
use crate::negotiate::{Agreed, Purpose, Refused, negotiate};
use crate::remote;
use crate::session::{self, Claim, MAX_PORTS};
use crate::tls::{Tls, TlsError, TlsFiles};
use crate::tokens::{TokenError, Tokens};

/// Connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;
/// How long a client may take over its TLS handshake, and over the head of its request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Largest head of a request.
const MAX_HEAD: usize = 16 << 10;
/// After an error of accept: most likely there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where and how to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub address: IpAddr,
    /// 0 for any that is free.
    pub port: u16,
    pub tls: Option<TlsFiles>,
    /// A connection on which nothing is read or written for this long is closed.
    pub idle_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            tls: None,
            idle_timeout: Duration::from_secs(4 * 3600),
        }
    }
}

/// Why the server cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address} for streams")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the streaming server's TLS")]
    Tls(#[from] TlsError),
}

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("{field}: {reason}")]
    Invalid {
        field: &'static str,
        reason: &'static str,
    },
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// The running server. It stops, and hangs up on everybody, when this is dropped.
#[derive(Debug)]
pub struct Server {
    tokens: Arc<Tokens<Claim>>,
    /// `http://127.0.0.1:1234`
    base: String,
    _stop: DropGuard,
}

/// A socket that listens, before there is anybody to serve.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    base: String,
    idle_timeout: Duration,
}

impl Bound {
    /// Reads the certificate and takes the address: all that can go wrong.
    pub async fn new(config: Config) -> Result<Self, StartError> {
        let tls = config.tls.map(Tls::load).transpose()?.map(Arc::new);
        let address = SocketAddr::new(config.address, config.port);
        let listen = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let bound = listener.local_addr().map_err(listen)?;
        if tls.is_none() && !bound.ip().is_loopback() {
            tracing::warn!(address = %bound, "streams are served without TLS and not on loopback only");
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok(Self {
            listener,
            tls,
            base: format!("{scheme}://{}", reachable(bound)),
            idle_timeout: config.idle_timeout,
        })
    }

    /// What the URLs begin with.
    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn serve(self, backend: Arc<dyn Backend>) -> Server {
        let stop = CancellationToken::new();
        let tokens = Arc::new(Tokens::new());
        let shared = Arc::new(Shared {
            tokens: tokens.clone(),
            backend,
            idle_timeout: self.idle_timeout,
            partings: Arc::new(Semaphore::new(PARTINGS)),
            stop: stop.clone(),
        });
        tokio::spawn(accept(self.listener, shared, self.tls));
        Server {
            tokens,
            base: self.base,
            _stop: stop.drop_guard(),
        }
    }
}

impl Server {
    /// The URL under which a command can be run, once and within a minute.
    pub fn exec(&self, request: ExecRequest) -> Result<String, RequestError> {
        if request.command.first().is_none_or(String::is_empty) {
            return Err(RequestError::Invalid {
                field: "cmd",
                reason: "is missing",
            });
        }
        if request.command.iter().any(|word| word.contains('\0')) {
            return Err(RequestError::Invalid {
                field: "cmd",
                reason: "contains a NUL byte",
            });
        }
        self.remote("exec", remote::Request::Exec(request))
    }

    pub fn attach(&self, request: AttachRequest) -> Result<String, RequestError> {
        self.remote("attach", remote::Request::Attach(request))
    }

    fn remote(&self, kind: &str, request: remote::Request) -> Result<String, RequestError> {
        let wanted = request.wanted();
        if !(wanted.stdin || wanted.stdout || wanted.stderr) {
            return Err(RequestError::Invalid {
                field: "stdin, stdout, stderr",
                reason: "at least one of them must be set",
            });
        }
        if wanted.tty && wanted.stderr {
            let reason = "cannot be set together with tty, since a terminal has one output";
            return Err(RequestError::Invalid {
                field: "stderr",
                reason,
            });
        }
        Ok(format!(
            "{}/{kind}/{}",
            self.base,
            self.tokens.issue(Claim::Remote(request))?
        ))
    }

    /// `ports` are for old WebSocket clients only; others name them with each stream.
    pub fn port_forward(&self, sandbox: String, ports: Vec<u16>) -> Result<String, RequestError> {
        if ports.len() > MAX_PORTS {
            return Err(RequestError::Invalid {
                field: "port",
                reason: "more than 100 ports",
            });
        }
        let token = self.tokens.issue(Claim::Forward { sandbox, ports })?;
        Ok(format!("{}/portforward/{token}", self.base))
    }
}

/// Kubelet and crictl are on this machine: any address of it leads here.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(ip, bound.port())
}

struct Shared {
    tokens: Arc<Tokens<Claim>>,
    backend: Arc<dyn Backend>,
    idle_timeout: Duration,
    partings: Arc<Semaphore>,
    stop: CancellationToken,
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tls: Option<Arc<Tls>>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = next(&listener, &connections) => accepted,
        };
        let (socket, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a streaming connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let _ = socket.set_nodelay(true);
        let (shared, tls) = (shared.clone(), tls.clone());
        tokio::spawn(async move {
            let stop = shared.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = connection(socket, tls, shared, Arc::new(permit)) => {}
            }
        });
    }
}

async fn next(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = connections
        .clone()
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (socket, _) = listener.accept().await?;
    Ok((socket, permit))
}

async fn connection(
    socket: TcpStream,
    tls: Option<Arc<Tls>>,
    shared: Arc<Shared>,
    permit: Arc<OwnedSemaphorePermit>,
) {
    let Some(tls) = tls else {
        return http(socket, shared, permit).await;
    };
    // The files may have to be read.
    let Ok(config) = tokio::task::spawn_blocking(move || tls.config()).await else {
        return;
    };
    let handshake = tokio_rustls::TlsAcceptor::from(config).accept(socket);
    match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => http(stream, shared, permit).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn http(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    shared: Arc<Shared>,
    permit: Arc<OwnedSemaphorePermit>,
) {
    let service = service_fn(move |request| {
        let answer = answer(request, &shared, &permit);
        async move { Ok::<_, Infallible>(answer) }
    });
    let outcome = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades()
        .await;
    if let Err(error) = outcome {
        tracing::debug!(%error, "a streaming connection failed");
    }
}

fn answer(
    request: Request<Incoming>,
    shared: &Arc<Shared>,
    permit: &Arc<OwnedSemaphorePermit>,
) -> Response<Full<Bytes>> {
    match upgrade(request, shared, permit) {
        Ok(headers) => response(StatusCode::SWITCHING_PROTOCOLS, headers, String::new()),
        Err(refused) => {
            tracing::debug!(status = refused.status.as_u16(), "{}", refused.text);
            let mut headers = HeaderMap::new();
            for (name, value) in refused.headers {
                headers.append(name, value);
            }
            headers.insert(
                header::CONTENT_TYPE,
                header::HeaderValue::from_static("text/plain; charset=utf-8"),
            );
            response(refused.status, headers, refused.text + "\n")
        }
    }
}

fn response(status: StatusCode, headers: HeaderMap, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn upgrade(
    mut request: Request<Incoming>,
    shared: &Arc<Shared>,
    permit: &Arc<OwnedSemaphorePermit>,
) -> Result<HeaderMap, Refused> {
    if request.method() != Method::GET && request.method() != Method::POST {
        return Err(Refused::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "GET or POST is wanted",
        ));
    }
    let (claim, purpose) = claim(&shared.tokens, request.uri().path()).ok_or_else(|| {
        Refused::new(
            StatusCode::NOT_FOUND,
            "no such request: its URL is good once, for a minute",
        )
    })?;
    let Agreed {
        transport,
        remote,
        headers,
    } = negotiate(request.headers(), purpose)?;
    let upgraded = hyper::upgrade::on(&mut request);
    let (shared, permit) = (shared.clone(), permit.clone());
    tokio::spawn(async move {
        let io = match upgraded.await {
            Ok(io) => TokioIo::new(io),
            Err(error) => return tracing::debug!(%error, "an upgrade came to nothing"),
        };
        let activity = Activity::new(shared.partings.clone());
        let idle = activity.clone();
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = idle.idle(shared.idle_timeout) => tracing::debug!("a streaming connection was idle for too long"),
            () = session::serve(shared.backend.clone(), io, claim, transport, remote, activity) => {}
        }
        drop(permit);
    });
    Ok(headers)
}

/// Claims the token in a path, which must be of the kind that the path says.
fn claim(tokens: &Tokens<Claim>, path: &str) -> Option<(Claim, Purpose)> {
    let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
    let claim = tokens.claim(token)?;
    let purpose = match (kind, &claim) {
        ("exec", Claim::Remote(remote::Request::Exec(_))) => Purpose::Command,
        ("attach", Claim::Remote(remote::Request::Attach(_))) => Purpose::Command,
        ("portforward", Claim::Forward { .. }) => Purpose::Forward,
        _ => return None,
    };
    Some((claim, purpose))
}
