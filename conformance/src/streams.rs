//! A client of streaming URLs, over SPDY/3.1 and over WebSocket: just enough of both to drive exec, attach and port-forward,
//! and to break the rules of either.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;

/// No answer for this long is a failure.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest frame that is sent.
const CHUNK: usize = 32 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Spdy,
    WebSocket,
}

pub const BOTH: [Over; 2] = [Over::Spdy, Over::WebSocket];

/// What flows in a connection to a process. The numbers are WebSocket's channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    Error = 3,
    Resize = 4,
}

impl Channel {
    fn of(number: u8) -> Option<Self> {
        [Self::Stdin, Self::Stdout, Self::Stderr, Self::Error, Self::Resize]
            .into_iter()
            .find(|channel| *channel as u8 == number)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Error => "error",
            Self::Resize => "resize",
        }
    }
}

/// Host and path of a URL.
pub fn split(url: &str) -> anyhow::Result<(&str, &str)> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| format!("not an http URL: {url}"))?;
    let at = rest.find('/').with_context(|| format!("no path in {url}"))?;
    Ok(rest.split_at(at))
}

/// Asks for an upgrade; the status code of the answer, its head, and the connection.
pub async fn ask(url: &str, over: Over, protocols: &[&str]) -> anyhow::Result<(u16, String, TcpStream)> {
    let (host, path) = split(url)?;
    let mut socket = TcpStream::connect(host)
        .await
        .with_context(|| format!("connect to {host}"))?;
    socket.set_nodelay(true)?;
    let wanted = match over {
        Over::Spdy => {
            let versions: String = protocols
                .iter()
                .map(|p| format!("X-Stream-Protocol-Version: {p}\r\n"))
                .collect();
            format!(
                "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n{versions}\r\n"
            )
        }
        Over::WebSocket => format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {}\r\n\r\n",
            protocols.join(", ")
        ),
    };
    socket.write_all(wanted.as_bytes()).await?;
    let head = tokio::time::timeout(PATIENCE, head(&mut socket))
        .await
        .context("no answer to an upgrade")??;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("not an HTTP answer: {head:?}"))?;
    Ok((status, head, socket))
}

async fn head(socket: &mut TcpStream) -> anyhow::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) => bail!("the connection ended in the head of an answer: {error}"),
        }
    }
    Ok(String::from_utf8(head)?)
}

async fn upgraded(url: &str, over: Over, protocols: &[&str]) -> anyhow::Result<TcpStream> {
    let (status, head, socket) = ask(url, over, protocols).await?;
    ensure!(status == 101, "the upgrade was answered: {head}");
    Ok(socket)
}

/// One direction-less connection of frames, either kind.
enum Wire {
    Spdy(Spdy<TcpStream>),
    WebSocket(WebSocket<TcpStream>),
}

/// A connection to a process.
pub struct Remote {
    wire: Wire,
    /// SPDY's stream of each channel.
    ids: BTreeMap<Channel, u32>,
}

/// What a process said, to the end of the connection.
#[derive(Debug, Default)]
pub struct Said {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The status: JSON, or nothing.
    pub error: Vec<u8>,
}

impl Said {
    /// As the status tells it; 0 for success.
    pub fn exit_code(&self) -> anyhow::Result<i64> {
        if self.error.is_empty() {
            return Ok(0);
        }
        let text = String::from_utf8_lossy(&self.error);
        let value: serde_json::Value =
            serde_json::from_slice(&self.error).with_context(|| format!("not a status: {text}"))?;
        if value["status"] == "Success" {
            return Ok(0);
        }
        let cause = value["details"]["causes"][0]["message"].as_str();
        cause
            .and_then(|code| code.parse().ok())
            .with_context(|| format!("no exit code in {text}"))
    }
}

