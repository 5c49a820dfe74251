//! The face of the crate: finds the owner of what a call is about, and hands the call over.

use std::sync::Arc;
use std::time::Duration;

use holdfast_images::Images;
use holdfast_model::{
    CgroupDriver, ContainerId, ContainerRecord, ContainerSpec, ContainerState, Invalid, NamespaceMode,
    OciRuntime, Resources, SandboxId, SandboxRecord, SandboxSpec, SandboxState, SecurityProfile,
    SelinuxLabels,
};
use holdfast_network::{Network, NetworkStatus};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::cdi::{self, CdiStatus};
use crate::lsm::{AppArmor, selinux};
use crate::meter::{ContainerUsage, PodMetrics, PodUsage};
use crate::pod::{Birth, Command, Pod, PodResources};
use crate::recover;
use crate::shared::{Shared, new_sandbox_id, now};
use crate::spec::HostFacts;
use crate::waiters::Reply;
use crate::{Config, Error, Event, ExecOutput, ExecRequest, HandlerStatus, PodDetails, Readiness, Reexec};

/// Attempts to reach a pod of the wanted name that is just being removed.
const JOIN_ATTEMPTS: usize = 50;
const JOIN_PAUSE: Duration = Duration::from_millis(20);

/// The node's pods. Clones share one; when the last is dropped the pods' owners end and the pods run on.
#[derive(Clone)]
pub struct Engine {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.pods.clear();
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("root", &self.shared().config.root)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Takes over what an earlier daemon left: connects to the monitors of the pods on record, takes the exits that
    /// happened meanwhile, and removes what belongs to no record.
    pub async fn open(config: Config, images: Images, network: Network) -> Result<Self, Error> {
        let shared = recover::open(config, images, network).await?;
        Ok(Self {
            owner: Arc::new(Owner { shared }),
        })
    }

    /// Lets go of every pod. They run on; calls made after this find none of them.
    pub fn shutdown(&self) {
        self.shared().pods.clear();
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }

    // ---- pods

    /// Makes a pod and waits until it is ready. The same request again while it is being made joins it.
    pub async fn run_pod_sandbox(&self, spec: SandboxSpec, handler: &str) -> Result<SandboxId, Error> {
        spec.validate()?;
        let runtime = self.shared().handlers.for_pod(handler, &spec).await?;
        parent_cgroup(&self.shared().config, &spec)?;
        self.apparmor_is_here(&spec)?;
        for _ in 0..JOIN_ATTEMPTS {
            let id = new_sandbox_id()?;
            match self.shared().names.reserve(&spec.metadata, id) {
                Ok(()) => return self.make(id, spec, (handler, runtime)).await,
                Err(holder) => {
                    let Some(mailbox) = self.shared().pods.get(&holder) else {
                        tokio::time::sleep(JOIN_PAUSE).await;
                        continue;
                    };
                    let again = Box::new(spec.clone());
                    let handler = handler.to_owned();
                    let joined = ask(&mailbox, &holder, |reply| Command::Join {
                        spec: again,
                        handler,
                        reply,
                    })
                    .await;
                    match joined {
                        // It went away while we asked: then the name is free, or will be.
                        Err(Error::Busy { .. }) => tokio::time::sleep(JOIN_PAUSE).await,
                        answer => return answer,
                    }
                }
            }
        }
        let reason = "a pod of the same name is being removed";
        Err(Error::Busy {
            id: spec.metadata.to_string(),
            reason,
        })
    }

    /// Pause runs without a profile, as in the field's other runtimes; but what the pod's containers could not have is
    /// told at once.
    fn apparmor_is_here(&self, spec: &SandboxSpec) -> Result<(), Error> {
        match (&spec.security.apparmor, &self.shared().facts.apparmor) {
            (
                Some(SecurityProfile::RuntimeDefault | SecurityProfile::Localhost(_)),
                AppArmor::Absent(why),
            ) => {
                let reason = format!("cannot be enforced: {why}");
                Err(Invalid::new("linux.security_context.apparmor", reason).into())
            }
            _ => Ok(()),
        }
    }

