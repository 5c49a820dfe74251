#![allow(clippy::unwrap_used)]

use bytes::{BufMut as _, Bytes, BytesMut};
use proptest::prelude::*;

use super::frame::{CHUNK, Decoder, Frame, FrameEncoder, FrameError, MAX_CONTROL, Out};
use super::headers::{Headers, MAX_BLOCK, dictionary};
use super::testing::{Blocks, bytes, control, data, syn_stream, words};
use crate::writer::Encoder as _;

fn all(decoder: &mut Decoder, input: &[u8]) -> Result<Vec<Frame>, FrameError> {
    let mut input = BytesMut::from(input);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.decode(&mut input)? {
        frames.push(frame);
    }
    Ok(frames)
}

fn one(input: &[u8]) -> Result<Frame, FrameError> {
    all(&mut Decoder::new(), input).map(|mut frames| frames.remove(0))
}

/// RFC 1950's checksum, by which streams name their dictionary.
#[test]
fn the_dictionary_is_the_one() {
    let (mut a, mut b) = (1u32, 0u32);
    for byte in dictionary() {
        a = (a + u32::from(byte)) % 65521;
        b = (b + a) % 65521;
    }
    assert_eq!((b << 16) | a, 0xe3c6_a7c2);
}

#[test]
fn every_kind() {
    let mut blocks = Blocks::new();
    let headers = blocks.block(&[("streamtype", "stdin"), ("x-many", "one\0two")]);
    let table: &[(&[u8], Frame)] = &[
        (
            &syn_stream(1, &headers, true),
            Frame::SynStream {
                id: 1,
                headers: Headers(vec![
                    ("streamtype".into(), "stdin".into()),
                    ("x-many".into(), "one".into()),
                ]),
                fin: true,
            },
        ),
        (&words(3, &[5, 2]), Frame::Reset { id: 5, status: 2 }),
        (
            &words(4, &[2, 0x0100_0004, 9, 7, 1000]),
            Frame::Settings {
                initial_window: Some(1000),
            },
        ),
        (&words(4, &[0]), Frame::Settings { initial_window: None }),
        (&words(6, &[9]), Frame::Ping { id: 9 }),
        (&words(7, &[3, 1]), Frame::GoAway { status: 1 }),
        (
            &words(9, &[0x8000_0003, 77]),
            Frame::WindowUpdate { id: 3, delta: 77 },
        ),
        (
            &data(3, b"abc", false),
            Frame::Data {
                id: 3,
                bytes: bytes("abc"),
                fin: false,
            },
        ),
        (
            &data(3, b"", true),
            Frame::Data {
                id: 3,
                bytes: Bytes::new(),
                fin: true,
            },
        ),
        (
            // One of no known type before it is passed over.
            &[&control(200, 0, &[7; 40_000])[..], &words(6, &[1])].concat(),
            Frame::Ping { id: 1 },
        ),
    ];
    for (input, wanted) in table {
        assert_eq!(one(input).as_ref(), Ok(wanted));
    }
}

#[test]
fn refusals() {
    let mut version = words(6, &[1]);
    version[1] = 2;
    let bomb = Blocks::new().raw(&vec![0; 4 << 20]);
    assert!(bomb.len() < MAX_CONTROL);
    let many = Blocks::new().raw(&[0xff; 4]);
    let mut ended = Blocks::new().block(&[("a", "b")]);
    ended.truncate(ended.len() - 12);
    let table: &[(&[u8], FrameError)] = &[
        (&version, FrameError::Version(2)),
        (
            &control(1, 0, &vec![0; MAX_CONTROL + 1]),
            FrameError::TooLarge(MAX_CONTROL + 1),
        ),
        (&control(6, 0, &[1, 2]), FrameError::Length { kind: 6, length: 2 }),
        (
            &control(3, 0, &[1, 2, 3, 4]),
            FrameError::Length { kind: 3, length: 4 },
        ),
        (
            &words(4, &[0xffff_ffff, 1, 1]),
            FrameError::Length { kind: 4, length: 12 },
        ),
        (&control(1, 0, &[0; 9]), FrameError::Length { kind: 1, length: 9 }),
        (
            &syn_stream(1, b"\x78\x9cgarbage", false),
            FrameError::BadHeaders("they cannot be inflated"),
        ),
        (&syn_stream(1, &bomb, false), FrameError::HeadersTooLarge),
        (
            &syn_stream(1, &many, false),
            FrameError::BadHeaders("they end too early"),
        ),
        (
            &syn_stream(1, &ended, false),
            FrameError::BadHeaders("they end too early"),
        ),
        (
            &syn_stream(1, b"", false),
            FrameError::BadHeaders("they end too early"),
        ),
    ];
    for (input, wanted) in table {
        assert_eq!(one(input).as_ref(), Err(wanted));
    }
}

#[test]
fn a_block_of_the_largest_size() {
    let value = "v".repeat(MAX_BLOCK - 64);
    let block = Blocks::new().block(&[("n", &value)]);
    let Ok(Frame::SynStream { headers, .. }) = one(&syn_stream(1, &block, false)) else {
        panic!("refused");
    };
    assert_eq!(headers.get("n"), Some(value.as_str()));
}

