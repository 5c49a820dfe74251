//! Frames of SPDY/3.1, to and from bytes. Pure: no I/O, and memory bounded whatever comes in.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::headers::{Headers, Inflater, Storer};
use crate::writer::Encoder;

/// Largest control frame that is accepted. Kubernetes' are below 200 bytes.
pub const MAX_CONTROL: usize = 16 << 10;
/// Data is passed on in pieces of at most this size, however large its frame is.
pub const CHUNK: usize = 16 << 10;
/// Smaller pieces are copied, so that they do not hold the whole buffer that they came in.
const COPY_BELOW: usize = 4 << 10;

const VERSION: u16 = 3;
const FIN: u8 = 1;
const INITIAL_WINDOW_SIZE: u32 = 7;

/// Why the connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of SPDY version {0}; this is version 3")]
    Version(u16),
    #[error("a control frame of {0} bytes; at most {MAX_CONTROL} are accepted")]
    TooLarge(usize),
    #[error("a control frame of type {kind} with {length} bytes")]
    Length { kind: u16, length: usize },
    #[error("headers: {0}")]
    BadHeaders(&'static str),
    #[error("headers inflate to more than {} bytes", super::headers::MAX_BLOCK)]
    HeadersTooLarge,
    #[error("stream {0} was opened out of order")]
    Order(u32),
    #[error("the window of the session overflows")]
    Window,
}

/// Codes of RST_STREAM (SPDY/3, section 2.6.3).
pub mod reset {
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INVALID_STREAM: u32 = 2;
    pub const REFUSED_STREAM: u32 = 3;
    pub const FLOW_CONTROL_ERROR: u32 = 7;
    pub const STREAM_IN_USE: u32 = 8;
    pub const STREAM_ALREADY_CLOSED: u32 = 9;
}

/// Codes of GOAWAY (section 2.6.6).
pub mod goaway {
    pub const OK: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
}

/// What comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        headers: Headers,
        fin: bool,
    },
    SynReply {
        id: u32,
        fin: bool,
    },
    Reset {
        id: u32,
        status: u32,
    },
    /// Of all settings only the one that we act upon.
    Settings {
        initial_window: Option<u32>,
    },
    Ping {
        id: u32,
    },
    GoAway {
        status: u32,
    },
    Headers {
        id: u32,
        fin: bool,
    },
    WindowUpdate {
        id: u32,
        delta: u32,
    },
    /// A piece of a data frame; `fin` comes with the last.
    Data {
        id: u32,
        bytes: Bytes,
        fin: bool,
    },
}

#[derive(Debug, Clone, Copy)]
enum State {
    Head,
    Control {
        kind: u16,
        flags: u8,
        length: usize,
    },
    Data {
        id: u32,
        left: usize,
        fin: bool,
    },
    /// Control frames of unknown types are ignored (section 2.2.1).
    Skip {
        left: usize,
    },
}

/// Bytes to frames.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    inflater: Inflater,
}

impl Decoder {
    pub fn new() -> Self {
        Self {
            state: State::Head,
            inflater: Inflater::new(),
        }
    }

    /// Takes the next frame from `input`; `None` when more bytes are needed. Never needs more than [`MAX_CONTROL`] at a time.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            match self.state {
                State::Head => {
                    if input.len() < 8 {
                        return Ok(None);
                    }
                    self.state = head(input.get_u32(), input.get_u32())?;
                }
                State::Control { kind, flags, length } => {
                    if input.len() < length {
                        return Ok(None);
                    }
                    let payload = input.split_to(length);
                    self.state = State::Head;
                    return self.control(kind, flags, &payload).map(Some);
                }
                State::Data { id, left, fin } => {
                    let take = left.min(CHUNK).min(input.len());
                    if take == 0 && left > 0 {
                        return Ok(None);
                    }
                    let piece = input.split_to(take);
                    let bytes = if take < COPY_BELOW {
                        Bytes::copy_from_slice(&piece)
                    } else {
                        piece.freeze()
                    };
                    let left = left - take;
                    self.state = if left > 0 {
                        State::Data { id, left, fin }
                    } else {
                        State::Head
                    };
                    return Ok(Some(Frame::Data {
                        id,
                        bytes,
                        fin: fin && left == 0,
                    }));
                }
                State::Skip { left } => {
                    let take = left.min(input.len());
                    input.advance(take);
                    if take < left {
                        self.state = State::Skip { left: left - take };
                        return Ok(None);
                    }
                    self.state = State::Head;
                }
            }
        }
    }

    fn control(&mut self, kind: u16, flags: u8, mut payload: &[u8]) -> Result<Frame, FrameError> {
        let length = payload.len();
        let fin = flags & FIN != 0;
        let mut word = || {
            payload
                .try_get_u32()
                .map_err(|_| FrameError::Length { kind, length })
        };
        let frame = match kind {
            1 => {
                let (id, _associated) = (word()? & ID, word()?);
                // Priority, unused bits and the credential slot.
                let block = payload.get(2..).ok_or(FrameError::Length { kind, length })?;
                Frame::SynStream {
                    id,
                    headers: self.inflater.headers(block)?,
                    fin,
                }
            }
            2 => {
                let id = word()? & ID;
                self.inflater.headers(payload)?;
                Frame::SynReply { id, fin }
            }
            3 => Frame::Reset {
                id: word()? & ID,
                status: word()?,
            },
            4 => settings(payload).ok_or(FrameError::Length { kind, length })?,
            6 => Frame::Ping { id: word()? },
            7 => {
                let (_last, status) = (word()?, word()?);
                Frame::GoAway { status }
            }
            8 => {
                let id = word()? & ID;
                self.inflater.headers(payload)?;
                Frame::Headers { id, fin }
            }
            _ => Frame::WindowUpdate {
                id: word()? & ID,
                delta: word()? & ID,
            },
        };
        Ok(frame)
    }
}

