//! What layers become on disk and in a mount, with GNU tar as the judge of ordinary archives.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::tree::{self, Mounted, assert_same};
use common::{Member, Root, Tar, run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Unpacks archives over each other with GNU tar.
fn gnu_untar(archives: &[Vec<u8>], into: &Path) {
    std::fs::create_dir_all(into).unwrap();
    for archive in archives {
        let file = into.with_extension("tar");
        std::fs::write(&file, archive).unwrap();
        run(
            "tar",
            &[
                "-C",
                text(into),
                "--xattrs",
                "--xattrs-include=*",
                "--numeric-owner",
                "-xpf",
                text(&file),
            ],
        );
        std::fs::remove_file(file).unwrap();
    }
}

/// A tree with one of everything, archived by GNU tar.
fn everything(dir: &Path, args: &[&str]) -> Vec<u8> {
    let at = dir.join("all");
    std::fs::create_dir_all(at.join("d/deep/er")).unwrap();
    let file = |name: &str, data: &[u8], mode: u32| {
        std::fs::write(at.join(name), data).unwrap();
        std::fs::set_permissions(at.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    file("plain", b"hello", 0o644);
    file("d/setuid", b"#!", 0o4755);
    file("d/setgid", &vec![b'x'; 3_000_000], 0o2750);
    file("empty", b"", 0);
    file("named-äöü", b"utf-8", 0o600);
    std::fs::hard_link(at.join("plain"), at.join("d/hard")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", at.join("absolute")).unwrap();
    std::os::unix::fs::symlink("../../..", at.join("d/up")).unwrap();
    std::os::unix::fs::symlink("nowhere", at.join("dangling")).unwrap();
    let long = at.join("n".repeat(200)).join("m".repeat(100));
    std::fs::create_dir_all(&long).unwrap();
    std::fs::write(long.join("file"), "long").unwrap();
    let node = |name: &str, kind, mode, device| {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at.join(name),
            kind,
            rustix::fs::Mode::from_raw_mode(mode),
            device,
        )
        .unwrap();
    };
    node(
        "null",
        rustix::fs::FileType::CharacterDevice,
        0o666,
        rustix::fs::makedev(1, 3),
    );
    node(
        "block",
        rustix::fs::FileType::BlockDevice,
        0o660,
        rustix::fs::makedev(7, 300),
    );
    node("fifo", rustix::fs::FileType::Fifo, 0o600, 0);
    std::os::unix::fs::chown(at.join("d/setgid"), Some(1234), Some(3_000_000_000)).unwrap();
    std::fs::set_permissions(at.join("d/setgid"), std::fs::Permissions::from_mode(0o2750)).unwrap();
    std::os::unix::fs::lchown(at.join("dangling"), Some(5), Some(6)).unwrap();
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(at.join("plain"), "user.note", b"a=b\n\0c", none).unwrap();
    // cap_net_raw=ep, revision 2 (capabilities(7)).
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(at.join("named-äöü"), "security.capability", &capability, none).unwrap();
    let sparse = std::fs::File::create(at.join("sparse")).unwrap();
    for n in 0..30u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[b'y'; 5000], n << 17).unwrap();
    }
    sparse.set_len(50 << 20).unwrap();
    std::fs::set_permissions(at.join("d/deep"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let archive = dir.join("all.tar");
    run(
        "tar",
        &[args, &["-C", text(&at), "-cf", text(&archive), "."]].concat(),
    );
    std::fs::read(archive).unwrap()
}

#[tokio::test]
async fn ordinary_archives_unpack_as_with_gnu_tar() {
    let forms: [&[&str]; 5] = [
        &["--format=pax", "--xattrs", "--xattrs-include=*"],
        &[
            "--format=pax",
            "--xattrs",
            "--xattrs-include=*",
            "-S",
            "--sparse-version=1.0",
        ],
        &["--format=pax", "-S", "--sparse-version=0.0"],
        &["--format=gnu", "-S"],
        &["--format=gnu"],
    ];
    for form in forms {
        let work = tempfile::tempdir_in("/var/tmp").unwrap();
        let tar = everything(work.path(), form);
        let theirs = work.path().join("theirs");
        gnu_untar(std::slice::from_ref(&tar), &theirs);
        let root = Root::new();
        let layer = root.only_layer(tar).await;
        assert_same(&tree::list(&layer, true), &tree::list(&theirs, true));
        let blocks = |dir: &Path| std::fs::metadata(dir.join("sparse")).unwrap().blocks();
        if form.contains(&"-S") {
            assert!(
                blocks(&layer) < 1000,
                "{form:?}: holes were filled: {} blocks",
                blocks(&layer)
            );
        }
    }
}

/// Layers that only say what they change, over a base with merged directories, as Debian has it.
#[tokio::test]
async fn layers_mounted_over_each_other_are_what_unpacking_in_order_gives() {
    let base = Tar::default()
        .dir("./", 0o755, (0, 0))
        .dir("usr/", 0o755, (0, 0))
        .dir("usr/lib/", 0o751, (3, 4))
        .symlink("lib", "usr/lib")
        .dir("var/", 0o711, (1, 2))
        .dir("var/mail/", 0o2775, (0, 8))
        .file("var/mail/root", b"mail")
        .file("usr/lib/base.so", b"base")
        .file("tool", b"tool")
        .symlink("data", "var/mail")
        .end();
    // `lib/...` without `lib/`: goes where the link leads. GNU tar would follow an absolute link to the
    // host's files, so that only relative ones are compared.
    let second = Tar::default()
        .file("lib/new.so", b"new")
        .file("lib/sub/deep.so", b"deep")
        .dir("lib/owned/", 0o700, (9, 9))
        .file("lib/owned/x", b"x")
        .file("var/mail/user", b"user")
        .hard_link("var/mail/linked", "usr/lib/base.so")
        .hard_link("var/mail/again", "/var/mail/linked")
        .symlink("usr/link", "lib")
        .end();
    let third = Tar::default()
        .file("lib/third.so", b"third")
        .file("usr/link/over.so", b"over")
        // A directory of its own replaces a link.
        .dir("data/", 0o750, (5, 5))
        .file("data/file", b"data")
        .file("new/implied/file", b"n")
        .hard_link("tool2", "tool")
        .end();
    let layers = [base, second, third];
    let root = Root::new();
    let id = root.load(&layers).await.unwrap();
    let theirs = root.dir.path().join("theirs");
    gnu_untar(&layers, &theirs);
    let mounted = Mounted::new(&root.snapshot(&id).await);
    let ours = tree::list(&mounted.path, false);
    assert_same(&ours, &tree::list(&theirs, false));
    assert!(ours["usr/lib/sub/deep.so"].contains(" 4 "), "{ours:?}");
    assert!(ours["lib"].contains("-> usr/lib"));
}

#[tokio::test]
async fn absolute_links_of_lower_layers_lead_from_the_root_of_the_image() {
    let root = Root::new();
    let base = Tar::default()
        .dir("usr/lib/", 0o755, (0, 0))
        .symlink("abs", "/usr/lib")
        .symlink("gone", "/not/there")
        .end();
    let top = Tar::default()
        .file("abs/abs.so", b"abs")
        .file("gone/file", b"made")
        .end();
    let id = root.load(&[base, top]).await.unwrap();
    let mounted = Mounted::new(&root.snapshot(&id).await);
    assert_eq!(
        std::fs::read(mounted.path.join("usr/lib/abs.so")).unwrap(),
        b"abs"
    );
    assert_eq!(
        std::fs::read(mounted.path.join("not/there/file")).unwrap(),
        b"made"
    );
    assert!(mounted.path.join("abs").is_symlink() && mounted.path.join("gone").is_symlink());
}

#[tokio::test]
async fn whiteouts_and_opaque_directories_hide_what_is_below() {
    let base = Tar::default()
        .file("gone", b"1")
        .file("dir/gone", b"2")
        .file("dir/stays", b"3")
        .file("opaque/hidden", b"4")
        .file("opaque/sub/hidden", b"5")
        .file("replaced/hidden", b"6")
        .file("file-to-dir", b"7")
        .file("dir-to-file/x", b"8")
        .dir("usr/lib/", 0o755, (0, 0))
        .file("usr/lib/gone.so", b"9")
        .symlink("lib", "usr/lib")
        .end();
    let top = Tar::default()
        .file(".wh.gone", b"")
        .file("dir/.wh.gone", b"")
        .file("dir/.wh.never-there", b"")
        // The mark may come after what the layer itself has.
        .file("opaque/kept", b"a")
        .file("opaque/.wh..wh..opq", b"")
        .file(".wh.replaced", b"")
        .file("replaced/new", b"b")
        .file("file-to-dir/x", b"c")
        .file("dir-to-file", b"d")
        .file("lib/.wh.gone.so", b"")
        .file(".wh..wh.plnk/1.2", b"aufs")
        .end();
    let root = Root::new();
    let id = root.load(&[base, top]).await.unwrap();
    let mounted = Mounted::new(&root.snapshot(&id).await);
    let files: Vec<String> = tree::list(&mounted.path, false)
        .into_iter()
        .filter(|(_, line)| line.starts_with("100"))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        files,
        [
            "dir-to-file",
            "dir/stays",
            "file-to-dir/x",
            "opaque/kept",
            "replaced/new"
        ]
    );
    for (path, there) in [
        ("dir/stays", true),
        ("gone", false),
        ("opaque/hidden", false),
        ("lib/gone.so", false),
        ("replaced/new", true),
    ] {
        assert_eq!(
            root.images.read_file(&id, path, 100).unwrap().is_some(),
            there,
            "{path}"
        );
    }
}

#[tokio::test]
async fn entries_below_a_lower_link_to_the_root_go_there() {
    let root = Root::new();
    let base = Tar::default()
        .symlink("all", "/")
        .symlink("sub/up", "..")
        .file("file", b"1")
        .end();
    let top = Tar::default()
        .dir("all/dir/", 0o750, (3, 4))
        .file("all/dir/x", b"2")
        .file("sub/up/made/y", b"3")
        .hard_link("all/dir/link", "file")
        .end();
    let id = root.load(&[base, top]).await.unwrap();
    let snapshot = root.snapshot(&id).await;
    let layer = &snapshot.lowers[0];
    let read = |path: &str| std::fs::read_to_string(layer.join(path)).unwrap();
    assert_eq!((read("dir/x"), read("made/y")), ("2".to_owned(), "3".to_owned()));
    assert_eq!(read("dir/link"), "1");
    let meta = std::fs::metadata(layer.join("dir")).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime()),
        (0o750, 3, 4, 1_600_000_000)
    );
    assert!(!layer.join("all").exists() && !layer.join("sub/up").exists());
}

