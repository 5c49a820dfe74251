//! A monitor that waits for the next pod: starting one takes about a quarter of the time in which a pod with the host's
//! network is made, so it is done beforehand, when the node is quiet.
//!
//! A spare knows no pod and has no socket. It ends by itself when the daemon does.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use holdfast_monitor_api::Spawned;
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::Notify;
use tracing::warn;

use crate::config::bounds;

/// So long nothing must have been asked for before the next one is started: a burst of pods needs the processors itself.
const QUIET: Duration = Duration::from_millis(20);

/// Tells one installed program from the next at the same path.
type Program = (u64, u64, i64, i64);

struct Waiting {
    monitor: Spawned,
    program: Program,
}

pub(crate) struct Spare {
    waiting: Mutex<Option<Waiting>>,
    wanted: Arc<Notify>,
}

impl Spare {
    /// Must be called within a runtime. With `keep` unset there never is a spare.
    pub(crate) fn new(program: PathBuf, keep: bool) -> Arc<Self> {
        let spare = Arc::new(Self {
            waiting: Mutex::new(None),
            wanted: Arc::new(Notify::new()),
        });
        if keep {
            tokio::spawn(refill(Arc::downgrade(&spare), spare.wanted.clone(), program));
            spare.wanted.notify_one();
        }
        spare
    }

    /// The monitor that waits, if there is one and it is alive and of the program that is installed now.
    pub(crate) fn take(&self, path: &Path) -> Option<Spawned> {
        self.wanted.notify_one();
        let waiting = self.slot().take()?;
        (Some(waiting.program) == program(path) && alive(&waiting.monitor)).then_some(waiting.monitor)
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // Ends the task, which finds nobody to work for.
        self.wanted.notify_one();
    }
}

async fn refill(spare: Weak<Spare>, wanted: Arc<Notify>, path: PathBuf) {
    loop {
        wanted.notified().await;
        while tokio::time::timeout(QUIET, wanted.notified()).await.is_ok() {
            if spare.strong_count() == 0 {
                return;
            }
        }
        match spare.upgrade() {
            None => return,
            Some(spare) if spare.slot().is_some() => continue,
            Some(_) => {}
        }
        let Some(program) = program(&path) else {
            // A pod that needs it will say so.
            continue;
        };
        let spawned = tokio::time::timeout(bounds::SPAWN, holdfast_monitor_api::spawn(path.clone())).await;
        match (spawned, spare.upgrade()) {
            (Ok(Ok(monitor)), Some(spare)) => *spare.slot() = Some(Waiting { monitor, program }),
            (Ok(Ok(_)), None) => return,
            (Ok(Err(error)), _) => warn!("no monitor could be started beforehand: {error}"),
            (Err(_), _) => warn!("a monitor that was started beforehand did not answer"),
        }
    }
}

fn program(path: &Path) -> Option<Program> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.mtime(), found.mtime_nsec()))
}

/// A pidfd is readable from its process's death on.
fn alive(monitor: &Spawned) -> bool {
    let mut watched = [PollFd::from_borrowed_fd(monitor.pidfd.as_fd(), PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(rustix::event::poll(&mut watched, Some(&at_once)), Ok(0))
}
