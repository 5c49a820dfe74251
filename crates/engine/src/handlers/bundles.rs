//! Where bundles lie (those of external runtimes, and of containers with hooks that the built-in launcher makes), and what
//! is done about those that no monitor removes.
//!
//! The directory is a private mount of its own (decision record 1): what a monitor mounts below it in a copy of the
//! host's mount namespace stays unseen by the host, and volumes propagate all the same.

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_model::{ContainerId, ContainerRecord, OciRuntime};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use tokio::process::Command;
use tracing::warn;

use crate::shared::{Shared, blocking};
use crate::{Config, Error};

const DELETE: Duration = Duration::from_secs(15);
/// The launcher's mark of a container whose poststop hooks have not been run.
const POSTSTOP: &str = "poststop";
/// Where the launcher mounts in a bundle.
const PLACES: [&str; 3] = ["rootfs", "shm", "staging"];

/// The containers that have a bundle. That of the built-in launcher's is on no record: the directory is the record, and it
/// is read once, so that containers without hooks cost nothing.
#[derive(Debug, Default)]
pub(crate) struct Bundles {
    known: Mutex<BTreeSet<ContainerId>>,
    /// Whose turn it is to see to the mount: two who find none would make two.
    mounting: tokio::sync::Mutex<()>,
}

impl Bundles {
    /// Those that an earlier daemon has left. Blocks.
    pub(crate) fn open(config: &Config) -> Self {
        Self {
            known: Mutex::new(ids_in(&config.bundles()).into_iter().collect()),
            mounting: tokio::sync::Mutex::default(),
        }
    }

    /// The path of the container's bundle, if it has one.
    pub(crate) fn of(&self, config: &Config, id: &ContainerId) -> Option<PathBuf> {
        self.has(id).then(|| config.bundles().join(id.as_str()))
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<ContainerId>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, id: &ContainerId) -> bool {
        self.known().contains(id)
    }

    fn forget(&self, id: &ContainerId) {
        self.known().remove(id);
    }
}

/// Where a container with hooks will have its bundle, before its monitor makes it there.
pub(crate) async fn reserve(shared: &Shared, id: ContainerId) -> Result<(), Error> {
    let config = shared.config.clone();
    let turn = shared.bundles.mounting.lock().await;
    blocking(move || ensure(&config)).await?;
    drop(turn);
    shared.bundles.known().insert(id);
    Ok(())
}

/// Makes the directory and its mount, where a handler needs them. Blocks.
pub(crate) fn prepare(config: &Config) -> Result<(), Error> {
    if config.handlers.iter().all(|handler| handler.runtime.is_none()) {
        return Ok(());
    }
    ensure(config)
}

fn ensure(config: &Config) -> Result<(), Error> {
    let dir = config.bundles();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|source| Error::io("make", &dir, source))?;
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")
        .map_err(|source| Error::io("read", "/proc/thread-self/mountinfo", source))?;
    match mounted(&table, &dir) {
        Some(true) => return Ok(()),
        Some(false) => {}
        None => mount_bind(&dir, &dir).map_err(|e| Error::io("bind-mount", &dir, e.into()))?,
    }
    mount_change(&dir, MountPropagationFlags::PRIVATE).map_err(|e| Error::io("make private", &dir, e.into()))
}

/// Whether something is mounted there, and whether it is private.
fn mounted(table: &str, dir: &Path) -> Option<bool> {
    let place = dir.to_string_lossy();
    let line = table
        .lines()
        .rev()
        .find(|line| line.split(' ').nth(4) == Some(&place))?;
    let optional = line.split(" - ").next().unwrap_or_default();
    Some(!optional.contains(" shared:"))
}

/// At the daemon's end: takes the mount off, unless containers have their bundles there.
pub(crate) fn release(config: &Config) {
    let dir = config.bundles();
    let used = std::fs::read_dir(&dir).map_or(true, |mut entries| entries.next().is_some());
    if !used
        && std::fs::read_to_string("/proc/thread-self/mountinfo")
            .is_ok_and(|table| mounted(&table, &dir).is_some())
    {
        let _left = unmount(&dir, UnmountFlags::DETACH);
    }
}

/// After the monitor has removed a container, or could not: has the runtime forget it, if it still knows it.
pub(crate) async fn sweep(shared: &Shared, record: &ContainerRecord) -> Result<(), Error> {
    let Some(runtime) = &record.runtime else {
        return sweep_hooked(shared, &record.id).await;
    };
    forget(&shared.config, runtime, &record.id).await
}

