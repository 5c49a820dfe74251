//! Writable layers on accounts of their own: each has a project id, under which the file system counts what it uses.
//!
//! Where the file system does that (ext4 with the features quota and project; XFS mounted with prjquota or pqnoenforce),
//! what a layer uses is one system call away at any time. Where it does not, all of this does nothing, and the engine
//! walks the layers.
//!
//! - Upper and work directory of a snapshot have the same id, and hand it down: overlay renames between the two, which the
//!   kernel allows within one id only. Image layers, which containers share, have none.
//! - The id is read back from the work directory when the daemon starts. No container sees that one.
//! - Ids come from a range of holdfast's own, at random, and only if the file system has nothing on account there, and
//!   neither /etc/projid nor /etc/projects speaks of it. Kubelet counts up from 1048577, and people from 1.
//! - A directory that has an id already, which it then has from the directory above, is left alone: somebody else counts.
//!
//! This is an account, not a limit, and it can be dodged: whoever owns a file may put it on another account (or none) by
//! FS_IOC_FSSETXATTR. It takes no capability, but the first user namespace: a container whose pod has a user namespace
//! cannot. A file that is on another layer's account is charged to that one; ids are random so that none can be aimed at.
//! The engine walks the layers that could do so now and then, and no longer believes an account that says less.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use holdfast_sys::project;
use rustix::fs::{Mode, OFlags};

use crate::{Error, Result};

/// The range: 0x68 is `h`. Twenty bits are drawn.
const FIRST: u32 = 0x6860_0000;
const COUNT: u32 = 1 << 20;
/// Ids that are drawn for one layer before that is given up.
const DRAWS: usize = 16;
/// What a probe writes: more than fits into an inode.
const PROBE: [u8; 4096] = [b'h'; 4096];

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// How it is known what writable layers use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accounting {
    /// The file system counts.
    ProjectQuota,
    /// Nobody does: somebody has to look.
    Walk {
        /// What the file system lacks, in words.
        reason: String,
    },
}

/// What is on a writable layer's account: its upper directory, and overlay's work directory (a few empty directories).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerUse {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Inodes, those of deleted files that are still open among them.
    pub inodes: u64,
}

/// The accounts of one root directory.
#[derive(Debug)]
pub(crate) struct Projects {
    accounting: Accounting,
    /// On the file system of the snapshots; `None` where it keeps no accounts.
    device: Option<OwnedFd>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    of: HashMap<String, u32>,
    /// Ids that are not to be drawn: those of `of`, those that files in /etc speak of, those found in use by somebody else.
    taken: HashSet<u32>,
}

impl Projects {
    /// Finds out what the file system of `snapshots` does, and which ids the snapshots `keys` have.
    pub fn open(snapshots: &Path, keys: &[String]) -> Self {
        let accounting = try_it(snapshots);
        match &accounting {
            Accounting::ProjectQuota => tracing::info!("writable layers: measured by project quota"),
            Accounting::Walk { reason } => {
                tracing::info!(reason, "writable layers: measured by walking them now and then");
            }
        }
        let mut known = Known::default();
        let mut device = None;
        if accounting == Accounting::ProjectQuota {
            device = rustix::fs::open(snapshots, DIRECTORY, Mode::empty()).ok();
            for file in ["/etc/projid", "/etc/projects"] {
                let text = std::fs::read_to_string(file).unwrap_or_default();
                known.taken.extend(ids_in(&text));
            }
            for key in keys {
                known.recall(key, &snapshots.join(key).join("work"));
            }
        }
        Self {
            accounting,
            device,
            known: Mutex::new(known),
        }
    }

    pub fn accounting(&self) -> &Accounting {
        &self.accounting
    }

    /// Opens an account for a snapshot whose directories are there and empty. Without one it is a snapshot too.
    ///
    /// # Errors
    /// If one of the directories has an id, the other has not, and this cannot be helped: overlay could not work on them.
    pub fn assign(&self, key: &str, upper: &Path, work: &Path) -> Result<()> {
        let Some(device) = &self.device else {
            return Ok(());
        };
        let refused = match self.give(device.as_fd(), upper, work) {
            Ok(id) => {
                self.known().of.insert(key.to_owned(), id);
                return Ok(());
            }
            Err(refused) => refused,
        };
        tracing::warn!(
            snapshot = key,
            reason = refused,
            "a writable layer has no account with the file system: what it uses is measured by walking it now and then"
        );
        for dir in [upper, work] {
            take_back(dir).map_err(|e| Error::io("take the project id from", dir, e))?;
        }
        Ok(())
    }

