//! A connection of bytes within binary messages: SPDY through proxies that only know WebSocket (KEP-4006).

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::frame::{Decoder, Event, FrameEncoder, FrameError, Out};
use super::mux::READ;
use crate::activity::Activity;
use crate::writer::{Ends, LAST_WORDS, Queue, writer};

/// Buffered in each direction.
const BUFFER: usize = 64 << 10;
const NORMAL: u16 = 1000;

/// The tasks behind a tunnel; dropping them closes the socket.
pub struct Tunnel {
    writing: AbortOnDropHandle<()>,
    _passing: AbortOnDropHandle<()>,
}

impl Tunnel {
    /// The inner connection has ended: that is told to the client, and its goodbye answered.
    pub async fn close(mut self) {
        let _ = timeout(LAST_WORDS, &mut self.writing).await;
    }
}

/// The inner connection, good as long as the tunnel is kept.
pub fn tunnel(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    activity: Activity,
) -> (DuplexStream, Tunnel) {
    let (near, far) = tokio::io::duplex(BUFFER);
    let (read, write) = tokio::io::split(io);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let ends = Ends::default();
    let (queue, writing) = writer(FrameEncoder, write, activity, ends.clone());
    let answers = queue.clone();
    let inwards = async move {
        if let Err(error) = unwrap(read, &mut far_write, &answers).await {
            tracing::debug!(%error, "a client broke the protocol");
        }
        let _ = far_write.shutdown().await;
    };
    let outwards = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ);
            match far_read.read_buf(&mut buffer).await {
                Ok(1..) if queue.send(Out::Binary(buffer.split().freeze())).await.is_ok() => {}
                _ => break,
            }
        }
        let _ = queue.send(Out::Close(NORMAL)).await;
    };
    let passing = async move {
        tokio::join!(inwards, outwards);
        ends.over.cancel();
    };
    let tunnel = Tunnel {
        writing: AbortOnDropHandle::new(tokio::spawn(writing)),
        _passing: AbortOnDropHandle::new(tokio::spawn(passing)),
    };
    (near, tunnel)
}

async fn unwrap(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
    answers: &Queue<Out>,
) -> Result<(), FrameError> {
    let mut decoder = Decoder::default();
    let mut buffer = BytesMut::new();
    loop {
        while let Some(event) = decoder.decode(&mut buffer)? {
            match event {
                Event::Piece { bytes, .. } => {
                    if to.write_all(&bytes).await.is_err() {
                        return Ok(());
                    }
                }
                Event::Ping(payload) => answers.try_urgent(Out::Pong(payload)),
                Event::Pong => {}
                Event::Close(_) => return Ok(()),
            }
        }
        buffer.reserve(READ);
        if !matches!(from.read_buf(&mut buffer).await, Ok(1..)) {
            return Ok(());
        }
    }
}