impl Remote {
    /// Upgrades and opens the channels, each of which must have been asked for in the call that gave the URL.
    pub async fn open(url: &str, over: Over, channels: &[Channel]) -> anyhow::Result<Self> {
        let mut ids = BTreeMap::new();
        let wire = match over {
            Over::Spdy => {
                let mut spdy = Spdy::new(upgraded(url, over, &["v4.channel.k8s.io"]).await?);
                for channel in channels {
                    let id = spdy.open(&[("streamtype", channel.name())]).await?;
                    ids.insert(*channel, id);
                }
                Wire::Spdy(spdy)
            }
            Over::WebSocket => {
                let protocols = ["v5.channel.k8s.io"];
                Wire::WebSocket(WebSocket::new(upgraded(url, over, &protocols).await?))
            }
        };
        Ok(Self { wire, ids })
    }

    pub async fn send(&mut self, channel: Channel, bytes: &[u8]) -> anyhow::Result<()> {
        for chunk in bytes.chunks(CHUNK) {
            match &mut self.wire {
                Wire::Spdy(spdy) => spdy.data(self.ids[&channel], chunk, false).await?,
                Wire::WebSocket(ws) => ws.send(0x82, &[&[channel as u8], chunk].concat()).await?,
            }
        }
        Ok(())
    }

    /// No more input.
    pub async fn end_input(&mut self) -> anyhow::Result<()> {
        match &mut self.wire {
            Wire::Spdy(spdy) => spdy.data(self.ids[&Channel::Stdin], b"", true).await,
            Wire::WebSocket(ws) => ws.send(0x82, &[255, Channel::Stdin as u8]).await,
        }
    }

    pub async fn resize(&mut self, columns: u16, rows: u16) -> anyhow::Result<()> {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}");
        self.send(Channel::Resize, size.as_bytes()).await
    }

    /// The next piece of output; `None` at the end.
    pub async fn next(&mut self) -> anyhow::Result<Option<(Channel, Vec<u8>)>> {
        tokio::time::timeout(PATIENCE, self.piece())
            .await
            .context("nothing came in half a minute")?
    }

    async fn piece(&mut self) -> anyhow::Result<Option<(Channel, Vec<u8>)>> {
        loop {
            match &mut self.wire {
                Wire::Spdy(spdy) => match spdy.next().await? {
                    None | Some(Frame::GoAway) => return Ok(None),
                    Some(Frame::Data { id, bytes, .. }) => {
                        let channel = self.ids.iter().find(|(_, known)| **known == id);
                        let (channel, _) =
                            channel.with_context(|| format!("data of an unknown stream {id}"))?;
                        if !bytes.is_empty() {
                            return Ok(Some((*channel, bytes)));
                        }
                    }
                    // CANCEL is how Go's library closes a connection; its end follows.
                    Some(Frame::Reset { id, code }) if code != 5 => {
                        bail!("stream {id} was reset with {code}")
                    }
                    Some(Frame::Reset { .. } | Frame::Reply { .. } | Frame::Other) => {}
                },
                Wire::WebSocket(ws) => match ws.next().await? {
                    None | Some((8, _)) => return Ok(None),
                    Some((1 | 2, message)) => {
                        let (channel, bytes) = message.split_first().context("an empty message")?;
                        // 255 says that a channel has ended.
                        if let (Some(channel), false) = (Channel::of(*channel), bytes.is_empty()) {
                            return Ok(Some((channel, bytes.to_vec())));
                        }
                    }
                    Some(_) => {}
                },
            }
        }
    }

    /// Everything until the end.
    pub async fn rest(&mut self) -> anyhow::Result<Said> {
        let mut said = Said::default();
        while let Some((channel, bytes)) = self.next().await? {
            match channel {
                Channel::Stdout => said.stdout.extend(bytes),
                Channel::Stderr => said.stderr.extend(bytes),
                Channel::Error => said.error.extend(bytes),
                Channel::Stdin | Channel::Resize => bail!("output on {channel:?}"),
            }
        }
        Ok(said)
    }

    /// Reads until stdout has `wanted`; what it had in all.
    pub async fn until(&mut self, wanted: &str) -> anyhow::Result<String> {
        let mut all = Vec::new();
        loop {
            if String::from_utf8_lossy(&all).contains(wanted) {
                return Ok(String::from_utf8_lossy(&all).into_owned());
            }
            match self.next().await? {
                Some((Channel::Stdout, bytes)) => all.extend(bytes),
                Some((channel, bytes)) => bail!("{channel:?}: {}", String::from_utf8_lossy(&bytes)),
                None => bail!("the end before {wanted:?}: {:?}", String::from_utf8_lossy(&all)),
            }
        }
    }
}