/// The same for the built-in launcher, which keeps nothing of a container but its bundle.
async fn sweep_hooked(shared: &Shared, id: &ContainerId) -> Result<(), Error> {
    let Some(bundle) = shared.bundles.of(&shared.config, id) else {
        return Ok(());
    };
    let owed = blocking(move || {
        let owed = bundle.join(POSTSTOP).exists();
        remove_bundle(&bundle).map(|()| owed)
    })
    .await?;
    if owed {
        warn!(container = %id, "its poststop hooks were not run: its monitor was killed, and nobody saw it end");
    }
    shared.bundles.forget(id);
    Ok(())
}

async fn forget(config: &Config, runtime: &OciRuntime, id: &ContainerId) -> Result<(), Error> {
    let state = runtime.root.join(id.as_str());
    if tokio::fs::try_exists(&state).await.unwrap_or(true) {
        let mut command = Command::new(&runtime.program);
        command.arg("--root").arg(&runtime.root).args(&runtime.options);
        command.args(["delete", "--force", id.as_str()]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        holdfast_sys::process::keep_service_private(command.as_std_mut());
        let outcome = tokio::time::timeout(DELETE, command.output()).await;
        if tokio::fs::try_exists(&state).await.unwrap_or(true) {
            let why = match outcome {
                Err(_) => format!("no end after {} s", DELETE.as_secs()),
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(output)) => {
                    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                    said.chars().take(1000).collect()
                }
            };
            return Err(Error::Internal {
                what: format!("{} delete --force {id}: {why}", runtime.program.display()),
            });
        }
    }
    let bundle = config.bundles().join(id.as_str());
    blocking(move || remove_bundle(&bundle)).await
}

/// What is mounted in it, or lies where the container's mounts do, is an error and stays.
fn remove_bundle(bundle: &Path) -> Result<(), Error> {
    holdfast_sys::tree::remove(bundle, &PLACES).map_err(|source| Error::io("remove", bundle, source))
}

/// At the daemon's start: what runtimes and the bundles' directory hold of containers that are on no record.
pub(crate) async fn sweep_strays(shared: &Shared) {
    let known: BTreeSet<ContainerId> = shared
        .views
        .containers
        .all()
        .iter()
        .map(|record| record.id)
        .collect();
    for handler in &shared.config.handlers {
        let Some(runtime) = &handler.runtime else {
            continue;
        };
        let runtime = OciRuntime {
            program: runtime.program.clone(),
            root: runtime.root.clone(),
            options: runtime.options.clone(),
        };
        for id in ids_in(&runtime.root).into_iter().filter(|id| !known.contains(id)) {
            warn!(container = %id, handler = handler.name, "belongs to no record: it is deleted");
            if let Err(error) = forget(&shared.config, &runtime, &id).await {
                warn!(container = %id, "{}", error.chain());
            }
        }
    }
    for id in ids_in(&shared.config.bundles()) {
        if known.contains(&id) {
            continue;
        }
        match remove_bundle(&shared.config.bundles().join(id.as_str())) {
            Ok(()) => shared.bundles.forget(&id),
            Err(error) => warn!(container = %id, "{}", error.chain()),
        }
    }
}

fn ids_in(dir: &Path) -> Vec<ContainerId> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| ContainerId::parse(&name).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_with_its_propagation() {
        let table = "1 0 8:1 / / rw shared:1 - ext4 a rw\n2 1 8:1 /b /b rw shared:2 - ext4 a rw\n\
                     3 1 8:1 /c /c rw - ext4 a rw\n";
        assert_eq!(mounted(table, Path::new("/b")), Some(false));
        assert_eq!(mounted(table, Path::new("/c")), Some(true));
        assert_eq!(mounted(table, Path::new("/d")), None);
    }

    #[test]
    fn only_ids_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let id = ContainerId::from_bytes([7; 32]);
        for name in [id.as_str(), "other", "x.tmp"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(ids_in(dir.path()), [id]);
        assert!(ids_in(&dir.path().join("none")).is_empty());
        let bundle = dir.path().join(id.as_str());
        std::fs::create_dir_all(bundle.join("rootfs/etc")).unwrap();
        remove_bundle(&bundle).unwrap_err();
        assert!(bundle.join("rootfs/etc").exists());
        std::fs::remove_dir(bundle.join("rootfs/etc")).unwrap();
        remove_bundle(&bundle).unwrap();
        assert!(ids_in(dir.path()).is_empty());
    }
}
