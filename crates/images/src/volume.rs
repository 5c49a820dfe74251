//! Images, and parts of them, as volumes: which directories an overlay is made of. Nothing is mounted here.
//!
//! Two kinds. A volume that *is* an image (KEP-4639) is read-only; it keeps the image's layers as a snapshot does, under a
//! key of its own. A volume that an image *declares* (`VOLUME`) is writable and begins with what the image has there:
//! an overlay again, so that nothing is copied before it is written to. It lives and dies with the container's snapshot.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Gid, Uid, fstat};

use crate::images::Shared;
use crate::merged::{self, Node};
use crate::snapshot::mapped;
use crate::{Error, ImageId, PrepareOptions, Result};

/// What an image, or a path in it, shows as a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Volume {
    /// Directories of an overlay, uppermost first: at least two, as one without an upper directory needs.
    Directory { lowers: Vec<PathBuf> },
    /// One file, to be bound.
    File(PathBuf),
}

/// The parts of an overlay for a volume that an image declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredVolume {
    /// Where the image wants it.
    pub path: String,
    /// Uppermost first. Never empty.
    pub lowers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// As those of [`crate::Snapshot`].
    pub options: Vec<String>,
}

/// `sub_path` of the image; its layers are already held.
pub(crate) fn of_image(shared: &Shared, image: &ImageId, sub_path: &str) -> Result<Volume> {
    let refused = |reason: String| Error::FilePath {
        image: image.to_string(),
        path: sub_path.to_owned(),
        reason,
    };
    match find(shared, image, sub_path)? {
        Found::Nothing => Err(refused("there is no such file or directory".to_owned())),
        Found::Directories(mut lowers) => {
            if lowers.len() == 1 {
                lowers.push(shared.places.empty.clone());
            }
            Ok(Volume::Directory { lowers })
        }
        Found::File(path) => Ok(Volume::File(path)),
        Found::Other => Err(refused("is neither a file nor a directory".to_owned())),
    }
}

/// Makes what the declared volumes of a container need, below its snapshot.
pub(crate) fn declared(
    shared: &Shared,
    key: &str,
    image: &ImageId,
    paths: &[String],
    options: &PrepareOptions,
) -> Result<Vec<DeclaredVolume>> {
    let dir = shared.places.snapshots.join(key);
    let one = |(n, path): (usize, &String)| {
        let lowers = match find(shared, image, path)? {
            Found::Directories(lowers) => lowers,
            Found::Nothing => vec![shared.places.empty.clone()],
            Found::File(_) | Found::Other => {
                return Err(Error::FilePath {
                    image: image.to_string(),
                    path: path.clone(),
                    reason: "is declared as a volume, but is a file".to_owned(),
                });
            }
        };
        let place = dir.join(format!("volume{n}"));
        let volume = DeclaredVolume {
            path: path.clone(),
            upper: place.join("upper"),
            work: place.join("work"),
            lowers,
            options: vec!["volatile".to_owned()],
        };
        for made in [&place, &volume.work, &volume.upper] {
            let builder = std::fs::DirBuilder::new().mode(0o700).create(made);
            builder.map_err(|e| Error::io("make", made, e))?;
        }
        look_like(&volume.upper, &volume.lowers[0], options)?;
        Ok(volume)
    };
    paths.iter().enumerate().map(one).collect()
}

/// Gives an upper directory the owner and the mode of what it covers, through the pod's id maps.
pub(crate) fn look_like(upper: &Path, covered: &Path, options: &PrepareOptions) -> Result<()> {
    let meta = std::fs::metadata(covered).map_err(|e| Error::io("read", covered, e))?;
    let uid = mapped(meta.uid(), &options.uid_maps);
    let gid = mapped(meta.gid(), &options.gid_maps);
    rustix::fs::chown(upper, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(|e| Error::io("change the owner of", upper, e))?;
    let mode = std::fs::Permissions::from_mode(meta.mode() & 0o7777);
    std::fs::set_permissions(upper, mode).map_err(|e| Error::io("change the mode of", upper, e))
}

enum Found {
    Nothing,
    /// Uppermost first.
    Directories(Vec<PathBuf>),
    File(PathBuf),
    Other,
}

/// Layers never change once they are recorded, and the path found has no links: naming what was opened is safe.
fn find(shared: &Shared, image: &ImageId, path: &str) -> Result<Found> {
    let refused = |reason: String| Error::FilePath {
        image: image.to_string(),
        path: path.to_owned(),
        reason,
    };
    let layers = shared.state.lowers(image, &shared.places)?;
    let resolved = merged::resolve(&layers, path).map_err(refused)?;
    let mut real = PathBuf::new();
    for name in &resolved.path {
        use std::os::unix::ffi::OsStrExt;
        real.push(std::ffi::OsStr::from_bytes(name));
    }
    // Which of the layers each opened directory is of.
    let place = |device: u64, inode: u64| {
        layers.iter().map(|layer| layer.join(&real)).find(|path| {
            std::fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (device, inode))
        })
    };
    Ok(match resolved.node {
        _ if resolved.broken => Found::Nothing,
        Node::Absent => Found::Nothing,
        Node::Directory(dirs) => {
            let mut lowers = Vec::with_capacity(dirs.len());
            for dir in &dirs {
                let stat = fstat(dir).map_err(|e| refused(std::io::Error::from(e).to_string()))?;
                lowers.extend(place(stat.st_dev, stat.st_ino));
            }
            Found::Directories(lowers)
        }
        Node::Leaf { stat, .. } if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
            place(stat.st_dev, stat.st_ino).map_or(Found::Nothing, Found::File)
        }
        Node::Leaf { .. } => Found::Other,
    })
}
