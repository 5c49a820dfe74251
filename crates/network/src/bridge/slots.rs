//! Which addresses are free. Slot `n` is the `n`th address after the gateway, in both subnets at once.
//!
//! A freed slot goes to the end of the queue, so that it is handed out again last of all: peers may remember it. Where
//! the queue stands survives a restart in the file `rotation`.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;

use tracing::warn;

#[derive(Debug)]
pub(crate) struct Slots {
    free: VecDeque<u32>,
    used: BTreeSet<u32>,
    last: u32,
    file: PathBuf,
}

impl Slots {
    pub(crate) fn new(total: u32, used: BTreeSet<u32>, file: PathBuf) -> Self {
        let last = std::fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let first = last.map_or(0u32, |n: u32| n.saturating_add(1)) % total.max(1);
        let free = (first..total)
            .chain(0..first)
            .filter(|n| !used.contains(n))
            .collect();
        Self {
            free,
            used,
            last: last.unwrap_or(0),
            file,
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.len()
    }

    pub(crate) fn take(&mut self) -> Option<u32> {
        let slot = self.free.pop_front()?;
        self.used.insert(slot);
        self.last = slot;
        Some(slot)
    }

    /// Undoes a [`Slots::take`] that nothing came of.
    pub(crate) fn untake(&mut self, slot: u32) {
        if self.used.remove(&slot) {
            self.free.push_front(slot);
        }
    }

    /// Frees a slot whose address nobody has any more. Off the path of pods, so the file is written here; a pod started
    /// since the last write holds its slot by its record.
    pub(crate) fn put(&mut self, slot: u32) {
        if self.used.remove(&slot) {
            self.free.push_back(slot);
        }
        if let Err(error) = write_beside(&self.file, self.last) {
            warn!(path = %self.file.display(), %error, "cannot record the rotation of addresses");
        }
    }
}

/// Losing this file costs the order of the queue, nothing else: no sync, no checksum.
fn write_beside(file: &std::path::Path, last: u32) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, last.to_string())?;
    std::fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rotation_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rotation");
        let mut slots = Slots::new(4, BTreeSet::new(), file.clone());
        assert_eq!((slots.take(), slots.take()), (Some(0), Some(1)));
        slots.put(0);
        let mut slots = Slots::new(4, BTreeSet::from([1]), file);
        assert_eq!(
            [slots.take(), slots.take(), slots.take(), slots.take()],
            [Some(2), Some(3), Some(0), None]
        );
        slots.untake(0);
        assert_eq!(slots.take(), Some(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn no_slot_is_held_twice_and_the_freed_comes_last(ops in proptest::collection::vec(any::<Option<u8>>(), 0..200)) {
            let dir = tempfile::tempdir().unwrap();
            let mut slots = Slots::new(16, BTreeSet::new(), dir.path().join("rotation"));
            let mut held: Vec<u32> = Vec::new();
            let mut order: VecDeque<u32> = (0..16).collect();
            for op in ops {
                match op {
                    None => {
                        let got = slots.take();
                        prop_assert_eq!(got, order.pop_front());
                        held.extend(got);
                    }
                    Some(_) if held.is_empty() => {}
                    Some(at) => {
                        let slot = held.swap_remove(at as usize % held.len());
                        slots.put(slot);
                        order.push_back(slot);
                    }
                }
                prop_assert_eq!(slots.used(), held.len());
            }
        }
    }
}
