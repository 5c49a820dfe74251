//! Connections: dialling, proxies, TLS, and HTTP/1.1 exchanges that are polled by the task that wants the bytes.
//!
//! There is no background task. A blob's reader polls its own connection, so that a chunk costs no wake-up of another
//! thread and dropping the reader closes the socket. The pool belongs to one pull: connections are never shared between
//! pulls, and none is open when no pull runs.

mod dial;

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Fault;
use crate::proxy::Proxy;
use dial::Stream;

/// What a read asks for at most; hyper's buffer may hold twice as much, which is then the largest chunk. It stays well
/// inside a core's L2 cache, where the consumer finds it again.
const READ_BUFFER: usize = 256 << 10;
const MAX_HEADERS: usize = 100;
/// Idle connections kept for one host within a pull.
const MAX_IDLE: usize = 8;

type Connection = http1::Connection<TokioIo<Stream>, Full<Bytes>>;

/// How to reach one host: TLS and the time that a connection may take.
#[derive(Clone)]
pub(crate) struct Route {
    pub tls: Arc<rustls::ClientConfig>,
    pub connect: Duration,
    /// Whether the name may lead into this machine ([`is_into_machine`]).
    pub into_machine: bool,
}

pub(crate) struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
    /// Scheme, host and port that answered.
    pub host: String,
    /// Its address, and not only its name, is in this machine.
    pub in_machine: bool,
}

/// The connections of one pull.
pub(crate) struct Pool {
    proxy: Proxy,
    idle: Mutex<Vec<(Key, Conn)>>,
    streams: Arc<Semaphore>,
}

/// A connection serves only requests with the same TLS settings to the same place.
#[derive(Clone, PartialEq, Eq)]
struct Key {
    target: String,
    tls: usize,
    into_machine: bool,
}

struct Conn {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once the connection is done; its last response may still have bytes to give.
    io: Option<Pin<Box<Connection>>>,
    in_machine: bool,
}

impl Pool {
    pub fn new(proxy: Proxy, streams: usize) -> Arc<Self> {
        Arc::new(Self {
            proxy,
            idle: Mutex::default(),
            streams: Arc::new(Semaphore::new(streams.max(1))),
        })
    }

    /// Sends one request to an absolute URI and waits for the head of its response.
    pub async fn send(
        self: &Arc<Self>,
        route: &Route,
        mut request: Request<Full<Bytes>>,
        wait: Duration,
    ) -> Result<Response, Fault> {
        let uri = request.uri().clone();
        let host = origin(&uri);
        let deadline = |_| Fault::Deadline {
            what: "waiting for a free stream",
            after: wait,
        };
        let permit = tokio::time::timeout(wait, self.streams.clone().acquire_owned())
            .await
            .map_err(deadline)?;
        let permit = permit.map_err(|_| Fault::Protocol {
            reason: "the pull is over".into(),
        })?;
        let forward = self
            .proxy
            .select(&uri)
            .filter(|_| uri.scheme() == Some(&http::uri::Scheme::HTTP));
        if let Some(proxy) = forward
            && let Some(value) = &proxy.authorization
        {
            request.headers_mut().insert(PROXY_AUTHORIZATION, value.clone());
        }
        if !request.headers().contains_key(HOST)
            && let Some(value) = uri
                .authority()
                .and_then(|a| http::HeaderValue::from_str(without_userinfo(a.as_str())).ok())
        {
            request.headers_mut().insert(HOST, value);
        }
        if forward.is_none() {
            // Origin form; only a proxy is sent the whole URI.
            let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
            *request.uri_mut() = path.parse().map_err(|_| Fault::Protocol {
                reason: "the request has no valid path".into(),
            })?;
        }
        let key = Key {
            target: host.clone(),
            tls: Arc::as_ptr(&route.tls) as usize,
            into_machine: route.into_machine,
        };
        loop {
            let reused = self.take(&key);
            let fresh = reused.is_none();
            let mut conn = match reused {
                Some(conn) => conn,
                None => self.dial(route, &uri).await?,
            };
            match tokio::time::timeout(wait, conn.exchange(request.clone())).await {
                Ok(Ok(response)) => {
                    let (head, incoming) = response.into_parts();
                    let in_machine = conn.in_machine;
                    let body = Body {
                        incoming,
                        conn: Some(conn),
                        key,
                        pool: self.clone(),
                        _permit: permit,
                        host: host.clone(),
                    };
                    return Ok(Response {
                        status: head.status,
                        headers: head.headers,
                        body,
                        host,
                        in_machine,
                    });
                }
                // The other side may close an idle connection at any time; only a new one says something about the host.
                Ok(Err(_)) if !fresh => {}
                Ok(Err(source)) => {
                    return Err(Fault::Http {
                        host,
                        during: " before its response",
                        source,
                    });
                }
                Err(_) => return Err(Fault::Stalled { host, after: wait }),
            }
        }
    }

    async fn dial(&self, route: &Route, uri: &Uri) -> Result<Conn, Fault> {
        let (stream, in_machine) = dial::open(route, &self.proxy, uri).await?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(READ_BUFFER).max_headers(MAX_HEADERS);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (sender, io) = handshake.map_err(|source| Fault::Http {
            host: origin(uri),
            during: " at its beginning",
            source,
        })?;
        Ok(Conn {
            sender,
            io: Some(Box::pin(io)),
            in_machine,
        })
    }

    fn take(&self, key: &Key) -> Option<Conn> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let at = idle.iter().rposition(|(k, _)| k == key)?;
        Some(idle.remove(at).1)
    }

    fn keep(&self, key: &Key, conn: Conn) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.iter().filter(|(k, _)| k == key).count() < MAX_IDLE {
            idle.push((key.clone(), conn));
        }
    }
}

