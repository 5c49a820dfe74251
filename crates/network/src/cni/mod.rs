//! CNI: which network is configured ([`Loader`]), and its operations ([`Executor`]).
//!
//! <https://www.cni.dev/docs/spec/>, versions 0.3.1 to 1.1.0. Plugins of a list depend on each other's results, so they
//! are executed one after the other; only what has no order (VERSION, GC) runs side by side.

mod conf;
mod exec;
mod loader;
mod result;
mod template;
mod write;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rscni_types::types::{CNI_ARGS, CNI_COMMAND, CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS, CNI_PATH, Cmd};
use rscni_types::version::PluginInfo;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tracing::debug;

pub(crate) use conf::{NetworkList, Plugin};
pub(crate) use loader::Loader;
pub(crate) use write::{Written, write};

use crate::record::PodRecord;
use crate::types::{NetResult, POD_INTERFACE, PodNetwork};
use crate::{Error, Result};
use exec::Call;

/// GC of a whole list.
const GC: Duration = Duration::from_secs(10);

/// What the directory says.
#[derive(Debug, Clone)]
pub(crate) enum Selected {
    /// There is no configuration.
    Builtin,
    /// The one that decides cannot be used.
    Broken {
        path: PathBuf,
        reason: String,
    },
    Network(Arc<NetworkList>),
}

/// What was asked of the plugins for a pod, kept so that the same can be undone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    pub list: NetworkList,
    pub netns: PathBuf,
    pub ifname: String,
    pub capabilities: BTreeMap<String, Value>,
    /// The cached result, which DEL is given.
    #[serde(default)]
    pub last_result: Option<Value>,
}

impl Attachment {
    pub(crate) fn new(pod: &PodNetwork, list: &NetworkList, netns: PathBuf) -> Self {
        Self {
            list: list.clone(),
            netns,
            ifname: POD_INTERFACE.into(),
            capabilities: capabilities(pod),
            last_result: None,
        }
    }
}

/// The values of the well-known capabilities; those without a value are left out.
fn capabilities(pod: &PodNetwork) -> BTreeMap<String, Value> {
    let ports: Vec<Value> = pod
        .port_mappings
        .iter()
        .filter(|p| p.host_port != 0)
        .map(|p| {
            let mut mapping = json!({
                "hostPort": p.host_port,
                "containerPort": p.container_port,
                "protocol": p.protocol.name(),
            });
            if let Some(ip) = p.host_ip {
                mapping["hostIP"] = json!(ip);
            }
            mapping
        })
        .collect();
    let mut values = BTreeMap::new();
    let mut put =
        |name: &str, value: Option<Value>| values.extend(value.map(|value| (name.to_owned(), value)));
    put("portMappings", (!ports.is_empty()).then_some(Value::Array(ports)));
    put("dns", (!pod.dns.is_empty()).then(|| json!(pod.dns)));
    put("ips", (!pod.ips.is_empty()).then(|| json!(pod.ips)));
    put("mac", pod.mac.as_ref().map(|mac| json!(mac)));
    put("cgroupPath", pod.cgroup_path.as_ref().map(|path| json!(path)));
    put(
        "io.kubernetes.cri.pod-annotations",
        (!pod.annotations.is_empty()).then(|| json!(pod.annotations)),
    );
    if let Some(limits) = pod.bandwidth {
        // A burst is required with a rate; the largest one leaves only the rate in force.
        let mut bandwidth = Map::new();
        for (rate, burst, limit) in [
            ("ingressRate", "ingressBurst", limits.ingress),
            ("egressRate", "egressBurst", limits.egress),
        ] {
            if let Some(limit) = limit {
                bandwidth.insert(rate.into(), json!(limit));
                bandwidth.insert(burst.into(), json!(i32::MAX));
            }
        }
        put(
            "bandwidth",
            (!bandwidth.is_empty()).then_some(Value::Object(bandwidth)),
        );
    }
    values
}

/// A finished ADD.
#[derive(Debug)]
pub(crate) struct Added {
    pub result: NetResult,
    pub last: Value,
}

/// Executes plugins.
#[derive(Debug, Clone)]
pub(crate) struct Executor {
    dirs: Arc<[PathBuf]>,
    deadline: Duration,
}

/// Environment of a call that is about a pod.
struct Target<'a> {
    record: &'a PodRecord,
    netns: Option<&'a Path>,
    ifname: &'a str,
}

