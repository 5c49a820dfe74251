//! The pod's sandbox: pause, the namespaces it holds, and their end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use holdfast_cgroups::Hierarchy;
use holdfast_launcher::{Built, CgroupRef, IdMap, PodNamespaces, SandboxPlan};
use holdfast_monitor_api::SandboxDescriptors;
use holdfast_monitor_api::message::{self, CreateSandbox, Exit, Failure, FailureKind, Init, reply};
use holdfast_sys::pidfd;

use crate::cgroup;
use crate::error::{failed, failure};
use crate::job::Outcome;
use crate::monitor::{Asker, BUILD_LIMIT, Goal, Monitor, Purpose};

/// Where pause's exit is recorded, and the name that stands for it.
pub(crate) const PAUSE: &str = "pause";

#[derive(Debug)]
pub(crate) struct Sandbox {
    pub pause_pid: i32,
    /// Pause is our child; one that was adopted is not.
    pub ours: bool,
    /// None once the sandbox is stopped.
    pub descriptors: Option<SandboxDescriptors>,
    /// Pause's mount namespace, in which the pod's /dev/shm is.
    pub mnt: Option<OwnedFd>,
    pub cgroup: CgroupRef,
    /// Empty: none.
    pub netns_path: String,
    pub exit: Option<Exit>,
    pub stopping: Vec<Asker>,
    /// The clean-up after pause's death is under way.
    pub cleaning: bool,
    /// When to look again how an adopted pause ended.
    pub retry_at: Option<Instant>,
    pub retry_until: Option<Instant>,
}

impl Sandbox {
    pub fn new(pause_pid: i32, create: &CreateSandbox) -> Self {
        Sandbox {
            pause_pid,
            ours: true,
            descriptors: None,
            mnt: None,
            cgroup: cgroup::reference(create.cgroup.as_ref()),
            netns_path: create.netns_path.clone(),
            exit: None,
            stopping: Vec::new(),
            cleaning: false,
            retry_at: None,
            retry_until: None,
        }
    }

    pub fn running(&self) -> bool {
        self.exit.is_none() && self.descriptors.is_some()
    }

    /// Duplicates for the launcher, which wants to own them.
    pub fn namespaces(&self) -> io::Result<PodNamespaces> {
        let copy = |fd: Option<&OwnedFd>| fd.map(OwnedFd::try_clone).transpose();
        let Some(held) = &self.descriptors else {
            return Ok(PodNamespaces::default());
        };
        Ok(PodNamespaces {
            net: copy(held.net.as_ref())?,
            ipc: copy(held.ipc.as_ref())?,
            uts: copy(held.uts.as_ref())?,
            pid: copy(held.pid.as_ref())?,
            user: copy(held.user.as_ref())?,
            mnt: copy(self.mnt.as_ref())?,
        })
    }
}

impl Monitor {
    pub(crate) fn create_sandbox(&mut self, asker: Asker, create: &CreateSandbox) -> Result<(), Failure> {
        let Some(init) = &self.init else {
            return Err(failure(
                FailureKind::Precondition,
                "the monitor has not been told its pod",
            ));
        };
        let building = self
            .builds
            .iter()
            .any(|build| matches!(build.goal, Goal::Sandbox(_)));
        if self.sandbox.is_some() || building {
            return Err(failure(FailureKind::Precondition, "the sandbox exists already"));
        }
        let hierarchy = self.hierarchy()?;
        let plan = plan(&hierarchy, init, create);
        let building =
            holdfast_launcher::create_sandbox(plan).map_err(|error| crate::error::launcher(&error))?;
        self.add_build(Goal::Sandbox(asker), building, BUILD_LIMIT)
            .map_err(|error| failed("cannot watch the builder", &error))?;
        // Kept for the time after the build, and for its failure.
        self.sandbox = Some(Sandbox::new(0, create));
        Ok(())
    }

    pub(crate) fn sandbox_built(&mut self, asker: Asker, built: Built) {
        let Some(sandbox) = &mut self.sandbox else {
            return;
        };
        let early = self.early.take(built.pid, built.pidfd.as_fd());
        let namespaces = built.namespaces;
        let descriptors = SandboxDescriptors {
            pidfd: built.pidfd,
            net: namespaces.net,
            ipc: namespaces.ipc,
            uts: namespaces.uts,
            pid: namespaces.pid,
            user: namespaces.user,
            netlink: built.netlink,
        };
        sandbox.pause_pid = built.pid;
        sandbox.mnt = namespaces.mnt;
        let created = descriptors.announce(built.pid, built.warnings);
        let descriptors = sandbox.descriptors.insert(descriptors);
        let fds = descriptors.as_fds();
        if let Some(link) = self
            .link
            .as_mut()
            .filter(|link| link.generation == asker.generation)
        {
            link.reply(asker.id, reply::Body::SandboxCreated(created), &fds);
        }
        if let Some(ended) = early {
            self.pause_ended(Some(ended));
        }
    }

