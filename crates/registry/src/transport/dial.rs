//! Opening one connection: name, address, proxy tunnel, TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::Uri;
use http::uri::Scheme;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::Fault;
use crate::proxy::{Proxy, Target};
use crate::transport::{Route, is_into_machine};

/// A second address is tried when the first has not answered for this long (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// Bytes of a proxy's answer to CONNECT.
const MAX_PROXY_HEAD: usize = 8 << 10;

pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Opens a connection for `uri` within the route's time. Says whether it leads into this machine; through a proxy nobody knows,
/// and it is the proxy's to refuse.
pub(super) async fn open(route: &Route, proxy: &Proxy, uri: &Uri) -> Result<(Stream, bool), Fault> {
    let secure = uri.scheme() == Some(&Scheme::HTTPS);
    let name = uri.host().unwrap_or("").to_owned();
    let own = format!(
        "{name}:{}",
        uri.port_u16().unwrap_or(if secure { 443 } else { 80 })
    );
    let proxy = proxy.select(uri);
    let address = proxy.map_or(own.as_str(), |p| p.address.as_str()).to_owned();
    let dial = async {
        let tcp = connect(&address, route.into_machine || proxy.is_some()).await?;
        let in_machine = proxy.is_none() && tcp.peer_addr().is_ok_and(|peer| is_into_machine(peer.ip()));
        let tcp = match proxy {
            Some(proxy) if secure => tunnel(tcp, proxy, &own).await?,
            _ => tcp,
        };
        if !secure {
            return Ok((Stream::Plain(tcp), in_machine));
        }
        let bare = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        let server = ServerName::try_from(bare).map_err(|_| Fault::Tls {
            name: name.clone(),
            hint: "",
            source: io::Error::new(io::ErrorKind::InvalidInput, "the name cannot be in a certificate"),
        })?;
        let stream = TlsConnector::from(route.tls.clone()).connect(server, tcp).await;
        stream
            .map(|s| (Stream::Tls(Box::new(s)), in_machine))
            .map_err(|source| Fault::Tls {
                name: own.clone(),
                hint: hint(&source),
                source,
            })
    };
    let timeout = |_| Fault::ConnectTimeout {
        address: address.clone(),
        after: route.connect,
    };
    tokio::time::timeout(route.connect, dial).await.map_err(timeout)?
}

/// What to do about the failures that everybody meets once.
fn hint(error: &io::Error) -> &'static str {
    let text = error.to_string();
    if text.contains("UnknownIssuer") || text.contains("BadSignature") {
        " (is its certificate authority known? see ca in hosts.toml)"
    } else if text.contains("InvalidContentType") || text.contains("corrupt message") {
        " (does it speak plain http? then hosts.toml must say http://)"
    } else {
        ""
    }
}

/// Connects to the first address that answers, each with a short head start before the next. Addresses in this machine are left
/// out unless they may be among them: the answer counts, whatever the name looks like (`127.1`, `2130706433`, one in the DNS).
async fn connect(address: &str, into_machine: bool) -> Result<TcpStream, Fault> {
    let found = tokio::net::lookup_host(address).await;
    let mut addresses: Vec<SocketAddr> = found
        .map_err(|source| Fault::Dns {
            name: address.to_owned(),
            source,
        })?
        .take(MAX_ADDRESSES)
        .collect();
    let first = addresses.first().copied();
    addresses.retain(|found| into_machine || !is_into_machine(found.ip()));
    if let (Some(refused), true) = (first, addresses.is_empty()) {
        return Err(Fault::IntoMachine {
            name: address.to_owned(),
            address: refused.ip(),
        });
    }
    let mut running = FuturesUnordered::new();
    let mut waiting = addresses.into_iter();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if let Some(next) = waiting.next() {
            running.push(TcpStream::connect(next));
        } else if running.is_empty() {
            return Err(Fault::Connect {
                address: address.to_owned(),
                source: last,
            });
        }
        let ready = if waiting.len() == 0 {
            running.next().await
        } else {
            tokio::time::timeout(HEAD_START, running.next())
                .await
                .unwrap_or(None)
        };
        match ready {
            Some(Ok(stream)) => {
                // Requests are single small writes; waiting to fill a segment would only delay them.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Some(Err(error)) => last = error,
            None => {}
        }
    }
}

async fn tunnel(mut tcp: TcpStream, proxy: &Target, target: &str) -> Result<TcpStream, Fault> {
    let refuse = |reason: String| Fault::Proxy {
        proxy: proxy.address.clone(),
        reason,
    };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(value) = proxy.authorization.as_ref().and_then(|v| v.to_str().ok()) {
        request.push_str("Proxy-Authorization: ");
        request.push_str(value);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    tcp.write_all(request.as_bytes())
        .await
        .map_err(|e| refuse(e.to_string()))?;
    let mut head = Vec::new();
    // Byte by byte: what follows the head belongs to TLS.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_PROXY_HEAD {
            return Err(refuse("answered CONNECT with too long a head".into()));
        }
        head.push(
            tcp.read_u8()
                .await
                .map_err(|e| refuse(format!("did not answer CONNECT: {e}")))?,
        );
    }
    let line = String::from_utf8_lossy(&head);
    let line = line.lines().next().unwrap_or("");
    if line.starts_with("HTTP/1.") && line.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
        return Ok(tcp);
    }
    Err(refuse(format!(
        "refused CONNECT {target}: {}",
        crate::text::clip(line, 80)
    )))
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn what_a_name_leads_to_counts_and_not_how_it_is_written() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in [
            "localhost",
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0",
            "[::ffff:127.0.0.1]",
            "[fd00:ec2::254]",
            "169.254.43518",
        ] {
            let refused = connect(&format!("{host}:{port}"), false).await.map(drop);
            assert!(
                matches!(refused, Err(Fault::IntoMachine { .. })),
                "{host}: {refused:?}"
            );
        }
        connect(&format!("127.1:{port}"), true).await.unwrap();
    }
}
