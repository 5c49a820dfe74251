//! A plain pod and its containers: namespaces, mounts, /dev, working directory, environment, exit codes.

#![allow(clippy::unwrap_used)]

mod common;
use common::Lab;

#[test]
fn a_container_runs_and_ends() {
    let lab = Lab::new();
    let pod = lab.pod();
    let out = lab.sh(&pod, "echo out; echo err >&2; exit 7");
    assert_eq!(
        (out.out.as_str(), out.err.as_str(), out.code),
        ("out\n", "err\n", 7)
    );
    assert_eq!(pod.stop(), Some(0), "pause ends by itself on SIGTERM");
    lab.finish();
}
