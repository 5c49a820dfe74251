//! What pods and containers use: the Stats calls and the metrics.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;
use tonic::{Code, Status};

use super::{Pod, cases};
use crate::Context;
use crate::cri::{container_config, must_fail, namespaces, pod_config};
use crate::expect;

cases!["stats";
    of_a_container,
    the_rate_of_a_busy_one => "the peer's release tells a rate from the second call on",
    memory_with_a_limit,
    the_writable_layer => "the peer measures layers every ten seconds, and says 0 as the time of one that it has not measured",
    of_a_pod => "the peer's statistics of a pod read a cgroup of its sandbox that is not there on this hierarchy",
    of_the_pods_network => "as of_a_pod",
    a_pod_in_the_hosts_network => "the peer gives runc a hostname without a UTS namespace, and runc refuses",
    one_that_has_ended => "the peer's release has no figures for it at all",
    lists_and_filters => "as of_a_pod",
    metrics => "the peer's release is older than the call",
    a_hundred_containers => "as of_a_pod",
];

async fn stats_of(c: &Context, id: &str) -> Result<cri::ContainerStats, Status> {
    let request = cri::ContainerStatsRequest {
        container_id: id.to_owned(),
    };
    let reply = c.cri.runtime.clone().container_stats(request).await?.into_inner();
    reply
        .stats
        .ok_or_else(|| Status::internal("ContainerStats without stats"))
}

async fn stats_of_pod(c: &Context, id: &str) -> anyhow::Result<cri::LinuxPodSandboxStats> {
    let request = cri::PodSandboxStatsRequest {
        pod_sandbox_id: id.to_owned(),
    };
    let reply = c
        .cri
        .runtime
        .clone()
        .pod_sandbox_stats(request)
        .await?
        .into_inner();
    let stats = reply.stats.context("PodSandboxStats without stats")?;
    stats.linux.context("stats of a pod without Linux's part")
}

async fn list(
    c: &Context,
    filter: Option<cri::ContainerStatsFilter>,
) -> Result<Vec<cri::ContainerStats>, Status> {
    let request = cri::ListContainerStatsRequest { filter };
    let reply = c.cri.runtime.clone().list_container_stats(request).await?;
    Ok(reply.into_inner().stats)
}

fn value(field: Option<cri::UInt64Value>, name: &str) -> anyhow::Result<u64> {
    field
        .map(|field| field.value)
        .with_context(|| format!("{name} is missing"))
}

fn recent(timestamp: i64, name: &str) -> anyhow::Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let age = i64::try_from(now.as_nanos())? - timestamp;
    ensure!(
        (-1_000_000_000..30_000_000_000).contains(&age),
        "{name}: timestamp {timestamp} is {age} ns old"
    );
    Ok(())
}

async fn of_a_container(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "usage").await?;
    let id = pod.sleeper(&c).await?;
    c.cri
        .shell(&id, "x=0; while [ $x -lt 20000 ]; do x=$((x+1)); done")
        .await?;
    let stats = stats_of(&c, &id).await?;
    let attributes = stats.attributes.context("attributes are missing")?;
    expect!(attributes.id, id, "id");
    expect!(
        attributes.metadata.map(|m| m.name),
        Some("sleeper".to_owned()),
        "name"
    );
    let cpu = stats.cpu.context("cpu is missing")?;
    recent(cpu.timestamp, "cpu")?;
    ensure!(
        value(cpu.usage_core_nano_seconds, "usage_core_nano_seconds")? > 1_000_000,
        "no processor time"
    );
    let memory = stats.memory.context("memory is missing")?;
    recent(memory.timestamp, "memory")?;
    let (set, usage) = (
        value(memory.working_set_bytes, "working_set_bytes")?,
        value(memory.usage_bytes, "usage_bytes")?,
    );
    ensure!(set > 0 && set <= usage, "working set {set}, usage {usage}");
    ensure!(value(memory.page_faults, "page_faults")? > 0, "no page faults");
    must_fail(
        stats_of(&c, &"0".repeat(64)).await,
        &[Code::NotFound],
        &["container"],
    )?;
    pod.end().await
}

