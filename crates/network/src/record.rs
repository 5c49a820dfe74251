//! What is known about each pod's network, in memory and on disk; who holds which host port.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_store::{Record, Records};
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::bridge::BridgeAttachment;
use crate::cni::Attachment;
use crate::types::{NetResult, PodNetwork, PortMapping};
use crate::{Error, Result};

/// How far an attachment has come; see the diagram at the crate's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Reserved,
    Ready,
    Draining,
}

/// Which network made the attachment, and what that one needs to take it down.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Backend {
    Bridge(BridgeAttachment),
    Cni(Attachment),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub sandbox_id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub phase: Phase,
    /// Emptied when the record begins to drain: the ports are free from then on.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    pub backend: Backend,
    #[serde(default)]
    pub result: Option<NetResult>,
}

impl Record for PodRecord {}

impl PodRecord {
    pub(crate) fn new(pod: &PodNetwork, backend: Backend) -> Self {
        Self {
            sandbox_id: pod.sandbox_id.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            uid: pod.uid.clone(),
            phase: Phase::Reserved,
            ports: pod
                .port_mappings
                .iter()
                .filter(|p| p.host_port != 0)
                .cloned()
                .collect(),
            backend,
            result: None,
        }
    }

    fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// All records. Memory is the truth for readers; the file is written before the change is acted on.
#[derive(Debug)]
pub(crate) struct Book {
    pods: Mutex<HashMap<String, Arc<PodRecord>>>,
    files: Records<PodRecord>,
}

impl Book {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|source| Error::Io {
            what: "cannot create",
            path: dir.to_path_buf(),
            source,
        })?;
        let opened = Records::open(dir.join("pods")).map_err(|source| Error::Record {
            id: dir.display().to_string(),
            source: Box::new(source),
        })?;
        for bad in &opened.quarantined {
            error!(
                sandbox = %bad.key, reason = %bad.reason, moved_to = %bad.moved_to.display(),
                "network record is damaged: the pod's interface will be removed as a stray"
            );
        }
        let pods = opened
            .records
            .into_iter()
            .map(|(id, record)| (id, Arc::new(record)))
            .collect();
        Ok(Self {
            pods: Mutex::new(pods),
            files: opened.store,
        })
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<String, Arc<PodRecord>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<PodRecord>> {
        self.pods().get(id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<PodRecord>> {
        self.pods().values().cloned().collect()
    }

    /// Takes the host ports and writes the record, before anything is done.
    pub(crate) fn reserve(&self, record: &PodRecord) -> Result<()> {
        let id = record.sandbox_id.clone();
        {
            let mut pods = self.pods();
            for (at, port) in record.ports.iter().enumerate() {
                let own = record.ports[..at]
                    .iter()
                    .find(|other| overlap(port, other))
                    .map(|_| record);
                let other = || {
                    pods.values()
                        .find(|r| r.ports.iter().any(|o| overlap(port, o)))
                        .map(|r| &**r)
                };
                if let Some(holder) = own.or_else(other) {
                    return Err(Error::HostPortInUse {
                        port: port.host_port,
                        protocol: port.protocol,
                        host_ip: port.host_ip.map_or("all addresses".into(), |ip| ip.to_string()),
                        holder: holder.title(),
                        holder_id: holder.sandbox_id.clone(),
                    });
                }
            }
            pods.insert(id.clone(), Arc::new(record.clone()));
        }
        let written = self.write(record);
        if written.is_err() {
            self.pods().remove(&id);
        }
        written
    }

    /// Replaces a record.
    pub(crate) fn update(&self, mut record: PodRecord) -> Result<()> {
        if record.phase == Phase::Draining {
            record.ports.clear();
        }
        self.write(&record)?;
        self.pods().insert(record.sandbox_id.clone(), Arc::new(record));
        Ok(())
    }

    /// An attachment of the built-in network is complete. In memory only: that it was reserved is all that a restart needs
    /// to know, and the file would cost a pod's start one more write.
    pub(crate) fn promote(&self, id: &str) {
        if let Some(record) = self.pods().get_mut(id).filter(|r| r.phase == Phase::Reserved) {
            Arc::make_mut(record).phase = Phase::Ready;
        }
    }

    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        self.files.remove(id).map_err(|source| Error::Record {
            id: id.to_owned(),
            source: Box::new(source),
        })?;
        self.pods().remove(id);
        Ok(())
    }

    fn write(&self, record: &PodRecord) -> Result<()> {
        self.files
            .put(&record.sandbox_id, record)
            .map_err(|source| Error::Record {
                id: record.sandbox_id.clone(),
                source: Box::new(source),
            })
    }
}

/// Whether two mappings want the same packets.
fn overlap(a: &PortMapping, b: &PortMapping) -> bool {
    if a.host_port != b.host_port || a.protocol != b.protocol {
        return false;
    }
    match (a.host_ip, b.host_ip) {
        (None, _) | (_, None) => true,
        (Some(x), Some(y)) => x.is_ipv4() == y.is_ipv4() && (x == y || is_wildcard(x) || is_wildcard(y)),
    }
}

/// "Every address of the family".
pub(crate) fn is_wildcard(ip: IpAddr) -> bool {
    ip.is_unspecified()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::types::Protocol;

    #[test]
    fn ports_overlap_by_protocol_family_and_address() {
        let port = |ip: &str, host_port, protocol| PortMapping {
            host_ip: (!ip.is_empty()).then(|| ip.parse().unwrap()),
            host_port,
            container_port: 80,
            protocol,
        };
        let base = port("", 80, Protocol::Tcp);
        for (other, expect) in [
            (port("", 80, Protocol::Tcp), true),
            (port("", 81, Protocol::Tcp), false),
            (port("", 80, Protocol::Udp), false),
            (port("10.0.0.1", 80, Protocol::Tcp), true),
            (port("::1", 80, Protocol::Tcp), true),
        ] {
            assert_eq!(overlap(&base, &other), expect, "{other:?}");
            assert_eq!(overlap(&other, &base), expect, "{other:?}");
        }
        let v4 = port("10.0.0.1", 80, Protocol::Tcp);
        for (other, expect) in [
            (port("10.0.0.2", 80, Protocol::Tcp), false),
            (port("0.0.0.0", 80, Protocol::Tcp), true),
            (port("::", 80, Protocol::Tcp), false),
        ] {
            assert_eq!(overlap(&v4, &other), expect, "{other:?}");
        }
    }
}