    fn give(&self, device: BorrowedFd<'_>, upper: &Path, work: &Path) -> Result<u32, String> {
        let open = |dir: &Path| {
            rustix::fs::open(dir, DIRECTORY, Mode::empty())
                .map_err(|e| format!("cannot open {}: {e}", dir.display()))
        };
        let (upper, work) = (open(upper)?, open(work)?);
        let told = |what: &'static str| move |e: std::io::Error| format!("cannot {what}: {e}");
        match project::get(&upper).map_err(told("read its project id"))? {
            0 => {}
            id => {
                return Err(format!(
                    "it is in a directory of project {id}, which is somebody else's"
                ));
            }
        }
        for _ in 0..DRAWS {
            let id = self.draw()?;
            if project::account(device, id)
                .map_err(told("read the account of a project"))?
                .unused()
            {
                for dir in [&work, &upper] {
                    project::set(dir, id).map_err(told("set a project id"))?;
                }
                let now = project::account(device, id).map_err(told("read the account of a project"))?;
                // More: another daemon on this disk has drawn it in the same moment.
                if now.inodes == 2 {
                    return Ok(id);
                }
            }
            tracing::debug!(project = id, "a project id is in use by somebody else");
        }
        Err(format!("{DRAWS} project ids that were drawn are all in use"))
    }

    /// An id that nobody here has. It is taken from then on.
    fn draw(&self) -> Result<u32, String> {
        let mut known = self.known();
        for _ in 0..DRAWS {
            let id = random_id().map_err(|e| format!("cannot get random bytes: {e}"))?;
            if known.taken.insert(id) {
                return Ok(id);
            }
        }
        Err("the range of project ids is used up".to_owned())
    }

    /// What a snapshot uses, now; `None` if it has no account. Reads the file system's memory, at times its disk.
    pub fn used(&self, key: &str) -> Option<LayerUse> {
        let device = self.device.as_ref()?;
        let id = *self.known().of.get(key)?;
        match project::account(device, id) {
            Ok(account) => Some(LayerUse {
                bytes: account.bytes,
                inodes: account.inodes,
            }),
            Err(error) => {
                tracing::debug!(snapshot = key, project = id, %error, "the file system does not tell what is on its account");
                None
            }
        }
    }

