//! RuntimeConfig and UpdateRuntimeConfig: the cgroup driver, and the node's pod ranges in the next pod's address.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;
use rustix::process::Signal;
use tonic::{Code, Status};

use super::network::address;
use super::{Pod, cases};
use crate::Context;
use crate::cri::must_fail;
use crate::expect;

cases!["runtime_config";
    cgroup_driver => "the peer's release is older than the call",
    pod_ranges => "the peer gives pods the addresses of its CNI configuration, whatever the kubelet says",
    ranges_that_cannot_be => "the peer looks at ranges only where it has a template",
];

/// What holdfast's network has by default.
const DEFAULT: &str = "10.87.0.0/16,fd87:686f:6c64::/64";

async fn set(c: &Context, cidr: &str) -> Result<(), Status> {
    let request = cri::UpdateRuntimeConfigRequest {
        runtime_config: Some(cri::RuntimeConfig {
            network_config: Some(cri::NetworkConfig {
                pod_cidr: cidr.to_owned(),
            }),
        }),
    };
    c.cri
        .runtime
        .clone()
        .update_runtime_config(request)
        .await
        .map(drop)
}

async fn addresses(c: &Context, pod: &Pod) -> anyhow::Result<Vec<IpAddr>> {
    let network = c
        .cri
        .pod_status(&pod.id)
        .await?
        .network
        .context("no network in the status")?;
    let others = network.additional_ips.into_iter().map(|ip| ip.ip);
    std::iter::once(network.ip)
        .chain(others)
        .map(|ip| ip.parse().with_context(|| format!("pod address {ip:?}")))
        .collect()
}

fn begin(ip: IpAddr, with: &str) -> bool {
    ip.to_string().starts_with(with)
}

async fn cgroup_driver(c: Arc<Context>) -> anyhow::Result<()> {
    let answer = c
        .cri
        .runtime
        .clone()
        .runtime_config(cri::RuntimeConfigRequest {})
        .await?;
    let linux = answer.into_inner().linux.context("no answer for Linux")?;
    ensure!(
        cri::CgroupDriver::try_from(linux.cgroup_driver).is_ok(),
        "cgroup driver {} is none that CRI knows",
        linux.cgroup_driver
    );
    Ok(())
}

async fn pod_ranges(c: Arc<Context>) -> anyhow::Result<()> {
    let old = Pod::run(&c, "range-old").await?;
    let old_sleeper = old.sleeper(&c).await?;
    let old_ip = address(&c, &old).await?;
    let outcome = in_new_ranges(&c, &old_sleeper, old_ip).await;
    // The cases after this one have what they had, whatever came of it.
    set(&c, DEFAULT).await?;
    outcome?;
    let again = Pod::run(&c, "range-again").await?;
    ensure!(
        begin(address(&c, &again).await?, "10.87."),
        "the range is not the old one again"
    );
    again.end().await?;
    old.end().await
}

async fn in_new_ranges(c: &Arc<Context>, old: &str, old_ip: IpAddr) -> anyhow::Result<()> {
    set(c, "10.211.7.0/24,fd11:7::/64").await?;
    let both = Pod::run(c, "range-both").await?;
    let ips = addresses(c, &both).await?;
    ensure!(
        ips.len() == 2 && begin(ips[0], "10.211.7.") && begin(ips[1], "fd11:7::"),
        "addresses {ips:?} are not of the new ranges"
    );
    // Pods that there were keep their address, and reach the new ones.
    let sleeper = both.sleeper(c).await?;
    expect!(
        c.cri
            .shell(
                old,
                &format!("ping -c 1 -W 2 {} >/dev/null && echo reached", ips[0])
            )
            .await?,
        "reached",
        "from a pod of the old range to one of the new"
    );
    expect!(
        c.cri
            .shell(
                &sleeper,
                &format!("ping -c 1 -W 2 {old_ip} >/dev/null && echo reached")
            )
            .await?,
        "reached",
        "from a pod of the new range to one of the old"
    );
    // The same again, and nothing at all, change nothing.
    set(c, "10.211.7.0/24,fd11:7::/64").await?;
    set(c, "").await?;
    if let Ok(server) = c.server() {
        server.end(Signal::KILL).await?;
        server.start(&c.cri).await?;
    }
    let after = Pod::run(c, "range-after").await?;
    ensure!(
        begin(address(c, &after).await?, "10.211.7."),
        "the range is forgotten after a restart"
    );
    expect!(
        c.cri
            .shell(
                old,
                &format!("ping -c 1 -W 2 {} >/dev/null && echo reached", ips[0])
            )
            .await?,
        "reached",
        "between the ranges after a restart"
    );
    // IPv6 first: it is the pod's primary address.
    set(c, "fd11:8::/64,10.211.8.0/24").await?;
    let six = Pod::run(c, "range-six").await?;
    let ips = addresses(c, &six).await?;
    ensure!(
        ips.len() == 2 && begin(ips[0], "fd11:8::") && begin(ips[1], "10.211.8."),
        "addresses {ips:?}, IPv6 is to be the first"
    );
    // One family alone.
    set(c, "10.211.9.0/24").await?;
    let four = Pod::run(c, "range-four").await?;
    let ips = addresses(c, &four).await?;
    ensure!(
        ips.len() == 1 && begin(ips[0], "10.211.9."),
        "addresses {ips:?}, IPv4 alone is wanted"
    );
    for pod in [both, after, six, four] {
        pod.end().await?;
    }
    Ok(())
}

async fn ranges_that_cannot_be(c: Arc<Context>) -> anyhow::Result<()> {
    for bad in [
        "10.0.0.0",
        "10.0.0.0/33",
        "10.0.0.0/31",
        "10.0.0.0/24,10.1.0.0/24",
        "10.0.0.0/24,fd00::/64,fd01::/64",
        "nonsense",
    ] {
        must_fail(set(&c, bad).await, &[Code::InvalidArgument], &["pod_cidr"])?;
    }
    let pod = Pod::run(&c, "range-kept").await?;
    ensure!(
        begin(address(&c, &pod).await?, "10.87."),
        "a range that was refused is used"
    );
    pod.end().await
}
