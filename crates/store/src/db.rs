//! redb with typed JSON tables. A commit is on the disk when it returns.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Memory that redb may keep for pages. An image's state is some ten KiB; the default would be a GiB.
const CACHE_BYTES: usize = 2 << 20;

type Raw = TableDefinition<'static, &'static str, &'static [u8]>;

/// A named table of JSON values, each prefixed by its version.
pub struct Table<V> {
    raw: Raw,
    name: &'static str,
    version: u8,
    value: PhantomData<fn() -> V>,
}

impl<V> Table<V> {
    /// A table; `version` rises when old readers would misunderstand a value.
    #[must_use]
    pub const fn new(name: &'static str, version: u8) -> Self {
        Self {
            raw: TableDefinition::new(name),
            name,
            version,
            value: PhantomData,
        }
    }
}

/// The database file.
#[derive(Debug)]
pub struct Db {
    redb: Database,
    path: PathBuf,
}

impl Db {
    /// Opens or makes the database. After a crash this takes under a millisecond (quick repair).
    ///
    /// # Errors
    /// [`Error::Db`], for instance if another process has it open.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let opened = Database::builder().set_cache_size(CACHE_BYTES).create(&path);
        let redb = opened.map_err(|e| failed("open", &path, e))?;
        Ok(Self { redb, path })
    }

    /// Runs `change` in one transaction and makes it durable; an error of `change` undoes it.
    ///
    /// # Errors
    /// That of `change`, or [`Error::Db`].
    pub fn write<R, E: From<Error>>(
        &self,
        change: impl FnOnce(&mut Writer<'_>) -> std::result::Result<R, E>,
    ) -> std::result::Result<R, E> {
        let begun = self
            .redb
            .begin_write()
            .map_err(|e| failed("begin a change of", &self.path, e));
        let mut tx = begun?;
        // Quick repair writes the allocator's state along, so that the open after a crash does not walk the file.
        tx.set_quick_repair(true);
        tx.set_durability(Durability::Immediate)
            .map_err(|e| failed("change", &self.path, e))?;
        let mut writer = Writer { tx, path: &self.path };
        match change(&mut writer) {
            Ok(result) => {
                writer
                    .tx
                    .commit()
                    .map_err(|e| failed("commit to", &self.path, e))?;
                Ok(result)
            }
            Err(e) => {
                let _ = writer.tx.abort();
                Err(e)
            }
        }
    }

    /// A consistent view for reading.
    ///
    /// # Errors
    /// [`Error::Db`].
    pub fn read(&self) -> Result<Reader<'_>> {
        let tx = self
            .redb
            .begin_read()
            .map_err(|e| failed("read", &self.path, e))?;
        Ok(Reader { tx, path: &self.path })
    }
}

/// One transaction of [`Db::write`].
pub struct Writer<'a> {
    tx: WriteTransaction,
    path: &'a Path,
}

impl Writer<'_> {
    /// Sets the value of `key`.
    ///
    /// # Errors
    /// [`Error::Encode`] or [`Error::Db`].
    pub fn put<V: Serialize>(&mut self, table: &Table<V>, key: &str, value: &V) -> Result<()> {
        let mut bytes = vec![table.version];
        serde_json::to_writer(&mut bytes, value).map_err(|source| Error::Encode {
            key: key.to_owned(),
            source,
        })?;
        let mut open = self
            .tx
            .open_table(table.raw)
            .map_err(|e| failed("change", self.path, e))?;
        open.insert(key, bytes.as_slice())
            .map_err(|e| failed("change", self.path, e))?;
        Ok(())
    }

    /// The value of `key`, as this transaction has it.
    ///
    /// # Errors
    /// [`Error::Db`], [`Error::Corrupt`] or [`Error::Newer`].
    pub fn get<V: DeserializeOwned>(&self, table: &Table<V>, key: &str) -> Result<Option<V>> {
        let open = self
            .tx
            .open_table(table.raw)
            .map_err(|e| failed("read", self.path, e))?;
        let found = open.get(key).map_err(|e| failed("read", self.path, e))?;
        found.map(|bytes| decode(table, key, bytes.value())).transpose()
    }

    /// Removes `key`. Says whether it was there.
    ///
    /// # Errors
    /// [`Error::Db`].
    pub fn remove<V>(&mut self, table: &Table<V>, key: &str) -> Result<bool> {
        let mut open = self
            .tx
            .open_table(table.raw)
            .map_err(|e| failed("change", self.path, e))?;
        let removed = open
            .remove(key)
            .map_err(|e| failed("change", self.path, e))?
            .is_some();
        Ok(removed)
    }
}