    /// Its directories are gone: another snapshot may have the id.
    pub fn release(&self, key: &str) {
        let mut known = self.known();
        if let Some(id) = known.of.remove(key) {
            known.taken.remove(&id);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// The id that a snapshot was given by an earlier daemon. Volumes that are images have no work directory.
    fn recall(&mut self, key: &str, work: &Path) {
        let id = rustix::fs::open(work, DIRECTORY, Mode::empty())
            .ok()
            .and_then(|dir| project::get(dir).ok());
        let Some(id) = id.filter(|id| ours(*id)) else {
            return;
        };
        if self.taken.insert(id) {
            self.of.insert(key.to_owned(), id);
        } else {
            tracing::warn!(
                snapshot = key,
                project = id,
                "its project id belongs to somebody else too: what it uses is measured by walking it now and then"
            );
        }
    }
}

/// Draws until an id is free, up to [`DRAWS`] times.
fn find(
    mut draw: impl FnMut() -> std::io::Result<u32>,
    mut unused: impl FnMut(u32) -> std::io::Result<bool>,
) -> std::io::Result<Option<u32>> {
    for _ in 0..DRAWS {
        let id = draw()?;
        if unused(id)? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

fn ours(id: u32) -> bool {
    (FIRST..FIRST + COUNT).contains(&id)
}

fn random_id() -> std::io::Result<u32> {
    let mut bytes = [0; 4];
    // Four bytes come whole or not at all.
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(FIRST + u32::from_ne_bytes(bytes) % COUNT)
}

/// Ids of the range that /etc/projid (`name:id`) or /etc/projects (`id:directory`) speaks of.
fn ids_in(text: &str) -> impl Iterator<Item = u32> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or(line))
        .flat_map(|line| line.split(':'))
        .filter_map(|field| field.trim().parse().ok())
        .filter(|id| ours(*id))
}

fn take_back(dir: &Path) -> std::io::Result<()> {
    let dir = rustix::fs::open(dir, DIRECTORY, Mode::empty())?;
    if ours(project::get(&dir)?) {
        project::set(&dir, 0)?;
    }
    Ok(())
}

/// Whether the file system of `dir` accounts for projects, by trying it in a hidden directory made there and removed again.
#[must_use]
pub fn try_it(dir: &Path) -> Accounting {
    match Probe::make(dir).and_then(|probe| probe.run()) {
        Ok(()) => Accounting::ProjectQuota,
        Err(reason) => Accounting::Walk { reason },
    }
}

struct Probe(PathBuf);

impl Probe {
    fn make(dir: &Path) -> Result<Self, String> {
        let failed = |e: std::io::Error| format!("cannot try it in {}: {e}", dir.display());
        let id = random_id().map_err(failed)?;
        let path = dir.join(format!(".holdfast-probe-{}-{id:x}", std::process::id()));
        std::fs::create_dir(&path).map_err(failed)?;
        Ok(Self(path))
    }

    fn run(&self) -> Result<(), String> {
        let failed = |e: std::io::Error| format!("cannot try it in {}: {e}", self.0.display());
        let dir = rustix::fs::open(&self.0, DIRECTORY, Mode::empty()).map_err(|e| failed(e.into()))?;
        match project::get(&dir) {
            Ok(0) => {}
            Ok(id) => return Err(format!("the directory belongs to project {id} of somebody else")),
            Err(e) => return Err(format!("the file system has no project ids ({e})")),
        }
        let none = |e: std::io::Error| format!("the file system keeps no accounts of projects ({e})");
        let unused = |id| project::account(&dir, id).map(|account| account.unused());
        let id = find(random_id, unused)
            .map_err(none)?
            .ok_or_else(|| format!("{DRAWS} project ids that were drawn for a trial are all in use"))?;
        project::set(&dir, id).map_err(|e| format!("the file system takes no project id ({e})"))?;
        std::fs::write(self.0.join("file"), PROBE).map_err(failed)?;
        let found = project::account(&dir, id).map_err(none)?;
        if found.inodes < 2 || found.bytes < PROBE.len() as u64 {
            return Err(format!(
                "after 2 inodes and {} bytes the file system accounts for {} and {}",
                PROBE.len(),
                found.inodes,
                found.bytes
            ));
        }
        Ok(())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0.join("file"));
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ids_of_the_range_that_an_administrator_uses() {
        let text = format!(
            "# {FIRST}\nbuild:{}\n{}:/srv/x # {}\n1048577:/var/lib/kubelet\n\nnone\n",
            FIRST + 1,
            FIRST + 2,
            FIRST + 3
        );
        assert_eq!(ids_in(&text).collect::<Vec<_>>(), [FIRST + 1, FIRST + 2]);
        assert!(ours(FIRST) && !ours(FIRST + COUNT) && !ours(1_048_577) && !ours(0));
    }

    #[test]
    fn what_is_drawn_is_drawn_once_until_it_is_given_back() {
        let projects = Projects {
            accounting: Accounting::ProjectQuota,
            device: None,
            known: Mutex::default(),
        };
        let drawn: HashSet<u32> = (0..1000).map(|_| projects.draw().unwrap()).collect();
        assert_eq!(drawn.len(), 1000);
        assert!(drawn.iter().all(|id| ours(*id)));
        let id = *drawn.iter().next().unwrap();
        projects.known().of.insert("a".to_owned(), id);
        projects.release("a");
        projects.release("a");
        assert!(!projects.known().taken.contains(&id));
        assert_eq!(projects.known().taken.len(), 999);
        // All are taken: it ends.
        projects.known().taken.extend(FIRST..FIRST + COUNT);
        assert!(projects.draw().is_err());
    }

    #[test]
    fn a_trial_draws_again_where_an_id_is_in_use() {
        let mut ids = 0..;
        let mut next = || ids.next().ok_or_else(|| std::io::Error::other("no more"));
        assert_eq!(find(&mut next, |id| Ok(id == 5)).unwrap(), Some(5));
        assert_eq!(find(&mut next, |_| Ok(false)).unwrap(), None, "it ends");
        assert!(find(&mut next, |_| Err(std::io::Error::other("none"))).is_err());
    }

    #[test]
    fn a_file_system_without_says_what_it_lacks_and_is_left_as_it_was() {
        let projects = Projects::open(Path::new("/proc"), &["a".to_owned()]);
        assert!(matches!(projects.accounting(), Accounting::Walk { reason } if reason.contains("/proc")));
        assert_eq!(projects.used("a"), None);
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let _ = try_it(dir.path());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