/// What SPDY sends us, as far as it matters.
#[derive(Debug)]
pub enum Frame {
    Data { id: u32, bytes: Vec<u8>, fin: bool },
    Reply { id: u32 },
    Reset { id: u32, code: u32 },
    GoAway,
    Other,
}

pub struct Spdy<I> {
    pub io: I,
    next: u32,
    begun: bool,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Spdy<I> {
    pub fn new(io: I) -> Self {
        Self {
            io,
            next: 1,
            begun: false,
        }
    }

    /// Opens a stream and waits for its reply; its id.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> anyhow::Result<u32> {
        let id = self.next;
        self.next += 2;
        let block = self.block(headers);
        self.io
            .write_all(&control(1, &[&id.to_be_bytes()[..], &[0; 6], &block].concat()))
            .await?;
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.next())
                .await
                .context("no reply to a stream")??;
            match frame {
                Some(Frame::Reply { id: replied }) if replied == id => return Ok(id),
                Some(Frame::Other) => {}
                other => bail!("the stream {id} was answered with {other:?}"),
            }
        }
    }

    /// A header block in a "stored" deflate block, which needs no dictionary.
    fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            out.extend([0x78, 0x01]);
        }
        let length = plain.len() as u16;
        out.push(0);
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(plain);
        // What a sync flush leaves.
        out.extend([0, 0, 0, 0xff, 0xff]);
        out
    }

    pub async fn data(&mut self, id: u32, bytes: &[u8], fin: bool) -> anyhow::Result<()> {
        let head = (u32::from(fin) << 24) | bytes.len() as u32;
        let frame = [&id.to_be_bytes()[..], &head.to_be_bytes(), bytes].concat();
        Ok(self.io.write_all(&frame).await?)
    }

    /// `None` at the end of the connection.
    pub async fn next(&mut self) -> anyhow::Result<Option<Frame>> {
        let mut head = [0; 8];
        match self.io.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let mut bytes = vec![0; (word(4) & 0x00ff_ffff) as usize];
        self.io.read_exact(&mut bytes).await?;
        if head[0] & 0x80 == 0 {
            return Ok(Some(Frame::Data {
                id: word(0),
                bytes,
                fin: head[4] & 1 == 1,
            }));
        }
        let inner = |at: usize| {
            bytes
                .get(at..at + 4)
                .map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
        };
        Ok(Some(match word(0) & 0xffff {
            2 => Frame::Reply { id: inner(0) },
            3 => Frame::Reset {
                id: inner(0),
                code: inner(4),
            },
            7 => Frame::GoAway,
            _ => Frame::Other,
        }))
    }
}

pub fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3];
    frame.extend(kind.to_be_bytes());
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(payload);
    frame
}

pub struct WebSocket<I> {
    pub io: I,
}

