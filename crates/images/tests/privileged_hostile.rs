//! Layers that try to get out, or to use up the machine. Each is refused with a text that names what is wrong, or stays inside.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{Member, Root, Tar, tree};
use holdfast_images::{Config, Limits};
use proptest::prelude::*;

/// Names that lead out of the layer when they are taken at their word.
const OUTSIDE: &str = "/var/tmp/holdfast-test-outside";

#[tokio::test]
async fn names_that_leave_the_layer_are_refused() {
    let root = Root::new();
    for name in ["../escape", "a/../../escape", "..", "a/..", "/../escape"] {
        let text = root.refusal(&[Tar::default().file(name, b"x").end()]).await;
        assert!(text.contains("'..' in a path"), "{name}: {text}");
    }
    let text = root
        .refusal(&[Tar::default().hard_link("a", "../../etc/passwd").end()])
        .await;
    assert!(text.contains("'..' in a path"), "{text}");
    let text = root
        .refusal(&[Tar::default().pax(&[("path", b"a\0b")]).file("x", b"").end()])
        .await;
    assert!(text.contains("has a NUL"), "{text}");
    let long = vec![b'a'; 5000];
    let text = root
        .refusal(&[Tar::default().pax(&[("path", &long)]).file("x", b"").end()])
        .await;
    assert!(text.contains("4095 are allowed"), "{text}");
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.x/y"] {
        let text = root.refusal(&[Tar::default().file(name, b"").end()]).await;
        assert!(text.contains("whiteout of nothing"), "{name}: {text}");
    }
}

#[tokio::test]
async fn links_of_the_host_are_not_reached() {
    let root = Root::new();
    // A hard link names a file of the layer, absolute or not; the host's is none.
    let text = root
        .refusal(&[Tar::default().hard_link("stolen", "/etc/passwd").end()])
        .await;
    assert!(
        text.contains("hard link to \"etc/passwd\", which does not exist"),
        "{text}"
    );
    let text = root
        .refusal(&[Tar::default()
            .symlink("etc", "/etc")
            .hard_link("stolen", "etc/passwd")
            .end()])
        .await;
    assert!(text.contains("symbolic links"), "{text}");
    let before = std::fs::read("/etc/passwd").unwrap();
    let layer = root
        .only_layer(
            Tar::default()
                .symlink("abs", "/etc")
                .symlink("up", "../../../../../../../../etc")
                .symlink("p", "/proc/self/root/etc")
                .symlink("s", "/proc/self/cwd")
                .file("abs/passwd", b"1")
                .file("up/shadow", b"2")
                .file("p/group", b"3")
                .file("s/x", b"4")
                .symlink("passwd", "/etc/passwd")
                .file("passwd", b"5")
                .end(),
        )
        .await;
    assert_eq!(std::fs::read("/etc/passwd").unwrap(), before);
    let expected = [
        ("etc/passwd", "1"),
        ("etc/shadow", "2"),
        ("proc/self/root/etc/group", "3"),
        ("proc/self/cwd/x", "4"),
        ("passwd", "5"),
    ];
    for (path, data) in expected {
        assert_eq!(std::fs::read_to_string(layer.join(path)).unwrap(), data, "{path}");
    }
}

#[tokio::test]
async fn circles_and_depth_end() {
    let root = Root::new();
    let text = root
        .refusal(&[Tar::default()
            .symlink("a", "b")
            .symlink("b", "a")
            .file("a/x", b"")
            .end()])
        .await;
    assert!(text.contains("symbolic links"), "{text}");
    // Links build a tree deeper than any path can name.
    let mut tar = Tar::default();
    let deep = "d/".repeat(400);
    for n in 0..4 {
        let from = if n == 0 {
            String::new()
        } else {
            format!("l{}/", n - 1)
        };
        let path = format!("{from}{deep}x");
        tar = tar.pax(&[("path", path.as_bytes())]).file("x", b"");
        let link = format!("{from}{}", deep.trim_end_matches('/'));
        tar = tar
            .pax(&[("linkpath", link.as_bytes())])
            .symlink(&format!("l{n}"), "x");
    }
    let text = root.refusal(&[tar.end()]).await;
    assert!(
        text.contains("more than 1024 directories within each other"),
        "{text}"
    );
    // A link of a lower layer that leads into itself.
    let base = Tar::default().symlink("loop", "loop/in").end();
    let text = root
        .refusal(&[base, Tar::default().file("loop/x", b"").end()])
        .await;
    assert!(text.contains("symbolic link"), "{text}");
}

