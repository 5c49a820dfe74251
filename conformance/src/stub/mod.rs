//! A stand-in for kube-apiserver in front of a CRI socket: as much of its API as `kubectl get pods`, `logs`, `exec`,
//! `attach` and `port-forward` ask for.
//!
//! Owns: discovery, pods made from what the runtime says, and the way of an upgraded connection to the runtime's streaming
//! URL, byte for byte. Leaves out: TLS, authentication, watches and everything that is written. Kubernetes' own server
//! and kubelet pass these streams on in the same way, so a `kubectl` that works here speaks to the runtime itself.

mod answers;
mod http;
mod logs;
mod streams;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::cri::Cri;
use http::Request;

/// A running server on loopback; dropped, it takes no more connections.
pub struct StubApi {
    /// For `kubectl --server`.
    pub url: String,
    upgrades: Arc<Upgrades>,
    accepting: tokio::task::AbortHandle,
}

/// How many connections became which protocol: kubectl falls back from one to the other in silence.
#[derive(Default)]
struct Upgrades {
    spdy: AtomicUsize,
    websocket: AtomicUsize,
}

impl StubApi {
    pub async fn start(cri: Cri) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let upgrades = Arc::new(Upgrades::default());
        let counts = Arc::clone(&upgrades);
        let accepting = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (cri, upgrades) = (cri.clone(), Arc::clone(&counts));
                tokio::spawn(async move {
                    if let Err(error) = serve(connection, &cri, &upgrades).await {
                        eprintln!("stub API server: {error:#}");
                    }
                });
            }
        });
        Ok(Self {
            url,
            upgrades,
            accepting: accepting.abort_handle(),
        })
    }

    /// Connections that the runtime has upgraded so far: to SPDY, and to WebSocket.
    pub fn upgraded(&self) -> (usize, usize) {
        (
            self.upgrades.spdy.load(Ordering::Relaxed),
            self.upgrades.websocket.load(Ordering::Relaxed),
        )
    }
}

impl Drop for StubApi {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One request a connection; an upgraded one lives until either side has ended.
async fn serve(mut connection: TcpStream, cri: &Cri, upgrades: &Upgrades) -> anyhow::Result<()> {
    let Some(request) = Request::read(&mut connection).await? else {
        return Ok(());
    };
    let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    let answer = match parts[..] {
        ["version"] => Ok(answers::version()),
        ["api"] => Ok(answers::api_versions()),
        ["apis"] => Ok(answers::api_groups()),
        ["api", "v1"] => Ok(answers::resources()),
        ["api", "v1", "namespaces", namespace] => Ok(answers::namespace(namespace)),
        ["api", "v1", "namespaces", namespace, "pods"] => answers::pods(cri, namespace).await,
        ["api", "v1", "namespaces", namespace, "pods", pod] => answers::pod(cri, namespace, pod).await,
        ["api", "v1", "namespaces", namespace, "pods", pod, "log"] => {
            return logs::send(connection, cri, &request, namespace, pod).await;
        }
        [
            "api",
            "v1",
            "namespaces",
            namespace,
            "pods",
            pod,
            kind @ ("exec" | "attach" | "portforward"),
        ] => match streams::url(cri, &request, (namespace, pod), kind).await {
            Ok(url) => return streams::pass_on(connection, &request, &url, upgrades).await,
            Err(failure) => Err(failure),
        },
        _ => Err(Failure::new(404, format!("the stub has no {}", request.path))),
    };
    reply(&mut connection, answer).await
}

/// An error in the API's own form.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
struct Failure {
    /// HTTP status.
    code: u16,
    message: String,
}

impl Failure {
    fn new(code: u16, message: String) -> Self {
        Self { code, message }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let code = match status.code() {
            tonic::Code::NotFound => 404,
            tonic::Code::InvalidArgument => 400,
            _ => 500,
        };
        Self::new(code, status.message().to_owned())
    }
}

async fn reply(connection: &mut TcpStream, answer: Result<Value, Failure>) -> anyhow::Result<()> {
    let (code, body) = match answer {
        Ok(body) => (200, body),
        Err(failure) => (failure.code, answers::failure(failure.code, &failure.message)),
    };
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {code} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        if code == 200 { "OK" } else { "Error" },
        body.len()
    );
    connection
        .write_all((head + &body).as_bytes())
        .await
        .context("answer kubectl")
}
