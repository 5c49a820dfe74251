//! Exec, attach and port-forward as calls, and as what the streaming server asks for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream};
use std::os::fd::OwnedFd;

use async_trait::async_trait;
use holdfast_streaming::{AttachRequest, Backend, BackendError, ExecRequest, Process, Resize, TerminalSize};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::{TcpSocket, TcpStream};
use tracing::debug;

use crate::config::bounds;
use crate::engine::ask;
use crate::pod::Command;
use crate::{Engine, Error, StreamRequest, Streams, Wanted};

impl Engine {
    /// Starts a command in a running container. Returns once it runs; one that cannot be run is an error.
    pub async fn exec_stream(&self, id: &str, request: StreamRequest) -> Result<Streams, Error> {
        let record = self.container(id)?;
        let (mailbox, id) = (self.mailbox(&record.sandbox)?, record.id);
        ask(&mailbox, &record.sandbox, |reply| Command::StreamExec {
            id,
            request,
            reply,
        })
        .await
    }

    /// A running container's streams, from now on. Whoever does not read misses output and is told how much; neither the
    /// container nor its log waits.
    pub async fn attach(&self, id: &str, wanted: Wanted) -> Result<Streams, Error> {
        let record = self.container(id)?;
        let (mailbox, id) = (self.mailbox(&record.sandbox)?, record.id);
        ask(&mailbox, &record.sandbox, |reply| Command::Attach {
            id,
            wanted,
            reply,
        })
        .await
    }

    /// A connection to a port of the pod's own loopback addresses: 127.0.0.1, then ::1.
    pub async fn port_forward(&self, id: &str, port: u16) -> Result<TcpStream, Error> {
        let record = self.sandbox(id)?;
        let mailbox = self.mailbox(&record.id)?;
        let sockets = ask(&mailbox, &record.id, |reply| Command::Sockets { reply }).await?;
        let mut reasons = Vec::new();
        for (socket, address) in [
            (sockets.ipv4, IpAddr::V4(Ipv4Addr::LOCALHOST)),
            (sockets.ipv6, IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ] {
            let Some(socket) = socket else { continue };
            let address = SocketAddr::new(address, port);
            match connect(socket, address).await {
                Ok(connection) => return Ok(connection),
                Err(error) => reasons.push(format!("{address}: {error}")),
            }
        }
        Err(Error::NoConnection {
            id: record.id.to_string(),
            port,
            reason: reasons.join("; "),
        })
    }
}

/// The socket lives in the pod's network namespace, whoever connects it.
async fn connect(socket: OwnedFd, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(StdStream::from(socket));
    tokio::time::timeout(bounds::CONNECT, socket.connect(address))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

#[async_trait]
impl Backend for Engine {
    async fn exec(&self, request: ExecRequest, size: Option<TerminalSize>) -> Result<Process, BackendError> {
        let wanted = StreamRequest {
            command: request.command,
            tty: request.tty,
            size,
            streams: Wanted {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
            },
        };
        let streams = self.exec_stream(&request.container, wanted).await?;
        Ok(process(streams))
    }

    async fn attach(&self, request: AttachRequest) -> Result<Process, BackendError> {
        // Whether there is a terminal is the container's own affair: clients repeat what its status says.
        let wanted = Wanted {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let streams = Engine::attach(self, &request.container, wanted).await?;
        Ok(process(streams))
    }

    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<TcpStream, BackendError> {
        Ok(Engine::port_forward(self, sandbox, port).await?)
    }
}

fn process(streams: Streams) -> Process {
    let ended = streams.ended;
    Process {
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
        resize: streams.terminal.map(resizer),
        exit: Box::pin(async move { Ok(ended.await?) }),
    }
}

fn resizer(terminal: OwnedFd) -> Resize {
    Box::new(move |TerminalSize { columns, rows }| {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        if let Err(errno) = tcsetwinsize(&terminal, size) {
            debug!(columns, rows, "a terminal cannot be resized: {errno}");
        }
    })
}
