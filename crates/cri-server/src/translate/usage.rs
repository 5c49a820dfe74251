//! What pods and containers use, as the CRI tells it.

use holdfast_cri_api::v1;
use holdfast_engine::meter::{ContainerUsage, Layer, NetworkUsage, PodUsage, Pressure, Stall, Usage};
use holdfast_model::{ContainerRecord, SandboxRecord};

use super::container::container_metadata;
use super::sandbox::sandbox_metadata;

/// The interface that is told first, if the pod has it.
const DEFAULT_INTERFACE: &str = "eth0";

pub fn container_stats(found: &ContainerUsage, layers_on: &str) -> v1::ContainerStats {
    let usage = found.usage.as_ref();
    v1::ContainerStats {
        attributes: Some(container_attributes(&found.record)),
        cpu: usage.map(cpu),
        memory: usage.map(memory),
        writable_layer: found.layer.as_ref().map(|layer| file_system(layer, layers_on)),
        swap: usage.and_then(swap),
        io: usage.and_then(io),
    }
}

/// `layers_on`: where the file system of the writable layers is known as, in ImageFsInfo too.
pub fn sandbox_stats(found: &PodUsage, layers_on: &str) -> v1::PodSandboxStats {
    let usage = found.usage.as_ref();
    let containers = found.containers.iter();
    v1::PodSandboxStats {
        attributes: Some(sandbox_attributes(&found.record)),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: usage.map(cpu),
            memory: usage.map(memory),
            network: found.network.as_ref().map(network),
            process: usage.map(|usage| v1::ProcessUsage {
                timestamp: usage.at,
                process_count: value(usage.pids.current),
            }),
            containers: containers.map(|one| container_stats(one, layers_on)).collect(),
            io: usage.and_then(io),
        }),
        windows: None,
    }
}

fn container_attributes(record: &ContainerRecord) -> v1::ContainerAttributes {
    v1::ContainerAttributes {
        id: record.id.to_string(),
        metadata: Some(container_metadata(&record.spec.metadata)),
        labels: record.spec.labels.clone(),
        annotations: record.spec.annotations.clone(),
    }
}

fn sandbox_attributes(record: &SandboxRecord) -> v1::PodSandboxAttributes {
    v1::PodSandboxAttributes {
        id: record.id.to_string(),
        metadata: Some(sandbox_metadata(&record.spec.metadata)),
        labels: record.spec.labels.clone(),
        annotations: record.spec.annotations.clone(),
    }
}

#[allow(clippy::unnecessary_wraps, reason = "every field of the CRI's wants it so")]
fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn cpu(usage: &Usage) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: usage.at,
        usage_core_nano_seconds: value(usage.cpu.usage_us.saturating_mul(1000)),
        usage_nano_cores: usage.nano_cores.and_then(value),
        psi: usage.pressure.cpu.as_ref().map(psi),
    }
}

fn memory(usage: &Usage) -> v1::MemoryUsage {
    let memory = &usage.memory;
    let available = memory.limit.map(|limit| limit.saturating_sub(memory.working_set));
    v1::MemoryUsage {
        timestamp: usage.at,
        working_set_bytes: value(memory.working_set),
        // Without a limit it is the node's, which the kubelet knows better.
        available_bytes: available.and_then(value),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: usage.pressure.memory.as_ref().map(psi),
    }
}

/// `None` where the kernel does not account for swap.
fn swap(usage: &Usage) -> Option<v1::SwapUsage> {
    let used = usage.memory.swap_usage?;
    let available = usage.memory.swap_limit.map(|limit| limit.saturating_sub(used));
    Some(v1::SwapUsage {
        timestamp: usage.at,
        swap_available_bytes: available.and_then(value),
        swap_usage_bytes: value(used),
    })
}

fn io(usage: &Usage) -> Option<v1::IoUsage> {
    let pressure = usage.pressure.io.as_ref()?;
    Some(v1::IoUsage {
        timestamp: usage.at,
        psi: Some(psi(pressure)),
    })
}

