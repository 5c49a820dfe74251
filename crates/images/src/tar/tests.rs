#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::BufReader;
use std::process::Command;

use proptest::prelude::*;

use super::header;
use super::pax::Pax;
use super::*;

fn members(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    // A small buffer, so that everything is met in pieces.
    let mut reader = Reader::new(BufReader::with_capacity(100, bytes));
    let mut out = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut data = Vec::new();
        loop {
            let piece = reader.data()?.to_vec();
            if piece.is_empty() {
                break;
            }
            reader.consume(piece.len());
            data.extend(piece);
        }
        out.push((entry, data));
    }
    Ok(out)
}

/// A header block with a right checksum.
fn block(name: &str, flag: u8, size: &[u8]) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..124 + size.len()].copy_from_slice(size);
    block[156] = flag;
    block[257..263].copy_from_slice(b"ustar\0");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn refusal(bytes: &[u8]) -> String {
    members(bytes).unwrap_err().to_string()
}

/// An archive of GNU tar of a directory with a file, long names, a link and a sparse file.
fn gnu_tar(args: &[&str]) -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("t");
    let long = at.join("d".repeat(120)).join("e".repeat(150));
    std::fs::create_dir_all(&long).unwrap();
    std::fs::write(long.join("file"), "long").unwrap();
    std::os::unix::fs::symlink("x".repeat(300), at.join("link")).unwrap();
    let sparse = std::fs::File::create(at.join("sparse")).unwrap();
    for n in 0..40u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", n << 20).unwrap();
    }
    sparse.set_len(100 << 20).unwrap();
    let mut command = Command::new("tar");
    command
        .args(args)
        .args(["-C", dir.path().to_str().unwrap(), "-c", "t"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let bytes = output.stdout;
    (dir, bytes)
}

#[test]
fn gnu_and_pax_archives_with_long_names_and_every_sparse_form() {
    let forms: [&[&str]; 5] = [
        &["--format=gnu", "-S"],
        &["--format=pax", "-S", "--sparse-version=0.0"],
        &["--format=pax", "-S", "--sparse-version=0.1"],
        &["--format=pax", "-S", "--sparse-version=1.0"],
        &["--format=pax"],
    ];
    for form in forms {
        let (_dir, bytes) = gnu_tar(form);
        let members = members(&bytes).unwrap_or_else(|e| panic!("{form:?}: {e}"));
        let find = |end: &str| {
            members
                .iter()
                .find(|(e, _)| e.path.ends_with(end.as_bytes()))
                .unwrap()
        };
        let (file, data) = find("/file");
        assert_eq!(file.path.len(), 2 + 120 + 1 + 150 + 5, "{form:?}");
        assert_eq!(data, b"long");
        assert_eq!(find("t/link").0.link, vec![b'x'; 300]);
        let (sparse, data) = find("t/sparse");
        assert_eq!(sparse.size, 100 << 20, "{form:?}");
        if form.contains(&"-S") {
            let map = sparse.sparse.as_ref().unwrap();
            assert_eq!(map.iter().map(|e| e.length).sum::<u64>(), data.len() as u64);
            let at = map
                .iter()
                .find(|e| (e.offset..e.offset + e.length).contains(&(39 << 20)))
                .unwrap();
            assert_eq!(at.offset, 39 << 20, "{form:?}: {map:?}");
        }
    }
}

#[test]
fn numbers_in_both_forms() {
    assert_eq!(header::number(b"0000644\0", "n"), Ok(0o644));
    assert_eq!(header::number(b"   644 \0", "n"), Ok(0o644));
    assert_eq!(header::number(b"", "n"), Ok(0));
    assert_eq!(header::number(&[0; 8], "n"), Ok(0));
    assert_eq!(
        header::number(&[0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], "n"),
        Ok(1 << 32)
    );
    assert_eq!(header::number(&[0xff; 12], "n"), Ok(-1));
    assert!(header::number(b"12345678", "n").is_err());
    assert!(
        header::number(
            &[
                0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
            ],
            "n"
        )
        .is_err()
    );
}

#[test]
fn pax_records() {
    let pax =
        Pax::parse(b"12 path=a=b\n31 mtime=1700000000.1234567891\n26 SCHILY.xattr.user.k=\0v\n").unwrap();
    assert_eq!(pax.path.as_deref(), Some(&b"a=b"[..]));
    assert_eq!(pax.mtime, Some((1_700_000_000, 123_456_789)));
    assert_eq!(pax.xattrs, [(b"user.k".to_vec(), b"\0v".to_vec())]);
    assert_eq!(
        Pax::parse(b"14 mtime=-1.5\n").unwrap().mtime,
        Some((-2, 500_000_000))
    );
    // An empty value takes an earlier one back.
    assert_eq!(Pax::parse(b"10 path=a\n8 path=\n").unwrap().path, None);
    for wrong in [
        &b"x"[..],
        b"5 a\n",
        b"6 abc\n",
        b"99 a=b\n",
        b"0 a=b\n",
        b"6 a=b ",
        b"5 =b\n",
        b"99999999999 a=b\n",
        b"9 uid=-1\n",
    ] {
        assert!(Pax::parse(wrong).is_err(), "{:?}", String::from_utf8_lossy(wrong));
    }
}

#[test]
fn what_is_no_archive_is_refused_with_its_place() {
    let end = [0u8; 1024];
    assert!(members(&[]).unwrap().is_empty());
    assert!(members(&end).unwrap().is_empty());
    let mut wrong = block("a", b'0', b"00000000000");
    wrong[0] = b'b';
    assert!(refusal(&wrong).contains("byte 0: header checksum"));
    let file = block("a", b'0', b"00000000005");
    assert!(refusal(&file).contains("ends at byte 512 in the middle of a file"));
    assert!(refusal(&file[..100]).contains("in the middle of a header"));
    let lone = [&[0u8; 512][..], &block("a", b'0', b"0")].concat();
    assert!(refusal(&lone).contains("lone block of zeros"));
    assert!(refusal(&block("a", b'Q', b"0")).contains("'Q' is not supported"));
    assert!(refusal(&block("a", b'x', b"77777777777")).contains("1048576 are allowed"));
    assert!(refusal(&block("a", b'L', &[0x80, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0])).contains("are allowed"));
    assert!(refusal(&[&block("a", b'x', b"0")[..], &end].concat()).contains("belongs to no member"));
    // The largest size that a header can hold must not wrap anything.
    assert!(
        refusal(&block(
            "a",
            b'0',
            &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]
        ))
        .contains("out of range")
    );
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let file = |map: &str, size: u64, data: &[u8]| {
        let records = [
            ("GNU.sparse.map", map.to_owned()),
            ("GNU.sparse.size", size.to_string()),
        ];
        let mut text = String::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let len = body + if body + 2 < 100 { 2 } else { 3 };
            text += &format!("{len} {key}={value}\n");
        }
        let mut out = block("pax", b'x', format!("{:011o}", text.len()).as_bytes()).to_vec();
        out.extend_from_slice(text.as_bytes());
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out.extend_from_slice(&block("s", b'0', format!("{:011o}", data.len()).as_bytes()));
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out
    };
    assert_eq!(members(&file("0,1,9,1", 10, b"ab")).unwrap()[0].0.size, 10);
    for (map, size) in [
        ("0,1,0,1", 10),
        ("9,1,0,1", 10),
        ("0,1,9,2", 10),
        ("0,1", 10),
        ("0,1,1,18446744073709551615", 10),
        ("0,1,20,1", 10),
    ] {
        assert!(refusal(&file(map, size, b"ab")).contains("sparse map"), "{map}");
    }
}

