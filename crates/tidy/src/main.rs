//! `tidy`: the rules of this repository that no compiler checks.
//!
//! Owns: the direction of dependency between crates (`layers`), and what each tracked file may look like (`files`).
//! Leaves out: formatting, lints, licences (rustfmt, clippy, cargo-deny). It reads, prints and exits 1 on a finding.

mod files;
mod layers;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};

fn main() -> anyhow::Result<ExitCode> {
    let root = git(Path::new("."), &["rev-parse", "--show-toplevel"])?;
    let root = Path::new(root.trim());
    let mut findings = layers::check(root)?;
    let tracked = git(root, &["ls-files", "--cached", "--others", "--exclude-standard"])?;
    let mut read = 0;
    for name in tracked.lines() {
        // A file that git lists and the work tree lacks is being deleted; binary files have no lines to judge.
        if let Ok(text) = std::fs::read_to_string(root.join(name)) {
            read += 1;
            findings.extend(files::check(name, &text));
        }
    }
    ensure!(read > 0, "no tracked file could be read below {}", root.display());
    for finding in &findings {
        println!("tidy: {finding}");
    }
    println!("tidy: {read} files read, {} findings", findings.len());
    Ok(if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn git(dir: &Path, args: &[&str]) -> anyhow::Result<String> {
    let out = Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(args)
        .output()
        .context("run git")?;
    ensure!(
        out.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).context("git printed something that is not UTF-8")
}
