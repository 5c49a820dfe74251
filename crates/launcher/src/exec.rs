//! The builder of a further process in a running container.

use std::os::fd::{AsFd, OwnedFd};

use holdfast_sys::{namespace, pidfd, scm};
use oci_spec::runtime::{LinuxSeccomp, Process};

use crate::building::{Building, Made, Slot, start};
use crate::cgroup::{Place, kill_and_wait};
use crate::channel::listen;
use crate::container::compile;
use crate::creds::Credentials;
use crate::error::{Error, Kind};
use crate::fault::{Context, Fault, Result};
use crate::init::{Init, become_root, close_others};
use crate::limits::{Limits, set_oom_score};
use crate::namespaces::{CGROUP, OF_EXEC, USER};
use crate::plan::ExecPlan;
use crate::procfs::Procfs;
use crate::userns;

/// Forks a builder that brings a process of the container to its barrier.
pub fn exec(plan: ExecPlan<'_>) -> Result<Building, Error> {
    let building = start(plan.container_id, true, |barrier| build(&plan, barrier));
    drop(plan);
    building
}

fn build(plan: &ExecPlan<'_>, barrier: &OwnedFd) -> Result<Made> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let process: Process = serde_json::from_slice(plan.process)
        .map_err(|e| Fault::invalid(format!("the process for {} is unreadable: {e}", plan.name)))?;
    let seccomp: Option<LinuxSeccomp> = match plan.seccomp {
        [] => None,
        bytes => serde_json::from_slice(bytes).map_err(|e| {
            Fault::invalid(format!("the seccomp profile of {} is unreadable: {e}", plan.name))
        })?,
    };
    let seccomp = compile(seccomp.as_ref())?;
    let mut warnings = Vec::new();
    let credentials = Credentials::new(&process, plan.clamp_privileges, &mut warnings)?;
    let mut limits = Limits::new(process.rlimits().as_deref().unwrap_or_default())?;
    let proc = Procfs::shared()?;
    let gone = |f: Fault| f.kind(Kind::Precondition);
    let not_running = || format!("{} is not running", plan.name);
    pidfd::signal(plan.init, 0).at(not_running).map_err(gone)?;
    let differs = |kind: &str| {
        let what = || format!("compare {kind} namespaces");
        let theirs = proc.namespace(plan.init_pid, kind).at(not_running);
        let theirs = theirs.map_err(gone)?;
        let ours = proc.namespace(0, kind).at(what)?;
        namespace::same(&theirs, &ours).at(what).map(|same| !same)
    };
    let in_user_namespace = differs("user")?;
    // The host's, where the container has none of its own: a join would change nothing, and from within a user namespace
    // it would be refused.
    let in_cgroup_namespace = differs("cgroup")?;
    let mut place = Place::below(plan.hierarchy, &plan.cgroup, plan.leaf)?;
    // Asked for here, since after the join /proc is whatever the container has there. Only where it is of use: it costs.
    let init_cgroup = match plan.leaf {
        "" => Some(Place::of_init(plan.hierarchy, plan.init_pid, plan.init).map_err(gone)?),
        _ => None,
    };
    if let Some(score) = process.oom_score_adj() {
        set_oom_score(score, plan.clamp_privileges, proc, &mut warnings)?;
    }
    limits.prepare(plan.clamp_privileges, &mut warnings)?;
    if in_user_namespace {
        userns::give(&plan.stdio, userns::root_of(plan.init_pid, proc).map_err(gone)?);
    }

    let all = OF_EXEC | if in_user_namespace { USER } else { 0 };
    namespace::join_process(plan.init, all).at(|| format!("join the namespaces of {}", plan.name))?;
    let (ours, theirs) = scm::pair().at(|| "make a socket pair")?;
    let spawn = |place: &Place| {
        place.spawn(0, || {
            let init = Init {
                container_id: plan.container_id,
                process: &process,
                credentials: &credentials,
                limits: &limits,
                seccomp: seccomp.as_ref(),
                stdio: &plan.stdio,
                make_directory: false,
                console: false,
                tasks: &place.tasks,
                proc,
                builder: &theirs,
                barrier,
                hooks: None,
            };
            let mut keep = init.descriptors();
            keep.push(plan.init);
            if close_others(&keep).is_err() {
                return 1;
            }
            init.run(|_| {
                if in_cgroup_namespace {
                    namespace::join_process(plan.init, CGROUP).at(|| "join the cgroup namespace")?;
                }
                if in_user_namespace {
                    become_root()?;
                }
                Ok(())
            })
        })
    };
    let child = match spawn(&place) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => match &init_cgroup {
            Some(path) => {
                place.move_to(plan.hierarchy, path)?;
                spawn(&place)
            }
            None => Err(e),
        },
        other => other,
    };
    let child = child.at(|| format!("clone a process for {}", plan.name))?;
    drop(theirs);
    let (more, terminal) = listen(ours.as_fd(), child.pidfd.as_fd(), "the new process")
        .inspect_err(|_| kill_and_wait(child.pidfd.as_fd()))?;
    place.keep();
    warnings.extend(more);
    let mut fds = vec![(Slot::Init, child.pidfd)];
    fds.extend(terminal.map(|fd| (Slot::Terminal, fd)));
    Ok(Made {
        pid: child.pid,
        fds,
        warnings,
    })
}
