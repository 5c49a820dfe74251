//! Making a pod, in phases: files, monitor, sandbox, network. Each phase holds what it made and can take it back,
//! with everything before it.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_model::{Protocol, SandboxRecord};
use holdfast_monitor_api::Sandbox;
use holdfast_network::{Bandwidth, Dns, NetResult, PodNetwork, PortMapping};
use tracing::{debug, warn};

use super::link::{self, Link};
use super::{Context, files, scope, stop};
use crate::Error;
use crate::config::bounds;

/// A pod that is up.
pub(super) struct Built {
    pub link: Link,
    pub sandbox: Sandbox,
    pub network: Option<NetResult>,
}

/// A pod that is not. What could not be taken back is named.
pub(super) struct Failed {
    pub error: Error,
    pub leftovers: Vec<String>,
}

pub(super) async fn build(context: Arc<Context>, record: Arc<SandboxRecord>) -> Result<Box<Built>, Failed> {
    let unwound = |error, leftovers| Failed { error, leftovers };
    if let Err(error) = context.shared.disk.put_sandbox(record.clone()).await {
        return Err(unwound(error, Vec::new()));
    }
    debug!(pod = %context.id, "recorded");
    let files = match Files::make(&context, &record) {
        Ok(files) => files,
        Err(error) => return Err(unwound(error, stop::clean_up(&context, &record, None).await)),
    };
    let monitored = match files.start_monitor().await {
        Ok(monitored) => monitored,
        Err(error) => return Err(unwound(error, stop::clean_up(&context, &record, None).await)),
    };
    let sandboxed = match monitored.create_sandbox().await {
        Ok(sandboxed) => sandboxed,
        Err((error, monitored)) => return Err(unwound(error, monitored.unwind().await)),
    };
    match sandboxed.connect().await {
        Ok(built) => Ok(Box::new(built)),
        Err((error, sandboxed)) => Err(unwound(error, sandboxed.unwind().await)),
    }
}

struct Files {
    context: Arc<Context>,
    record: Arc<SandboxRecord>,
}

struct Monitored {
    files: Files,
    link: Link,
}

struct Sandboxed {
    monitored: Monitored,
    sandbox: Sandbox,
}

impl Files {
    fn make(context: &Arc<Context>, record: &Arc<SandboxRecord>) -> Result<Self, Error> {
        let config = &context.shared.config;
        files::write(
            &context.dir,
            &record.spec,
            &record.hostname,
            &config.host_resolv_conf,
        )?;
        if record.spec.host_network() {
            files::write_hosts(&context.dir, true, &record.hostname, &[])?;
        }
        Ok(Self {
            context: context.clone(),
            record: record.clone(),
        })
    }

    async fn start_monitor(self) -> Result<Monitored, Error> {
        let link = link::spawn(&self.context).await?;
        debug!(pod = %self.context.id, "monitor started");
        Ok(Monitored { files: self, link })
    }
}

impl Monitored {
    async fn create_sandbox(self) -> Result<Sandboxed, (Error, Self)> {
        let context = &self.files.context;
        let client = self.link.client.with_deadline(bounds::CREATE);
        // One after the other, but without waiting for the first answer.
        let held = match scope::of_pause(context, &self.files.record).await {
            Ok(held) => held,
            Err(error) => {
                // It knows nothing yet, so nobody could reach it.
                self.link.kill();
                return Err((error, self));
            }
        };
        let (init, created) = tokio::join!(
            client.init(link::init_message(context, &self.files.record)),
            client.create_sandbox(link::sandbox_message(context, &self.files.record)),
        );
        held.leave().await;
        if let Err(source) = init {
            // It serves nobody and cannot be reached again.
            self.link.kill();
            return Err((Error::monitor("preparing the monitor", context.id)(source), self));
        }
        match created {
            Ok(sandbox) => {
                debug!(pod = %context.id, "sandbox created");
                for warning in &sandbox.warnings {
                    warn!(pod = %context.id, "{warning}");
                }
                Ok(Sandboxed {
                    monitored: self,
                    sandbox,
                })
            }
            Err(source) => Err((Error::monitor("creating the sandbox", context.id)(source), self)),
        }
    }

