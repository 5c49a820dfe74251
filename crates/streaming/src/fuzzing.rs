//! What `make fuzz` throws bytes at: the decoders, and a whole SPDY connection. Compiled under cargo-fuzz only.
//!
//! Each function takes any bytes and panics where a property does not hold. Properties: bytes mean the same however they are
//! cut up; nothing that comes out is larger than its bound; a connection ends when its client has gone, whatever it said.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;

use crate::activity::Activity;
use crate::spdy::testing::{Blocks, syn_stream};
use crate::spdy::{self, Frame};
use crate::ws;

/// A connection that has not ended this long after its client went is stuck.
const STUCK: Duration = Duration::from_secs(20);

/// Raw bytes of a SPDY connection.
pub fn spdy_frames(input: &[u8]) {
    let whole = spdy_decode(&[input]);
    for piece in [1, 7, 4096] {
        let pieces: Vec<_> = input.chunks(piece).collect();
        assert_eq!(spdy_decode(&pieces), whole, "cut into pieces of {piece}");
    }
}

/// A header block in plain, so that the fuzzer need not discover zlib.
pub fn spdy_headers(input: &[u8]) {
    let frame = syn_stream(1, &Blocks::new().raw(input), false);
    spdy_frames(&frame);
}

/// The same connection against the server's side as it runs.
pub fn spdy_session(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (near, far) = tokio::io::duplex(1 << 16);
        let mut mux = spdy::Mux::start(near, Activity::new(Arc::new(Semaphore::new(1))));
        let (mut answers, mut client) = tokio::io::split(far);
        let mut sink = Vec::new();
        let ended = async {
            let say = async {
                // It may hang up in the middle.
                let _ = client.write_all(input).await;
                let _ = client.shutdown().await;
            };
            let serve = async {
                let mut kept = Vec::new();
                while let Some(opened) = mux.opened.recv().await {
                    // Every other one is refused, as commands that cannot be run are.
                    match opened.id & 2 {
                        0 => mux.handle.reset(opened.id, spdy::reset::REFUSED_STREAM),
                        _ => kept.push(opened),
                    }
                }
                drop(kept);
                mux.gone.cancelled().await;
                drop(mux);
            };
            tokio::join!(say, serve, answers.read_to_end(&mut sink)).2
        };
        let ended = tokio::time::timeout(STUCK, ended).await;
        assert!(ended.is_ok(), "the connection goes on after its client has gone");
    });
}

/// Raw bytes of a WebSocket connection.
pub fn websocket_frames(input: &[u8]) {
    let whole = websocket_decode(&[input]);
    for piece in [1, 7, 4096] {
        let pieces: Vec<_> = input.chunks(piece).collect();
        assert_eq!(websocket_decode(&pieces), whole, "cut into pieces of {piece}");
    }
}

/// Frames with the pieces of a data frame put together, since only their sum is the same for every cut.
fn spdy_decode(pieces: &[&[u8]]) -> (Vec<Frame>, Option<spdy::FrameError>) {
    let mut decoder = spdy::Decoder::new();
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::<Frame>::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(Frame::Data { id, bytes, fin })) => match frames.last_mut() {
                    Some(Frame::Data {
                        id: before,
                        bytes: all,
                        fin: ended @ false,
                    }) if *before == id => {
                        *all = [&all[..], &bytes[..]].concat().into();
                        *ended = fin;
                    }
                    _ => frames.push(Frame::Data { id, bytes, fin }),
                },
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// What came in, messages put together as above: opcode-like tag, bytes, whether it ended.
fn websocket_decode(pieces: &[&[u8]]) -> (Vec<(u8, Vec<u8>, bool)>, Option<ws::FrameError>) {
    let mut decoder = ws::Decoder::default();
    let (mut buffer, mut events) = (BytesMut::new(), Vec::<(u8, Vec<u8>, bool)>::new());
    // Control frames may come within a message: the message that is being put together is kept beside.
    let mut message: Option<Vec<u8>> = None;
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(ws::Event::Piece { bytes, first, last })) => {
                    assert!(bytes.len() <= ws::CHUNK, "a piece of {} bytes", bytes.len());
                    assert_eq!(first, message.is_none(), "a piece out of order");
                    let mut all = message.take().unwrap_or_default();
                    all.extend_from_slice(&bytes);
                    if last {
                        events.push((0, all, true));
                    } else {
                        message = Some(all);
                    }
                }
                Ok(Some(ws::Event::Ping(bytes))) => events.push((9, bytes.to_vec(), true)),
                Ok(Some(ws::Event::Pong)) => events.push((10, Vec::new(), true)),
                Ok(Some(ws::Event::Close(bytes))) => events.push((8, bytes.to_vec(), true)),
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            }
        }
    }
    events.extend(message.map(|rest| (0, rest, false)));
    (events, None)
}
