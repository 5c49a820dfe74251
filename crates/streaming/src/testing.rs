//! A backend that runs commands on this machine, and a client of HTTP upgrades.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{
    AttachRequest, Backend, BackendError, Bound, Config, ExecRequest, Process, Server, TerminalSize,
};

#[derive(Debug, Default)]
pub struct TestBackend {
    /// Processes that live.
    pub running: Arc<AtomicUsize>,
    /// The size that the last terminal began with.
    pub first: Mutex<Option<TerminalSize>>,
    /// How often a terminal was resized, and its last size.
    pub resized: Arc<(AtomicUsize, AtomicU64)>,
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn non_blocking(fd: OwnedFd) -> OwnedFd {
    fcntl_setfl(fd.as_fd(), OFlags::NONBLOCK).unwrap();
    fd
}

impl TestBackend {
    fn count(&self) -> Counted {
        self.running.fetch_add(1, Ordering::SeqCst);
        Counted(self.running.clone())
    }

    /// What is written to it comes back, and nothing ends it.
    fn echo(&self) -> Process {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let counted = self.count();
        Process {
            stdin: Some(write),
            stdout: Some(read),
            stderr: None,
            resize: None,
            exit: Box::pin(async move {
                let _counted = counted;
                std::future::pending().await
            }),
        }
    }

    fn spawn(&self, request: &ExecRequest) -> Result<Process, BackendError> {
        let stdio = |wanted| if wanted { Stdio::piped() } else { Stdio::null() };
        let mut child = tokio::process::Command::new(&request.command[0])
            .args(&request.command[1..])
            .stdin(stdio(request.stdin))
            .stdout(stdio(request.stdout))
            .stderr(stdio(request.stderr))
            .kill_on_drop(true)
            .spawn()?;
        let counted = self.count();
        let resized = self.resized.clone();
        Ok(Process {
            stdin: child
                .stdin
                .take()
                .map(|s| non_blocking(s.into_owned_fd().unwrap())),
            stdout: child
                .stdout
                .take()
                .map(|s| non_blocking(s.into_owned_fd().unwrap())),
            stderr: child
                .stderr
                .take()
                .map(|s| non_blocking(s.into_owned_fd().unwrap())),
            resize: request.tty.then(|| {
                Box::new(move |TerminalSize { columns, rows }| {
                    resized.0.fetch_add(1, Ordering::SeqCst);
                    resized
                        .1
                        .store(u64::from(columns) << 16 | u64::from(rows), Ordering::SeqCst);
                }) as crate::Resize
            }),
            exit: Box::pin(async move {
                let _counted = counted;
                Ok(child.wait().await?.code().unwrap_or(-1))
            }),
        })
    }
}

#[async_trait]
impl Backend for TestBackend {
    async fn exec(&self, request: ExecRequest, size: Option<TerminalSize>) -> Result<Process, BackendError> {
        *self.first.lock().unwrap() = size;
        match request.command[0].as_str() {
            "echo-for-ever" => Ok(self.echo()),
            _ => self.spawn(&request),
        }
    }

    async fn attach(&self, request: AttachRequest) -> Result<Process, BackendError> {
        match request.container.as_str() {
            "gone" => Err("container gone is not running".into()),
            _ => Ok(self.echo()),
        }
    }

    async fn port_forward(&self, _: &str, port: u16) -> Result<TcpStream, BackendError> {
        Ok(TcpStream::connect(("127.0.0.1", port)).await?)
    }
}

pub async fn start(config: Config) -> (Server, Arc<TestBackend>) {
    let backend = Arc::new(TestBackend::default());
    (Bound::new(config).await.unwrap().serve(backend.clone()), backend)
}

pub fn command(words: &[&str]) -> ExecRequest {
    ExecRequest {
        container: "c".into(),
        command: words.iter().map(|w| (*w).to_owned()).collect(),
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    }
}

pub const SPDY: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: ";
pub const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: ";

pub fn address(url: &str) -> (SocketAddr, &str) {
    let rest = url.split_once("://").unwrap().1;
    let (address, _) = rest.split_once('/').unwrap();
    (address.parse().unwrap(), &rest[address.len()..])
}

/// Asks for an upgrade on any connection; the answer's head.
pub async fn ask<I>(io: &mut I, path: &str, headers: &str) -> String
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let request = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match io.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// The status, and the connection.
pub async fn request(url: &str, headers: &str) -> (u16, TcpStream) {
    let (address, path) = address(url);
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = ask(&mut socket, path, headers).await;
    let status = head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
    (status, socket)
}

pub async fn upgrade(url: &str, headers: &str, protocol: &str) -> TcpStream {
    let (status, socket) = request(url, &format!("{headers}{protocol}")).await;
    assert_eq!(status, 101);
    socket
}