    async fn make(
        &self,
        id: SandboxId,
        spec: SandboxSpec,
        handler: (&str, Option<OciRuntime>),
    ) -> Result<SandboxId, Error> {
        let metadata = spec.metadata.clone();
        let record = match self.new_record(id, spec, handler) {
            Ok(record) => record,
            Err(error) => {
                self.shared().names.release(&metadata, id);
                return Err(error);
            }
        };
        let (reply, answer) = oneshot::channel();
        Pod::start(self.shared(), record, Birth::New { reply });
        answer.await.unwrap_or_else(|_| Err(ended(&id)))
    }

    fn new_record(
        &self,
        id: SandboxId,
        spec: SandboxSpec,
        (handler, runtime): (&str, Option<OciRuntime>),
    ) -> Result<SandboxRecord, Error> {
        let shared = self.shared();
        let parent = parent_cgroup(&shared.config, &spec)?;
        // One of its own, so that it can be limited and measured as a whole.
        let cgroup = match shared.config.cgroup_driver {
            CgroupDriver::Cgroupfs if parent == shared.config.default_cgroup => format!("{parent}/{id}"),
            _ => parent,
        };
        let exists = shared.hierarchy.exists(&cgroup);
        let exists = exists.map_err(|source| Error::Cgroup {
            step: "search",
            path: cgroup.clone(),
            source: Box::new(source),
        })?;
        // Made by a pod that is there: the last of them takes it away. (One that is only being made is not seen.)
        let made_before = |other: &Arc<SandboxRecord>| other.cgroup == cgroup && other.cgroup_made;
        let made = match exists {
            true => shared.views.sandboxes.all().iter().any(made_before),
            false => cgroup != shared.config.default_cgroup,
        };
        let host_network = spec.host_network();
        let hostname = if host_network {
            rustix::system::uname().nodename().to_string_lossy().into_owned()
        } else if spec.hostname.is_empty() {
            holdfast_model::hostname_of(&spec.metadata.name)
        } else {
            spec.hostname.clone()
        };
        let selinux = self.labels(&id, &spec)?;
        let external = !host_network && shared.network.needs_netns_path();
        Ok(SandboxRecord {
            id,
            state: SandboxState::Creating,
            created_at: now(),
            handler: handler.to_owned(),
            runtime,
            cgroup_made: made,
            cgroup,
            cgroup_driver: shared.config.cgroup_driver,
            hostname,
            pause_pid: None,
            monitor_pid: None,
            boot_id: shared.boot_id.clone(),
            netns_path: if external {
                format!("/run/netns/holdfast-{}", id.short())
            } else {
                String::new()
            },
            network_owed: !host_network,
            network: None,
            ips: Vec::new(),
            selinux,
            undo: None,
            spec,
        })
    }

    /// Two pods that are made in the same instant may draw the same pair of half a million; no other two have the same.
    fn labels(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<SelinuxLabels, Error> {
        let others = self.shared().views.sandboxes.all();
        let taken = others
            .iter()
            .filter_map(|pod| selinux::categories(&pod.selinux.process));
        let asked = spec.security.selinux.as_ref();
        let seed = id.as_str().as_bytes();
        let labels = self
            .shared()
            .facts
            .selinux
            .for_pod(asked, &taken.collect(), seed)?;
        selinux::check(&labels)?;
        Ok(labels)
    }

    /// What the kernel and the machine can do.
    pub fn facts(&self) -> &HostFacts {
        &self.shared().facts
    }

    /// Ends everything that runs in the pod and gives its network back. A pod that is not there is stopped.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        self.tell_sandbox(id, |reply| Command::Stop { reply }).await
    }

