//! What List and Status read: the newest record of everything, immutable, behind a lock that is only ever held for the
//! time of a map operation.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use holdfast_model::{ContainerId, ContainerRecord, SandboxId, SandboxRecord};

use crate::Error;

#[derive(Default)]
pub(crate) struct Views {
    pub sandboxes: Table<SandboxId, SandboxRecord>,
    pub containers: Table<ContainerId, ContainerRecord>,
}

pub(crate) struct Table<K, V>(RwLock<BTreeMap<K, Arc<V>>>);

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

/// An id that can be looked for by its beginning.
pub(crate) trait Key: Copy + Ord + AsRef<str> {
    const WHAT: &'static str;
    fn parse(text: &str) -> Option<Self>;
}

impl Key for SandboxId {
    const WHAT: &'static str = "pod";
    fn parse(text: &str) -> Option<Self> {
        SandboxId::parse(text).ok()
    }
}

impl Key for ContainerId {
    const WHAT: &'static str = "container";
    fn parse(text: &str) -> Option<Self> {
        ContainerId::parse(text).ok()
    }
}

impl<K: Key, V> Table<K, V> {
    pub(crate) fn set(&self, key: K, value: Arc<V>) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, value);
    }

    pub(crate) fn remove(&self, key: &K) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    pub(crate) fn get(&self, key: &K) -> Option<Arc<V>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<V>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// By a whole id or by its beginning, where that is unique.
    pub(crate) fn find(&self, id: &str) -> Result<Arc<V>, Error> {
        let missing = || Error::NotFound {
            what: K::WHAT,
            id: id.chars().take(80).collect(),
        };
        if let Some(key) = K::parse(id) {
            return self.get(&key).ok_or_else(missing);
        }
        if id.is_empty() || id.len() > 64 {
            return Err(missing());
        }
        // The smallest id that begins so: padded with zeros. Anything that is not hexadecimal fails to parse.
        let first = K::parse(&format!("{id:0<64}")).ok_or_else(missing)?;
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = map
            .range(first..)
            .take_while(|(key, _)| key.as_ref().starts_with(id));
        match (found.next(), found.next()) {
            (Some((_, value)), None) => Ok(value.clone()),
            (Some(_), Some(_)) => Err(Error::Ambiguous {
                what: K::WHAT,
                id: id.to_owned(),
            }),
            (None, _) => Err(missing()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ids_are_found_by_their_beginning() {
        let table: Table<SandboxId, u8> = Table::default();
        let id = |byte: u8| SandboxId::from_bytes([byte; 32]);
        table.set(id(0x11), Arc::new(1));
        table.set(id(0x12), Arc::new(2));
        table.set(id(0xff), Arc::new(3));
        assert_eq!(*table.find("11").unwrap(), 1);
        assert_eq!(*table.find(id(0x12).as_str()).unwrap(), 2);
        assert_eq!(*table.find("f").unwrap(), 3);
        assert!(matches!(table.find("1"), Err(Error::Ambiguous { .. })));
        for unknown in ["2", "", "xyz", "11é", &"1".repeat(65)] {
            assert!(
                matches!(table.find(unknown), Err(Error::NotFound { .. })),
                "{unknown}"
            );
        }
    }
}
