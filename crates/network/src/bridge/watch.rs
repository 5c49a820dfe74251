//! Waits for the interfaces of stopped pods to vanish with their namespaces, and has their addresses freed then.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tracing::{error, warn};

use super::Job;
use crate::Error;
use crate::netlink::route::{LINK_GROUP, RTM_DELLINK, parse_link};
use crate::netlink::{Family, Messages, Socket, readable};

/// A namespace that lives this long after its pod was taken off the network is held by somebody; its interface is
/// deleted then.
const PATIENCE: Duration = Duration::from_secs(30);

/// Interfaces that are expected to vanish. The kernel's notifications are listened to only while there are some: every
/// pod that starts causes a dozen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Vanishing {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// Name to sandbox and time of the next look.
    links: HashMap<String, (String, Instant)>,
    /// Opened with the first entry, until the watch takes it.
    opened: Option<OwnedFd>,
    listening: bool,
}

impl Vanishing {
    /// From the return of this on the disappearance is noticed; what was gone before is for the caller to find out.
    pub(crate) fn expect(&self, link: &str, sandbox: &str) {
        let due = Instant::now() + PATIENCE;
        let mut state = self.lock();
        state.links.insert(link.to_owned(), (sandbox.to_owned(), due));
        if !state.listening {
            match Socket::listen(Family::Route, LINK_GROUP) {
                Ok(socket) => {
                    state.opened = Some(socket);
                    state.listening = true;
                }
                Err(error) => {
                    warn!(
                        error = error.chain(),
                        "interfaces of stopped pods are only looked for every {PATIENCE:?}"
                    );
                }
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(crate) fn forget(&self, link: &str) {
        let mut state = self.lock();
        state.links.remove(link);
        if state.links.is_empty() {
            drop(state);
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket to listen to from now on, if that changes: a new one, or none.
    fn socket(&self) -> Option<Option<OwnedFd>> {
        let mut state = self.lock();
        if let Some(socket) = state.opened.take() {
            return Some(Some(socket));
        }
        if state.links.is_empty() && state.listening {
            state.listening = false;
            return Some(None);
        }
        None
    }

    fn sandbox_of(&self, link: &str) -> Option<String> {
        self.lock().links.get(link).map(|(id, _)| id.clone())
    }

    fn next_due(&self) -> Option<Instant> {
        self.lock().links.values().map(|(_, due)| *due).min()
    }

    /// Those whose time has come; each is looked at again after another [`PATIENCE`].
    fn overdue(&self) -> Vec<String> {
        let now = Instant::now();
        let mut found = Vec::new();
        for (id, due) in self.lock().links.values_mut().filter(|(_, due)| *due <= now) {
            *due = now + PATIENCE;
            found.push(id.clone());
        }
        found
    }

    fn all(&self) -> Vec<String> {
        self.lock().links.values().map(|(id, _)| id.clone()).collect()
    }
}

/// Starts the watch; it ends with the owner of the bridge.
pub(crate) fn start(vanishing: Vanishing, jobs: mpsc::WeakSender<Job>) {
    tokio::spawn(async move {
        let mut socket: Option<AsyncFd<OwnedFd>> = None;
        loop {
            if let Some(change) = vanishing.socket() {
                socket = change.and_then(|fd| match readable(fd, "cannot watch for vanishing interfaces") {
                    Ok(socket) => Some(socket),
                    Err(error) => {
                        warn!(
                            error = error.chain(),
                            "interfaces of stopped pods are only looked for every {PATIENCE:?}"
                        );
                        None
                    }
                });
            }
            let due = vanishing.next_due();
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let (gone, force) = tokio::select! {
                gone = read(socket.as_ref(), &vanishing) => (gone, false),
                () = vanishing.changed.notified() => continue,
                () = timer => (vanishing.overdue(), true),
            };
            for id in gone {
                let Some(jobs) = jobs.upgrade() else {
                    return;
                };
                let job: Job = Box::new(move |bridge| match bridge.release(&id, force) {
                    Ok(()) => {}
                    Err(Error::Stopped) => {}
                    Err(error) => {
                        error!(sandbox = %id, error = error.chain(), "cannot free the addresses of a stopped pod yet");
                    }
                });
                if jobs.send(job).await.is_err() {
                    return;
                }
            }
            if jobs.strong_count() == 0 {
                return;
            }
        }
    });
}

/// The next notifications, as ids of sandboxes whose interface is said to be gone.
async fn read(socket: Option<&AsyncFd<OwnedFd>>, vanishing: &Vanishing) -> Vec<String> {
    let Some(socket) = socket else {
        return std::future::pending().await;
    };
    let mut buffer = vec![0u8; 32 << 10];
    let Ok(mut ready) = socket.readable().await else {
        return Vec::new();
    };
    let received = ready.try_io(|socket| {
        recv(socket.get_ref(), &mut buffer[..], RecvFlags::empty())
            .map(|(_, n)| n)
            .map_err(io::Error::from)
    });
    match received {
        Ok(Ok(len)) => Messages(&buffer[..len.min(buffer.len())])
            .filter(|m| m.kind == RTM_DELLINK)
            .filter_map(|m| vanishing.sandbox_of(&parse_link(m.payload)?.name))
            .collect(),
        // Notifications were lost: look at every one.
        Ok(Err(error)) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => vanishing.all(),
        Ok(Err(error)) => {
            warn!(%error, "cannot read link notifications");
            tokio::time::sleep(Duration::from_secs(1)).await;
            vanishing.all()
        }
        Err(_would_block) => Vec::new(),
    }
}
