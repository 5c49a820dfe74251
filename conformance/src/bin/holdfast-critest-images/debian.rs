//! Debian's packages as a source of programs: downloaded by apt, unpacked without being installed.
//!
//! A program that is linked dynamically brings its libraries and its loader, both from the unpacked packages, so that an
//! image holds together whatever is installed here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use holdfast_conformance::builder::Layer;

/// What the images are made of, and the directory below the cache that it is unpacked in. Both kinds of busybox are
/// called `/bin/busybox`, hence two trees.
const TREES: &[(&str, &[&str])] = &[
    ("dynamic", &["busybox", "procps", "util-linux", "nginx", "dash"]),
    ("static", &["busybox-static"]),
];
/// Written when everything is there; holds what was asked for.
const COMPLETE: &str = "complete";
/// Packages of one tree: more means that the walk through the dependencies went astray.
const MAX_PACKAGES: usize = 100;

/// Downloads and unpacks all trees; does nothing where that was done before.
pub fn fetch(cache: &Path) -> anyhow::Result<()> {
    let wanted = format!("{TREES:?}");
    let marker = cache.join(COMPLETE);
    if std::fs::read_to_string(&marker).is_ok_and(|done| done == wanted) {
        return Ok(());
    }
    for (tree, packages) in TREES {
        let debs = cache.join(format!("{tree}.debs"));
        let root = cache.join(tree);
        for dir in [&debs, &root] {
            std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let all = with_libraries(packages)?;
        // As root: apt's own user may not write here.
        run(Command::new("apt-get")
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
            .args(&all)
            .current_dir(&debs))?;
        for entry in std::fs::read_dir(&debs).with_context(|| format!("read {}", debs.display()))? {
            run(Command::new("dpkg-deb")
                .arg("--extract")
                .arg(entry?.path())
                .arg(&root))?;
        }
    }
    std::fs::write(&marker, wanted).with_context(|| format!("write {}", marker.display()))
}

/// The packages and, transitively, the libraries that they depend on. What else they depend on (configuration tools,
/// service scripts) no container here uses.
fn with_libraries(packages: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let mut all: BTreeSet<String> = packages.iter().map(|name| (*name).to_owned()).collect();
    let mut next = all.clone();
    // One call for each step of the walk: apt-cache takes a second to open its cache.
    while !next.is_empty() {
        let text = run(Command::new("apt-cache")
            .args(["depends", "--important"])
            .args(&next))?;
        let found = text.lines().filter_map(|line| {
            let line = line.trim_start().trim_start_matches('|');
            let name = ["Depends: ", "PreDepends: "]
                .iter()
                .find_map(|kind| line.strip_prefix(kind))?;
            // zlib is the one library whose package has another name. Virtual packages are in angle brackets.
            (name.starts_with("lib") || name.starts_with("zlib")).then(|| name.to_owned())
        });
        next = found.filter(|name| !all.contains(name)).collect();
        all.extend(next.iter().cloned());
        if all.len() > MAX_PACKAGES {
            bail!("{packages:?} depend on more than {MAX_PACKAGES} libraries");
        }
    }
    Ok(all)
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A directory that packages were unpacked in.
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    pub fn dynamic(cache: &Path) -> Self {
        Self {
            root: cache.join(TREES[0].0),
        }
    }

    pub fn fixed(cache: &Path) -> Self {
        Self {
            root: cache.join(TREES[1].0),
        }
    }

    /// Path of a program here, wherever its release of Debian has it.
    pub fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        ["bin", "usr/bin", "sbin", "usr/sbin"]
            .iter()
            .map(|dir| self.root.join(dir).join(name))
            .find(|path| path.is_file())
            .with_context(|| format!("{name} is in none of the packages in {}", self.root.display()))
    }

    /// Puts a program at `path` of a layer, without its libraries.
    pub fn add(&self, layer: &mut Layer, name: &str, path: &str, mode: u32) -> anyhow::Result<()> {
        let from = self.program(name)?;
        let data = std::fs::read(&from).with_context(|| format!("read {}", from.display()))?;
        layer.file(path, &data, mode);
        Ok(())
    }

    /// Puts the libraries of some programs and the dynamic loader into a layer.
    pub fn add_libraries(&self, layer: &mut Layer, programs: &[&str]) -> anyhow::Result<()> {
        let (interpreter, loader) = self.loader()?;
        let mut libraries: BTreeSet<PathBuf> = BTreeSet::new();
        for program in programs {
            let path = self.program(program)?;
            let list = run(self.load(&loader).arg("--list").arg(&path))?;
            if list.contains("not found") {
                bail!("{program} lacks a library:\n{list}");
            }
            let words = list.split_whitespace().filter(|word| word.starts_with('/'));
            libraries.extend(
                words
                    .map(PathBuf::from)
                    .filter(|path| path.starts_with(&self.root)),
            );
        }
        layer.dir("lib", 0o755);
        for library in libraries {
            let name = library.file_name().context("a library without a name")?;
            let data = std::fs::read(&library).with_context(|| format!("read {}", library.display()))?;
            // Debian's loader looks here after the directories of its architecture.
            layer.file(&format!("lib/{}", name.to_string_lossy()), &data, 0o755);
        }
        let data = std::fs::read(&loader).with_context(|| format!("read {}", loader.display()))?;
        if let Some((dir, _)) = interpreter.rsplit_once('/')
            && dir != "lib"
        {
            layer.dir(dir, 0o755);
        }
        layer.file(interpreter, &data, 0o755);
        Ok(())
    }

    /// Standard output of a program run from here, with the libraries from here.
    pub fn output(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        let (_, loader) = self.loader()?;
        run(self.load(&loader).arg(self.program(program)?).args(args))
    }

    fn load(&self, loader: &Path) -> Command {
        let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
        let path: Vec<String> = ["lib", "usr/lib"]
            .iter()
            .map(|dir| self.root.join(dir).join(&triplet).display().to_string())
            .collect();
        let mut command = Command::new(loader);
        command.args(["--library-path", &path.join(":")]);
        command
    }

    /// The loader's path as programs name it, and where it lies here.
    fn loader(&self) -> anyhow::Result<(&'static str, PathBuf)> {
        let interpreter = match std::env::consts::ARCH {
            "x86_64" => "lib64/ld-linux-x86-64.so.2",
            "aarch64" => "lib/ld-linux-aarch64.so.1",
            other => bail!("no dynamic loader is known for {other}"),
        };
        let name = interpreter.rsplit('/').next().unwrap_or(interpreter);
        let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
        let loader = ["lib", "usr/lib"]
            .iter()
            .map(|dir| self.root.join(dir).join(&triplet).join(name))
            .find(|path| path.exists())
            .with_context(|| format!("libc6 in {} has no {name}", self.root.display()))?;
        Ok((interpreter, loader))
    }
}
