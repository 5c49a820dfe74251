//! A tree as text, to compare two of them; and overlays mounted as the launcher would.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use holdfast_images::Snapshot;
use holdfast_registry::Digest;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Every path with its type, owner, mode, links, content and xattrs. Times of directories only if asked for.
pub fn list(root: &Path, directory_times: bool) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut inodes: HashMap<u64, String> = HashMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(path) = open.pop() {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let mut line = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
        if kind.is_dir() {
            let mut children: Vec<PathBuf> = std::fs::read_dir(&path)
                .unwrap()
                .map(|e| e.unwrap().path())
                .collect();
            // So that hard links are numbered in the same order everywhere.
            children.sort_unstable();
            open.extend(children.into_iter().rev());
        } else if kind.is_symlink() {
            line += &format!(" -> {}", std::fs::read_link(&path).unwrap().display());
        } else if kind.is_file() {
            line += &format!(
                " {} {}",
                meta.len(),
                Digest::sha256(&std::fs::read(&path).unwrap())
            );
        } else if kind.is_char_device() || kind.is_block_device() {
            line += &format!(
                " device {}:{}",
                rustix::fs::major(meta.rdev()),
                rustix::fs::minor(meta.rdev())
            );
        }
        if !kind.is_dir() || directory_times {
            line += &format!(" at {}.{}", meta.mtime(), meta.mtime_nsec());
        }
        if !kind.is_dir() && meta.nlink() > 1 {
            line += &format!(
                " same as {}",
                inodes.entry(meta.ino()).or_insert_with(|| name.clone())
            );
        }
        for (key, value) in xattrs(&path) {
            line += &format!(" {key}={value:?}");
        }
        out.insert(name, line);
    }
    out
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0u8; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut out = BTreeMap::new();
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0u8; 1 << 16];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        out.insert(
            String::from_utf8_lossy(name).into_owned(),
            value[..length].to_vec(),
        );
    }
    out
}

/// A mounted snapshot, in a mount namespace of this thread.
pub struct Mounted {
    pub path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mounted {
    pub fn new(snapshot: &Snapshot) -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let lowers: Vec<&[u8]> = snapshot.lowers.iter().map(|p| p.as_os_str().as_bytes()).collect();
        let mut data = [b"lowerdir=", lowers.join(&b':').as_slice()].concat();
        data.extend_from_slice(b",upperdir=");
        data.extend_from_slice(snapshot.upper.as_os_str().as_bytes());
        data.extend_from_slice(b",workdir=");
        data.extend_from_slice(snapshot.work.as_os_str().as_bytes());
        for option in &snapshot.options {
            data.push(b',');
            data.extend_from_slice(option.as_bytes());
        }
        mount(
            Some("overlay"),
            dir.path(),
            Some(snapshot.fs_type),
            MsFlags::empty(),
            Some(data.as_slice()),
        )
        .unwrap();
        Self {
            path: dir.path().to_path_buf(),
            _dir: dir,
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Shows where two trees differ.
pub fn assert_same(ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>) {
    let mut differences = Vec::new();
    for name in ours
        .keys()
        .chain(theirs.keys())
        .collect::<std::collections::BTreeSet<_>>()
    {
        let (a, b) = (ours.get(name), theirs.get(name));
        if a != b {
            differences.push(format!("{name}:\n  ours   {a:?}\n  theirs {b:?}"));
        }
    }
    assert!(
        differences.is_empty(),
        "{} differences\n{}",
        differences.len(),
        differences.join("\n")
    );
}
