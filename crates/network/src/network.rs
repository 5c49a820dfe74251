//! The face of the crate: picks the built-in network or CNI for a pod, and remembers which it was.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Once, Weak};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, RwLock};
use tracing::{info, warn};

use crate::bridge::{self, Bridge};
use crate::cni::{self, Selected};
use crate::config::{Config, Subnet};
use crate::record::{Backend, Book, Phase, PodRecord};
use crate::retry::Retry;
use crate::types::{NetResult, NetworkStatus, PodNetwork, Reconciled};
use crate::{Error, Result};

/// Between two looks for a moment in which no plugin runs.
const GC_PAUSE: Duration = Duration::from_millis(200);
/// Between two looks for a configuration that is still to come.
const GC_WAIT: Duration = Duration::from_secs(5);

/// The node's pod networks. Clones share one owner.
#[derive(Clone, Debug)]
pub struct Network {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    book: Arc<Book>,
    bridge: bridge::Handle,
    cni: Arc<cni::Loader>,
    /// Directory of the CNI configuration and its template.
    template: Option<(PathBuf, PathBuf)>,
    executor: cni::Executor,
    locks: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
    /// Shared by ADD and DEL; GC has it alone (CNI 1.1, "GC: Clean up any stale resources").
    plugins: RwLock<()>,
    retry: Retry,
    /// That bandwidth is not limited has been said.
    unlimited: Once,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").finish_non_exhaustive()
    }
}

impl Network {
    /// Reads the records and the CNI directory; touches no interface and no rule until a pod asks or
    /// [`Network::reconcile`] runs. Must be called within a tokio runtime, in the host's network namespace.
    pub fn open(config: Config) -> Result<Self> {
        let Config {
            cni_conf_dir,
            cni_bin_dirs,
            cni_conf_template,
            cni_timeout,
            bridge,
            root,
            ..
        } = config;
        bridge.validate()?;
        let book = Arc::new(Book::open(&root)?);
        let bridge = Bridge::spawn(bridge, &root, Arc::clone(&book))?;
        let executor = cni::Executor::new(cni_bin_dirs, cni_timeout);
        let places = cni_conf_template.map(|template| (cni_conf_dir.clone(), template));
        let template = places.as_ref().map(|(_, template)| template.clone());
        let cni = cni::Loader::start(cni_conf_dir, template, executor.clone())?;
        let shared = Arc::new_cyclic(|weak: &Weak<Shared>| Shared {
            book,
            bridge,
            cni,
            template: places,
            executor,
            locks: Mutex::default(),
            plugins: RwLock::default(),
            retry: Retry::start(weak.clone()),
            unlimited: Once::new(),
        });
        Ok(Self { shared })
    }

    /// Whether external plugins are configured: then [`PodNetwork::netns_path`] is required.
    #[must_use]
    pub fn needs_netns_path(&self) -> bool {
        !matches!(self.shared.cni.current(), Selected::Builtin)
    }

    /// Whether pods can be given a network now; from memory.
    #[must_use]
    pub fn status(&self) -> NetworkStatus {
        self.shared.cni.status()
    }

    /// Gives a pod its network: loopback up, one interface with addresses and routes, host ports. On failure everything
    /// is unwound, in the background if need be. Dropping the future does not stop it half-way: what it began is on
    /// record, and [`Network::teardown`] or [`Network::reconcile`] takes it down.
    pub async fn setup(&self, pod: PodNetwork) -> Result<NetResult> {
        pod.validate()?;
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move { shared.setup(pod).await })
            .await
            .map_err(|_| Error::Stopped)?
    }

    /// Takes a pod's network down. Repeatable; no record is success.
    ///
    /// The built-in network leaves the interface to the death of the pod's namespace and frees its addresses after
    /// that. An error is for the log only: the record stays and the attempt is repeated in the background, with
    /// increasing pauses, until it succeeds; the namespace may be closed meanwhile.
    pub async fn teardown(&self, sandbox_id: &str) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let id = sandbox_id.to_owned();
        tokio::spawn(async move {
            let outcome = shared.teardown(&id).await;
            if outcome.is_err() {
                shared.retry.add(id);
            }
            outcome
        })
        .await
        .map_err(|_| Error::Stopped)?
    }

    /// The node's pod ranges from the kubelet: at most one of each family, the primary one first. The built-in network gives
    /// new pods addresses from them, now and after a restart; pods that there are keep theirs. Where there is a template of a
    /// CNI configuration it is filled in and written, unless there is a usable configuration of somebody else's.
    pub async fn set_pod_ranges(&self, ranges: Vec<Subnet>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move { shared.set_pod_ranges(ranges).await })
            .await
            .map_err(|_| Error::Stopped)?
    }

    /// What the kubelet has handed down last; empty: nothing.
    pub async fn pod_ranges(&self) -> Result<Vec<Subnet>> {
        self.shared.bridge.call(|bridge| bridge.given()).await
    }

    /// What a pod got, from memory; absent while it is being set up or taken down.
    #[must_use]
    pub fn result(&self, sandbox_id: &str) -> Option<NetResult> {
        let record = self.shared.book.get(sandbox_id)?;
        if record.phase != Phase::Ready {
            return None;
        }
        record.result.clone()
    }

    /// After a start: takes down what belongs to no live sandbox (addresses, rules, interfaces, CNI attachments), and
    /// rebuilds bridge and rules for those that live. CNI clean-up goes on in the background.
    pub async fn reconcile<I, S>(&self, live: I) -> Result<Reconciled>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let live: BTreeSet<String> = live.into_iter().map(Into::into).collect();
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move { shared.reconcile(&live).await })
            .await
            .map_err(|_| Error::Stopped)?
    }

    /// Sandboxes whose teardown is still to be finished.
    #[must_use]
    pub fn draining(&self) -> Vec<String> {
        let mut ids: Vec<String> = self
            .shared
            .book
            .all()
            .iter()
            .filter(|r| r.phase == Phase::Draining)
            .map(|r| r.sandbox_id.clone())
            .collect();
        ids.sort();
        ids
    }
}