fn psi(pressure: &Pressure) -> v1::PsiStats {
    let stall = |stall: &Stall| v1::PsiData {
        total: stall.total_us.saturating_mul(1000),
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    v1::PsiStats {
        full: Some(stall(&pressure.full)),
        some: Some(stall(&pressure.some)),
    }
}

fn file_system(layer: &Layer, layers_on: &str) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: layer.at,
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: layers_on.to_owned(),
        }),
        used_bytes: value(layer.bytes),
        inodes_used: value(layer.inodes),
    }
}

fn network(usage: &NetworkUsage) -> v1::NetworkUsage {
    let mut interfaces: Vec<v1::NetworkInterfaceUsage> = usage
        .links
        .iter()
        .map(|link| v1::NetworkInterfaceUsage {
            name: link.name.clone(),
            rx_bytes: value(link.rx_bytes),
            rx_errors: value(link.rx_errors),
            tx_bytes: value(link.tx_bytes),
            tx_errors: value(link.tx_errors),
        })
        .collect();
    let default = interfaces
        .iter()
        .position(|one| one.name == DEFAULT_INTERFACE)
        .or((!interfaces.is_empty()).then_some(0));
    v1::NetworkUsage {
        timestamp: usage.at,
        default_interface: default.map(|at| interfaces.remove(at)),
        interfaces,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holdfast_engine::meter::{LinkCounters, MemoryStat, Pressures};
    use holdfast_model::{ContainerId, SandboxId};

    fn usage() -> Usage {
        Usage {
            at: 77,
            nano_cores: Some(5),
            memory: MemoryStat {
                usage: 100,
                working_set: 60,
                limit: Some(150),
                swap_usage: Some(3),
                ..MemoryStat::default()
            },
            pressure: Pressures {
                io: Some(Pressure {
                    some: Stall {
                        avg10: 1.5,
                        total_us: 4,
                        ..Stall::default()
                    },
                    full: Stall::default(),
                }),
                ..Pressures::default()
            },
            ..Usage::default()
        }
    }

    #[test]
    fn units_and_what_is_missing() {
        let pod = SandboxId::from_bytes([1; 32]);
        let record = crate::testing::container(ContainerId::from_bytes([2; 32]), pod);
        let mut found = ContainerUsage {
            record: std::sync::Arc::new(record),
            usage: Some(usage()),
            layer: None,
        };
        let stats = container_stats(&found, "/x");
        let memory = stats.memory.unwrap();
        assert_eq!(memory.available_bytes.unwrap().value, 90);
        assert_eq!(memory.psi, None);
        let swap = stats.swap.unwrap();
        assert_eq!(
            (swap.swap_usage_bytes.unwrap().value, swap.swap_available_bytes),
            (3, None)
        );
        let some = stats.io.unwrap().psi.unwrap().some.unwrap();
        assert_eq!((some.total, some.avg10), (4000, 1.5));
        assert_eq!(stats.writable_layer, None);
        assert_eq!(stats.cpu.unwrap().timestamp, 77);

        found.usage = None;
        found.layer = Some(Layer {
            at: 5,
            bytes: 6,
            inodes: 7,
        });
        let stats = container_stats(&found, "/x");
        assert!(stats.cpu.is_none() && stats.memory.is_none() && stats.attributes.is_some());
        let layer = stats.writable_layer.unwrap();
        assert_eq!(
            (layer.timestamp, layer.fs_id.unwrap().mountpoint.as_str()),
            (5, "/x")
        );
    }

    #[test]
    fn the_default_interface_is_told_once() {
        let link = |name: &str| LinkCounters {
            name: name.into(),
            ..LinkCounters::default()
        };
        let told = |names: &[&str]| {
            let told = network(&NetworkUsage {
                at: 1,
                links: names.iter().map(|name| link(name)).collect(),
            });
            let others: Vec<String> = told.interfaces.into_iter().map(|one| one.name).collect();
            (told.default_interface.map(|one| one.name), others)
        };
        assert_eq!(
            told(&["net1", "eth0"]),
            (Some("eth0".into()), vec!["net1".into()])
        );
        assert_eq!(told(&["a", "b"]), (Some("a".into()), vec!["b".into()]));
        assert_eq!(told(&[]), (None, vec![]));
    }
}