    async fn unwind(self) -> Vec<String> {
        stop::clean_up(&self.files.context, &self.files.record, Some(self.link.client)).await
    }
}

impl Sandboxed {
    /// Gives the pod its network, where it has one of its own.
    async fn connect(self) -> Result<Built, (Error, Self)> {
        let record = self.monitored.files.record.clone();
        let context = self.monitored.files.context.clone();
        if record.spec.host_network() {
            return Ok(Built {
                link: self.monitored.link,
                sandbox: self.sandbox,
                network: None,
            });
        }
        let request = match self.request(&record) {
            Ok(request) => request,
            Err(error) => return Err((error, self)),
        };
        let setup = tokio::time::timeout(bounds::NETWORK_SETUP, context.shared.network.setup(request)).await;
        let result = match setup {
            Ok(Ok(result)) => result,
            Ok(Err(source)) => {
                let step = "setting up the network";
                return Err((
                    Error::Network {
                        step,
                        id: context.id.to_string(),
                        source: Box::new(source),
                    },
                    self,
                ));
            }
            Err(_) => {
                let what = "setting up the network";
                let limit = bounds::NETWORK_SETUP;
                return Err((
                    Error::Deadline {
                        what,
                        id: context.id.to_string(),
                        limit,
                    },
                    self,
                ));
            }
        };
        debug!(pod = %context.id, "network ready");
        if let Err(error) = files::write_hosts(&context.dir, false, &record.hostname, &result.ips) {
            return Err((error, self));
        }
        Ok(Built {
            link: self.monitored.link,
            sandbox: self.sandbox,
            network: Some(result),
        })
    }

    fn request(&self, record: &SandboxRecord) -> Result<PodNetwork, Error> {
        let id = record.id.to_string();
        let descriptors = &self.sandbox.descriptors;
        let netns = descriptors.net.as_ref().ok_or_else(|| Error::Internal {
            what: format!("the monitor of {id} made no network namespace"),
        })?;
        let netns = netns.as_fd().try_clone_to_owned().map_err(|e| Error::Internal {
            what: format!("cannot duplicate the network namespace of {id}: {e}"),
        })?;
        let spec = &record.spec;
        let dns = spec.dns.clone().unwrap_or_default();
        let (ingress, egress) = spec.bandwidth()?;
        Ok(PodNetwork {
            sandbox_id: id,
            name: spec.metadata.name.clone(),
            namespace: spec.metadata.namespace.clone(),
            uid: spec.metadata.uid.clone(),
            netns,
            netns_path: (!record.netns_path.is_empty()).then(|| PathBuf::from(&record.netns_path)),
            // The pod's own goes on being read from: see `meter`. Without a copy the network opens one for itself.
            netlink: descriptors
                .netlink
                .as_ref()
                .and_then(|socket| socket.try_clone().ok()),
            port_mappings: spec.port_mappings.iter().filter_map(port_mapping).collect(),
            dns: Dns {
                servers: dns.servers,
                searches: dns.searches,
                options: dns.options,
            },
            bandwidth: (ingress.is_some() || egress.is_some()).then_some(Bandwidth { ingress, egress }),
            ips: Vec::new(),
            mac: None,
            cgroup_path: Some(record.cgroup.clone()),
            annotations: spec.annotations.clone(),
        })
    }

    async fn unwind(self) -> Vec<String> {
        self.monitored.unwind().await
    }
}

/// Ranges and the address were checked by [`holdfast_model::SandboxSpec::validate`].
fn port_mapping(mapping: &holdfast_model::PortMapping) -> Option<PortMapping> {
    let host_port = u16::try_from(mapping.host_port).ok().filter(|port| *port != 0)?;
    Some(PortMapping {
        host_ip: mapping.host_ip.parse::<IpAddr>().ok(),
        host_port,
        container_port: u16::try_from(mapping.container_port).ok()?,
        protocol: match mapping.protocol {
            Protocol::Tcp => holdfast_network::Protocol::Tcp,
            Protocol::Udp => holdfast_network::Protocol::Udp,
            Protocol::Sctp => holdfast_network::Protocol::Sctp,
        },
    })
}