impl Executor {
    pub(crate) fn new(dirs: Vec<PathBuf>, deadline: Duration) -> Self {
        Self {
            dirs: dirs.into(),
            deadline,
        }
    }

    pub(crate) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// An error when a plugin of the list is not there.
    pub(crate) fn require(&self, list: &NetworkList) -> Result<()> {
        for plugin in &list.plugins {
            exec::find(&self.dirs, &plugin.kind, &list.name)?;
        }
        Ok(())
    }

    /// ADD of each plugin in order, each with the result of the one before.
    pub(crate) async fn add(&self, record: &PodRecord, attachment: &Attachment) -> Result<Added> {
        let list = &attachment.list;
        let mut last: Option<(rscni_types::types::CNIResult, Value)> = None;
        for plugin in &list.plugins {
            let target = Target {
                record,
                netns: Some(&attachment.netns),
                ifname: &attachment.ifname,
            };
            let previous = last.as_ref().map(|(_, value)| value);
            let input = plugin.input(list, &attachment.capabilities, previous);
            let output = self.call(list, plugin, Cmd::Add, Some(&target), &input).await?;
            let read = result::read(&output, list.version);
            last = Some(read.map_err(|reason| exec::garbage(&plugin.kind, "ADD", &reason, &output))?);
        }
        let plugin = list.plugins.last().map(|p| p.kind.as_str()).unwrap_or_default();
        let (parsed, last) = last.ok_or_else(|| Error::CniConfig {
            path: list.path.clone(),
            reason: "has no plugins".into(),
        })?;
        let digested = result::digest(&parsed, &attachment.ifname, &list.name, last.clone());
        if digested.ips.is_empty() {
            let output = last.to_string();
            return Err(exec::garbage(
                plugin,
                "ADD",
                "no address for the pod",
                output.as_bytes(),
            ));
        }
        Ok(Added {
            result: digested,
            last,
        })
    }

