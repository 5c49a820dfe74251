#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn full_forms() {
    let digest = format!("sha256:{HEX}");
    for (input, wanted) in [
        ("busybox", "docker.io/library/busybox:latest".to_owned()),
        ("busybox:1.36", "docker.io/library/busybox:1.36".into()),
        ("team/app", "docker.io/team/app:latest".into()),
        ("docker.io/busybox", "docker.io/library/busybox:latest".into()),
        (
            "index.docker.io/busybox",
            "docker.io/library/busybox:latest".into(),
        ),
        ("localhost/app", "localhost/app:latest".into()),
        ("localhost:5000/app:x", "localhost:5000/app:x".into()),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest".into()),
        ("[::1]:5000/a", "[::1]:5000/a:latest".into()),
        ("[2001:db8::1]/a:t", "[2001:db8::1]/a:t".into()),
        ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9".into()),
        ("Upper/app", "Upper/app:latest".into()),
        ("a.b/c__d/e-f--g.h_i", "a.b/c__d/e-f--g.h_i:latest".into()),
        ("quay.io/x/y:T_a.g-1", "quay.io/x/y:T_a.g-1".into()),
        (
            &format!("busybox@{digest}"),
            format!("docker.io/library/busybox@{digest}"),
        ),
        (&format!("r.io:1/x:t@{digest}"), format!("r.io:1/x:t@{digest}")),
    ] {
        let reference = Reference::parse(input).unwrap();
        assert_eq!(reference.to_string(), wanted, "{input}");
    }
}

#[test]
fn parts() {
    let reference = Reference::parse(&format!("r.io:1/x/y:t@sha256:{HEX}")).unwrap();
    assert_eq!(reference.registry(), "r.io:1");
    assert_eq!(reference.repository(), "x/y");
    assert_eq!(reference.tag(), Some("t"));
    assert_eq!(reference.digest().unwrap().hex(), HEX);
    assert_eq!(reference.tagged().as_deref(), Some("r.io:1/x/y:t"));
    assert_eq!(
        reference.with_digest(&Digest::sha256(b"")),
        format!("r.io:1/x/y@sha256:{HEX}")
    );
}

#[test]
fn refusals_say_what_is_wrong() {
    let long_tag = format!("a:{}", "t".repeat(129));
    let long_name = format!("r.io/{}", "a".repeat(256));
    for (input, part) in [
        ("", "is empty"),
        ("a b", "character ' '"),
        ("a\u{0}", "character '\\0'"),
        ("a\n", "character '\\n'"),
        ("ünï/x", "character 'ü'"),
        ("https://r.io/x", "scheme"),
        ("Busybox", "upper-case"),
        ("r.io/App", "upper-case"),
        ("r.io/", "no repository"),
        ("/x", "empty part"),
        ("r.io//x", "empty part"),
        ("x/", "empty part"),
        ("x:", "no tag"),
        ("x:-a", "separator"),
        ("x:a$", "'$' in its tag"),
        ("x@", "no colon"),
        ("x@sha256:00", "hex digits"),
        ("x@md5:00", "unsupported"),
        ("a..b", "single separators"),
        ("a___b", "single separators"),
        ("-a", "single separators"),
        ("a._b", "single separators"),
        ("r.io/../x", "single separators"),
        ("r.io:0/x", "port"),
        ("r.io:99999/x", "port"),
        ("r.io:/x", "port"),
        (":5000/x", "no registry"),
        ("-r.io/x", "no host name"),
        ("r..io/x", "no host name"),
        ("[::1/x", "bracket"),
        ("[zz:]/x", "no IPv6"),
        ("r.io/x?y", "'?'"),
        (HEX, "image id"),
        (&long_tag, "129 characters"),
        (&long_name, "256 characters"),
    ] {
        let error = Reference::parse(input)
            .map(|r| r.to_string())
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{input:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    assert!(
        Reference::parse(&"a/".repeat(100_000))
            .unwrap_err()
            .to_string()
            .len()
            < 400
    );
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(input in "\\PC{0,300}") {
        if let Ok(reference) = Reference::parse(&input) {
            let text = reference.to_string();
            prop_assert_eq!(Reference::parse(&text).unwrap(), reference);
        }
    }

    #[test]
    fn near_references_are_stable(input in "[a-zA-Z0-9._:/@\\[\\]-]{1,60}") {
        if let Ok(reference) = Reference::parse(&input) {
            let text = reference.to_string();
            prop_assert_eq!(Reference::parse(&text).unwrap(), reference.clone());
            prop_assert!(reference.tag().is_some() || reference.digest().is_some());
            // What becomes a directory name or a URL path must not climb.
            prop_assert!(!reference.registry().contains('/') && !reference.registry().contains(".."));
            prop_assert!(reference.repository().split('/').all(|c| !c.is_empty() && c != "." && c != ".."));
        }
    }

    #[test]
    fn good_parts_are_kept(
        registry in "[a-z]{1,8}(\\.[a-z0-9]{1,8}){1,2}(:[1-9][0-9]{0,3})?",
        repository in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}(/[a-z0-9]{1,8}){1,3}",
        tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}",
    ) {
        let reference = Reference::parse(&format!("{registry}/{repository}:{tag}")).unwrap();
        prop_assert_eq!(reference.registry(), registry);
        prop_assert_eq!(reference.repository(), repository);
        prop_assert_eq!(reference.tag(), Some(tag.as_str()));
    }
}
