//! Records on disk, written off the runtime's threads: a sick disk may hold up a pod, never the daemon.

use std::sync::Arc;

use holdfast_model::{ContainerId, ContainerRecord, SandboxId, SandboxRecord};
use holdfast_store::{Record, Records};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Config, Error};

/// Writes at a time, of the few threads that the daemon has for files (32); the rest wait their turn.
const WRITES: usize = 16;
/// Removals at a time. What comes before one can take as long as a process takes to die: those that hang must leave threads
/// for everything else.
const REMOVALS: usize = 8;

/// A record as the `store` crate wants it, without a copy.
pub(crate) struct Stored<T>(pub Arc<T>);

impl<T: Serialize> Serialize for Stored<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Stored<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(|record| Self(Arc::new(record)))
    }
}

impl<T: Serialize + DeserializeOwned> Record for Stored<T> {}

type Kept<T> = Arc<Records<Stored<T>>>;

pub(crate) struct Disk {
    sandboxes: Kept<SandboxRecord>,
    containers: Kept<ContainerRecord>,
    writes: Arc<Semaphore>,
    removals: Arc<Semaphore>,
}

/// What the disk held at the start.
pub(crate) struct Found {
    pub disk: Disk,
    pub sandboxes: Vec<Arc<SandboxRecord>>,
    pub containers: Vec<Arc<ContainerRecord>>,
    /// Records that were damaged and put aside, for the log.
    pub damaged: Vec<String>,
}

impl Disk {
    /// Blocks.
    pub(crate) fn open(config: &Config) -> Result<Found, Error> {
        let mut damaged = Vec::new();
        let (sandboxes, pods) = open_one(config, "pods", &mut damaged)?;
        let (containers, boxes) = open_one(config, "containers", &mut damaged)?;
        let disk = Disk {
            sandboxes,
            containers,
            writes: Arc::new(Semaphore::new(WRITES)),
            removals: Arc::new(Semaphore::new(REMOVALS)),
        };
        Ok(Found {
            disk,
            sandboxes: pods,
            containers: boxes,
            damaged,
        })
    }

    pub(crate) async fn put_sandbox(&self, record: Arc<SandboxRecord>) -> Result<(), Error> {
        let (store, id) = (self.sandboxes.clone(), record.id);
        self.blocking(move |_turn| written(&store, id.as_str(), record))
            .await
    }

    pub(crate) async fn put_container(&self, record: Arc<ContainerRecord>) -> Result<(), Error> {
        self.put_container_then(record, || ()).await
    }

    /// Writes the record, then does `next`, in one go: each change of thread costs more than the work.
    pub(crate) async fn put_container_then<T: Send + 'static>(
        &self,
        record: Arc<ContainerRecord>,
        next: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (store, id) = (self.containers.clone(), record.id);
        self.blocking(move |turn| {
            let done = written(&store, id.as_str(), record);
            // What comes next is another's time.
            drop(turn);
            done.map(|()| next())
        })
        .await
    }

    /// Removes the record after `first` has succeeded, in one go.
    pub(crate) async fn remove_sandbox(
        &self,
        id: &SandboxId,
        first: impl FnOnce() -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (store, id) = (self.sandboxes.clone(), *id);
        self.removal(move || first().and_then(|()| removed(&store, id.as_str())))
            .await
    }

    /// As [`Disk::remove_sandbox`].
    pub(crate) async fn remove_container(
        &self,
        id: &ContainerId,
        first: impl FnOnce() -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (store, id) = (self.containers.clone(), *id);
        self.removal(move || first().and_then(|()| removed(&store, id.as_str())))
            .await
    }

    /// Work that waits for processes to die, in its turn among removals.
    pub(crate) async fn removal<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = self.removals.clone().acquire_owned().await.map_err(|_| gone())?;
        run(move || {
            let done = work();
            drop(turn);
            done
        })
        .await
    }

    /// Writes wait for each other only: a removal may take long.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(OwnedSemaphorePermit) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = self.writes.clone().acquire_owned().await.map_err(|_| gone())?;
        run(move || work(turn)).await
    }
}

async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| gone())?
}

fn gone() -> Error {
    Error::Internal {
        what: "the runtime is shutting down".into(),
    }
}

fn written<T: Serialize + DeserializeOwned>(
    store: &Records<Stored<T>>,
    id: &str,
    record: Arc<T>,
) -> Result<(), Error> {
    let outcome = store.put(id, &Stored(record));
    outcome.map_err(|source| Error::Record {
        id: id.to_owned(),
        source: Box::new(source),
    })
}

fn removed<T: Serialize + DeserializeOwned>(store: &Records<Stored<T>>, id: &str) -> Result<(), Error> {
    let outcome = store.remove(id);
    outcome.map(drop).map_err(|source| Error::Record {
        id: id.to_owned(),
        source: Box::new(source),
    })
}

type Opened<T> = (Kept<T>, Vec<Arc<T>>);

fn open_one<T: Serialize + DeserializeOwned>(
    config: &Config,
    kind: &str,
    damaged: &mut Vec<String>,
) -> Result<Opened<T>, Error> {
    let opened = Records::<Stored<T>>::open(config.records(kind)).map_err(|source| Error::Record {
        id: format!("every one of the {kind}"),
        source: Box::new(source),
    })?;
    for bad in opened.quarantined {
        damaged.push(format!(
            "{}: {} (moved to {})",
            bad.key,
            bad.reason,
            bad.moved_to.display()
        ));
    }
    Ok((
        Arc::new(opened.store),
        opened.records.into_iter().map(|(_, record)| record.0).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    /// As many threads as are needed for what is asserted.
    #[test]
    fn removals_that_hang_leave_threads_to_write() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(REMOVALS + 1)
            .enable_time()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path().join("root"), dir.path().join("state"), "/none");
        let disk = Arc::new(Disk::open(&config).unwrap().disk);
        let begun = Arc::new(AtomicUsize::new(0));
        let (wake, woken) = std::sync::mpsc::channel::<()>();
        let woken = Arc::new(std::sync::Mutex::new(woken));
        runtime.block_on(async {
            let mut removals = tokio::task::JoinSet::new();
            for n in 0..u8::try_from(3 * REMOVALS).unwrap() {
                let (disk, begun, woken) = (disk.clone(), begun.clone(), woken.clone());
                removals.spawn(async move {
                    let first = move || {
                        begun.fetch_add(1, Ordering::Relaxed);
                        let _woken = woken.lock().unwrap().recv();
                        Ok(())
                    };
                    disk.remove_sandbox(&SandboxId::from_bytes([n; 32]), first).await
                });
            }
            while begun.load(Ordering::Relaxed) < REMOVALS {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let id = SandboxId::from_bytes([99; 32]);
            let written = disk.put_sandbox(Arc::new(crate::testing::sandbox(id)));
            tokio::time::timeout(Duration::from_secs(30), written)
                .await
                .expect("a thread to write with")
                .unwrap();
            assert_eq!(begun.load(Ordering::Relaxed), REMOVALS);
            drop(wake);
            while let Some(done) = removals.join_next().await {
                done.unwrap().unwrap();
            }
        });
        assert_eq!(Disk::open(&config).unwrap().sandboxes.len(), 1);
    }
}
