//! What the service manager is told (sd_notify(3)): ready once every pod on record has been found again, alive as long as
//! calls could be answered, stopping.
//!
//! The variables are not passed on: monitors and helpers start with an empty environment; CNI plugins, OCI runtimes and
//! apparmor_parser without these.

use std::ffi::{OsStr, OsString};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use holdfast_engine::Engine;
use tracing::warn;

/// The manager, if there is one.
pub struct Manager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Manager {
    pub fn from_env() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty());
        let socket = socket.and_then(|path| match open(&path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                warn!("NOTIFY_SOCKET={}: {error}", path.display());
                None
            }
        });
        Self {
            watchdog: socket
                .is_some()
                .then(|| watchdog(|key| std::env::var_os(key)))
                .flatten(),
            socket,
        }
    }

    pub fn ready(&self, engine: &Engine) {
        let pods = engine.sandboxes().len();
        self.tell(&format!("READY=1\nSTATUS=serving, {pods} pods on record"));
    }

    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping; pods run on");
    }

    /// Tells that we are alive, twice in each of the watchdog's intervals, from a task of the runtime that answers calls and
    /// with the locks that they take: where those hang, nothing is told.
    pub fn keep_alive(self: std::sync::Arc<Self>, engine: Engine) {
        let Some(interval) = self.watchdog else { return };
        tokio::spawn(async move {
            let mut every = tokio::time::interval(interval / 2);
            loop {
                every.tick().await;
                let _pods = engine.sandboxes();
                self.tell("WATCHDOG=1");
            }
        });
    }

    fn tell(&self, text: &str) {
        let Some((socket, address)) = &self.socket else {
            return;
        };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            warn!("the service manager was not told {text:?}: {error}");
        }
    }
}

fn open(path: &OsStr) -> std::io::Result<(UnixDatagram, SocketAddr)> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that reads nothing must not hold us up.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// The interval in which we must be heard, if that is meant for this process.
fn watchdog(variable: impl Fn(&str) -> Option<OsString>) -> Option<Duration> {
    let number = |key: &str| variable(key)?.to_str()?.parse::<u64>().ok();
    let micros = number("WATCHDOG_USEC").filter(|micros| *micros > 0)?;
    let meant =
        variable("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
    meant.then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_kinds_of_socket_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("holdfast-test-{}", std::process::id());
        let of_path = UnixDatagram::bind(&path).unwrap();
        let abstract_ = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (there, at) in [
            (of_path, path.into_os_string()),
            (abstract_, format!("@{name}").into()),
        ] {
            let manager = Manager {
                socket: Some(open(&at).unwrap()),
                watchdog: None,
            };
            manager.stopping();
            let mut text = [0; 64];
            let length = there.recv(&mut text).unwrap();
            assert!(text[..length].starts_with(b"STOPPING=1\n"));
        }
    }

    #[test]
    fn the_watchdog_is_for_the_process_that_it_names() {
        let of = |usec: Option<&str>, pid: Option<String>| {
            watchdog(|key| match key {
                "WATCHDOG_USEC" => usec.map(OsString::from),
                _ => pid.clone().map(OsString::from),
            })
        };
        let own = std::process::id().to_string();
        assert_eq!(of(Some("60000000"), Some(own)), Some(Duration::from_secs(60)));
        assert_eq!(of(Some("1"), None), Some(Duration::from_micros(1)));
        assert_eq!(of(Some("60000000"), Some("1".into())), None);
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some("0"), None), None);
        assert_eq!(of(Some("soon"), None), None);
    }
}
