//! One file per record: written beside and renamed, checked when read, scanned at open.

use std::fs::File;
use std::io::{Read, Write};
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::{Refused, seal, unseal};
use crate::{Error, Result};

/// Longest key, in bytes.
pub const MAX_KEY: usize = 200;
/// Largest record, in bytes of JSON. A pod's record is a few KiB.
pub const MAX_RECORD: usize = 4 << 20;

/// Where damaged records are moved, below the directory of the records.
const QUARANTINE: &str = ".quarantine";
/// Beginning of the name of a record being written. What a crash leaves of them is removed at open.
const BESIDE: &str = ".new-";

/// Something that can be kept in [`Records`].
///
/// `VERSION` says which form of the type is written. A change that old readers would misunderstand raises it, and
/// [`Record::migrate`] then reads the older forms.
pub trait Record: Serialize + DeserializeOwned {
    /// Version that is written, counted from 1.
    const VERSION: u32 = 1;

    /// Reads a record of an older version. The default reads it as if nothing had changed (serde defaults fill new fields).
    ///
    /// # Errors
    /// What serde says about the JSON.
    fn migrate(_from: u32, json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }
}

/// A directory of records of one type, keyed by file name.
///
/// Reads and writes are synchronous and take tens of microseconds (no fsync). Two writers of one key do not corrupt it: the
/// last rename wins. The daemon is the only writer of a directory.
#[derive(Debug)]
pub struct Records<T> {
    dir: OwnedFd,
    path: PathBuf,
    next: AtomicU64,
    record: PhantomData<fn() -> T>,
}

/// What [`Records::open`] found.
#[derive(Debug)]
pub struct Opened<T> {
    /// The handle for later reads and writes.
    pub store: Records<T>,
    /// Every whole record, sorted by key.
    pub records: Vec<(String, T)>,
    /// Every damaged one. It has been moved out of the way already; the caller tells the operator.
    pub quarantined: Vec<Quarantined>,
}

/// A damaged record that was moved aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Key it had.
    pub key: String,
    /// Where its bytes are now.
    pub moved_to: PathBuf,
    /// What was wrong with it.
    pub reason: String,
}

impl<T: Record> Records<T> {
    /// Opens (and makes, mode 0700) the directory `dir`, removes half-written files, reads every record and moves damaged
    /// ones to `.quarantine` below it.
    ///
    /// # Errors
    /// [`Error::Newer`] if a record was written by a newer holdfast: nothing has been changed then. [`Error::Io`] otherwise.
    pub fn open(dir: impl AsRef<Path>) -> Result<Opened<T>> {
        let path = dir.as_ref().to_path_buf();
        make_dir(&path)?;
        let fd = rustix::fs::open(
            &path,
            OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| io("open", &path, e.into()))?;
        let store = Self {
            dir: fd,
            path,
            next: AtomicU64::new(0),
            record: PhantomData,
        };
        let mut keys = Vec::new();
        let mut half_written = Vec::new();
        for entry in std::fs::read_dir(&store.path).map_err(|e| io("list", &store.path, e))? {
            let entry = entry.map_err(|e| io("list", &store.path, e))?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with(BESIDE) {
                half_written.push(name);
            } else if check_key(&name).is_ok() {
                keys.push(name);
            }
        }
        keys.sort_unstable();
        let (mut records, mut damaged) = (Vec::with_capacity(keys.len()), Vec::new());
        for key in keys {
            match store.get(&key) {
                Ok(Some(record)) => records.push((key, record)),
                Ok(None) => {}
                Err(Error::Corrupt { reason, .. }) => damaged.push((key, reason)),
                Err(other) => return Err(other),
            }
        }
        // Only now, when no newer record was met, is anything moved.
        for name in half_written {
            let _ = unlinkat(&store.dir, &name, AtFlags::empty());
        }
        let quarantined = damaged
            .into_iter()
            .map(|(key, reason)| store.quarantine(key, reason))
            .collect::<Result<_>>()?;
        Ok(Opened {
            store,
            records,
            quarantined,
        })
    }

    /// Writes `record` under `key`, replacing what was there in one step.
    ///
    /// # Errors
    /// [`Error::Key`], [`Error::Encode`], [`Error::TooLarge`] or [`Error::Io`]; the old record is then still there.
    pub fn put(&self, key: &str, record: &T) -> Result<()> {
        check_key(key)?;
        let json = serde_json::to_vec(record).map_err(|source| Error::Encode {
            key: key.to_owned(),
            source,
        })?;
        if json.len() > MAX_RECORD {
            return Err(Error::TooLarge {
                key: key.to_owned(),
                size: json.len(),
            });
        }
        let beside = format!(
            "{BESIDE}{}-{}",
            std::process::id(),
            self.next.fetch_add(1, Ordering::Relaxed)
        );
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let written = openat(&self.dir, &beside, flags, Mode::RUSR | Mode::WUSR)
            .map_err(std::io::Error::from)
            .and_then(|fd| File::from(fd).write_all(&seal(T::VERSION, &json)))
            .and_then(|()| renameat(&self.dir, &beside, &self.dir, key).map_err(Into::into));
        written.map_err(|source| {
            let _ = unlinkat(&self.dir, &beside, AtFlags::empty());
            io("write", &self.path.join(key), source)
        })
    }

