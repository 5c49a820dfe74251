//! A client of WebSocket, for tests.
#![allow(clippy::unwrap_used)]

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::frame::unmask;

/// A client's frame. `first` is its first byte: FIN and opcode.
pub fn frame(first: u8, payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u8(first);
    match payload.len() {
        n @ 0..126 => out.put_u8(0x80 | n as u8),
        n @ 126..=0xffff => {
            out.put_u8(0x80 | 126);
            out.put_u16(n as u16);
        }
        n => {
            out.put_u8(0x80 | 127);
            out.put_u64(n as u64);
        }
    }
    let mask = [0x12, 0x34, 0xab, 0xcd];
    out.put_slice(&mask);
    let mut payload = payload.to_vec();
    unmask(&mut payload, mask, 0);
    out.put_slice(&payload);
    out
}

pub struct Client<I> {
    pub io: I,
    buffer: BytesMut,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Client<I> {
    pub fn new(io: I) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
        }
    }

    pub async fn send(&mut self, first: u8, payload: &[u8]) {
        self.io.write_all(&frame(first, payload)).await.unwrap();
    }

    pub async fn channel(&mut self, channel: u8, payload: &[u8]) {
        self.send(0x82, &[&[channel], payload].concat()).await;
    }

    /// Opcode and payload of the next frame; `None` at the end of the connection.
    pub async fn recv(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some(frame) = self.take() {
                return Some(frame);
            }
            if !matches!(self.io.read_buf(&mut self.buffer).await, Ok(1..)) {
                return None;
            }
        }
    }

    fn take(&mut self) -> Option<(u8, Vec<u8>)> {
        let &[first, length, ..] = &self.buffer[..] else {
            return None;
        };
        let extended = match length {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mut look = self.buffer.get(2..)?;
        let length = match extended {
            0 => u64::from(length),
            2 => u64::from(look.try_get_u16().ok()?),
            _ => look.try_get_u64().ok()?,
        } as usize;
        if look.len() < length {
            return None;
        }
        self.buffer.advance(2 + extended);
        Some((first & 0x0f, self.buffer.split_to(length).to_vec()))
    }

    /// Everything until the server's goodbye, by channel, and the code that came with it.
    pub async fn rest(&mut self) -> (std::collections::BTreeMap<u8, Vec<u8>>, Option<u16>) {
        let mut all = std::collections::BTreeMap::<u8, Vec<u8>>::new();
        let mut code = None;
        while let Some((opcode, payload)) = self.recv().await {
            match (opcode, payload.split_first()) {
                (8, Some(_)) => {
                    code = Some(u16::from_be_bytes([payload[0], payload[1]]));
                    break;
                }
                (1 | 2, Some((channel, data))) => all.entry(*channel).or_default().extend_from_slice(data),
                _ => {}
            }
        }
        (all, code)
    }
}
