//! What an image is to the rest of holdfast.

use std::path::PathBuf;
use std::time::SystemTime;

use holdfast_registry::Digest;
use oci_spec::image::ImageConfiguration;

/// The digest of an image's configuration: what the kubelet and Docker call its id.
pub type ImageId = Digest;

/// An image that is on this machine, whole.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the configuration.
    pub id: ImageId,
    /// `registry/repository:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/repository@digest`, sorted; the digest of the index if the image came through one.
    pub repo_digests: Vec<String>,
    /// Bytes on disk of its layers, those shared with other images included, and its documents.
    pub size: u64,
    /// The configuration, parsed.
    pub config: ImageConfiguration,
    /// Chain ids of its layers, lowest first.
    pub layers: Vec<Digest>,
    /// Not to be collected by the kubelet.
    pub pinned: bool,
    /// The user that its processes run as unless the pod says otherwise.
    pub user: Option<User>,
}

/// The `User` of an image's configuration, its group dropped as CRI does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// A number.
    Uid(i64),
    /// A name, to be looked up in the image's `/etc/passwd`.
    Name(String),
}

impl User {
    /// Reads `user`, `uid`, `user:group` or `uid:gid`; `None` if it is empty.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let user = text.split(':').next().unwrap_or_default();
        match user.parse() {
            Ok(uid) => Some(Self::Uid(uid)),
            Err(_) if user.is_empty() => None,
            Err(_) => Some(Self::Name(user.to_owned())),
        }
    }
}

/// Use of the file system by images; for CRI's `ImageFsInfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsInfo {
    /// When these figures were true.
    pub at: SystemTime,
    /// The directory whose file system they are about.
    pub path: PathBuf,
    /// Bytes of layers and documents.
    pub used_bytes: u64,
    /// Their files, directories and links.
    pub used_inodes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_a_user_is_dropped() {
        assert_eq!(User::parse("1000:100"), Some(User::Uid(1000)));
        assert_eq!(User::parse("www-data"), Some(User::Name("www-data".into())));
        assert_eq!(User::parse(":5"), None);
        assert_eq!(User::parse(""), None);
    }
}
