//! What a runtime's program says of itself: `--version` and `features` (the OCI runtime specification's features.md).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use crate::hooks;

/// One run of the program.
const LIMIT: Duration = Duration::from_secs(5);
/// Output that is read.
const OUTPUT: u64 = 1 << 20;

/// What is known of a runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// First line of `--version`.
    pub version: String,
    /// It says that it can make a whole tree of mounts read-only (`rro`).
    pub recursive_read_only: bool,
    /// Hooks that it says it runs; empty where it has no `features`.
    pub hooks: Vec<String>,
}

impl Found {
    /// The launcher, of which nothing needs to be found. What it can do to mounts the kernel says.
    pub(super) fn built_in() -> Self {
        Self {
            hooks: hooks::POINTS.map(str::to_owned).to_vec(),
            ..Self::default()
        }
    }
}

/// Tells one file from the next of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    size: u64,
    modified: Option<SystemTime>,
}

/// `None`: there is no such file.
pub(super) async fn stamp(program: &Path) -> Option<Stamp> {
    let known = tokio::fs::metadata(program).await.ok()?;
    Some(Stamp {
        size: known.len(),
        modified: known.modified().ok(),
    })
}

pub(super) async fn probe(program: &Path) -> Result<Found, String> {
    let version = run(program, "--version").await?;
    let features = run(program, "features").await.ok();
    let features: Option<Value> = features.and_then(|text| serde_json::from_str(&text).ok());
    found(&version, features.as_ref()).ok_or_else(|| {
        let said: String = version.lines().next().unwrap_or_default().chars().take(100).collect();
        format!(
            "{} is no OCI runtime: `--version` says {said:?} and nothing of a `spec:`, and there is no `features`",
            program.display()
        )
    })
}

fn found(version: &str, features: Option<&Value>) -> Option<Found> {
    let speaks_of_spec = version.lines().any(|line| line.starts_with("spec:"));
    let features = features.filter(|value| value["ociVersionMax"].is_string());
    if !speaks_of_spec && features.is_none() {
        return None;
    }
    let list = |name: &str| -> Vec<String> {
        let listed = features.and_then(|value| value[name].as_array());
        listed
            .into_iter()
            .flatten()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    };
    Some(Found {
        version: version
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(200)
            .collect(),
        recursive_read_only: list("mountOptions").iter().any(|option| option == "rro"),
        hooks: list("hooks"),
    })
}

/// What the program prints, if it ends well and in time.
async fn run(program: &Path, argument: &str) -> Result<String, String> {
    let path: PathBuf = program.to_owned();
    let failed = |why: String| format!("{} {argument}: {why}", path.display());
    let mut command = Command::new(program);
    holdfast_sys::process::keep_service_private(command.as_std_mut());
    let mut child = command
        .arg(argument)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let mut text = Vec::new();
    let exchange = async {
        if let Some(stdout) = child.stdout.take() {
            stdout.take(OUTPUT).read_to_end(&mut text).await?;
        }
        child.wait().await
    };
    match tokio::time::timeout(LIMIT, exchange).await {
        Err(_) => Err(failed(format!("no end after {} s", LIMIT.as_secs()))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Ok(Ok(status)) if !status.success() => Err(failed(status.to_string())),
        Ok(Ok(_)) => Ok(String::from_utf8_lossy(&text).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runtimes_say() {
        let runc = "runc version 1.1.5+ds1\ncommit: 1\nspec: 1.0.2-dev\ngo: go1.19.8\n";
        let features = serde_json::json!({"ociVersionMax": "1.0.2-dev", "hooks": ["prestart"],
            "mountOptions": ["ro", "rro"]});
        let with = found(runc, Some(&features)).unwrap();
        assert_eq!(with.version, "runc version 1.1.5+ds1");
        assert!(with.recursive_read_only && with.hooks == ["prestart"]);
        let without = found("crun version 1.8.1\nspec: 1.0.0\n", None).unwrap();
        assert!(!without.recursive_read_only && without.hooks.is_empty());
        assert_eq!(found("true (GNU coreutils) 9.1\n", None), None);
        assert_eq!(found("", Some(&serde_json::json!({}))), None);
    }

    #[tokio::test]
    async fn programs_that_are_none() {
        let text = probe(Path::new("/nowhere/x")).await.unwrap_err();
        assert!(text.contains("/nowhere/x"), "{text}");
        let text = probe(Path::new("/bin/true")).await.unwrap_err();
        assert!(text.contains("no OCI runtime"), "{text}");
        let text = probe(Path::new("/bin/false")).await.unwrap_err();
        assert!(text.contains("exit status"), "{text}");
    }
}
