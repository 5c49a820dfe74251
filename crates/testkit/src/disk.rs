//! A disk with project quota: a file system of the test's own, on a loop device.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{Scratch, wait_for};

/// Sparse; XFS takes nothing below 300 MiB.
const SIZE: u64 = 512 << 20;

/// File systems that account for projects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    Ext4,
    Xfs,
}

/// An image file with a file system. Everything that uses it must be gone before it: that its loop device is free again
/// is checked when it is dropped.
#[derive(Debug)]
pub struct Disk {
    kind: DiskKind,
    image: PathBuf,
    _scratch: Scratch,
}

impl Disk {
    #[must_use]
    pub fn new(kind: DiskKind) -> Self {
        let scratch = Scratch::new("disk");
        let image = scratch.path().join("image");
        let file = std::fs::File::create(&image);
        file.and_then(|file| file.set_len(SIZE))
            .unwrap_or_else(|error| panic!("could not make {}: {error}", image.display()));
        let mut make = match kind {
            DiskKind::Ext4 => {
                let mut make = Command::new("mke2fs");
                make.args([
                    "-q",
                    "-t",
                    "ext4",
                    "-O",
                    "quota,project",
                    "-E",
                    "quotatype=prjquota",
                ]);
                make
            }
            DiskKind::Xfs => {
                let mut make = Command::new("mkfs.xfs");
                make.arg("-q");
                make
            }
        };
        run(make.arg(&image));
        Self {
            kind,
            image,
            _scratch: scratch,
        }
    }

    /// Mounts it on a directory, in the calling thread's mount namespace ([`crate::isolate_mounts`]). Wants a loop device
    /// and a kernel with quotas: CONFIG_QFMT_V2 for ext4, CONFIG_XFS_QUOTA for XFS.
    pub fn mount(&self, point: &Path) {
        let kind = match self.kind {
            DiskKind::Ext4 => "ext4",
            DiskKind::Xfs => "xfs",
        };
        run(Command::new("mount")
            .args(["-t", kind, "-o", "loop,prjquota"])
            .arg(&self.image)
            .arg(point));
    }

    fn loops(&self) -> Vec<PathBuf> {
        let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let backed = |device: &PathBuf| {
            let file = std::fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
            Path::new(file.trim_end()) == self.image
        };
        devices.map(|device| device.path()).filter(backed).collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            wait_for(Duration::from_secs(30), "the loop device to be free", || {
                self.loops().is_empty().then_some(())
            });
        }
    }
}

fn run(command: &mut Command) {
    let out = command
        .output()
        .unwrap_or_else(|error| panic!("this test needs {:?}: {error}", command.get_program()));
    assert!(
        out.status.success(),
        "{command:?} failed; this test needs a loop device and a kernel with project quotas: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}