impl Conn {
    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<http::Response<Incoming>> {
        let Self { sender, io, .. } = self;
        let mut response = pin!(sender.send_request(request));
        poll_fn(|cx| {
            if let Poll::Ready(done) = response.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            let broken = drive(io, cx);
            match (response.as_mut().poll(cx), broken) {
                (Poll::Ready(done), _) => Poll::Ready(done),
                (Poll::Pending, Some(error)) => Poll::Ready(Err(error)),
                (Poll::Pending, None) => Poll::Pending,
            }
        })
        .await
    }
}

/// Lets the connection work; its end removes it and gives its error, if that was one.
fn drive(io: &mut Option<Pin<Box<Connection>>>, cx: &mut Context<'_>) -> Option<hyper::Error> {
    let Poll::Ready(end) = io.as_mut()?.as_mut().poll(cx) else {
        return None;
    };
    *io = None;
    end.err()
}

/// The body of a response, with the connection that it comes from.
pub(crate) struct Body {
    incoming: Incoming,
    conn: Option<Conn>,
    key: Key,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
    host: String,
}

impl Body {
    /// The next bytes, or `None` at the end. `stall` bounds the wait.
    pub async fn chunk(&mut self, stall: Duration) -> Result<Option<Bytes>, Fault> {
        let read = tokio::time::timeout(stall, poll_fn(|cx| self.poll_chunk(cx))).await;
        let read = read.map_err(|_| Fault::Stalled {
            host: self.host.clone(),
            after: stall,
        })?;
        read.map_err(|source| Fault::Http {
            host: self.host.clone(),
            during: " in the middle of its response",
            source,
        })
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<Option<Bytes>>> {
        // The connection hands its error to the body if it can, so the body is asked before and after it.
        if let Poll::Ready(read) = self.poll_frames(cx) {
            return Poll::Ready(read);
        }
        let broken = self.conn.as_mut().and_then(|conn| drive(&mut conn.io, cx));
        match (self.poll_frames(cx), broken) {
            (Poll::Ready(read), _) => Poll::Ready(read),
            (Poll::Pending, Some(error)) => Poll::Ready(Err(error)),
            (Poll::Pending, None) => Poll::Pending,
        }
    }

    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<Option<Bytes>>> {
        loop {
            match std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    // Trailers say nothing that is wanted here.
                    if let Ok(bytes) = frame.into_data() {
                        return Poll::Ready(Ok(Some(bytes)));
                    }
                }
                Some(Err(error)) => {
                    self.conn = None;
                    return Poll::Ready(Err(error));
                }
                None => {
                    self.recycle(cx);
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }

    /// Gives the connection back if it can take another request.
    fn recycle(&mut self, cx: &mut Context<'_>) {
        let Some(mut conn) = self.conn.take() else { return };
        let _ = drive(&mut conn.io, cx);
        if conn.io.is_some() && conn.sender.is_ready() {
            self.pool.keep(&self.key, conn);
        }
    }

    /// Up to `limit` bytes for an error message, whatever goes wrong.
    pub async fn beginning(mut self, limit: usize, wait: Duration) -> Vec<u8> {
        let mut out = Vec::new();
        let read = async {
            while let Ok(Some(bytes)) = self.chunk(wait).await {
                out.extend_from_slice(&bytes[..bytes.len().min(limit - out.len())]);
                if out.len() >= limit {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(wait, read).await;
        out
    }

    /// All bytes, refused over `limit`.
    pub async fn whole(mut self, limit: usize, wait: Duration) -> Result<Vec<u8>, Fault> {
        let read = async {
            let mut out = Vec::new();
            while let Some(bytes) = self.chunk(wait).await? {
                out.extend_from_slice(&bytes);
                if out.len() > limit {
                    return Err(Fault::Limit {
                        what: "response",
                        announced: format!("more than {limit}"),
                        limit: limit as u64,
                    });
                }
            }
            Ok(out)
        };
        tokio::time::timeout(wait, read)
            .await
            .map_err(|_| Fault::Deadline {
                what: "the response",
                after: wait,
            })?
    }
}

/// `scheme://host[:port]`: what may be shown of a URI; its path and query can hold signatures.
pub(crate) fn origin(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |a| without_userinfo(a.as_str()));
    format!(
        "{}://{}",
        uri.scheme_str().unwrap_or("http"),
        authority.to_ascii_lowercase()
    )
}

fn without_userinfo(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

/// Whether a host is this machine by definition: `localhost`, 127.0.0.0/8 or ::1.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || address(bare).is_some_and(|ip| ip.is_loopback())
}

/// Whether a host is written as an address that [`is_into_machine`].
pub(crate) fn is_written_into_machine(host: &str) -> bool {
    is_loopback(host) || address(host).is_some_and(is_into_machine)
}

/// Whether an address is this machine's alone, or one where clouds keep their metadata services: what a registry elsewhere has
/// no business to name.
pub(crate) fn is_into_machine(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || METADATA_V4.contains(&ip)
        }
        IpAddr::V6(ip) => {
            let aws = ip.segments()[..2] == [0xfd00, 0x0ec2];
            ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified() || aws || ip == METADATA_GCE
        }
    }
}

/// Those that are not link-local: Azure's wire server, Alibaba Cloud. AWS has fd00:ec2::254, ::23 and more of that net.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200)];
/// Google Compute Engine.
const METADATA_GCE: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);

/// An address as the kernel takes it: one of IPv4 that is written as IPv6 (`::ffff:127.0.0.1`) is the one of IPv4.
fn address(host: &str) -> Option<IpAddr> {
    host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}
