//! Which CNI network is configured, kept up to date by inotify on the directories of configurations and plugins.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use super::{Executor, Selected, conf, exec};
use crate::Result;
use crate::netlink::{failed, readable};
use crate::types::NetworkStatus;

/// Editors and installers touch a file several times; the directory is read when it has been quiet this long.
const QUIET: Duration = Duration::from_millis(50);
/// How often plugins are asked for their STATUS, and how soon again after a failure.
const STATUS_EVERY: Duration = Duration::from_secs(60);
const STATUS_AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Loader {
    dir: PathBuf,
    /// The configuration is written from this, once the kubelet hands down the node's pod ranges.
    template: Option<PathBuf>,
    executor: Executor,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    stamp: Option<Stamp>,
    selected: Selected,
    /// What the plugins last said, for `selected`.
    verdict: std::result::Result<(), String>,
}

/// Changes when an entry of the directory does.
type Stamp = (u64, i64, i64);

impl Loader {
    /// Reads the directory and starts to watch it. The watch ends when the loader is dropped.
    pub(crate) fn start(dir: PathBuf, template: Option<PathBuf>, executor: Executor) -> Result<Arc<Self>> {
        let (stamp, selected) = (stamp(&dir), select(&dir, template.as_deref()));
        announce(&selected);
        let verdict = installed(&executor, &selected);
        let loader = Arc::new(Self {
            dir,
            template,
            executor,
            state: Mutex::new(State {
                stamp,
                selected,
                verdict,
            }),
        });
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|e| failed("cannot watch the cni directories", e.into()))?;
        let watch = readable(watch, "cannot watch the cni directories")?;
        tokio::spawn(follow(Arc::downgrade(&loader), watch));
        Ok(loader)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is configured now. A file added or removed a moment ago counts: that costs one `stat`.
    pub(crate) fn current(&self) -> Selected {
        let now = stamp(&self.dir);
        if self.state().stamp != now {
            self.reload();
        }
        self.state().selected.clone()
    }

    fn reload(&self) {
        // The stamp is taken first: a change while the files are read is seen the next time.
        let (stamp, selected) = (stamp(&self.dir), select(&self.dir, self.template.as_deref()));
        let mut state = self.state();
        state.stamp = stamp;
        let same = match (&state.selected, &selected) {
            (Selected::Builtin, Selected::Builtin) => true,
            (Selected::Network(a), Selected::Network(b)) => a == b,
            (Selected::Broken { path: a, reason: b }, Selected::Broken { path: c, reason: d }) => {
                a == c && b == d
            }
            _ => false,
        };
        if !same {
            announce(&selected);
            state.verdict = installed(&self.executor, &selected);
            state.selected = selected;
        }
    }

    /// Asks the plugins. Returns when to ask again.
    async fn probe(&self) -> Instant {
        let Selected::Network(list) = self.state().selected.clone() else {
            return Instant::now() + STATUS_EVERY;
        };
        let verdict = self.executor.status(&list).await.map_err(|error| error.chain());
        let again = Instant::now()
            + if verdict.is_ok() {
                STATUS_EVERY
            } else {
                STATUS_AGAIN
            };
        let mut state = self.state();
        if matches!(&state.selected, Selected::Network(now) if Arc::ptr_eq(now, &list)) {
            if state.verdict != verdict {
                match &verdict {
                    Ok(()) => info!(network = %list.name, "cni plugins are ready"),
                    Err(reason) => warn!(network = %list.name, %reason, "cni plugins are not ready"),
                }
            }
            state.verdict = verdict;
        }
        again
    }

    pub(crate) fn status(&self) -> NetworkStatus {
        let state = self.state();
        let not_ready = |message: String, config| NetworkStatus {
            ready: false,
            reason: "NetworkPluginNotReady".into(),
            message,
            config,
        };
        match (&state.selected, &state.verdict) {
            (Selected::Builtin, _) => NetworkStatus {
                ready: true,
                reason: String::new(),
                message: "built-in bridge network (no cni configuration)".into(),
                config: None,
            },
            (Selected::Broken { path, reason }, _) => {
                not_ready(format!("cni configuration {}: {reason}", path.display()), None)
            }
            (Selected::Network(list), verdict) => {
                let config = serde_json::to_value(&**list).ok();
                match verdict {
                    Err(reason) => not_ready(format!("network {:?}: {reason}", list.name), config),
                    Ok(()) => NetworkStatus {
                        ready: true,
                        reason: String::new(),
                        message: format!("cni network {:?} of {}", list.name, list.path.display()),
                        config,
                    },
                }
            }
        }
    }
}

/// A node whose configuration is still to be written has no network: the built-in one would give its pods addresses that
/// the cluster does not route.
fn select(dir: &Path, template: Option<&Path>) -> Selected {
    match (conf::select(dir), template) {
        (Selected::Builtin, Some(template)) => Selected::Broken {
            path: template.into(),
            reason: "waits for the kubelet to hand down the node's pod ranges (UpdateRuntimeConfig)".into(),
        },
        (selected, _) => selected,
    }
}

/// What can be said without executing anything.
fn installed(executor: &Executor, selected: &Selected) -> std::result::Result<(), String> {
    if let Selected::Network(list) = selected {
        for plugin in &list.plugins {
            exec::find(executor.dirs(), &plugin.kind, &list.name).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

fn announce(selected: &Selected) {
    match selected {
        Selected::Builtin => info!("no cni configuration: the built-in bridge network is used"),
        Selected::Broken { path, reason } => {
            warn!(path = %path.display(), %reason, "cni configuration cannot be used");
        }
        Selected::Network(list) => {
            info!(network = %list.name, path = %list.path.display(), version = %list.version, "cni network configured");
        }
    }
}

fn stamp(dir: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(dir)
        .ok()
        .map(|m| (m.ino(), m.mtime(), m.mtime_nsec()))
}

/// Re-reads when something changes, and asks the plugins for their status from time to time.
async fn follow(loader: Weak<Loader>, watch: AsyncFd<OwnedFd>) {
    let mut probe_at = Instant::now();
    loop {
        let Some(strong) = loader.upgrade() else {
            return;
        };
        arm(&watch, &strong.dir);
        for dir in strong.executor.dirs() {
            arm(&watch, dir);
        }
        if Instant::now() >= probe_at {
            probe_at = strong.probe().await;
        }
        drop(strong);
        // Without an event this ends at the latest when the loader's owner should be looked for again.
        let wake = probe_at.min(Instant::now() + STATUS_AGAIN);
        if let Ok(Ok(mut ready)) = timeout_at(wake, watch.readable()).await {
            drain(watch.get_ref());
            ready.clear_ready();
            sleep(QUIET).await;
            drain(watch.get_ref());
            if let Some(strong) = loader.upgrade() {
                strong.reload();
            }
            probe_at = Instant::now();
        }
    }
}

/// Watches a directory, or what exists of the way to it. Doing so again changes nothing.
fn arm(watch: &AsyncFd<OwnedFd>, dir: &Path) {
    let flags = WatchFlags::CREATE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ATTRIB
        | WatchFlags::ONLYDIR;
    for dir in dir.ancestors() {
        if inotify::add_watch(watch.get_ref(), dir, flags).is_ok() {
            return;
        }
    }
}

/// Which file it was does not matter: the directories are read again.
fn drain(watch: &OwnedFd) {
    let mut buffer = [0u8; 4096];
    while matches!(rustix::io::read(watch, &mut buffer), Ok(1..)) {}
}
