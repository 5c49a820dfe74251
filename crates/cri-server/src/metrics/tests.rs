//! Every metric of the table has a value where the kernel has one, with the labels that its descriptor announces.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use holdfast_cri_api::v1;
use holdfast_engine::meter::{
    ContainerMetrics, Detail, FileSystem, HugetlbStat, IoStat, Layer, LinkCounters, NetworkUsage, OpenFiles,
    PodMetrics, Pressure, Pressures, Usage,
};
use holdfast_model::{ContainerId, SandboxId};

use super::{descriptors, of_pod};
use crate::testing;

fn pressures() -> Pressures {
    Pressures {
        cpu: Some(Pressure::default()),
        memory: Some(Pressure::default()),
        io: Some(Pressure::default()),
    }
}

/// With everything that there can be.
fn pod() -> PodMetrics {
    let id = SandboxId::from_bytes([1; 32]);
    let mut record = testing::container(ContainerId::from_bytes([2; 32]), id);
    record.spec.metadata.name = "main".into();
    record.spec.resources.cpu_quota = Some(20_000);
    let mut usage = Usage {
        at: 7_000_000_000,
        pressure: pressures(),
        ..Usage::default()
    };
    usage.cpu.usage_us = 5_900_000;
    let detail = Detail {
        io: vec![IoStat {
            major: 254,
            ..IoStat::default()
        }],
        hugetlb: vec![HugetlbStat {
            page_size: "2MB".into(),
            usage: 1,
            max_usage: Some(2),
        }],
        memory_max_usage: Some(9),
        ..Detail::default()
    };
    let me = i32::try_from(std::process::id()).unwrap();
    PodMetrics {
        record: Arc::new(testing::sandbox(id)),
        whole: Some((usage, detail.clone())),
        network: Some(NetworkUsage {
            at: 3,
            links: ["eth0", "net1"]
                .map(|name| LinkCounters {
                    name: name.into(),
                    ..LinkCounters::default()
                })
                .into(),
        }),
        containers: vec![ContainerMetrics {
            record: Arc::new(record),
            usage,
            detail,
            files: OpenFiles::count(&[me], Some(me)),
            layer: Some(Layer {
                at: 4,
                bytes: 5,
                inodes: 6,
            }),
        }],
        file_system: FileSystem {
            device: "/dev/vda".into(),
            ..FileSystem::default()
        },
        devices: Arc::new(HashMap::from([((254, 0), "/dev/vda".to_owned())])),
    }
}

fn all(told: &v1::PodSandboxMetrics) -> impl Iterator<Item = &v1::Metric> {
    let containers = told.container_metrics.iter().flat_map(|one| &one.metrics);
    told.metrics.iter().chain(containers)
}

#[test]
fn values_and_descriptors_agree() {
    let told = of_pod(&pod());
    let keys: BTreeMap<String, usize> = descriptors()
        .into_iter()
        .map(|one| {
            assert!(!one.help.is_empty() && !one.label_keys.is_empty(), "{one:?}");
            (one.name, one.label_keys.len())
        })
        .collect();
    let mut seen = BTreeSet::new();
    for metric in all(&told) {
        assert_eq!(metric.label_values.len(), keys[&metric.name], "{metric:?}");
        // The kubelet's registry refuses the whole answer if the same is told twice.
        let labelled = (metric.name.clone(), metric.label_values.clone());
        assert!(seen.insert(labelled), "twice: {metric:?}");
        assert!(metric.value.is_some() && metric.timestamp > 0, "{metric:?}");
    }
    let names: BTreeSet<&String> = seen.iter().map(|(name, _)| name).collect();
    assert_eq!(
        names.len(),
        keys.len(),
        "not told: {:?}",
        keys.keys().filter(|key| !names.contains(key))
    );
}

#[test]
fn the_names_are_the_customary_ones() {
    let told: BTreeSet<String> = descriptors().into_iter().map(|one| one.name).collect();
    assert_eq!(told.len(), descriptors().len());
    // A few of each group; the whole list is in the suite of the CRI's own tools.
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_network_receive_packets_dropped_total",
        "container_fs_writes_bytes_total",
        "container_pressure_io_stalled_seconds_total",
        "container_threads",
        "container_threads_max",
        "container_ulimits_soft",
    ] {
        assert!(told.contains(name), "{name}");
    }
    assert_eq!(told.len(), 56);
}

#[test]
fn labels_say_whose_it_is() {
    let told = of_pod(&pod());
    let find = |name: &str| {
        all(&told)
            .filter(|metric| metric.name == name)
            .last()
            .unwrap()
            .clone()
    };
    let cpu = find("container_cpu_usage_seconds_total");
    assert_eq!(cpu.value.unwrap().value, 5);
    assert_eq!(cpu.label_values[0], "main");
    assert_eq!(cpu.label_values[3], ContainerId::from_bytes([2; 32]).as_str());
    assert_eq!(cpu.label_values[6], "total");
    let received = find("container_network_receive_bytes_total");
    assert_eq!(received.label_values[0], "");
    assert_eq!(
        (received.label_values[6].as_str(), received.timestamp),
        ("net1", 3)
    );
    assert_eq!(find("container_fs_usage_bytes").timestamp, 4);
}