#[tokio::test]
async fn an_opaque_root_hides_all_layers_below() {
    let root = Root::new();
    let base = Tar::default().dir("./", 0o700, (1, 1)).file("hidden", b"1").end();
    let top = Tar::default()
        .dir("./", 0o711, (2, 2))
        .file(".wh..wh..opq", b"")
        .file("seen", b"2")
        .end();
    let id = root.load(&[base, top]).await.unwrap();
    let snapshot = root.snapshot(&id).await;
    assert_eq!(snapshot.lowers.len(), 1);
    let mounted = Mounted::new(&snapshot);
    let names: Vec<String> = tree::list(&mounted.path, false).into_keys().collect();
    assert_eq!(names, ["", "seen"]);
    let meta = std::fs::metadata(&mounted.path).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o711, 2, 2));
}

#[tokio::test]
async fn later_members_replace_earlier_ones_of_the_same_layer() {
    let root = Root::new();
    let layer = root
        .only_layer(
            Tar::default()
                .file("a", b"file")
                .dir("a/", 0o750, (0, 0))
                .file("a/in", b"1")
                .file("b/deep/er", b"2")
                .file("b", b"file now")
                .symlink("c", "a")
                .file("c/through", b"3")
                .file("c", b"file now")
                .file("d", b"old")
                .hard_link("e", "d")
                .file("d", b"new")
                .hard_link("d", "d")
                .end(),
        )
        .await;
    let read = |name: &str| std::fs::read_to_string(layer.join(name)).unwrap();
    assert_eq!((read("a/in").as_str(), read("a/through").as_str()), ("1", "3"));
    assert_eq!((read("b").as_str(), read("c").as_str()), ("file now", "file now"));
    assert_eq!((read("d").as_str(), read("e").as_str()), ("new", "old"));
}