    /// DEL of each plugin, last first. All are tried; the first failure is returned.
    pub(crate) async fn del(&self, record: &PodRecord, attachment: &Attachment) -> Result<()> {
        let list = &attachment.list;
        // A path that is no namespace any more is left out, as the specification has it for a namespace that is gone;
        // given the path, plugins fail for ever.
        let netns = Some(attachment.netns.as_path()).filter(|path| is_namespace(path));
        let previous = attachment
            .last_result
            .as_ref()
            .filter(|_| list.version.allows(Cmd::Check).is_ok());
        let mut outcome = Ok(());
        for plugin in list.plugins.iter().rev() {
            let target = Target {
                record,
                netns,
                ifname: &attachment.ifname,
            };
            let input = plugin.input(list, &attachment.capabilities, previous);
            if let Err(error) = self.call(list, plugin, Cmd::Del, Some(&target), &input).await {
                debug!(sandbox = %record.sandbox_id, error = error.chain(), "cni DEL failed");
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    /// GC of each plugin, told which attachments are valid. All are tried, as long as there is time: [`GC`] for all of them, or
    /// the deadline of one execution where that is less. Nothing else is executed meanwhile, so no pod comes or goes.
    pub(crate) async fn gc(&self, list: &NetworkList, valid: &[String]) -> Result<()> {
        if !list.allows(Cmd::Gc) {
            return Ok(());
        }
        let valid: Vec<Value> = valid
            .iter()
            .map(|id| json!({"containerID": id, "ifname": POD_INTERFACE}))
            .collect();
        let until = Instant::now() + self.deadline.min(GC);
        let mut outcome = Ok(());
        for plugin in &list.plugins {
            let hurried = Self {
                dirs: self.dirs.clone(),
                deadline: until.saturating_duration_since(Instant::now()),
            };
            let mut input = plugin.input(list, &BTreeMap::new(), None);
            // Both names are in use: the specification has one, libcni's own type the other.
            for name in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                input.insert(name.into(), json!(valid));
            }
            let done = hurried.call(list, plugin, Cmd::Gc, None, &input).await;
            outcome = outcome.and(done.map(drop));
        }
        outcome
    }

    /// Whether every plugin is there and speaks the list's version, and (1.1) says that it is ready.
    pub(crate) async fn status(&self, list: &NetworkList) -> Result<()> {
        for plugin in &list.plugins {
            exec::find(&self.dirs, &plugin.kind, &list.name)?;
        }
        for plugin in &list.plugins {
            let input = Map::from_iter([("cniVersion".to_owned(), json!(list.version))]);
            let output = self.call(list, plugin, Cmd::Version, None, &input).await?;
            let info: PluginInfo = serde_json::from_slice(&output)
                .map_err(|e| exec::garbage(&plugin.kind, "VERSION", &e.to_string(), &output))?;
            if !info.supported_versions().contains(&list.version) {
                let spoken = info
                    .supported_versions()
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ");
                return Err(Error::PluginFailed {
                    plugin: plugin.kind.clone(),
                    command: "VERSION",
                    reason: format!(
                        "the configuration is {}, the plugin speaks {spoken}",
                        list.version
                    ),
                });
            }
        }
        if list.allows(Cmd::Status) {
            for plugin in &list.plugins {
                let input = plugin.input(list, &BTreeMap::new(), None);
                self.call(list, plugin, Cmd::Status, None, &input).await?;
            }
        }
        Ok(())
    }

    async fn call(
        &self,
        list: &NetworkList,
        plugin: &Plugin,
        command: Cmd,
        target: Option<&Target<'_>>,
        input: &Map<String, Value>,
    ) -> Result<Vec<u8>> {
        let path = exec::find(&self.dirs, &plugin.kind, &list.name)?;
        let command: &'static str = command.into();
        let dirs = self
            .dirs
            .iter()
            .map(|d| d.as_os_str().to_owned())
            .collect::<Vec<_>>()
            .join(&OsString::from(":"));
        let mut env = vec![(CNI_COMMAND, OsString::from(command)), (CNI_PATH, dirs)];
        if let Some(Target {
            record,
            netns,
            ifname,
        }) = target
        {
            env.push((CNI_CONTAINERID, record.sandbox_id.as_str().into()));
            env.push((
                CNI_NETNS,
                netns.map(|p| p.as_os_str().to_owned()).unwrap_or_default(),
            ));
            env.push((CNI_IFNAME, (*ifname).into()));
            env.push((CNI_ARGS, args(record).into()));
        }
        let input = serde_json::to_vec(input).map_err(|e| Error::CniConfig {
            path: list.path.clone(),
            reason: e.to_string(),
        })?;
        exec::run(Call {
            path: &path,
            plugin: &plugin.kind,
            command,
            env,
            input,
            deadline: self.deadline,
        })
        .await
    }
}

fn args(record: &PodRecord) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        record.namespace, record.name, record.sandbox_id, record.uid
    )
}

/// Whether a path still leads to a namespace (and not to the empty file that it was mounted on, or nowhere).
fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type == NSFS_MAGIC)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::types::{Bandwidth, Dns, PortMapping, Protocol};

    #[test]
    fn capabilities_have_the_form_of_the_conventions() {
        let pod = PodNetwork {
            sandbox_id: "a".repeat(64),
            name: "p".into(),
            namespace: "n".into(),
            uid: "u".into(),
            netns: std::fs::File::open("/dev/null").unwrap().into(),
            netns_path: None,
            netlink: None,
            port_mappings: [0, 80]
                .map(|host_port| PortMapping {
                    host_ip: Some([127, 0, 0, 1].into()),
                    host_port,
                    container_port: 8080,
                    protocol: Protocol::Sctp,
                })
                .to_vec(),
            dns: Dns {
                servers: vec!["10.0.0.10".into()],
                searches: vec!["x".into()],
                options: Vec::new(),
            },
            bandwidth: Some(Bandwidth {
                ingress: None,
                egress: Some(5),
            }),
            ips: vec!["10.0.0.5/24".into()],
            mac: Some("02:00:00:00:00:01".into()),
            cgroup_path: None,
            annotations: BTreeMap::new(),
        };
        let expect = json!({
            "portMappings": [
                {"hostPort": 80, "containerPort": 8080, "protocol": "sctp", "hostIP": "127.0.0.1"}],
            "bandwidth": {"egressRate": 5, "egressBurst": i32::MAX},
            "dns": {"servers": ["10.0.0.10"], "searches": ["x"], "options": []},
            "ips": ["10.0.0.5/24"],
            "mac": "02:00:00:00:00:01",
        });
        assert_eq!(json!(capabilities(&pod)), expect);
    }
}
