//! A crate depends only on crates of a lower layer, as `docs/architecture.md` draws them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// Every crate of the workspace and its layer. `pause` is built by itself and depends on nothing.
const LAYERS: &[(&str, u8)] = &[
    ("holdfast-model", 0),
    ("holdfast-sys", 0),
    ("holdfast-cri-api", 0),
    ("holdfast-registry", 0),
    ("holdfast-cgroups", 1),
    ("holdfast-seccomp", 1),
    ("holdfast-store", 1),
    ("holdfast-monitor-api", 1),
    ("holdfast-launcher", 2),
    ("holdfast-images", 2),
    ("holdfast-network", 2),
    ("holdfast-monitor", 3),
    ("holdfast-streaming", 3),
    ("holdfast-engine", 4),
    ("holdfast-cri-server", 5),
    ("holdfast", 6),
];

/// Development crates: they may look at anything, and only tests may look at them.
const DEVELOPMENT: &[&str] = &[
    "holdfast-testkit",
    "holdfast-conformance",
    "holdfast-cni-bad",
    "holdfast-tidy",
    "holdfast-bench",
];

/// Dependencies that are never right, however the layers lie.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("holdfast-engine", "tonic", "the engine knows nothing of gRPC"),
    (
        "holdfast-engine",
        "holdfast-cri-api",
        "the engine speaks the model's types",
    ),
    (
        "holdfast-engine",
        "holdfast-launcher",
        "only the monitor launches",
    ),
    ("holdfast-launcher", "tokio", "the launcher is synchronous"),
    (
        "holdfast-monitor",
        "tokio",
        "the monitor is synchronous and small",
    ),
    (
        "holdfast-monitor",
        "tonic",
        "the monitor is synchronous and small",
    ),
    ("holdfast-cgroups", "tokio", "cgroups are written synchronously"),
    ("holdfast-sys", "tokio", "system calls only"),
    ("holdfast-model", "tokio", "the model does no I/O"),
    ("holdfast-model", "rustix", "the model does no I/O"),
];

pub fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let out = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    ensure!(
        out.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let metadata: Value = serde_json::from_slice(&out.stdout).context("read what cargo metadata printed")?;
    let mut edges = Vec::new();
    for package in metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?
    {
        let name = package["name"].as_str().context("a package without a name")?;
        edges.push((name.to_owned(), None));
        for dep in package["dependencies"].as_array().into_iter().flatten() {
            let to = dep["name"].as_str().context("a dependency without a name")?;
            let normal = dep["kind"].is_null();
            edges.push((name.to_owned(), Some((to.to_owned(), normal))));
        }
    }
    Ok(judge(&edges))
}

/// `edges`: a crate, and what it depends on with whether that is a normal dependency (not dev or build).
fn judge(edges: &[(String, Option<(String, bool)>)]) -> Vec<String> {
    let layer = |name: &str| LAYERS.iter().find(|(n, _)| *n == name).map(|(_, l)| *l);
    let mut findings = Vec::new();
    for (from, dep) in edges {
        let development = DEVELOPMENT.contains(&from.as_str());
        let Some((to, normal)) = dep else {
            if layer(from).is_none() && !development {
                findings.push(format!(
                    "{from} has no layer: add it to crates/tidy/src/layers.rs"
                ));
            }
            continue;
        };
        for (a, b, why) in FORBIDDEN {
            if a == from && b == to && *normal {
                // The client half of monitor-api is behind a feature, so it is not listed here.
                findings.push(format!("{from} must not depend on {to}: {why}"));
            }
        }
        if development || !normal {
            continue;
        }
        if DEVELOPMENT.contains(&to.as_str()) {
            findings.push(format!(
                "{from} depends on the development crate {to} outside its tests"
            ));
        }
        if let (Some(a), Some(b)) = (layer(from), layer(to))
            && b >= a
        {
            findings.push(format!(
                "{from} (layer {a}) depends on {to} (layer {b}): only downwards"
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str, normal: bool) -> (String, Option<(String, bool)>) {
        (from.to_owned(), Some((to.to_owned(), normal)))
    }

    #[test]
    fn downwards_is_fine() {
        assert_eq!(
            judge(&[edge("holdfast-engine", "holdfast-images", true)]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn upwards_and_sideways_are_found() {
        assert_eq!(
            judge(&[edge("holdfast-images", "holdfast-engine", true)]).len(),
            1
        );
        assert_eq!(
            judge(&[edge("holdfast-images", "holdfast-network", true)]).len(),
            1
        );
    }

    #[test]
    fn test_dependencies_may_look_anywhere() {
        assert_eq!(
            judge(&[edge("holdfast-images", "holdfast-testkit", false)]),
            Vec::<String>::new()
        );
        assert_eq!(
            judge(&[edge("holdfast-images", "holdfast-testkit", true)]).len(),
            1
        );
    }

    #[test]
    fn the_engine_never_sees_grpc() {
        assert_eq!(judge(&[edge("holdfast-engine", "tonic", true)]).len(), 1);
    }

    #[test]
    fn a_crate_without_a_layer_is_found() {
        assert_eq!(judge(&[("holdfast-misc".to_owned(), None)]).len(), 1);
    }
}