/// A hard link is to what its target is when the link's entry comes, whatever the archive does to that name later.
#[tokio::test]
async fn later_members_do_not_change_what_a_link_into_a_lower_layer_is_to() {
    type Case = (&'static str, Tar, &'static [(&'static str, &'static str)]);
    let base = Tar::default()
        .file("a", b"old")
        .file("d/a", b"old")
        .file("d/other", b"other")
        .symlink("l", "d")
        .end();
    let link = |target: &str| Tar::default().hard_link("b", target);
    // What paths have in the end; nothing where there is no file.
    let cases: [Case; 15] = [
        (
            "the link's own name removed",
            link("a").file(".wh.b", b""),
            &[("a", "old"), ("b", "old")],
        ),
        ("shown", link("a"), &[("a", "old"), ("b", "old")]),
        (
            "shown through a link",
            link("l/a"),
            &[("d/a", "old"), ("b", "old")],
        ),
        (
            "made later",
            link("a").file("a", b"new"),
            &[("a", "new"), ("b", "old")],
        ),
        (
            "made before",
            Tar::default().file("a", b"new").hard_link("b", "a"),
            &[("a", "new"), ("b", "new")],
        ),
        (
            "a directory later",
            link("a").file("a/x", b"x"),
            &[("a/x", "x"), ("b", "old")],
        ),
        (
            "removed",
            link("a").file(".wh.a", b""),
            &[("a", ""), ("b", "old")],
        ),
        (
            "its directory removed",
            link("d/a").file(".wh.d", b""),
            &[("d/a", ""), ("b", "old")],
        ),
        (
            "its directory removed and made again",
            link("d/a").file(".wh.d", b"").file("d/a", b"new"),
            &[("d/a", "new"), ("d/other", ""), ("b", "old")],
        ),
        (
            "its directory emptied",
            link("d/a").file("d/.wh..wh..opq", b""),
            &[("d/a", ""), ("d/other", ""), ("b", "old")],
        ),
        (
            "everything removed",
            link("a").file(".wh..wh..opq", b""),
            &[("a", ""), ("d/a", ""), ("b", "old")],
        ),
        (
            "its directory a file",
            link("d/a").file("d", b"file"),
            &[("d", "file"), ("b", "old")],
        ),
        (
            "made later through a lower link",
            link("l/a").file("l/a", b"new"),
            &[("d/a", "new"), ("b", "old")],
        ),
        (
            "a link itself later",
            link("a").hard_link("a", "d/other"),
            &[("a", "other"), ("b", "old")],
        ),
        (
            "only made later",
            link("new").file("new", b"new"),
            &[("new", "new"), ("b", "new")],
        ),
    ];
    for (case, top, expected) in cases {
        let root = Root::new();
        let loaded = root.load(&[base.clone(), top.end()]).await;
        let id = loaded.unwrap_or_else(|e| panic!("{case}: {}", common::chain(&e)));
        for (path, content) in expected {
            let read = root.images.read_file(&id, path, 100).unwrap().unwrap_or_default();
            assert_eq!(String::from_utf8(read).unwrap(), *content, "{case}: {path}");
        }
    }
}

