use proptest::prelude::*;

use super::*;

const STAMP: &Stamp = b"2026-11-21T23:14:12.123456789Z";

#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    takes: usize,
}

impl Sink for Collected {
    fn take(&mut self, entries: &[u8]) {
        assert_eq!(entries.last(), Some(&b'\n'), "entries are handed on whole");
        self.bytes.extend_from_slice(entries);
        self.takes += 1;
    }
}

/// Feeds `pieces` as a pump does: what is left over comes again in front of the next piece.
fn framed(pieces: &[&[u8]], capacity: usize) -> Collected {
    let mut framer = Framer::new(capacity);
    let mut out = Collected::default();
    let mut carry = Vec::new();
    for piece in pieces {
        carry.extend_from_slice(piece);
        let used = framer.frame(&carry, Stream::Stdout, STAMP, &mut out);
        carry.drain(..used);
        assert!(carry.len() <= CHUNK);
    }
    framer.finish(&carry, Stream::Stdout, STAMP, &mut out);
    framer.flush(&mut out);
    out
}

fn entry(tag: char, content: &str) -> String {
    format!("2026-11-21T23:14:12.123456789Z stdout {tag} {content}\n")
}

#[test]
fn lines_are_entries() {
    let table: &[(&[&str], &str)] = &[
        (&[""], ""),
        (&["a\n"], &entry('F', "a")),
        (&["a\nb\n"], &(entry('F', "a") + &entry('F', "b"))),
        (&["a", "b", "\n"], &entry('F', "ab")),
        (&["no end"], &entry('F', "no end")),
        (&["\n\n"], &(entry('F', "") + &entry('F', ""))),
        (&["cr\r\n"], &entry('F', "cr\r")),
    ];
    for (pieces, expected) in table {
        let pieces: Vec<_> = pieces.iter().map(|piece| piece.as_bytes()).collect();
        let got = framed(&pieces, 0).bytes;
        assert_eq!(String::from_utf8(got).unwrap(), *expected, "{pieces:?}");
    }
}

#[test]
fn long_lines_are_cut_at_the_chunk() {
    let x = "x".repeat(CHUNK);
    for (length, expected) in [
        (CHUNK, entry('F', &x)),
        (CHUNK + 1, entry('P', &x) + &entry('F', "x")),
        (2 * CHUNK, entry('P', &x) + &entry('F', &x)),
        (
            2 * CHUNK + 5,
            entry('P', &x) + &entry('P', &x) + &entry('F', "xxxxx"),
        ),
    ] {
        let line = "x".repeat(length);
        for end in ["\n", ""] {
            let whole = framed(&[line.as_bytes(), end.as_bytes()], 0).bytes;
            assert_eq!(String::from_utf8(whole).unwrap(), expected, "{length}");
        }
    }
}

#[test]
fn a_small_buffer_is_handed_on_often() {
    let input = "\n".repeat(10_000);
    let out = framed(&[input.as_bytes()], 0);
    assert_eq!(out.bytes, entry('F', "").repeat(10_000).into_bytes());
    assert!(out.takes > 20);
}

/// What a reader such as the kubelet makes of a log.
fn parsed(log: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap();
        assert_eq!(&line[..30], STAMP);
        assert_eq!(&line[30..38], b" stdout ");
        assert_eq!(line[39], b' ');
        assert!(line.len() - PREFIX <= CHUNK);
        content.extend_from_slice(&line[PREFIX..]);
        match line[38] {
            b'F' => content.push(b'\n'),
            tag => assert_eq!(tag, b'P'),
        }
    }
    content
}

fn output() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        8 => proptest::collection::vec(any::<u8>(), 0..60),
        1 => (0usize..3 * CHUNK).prop_map(|length| vec![b'z'; length]),
        4 => Just(vec![b'\n']),
    ];
    proptest::collection::vec(line, 0..20).prop_map(|lines| lines.concat())
}

proptest! {
    #[test]
    fn nothing_is_lost_or_invented(input in output(), cuts in proptest::collection::vec(1usize..40_000, 0..8)) {
        let mut rest = input.as_slice();
        let mut pieces = Vec::new();
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        let log = framed(&pieces, 20_000).bytes;
        let mut expected = input.clone();
        if expected.last().is_some_and(|last| *last != b'\n') {
            expected.push(b'\n');
        }
        prop_assert_eq!(payload(&log), expected.len() as u64);
        prop_assert_eq!(parsed(&log), expected);
    }
}
