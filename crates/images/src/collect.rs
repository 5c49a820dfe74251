//! Collection: layers and documents that nothing needs are freed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use holdfast_registry::Digest;
use holdfast_store::gc::reachable;

use crate::places::{Places, list};
use crate::state::{LAYERS, LEASES, State, lock};
use crate::{Result, content, remove};

impl State {
    /// Frees layers and documents that no image, snapshot, lease or pull in flight needs.
    pub fn collect(&self, places: &Places) -> Result<()> {
        let change = lock(&self.change);
        let leases = self.db.read()?.all(&LEASES)?;
        let now = SystemTime::now();
        let (ended, live): (Vec<_>, Vec<_>) = leases
            .into_iter()
            .partition(|(_, l)| l.ended(now, self.retry_window));
        let dead = {
            // Whoever takes a hold from now on finds the dead ones gone from the index.
            let holds = lock(&self.holds);
            let mut index = self.index_mut();
            let leased = live
                .iter()
                .flat_map(|(_, l)| &l.holds)
                .filter_map(|key| Digest::parse(key).ok());
            let roots: Vec<Digest> = leased
                .chain(holds.snapshots.values().flatten().cloned())
                .chain(holds.working.values().flatten().cloned())
                .chain(
                    index
                        .images
                        .values()
                        .flat_map(|known| known.record.layers.iter().cloned()),
                )
                .collect();
            let needed = reachable(roots, |chain| {
                index.layers.get(chain).and_then(|layer| layer.parent.clone())
            });
            let dead: Vec<_> = index
                .layers
                .iter()
                .filter(|(c, _)| !needed.contains(*c))
                .map(|(c, l)| (c.clone(), Arc::clone(l)))
                .collect();
            for (chain, _) in &dead {
                index.layers.remove(chain);
            }
            dead
        };
        if !dead.is_empty() || !ended.is_empty() {
            self.db.write(|tx| -> Result<()> {
                ended
                    .iter()
                    .try_for_each(|(key, _)| tx.remove(&LEASES, key).map(drop))?;
                Ok(dead
                    .iter()
                    .try_for_each(|(chain, _)| tx.remove(&LAYERS, chain.as_str()).map(drop))?)
            })?;
        }
        self.collect_documents(places)?;
        drop(change);
        // Nothing names them any more; a crash here leaves them to the sweep at open.
        for (chain, layer) in dead {
            let (dir, aside) = (places.layer(&layer), places.aside());
            let gone = std::fs::rename(&dir, &aside).and_then(|()| remove::tree(&aside, &places.tmp));
            if let Err(error) = gone {
                tracing::warn!(layer = %chain, dir = %dir.display(), %error, "a layer that nothing needs could not be removed");
            }
        }
        Ok(())
    }

    fn collect_documents(&self, places: &Places) -> Result<()> {
        for digest in self.unneeded_documents(places)? {
            self.remove_document(places, &digest);
        }
        Ok(())
    }

    fn unneeded_documents(&self, places: &Places) -> Result<Vec<Digest>> {
        let mut found = Vec::new();
        for algorithm in list(&places.blobs)? {
            for path in list(&algorithm)? {
                let name = (
                    algorithm.file_name().and_then(|n| n.to_str()),
                    path.file_name().and_then(|n| n.to_str()),
                );
                let (Some(algorithm), Some(hex)) = name else {
                    continue;
                };
                found.extend(Digest::parse(&format!("{algorithm}:{hex}")));
            }
        }
        let (holds, index) = (lock(&self.holds), self.index());
        let of_images = index.images.values().flat_map(|known| &known.record.blobs);
        let needed: HashSet<&Digest> = of_images.chain(holds.working.values().flatten()).collect();
        found.retain(|digest| !needed.contains(digest));
        Ok(found)
    }

    /// Removes a document, unless a pull has begun to work on it since it was found.
    fn remove_document(&self, places: &Places, digest: &Digest) {
        // Not `holds`, which starting a pod waits for: a pull that comes now waits for the disk instead.
        let _documents = lock(&self.documents);
        let is_needed = {
            let (holds, index) = (lock(&self.holds), self.index());
            let mut of_images = index.images.values().flat_map(|known| &known.record.blobs);
            of_images.any(|needed| needed == digest)
                || holds.working.values().flatten().any(|needed| needed == digest)
        };
        if !is_needed {
            content::remove(places, digest);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;
    use crate::Config;

    #[test]
    fn a_document_that_a_pull_takes_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::make(dir.path()).unwrap();
        let state = State::open(&places, &Config::default()).unwrap();
        let [taken, free] = [b"taken", b"free!"].map(|bytes| {
            let digest = Digest::sha256(bytes);
            content::put(&places, &digest, bytes).unwrap();
            digest
        });
        let mut found = state.unneeded_documents(&places).unwrap();
        found.sort_unstable_by_key(|digest| *digest == free);
        assert_eq!(found, [taken.clone(), free.clone()]);
        let working = state.work_on(vec![taken.clone()]);
        for digest in &found {
            state.remove_document(&places, digest);
        }
        assert!(content::get(&places, &taken, 10).is_ok());
        assert!(content::get(&places, &free, 10).is_err());
        drop(working);
        state.collect(&places).unwrap();
        assert!(content::get(&places, &taken, 10).is_err());
    }
}
