//! Frames of RFC 6455, to and from bytes. Pure; messages are passed on in pieces, so that none is too large.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::base64;
use crate::writer::Encoder;

/// Data is passed on in pieces of at most this size.
pub const CHUNK: usize = 16 << 10;
/// Smaller pieces are copied, so that they do not hold the whole buffer that they came in.
const COPY_BELOW: usize = 4 << 10;
/// Largest payload of a control frame (section 5.5).
const MAX_CONTROL: usize = 125;

/// Why the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a client's frame without a mask")]
    NoMask,
    #[error("reserved bits are set, and no extension was agreed upon")]
    Reserved,
    #[error("opcode {0:#x} is unknown")]
    Opcode(u8),
    #[error("a control frame in pieces or of more than {MAX_CONTROL} bytes")]
    Control,
    #[error("a continuation of nothing, or a message within a message")]
    Order,
    #[error("a length beyond 63 bits")]
    Length,
}

/// What comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A piece of a message; `first` and `last` say where in it. It may be empty.
    Piece {
        bytes: Bytes,
        first: bool,
        last: bool,
    },
    Ping(Bytes),
    Pong,
    Close(Bytes),
}

#[derive(Debug, Clone, Copy)]
struct Header {
    opcode: u8,
    fin: bool,
    mask: [u8; 4],
    left: u64,
    /// Of the payload's first byte that is still to come.
    offset: usize,
}

/// Bytes to events.
#[derive(Debug, Default)]
pub struct Decoder {
    header: Option<Header>,
    /// A message has begun and not ended.
    within: bool,
    /// No piece of this message was handed out yet.
    first: bool,
}

impl Decoder {
    /// Takes the next event from `input`; `None` when more bytes are needed.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Event>, FrameError> {
        let mut header = match self.header.take() {
            Some(header) => header,
            None => match self.head(input)? {
                Some(header) => header,
                None => return Ok(None),
            },
        };
        let left = usize::try_from(header.left).unwrap_or(usize::MAX);
        if header.opcode >= 8 {
            if input.len() < left {
                self.header = Some(header);
                return Ok(None);
            }
            let mut payload = input.split_to(left);
            unmask(&mut payload, header.mask, 0);
            let payload = Bytes::copy_from_slice(&payload);
            return Ok(Some(match header.opcode {
                8 => Event::Close(payload),
                9 => Event::Ping(payload),
                _ => Event::Pong,
            }));
        }
        let take = left.min(CHUNK).min(input.len());
        if take == 0 && left > 0 {
            self.header = Some(header);
            return Ok(None);
        }
        let mut piece = input.split_to(take);
        unmask(&mut piece, header.mask, header.offset);
        header.left -= take as u64;
        header.offset = (header.offset + take) % 4;
        let last = header.left == 0 && header.fin;
        if header.left > 0 {
            self.header = Some(header);
        }
        self.within = !last;
        let first = std::mem::take(&mut self.first);
        let bytes = if take < COPY_BELOW {
            Bytes::copy_from_slice(&piece)
        } else {
            piece.freeze()
        };
        Ok(Some(Event::Piece { bytes, first, last }))
    }

    /// Takes a whole header, or nothing.
    fn head(&mut self, input: &mut BytesMut) -> Result<Option<Header>, FrameError> {
        let &[first, second, ..] = &input[..] else {
            return Ok(None);
        };
        let (fin, opcode, length) = (first & 0x80 != 0, first & 0x0f, second & 0x7f);
        if first & 0x70 != 0 {
            return Err(FrameError::Reserved);
        }
        if second & 0x80 == 0 {
            return Err(FrameError::NoMask);
        }
        match opcode {
            0 if !self.within => return Err(FrameError::Order),
            1 | 2 if self.within => return Err(FrameError::Order),
            0..=2 => {}
            8..=10 if fin && usize::from(length) <= MAX_CONTROL => {}
            8..=10 => return Err(FrameError::Control),
            _ => return Err(FrameError::Opcode(opcode)),
        }
        let extended = match length {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if input.len() < 2 + extended + 4 {
            return Ok(None);
        }
        input.advance(2);
        let left = match extended {
            0 => u64::from(length),
            2 => u64::from(input.get_u16()),
            _ => input.get_u64(),
        };
        if left > i64::MAX as u64 {
            return Err(FrameError::Length);
        }
        let mut mask = [0; 4];
        input.copy_to_slice(&mut mask);
        if opcode == 1 || opcode == 2 {
            (self.within, self.first) = (true, true);
        }
        Ok(Some(Header {
            opcode,
            fin,
            mask,
            left,
            offset: 0,
        }))
    }
}

pub fn unmask(bytes: &mut [u8], mask: [u8; 4], offset: usize) {
    let mut turned = mask;
    turned.rotate_left(offset % 4);
    let word = u32::from_ne_bytes(turned);
    let (words, rest) = bytes.as_chunks_mut::<4>();
    for four in words {
        *four = (u32::from_ne_bytes(*four) ^ word).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(turned) {
        *byte ^= mask;
    }
}

/// What goes out: each a whole message in one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out {
    /// A message that begins with the channel's number.
    Channel {
        channel: u8,
        bytes: Bytes,
    },
    /// The same in base64, as text.
    Base64 {
        channel: u8,
        bytes: Bytes,
    },
    /// A message without a channel: the tunnel's.
    Binary(Bytes),
    Pong(Bytes),
    Ping,
    /// The last frame (RFC 6455, section 5.5.1).
    Close(u16),
}

/// Frames to bytes.
#[derive(Debug)]
pub struct FrameEncoder;

impl Encoder for FrameEncoder {
    type Item = Out;

    fn encode(&mut self, frame: Out, head: &mut BytesMut) -> Bytes {
        match frame {
            Out::Channel { channel, bytes } => {
                put_head(head, 2, bytes.len() + 1);
                head.put_u8(channel);
                bytes
            }
            Out::Base64 { channel, bytes } => {
                let text = Bytes::from(base64::encode(&bytes));
                put_head(head, 1, text.len() + 1);
                head.put_u8(b'0' + channel);
                text
            }
            Out::Binary(bytes) => {
                put_head(head, 2, bytes.len());
                bytes
            }
            Out::Pong(bytes) => {
                put_head(head, 10, bytes.len());
                bytes
            }
            Out::Ping => {
                put_head(head, 9, 0);
                Bytes::new()
            }
            Out::Close(code) => {
                put_head(head, 8, 2);
                head.put_u16(code);
                Bytes::new()
            }
        }
    }

    fn is_probe(frame: &Out) -> bool {
        matches!(frame, Out::Ping)
    }

    const ENDS: bool = true;

    fn is_goodbye(frame: &Out) -> bool {
        matches!(frame, Out::Close(_))
    }
}

fn put_head(into: &mut BytesMut, opcode: u8, length: usize) {
    into.put_u8(0x80 | opcode);
    match length {
        0..126 => into.put_u8(length as u8),
        126..=0xffff => {
            into.put_u8(126);
            into.put_u16(length as u16);
        }
        _ => {
            into.put_u8(127);
            into.put_u64(length as u64);
        }
    }
}