#[test]
fn large_frames_come_in_pieces() {
    let input = data(1, &vec![7; 100_000], true);
    let frames = all(&mut Decoder::new(), &input).unwrap();
    let lengths: Vec<(usize, bool)> = frames
        .iter()
        .map(|f| match f {
            Frame::Data { bytes, fin, .. } => (bytes.len(), *fin),
            _ => panic!("{f:?}"),
        })
        .collect();
    assert_eq!(lengths.iter().map(|(n, _)| n).sum::<usize>(), 100_000);
    assert!(lengths.iter().all(|(n, _)| *n <= CHUNK));
    assert_eq!(lengths.iter().filter(|(_, fin)| *fin).count(), 1);
    assert!(lengths.last().unwrap().1);
}

#[test]
fn what_we_send() {
    let mut encoder = FrameEncoder::default();
    let mut decoder = Decoder::new();
    let table = [
        (Out::Reply { id: 1 }, Frame::SynReply { id: 1, fin: false }),
        (Out::Reply { id: 3 }, Frame::SynReply { id: 3, fin: false }),
        (Out::Reset { id: 3, status: 5 }, Frame::Reset { id: 3, status: 5 }),
        (Out::Ping { id: 7 }, Frame::Ping { id: 7 }),
        (
            Out::WindowUpdate { id: 3, delta: 9 },
            Frame::WindowUpdate { id: 3, delta: 9 },
        ),
        (
            Out::Data {
                id: 3,
                bytes: bytes("xyz"),
                fin: true,
            },
            Frame::Data {
                id: 3,
                bytes: bytes("xyz"),
                fin: true,
            },
        ),
        (Out::GoAway { last: 3, status: 0 }, Frame::GoAway { status: 0 }),
    ];
    for (out, wanted) in table {
        let mut head = BytesMut::new();
        let payload = encoder.encode(out, &mut head);
        head.put_slice(&payload);
        assert_eq!(all(&mut decoder, &head), Ok(vec![wanted]));
    }
}

/// A client's whole conversation: frames that are valid in this order.
fn conversation() -> impl Strategy<Value = Vec<BytesMut>> {
    let kind = prop_oneof![
        ("[a-z]{1,12}", "[ -~]{0,40}").prop_map(|(n, v)| Some((n, v, 0))),
        (0u32..20).prop_map(|k| Some((String::new(), String::new(), k))),
        Just(None),
    ];
    (
        proptest::collection::vec(kind, 0..20),
        proptest::collection::vec(any::<u8>(), 0..300),
    )
        .prop_map(|(kinds, payload)| {
            let mut blocks = Blocks::new();
            let mut id = 1;
            kinds
                .into_iter()
                .map(|kind| match kind {
                    Some((name, value, 0)) if !name.is_empty() => {
                        id += 2;
                        syn_stream(id, &blocks.block(&[(&name, &value)]), false)
                    }
                    Some((_, _, k)) if k % 4 == 0 => words(6, &[k]),
                    Some((_, _, k)) if k % 4 == 1 => words(9, &[id, k]),
                    Some((_, _, k)) if k % 4 == 2 => words(3, &[id, k]),
                    Some(_) => words(4, &[1, 7, 5]),
                    None => data(id, &payload, payload.len() % 2 == 0),
                })
                .collect()
        })
}

/// Feeds bytes as the reader does, and checks that what is kept is bounded.
fn feed(input: &[u8], step: usize) -> usize {
    let mut decoder = Decoder::new();
    let mut buffer = BytesMut::new();
    let mut frames = 0;
    for piece in input.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(Frame::Data { bytes, .. })) => {
                    assert!(bytes.len() <= CHUNK);
                    frames += 1;
                }
                Ok(Some(Frame::SynStream { headers, .. })) => {
                    let size: usize = headers.0.iter().map(|(n, v)| n.len() + v.len()).sum();
                    assert!(size <= 3 * MAX_BLOCK, "{size}");
                    frames += 1;
                }
                Ok(Some(_)) => frames += 1,
                Ok(None) => break,
                Err(_) => return frames,
            }
        }
        assert!(buffer.len() <= MAX_CONTROL, "{} bytes are kept", buffer.len());
    }
    frames
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Data may arrive in more pieces, everything else is the same however the bytes are cut.
    #[test]
    fn cuts_do_not_matter(frames in conversation(), step in 1usize..40) {
        let input = frames.concat();
        let merge = |frames: Vec<Frame>| {
            let mut merged: Vec<Frame> = Vec::new();
            for frame in frames {
                match (merged.last_mut(), frame) {
                    (Some(Frame::Data { id, bytes, fin: fin @ false }), Frame::Data { id: i, bytes: b, fin: f }) if *id == i => {
                        *bytes = [&bytes[..], &b[..]].concat().into();
                        *fin = f;
                    }
                    (_, frame) => merged.push(frame),
                }
            }
            merged
        };
        let whole = all(&mut Decoder::new(), &input).unwrap();
        let mut decoder = Decoder::new();
        let mut buffer = BytesMut::new();
        let mut cut = Vec::new();
        for piece in input.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                cut.push(frame);
            }
        }
        prop_assert_eq!(merge(whole), merge(cut));
    }

    #[test]
    fn random_bytes(input in proptest::collection::vec(any::<u8>(), 0..4000), step in 1usize..4000) {
        feed(&input, step);
    }

    /// Random bytes seldom get beyond the first frame; valid frames with a few wrong bytes do.
    #[test]
    fn mutated_frames(
        frames in conversation(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        step in 1usize..400,
    ) {
        let mut input = frames.concat();
        if !input.is_empty() {
            for (at, value) in changes {
                let at = at.index(input.len());
                input[at] ^= value;
            }
        }
        feed(&input, step);
    }
}
