//! OCI hooks of a container that the built-in launcher makes: which there are, and what each is told.
//!
//! ```text
//!  builder ──fork──> runner (stays in the runtime's namespaces) ──> prestart, createRuntime, createContainer
//!  init, its rights given up ─────────────────────────────────────> startContainer
//!  monitor ──fork──> starter ──release──> init …program runs… ────> poststart
//!  monitor ──fork──> job, once init has ended ────────────────────> poststop
//! ```
//!
//! | module | owns |
//! |---|---|
//! | `run` | one hook: its process, its deadline, its words when it fails |
//! | `runner` | the process that runs the hooks of a creation |
//! | `ground` | the mount namespaces of such a container, and its bundle's `config.json` |
//! | `handler` | [`Hooked`]: the launcher for containers that have hooks |
//!
//! The order, the namespaces and what a failure means are the OCI runtime specification's (config.md, "POSIX-platform
//! Hooks"; runtime.md, "Lifecycle"); what it leaves open is in decision record 17.

mod ground;
mod handler;
mod run;
mod runner;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use holdfast_sys::exec::Image;
use oci_spec::runtime::{Hook as OciHook, Hooks as OciHooks, Spec};
use serde_json::json;

pub(crate) use ground::{Ground, let_hooks_run};
pub use handler::Hooked;

use crate::external::spec::OCI_VERSION;
use crate::fault::{Context, Fault, Result};

/// Hooks that one container may have.
const LIMIT: usize = 256;
/// How long all hooks of a creation may take together: below what the monitor gives a builder.
const CREATE: Duration = Duration::from_secs(40);
/// The same for startContainer and poststart: below what the daemon gives a start.
const START: Duration = Duration::from_secs(25);
/// The same for poststop: within what the monitor gives a job, with the waits for init's end and for the cgroup's.
const STOP: Duration = Duration::from_secs(5);

/// When a hook runs, in the order of a container's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Point {
    const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// The container's state while its hooks run.
    fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => "creating",
            Self::StartContainer => "created",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }

    #[allow(
        deprecated,
        reason = "what OCI deprecates, runtimes still run and CDI still has"
    )]
    fn list(self, hooks: &OciHooks) -> &[OciHook] {
        match self {
            Self::Prestart => hooks.prestart(),
            Self::CreateRuntime => hooks.create_runtime(),
            Self::CreateContainer => hooks.create_container(),
            Self::StartContainer => hooks.start_container(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        }
        .as_deref()
        .unwrap_or_default()
    }
}

/// One hook, as execve(2) takes it.
#[derive(Debug)]
pub(crate) struct Hook {
    point: Point,
    path: CString,
    image: Image,
    /// `None`: as long as the others of its stage have left.
    timeout: Option<Duration>,
}

impl Hook {
    fn parse(point: Point, hook: &OciHook) -> Result<Self> {
        let shown = hook.path().display().to_string();
        let bad = |why: &str| Fault::invalid(format!("{} hook {shown:?}: {why}", point.name()));
        if !hook.path().is_absolute() {
            return Err(bad("its path is not absolute"));
        }
        let strings = |list: &[String], what: &str| {
            list.iter()
                .map(|text| CString::new(text.as_str()).map_err(|_| bad(&format!("its {what} hold a NUL"))))
                .collect::<Result<Vec<_>>>()
        };
        let env = hook.env().as_deref().unwrap_or_default();
        if env
            .iter()
            .any(|entry| !entry.contains('=') || entry.starts_with('='))
        {
            return Err(bad("its environment has an entry that is not NAME=value"));
        }
        let timeout = match hook.timeout() {
            None => None,
            Some(seconds) => Some(
                u64::try_from(seconds)
                    .ok()
                    .filter(|seconds| *seconds > 0)
                    .map(Duration::from_secs)
                    .ok_or_else(|| bad("its timeout is not greater than zero"))?,
            ),
        };
        let path = strings(std::slice::from_ref(&shown), "path")?.remove(0);
        let mut args = strings(hook.args().as_deref().unwrap_or_default(), "arguments")?;
        if args.is_empty() {
            args.push(path.clone());
        }
        Ok(Self {
            point,
            path,
            image: Image::new(args, strings(env, "environment")?),
            timeout,
        })
    }
}

