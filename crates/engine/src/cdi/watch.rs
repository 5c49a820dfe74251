//! Following the directories by inotify, so that a spec that is broken is told of when it is written, not when a container
//! asks for it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::Cdi;

/// Those who write specs touch a file several times; it is read when it has been quiet this long.
const QUIET: Duration = Duration::from_millis(50);
/// How often, without any event, it is looked whether the daemon is still there.
const AGAIN: Duration = Duration::from_secs(5);

impl Cdi {
    /// The watch ends when the last other owner is gone.
    pub(crate) fn watch(self: &Arc<Self>) {
        // Deprecated for types whose descriptor may change behind its back; an OwnedFd's does not, and the successor is unsafe.
        #[allow(deprecated)]
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(std::io::Error::from)
            .and_then(|fd| AsyncFd::with_interest(fd, Interest::READABLE));
        match watch {
            Ok(watch) => drop(tokio::spawn(follow(Arc::downgrade(self), watch))),
            // Who asks for a device sees the files as they are all the same.
            Err(error) => warn!(%error, "the directories of CDI specs cannot be watched"),
        }
    }
}

async fn follow(cdi: Weak<Cdi>, watch: AsyncFd<OwnedFd>) {
    loop {
        let Some(strong) = cdi.upgrade() else { return };
        for dir in &strong.dirs {
            arm(&watch, dir);
        }
        // After arming: what was written before is seen, what comes after is told of.
        if tokio::task::spawn_blocking(move || strong.current())
            .await
            .is_err()
        {
            return;
        }
        while let Err(_elapsed) = timeout(AGAIN, ready(&watch)).await {
            if cdi.strong_count() == 0 {
                return;
            }
        }
        sleep(QUIET).await;
        drain(watch.get_ref());
    }
}

async fn ready(watch: &AsyncFd<OwnedFd>) {
    if let Ok(mut guard) = watch.readable().await {
        drain(watch.get_ref());
        guard.clear_ready();
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

/// Which file it was does not matter.
fn drain(watch: &OwnedFd) {
    let mut buffer = [0u8; 4096];
    while matches!(rustix::io::read(watch, &mut buffer), Ok(1..)) {}
}
