//! Which names are taken. A name is taken before anything is done for it and given back after everything is undone.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Names of type `N`, each held by one `I`.
#[derive(Debug)]
pub(crate) struct Names<N, I>(Mutex<HashMap<N, I>>);

impl<N, I> Default for Names<N, I> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<N: Eq + Hash + Clone, I: Copy + Eq> Names<N, I> {
    /// Takes `name` for `id`, or says who has it.
    pub(crate) fn reserve(&self, name: &N, id: I) -> Result<(), I> {
        let mut map = self.map();
        match map.get(name) {
            Some(holder) if *holder != id => Err(*holder),
            Some(_) => Ok(()),
            None => {
                map.insert(name.clone(), id);
                Ok(())
            }
        }
    }

    /// Gives `name` back, if it is `id` who has it.
    pub(crate) fn release(&self, name: &N, id: I) {
        let mut map = self.map();
        if map.get(name) == Some(&id) {
            map.remove(name);
        }
    }

    fn map(&self) -> MutexGuard<'_, HashMap<N, I>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the plain definition: a name belongs to the first who asked since it was last free.
        #[test]
        fn one_holder_at_a_time(steps in prop::collection::vec((any::<bool>(), 0u8..4, 0u8..4), 0..200)) {
            let names = Names::default();
            let mut model: HashMap<u8, u8> = HashMap::new();
            for (reserve, name, id) in steps {
                if reserve {
                    let wanted = match model.get(&name) {
                        Some(holder) if *holder != id => Err(*holder),
                        _ => Ok(()),
                    };
                    prop_assert_eq!(names.reserve(&name, id), wanted);
                    model.entry(name).or_insert(id);
                } else {
                    names.release(&name, id);
                    if model.get(&name) == Some(&id) {
                        model.remove(&name);
                    }
                }
            }
        }
    }
}