impl Shared {
    /// Waits for the pod's turn: CNI forbids two operations on one container at a time.
    async fn turn(&self, id: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self
                .locks
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let known = locks.get(id).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::new(AsyncMutex::new(()));
                locks.insert(id.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    async fn setup(self: Arc<Self>, pod: PodNetwork) -> Result<NetResult> {
        let _turn = self.turn(&pod.sandbox_id).await;
        if self.book.get(&pod.sandbox_id).is_some() {
            return Err(Error::AlreadySetUp { id: pod.sandbox_id });
        }
        match self.cni.current() {
            Selected::Builtin => {
                if pod.bandwidth.is_some() {
                    self.unlimited.call_once(|| {
                        warn!(
                            sandbox = %pod.sandbox_id,
                            "a pod asks for a limit of its bandwidth: the built-in network has none (the bandwidth plugin of cni does); \
                             this is said once"
                        );
                    });
                }
                self.bridge.call(move |bridge| bridge.attach(pod)).await?
            }
            Selected::Broken { path, reason } => Err(Error::CniConfig { path, reason }),
            Selected::Network(list) => self.setup_cni(pod, &list).await,
        }
    }

    async fn setup_cni(&self, mut pod: PodNetwork, list: &Arc<cni::NetworkList>) -> Result<NetResult> {
        let Some(netns_path) = pod.netns_path.take() else {
            return Err(Error::NetnsPathMissing {
                id: pod.sandbox_id,
                network: list.name.clone(),
            });
        };
        // Before the record: a plugin that was never there could not be asked to undo anything, and would be for ever.
        self.executor.require(list)?;
        let _shared = self.plugins.read().await;
        let attachment = cni::Attachment::new(&pod, list, netns_path);
        let mut record = PodRecord::new(&pod, Backend::Cni(attachment.clone()));
        self.book.reserve(&record)?;
        let id = pod.sandbox_id.clone();
        let loopback = self.bridge.loopback(pod.netns, pod.netlink.take());
        let added = match loopback.await {
            Ok(()) => self.executor.add(&record, &attachment).await,
            Err(error) => Err(error),
        };
        match added {
            Ok(done) => {
                record.phase = Phase::Ready;
                record.result = Some(done.result.clone());
                record.backend = Backend::Cni(cni::Attachment {
                    last_result: Some(done.last),
                    ..attachment
                });
                self.book.update(record)?;
                Ok(done.result)
            }
            Err(add) => match self.deleted(record, &attachment).await {
                Ok(()) => Err(add),
                Err(unwind) => {
                    self.retry.add(id);
                    Err(Error::Unwind {
                        add: Box::new(add),
                        unwind: Box::new(unwind),
                    })
                }
            },
        }
    }

    async fn delete_cni(&self, record: PodRecord, attachment: &cni::Attachment) -> Result<()> {
        let _shared = self.plugins.read().await;
        self.deleted(record, attachment).await
    }

    /// Called with `plugins` taken.
    async fn deleted(&self, mut record: PodRecord, attachment: &cni::Attachment) -> Result<()> {
        if record.phase != Phase::Draining {
            record.phase = Phase::Draining;
            self.book.update(record.clone())?;
        }
        self.executor.del(&record, attachment).await?;
        self.book.remove(&record.sandbox_id)
    }

    /// One attempt.
    pub(crate) async fn teardown(&self, id: &str) -> Result<()> {
        let _turn = self.turn(id).await;
        let Some(record) = self.book.get(id) else {
            return Ok(());
        };
        match record.backend.clone() {
            Backend::Bridge(_) => {
                let id = id.to_owned();
                self.bridge.call(move |bridge| bridge.detach(&id)).await?
            }
            Backend::Cni(attachment) => self.delete_cni((*record).clone(), &attachment).await,
        }
    }

    async fn set_pod_ranges(&self, ranges: Vec<Subnet>) -> Result<()> {
        let given = ranges.clone();
        if self.bridge.call(move |bridge| bridge.give(&given)).await?? {
            info!(?ranges, "the kubelet has handed down the node's pod ranges");
        }
        let Some((dir, template)) = self.template.clone() else {
            return Ok(());
        };
        let written = tokio::task::spawn_blocking(move || cni::write(&dir, &template, &ranges));
        match written.await.map_err(|_| Error::Stopped)?? {
            cni::Written::File(path) => info!(path = %path.display(), "cni configuration written"),
            cni::Written::Unchanged(_) => {}
            cni::Written::LeftTo(path) => {
                info!(path = %path.display(), "there is a cni configuration: none is made from the template");
            }
        }
        Ok(())
    }

    async fn reconcile(self: Arc<Self>, live: &BTreeSet<String>) -> Result<Reconciled> {
        // The configuration of an earlier run may have been removed since.
        if let (Some(_), Ok(ranges)) = (&self.template, self.bridge.call(|bridge| bridge.given()).await)
            && !ranges.is_empty()
            && let Err(error) = self.set_pod_ranges(ranges).await
        {
            warn!(error = error.chain(), "no cni configuration could be written");
        }
        let mut done = Reconciled::default();
        let mut dead = Vec::new();
        for record in self.book.all() {
            let id = record.sandbox_id.clone();
            if live.contains(&id) && record.phase != Phase::Draining {
                done.kept.push(id);
            } else {
                dead.push((id.clone(), matches!(record.backend, Backend::Bridge(_))));
                done.removed.push(id);
            }
        }
        let mut rebuilt = Ok(());
        // The bridge is not built on a node that uses CNI and never had a pod on it.
        let wanted = matches!(self.cni.current(), Selected::Builtin)
            || self
                .book
                .all()
                .iter()
                .any(|r| matches!(r.backend, Backend::Bridge(_)));
        if wanted {
            match self.bridge.call(bridge::Bridge::rebuild).await {
                Ok(Ok(stray)) => done.stray_links = stray,
                // The dead are taken down all the same.
                Ok(Err(error)) | Err(error) => rebuilt = Err(error),
            }
        }
        let mut cni_dead = 0_usize;
        for (id, builtin) in dead {
            if builtin {
                if let Err(error) = self.teardown(&id).await {
                    warn!(sandbox = %id, error = error.chain(), "network of a dead sandbox could not be taken down yet");
                    self.retry.add(id);
                }
            } else {
                cni_dead += 1;
                self.retry.now(id);
            }
        }
        tokio::spawn(collect(Arc::downgrade(&self)));
        done.kept.sort();
        done.removed.sort();
        info!(
            kept = done.kept.len(),
            removed = done.removed.len(),
            cni = cni_dead,
            "network reconciled"
        );
        rebuilt.map(|()| done)
    }
}

/// CNI's GC, once, when there is a configuration, and at a moment when no plugin is at work: one that hangs must not hold up
/// those that come after it. Nor may GC itself, for longer than [`cni::GC`].
async fn collect(shared: Weak<Shared>) {
    while let Some(shared) = shared.upgrade() {
        let pause = match (shared.cni.current(), shared.plugins.try_write()) {
            (Selected::Network(list), Ok(_alone)) => {
                let valid: Vec<String> = shared.book.all().iter().map(|r| r.sandbox_id.clone()).collect();
                if let Err(error) = shared.executor.gc(&list, &valid).await {
                    warn!(network = %list.name, error = error.chain(), "cni garbage collection failed");
                }
                return;
            }
            (Selected::Network(_), Err(_)) => GC_PAUSE,
            // Who sets the cluster up has not come by yet, or the file is being mended.
            (Selected::Builtin | Selected::Broken { .. }, _) => GC_WAIT,
        };
        drop(shared);
        tokio::time::sleep(pause).await;
    }
}
