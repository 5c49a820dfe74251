//! Whether pods can have user namespaces here: tried once at the start, with a namespace that a short-lived process holds.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use holdfast_sys::{clone, idmap, namespace};

/// The hidden command that [`probe`] runs.
pub const HOLD: &str = "hold-user-namespace";
/// Some ids that are not the host's.
const MAP: &str = "0 65536 65536\n";

/// Layers and volumes must be shown through the pod's ids: on the images' file system, and on tmpfs, which secrets and
/// `emptyDir` with `medium: Memory` are on. Why not, if not, goes to the log.
pub fn probe(root: &Path) -> bool {
    match check(root) {
        Ok(()) => true,
        Err(error) => {
            tracing::info!("pods cannot have user namespaces here: {error:#}");
            false
        }
    }
}

/// The same, with the reason.
pub fn check(root: &Path) -> Result<()> {
    let mut holder = Command::new("/proc/self/exe")
        .arg(HOLD)
        // Of the service manager's, nothing is a child's.
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the process that holds one")?;
    let outcome = try_in(&mut holder, root);
    // Its standard input ends here, and with it the process.
    drop(holder.stdin.take());
    let _ended = holder.wait();
    outcome
}

fn try_in(holder: &mut Child, root: &Path) -> Result<()> {
    let mut ready = [0];
    let mut output = holder.stdout.take().context("no pipe")?;
    output.read_exact(&mut ready).context("the kernel makes none")?;
    let of_holder = |name: &str| format!("/proc/{}/{name}", holder.id());
    for map in ["uid_map", "gid_map"] {
        let mut file = File::options().write(true).open(of_holder(map))?;
        file.write_all(MAP.as_bytes())
            .with_context(|| format!("cannot write a {map}"))?;
    }
    let user = File::open(of_holder("ns/user")).context("cannot open it")?;
    idmap::directory(user.as_fd(), root)
        .with_context(|| format!("the file system of {} maps no ids", root.display()))?;
    idmap::tmpfs(user.as_fd()).context("tmpfs maps no ids (Linux 6.3 does)")
}

/// Moves to a new user namespace, says so, and stays until standard input ends.
pub fn hold() -> Result<()> {
    namespace::unshare(clone::NEWUSER).context("cannot make a user namespace")?;
    let mut out = std::io::stdout();
    out.write_all(b"\n")?;
    out.flush()?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