    pub(crate) fn sandbox_failed(&mut self, asker: Asker, failure: Failure) {
        let Some(sandbox) = self.sandbox.take() else {
            return self.answer(asker, reply::Body::Error(failure));
        };
        let purpose = Purpose::Unwind {
            asker,
            failure,
            removing: Vec::new(),
        };
        self.start_cgroup_job(purpose, move |all| {
            clean(all, &sandbox.cgroup, &sandbox.netns_path)
        });
    }

    pub(crate) fn stop_sandbox(&mut self, asker: Asker) -> Result<(), Failure> {
        if self
            .builds
            .iter()
            .any(|build| matches!(build.goal, Goal::Sandbox(_)))
        {
            return Err(failure(FailureKind::Precondition, "the sandbox is being created"));
        }
        if let Some(container) = self.containers.iter().find(|container| !container.is_over()) {
            let text = format!("container {} has not exited", container.id);
            return Err(failure(FailureKind::Precondition, text));
        }
        let Some(sandbox) = &mut self.sandbox else {
            self.answer_done(asker, Ok(()));
            return Ok(());
        };
        sandbox.stopping.push(asker);
        sandbox.mnt = None;
        let held = sandbox.descriptors.take();
        if let Some(held) = held {
            if sandbox.exit.is_none() {
                // ESRCH: it has just ended, and its exit is on the way.
                let _ = pidfd::signal(held.pidfd.as_fd(), libc::SIGKILL);
                if !sandbox.ours {
                    // Not ours to reap; the clean-up waits until its cgroup is empty.
                    sandbox.exit = Some(Exit {
                        container_id: PAUSE.to_owned(),
                        unknown: true,
                        finished_at: crate::clock::now(),
                        ..Exit::default()
                    });
                }
            }
            self.poller.forget(&held.pidfd);
        }
        self.clean_sandbox();
        Ok(())
    }

    /// Once pause is dead and somebody waits for that: removes what the sandbox has left in the kernel.
    pub(crate) fn clean_sandbox(&mut self) {
        let Some(sandbox) = &mut self.sandbox else {
            return;
        };
        if sandbox.stopping.is_empty() || sandbox.cleaning || sandbox.exit.is_none() {
            return;
        }
        sandbox.cleaning = true;
        let (cgroup, netns_path) = (sandbox.cgroup.clone(), sandbox.netns_path.clone());
        self.start_cgroup_job(Purpose::StopSandbox, move |all| clean(all, &cgroup, &netns_path));
    }

    pub(crate) fn sandbox_cleaned(&mut self, outcome: Outcome) {
        let Some(sandbox) = &mut self.sandbox else {
            return;
        };
        sandbox.cleaning = false;
        let outcome = outcome.map(drop);
        for asker in std::mem::take(&mut sandbox.stopping) {
            self.answer_done(asker, outcome.clone());
        }
    }
}

/// Runs in a job: kills what is left in the sandbox's cgroup, removes it, and takes the namespace's bind mount away.
fn clean(hierarchy: &Hierarchy, cgroup: &CgroupRef, netns_path: &str) -> Outcome {
    let removed = cgroup::remove(hierarchy, cgroup);
    let unbound = unbind(Path::new(netns_path));
    removed.and(unbound)
}

fn unbind(path: &Path) -> Outcome {
    if path.as_os_str().is_empty() {
        return Ok(0);
    }
    match holdfast_launcher::unbind_namespace(path) {
        Ok(()) => Ok(0),
        Err(error) => Err(crate::error::launcher(&error)),
    }
}

fn plan<'a>(hierarchy: &'a Hierarchy, init: &'a Init, create: &'a CreateSandbox) -> SandboxPlan<'a> {
    SandboxPlan {
        id: &init.sandbox_id,
        hierarchy,
        pause: PathBuf::from(&init.pause_path),
        new_net: create.new_net,
        new_ipc: create.new_ipc,
        new_uts: create.new_uts,
        new_pid: create.new_pid,
        uid_maps: maps(&create.uid_maps),
        gid_maps: maps(&create.gid_maps),
        hostname: create.hostname.clone(),
        sysctls: create
            .sysctls
            .iter()
            .map(|pair| (pair.key.clone(), pair.value.clone()))
            .collect(),
        cgroup: cgroup::reference(create.cgroup.as_ref()),
        resources: &create.resources,
        shm_size: create.shm_size,
        netns_path: (!create.netns_path.is_empty()).then(|| PathBuf::from(&create.netns_path)),
        oom_score_adj: create.oom_score_adj,
        clamp_privileges: create.clamp_privileges,
        selinux_label: &create.selinux_label,
        mount_label: &create.mount_label,
    }
}

fn maps(maps: &[message::IdMap]) -> Vec<IdMap> {
    maps.iter()
        .map(|map| IdMap {
            container_id: map.container_id,
            host_id: map.host_id,
            size: map.size,
        })
        .collect()
}
