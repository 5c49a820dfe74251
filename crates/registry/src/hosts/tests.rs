#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

fn parse_as(dir: &str, text: &str, registry: &str) -> Result<Vec<Entry>, String> {
    parse::parse(Path::new(dir).join(FILE).as_path(), text, registry).map_err(|e| e.to_string())
}

fn shape(entries: &[Entry]) -> Vec<String> {
    let flag = |b: bool, c: char| if b { c } else { '-' };
    entries
        .iter()
        .map(|e| {
            format!(
                "{}{} {}{}{}",
                e.origin,
                e.path,
                flag(e.pull, 'p'),
                flag(e.resolve, 'r'),
                flag(e.is_registry, 'R')
            )
        })
        .collect()
}

fn hosts(text: &str, registry: &str) -> Vec<String> {
    shape(&parse_as("/c/x", text, registry).unwrap())
}

#[test]
fn order_paths_and_trust() {
    let text = r#"
server = "https://upstream.example"

[host."https://z-first.example:8443"]
  capabilities = ["pull", "resolve"]
[host."http://second.local"]
  capabilities = ["pull"]
[host."https://second.local/harbor/v2/proxy"]
  override_path = true
[host."a-third.example/prefix"]
  capabilities = "resolve"
[host."http://localhost:5000/v2/"]
"#;
    assert_eq!(
        hosts(text, "docker.io"),
        [
            "https://z-first.example:8443/v2 pr-",
            "http://second.local/v2 p--",
            "https://second.local/harbor/v2/proxy pr-",
            "https://a-third.example/prefix/v2 -r-",
            "http://localhost:5000/v2 pr-",
            "https://upstream.example/v2 prR",
        ]
    );
}

#[test]
fn the_server_is_the_registry_itself_by_default() {
    assert_eq!(hosts("", "docker.io"), ["https://registry-1.docker.io/v2 prR"]);
    assert_eq!(hosts("server = \"\"", "r.io:5000"), ["https://r.io:5000/v2 prR"]);
    assert_eq!(hosts("", "localhost:5000"), ["http://localhost:5000/v2 prR"]);
    assert_eq!(hosts("", "[::1]:5000"), ["http://[::1]:5000/v2 prR"]);
    assert_eq!(hosts("", "127.0.0.1:443"), ["https://127.0.0.1/v2 prR"]);
    assert_eq!(
        hosts("skip_verify = true", "127.0.0.1:5000"),
        ["https://127.0.0.1:5000/v2 prR"]
    );
    assert_eq!(
        hosts("[host.\"https://r.io:5000\"]", "r.io:5000"),
        ["https://r.io:5000/v2 prR"]
    );
    assert_eq!(
        hosts(
            "server = \"http://10.0.0.1:5000\"\n[host.\"http://10.0.0.1:5000\"]\nskip_verify = true",
            "10.0.0.1:5000"
        ),
        ["http://10.0.0.1:5000/v2 prR"]
    );
    assert_eq!(
        hosts("[host.\"http://r.io\"]", "r.io"),
        ["http://r.io/v2 prR", "https://r.io/v2 prR"]
    );
}

#[test]
fn a_server_for_all_is_not_trusted_with_credentials() {
    let entries = parse_as("/c/_default", "server = \"https://proxy.example\"", "r.io").unwrap();
    assert_eq!(shape(&entries), ["https://proxy.example/v2 pr-"]);
}

#[test]
fn all_settings() {
    let text = r#"
ca = "root.pem"
[host."https://m"]
ca = ["/abs/a.pem", "b.pem"]
client = [["c.pem", "c.key"], ["both.pem", ""]]
skip_verify = true
dial_timeout = "1.5s"
[host."https://m".header]
x-one = "1"
x-many = ["2", "3"]
[host."https://n"]
client = "one.pem"
[host."https://o"]
client = ["one.pem", "two.pem"]
"#;
    let entries = parse_as("/c/x", text, "r.io").unwrap();
    let m = &entries[0];
    assert_eq!(m.tls.ca, [PathBuf::from("/abs/a.pem"), "/c/x/b.pem".into()]);
    assert_eq!(
        m.tls.client,
        [
            ("/c/x/c.pem".into(), Some("/c/x/c.key".into())),
            ("/c/x/both.pem".into(), None)
        ]
    );
    assert!(m.tls.skip_verify);
    assert_eq!(m.dial_timeout, Some(Duration::from_millis(1500)));
    let headers: Vec<_> = m
        .headers
        .iter()
        .map(|(k, v)| (k.as_str(), v.to_str().unwrap()))
        .collect();
    assert_eq!(headers, [("x-many", "2"), ("x-many", "3"), ("x-one", "1")]);
    assert!(
        !format!("{m:?}").contains("\"3\""),
        "header values are often credentials"
    );
    assert_eq!(entries[1].tls.client, [("/c/x/one.pem".into(), None)]);
    assert_eq!(entries[2].tls.client.len(), 2);
    assert_eq!(entries[3].tls.ca, [PathBuf::from("/c/x/root.pem")]);
}