fn sample() -> Vec<u8> {
    let mut out = Vec::new();
    let pax = b"20 path=some/where/\n22 SCHILY.xattr.user.a=b\n";
    out.extend_from_slice(&block("pax", b'x', format!("{:011o}", pax.len()).as_bytes()));
    out.extend_from_slice(pax);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out.extend_from_slice(&block("a", b'5', b"0"));
    out.extend_from_slice(&block("a/file", b'0', b"00000000010"));
    out.extend_from_slice(b"12345678");
    out.resize(out.len().next_multiple_of(BLOCK) + 1024, 0);
    out
}

proptest! {
    /// Mutations that fix the checksum again reach behind it.
    #[test]
    fn mutated_archives_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12), sealed in any::<bool>(), cut in any::<prop::sample::Index>()) {
        let mut bytes = sample();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if sealed {
            for at in [0, 1024, 1536] {
                let mut one: [u8; BLOCK] = bytes[at..at + BLOCK].try_into().unwrap();
                seal(&mut one);
                bytes[at..at + BLOCK].copy_from_slice(&one);
            }
        }
        if cut.index(4) == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = members(&bytes);
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = members(&bytes);
        let _ = Pax::parse(&bytes);
    }

    #[test]
    fn octal_numbers_come_back(n in 0i64..=0o77_777_777_777) {
        prop_assert_eq!(header::number(format!("{n:011o}\0").as_bytes(), "n"), Ok(n));
    }

    #[test]
    fn binary_numbers_come_back(n in any::<i64>()) {
        let mut field = [if n < 0 { 0xff } else { 0x80 }; 12];
        field[1..4].fill(if n < 0 { 0xff } else { 0 });
        field[4..].copy_from_slice(&n.to_be_bytes());
        prop_assert_eq!(header::number(&field, "n"), Ok(n));
    }
}