    /// Stops the pod and removes it with its containers. A pod that is not there is removed.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        self.tell_sandbox(id, |reply| Command::Remove { reply }).await
    }

    async fn tell_sandbox(&self, id: &str, command: impl FnOnce(Reply<()>) -> Command) -> Result<(), Error> {
        let record = match self.sandbox(id) {
            Err(Error::NotFound { .. }) => return Ok(()),
            found => found?,
        };
        match self.shared().pods.get(&record.id) {
            Some(mailbox) => ask(&mailbox, &record.id, command).await,
            None => Ok(()),
        }
    }

    /// Newest record of one pod.
    pub fn sandbox(&self, id: &str) -> Result<Arc<SandboxRecord>, Error> {
        self.shared().views.sandboxes.find(id)
    }

    /// Newest records of all pods, those that are just being made left out.
    pub fn sandboxes(&self) -> Vec<Arc<SandboxRecord>> {
        let mut all = self.shared().views.sandboxes.all();
        all.retain(|record| record.state != SandboxState::Creating);
        all
    }

    /// A pod with its containers.
    pub fn pod_details(&self, id: &str) -> Result<PodDetails, Error> {
        let record = self.sandbox(id)?;
        let mut containers = self.containers();
        containers.retain(|container| container.sandbox == record.id);
        Ok(PodDetails { record, containers })
    }

    // ---- containers

    /// Makes a container as far as its exec barrier. The same request again while it is being made joins it.
    pub async fn create_container(&self, sandbox: &str, spec: ContainerSpec) -> Result<ContainerId, Error> {
        let pod = self.sandbox(sandbox)?;
        spec.validate(&pod.spec)?;
        cdi::requested(&spec)?;
        self.shared().handlers.check_container(&pod.handler, &spec)?;
        target_in_pod(&spec, &pod, |id| self.shared().views.containers.get(id))?;
        let mailbox = self.mailbox(&pod.id)?;
        let spec = Box::new(spec);
        ask(&mailbox, &pod.id, |reply| Command::CreateContainer {
            spec,
            reply,
        })
        .await
    }

    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let record = self.container(id)?;
        let (mailbox, id) = (self.mailbox(&record.sandbox)?, record.id);
        ask(&mailbox, &record.sandbox, |reply| Command::StartContainer {
            id,
            reply,
        })
        .await
    }

    /// The stop signal, then after `grace` SIGKILL to all of it; returns when it has ended. A container that is not
    /// there is stopped.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error> {
        self.tell_container(id, |id, reply| Command::StopContainer { id, grace, reply })
            .await
    }

    /// Removes a container, by force if it runs. A container that is not there is removed.
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        self.tell_container(id, |id, reply| Command::RemoveContainer { id, reply })
            .await
    }

    async fn tell_container(
        &self,
        id: &str,
        command: impl FnOnce(ContainerId, Reply<()>) -> Command,
    ) -> Result<(), Error> {
        let record = match self.container(id) {
            Err(Error::NotFound { .. }) => return Ok(()),
            found => found?,
        };
        match self.shared().pods.get(&record.sandbox) {
            Some(mailbox) => ask(&mailbox, &record.sandbox, |reply| command(record.id, reply)).await,
            None => Ok(()),
        }
    }

    /// Newest record of one container.
    pub fn container(&self, id: &str) -> Result<Arc<ContainerRecord>, Error> {
        self.shared().views.containers.find(id)
    }

    /// Newest records of all containers, those that are just being made left out.
    pub fn containers(&self) -> Vec<Arc<ContainerRecord>> {
        let mut all = self.shared().views.containers.all();
        all.retain(|record| record.state != ContainerState::Creating);
        all
    }

    /// Runs a command in a running container, to its end.
    pub async fn exec_sync(&self, id: &str, request: ExecRequest) -> Result<ExecOutput, Error> {
        let record = self.container(id)?;
        let (mailbox, id) = (self.mailbox(&record.sandbox)?, record.id);
        ask(&mailbox, &record.sandbox, |reply| Command::Exec {
            id,
            request,
            reply,
        })
        .await
    }

    /// The log file was moved away: a new one is begun at its path.
    pub async fn reopen_container_log(&self, id: &str) -> Result<(), Error> {
        let record = self.container(id)?;
        let (mailbox, id) = (self.mailbox(&record.sandbox)?, record.id);
        ask(&mailbox, &record.sandbox, |reply| Command::ReopenLog {
            id,
            reply,
        })
        .await
    }

    /// Changes limits of a created or running container: all of them or none. What the update leaves out stays.
    pub async fn update_container(&self, id: &str, resources: Resources) -> Result<(), Error> {
        resources.validate("linux")?;
        let record = self.container(id)?;
        let (mailbox, id) = (self.mailbox(&record.sandbox)?, record.id);
        let resources = Box::new(resources);
        ask(&mailbox, &record.sandbox, |reply| Command::UpdateContainer {
            id,
            resources,
            reply,
        })
        .await
    }

    /// Changes the limits of a ready pod's own cgroup, all of them or none, to what its containers (`resources`) and the
    /// pod itself (`overhead`) may use together. One that is left out stays.
    pub async fn update_pod(
        &self,
        id: &str,
        overhead: Option<Resources>,
        resources: Option<Resources>,
    ) -> Result<(), Error> {
        let record = self.sandbox(id)?;
        let mailbox = self.mailbox(&record.id)?;
        let resources = Box::new(PodResources { overhead, resources });
        ask(&mailbox, &record.id, |reply| Command::UpdatePod {
            resources,
            reply,
        })
        .await
    }

    // ---- what they use

    pub async fn container_usage(&self, id: &str) -> Result<ContainerUsage, Error> {
        Ok(self.shared().usage_of_container(&self.container(id)?).await)
    }

    /// From open descriptors, memory and the accounts of the writable layers; in the order of `records`.
    pub async fn container_usages(&self, records: &[Arc<ContainerRecord>]) -> Vec<ContainerUsage> {
        self.shared().usage_of_containers(records).await
    }

    pub async fn pod_usage(&self, id: &str) -> Result<PodUsage, Error> {
        let record = self.sandbox(id)?;
        Ok(self.shared().usage_of_pod(&record).await)
    }

    /// As [`Engine::container_usages`]; in the order of `records`.
    pub async fn pod_usages(&self, records: &[Arc<SandboxRecord>]) -> Vec<PodUsage> {
        self.shared().usage_of_pods(records).await
    }

    /// Of every pod that is up.
    pub async fn metrics(&self) -> Result<Vec<PodMetrics>, Error> {
        self.shared().metrics().await
    }

    // ---- the node

    /// Moves every pod's monitor onto the installed program, in place: same processes, same connections.
    pub async fn reexec_monitors(&self) -> Vec<Reexec> {
        let mut outcomes = Vec::new();
        for sandbox in self.shared().pods.ids() {
            if let Some(mailbox) = self.shared().pods.get(&sandbox) {
                let outcome = ask(&mailbox, &sandbox, |reply| Command::Reexec { reply }).await;
                outcomes.push(Reexec { sandbox, outcome });
            }
        }
        outcomes
    }

    /// Every configured runtime handler, the default's first, with what is known of its program. From memory.
    pub fn handlers(&self) -> Vec<HandlerStatus> {
        self.shared().handlers.statuses()
    }

    /// Whether there is a runtime handler of this name.
    pub fn check_handler(&self, name: &str) -> Result<(), Error> {
        self.shared().handlers.check_name(name)
    }

    /// Takes off what no container needs any more, as the daemon leaves.
    pub fn release_mounts(&self) {
        crate::handlers::release(&self.shared().config);
    }

    /// Whether pods could be made: the helpers are where they should be.
    pub fn readiness(&self) -> Readiness {
        let config = &self.shared().config;
        let missing = [config.monitor_program(), config.pause_program()]
            .into_iter()
            .find(|path| !path.is_file());
        let missing = missing.map(|path| format!("helper program {} is missing", path.display()));
        // Under cgroupfs systemd is asked for old pods only, and nobody watches whether it answers again.
        let by_systemd = config.cgroup_driver == CgroupDriver::Systemd;
        let trouble = || self.shared().systemd.trouble().filter(|_| by_systemd);
        match missing.or_else(trouble) {
            None => Readiness {
                ready: true,
                message: String::new(),
            },
            Some(message) => Readiness {
                ready: false,
                message,
            },
        }
    }

    /// Who makes the cgroups of new pods.
    pub fn cgroup_driver(&self) -> CgroupDriver {
        self.shared().config.cgroup_driver
    }

    pub fn network_status(&self) -> NetworkStatus {
        self.shared().network.status()
    }

    /// Devices that can be asked for by name, and specs that cannot be used. From memory.
    pub fn cdi_status(&self) -> CdiStatus {
        self.shared().cdi.status()
    }

    /// What happens from now on. A subscriber that falls behind by more than [`crate::config::bounds::EVENTS`] is told
    /// how many it has missed.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared().events.subscribe()
    }

    pub(crate) fn mailbox(&self, id: &SandboxId) -> Result<mpsc::Sender<Command>, Error> {
        self.shared().pods.get(id).ok_or_else(|| Error::NotFound {
            what: "pod",
            id: id.to_string(),
        })
    }
}