/// Stream ids and window sizes have 31 bits.
const ID: u32 = 0x7fff_ffff;

fn head(first: u32, second: u32) -> Result<State, FrameError> {
    let length = (second & 0x00ff_ffff) as usize;
    let flags = (second >> 24) as u8;
    if first & !ID == 0 {
        return Ok(State::Data {
            id: first,
            left: length,
            fin: flags & FIN != 0,
        });
    }
    let version = (first >> 16) as u16 & 0x7fff;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let kind = (first & 0xffff) as u16;
    match kind {
        1..=4 | 6..=9 if length > MAX_CONTROL => Err(FrameError::TooLarge(length)),
        1..=4 | 6..=9 => Ok(State::Control { kind, flags, length }),
        _ => Ok(State::Skip { left: length }),
    }
}

fn settings(mut payload: &[u8]) -> Option<Frame> {
    let count = payload.try_get_u32().ok()? as usize;
    if payload.len() != count.checked_mul(8)? {
        return None;
    }
    let mut initial_window = None;
    while let (Ok(id), Ok(value)) = (payload.try_get_u32(), payload.try_get_u32()) {
        if id & 0x00ff_ffff == INITIAL_WINDOW_SIZE {
            initial_window = Some(value);
        }
    }
    Some(Frame::Settings { initial_window })
}

/// What goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out {
    Reply {
        id: u32,
    },
    Reset {
        id: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    /// No data comes after it.
    GoAway {
        last: u32,
        status: u32,
    },
    WindowUpdate {
        id: u32,
        delta: u32,
    },
    /// At most 2^24 - 1 bytes.
    Data {
        id: u32,
        bytes: Bytes,
        fin: bool,
    },
}

/// Frames to bytes.
#[derive(Debug, Default)]
pub struct FrameEncoder {
    storer: Storer,
}

impl Encoder for FrameEncoder {
    type Item = Out;

    fn encode(&mut self, frame: Out, head: &mut BytesMut) -> Bytes {
        match frame {
            Out::Reply { id } => {
                let mut block = BytesMut::new();
                self.storer.empty(&mut block);
                put_control(head, 2, 4 + block.len());
                head.put_u32(id);
                head.put_slice(&block);
            }
            Out::Reset { id, status } => put_pair(head, 3, id, status),
            Out::Ping { id } => {
                put_control(head, 6, 4);
                head.put_u32(id);
            }
            Out::GoAway { last, status } => put_pair(head, 7, last, status),
            Out::WindowUpdate { id, delta } => put_pair(head, 9, id, delta),
            Out::Data { id, bytes, fin } => {
                head.put_u32(id);
                head.put_u32((u32::from(fin) << 24) | bytes.len() as u32);
                return bytes;
            }
        }
        Bytes::new()
    }

    fn is_probe(frame: &Out) -> bool {
        matches!(frame, Out::Ping { id } if id % 2 == 0)
    }

    /// Pings are answered after GOAWAY too.
    const ENDS: bool = false;

    fn is_goodbye(frame: &Out) -> bool {
        matches!(frame, Out::GoAway { .. })
    }
}

pub fn put_control(into: &mut BytesMut, kind: u16, length: usize) {
    into.put_u16(0x8000 | VERSION);
    into.put_u16(kind);
    into.put_u32(length as u32);
}

fn put_pair(into: &mut BytesMut, kind: u16, one: u32, two: u32) {
    put_control(into, kind, 8);
    into.put_u32(one);
    into.put_u32(two);
}