/// The hooks of one container, and what they are told of it.
#[derive(Debug)]
pub(crate) struct Hooks {
    list: Vec<Hook>,
    id: String,
    /// `namespace/pod/container`, for error texts.
    name: String,
    bundle: PathBuf,
    annotations: HashMap<String, String>,
}

impl Hooks {
    /// Reads and checks all of a spec's, before anything is done.
    pub fn parse(spec: &Spec, id: &str, name: &str, bundle: PathBuf) -> Result<Self> {
        let mut list = Vec::new();
        if let Some(hooks) = spec.hooks() {
            for point in Point::ALL {
                for hook in point.list(hooks) {
                    list.push(Hook::parse(point, hook).map_err(|fault| within(name, fault))?);
                }
            }
        }
        if list.len() > LIMIT {
            let text = format!("{name} has {} OCI hooks: more than {LIMIT}", list.len());
            return Err(Fault::invalid(text));
        }
        Ok(Self {
            list,
            id: id.to_owned(),
            name: name.to_owned(),
            bundle,
            annotations: spec.annotations().clone().unwrap_or_default(),
        })
    }

    fn of(&self, point: Point) -> impl Iterator<Item = &Hook> {
        self.list.iter().filter(move |hook| hook.point == point)
    }

    pub fn has(&self, point: Point) -> bool {
        self.of(point).next().is_some()
    }

    /// The container's state as a hook reads it from its standard input: a file that nobody can change.
    fn state(&self, point: Point, pid: Option<i32>) -> Result<OwnedFd> {
        holdfast_sys::memfd::sealed("holdfast-state", self.state_text(point, pid).as_bytes())
            .at(|| "write the state for hooks")
    }

    fn state_text(&self, point: Point, pid: Option<i32>) -> String {
        let mut state = json!({
            "ociVersion": OCI_VERSION,
            "id": self.id,
            "status": point.status(),
            "bundle": self.bundle.to_string_lossy(),
        });
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        if !self.annotations.is_empty() {
            state["annotations"] = json!(self.annotations);
        }
        state.to_string()
    }

    /// Runs those of one point in order, until one fails.
    fn run(&self, point: Point, with: &run::Circumstances<'_>, until: Instant) -> Result<()> {
        if !self.has(point) {
            return Ok(());
        }
        let state = self.state(point, with.pid)?;
        self.of(point)
            .try_for_each(|hook| run::one(hook, self, with, (&state, until)))
    }

    /// Runs all of one point, whatever becomes of each: what went wrong.
    fn run_all(&self, point: Point, with: &run::Circumstances<'_>, until: Instant) -> Vec<Fault> {
        if !self.has(point) {
            return Vec::new();
        }
        match self.state(point, with.pid) {
            Err(fault) => vec![fault],
            Ok(state) => self
                .of(point)
                .filter_map(|hook| run::one(hook, self, with, (&state, until)).err())
                .collect(),
        }
    }
}

fn within(name: &str, mut fault: Fault) -> Fault {
    fault.message = format!("{name}: {}", fault.message);
    fault
}

/// The startContainer hooks in the hands of init.
#[derive(Debug)]
pub(crate) struct Starting<'a> {
    hooks: &'a Hooks,
    state: OwnedFd,
}

impl<'a> Starting<'a> {
    /// Before the barrier, while init may still do everything. `None`: there are none.
    pub fn prepare(hooks: &'a Hooks) -> Result<Option<Self>> {
        if !hooks.has(Point::StartContainer) {
            return Ok(None);
        }
        let state = hooks.state(Point::StartContainer, Some(run::own_pid()))?;
        Ok(Some(Self { hooks, state }))
    }

    /// What must be left open until they run.
    pub fn state(&self) -> BorrowedFd<'_> {
        self.state.as_fd()
    }

    /// Past the barrier, with no more rights than the program is to have: these are the container's own programs. Of the
    /// launcher's descriptors none is open any more.
    pub fn run(&self) -> Result<()> {
        let with = run::Circumstances {
            in_place: true,
            ..run::Circumstances::default()
        };
        let until = Instant::now() + START;
        self.hooks
            .of(Point::StartContainer)
            .try_for_each(|hook| run::one(hook, self.hooks, &with, (&self.state, until)))
    }
}

/// A stranger's word that goes to the monitor's log, which is this process's standard error.
fn log(text: &str) {
    eprintln!("holdfast-monitor: {text}");
}
