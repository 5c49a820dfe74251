#![allow(clippy::unwrap_used, clippy::disallowed_methods)]
use super::*;

/// A member without data.
fn member(name: &str, flag: u8, link: &str) -> Vec<u8> {
    let mut block = vec![0u8; 512];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000755");
    put(108, "0000000");
    put(116, "0000000");
    put(124, "00000000000");
    put(136, "00000000000");
    put(157, link);
    put(257, "ustar\x0000");
    block[148..156].fill(b' ');
    block[156] = flag;
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Unpacks members into a directory that goes away; gives what was remembered and what is left for the commit.
fn unpack(members: impl Iterator<Item = Vec<u8>>) -> (usize, Unpacked) {
    let mut tar: Vec<u8> = members.flatten().collect();
    tar.resize(tar.len() + 1024, 0);
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (root, scratch) = (dir.path().join("root"), dir.path().join("scratch"));
    std::fs::create_dir(&root).unwrap();
    std::fs::create_dir(&scratch).unwrap();
    let limits = Limits::default();
    let mut unpacker = Unpacker::new(&root, &scratch, &limits).unwrap();
    unpacker.run(&mut Reader::new(&*tar)).unwrap();
    (unpacker.remembered, unpacker.finish())
}

#[test]
fn many_links_into_lower_layers_take_the_time_and_memory_of_many() {
    const MANY: usize = 40_000;
    let begun = std::time::Instant::now();
    let links = (0..MANY).map(|n| member(&n.to_string(), b'1', "lower"));
    // Each replaced directory may have had some of them below it.
    let replaced = (0..20).map(|n| member("x", if n % 2 == 0 { b'5' } else { b'0' }, ""));
    let (remembered, left) = unpack(links.chain(replaced));
    assert_eq!(left.pending.len(), MANY);
    assert!(remembered >= MANY * (LINK + "lower".len()), "{remembered}");
    // 40,000 times 40,000 would take minutes.
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}

#[test]
fn a_later_member_takes_the_place_of_links_that_wait() {
    let (_, left) = unpack(
        [
            ("d/in", b'1', "lower"),
            ("d/deep/in", b'1', "lower"),
            ("d-beside", b'1', "lower"),
            ("d0", b'1', "lower"),
            ("d", b'0', ""),
            ("twice", b'1', "lower"),
            ("twice", b'1', "other"),
            ("chain", b'1', "twice"),
        ]
        .into_iter()
        .map(|(name, flag, link)| member(name, flag, link)),
    );
    let waiting: Vec<(&[u8], &[u8])> = left.pending.iter().map(|(p, l)| (&**p, &*l.target)).collect();
    let expected: [(&[u8], &[u8]); 4] = [
        (b"chain", b"other"),
        (b"d-beside", b"lower"),
        (b"d0", b"lower"),
        (b"twice", b"other"),
    ];
    assert_eq!(waiting, expected);
}

#[test]
fn a_link_waits_for_the_old_file_once_its_target_is_hidden() {
    type Members = &'static [(&'static str, u8, &'static str)];
    const LINKED: (&str, u8, &str) = ("b", b'1', "d/a");
    let outdated = |link: &str, members: Members| {
        let members = members.iter().map(|(name, flag, link)| member(name, *flag, link));
        let (_, left) = unpack(members);
        left.pending[link.as_bytes()].outdated
    };
    let hidden: [Members; 12] = [
        &[LINKED, ("d/a", b'0', "")],
        &[LINKED, ("d/a", b'2', "x")],
        &[LINKED, ("d/a", b'5', "")],
        &[LINKED, ("d/a/in", b'0', "")],
        &[LINKED, ("d/a", b'1', "other")],
        &[LINKED, ("d", b'0', "")],
        &[LINKED, ("d/.wh.a", b'0', "")],
        &[LINKED, (".wh.d", b'0', "")],
        &[LINKED, ("d/.wh..wh..opq", b'0', "")],
        &[LINKED, (".wh..wh..opq", b'0', "")],
        // Through links of the layer, from either side.
        &[LINKED, ("s", b'2', "d"), ("s/a", b'0', "")],
        &[("s", b'2', "d"), ("b", b'1', "s/a"), ("d/a", b'0', "")],
    ];
    for members in hidden {
        assert!(outdated("b", members), "{members:?}");
    }
    let shown: [Members; 6] = [
        &[LINKED, ("d", b'5', ""), ("d/b", b'0', "")],
        &[LINKED, ("d/.wh.b", b'0', "")],
        &[LINKED, ("d-beside", b'0', ""), ("d0", b'0', "")],
        &[LINKED, ("d/a-beside", b'0', ""), (".wh.a", b'0', "")],
        &[LINKED, ("c", b'1', "d/a")],
        // The second link is to another file.
        &[LINKED, ("d/a", b'0', ""), ("b", b'1', "other")],
    ];
    for members in shown {
        assert!(!outdated("b", members), "{members:?}");
    }
    let chain: Members = &[LINKED, ("d/a", b'0', ""), ("c", b'1', "b")];
    assert!(outdated("c", chain));
    // A link in the place of its own target is to what was there.
    assert!(outdated("a", &[("a", b'1', "a")]));
}

#[test]
fn hiding_many_targets_again_and_again_takes_the_time_of_once() {
    const MANY: usize = 40_000;
    let begun = std::time::Instant::now();
    let links = (0..MANY).map(|n| member(&n.to_string(), b'1', &format!("d/{n}")));
    let hiding = (0..MANY).map(|_| member("d/.wh..wh..opq", b'0', ""));
    let (_, left) = unpack(links.chain(hiding));
    assert_eq!(left.pending.values().filter(|link| link.outdated).count(), MANY);
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}