/// A view of [`Db::read`].
pub struct Reader<'a> {
    tx: ReadTransaction,
    path: &'a Path,
}

impl Reader<'_> {
    /// Every key and value of a table, sorted by key. A table that was never written is empty.
    ///
    /// # Errors
    /// [`Error::Db`]. A value that cannot be read is [`Error::Corrupt`] or [`Error::Newer`].
    pub fn all<V: DeserializeOwned>(&self, table: &Table<V>) -> Result<Vec<(String, V)>> {
        let open = match self.tx.open_table(table.raw) {
            Ok(open) => open,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(e) => return Err(failed("read", self.path, e)),
        };
        let mut out = Vec::new();
        for row in open.iter().map_err(|e| failed("read", self.path, e))? {
            let (key, value) = row.map_err(|e| failed("read", self.path, e))?;
            let value = decode(table, key.value(), value.value())?;
            out.push((key.value().to_owned(), value));
        }
        Ok(out)
    }
}

fn decode<V: DeserializeOwned>(table: &Table<V>, key: &str, bytes: &[u8]) -> Result<V> {
    let path = || format!("{} {key}", table.name);
    let Some((version, json)) = bytes.split_first() else {
        return Err(Error::Corrupt {
            path: path(),
            reason: "it is empty".into(),
        });
    };
    if *version > table.version {
        return Err(Error::Newer {
            path: path(),
            found: u32::from(*version),
            known: u32::from(table.version),
        });
    }
    serde_json::from_slice(json).map_err(|e| Error::Corrupt {
        path: path(),
        reason: format!("its fields do not fit: {e}"),
    })
}

fn failed(action: &'static str, path: &Path, source: impl Into<redb::Error>) -> Error {
    Error::Db {
        action,
        path: path.to_path_buf(),
        source: Box::new(source.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NUMBERS: Table<u64> = Table::new("numbers", 1);

    #[test]
    fn a_change_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.redb");
        let db = Db::open(&path).unwrap();
        assert!(db.read().unwrap().all(&NUMBERS).unwrap().is_empty());
        db.write(|tx| tx.put(&NUMBERS, "one", &1)).unwrap();
        let undone: Result<()> = db.write(|tx| {
            tx.put(&NUMBERS, "two", &2)?;
            assert_eq!(tx.get(&NUMBERS, "two")?, Some(2));
            Err(Error::Key { key: "no".into() })
        });
        assert!(undone.is_err());
        assert!(db.write(|tx| tx.remove(&NUMBERS, "three")).is_ok_and(|was| !was));
        drop(db);
        let db = Db::open(&path).unwrap();
        assert_eq!(db.read().unwrap().all(&NUMBERS).unwrap(), [("one".to_owned(), 1)]);
    }

    #[test]
    fn a_second_process_is_refused_and_a_newer_value_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.redb");
        let db = Db::open(&path).unwrap();
        assert!(Db::open(&path).is_err());
        const NEWER: Table<u64> = Table::new("numbers", 2);
        db.write(|tx| tx.put(&NEWER, "k", &1)).unwrap();
        let refused = db.read().unwrap().all(&NUMBERS).unwrap_err();
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
    }
}
