//! Documents by digest: manifests, indexes and configurations. Small; layers are never kept in this form.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use holdfast_registry::Digest;

use crate::places::Places;
use crate::{Error, Result};

/// Where the document of a digest is.
pub(crate) fn path(places: &Places, digest: &Digest) -> PathBuf {
    places.blobs.join(digest.algorithm().name()).join(digest.hex())
}

/// Writes a document whose digest the caller has checked. It is on the disk after the next `syncfs`, which comes before the
/// record that names it.
pub(crate) fn put(places: &Places, digest: &Digest, bytes: &[u8]) -> Result<()> {
    let target = path(places, digest);
    if get(places, digest, bytes.len() as u64).is_ok() {
        return Ok(());
    }
    let aside = places.aside();
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&aside, &target));
    written.map_err(|e| {
        let _ = std::fs::remove_file(&aside);
        Error::io("write", target, e)
    })
}

/// Reads a document and checks it against its digest.
pub(crate) fn get(places: &Places, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
    let path = path(places, digest);
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(|e| Error::io("read", &path, e))?;
    let mut verifier = digest.verifier();
    verifier.update(&bytes);
    verifier.finish().map_err(|mismatch| Error::Mismatch {
        what: format!("document {}", path.display()),
        mismatch,
    })?;
    Ok(bytes)
}

/// Removes a document.
pub(crate) fn remove(places: &Places, digest: &Digest) {
    let path = path(places, digest);
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a document that nothing needs could not be removed");
    }
}
