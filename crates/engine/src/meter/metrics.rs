//! What a collector of metrics is told of each pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use holdfast_cgroups::Detail;
use holdfast_model::{ContainerRecord, SandboxRecord};

use super::{ContainerUsage, FileSystem, Layer, NetworkUsage, OpenFiles, Usage, lock};
use crate::Error;
use crate::shared::{Shared, blocking};

/// Block devices whose names are remembered.
const DEVICES: usize = 1024;

/// A container that is alive.
#[derive(Debug, Clone)]
pub struct ContainerMetrics {
    pub record: Arc<ContainerRecord>,
    pub usage: Usage,
    pub detail: Detail,
    pub files: OpenFiles,
    pub layer: Option<Layer>,
}

/// A pod that is up.
#[derive(Debug, Clone)]
pub struct PodMetrics {
    pub record: Arc<SandboxRecord>,
    /// Of the pod's cgroup, where it has one to itself.
    pub whole: Option<(Usage, Detail)>,
    pub network: Option<NetworkUsage>,
    pub containers: Vec<ContainerMetrics>,
    pub file_system: FileSystem,
    /// Names of the block devices in the details: `/dev/vda`.
    pub devices: Arc<HashMap<(u32, u32), String>>,
}

/// Names of block devices.
#[derive(Default)]
pub(super) struct DeviceNames(Mutex<HashMap<(u32, u32), String>>);

impl DeviceNames {
    fn of(&self, number: (u32, u32)) -> String {
        if let Some(name) = lock(&self.0).get(&number) {
            return name.clone();
        }
        let name = device_name(number);
        let mut known = lock(&self.0);
        if known.len() < DEVICES {
            known.insert(number, name.clone());
        }
        name
    }
}

fn device_name((major, minor): (u32, u32)) -> String {
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    let name = text.ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
        Some(format!("/dev/{line}"))
    });
    name.unwrap_or_else(|| format!("{major}:{minor}"))
}

impl Shared {
    /// Metrics of every pod that is up. Files of the kernel are opened for it, so it is done away from the runtime's
    /// threads; what the disk knows is asked before, for as long as anybody waits for it.
    pub(crate) async fn metrics(self: &Arc<Self>) -> Result<Vec<PodMetrics>, Error> {
        self.read_accounts(&self.views.containers.all()).await;
        self.look_first().await;
        let shared = self.clone();
        blocking(move || Ok(shared.read_metrics())).await
    }

    fn read_metrics(self: &Arc<Self>) -> Vec<PodMetrics> {
        let mut of_pod = self.containers_by_pod();
        let alone = self.alone();
        let file_system = self.meters.layers.file_system().unwrap_or_default();
        let mut out = Vec::new();
        for record in self
            .views
            .sandboxes
            .all()
            .into_iter()
            .filter(|record| record.ready())
        {
            let Some(meter) = self.pod_meter(&record.id) else {
                continue;
            };
            let containers: Vec<ContainerMetrics> = of_pod
                .remove(&record.id)
                .unwrap_or_default()
                .iter()
                .filter_map(|record| self.container_metrics(record))
                .collect();
            let whole = alone(&record).then(|| {
                let whole = meter.whole_meter(&self.hierarchy, &record)?;
                Some((whole.usage()?, whole.cgroup.detail()))
            });
            if meter.network().is_none() {
                meter.read_network();
            }
            let mut devices = HashMap::new();
            let details = containers.iter().map(|container| &container.detail);
            for stat in details.flat_map(|detail| &detail.io) {
                let number = (stat.major, stat.minor);
                devices.insert(number, self.meters.devices.of(number));
            }
            out.push(PodMetrics {
                whole: whole.flatten(),
                network: meter.network(),
                containers,
                file_system: file_system.clone(),
                devices: Arc::new(devices),
                record,
            });
        }
        out
    }

    fn container_metrics(&self, record: &Arc<ContainerRecord>) -> Option<ContainerMetrics> {
        let ContainerUsage { usage, layer, .. } = self.container_usage(record);
        let meter = self.container_meter(&record.id)?;
        let detail = meter.detail();
        let mut files = lock(&meter.files);
        let files = match *files {
            Some(known) if known.fresh() => known,
            _ => *files.insert(OpenFiles::count(&detail.processes, record.pid)),
        };
        Some(ContainerMetrics {
            usage: usage?,
            detail,
            files,
            layer,
            record: record.clone(),
        })
    }
}