#[tokio::test]
async fn what_was_moved_through_a_link_goes_with_a_refused_layer() {
    let root = Root::new();
    let base = Tar::default()
        .dir("usr/lib/", 0o755, (0, 0))
        .symlink("lib", "usr/lib")
        .end();
    // Both have the same directories, more within each other than are merged.
    let deep = "d/".repeat(70);
    let (moved, there) = (format!("lib/{deep}x"), format!("usr/lib/{deep}y"));
    let top = Tar::default()
        .pax(&[("path", moved.as_bytes())])
        .file("x", b"1")
        .pax(&[("path", there.as_bytes())])
        .file("y", b"2")
        .end();
    for _ in 0..2 {
        // Checks that nothing is left in the scratch directory either.
        let text = root.refusal(&[base.clone(), top.clone()]).await;
        assert!(
            text.contains("through the symbolic link \"lib\": File name too long"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn members_that_cannot_be_are_refused() {
    let root = Root::new();
    let cases: [(Tar, &str); 7] = [
        (
            Tar::default().file("a", b"").file("a/b", b""),
            "below a file that is not a directory",
        ),
        (
            Tar::default().dir("d/", 0o755, (0, 0)).hard_link("h", "d"),
            "hard link to a directory",
        ),
        (
            Tar::default().file(".wh.x", b"").hard_link("h", "x"),
            "file that its own layer removes",
        ),
        (
            Tar::default().file(".wh.d", b"").hard_link("h", "d/x"),
            "file that its own layer removes",
        ),
        (Tar::default().hard_link("h", "/"), "hard link to the root"),
        (Tar::default().file("/", b""), "replace the root directory"),
        (
            Tar::default().member(&Member {
                name: "q",
                flag: b'Q',
                ..Member::default()
            }),
            "'Q' is not supported",
        ),
    ];
    for (tar, part) in cases {
        // A trailing slash makes a directory of it; this one is about a file.
        let tar = if part.contains("replace the root") {
            Tar::default().member(&Member {
                name: ".",
                flag: b'2',
                link: "x",
                ..Member::default()
            })
        } else {
            tar
        };
        let text = root.refusal(&[tar.end()]).await;
        assert!(text.contains(part), "{part}: {text}");
    }
    let base = Tar::default().file("file", b"").symlink("link", "file").end();
    let text = root
        .refusal(&[base, Tar::default().file("link/x", b"").end()])
        .await;
    assert!(text.contains("below a symbolic link to a file"), "{text}");
}

#[tokio::test]
async fn bombs_are_stopped_by_their_limits() {
    let small = |limits: Limits| {
        Root::with(&Config {
            limits,
            ..Config::default()
        })
    };
    let tar = Tar::default().file("zeros", &vec![0; 3 << 20]).end();
    let root = small(Limits {
        layer_bytes: 1 << 20,
        ..Limits::default()
    });
    let text = root.refusal(std::slice::from_ref(&tar)).await;
    assert!(text.contains("more than 1048576 bytes when unpacked"), "{text}");
    let root = small(Limits {
        layer_entries: 5,
        ..Limits::default()
    });
    let many = (0..6)
        .fold(Tar::default(), |tar, n| tar.file(&n.to_string(), b""))
        .end();
    let text = root.refusal(&[many]).await;
    assert!(text.contains("more than 5 entries"), "{text}");
    let root = small(Limits {
        reserve_bytes: u64::MAX,
        ..Limits::default()
    });
    let text = root.refusal(std::slice::from_ref(&tar)).await;
    assert!(text.contains("bytes left"), "{text}");
    // A file may say that it is as large as it likes, as long as it is a hole.
    let root = Root::new();
    let hole = Tar::default()
        .pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"1000000000000")])
        .file("hole", b"x")
        .end();
    let layer = root.only_layer(hole).await;
    assert_eq!(
        std::fs::metadata(layer.join("hole")).unwrap().len(),
        1_000_000_000_000
    );
    assert!(root.images.fs_info().used_bytes < 1 << 20);
}

#[tokio::test]
async fn files_that_a_link_copies_up_keep_their_holes_and_count() {
    let base = Tar::default()
        .pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"2000000000")])
        .file("hole", b"x")
        .file("big", &vec![1; 3 << 20])
        .end();
    let root = Root::new();
    let top = Tar::default().hard_link("link", "hole").end();
    let id = root.load(&[base.clone(), top]).await.unwrap();
    let meta = std::fs::metadata(root.snapshot(&id).await.lowers[0].join("link")).unwrap();
    assert_eq!((meta.len(), meta.nlink()), (2_000_000_000, 2));
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    // What is copied is the layer's, as if it were in its archive.
    let root = Root::with(&Config {
        limits: Limits {
            layer_bytes: 4 << 20,
            ..Limits::default()
        },
        ..Config::default()
    });
    let top = Tar::default()
        .file("own", &vec![2; 2 << 20])
        .hard_link("link", "big")
        .end();
    let text = root.refusal(&[base, top]).await;
    assert!(
        text.contains(
            "more than 4194304 bytes when unpacked, with the files of lower layers that it links to"
        ),
        "{text}"
    );
}

