//! A process that is in a scope so that the scope is not empty: systemd makes none without one, and collects it as soon
//! as the last has left.
//!
//! It is `holdfast-pause hold`, which waits for the end of its standard input: it goes when we let it go, and when we
//! die.

use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::BusError;

#[derive(Debug)]
pub(crate) struct Helper {
    child: Child,
    pid: u32,
}

impl Helper {
    pub(crate) fn spawn(pause: &Path) -> Result<Self, BusError> {
        let failed = |source| BusError::Helper {
            program: pause.to_owned(),
            source,
        };
        let child = Command::new(pause)
            .arg("hold")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Dropped in any way, it is killed, and reaped by tokio.
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let pid = child
            .id()
            .ok_or_else(|| failed(std::io::Error::other("it ended at once")))?;
        Ok(Self { child, pid })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it, and returns when it has left its cgroup.
    pub(crate) async fn leave(mut self) {
        // It is our child and takes no signal's place: there is nothing to do about a failure.
        let _gone = self.child.kill().await;
    }
}
