//! A registry in the test's own process, with a handler for what it should get wrong.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use holdfast_registry::{Client, Config, Digest, Limits, Platform, Reference};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// A request as the server saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

type Chunks = BoxStream<'static, Result<Bytes, std::io::Error>>;

pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Chunks,
}

impl Reply {
    /// A body with its length announced.
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let reply = Self::chunks(status, stream::iter([Ok(body.clone())]).boxed());
        reply.with("content-length", &body.len().to_string())
    }

    /// A body without an announced length.
    pub fn chunks(status: u16, body: Chunks) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body,
        }
    }

    /// Announces `announced` bytes, gives `body` and breaks the connection.
    pub fn broken(status: u16, announced: usize, body: Bytes) -> Self {
        let end = stream::once(async {
            // What was written has to leave before the connection breaks.
            tokio::time::sleep(Duration::from_millis(20)).await;
            Err(std::io::Error::other("broken on purpose"))
        });
        Self::chunks(status, stream::iter([Ok(body)]).chain(end).boxed())
            .with("content-length", &announced.to_string())
    }

    /// Announces `announced` bytes, gives `body` and never goes on.
    pub fn stalled(announced: usize, body: Bytes) -> Self {
        let reply = Self::chunks(200, stream::iter([Ok(body)]).chain(stream::pending()).boxed());
        reply.with("content-length", &announced.to_string())
    }

    /// Goes on for ever.
    pub fn endless(chunk: Bytes) -> Self {
        Self::chunks(200, stream::repeat_with(move || Ok(chunk.clone())).boxed())
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn challenge(text: &str) -> Self {
        Self::new(
            401,
            r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
        )
        .with("www-authenticate", text)
    }

    pub fn redirect(to: &str) -> Self {
        Self::new(307, "").with("location", to)
    }
}

pub struct Server {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, handler).await
    }

    pub async fn start_with(
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (seen, handler) = (log.clone(), Arc::new(handler));
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                let (seen, handler, tls) = (seen.clone(), handler.clone(), tls.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(request, seen.clone(), handler.clone()));
                    let http = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => drop(http.serve_connection(TokioIo::new(tcp), service).await),
                        Some(config) => {
                            let Ok(tls) = tokio_rustls::TlsAcceptor::from(config).accept(tcp).await else {
                                return;
                            };
                            drop(http.serve_connection(TokioIo::new(tls), service).await);
                        }
                    }
                });
            }
        });
        Self { address, log }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.log.lock().unwrap().clone()
    }

    /// Requests whose path has this in it.
    pub fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|s| s.path.contains(part)).count()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn reference(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.address)).unwrap()
    }
}

async fn answer(
    request: Request<Incoming>,
    log: Arc<Mutex<Vec<Seen>>>,
    handler: Arc<impl Fn(&Seen) -> Reply>,
) -> Result<Response<StreamBody<BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let seen = Seen {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or("").to_owned(),
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    log.lock().unwrap().push(seen.clone());
    let reply = handler(&seen);
    let mut response = Response::new(StreamBody::new(
        reply.body.map(|chunk| chunk.map(Frame::data)).boxed(),
    ));
    *response.status_mut() = reply.status.try_into().unwrap();
    for (name, value) in reply.headers {
        response.headers_mut().append(
            http::HeaderName::try_from(name).unwrap(),
            value.try_into().unwrap(),
        );
    }
    Ok(response)
}

/// An image of one configuration and one layer.
#[derive(Clone)]
pub struct Image {
    pub manifest: Bytes,
    pub digest: Digest,
    pub config: Bytes,
    pub layer: Bytes,
    pub layer_digest: Digest,
}

impl Image {
    pub fn new(size: usize) -> Self {
        let layer: Bytes = (0..size).map(|n| (n * 31 % 251) as u8).collect();
        let config = Bytes::from_static(b"{}");
        let layer_digest = Digest::sha256(&layer);
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":2}},
"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer_digest}","size":{size}}}]}}"#,
            Digest::sha256(&config)
        );
        let manifest = Bytes::from(manifest);
        Self {
            digest: Digest::sha256(&manifest),
            manifest,
            config,
            layer,
            layer_digest,
        }
    }

    /// What a good registry answers, ranges included.
    pub fn serve(&self, seen: &Seen) -> Reply {
        let name = seen.path.rsplit('/').next().unwrap_or("");
        if seen.path.contains("/manifests/") {
            if name.contains(':') && name != self.digest.as_str() {
                return not_found();
            }
            return Reply::new(200, self.manifest.clone())
                .with("content-type", "application/vnd.oci.image.manifest.v1+json")
                .with("docker-content-digest", self.digest.as_str());
        }
        let blob = match name {
            n if n == self.layer_digest.as_str() => &self.layer,
            n if n == Digest::sha256(&self.config).as_str() => &self.config,
            _ => return not_found(),
        };
        match range(seen) {
            Some(first) => {
                Reply::new(206, blob.slice(first..)).with("content-range", &content_range(first, blob))
            }
            None => Reply::new(200, blob.clone()),
        }
    }
}

pub fn content_range(first: usize, blob: &Bytes) -> String {
    format!("bytes {first}-{}/{}", blob.len() - 1, blob.len())
}

pub fn range(seen: &Seen) -> Option<usize> {
    seen.header("range")
        .strip_prefix("bytes=")?
        .strip_suffix('-')?
        .parse()
        .ok()
}

pub fn not_found() -> Reply {
    Reply::new(
        404,
        r#"{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}"#,
    )
}

pub fn platform() -> Platform {
    Platform::new("linux", "amd64", None)
}

/// A client that is quick to lose patience, with host files from `dir` if there are any.
pub fn client(dir: Option<&Path>) -> Client {
    let limits = Limits {
        connect: Duration::from_secs(2),
        response: Duration::from_secs(2),
        stall: Duration::from_millis(400),
        document: Duration::from_secs(3),
        attempts: 3,
        ..Limits::default()
    };
    Client::new(Config {
        certs_d: dir.into_iter().map(Into::into).collect(),
        limits,
        ..Config::default()
    })
}

/// Writes a `hosts.toml` for a registry.
pub fn put_hosts(dir: &Path, registry: &str, text: &str) {
    let dir = dir.join(registry);
    std::fs::create_dir_all(&dir).unwrap();
    put(&dir.join("hosts.toml"), text);
}

pub fn put(path: &Path, text: &str) {
    let mut file = std::fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
}
