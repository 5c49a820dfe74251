//! Waits for the interfaces of stopped pods to vanish with their namespaces, and has their addresses freed then.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tracing::{error, warn};

use super::Job;
use crate::netlink::route::{LINK_GROUP, RTM_DELLINK, parse_link};
use crate::netlink::{Family, Messages, Socket, readable};
use crate::{Error, Result};

/// A namespace that lives this long after its pod was taken off the network is held by somebody; its interface is
/// deleted then.
const PATIENCE: Duration = Duration::from_secs(30);

/// Interfaces that are expected to vanish: name to sandbox and time of the next look.
#[derive(Debug, Clone, Default)]
pub(crate) struct Vanishing {
    links: Arc<Mutex<HashMap<String, (String, Instant)>>>,
    changed: Arc<Notify>,
}

impl Vanishing {
    pub(crate) fn expect(&self, link: &str, sandbox: &str) {
        let due = Instant::now() + PATIENCE;
        self.lock().insert(link.to_owned(), (sandbox.to_owned(), due));
        self.changed.notify_one();
    }

    pub(crate) fn forget(&self, link: &str) {
        self.lock().remove(link);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (String, Instant)>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox_of(&self, link: &str) -> Option<String> {
        self.lock().get(link).map(|(id, _)| id.clone())
    }

    fn next_due(&self) -> Option<Instant> {
        self.lock().values().map(|(_, due)| *due).min()
    }

    /// Those whose time has come; each is looked at again after another [`PATIENCE`].
    fn overdue(&self) -> Vec<String> {
        let now = Instant::now();
        let mut found = Vec::new();
        for (id, due) in self.lock().values_mut().filter(|(_, due)| *due <= now) {
            *due = now + PATIENCE;
            found.push(id.clone());
        }
        found
    }

    fn all(&self) -> Vec<String> {
        self.lock().values().map(|(id, _)| id.clone()).collect()
    }
}

/// Starts the watch; it ends with the owner of the bridge.
pub(crate) fn start(vanishing: Vanishing, jobs: mpsc::WeakSender<Job>) -> Result<()> {
    let socket = Socket::listen(Family::Route, LINK_GROUP)?;
    let socket = readable(socket, "cannot watch for vanishing interfaces")?;
    tokio::spawn(async move {
        loop {
            let due = vanishing.next_due();
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let (gone, force) = tokio::select! {
                gone = read(&socket, &vanishing) => (gone, false),
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
                        error!(sandbox = %id, %error, "cannot free the addresses of a stopped pod yet");
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
    Ok(())
}

/// The next notifications, as ids of sandboxes whose interface is said to be gone.
async fn read(socket: &AsyncFd<OwnedFd>, vanishing: &Vanishing) -> Vec<String> {
    let mut buffer = [0u8; 32 << 10];
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
