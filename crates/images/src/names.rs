//! Names that an archive or an operator gives to an image.

use holdfast_registry::{Digest, Reference};

use crate::Result;

/// Names of one image, in their full form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub tags: Vec<String>,
    pub digests: Vec<String>,
}

impl Names {
    /// The names that a pull of `reference` gives: its tag (unless it asked for a digest) and the digest it came to.
    pub fn pulled(reference: &Reference, root: &Digest) -> Self {
        let tag = match (reference.digest(), reference.tagged()) {
            (Some(_), _) => None,
            (None, tagged) => tagged,
        };
        Self {
            tags: tag.into_iter().collect(),
            digests: vec![reference.with_digest(root)],
        }
    }

    /// Adds a name; with the digest of the manifest, if there is one, it can be found by that too.
    pub fn add(&mut self, name: &str, manifest: Option<&Digest>) -> Result<()> {
        let reference = Reference::parse(name)?;
        if let (None, Some(tag)) = (reference.digest(), reference.tagged()) {
            push(&mut self.tags, tag);
        }
        if let Some(digest) = manifest {
            push(&mut self.digests, reference.with_digest(digest));
        }
        Ok(())
    }
}

fn push(list: &mut Vec<String>, name: String) {
    if !list.contains(&name) {
        list.push(name);
    }
}