#[test]
fn refusals_name_file_and_line() {
    for (text, line, part) in [
        ("a = ", 1, ""),
        ("\n\nserverr = \"x\"", 3, "unknown key \"serverr\""),
        (
            "[host.\"https://m\"]\ncapabilites = []",
            2,
            "unknown key \"capabilites\"",
        ),
        (
            "[host.\"https://m\"]\ncapabilities = [\"fly\"]",
            2,
            "unknown capability \"fly\"",
        ),
        ("[host.\"ftp://m\"]", 1, "not an http"),
        ("\n[host.\"https://u:secret@m\"]", 2, "without user name"),
        ("[host.\"https://m?x\"]", 1, "query"),
        ("[host.\"https://m:99999\"]", 1, ""),
        ("[host.\"https://m\"]\nca = 5", 2, "string"),
        ("[host.\"https://m\"]\nclient = [[\"a\",\"b\",\"c\"]]", 2, "pairs"),
        ("[host.\"https://m\"]\nskip_verify = \"yes\"", 2, "true or false"),
        ("[host.\"https://m\"]\ndial_timeout = \"soon\"", 2, "duration"),
        ("[host.\"https://m\".header]\nx = \"a\\nb\"", 2, "cannot be sent"),
        ("[host.\"https://m\".header]\n\"x y\" = \"a\"", 2, "header name"),
        ("host = 3", 1, "table"),
    ] {
        let error = parse_as("/c/x", text, "r.io").unwrap_err();
        assert!(
            error.starts_with(&format!("/c/x/hosts.toml:{line}: ")),
            "{text:?}: {error}"
        );
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(\\PC|\n){0,200}") {
        let _ = parse_as("/c/x", &text, "r.io");
    }
}

#[test]
fn directory_names() {
    assert_eq!(names("r.io:5000"), ["r.io_5000_", "r.io:5000", "_default"]);
    assert_eq!(names("r.io"), ["r.io", "_default"]);
    assert_eq!(names("[::1]:5000"), ["[::1]_5000_", "[::1]:5000", "_default"]);
    assert_eq!(names("[::1]"), ["[::1]", "_default"]);
}

fn put(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = std::fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
}

#[tokio::test]
async fn directories_are_chosen_and_changes_seen() {
    let dir = tempfile::tempdir().unwrap();
    let files = HostFiles::new(
        vec![dir.path().join("missing"), dir.path().to_owned()],
        Duration::from_secs(7),
    );
    let first = |endpoints: Arc<[Endpoint]>| endpoints[0].origin.to_string();
    assert_eq!(
        first(files.endpoints("r.io:5000").await.unwrap()),
        "https://r.io:5000"
    );
    put(
        &dir.path().join("_default/hosts.toml"),
        "[host.\"https://everybody\"]",
    );
    assert_eq!(
        first(files.endpoints("r.io:5000").await.unwrap()),
        "https://everybody"
    );
    put(
        &dir.path().join("r.io:5000/hosts.toml"),
        "[host.\"https://colon\"]",
    );
    assert_eq!(
        first(files.endpoints("r.io:5000").await.unwrap()),
        "https://colon"
    );
    put(
        &dir.path().join("r.io_5000_/hosts.toml"),
        "[host.\"https://underscore\"]\ndial_timeout = \"1s\"",
    );
    let endpoints = files.endpoints("r.io:5000").await.unwrap();
    assert_eq!(endpoints[0].connect, Duration::from_secs(1));
    assert_eq!(endpoints[1].connect, Duration::from_secs(7));
    assert_eq!(first(endpoints.clone()), "https://underscore");
    assert!(
        Arc::ptr_eq(&endpoints, &files.endpoints("r.io:5000").await.unwrap()),
        "unchanged files are not read again"
    );
    put(
        &dir.path().join("r.io_5000_/hosts.toml"),
        "[host.\"https://changed-to-a-longer-name\"]",
    );
    assert_eq!(
        first(files.endpoints("r.io:5000").await.unwrap()),
        "https://changed-to-a-longer-name"
    );
}

#[tokio::test]
async fn docker_style_files_and_bad_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let files = HostFiles::new(vec![dir.path().to_owned()], Duration::from_secs(7));
    put(&dir.path().join("r.io/client.cert"), "x");
    let error = files.endpoints("r.io").await.err().unwrap().to_string();
    assert!(error.contains("client.cert without its key"), "{error}");
    put(&dir.path().join("s.io/ca.crt"), "no certificate here");
    let error = files.endpoints("s.io").await.err().unwrap().to_string();
    assert!(error.contains("ca.crt has no certificate"), "{error}");
    put(&dir.path().join("t.io/hosts.toml"), "ca = \"gone.pem\"");
    let error = files.endpoints("t.io").await.err().unwrap();
    assert!(error.to_string().contains("gone.pem cannot be read"), "{error}");
    assert_eq!(error.kind(), crate::Kind::Config);
}
