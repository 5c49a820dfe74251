//! Reading and merging the files, remembering which line every value came from.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize as _;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::raw::Raw;

const DEFAULT_PATH: &str = "/etc/holdfast/config.toml";

/// More than any configuration needs.
const MAX_FILE: u64 = 1 << 20;
const MAX_DROP_INS: usize = 1000;

/// Which file and line each key came from, by its dotted name.
#[derive(Debug, Default)]
pub struct Origins(BTreeMap<String, (PathBuf, usize)>);

impl Origins {
    /// `file:line`, or `the command line` for what stands in no file.
    pub fn of(&self, key: &str) -> String {
        self.0.get(key).map_or_else(
            || "the command line".to_owned(),
            |(path, line)| format!("{}:{line}", path.display()),
        )
    }
}

/// The file at `path` (or the usual one, which may be missing) and the drop-ins beside it.
pub fn load(path: Option<&Path>) -> Result<(Raw, Origins)> {
    let main = path.unwrap_or(Path::new(DEFAULT_PATH));
    let mut merged = Table::new();
    let mut origins = Origins::default();
    match read(main) {
        Ok(text) => add(main, &text, &mut merged, &mut origins)?,
        Err(e) if path.is_none() && e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", main.display())),
    }
    for drop_in in drop_ins(&main.with_file_name("config.d"))? {
        let text = read(&drop_in).with_context(|| format!("cannot read {}", drop_in.display()))?;
        add(&drop_in, &text, &mut merged, &mut origins)?;
    }
    let raw = Raw::deserialize(Value::Table(merged)).context("the merged configuration")?;
    Ok((raw, origins))
}

fn read(path: &Path) -> std::io::Result<String> {
    if std::fs::metadata(path)?.len() > MAX_FILE {
        return Err(std::io::Error::new(
            ErrorKind::FileTooLarge,
            "it is larger than 1 MiB",
        ));
    }
    std::fs::read_to_string(path)
}

fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", dir.display())),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot read {}", dir.display()))?
            .path();
        // An editor's `.x.toml.swp` is not meant.
        let hidden = path
            .file_name()
            .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if path.extension() == Some(OsStr::new("toml")) && !hidden {
            files.push(path);
        }
    }
    if files.len() > MAX_DROP_INS {
        bail!("{} holds more than {MAX_DROP_INS} files", dir.display());
    }
    files.sort();
    Ok(files)
}

fn add(path: &Path, text: &str, merged: &mut Table, origins: &mut Origins) -> Result<()> {
    let located = |error: &toml::de::Error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        anyhow!("{}:{line}: {}", path.display(), error.message())
    };
    // Names and types are checked file by file, while lines are still known.
    toml::from_str::<Raw>(text).map_err(|e| located(&e))?;
    let spanned = DeTable::parse(text).map_err(|e| located(&e))?;
    remember(spanned.get_ref(), "", &mut |key, at| {
        origins.0.insert(key, (path.to_owned(), line_of(text, at)));
    });
    merge(merged, toml::from_str(text).map_err(|e| located(&e))?);
    Ok(())
}

fn remember(table: &DeTable<'_>, prefix: &str, note: &mut impl FnMut(String, usize)) {
    for (key, value) in table {
        let name = if prefix.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{prefix}.{}", key.get_ref())
        };
        note_value(&name, value, key.span().start, note);
    }
}

fn note_value(name: &str, value: &Spanned<DeValue<'_>>, at: usize, note: &mut impl FnMut(String, usize)) {
    note(name.to_owned(), at);
    if let DeValue::Table(inner) = value.get_ref() {
        remember(inner, name, note);
    }
}

/// Tables are merged, everything else is replaced.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    let upto = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    upto.iter().filter(|b| **b == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("config.d")).unwrap();
            for (name, text) in files {
                std::fs::write(dir.path().join(name), text).unwrap();
            }
            Self(dir)
        }

        fn load(&self) -> Result<(Raw, Origins)> {
            load(Some(&self.0.path().join("config.toml")))
        }

        fn error(&self) -> String {
            format!("{:#}", self.load().unwrap_err()).replace(&format!("{}/", self.0.path().display()), "")
        }
    }

    #[test]
    fn drop_ins_are_merged_by_name() {
        let dir = Dir::new(&[
            (
                "config.toml",
                "root = \"/a\"\n[network]\ncni_timeout = \"5s\"\n[network.bridge]\nmtu = 1400\n",
            ),
            ("config.d/20.toml", "[network.bridge]\nmtu = 9000\n"),
            (
                "config.d/10.toml",
                "root = \"/b\"\n[network.bridge]\nmtu = 1300\nname = \"br0\"\n",
            ),
            ("config.d/.hidden.toml", "nonsense"),
            ("config.d/notes.txt", "nonsense"),
        ]);
        let (raw, origins) = dir.load().unwrap();
        assert_eq!(raw.root.unwrap(), Path::new("/b"));
        assert_eq!(raw.network.bridge.mtu, Some(9000));
        assert_eq!(raw.network.bridge.name.as_deref(), Some("br0"));
        assert_eq!(raw.network.cni_timeout.as_deref(), Some("5s"));
        assert!(origins.of("network.bridge.mtu").ends_with("config.d/20.toml:2"));
        assert!(origins.of("network.cni_timeout").ends_with("config.toml:3"));
    }

    #[test]
    fn unknown_keys_are_named_with_file_and_line() {
        let dir = Dir::new(&[("config.toml", "root = \"/a\"\n\n[network]\nbrigde = 1\n")]);
        let error = dir.error();
        assert!(
            error.starts_with("config.toml:4: unknown field `brigde`"),
            "{error}"
        );
        let dir = Dir::new(&[("config.toml", ""), ("config.d/x.toml", "\nrooot = \"/a\"\n")]);
        let error = dir.error();
        assert!(
            error.starts_with("config.d/x.toml:2: unknown field `rooot`"),
            "{error}"
        );
    }

    #[test]
    fn wrong_types_and_broken_files_too() {
        let error = Dir::new(&[("config.toml", "[network.bridge]\nmtu = \"big\"\n")]).error();
        assert!(error.starts_with("config.toml:2: invalid type"), "{error}");
        let error = Dir::new(&[("config.toml", "a = 1\na = = 2\n")]).error();
        assert!(error.starts_with("config.toml:2: "), "{error}");
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        assert!(load(Some(Path::new("/nowhere/config.toml"))).is_err());
    }
}
