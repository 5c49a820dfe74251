//! The builder of a further process, which a runtime brings into its container.

use std::ffi::OsString;

use holdfast_sys::pidfd;
use serde_json::Value;

use super::call::Call;
use super::console::Console;
use super::create::{left_behind, prepare_builder};
use super::{EXEC, External, spec};
use crate::building::{Made, Slot};
use crate::bundle;
use crate::error::Kind;
use crate::fault::{Context, Fault, Result};
use crate::plan::{ExecPlan, Stdio};

/// Where the runtime writes the number of an exec's process, by the number of its builder.
pub(super) fn pid_file(runtime: &External, builder: i32) -> std::path::PathBuf {
    runtime.bundle.join(format!("exec-{builder}.pid"))
}

pub(super) fn build(runtime: &External, plan: &ExecPlan<'_>) -> Result<Made> {
    prepare_builder()?;
    let running = pidfd::signal(plan.init, 0).at(|| format!("{} is not running", plan.name));
    running.map_err(|fault| fault.kind(Kind::Precondition))?;
    let tty = matches!(plan.stdio, Stdio::Terminal);
    let mut process: Value = serde_json::from_slice(plan.process)
        .map_err(|e| Fault::invalid(format!("the process for {} is unreadable: {e}", plan.name)))?;
    let mut warnings = Vec::new();
    spec::clamp(&mut process, plan.clamp_privileges, &mut warnings)?;
    process["terminal"] = tty.into();
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let file = runtime.bundle.join(format!("exec-{own}.json"));
    let (pid_file, log) = (pid_file(runtime, own), format!("exec-{own}.log"));
    bundle::write_file(&file, &process)?;
    let made = run(runtime, plan, (&file, &pid_file, &log)).map(|(pid, fds)| Made { pid, fds, warnings });
    for path in [file, pid_file, runtime.bundle.join(log)] {
        let _gone = std::fs::remove_file(path);
    }
    made
}

type Left = (i32, Vec<(Slot, std::os::fd::OwnedFd)>);

fn run(
    runtime: &External,
    plan: &ExecPlan<'_>,
    (file, pid_file, log): (&std::path::Path, &std::path::PathBuf, &str),
) -> Result<Left> {
    let tty = matches!(plan.stdio, Stdio::Terminal);
    let own = rustix::process::getpid().as_raw_nonzero();
    let console = tty
        .then(|| Console::listen(&runtime.bundle, &format!("exec-{own}.tty")))
        .transpose()?;
    let mut arguments: Vec<OsString> = vec!["exec".into(), "--detach".into()];
    arguments.extend(["--process".into(), file.into()]);
    arguments.extend(["--pid-file".into(), pid_file.into()]);
    if let Some(console) = &console {
        arguments.extend(["--console-socket".into(), console.path.clone().into()]);
    }
    arguments.push(plan.container_id.into());
    let call = Call {
        runtime,
        verb: "exec",
        arguments,
        log,
        stdio: plan.stdio.ends(),
        mounts: None,
        limit: EXEC,
    };
    call.run()?;
    let (pid, process) = left_behind(pid_file)?;
    let mut fds = vec![(Slot::Init, process)];
    if let Some(console) = console {
        fds.push((Slot::Terminal, console.take()?));
    }
    Ok((pid, fds))
}