async fn the_rate_of_a_busy_one(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "busy").await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let id = pod
        .start(&container_config(
            "busy",
            &image,
            &["/bin/sh", "-c", "while :; do :; done"],
        ))
        .await?;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    // The first call already.
    let cpu = stats_of(&c, &id).await?.cpu.context("cpu is missing")?;
    let rate = value(cpu.usage_nano_cores, "usage_nano_cores")?;
    ensure!(
        rate > 50_000_000 && rate < 2_000_000_000,
        "a busy loop at {rate} nanocores"
    );
    pod.end().await
}

async fn memory_with_a_limit(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "memory").await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    // A variable of 8 MB.
    let script = "x=$(head -c 8000000 /dev/zero | tr '\\0' x); sleep 3600; true";
    let mut config = container_config("memory", &image, &["/bin/sh", "-c", script]);
    let limit = 64 << 20;
    if let Some(linux) = &mut config.linux {
        linux.resources = Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: limit,
            ..Default::default()
        });
    }
    let id = pod.start(&config).await?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let memory = stats_of(&c, &id).await?.memory.context("memory is missing")?;
        let set = value(memory.working_set_bytes, "working_set_bytes")?;
        let available = value(memory.available_bytes, "available_bytes")?;
        expect!(
            set + available,
            limit.unsigned_abs(),
            "working set and what is available"
        );
        if set > 8_000_000 && value(memory.rss_bytes, "rss_bytes")? > 8_000_000 {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "a working set of {set} with a variable of 8 MB"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    pod.end().await
}

async fn the_writable_layer(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "layer").await?;
    let id = pod.sleeper(&c).await?;
    let script = "mkdir /new; for i in 1 2 3 4 5; do echo $i >/new/$i; done; head -c 3000000 /dev/zero >/new/large; sync";
    c.cri.shell(&id, script).await?;
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        if let Some(layer) = stats_of(&c, &id).await?.writable_layer {
            recent(layer.timestamp, "writable_layer")?;
            let path = layer.fs_id.map(|on| on.mountpoint).unwrap_or_default();
            ensure!(path.starts_with('/'), "its file system is {path:?}");
            let (bytes, inodes) = (
                value(layer.used_bytes, "used_bytes")?,
                value(layer.inodes_used, "inodes_used")?,
            );
            if bytes >= 3_000_000 && inodes >= 7 {
                break;
            }
        }
        ensure!(Instant::now() < deadline, "the writable layer does not follow");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    pod.end().await
}

async fn of_a_pod(c: Arc<Context>) -> anyhow::Result<()> {
    let mut config = pod_config("whole", &c.logs());
    let parent = c.cri.cgroup_parent("conformance").await;
    if let Some(linux) = &mut config.linux {
        linux.cgroup_parent = parent;
    }
    let pod = Pod::run_with(&c, config).await?;
    let other = Pod::run(&c, "other").await?;
    let id = pod.sleeper(&c).await?;
    c.cri
        .shell(&id, "for i in 1 2 3; do sleep 3600 & done; true")
        .await?;
    let sleeper = other.sleeper(&c).await?;
    for (pod, container) in [(&pod, &id), (&other, &sleeper)] {
        let stats = stats_of_pod(&c, &pod.id).await?;
        let ids: Vec<_> = stats
            .containers
            .iter()
            .filter_map(|one| one.attributes.as_ref())
            .collect();
        ensure!(
            ids.len() == 1 && ids[0].id == *container,
            "containers of the pod: {ids:?}"
        );
        let of_container = stats.containers[0].cpu.context("cpu of its container")?;
        let cpu = stats.cpu.context("cpu is missing")?;
        recent(cpu.timestamp, "cpu")?;
        let (whole, part) = (
            value(cpu.usage_core_nano_seconds, "cpu of the pod")?,
            value(of_container.usage_core_nano_seconds, "cpu of the container")?,
        );
        ensure!(
            whole + 5_000_000 >= part,
            "the pod used {whole} ns, its container {part}"
        );
        let memory = stats.memory.context("memory is missing")?;
        ensure!(value(memory.usage_bytes, "usage_bytes")? > 0, "no memory");
        let count = value(
            stats.process.context("process is missing")?.process_count,
            "process_count",
        )?;
        // Nothing of the other pod's, nothing of the runtime's own: sleepers, and a pause.
        ensure!((1..=6).contains(&count), "{count} processes");
    }
    pod.end().await?;
    other.end().await
}