    /// Reads the record of `key`; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Newer`] about its bytes (it stays where it is), [`Error::Io`].
    pub fn get(&self, key: &str) -> Result<Option<T>> {
        check_key(key)?;
        let path = self.path.join(key);
        let fd = match openat(
            &self.dir,
            key,
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK,
            Mode::empty(),
        ) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(e) => return Err(io("open", &path, e.into())),
        };
        let mut bytes = Vec::new();
        // The header and one byte more than allowed: enough to tell a file that is too long.
        File::from(fd)
            .take(MAX_RECORD as u64 + 256)
            .read_to_end(&mut bytes)
            .map_err(|e| io("read", &path, e))?;
        let name = || path.display().to_string();
        match unseal(&bytes, T::VERSION) {
            Ok((version, json)) => {
                let read = if version == T::VERSION {
                    serde_json::from_slice(json)
                } else {
                    T::migrate(version, json)
                };
                read.map(Some).map_err(|e| Error::Corrupt {
                    path: name(),
                    reason: format!("its fields do not fit: {e}"),
                })
            }
            Err(Refused::Newer { found }) => Err(Error::Newer {
                path: name(),
                found,
                known: T::VERSION,
            }),
            Err(Refused::Corrupt { reason }) => Err(Error::Corrupt { path: name(), reason }),
        }
    }

    /// Removes the record of `key`. Says whether there was one.
    ///
    /// # Errors
    /// [`Error::Key`] or [`Error::Io`].
    pub fn remove(&self, key: &str) -> Result<bool> {
        check_key(key)?;
        match unlinkat(&self.dir, key, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(e) => Err(io("remove", &self.path.join(key), e.into())),
        }
    }

    /// The directory of the records.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn quarantine(&self, key: String, reason: String) -> Result<Quarantined> {
        let aside = self.path.join(QUARANTINE);
        make_dir(&aside)?;
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let moved_to = aside.join(format!("{key}.{since}"));
        std::fs::rename(self.path.join(&key), &moved_to)
            .map_err(|e| io("move aside", &self.path.join(&key), e))?;
        Ok(Quarantined {
            key,
            moved_to,
            reason,
        })
    }
}

fn check_key(key: &str) -> Result<()> {
    let fits = (1..=MAX_KEY).contains(&key.len())
        && !key.starts_with('.')
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if fits {
        Ok(())
    } else {
        Err(Error::Key {
            key: key.chars().take(MAX_KEY).collect(),
        })
    }
}

fn make_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| io("make", path, e))
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        action,
        path: path.to_path_buf(),
        source,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    struct One {
        name: String,
        #[serde(default)]
        added_later: u32,
    }
    impl Record for One {}

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    struct Two {
        name: String,
        loud: bool,
    }
    impl Record for Two {
        const VERSION: u32 = 2;
        fn migrate(_from: u32, json: &[u8]) -> Result<Self, serde_json::Error> {
            serde_json::from_slice::<One>(json).map(|old| Self {
                name: old.name,
                loud: true,
            })
        }
    }

    fn one(name: &str) -> One {
        One {
            name: name.into(),
            added_later: 0,
        }
    }

    #[test]
    fn records_survive_a_reopen_and_can_be_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let opened = Records::<One>::open(dir.path().join("r")).unwrap();
        opened.store.put("b", &one("x")).unwrap();
        opened.store.put("a", &one("y")).unwrap();
        opened.store.put("b", &one("z")).unwrap();
        drop(opened);
        let opened = Records::<One>::open(dir.path().join("r")).unwrap();
        assert_eq!(
            opened.records,
            [("a".to_owned(), one("y")), ("b".to_owned(), one("z"))]
        );
        assert!(opened.store.remove("a").unwrap());
        assert!(!opened.store.remove("a").unwrap());
        assert_eq!(opened.store.get("a").unwrap(), None);
    }

    #[test]
    fn damaged_records_are_moved_aside_and_the_rest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Records::<One>::open(dir.path()).unwrap().store;
        store.put("good", &one("x")).unwrap();
        store.put("bad", &one("y")).unwrap();
        // What a power cut leaves of a file whose data never reached the disk, and of one being written.
        std::fs::write(dir.path().join("bad"), b"").unwrap();
        std::fs::write(dir.path().join(".new-1-1"), b"half").unwrap();
        let opened = Records::<One>::open(dir.path()).unwrap();
        assert_eq!(opened.records.len(), 1);
        assert_eq!(opened.quarantined[0].key, "bad");
        assert!(opened.quarantined[0].moved_to.exists());
        assert!(!dir.path().join(".new-1-1").exists());
        assert!(!dir.path().join("bad").exists());
    }

    #[test]
    fn an_older_version_is_migrated_and_a_newer_one_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        Records::<One>::open(dir.path())
            .unwrap()
            .store
            .put("k", &one("x"))
            .unwrap();
        let two = Records::<Two>::open(dir.path()).unwrap();
        assert_eq!(
            two.records[0].1,
            Two {
                name: "x".into(),
                loud: true
            }
        );
        two.store.put("k", &two.records[0].1).unwrap();
        let before = std::fs::read(dir.path().join("k")).unwrap();
        let refused = Records::<One>::open(dir.path()).unwrap_err();
        assert!(
            matches!(
                refused,
                Error::Newer {
                    found: 2,
                    known: 1,
                    ..
                }
            ),
            "{refused}"
        );
        assert_eq!(std::fs::read(dir.path().join("k")).unwrap(), before);
    }

    #[test]
    fn keys_stay_inside_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let store = Records::<One>::open(dir.path()).unwrap().store;
        for key in [
            "",
            ".",
            "..",
            "a/b",
            ".hidden",
            "nul\0",
            "line\n",
            &"x".repeat(MAX_KEY + 1),
        ] {
            assert!(
                matches!(store.put(key, &one("x")), Err(Error::Key { .. })),
                "{key:?}"
            );
        }
    }
}
