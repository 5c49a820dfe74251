//! One daemon for one root.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A daemon that was killed holds the lock until the last of its threads is gone, and so does a child that it was about to
/// execute: that long, a restart waits.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// Held until dropped, and by the kernel not much longer than we live.
pub fn take(root: &Path) -> Result<Flock<File>> {
    let path = root.join("lock");
    let shown = path.display();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("cannot open the lock {shown}"))?;
    let mut file = match patiently(file) {
        Ok(file) => file,
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            bail!(
                "another holdfast (process {}) uses {}: stop it first, or give this one its own --root",
                pid.trim(),
                root.display()
            );
        }
        Err((_, e)) => return Err(e).with_context(|| format!("cannot lock {shown}")),
    };
    // For the message above only.
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(|| format!("cannot write {shown}"))?;
    Ok(file)
}

fn patiently(mut file: File) -> Result<Flock<File>, (File, Errno)> {
    let begin = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((back, Errno::EWOULDBLOCK)) if begin.elapsed() < PATIENCE => file = back,
            done => return done,
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path()).unwrap();
        let error = take(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        let soon = std::thread::spawn(move || {
            std::thread::sleep(PATIENCE / 5);
            drop(first);
        });
        take(dir.path()).unwrap();
        soon.join().unwrap();
    }
}
