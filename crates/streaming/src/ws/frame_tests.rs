#![allow(clippy::unwrap_used)]

use bytes::{BufMut as _, Bytes, BytesMut};
use proptest::prelude::*;

use super::frame::{CHUNK, Decoder, Event, FrameEncoder, FrameError, Out};
use super::testing::frame;
use crate::writer::Encoder as _;

fn all(input: &[u8]) -> Result<Vec<Event>, FrameError> {
    let mut decoder = Decoder::default();
    let mut input = BytesMut::from(input);
    let mut events = Vec::new();
    while let Some(event) = decoder.decode(&mut input)? {
        events.push(event);
    }
    Ok(events)
}

fn piece(bytes: &'static str, first: bool, last: bool) -> Event {
    Event::Piece {
        bytes: Bytes::from_static(bytes.as_bytes()),
        first,
        last,
    }
}

#[test]
fn messages_and_controls() {
    let table: &[(Vec<u8>, Vec<Event>)] = &[
        (frame(0x82, b"hello").to_vec(), vec![piece("hello", true, true)]),
        (frame(0x81, b"").to_vec(), vec![piece("", true, true)]),
        (
            // A ping between the pieces of a message.
            [
                frame(0x02, b"he"),
                frame(0x89, b"?"),
                frame(0x00, b"l"),
                frame(0x80, b"lo"),
            ]
            .concat(),
            vec![
                piece("he", true, false),
                Event::Ping(Bytes::from_static(b"?")),
                piece("l", false, false),
                piece("lo", false, true),
            ],
        ),
        (
            [frame(0x8a, b""), frame(0x88, &[3, 232])].concat(),
            vec![Event::Pong, Event::Close(Bytes::from_static(&[3, 232]))],
        ),
    ];
    for (input, wanted) in table {
        assert_eq!(all(input).as_ref(), Ok(wanted));
    }
}

#[test]
fn refusals() {
    let mut unmasked = frame(0x82, b"x");
    unmasked[1] &= 0x7f;
    let mut long = BytesMut::from(&[0x82u8, 0xff][..]);
    long.put_u64(u64::MAX);
    long.put_u32(0);
    let table: &[(&[u8], FrameError)] = &[
        (&unmasked, FrameError::NoMask),
        (&frame(0xc2, b"x"), FrameError::Reserved),
        (&frame(0x83, b"x"), FrameError::Opcode(3)),
        (&frame(0x80, b"x"), FrameError::Order),
        (
            &[frame(0x02, b"x"), frame(0x82, b"y")].concat(),
            FrameError::Order,
        ),
        (&frame(0x09, b"x"), FrameError::Control),
        (&frame(0x89, &[0; 126]), FrameError::Control),
        (&long, FrameError::Length),
    ];
    for (input, wanted) in table {
        assert_eq!(all(input).as_ref(), Err(wanted), "{input:x?}");
    }
}

#[test]
fn what_we_send() {
    let sent = |out| {
        let mut head = BytesMut::new();
        let payload = FrameEncoder.encode(out, &mut head);
        head.put_slice(&payload);
        head.to_vec()
    };
    assert_eq!(
        sent(Out::Channel {
            channel: 1,
            bytes: Bytes::from_static(b"ab")
        }),
        b"\x82\x03\x01ab"
    );
    assert_eq!(
        sent(Out::Base64 {
            channel: 1,
            bytes: Bytes::from_static(b"\n")
        }),
        b"\x81\x051Cg=="
    );
    assert_eq!(sent(Out::Close(1000)), b"\x88\x02\x03\xe8");
    assert_eq!(sent(Out::Binary(vec![0; 126].into()))[..4], [0x82, 126, 0, 126]);
    assert_eq!(
        sent(Out::Binary(vec![0; 70_000].into()))[..10],
        [0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]
    );
}

proptest! {
    #[test]
    fn cuts_do_not_matter(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..600), 0..8),
        step in 1usize..90,
    ) {
        let input = messages.iter().map(|m| frame(0x82, m)).collect::<Vec<_>>().concat();
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::new();
        let mut got: Vec<Vec<u8>> = Vec::new();
        for part in input.chunks(step) {
            buffer.extend_from_slice(part);
            while let Some(event) = decoder.decode(&mut buffer).unwrap() {
                let Event::Piece { bytes, first, .. } = event else { panic!("{event:?}") };
                if first {
                    got.push(Vec::new());
                }
                got.last_mut().unwrap().extend_from_slice(&bytes);
            }
        }
        prop_assert_eq!(got, messages);
    }

    #[test]
    fn anything(
        mut input in proptest::collection::vec(any::<u8>(), 0..3000),
        valid in proptest::collection::vec(any::<u8>(), 0..300),
        change in any::<prop::sample::Index>(),
        step in 1usize..3000,
    ) {
        let mut mutated = frame(0x82, &valid);
        let at = change.index(mutated.len());
        mutated[at] = mutated[at].wrapping_add(1);
        input.splice(0..0, mutated);
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::new();
        'all: for part in input.chunks(step) {
            buffer.extend_from_slice(part);
            loop {
                match decoder.decode(&mut buffer) {
                    Ok(Some(Event::Piece { bytes, .. })) => assert!(bytes.len() <= CHUNK),
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => break 'all,
                }
            }
            assert!(buffer.len() <= 140, "{} bytes are kept", buffer.len());
        }
    }
}
