//! A client of SPDY, for tests.
#![cfg_attr(fuzzing, allow(dead_code))]
#![allow(clippy::unwrap_used)]

use bytes::{BufMut as _, Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub use super::frame::Frame;
use super::frame::{Decoder, put_control};
use super::headers::dictionary;

/// The sending side of header blocks, compressed as real clients do it.
pub struct Blocks(Compress);

impl Blocks {
    pub fn new() -> Self {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(&dictionary()).unwrap();
        Self(zlib)
    }

    pub fn raw(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plain.len() + 1024);
        let before = self.0.total_in();
        self.0.compress_vec(plain, &mut out, FlushCompress::Sync).unwrap();
        assert_eq!(self.0.total_in() - before, plain.len() as u64);
        out
    }

    pub fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for text in headers.iter().flat_map(|(n, v)| [n, v]) {
            plain.put_u32(text.len() as u32);
            plain.put_slice(text.as_bytes());
        }
        self.raw(&plain)
    }
}

pub fn control(kind: u16, flags: u8, payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    put_control(&mut out, kind, payload.len());
    out[4] = flags;
    out.put_slice(payload);
    out
}

pub fn words(kind: u16, words: &[u32]) -> BytesMut {
    let payload: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
    control(kind, 0, &payload)
}

pub fn syn_stream(id: u32, block: &[u8], fin: bool) -> BytesMut {
    let mut payload = BytesMut::new();
    payload.put_u32(id);
    payload.put_u32(0);
    payload.put_u16(0);
    payload.put_slice(block);
    control(1, u8::from(fin), &payload)
}

pub fn data(id: u32, bytes: &[u8], fin: bool) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u32(id);
    out.put_u32((u32::from(fin) << 24) | bytes.len() as u32);
    out.put_slice(bytes);
    out
}

pub struct Client<I> {
    pub io: I,
    blocks: Blocks,
    decoder: Decoder,
    buffer: BytesMut,
    next: u32,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Client<I> {
    pub fn new(io: I) -> Self {
        Self {
            io,
            blocks: Blocks::new(),
            decoder: Decoder::new(),
            buffer: BytesMut::new(),
            next: 1,
        }
    }

    pub async fn send(&mut self, frame: &[u8]) {
        self.io.write_all(frame).await.unwrap();
    }

    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let block = self.blocks.block(headers);
        self.send(&syn_stream(id, &block, false)).await;
        id
    }

    /// Opens a stream and waits for its reply.
    pub async fn opened(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.open(headers).await;
        assert_eq!(self.recv().await, Some(Frame::SynReply { id, fin: false }));
        id
    }

    /// `None` at the end of the connection.
    pub async fn recv(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            if !matches!(self.io.read_buf(&mut self.buffer).await, Ok(1..)) {
                return None;
            }
        }
    }

    /// Everything until the connection ends or says goodbye, by stream, and which of them were ended.
    pub async fn rest(&mut self) -> (std::collections::BTreeMap<u32, Vec<u8>>, Vec<u32>) {
        let mut all = std::collections::BTreeMap::<u32, Vec<u8>>::new();
        let mut ended = Vec::new();
        while let Some(frame) = self.recv().await {
            match frame {
                Frame::Data { id, bytes, fin } => {
                    all.entry(id).or_default().extend_from_slice(&bytes);
                    if fin {
                        ended.push(id);
                    }
                }
                Frame::GoAway { .. } => break,
                _ => {}
            }
        }
        (all, ended)
    }
}

pub fn bytes(of: &'static str) -> Bytes {
    Bytes::from_static(of.as_bytes())
}