async fn of_the_pods_network(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "traffic").await?;
    let id = pod.sleeper(&c).await?;
    let sent = |stats: &cri::LinuxPodSandboxStats| -> anyhow::Result<u64> {
        let network = stats.network.as_ref().context("network is missing")?;
        recent(network.timestamp, "network")?;
        let default = network
            .default_interface
            .as_ref()
            .context("no default interface")?;
        expect!(default.name, "eth0", "default interface");
        value(default.rx_bytes, "rx_bytes")?;
        value(default.tx_bytes, "tx_bytes")
    };
    let before = sent(&stats_of_pod(&c, &pod.id).await?)?;
    c.cri
        .shell(
            &id,
            r"ping -c 3 -W 1 -s 1000 $(ip -4 route | sed -n 's/^default via \([^ ]*\).*/\1/p') >/dev/null 2>&1; true",
        )
        .await?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while sent(&stats_of_pod(&c, &pod.id).await?)? < before + 3000 {
        ensure!(Instant::now() < deadline, "3 kB sent are not counted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    pod.end().await
}

async fn a_pod_in_the_hosts_network(c: Arc<Context>) -> anyhow::Result<()> {
    let mut config = pod_config("host", &c.logs());
    if let Some(security) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        security.namespace_options = Some(namespaces(cri::NamespaceMode::Node));
    }
    let pod = Pod::run_with(&c, config).await?;
    let stats = stats_of_pod(&c, &pod.id).await?;
    ensure!(stats.cpu.is_some() && stats.memory.is_some(), "{stats:?}");
    pod.end().await
}

async fn one_that_has_ended(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "ended").await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let id = pod
        .start(&container_config("short", &image, &["/bin/true"]))
        .await?;
    c.cri.exited(&id, Duration::from_secs(20)).await?;
    let stats = stats_of(&c, &id).await?;
    expect!(stats.attributes.map(|a| a.id), Some(id), "its attributes");
    ensure!(stats.cpu.is_none() && stats.memory.is_none(), "it uses something");
    pod.end().await
}

async fn lists_and_filters(c: Arc<Context>) -> anyhow::Result<()> {
    let one = Pod::run(&c, "one").await?;
    let two = Pod::run(&c, "two").await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = container_config("labelled", &image, &["/bin/sleep", "3600"]);
    config.labels = HashMap::from([("app".to_owned(), "web".to_owned())]);
    let labelled = one.start(&config).await?;
    let plain = two.sleeper(&c).await?;
    let ids = |stats: Vec<cri::ContainerStats>| {
        let mut ids: Vec<String> = stats
            .into_iter()
            .filter_map(|s| s.attributes)
            .map(|a| a.id)
            .collect();
        ids.sort();
        ids
    };
    let mut both = vec![labelled.clone(), plain.clone()];
    both.sort();
    expect!(ids(list(&c, None).await?), both, "without a filter");
    let empty = cri::ContainerStatsFilter::default();
    expect!(
        ids(list(&c, Some(empty.clone())).await?),
        both,
        "with an empty filter"
    );
    let by = |change: &dyn Fn(&mut cri::ContainerStatsFilter)| {
        let mut filter = empty.clone();
        change(&mut filter);
        list(&c, Some(filter))
    };
    expect!(
        ids(by(&|f| f.id = labelled[..12].into()).await?),
        [labelled.as_str()],
        "by id"
    );
    expect!(
        ids(by(&|f| f.pod_sandbox_id.clone_from(&two.id)).await?),
        [plain.as_str()],
        "by pod"
    );
    let label = |value: &str| HashMap::from([("app".to_owned(), value.to_owned())]);
    expect!(
        ids(by(&|f| f.label_selector = label("web")).await?),
        [labelled.as_str()],
        "by label"
    );
    expect!(
        by(&|f| f.label_selector = label("db")).await?.len(),
        0,
        "by another label"
    );
    let pods = cri::ListPodSandboxStatsRequest {
        filter: Some(cri::PodSandboxStatsFilter {
            id: two.id.clone(),
            ..Default::default()
        }),
    };
    let pods = c
        .cri
        .runtime
        .clone()
        .list_pod_sandbox_stats(pods)
        .await?
        .into_inner()
        .stats;
    let ids: Vec<&str> = pods
        .iter()
        .filter_map(|s| s.attributes.as_ref())
        .map(|a| a.id.as_str())
        .collect();
    expect!(ids, [two.id.as_str()], "pods by id");
    one.end().await?;
    two.end().await
}