/// Puts a question to a pod's owner. The owner goes on even if nobody waits for the answer any more.
pub(crate) async fn ask<T>(
    mailbox: &mpsc::Sender<Command>,
    id: &SandboxId,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Result<T, Error> {
    let (reply, answer) = oneshot::channel();
    mailbox.try_send(command(reply)).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Error::Busy {
            id: id.to_string(),
            reason: "too many requests wait for it",
        },
        mpsc::error::TrySendError::Closed(_) => ended(id),
    })?;
    answer.await.unwrap_or_else(|_| Err(ended(id)))
}

fn ended(id: &SandboxId) -> Error {
    Error::Busy {
        id: id.to_string(),
        reason: "it has just been removed, or the daemon is stopping",
    }
}

/// The pod's cgroup, from its parent as the driver spells it: a path, or a slice.
fn parent_cgroup(config: &crate::Config, spec: &SandboxSpec) -> Result<String, Error> {
    let parent = spec.cgroup_parent.trim_end_matches('/');
    let refused = |reason: String| Err(Invalid::new("linux.cgroup_parent", reason).into());
    if parent.is_empty() {
        return Ok(config.default_cgroup.clone());
    }
    match config.cgroup_driver {
        CgroupDriver::Cgroupfs if parent.ends_with(".slice") => refused(format!(
            "{parent:?} is for the systemd cgroup driver; this runtime uses cgroupfs (pods.cgroup_driver), as the kubelet \
             must too: a path such as /kubepods/pod1 is wanted"
        )),
        CgroupDriver::Cgroupfs if !parent.starts_with('/') => {
            refused(format!("{parent:?} is not an absolute path"))
        }
        CgroupDriver::Cgroupfs => Ok(parent.to_owned()),
        CgroupDriver::Systemd => match holdfast_cgroups::slice_of_parent(parent) {
            Ok((_, path)) if !path.is_empty() => Ok(path),
            Ok(_) => refused(format!("{parent:?} is the root: pods need a slice below it")),
            Err(error) => refused(format!(
                "{error}; this runtime uses the systemd cgroup driver (pods.cgroup_driver), as the kubelet must too: a slice \
                 such as kubepods-pod1.slice is wanted"
            )),
        },
    }
}

/// The namespace mode `Target` may only name a running container of the same pod.
fn target_in_pod(
    spec: &ContainerSpec,
    pod: &SandboxRecord,
    find: impl FnOnce(&ContainerId) -> Option<Arc<ContainerRecord>>,
) -> Result<(), Error> {
    let Some(NamespaceMode::Target(target)) =
        spec.security.namespaces.as_ref().map(|namespaces| namespaces.pid)
    else {
        return Ok(());
    };
    const FIELD: &str = "linux.security_context.namespace_options.target_id";
    match find(&target) {
        Some(record) if record.sandbox != pod.id => {
            Err(Invalid::new(FIELD, format!("container {target} belongs to another pod")).into())
        }
        Some(record) if record.state == ContainerState::Running => Ok(()),
        Some(_) => Err(Invalid::new(FIELD, format!("container {target} is not running")).into()),
        None => Err(Invalid::new(FIELD, format!("there is no container {target}")).into()),
    }
}
