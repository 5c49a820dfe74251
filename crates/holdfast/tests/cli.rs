//! The operator's commands against a runtime that is not holdfast: a few calls, answered from a table, all others
//! UNIMPLEMENTED.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod fake;

use std::path::Path;
use std::process::{Command, Output};

use fake::Fake;

fn holdfast(endpoint: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(args)
        .env("CONTAINER_RUNTIME_ENDPOINT", endpoint)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn lists_for_people_and_programs() {
    let fake = Fake::start();
    let out = holdfast(fake.socket(), &["ps"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let table = text(&out.stdout);
    assert!(table.starts_with("CONTAINER") && table.contains("web"), "{table}");

    let out = holdfast(fake.socket(), &["ps", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["containers"][0]["state"], "CONTAINER_RUNNING");
    let out = holdfast(fake.socket(), &["ps", "-q", "--no-trunc"]);
    assert_eq!(text(&out.stdout), format!("{}\n", fake::CONTAINER));
}

#[test]
fn exec_passes_output_and_exit_code_through() {
    let fake = Fake::start();
    let out = holdfast(fake.socket(), &["exec", "web", "sh", "-c", "exit 3"]);
    assert_eq!(out.status.code(), Some(3));
    assert_eq!(text(&out.stdout), "sh -c exit 3\n");
    assert_eq!(text(&out.stderr), "on the other stream\n");
}

#[test]
fn logs_come_from_the_file_that_the_status_names() {
    let fake = Fake::start();
    let out = holdfast(fake.socket(), &["logs", "--tail", "2", &fake::CONTAINER[..6]]);
    assert_eq!(text(&out.stdout), "two\n");
    assert_eq!(text(&out.stderr), "three\n");
}

#[test]
fn pulls_without_progress_where_the_runtime_has_none() {
    let fake = Fake::start();
    let out = holdfast(fake.socket(), &["pull", "busybox"]);
    assert_eq!(
        text(&out.stdout),
        "sha256:pulled-busybox\n",
        "{}",
        text(&out.stderr)
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let fake = Fake::start();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let out = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["ps", "-o", "json"])
        .env("CONTAINER_RUNTIME_ENDPOINT", fake.socket())
        .stdout(writer)
        .output()
        .unwrap();
    assert!(out.status.success());
    assert_eq!(text(&out.stderr), "");
}

#[test]
fn what_is_wrong_is_said() {
    let fake = Fake::start();
    for (args, wanted) in [
        (&["logs", "nobody"][..], "there is no container \"nobody\""),
        (&["stop", "nobody"], "there is no pod or container \"nobody\""),
        (&["image", "load", "/"], "is not holdfast"),
        (&["status"], "does not know this call"),
    ] {
        let out = holdfast(fake.socket(), args);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        let said = text(&out.stderr);
        assert!(
            said.starts_with("holdfast: ") && said.contains(wanted),
            "{args:?}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn a_missing_server_says_what_to_do() {
    let out = holdfast(Path::new("/nowhere/x.sock"), &["pods"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("is the server running?"));
    // Our own version is told all the same.
    let out = holdfast(Path::new("/nowhere/x.sock"), &["version"]);
    assert!(text(&out.stdout).starts_with("holdfast "));
}

#[test]
fn bad_configuration_ends_serve_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "rot = \"/x\"\n").unwrap();
    let out = holdfast(Path::new("/x"), &["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    let said = text(&out.stderr);
    assert!(said.contains("config.toml:1: unknown field `rot`"), "{said}");
}
