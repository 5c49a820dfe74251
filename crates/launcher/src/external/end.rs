//! A container's start and its end: `start`, `kill`, `delete`, and what is left of a builder that was killed.

use std::ffi::OsString;
use std::os::fd::AsFd;

use holdfast_sys::{clone, scm};

use super::call::{Call, read_small};
use super::{DELETE, External, KILL, START, exec};
use crate::building::{Barrier, ExecFailure};
use crate::bundle;
use crate::error::Error;
use crate::fault::Result;
use crate::handler::Made;
use crate::walk::{kill_session, kill_tree};

fn call<'a>(runtime: &'a External, made: Made<'a>, verb: &'a str, log: &'a str) -> Call<'a> {
    Call {
        runtime,
        verb,
        arguments: vec![verb.into()],
        log,
        stdio: [None; 3],
        mounts: made.mounts,
        limit: match verb {
            "start" => START,
            "kill" => KILL,
            _ => DELETE,
        },
    }
}

/// Forks a starter, which tells the outcome at the barrier's other end.
pub(super) fn start(runtime: &External, made: Made<'_>) -> std::result::Result<Barrier, Error> {
    let failed = |source| Error::Start {
        id: made.id.to_owned(),
        source,
    };
    let (ours, theirs) = scm::pair().map_err(failed)?;
    clone::fork(|| {
        let _led = rustix::process::setsid();
        let mut call = call(runtime, made, "start", "start.log");
        call.arguments.push(made.id.into());
        let word = match call.run() {
            Ok(()) => b"R".to_vec(),
            Err(fault) => serde_json::to_vec(&ExecFailure {
                message: fault.message,
                errno: fault.errno,
                kind: fault.kind,
            })
            .unwrap_or_default(),
        };
        i32::from(scm::send(theirs.as_fd(), &word, &[]).is_err())
    })
    .map_err(failed)?;
    Ok(Barrier::of_starter(ours))
}

pub(super) fn signal(runtime: &External, made: Made<'_>, signal: i32) -> Result<()> {
    let log = format!("kill-{signal}.log");
    let mut call = call(runtime, made, "kill", &log);
    call.arguments.extend([made.id.into(), signal.to_string().into()]);
    call.run()
}

/// Has the runtime forget the container, which runs the poststop hooks, and removes the bundle. Of a container that the
/// runtime does not know nothing is asked: it was never made, or deleted before.
pub(super) fn delete(runtime: &External, made: Made<'_>) -> Result<()> {
    let state = runtime.root.join(made.id);
    if state.exists() {
        let mut call = call(runtime, made, "delete", "delete.log");
        call.arguments.extend([OsString::from("--force"), made.id.into()]);
        let deleted = call.run();
        // Two of these may meet; and what a create that was killed has left is not always taken for a container.
        if let (Err(fault), true) = (deleted, state.exists()) {
            return Err(fault);
        }
    }
    bundle::remove(&runtime.bundle)
}

pub(super) fn abandon(runtime: &External, builder: i32) {
    // The program died with the builder; its hooks are the monitor's now, in the builder's session.
    if let Some(monitor) = rustix::process::getppid() {
        kill_session(monitor.as_raw_nonzero().get(), builder);
    }
    // An exec may have run by then, unseen.
    let file = exec::pid_file(runtime, builder);
    let pid = read_small(&file).ok().and_then(|text| text.trim().parse().ok());
    if let Some(pid) = pid {
        let _killed = kill_tree(pid);
    }
    let _gone = std::fs::remove_file(file);
}