#[tokio::test]
async fn links_to_a_lower_file_that_is_replaced_later_are_as_with_gnu_tar() {
    let base = Tar::default()
        .dir("usr/", 0o755, (0, 0))
        .dir("usr/lib/", 0o755, (0, 0))
        .file("usr/lib/lib.so", b"old library")
        .member(&Member {
            name: "tool",
            mode: 0o4750,
            owner: (3, 4),
            data: b"old tool",
            ..Member::default()
        })
        .end();
    let top = Tar::default()
        .hard_link("kept", "tool")
        .hard_link("also", "tool")
        .hard_link("chained", "kept")
        .file("tool", b"new tool")
        .hard_link("now", "tool")
        .hard_link("late", "kept")
        .symlink("s", "usr/lib")
        .hard_link("through", "s/lib.so")
        .file("usr/lib/lib.so", b"new library")
        .end();
    let layers = [base, top];
    let root = Root::new();
    let id = root.load(&layers).await.unwrap();
    let theirs = root.dir.path().join("theirs");
    gnu_untar(&layers, &theirs);
    let mounted = Mounted::new(&root.snapshot(&id).await);
    let ours = tree::list(&mounted.path, false);
    // One file under four names, with the attributes of the lower one.
    assert!(
        ours["kept"].contains("104750 3:4") && ours["late"].contains("same as also"),
        "{ours:?}"
    );
    assert_same(&ours, &tree::list(&theirs, false));
}

#[tokio::test]
async fn device_numbers_and_attributes_are_checked() {
    let root = Root::new();
    let device = |major, minor| {
        Tar::default()
            .member(&Member {
                name: "dev",
                flag: b'3',
                device: (major, minor),
                ..Member::default()
            })
            .end()
    };
    assert!(
        root.refusal(&[device(4096, 0)])
            .await
            .contains("impossible device numbers 4096:0")
    );
    let attribute = |name: &str| {
        Tar::default()
            .pax(&[(&format!("SCHILY.xattr.{name}"), b"y")])
            .file("f", b"")
            .end()
    };
    let text = root.refusal(&[attribute("trusted.overlay.opaque")]).await;
    assert!(
        text.contains("entry \"f\": has the attribute trusted.overlay.opaque"),
        "{text}"
    );
    assert!(
        root.refusal(&[attribute("user.")])
            .await
            .contains("cannot be set")
    );
    // Labels of the host's security modules are not the image's to give, and are left out.
    let layer = root.only_layer(attribute("security.selinux")).await;
    assert!(!tree::list(&layer, false)["f"].contains("selinux"));
    let id = |uid: &[u8]| Tar::default().pax(&[("uid", uid)]).file("f", b"").end();
    let one = Root::new();
    assert!(
        one.refusal(&[id(b"4294967295")])
            .await
            .contains("uid 4294967295 is out of range")
    );
}