async fn metrics(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "metrics").await?;
    let id = pod.sleeper(&c).await?;
    let mut runtime = c.cri.runtime.clone();
    let descriptors = runtime
        .list_metric_descriptors(cri::ListMetricDescriptorsRequest {})
        .await?;
    let labels: BTreeMap<String, Vec<String>> = descriptors
        .into_inner()
        .descriptors
        .into_iter()
        .map(|one| (one.name, one.label_keys))
        .collect();
    let told = runtime
        .list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {})
        .await?;
    let told = told.into_inner().pod_metrics;
    let of_pod = told
        .iter()
        .find(|one| one.pod_sandbox_id == pod.id)
        .context("the pod is missing")?;
    let own = of_pod.container_metrics.iter().find(|one| one.container_id == id);
    let own = &own.context("the container is missing")?.metrics;
    for metric in of_pod.metrics.iter().chain(own) {
        let keys = labels
            .get(&metric.name)
            .with_context(|| format!("{} has no descriptor", metric.name))?;
        expect!(metric.label_values.len(), keys.len(), "labels of {}", metric.name);
    }
    let find = |name: &str| own.iter().find(|metric| metric.name == name);
    for name in [
        "container_threads",
        "container_processes",
        "container_memory_usage_bytes",
    ] {
        let metric = find(name).with_context(|| format!("{name} is missing"))?;
        ensure!(metric.value.as_ref().is_some_and(|v| v.value > 0), "{metric:?}");
        let keys = &labels[name];
        let label = |key: &str| {
            keys.iter()
                .position(|k| k == key)
                .map(|at| metric.label_values[at].as_str())
        };
        expect!(label("namespace"), Some("conformance"), "namespace of {name}");
        expect!(label("pod"), Some("metrics"), "pod of {name}");
        expect!(label("container"), Some("sleeper"), "container of {name}");
    }
    let received = of_pod
        .metrics
        .iter()
        .any(|m| m.name == "container_network_receive_bytes_total");
    ensure!(received, "no metrics of its network");
    pod.end().await
}

/// Lists are answered from memory and open descriptors: with a hundred containers, in far less time than as many
/// programs or walks over disks would take. The figures themselves are for reading.
async fn a_hundred_containers(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut pods = Vec::new();
    for n in 0..5 {
        let pod = Pod::run(&c, &format!("many-{n}")).await?;
        for m in 0..20 {
            pod.start(&container_config(
                &format!("c{m}"),
                &image,
                &["/bin/sleep", "3600"],
            ))
            .await?;
        }
        pods.push(pod);
    }
    let mut took: [Vec<Duration>; 3] = Default::default();
    for _ in 0..15 {
        let start = Instant::now();
        expect!(list(&c, None).await?.len(), 100, "stats");
        took[0].push(start.elapsed());
        let start = Instant::now();
        expect!(c.cri.containers(None).await?.len(), 100, "containers");
        took[1].push(start.elapsed());
        let start = Instant::now();
        let request = cri::ListPodSandboxStatsRequest { filter: None };
        c.cri.runtime.clone().list_pod_sandbox_stats(request).await?;
        took[2].push(start.elapsed());
    }
    let median = took.map(|mut all| {
        all.sort();
        all[all.len() / 2]
    });
    println!(
        "      ListContainerStats {:?}, ListContainers {:?}, ListPodSandboxStats {:?}",
        median[0], median[1], median[2]
    );
    ensure!(
        c.emulated || median[0] < Duration::from_millis(200),
        "ListContainerStats took {:?}",
        median[0]
    );
    ensure!(
        c.emulated || median[1] < Duration::from_millis(50),
        "ListContainers took {:?}",
        median[1]
    );
    for pod in pods {
        pod.end().await?;
    }
    Ok(())
}