/// A frame of a client; `first` is FIN and opcode.
pub fn message(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x5a, 0x0f, 0xc3, 0x21];
    let mut frame = vec![first];
    match payload.len() {
        n @ 0..126 => frame.push(0x80 | n as u8),
        n @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((n as u16).to_be_bytes());
        }
        n => {
            frame.push(0x80 | 127);
            frame.extend((n as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}

impl<I: AsyncRead + AsyncWrite + Unpin> WebSocket<I> {
    pub fn new(io: I) -> Self {
        Self { io }
    }

    pub async fn send(&mut self, first: u8, payload: &[u8]) -> anyhow::Result<()> {
        Ok(self.io.write_all(&message(first, payload)).await?)
    }

    /// Opcode and payload; `None` at the end of the connection.
    pub async fn next(&mut self) -> anyhow::Result<Option<(u8, Vec<u8>)>> {
        receive(&mut self.io).await
    }
}

async fn receive(io: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0; 2];
    match io.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let length = match head[1] {
        126 => u64::from(io.read_u16().await?),
        127 => io.read_u64().await?,
        n => u64::from(n),
    };
    ensure!(length <= 64 << 20, "a message of {length} bytes");
    let mut payload = vec![0; usize::try_from(length)?];
    io.read_exact(&mut payload).await?;
    Ok(Some((head[0] & 0x0f, payload)))
}

/// A connection to ports of a pod.
pub enum Forward {
    Spdy(Spdy<TcpStream>),
    /// SPDY in messages of WebSocket.
    Tunnel(Spdy<DuplexStream>),
}

impl Forward {
    pub async fn open(url: &str, over: Over) -> anyhow::Result<Self> {
        Ok(match over {
            Over::Spdy => Self::Spdy(Spdy::new(upgraded(url, over, &["portforward.k8s.io"]).await?)),
            Over::WebSocket => {
                let socket = upgraded(url, over, &["SPDY/3.1+portforward.k8s.io"]).await?;
                Self::Tunnel(Spdy::new(tunnel(socket)))
            }
        })
    }

    /// Sends `text` to a port and takes what comes back, to its end: (data, error).
    pub async fn talk(&mut self, port: u16, request: &str, text: &str) -> anyhow::Result<(String, String)> {
        match self {
            Self::Spdy(spdy) => talk(spdy, port, request, text).await,
            Self::Tunnel(spdy) => talk(spdy, port, request, text).await,
        }
    }
}

async fn talk<I: AsyncRead + AsyncWrite + Unpin>(
    spdy: &mut Spdy<I>,
    port: u16,
    request: &str,
    text: &str,
) -> anyhow::Result<(String, String)> {
    let port = port.to_string();
    let mut ids = [0; 2];
    for (id, kind) in ids.iter_mut().zip(["error", "data"]) {
        *id = spdy
            .open(&[("streamtype", kind), ("port", &port), ("requestid", request)])
            .await?;
    }
    let [error, data] = ids;
    spdy.data(error, b"", true).await?;
    spdy.data(data, text.as_bytes(), true).await?;
    let mut all = [Vec::new(), Vec::new()];
    let mut ended = [false; 2];
    while ended != [true; 2] {
        let frame = tokio::time::timeout(PATIENCE, spdy.next())
            .await
            .context("a forwarded port is silent")??;
        match frame {
            Some(Frame::Data { id, bytes, fin }) => {
                let which = usize::from(id == error);
                all[which].extend(bytes);
                ended[which] |= fin;
            }
            Some(Frame::Reset { id, .. }) => ended[usize::from(id == error)] = true,
            Some(Frame::Other | Frame::Reply { .. }) => {}
            Some(Frame::GoAway) | None => break,
        }
    }
    let [data, error] = all.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((data, error))
}

/// The connection within.
fn tunnel(socket: TcpStream) -> DuplexStream {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (mut inward, mut outward) = tokio::io::split(far);
    let (mut from, mut to) = socket.into_split();
    tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(n @ 1..) = inward.read(&mut buffer).await {
            if to.write_all(&message(0x82, &buffer[..n])).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok(Some((2, payload))) = receive(&mut from).await {
            if outward.write_all(&payload).await.is_err() {
                return;
            }
        }
        let _ = outward.shutdown().await;
    });
    near
}