/// Hard links through a lower link that goes deep down and step by step up again: half a million look-ups each.
fn costly() -> [Vec<u8>; 2] {
    let deep = "d/".repeat(1000);
    let target = format!("{deep}{}", "../".repeat(690));
    let (below, near) = (format!("{deep}file"), format!("{}near", "d/".repeat(310)));
    let base = Tar::default()
        .pax(&[("path", below.as_bytes())])
        .file("x", b"1")
        .pax(&[("path", near.as_bytes())])
        .file("x", b"2")
        .pax(&[("linkpath", target.as_bytes())])
        .symlink("s", "x")
        .end();
    let top = (0..2000).fold(Tar::default(), |tar, n| {
        tar.hard_link(&format!("link{n}"), "s/near")
    });
    [base, top.end()]
}

#[tokio::test]
async fn links_that_ask_for_billions_of_lookups_are_refused() {
    let root = Root::with(&Config {
        limits: Limits {
            lookups: 20_000,
            ..Limits::default()
        },
        ..Config::default()
    });
    let text = root.refusal(&costly()).await;
    assert!(
        text.contains("more than 20000 places to look up in the layers of its image"),
        "{text}"
    );
    // All layers of an image have one account, and directories that are only implied cost one look-up in each layer below.
    let layer = |n: usize| {
        let path = format!("{}{n}", "d/".repeat(300));
        Tar::default()
            .pax(&[("path", path.as_bytes())])
            .file("x", b"")
            .end()
    };
    let image = |count: usize| (0..count).map(layer).collect::<Vec<_>>();
    root.load(&image(3)).await.unwrap();
    let error = root.load(&image(12)).await.unwrap_err();
    assert!(common::chain(&error).contains("places to look up"), "{error}");
}

#[tokio::test]
async fn links_that_lead_to_and_fro_are_refused() {
    let target = "d/../".repeat(818);
    let tar = Tar::default()
        .dir("d/", 0o755, (0, 0))
        .pax(&[("linkpath", target.as_bytes())])
        .symlink("s", "x");
    // Each is in another directory than the one before.
    let tar = (0..1000).fold(tar, |tar, n| {
        tar.file(&format!("s/{n}"), b"").file(&format!("d/{n}"), b"")
    });
    let text = Root::new().refusal(&[tar.end()]).await;
    assert!(
        text.contains("directories and links on the ways to its entries"),
        "{text}"
    );
}

#[tokio::test]
async fn costly_work_ends_with_the_load_that_nobody_waits_for() {
    let root = Root::new();
    let given_up = tokio::time::timeout(std::time::Duration::from_secs(4), root.load(&costly())).await;
    assert!(given_up.is_err(), "it is not costly any more");
    // What was being put over the layer below goes at once.
    root.assert_tmp_empty().await;
    assert!(root.images.list(None).is_empty());
    assert!(root.layer_dirs().len() <= 1, "{:?}", root.layer_dirs());
}

fn name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "..",
        ".",
        "",
        "lnk",
        ".wh.a",
        ".wh..wh..opq",
        "var",
        "tmp",
    ]);
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

fn member() -> impl Strategy<Value = (u8, String, String)> {
    let target = prop_oneof![
        name(),
        Just(OUTSIDE.to_owned()),
        Just(format!("{OUTSIDE}/file")),
        Just("../../../../../../../../../..".to_owned() + OUTSIDE)
    ];
    (
        prop::sample::select(vec![b'0', b'0', b'5', b'2', b'2', b'1']),
        name(),
        target,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever members say, in one layer or over another, nothing outside changes and nothing is left of what was refused.
    #[test]
    fn no_archive_reaches_outside(layers in prop::collection::vec(prop::collection::vec(member(), 1..10), 1..3)) {
        let outside = Path::new(OUTSIDE);
        std::fs::create_dir_all(outside).unwrap();
        std::fs::write(outside.join("file"), "untouched").unwrap();
        let before = tree::list(outside, true);
        let tars: Vec<Vec<u8>> = layers
            .iter()
            .map(|members| {
                let tar = members.iter().fold(Tar::default(), |tar, (flag, name, link)| {
                    let data: &[u8] = if *flag == b'0' { b"evil" } else { b"" };
                    tar.member(&Member { name, flag: *flag, link: if matches!(flag, b'1' | b'2') { link } else { "" }, data, ..Member::default() })
                });
                tar.end()
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let root = Root::new();
            let loaded = root.load(&tars).await;
            root.assert_tmp_empty().await;
            if let Ok(id) = loaded {
                // What was accepted can also be read through the merged view without leaving it.
                for (_, name, link) in layers.iter().flatten() {
                    let _ = root.images.read_file(&id, name, 100);
                    let read = root.images.read_file(&id, link, 100).ok().flatten();
                    prop_assert_ne!(read, Some(b"untouched".to_vec()));
                }
            }
            Ok(())
        })?;
        prop_assert_eq!(tree::list(outside, true), before);
        std::fs::remove_dir_all(outside).unwrap();
    }
}
