//! The built-in network's needs, tried in a namespace that is thrown away, and what CNI finds.

use std::fs;
use std::path::Path;

use holdfast_network::{Probe, probe};
use holdfast_sys::{clone, namespace};

use super::{Finding, reason};
use crate::config::Config;

pub(super) fn all(config: &Config) -> Vec<Finding> {
    let mut out = tried(config);
    out.push(forwarding(config));
    out.push(plugins(config));
    out
}

fn tried(config: &Config) -> Vec<Finding> {
    let bridge = config.network.bridge.clone();
    // The namespace is this thread's, and ends with it.
    let apart = std::thread::spawn(move || namespace::unshare(clone::NEWNET).map(|()| probe(&bridge)));
    let outcome = apart
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("the probe broke off")));
    let Probe {
        bridge,
        veth,
        firewall,
    } = match outcome {
        Ok(probe) => probe,
        Err(error) => {
            return vec![Finding::missing(
                "network namespace",
                reason(&error),
                "pods can only use the host's network",
                "run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN on a kernel with CONFIG_NET_NS",
            )];
        }
    };
    let line = |check, made: holdfast_network::Result<()>, found: &str, lost: &str, module: &str| match made {
        Ok(()) => Finding::ok(check, found),
        Err(error) => Finding::missing(
            check,
            format!("{:#}", anyhow::Error::from(error)),
            lost,
            &format!("load the modules ({module}), or configure CNI plugins that do without"),
        ),
    };
    vec![
        Finding::ok("network namespace", "can be made"),
        line(
            "bridge",
            bridge,
            "can be made",
            "the built-in network cannot connect pods",
            "modprobe bridge",
        ),
        line(
            "veth",
            veth,
            "can be made",
            "the built-in network cannot connect pods",
            "modprobe veth",
        ),
        line(
            "nftables",
            firewall,
            "translation and maps",
            "pods of the built-in network reach nothing outside, and no host port works",
            "modprobe nf_tables nft_chain_nat nft_masq nft_nat nft_fib_inet nft_ct",
        ),
    ]
}

fn forwarding(config: &Config) -> Finding {
    const CHECK: &str = "ip_forward";
    let read = |file: &str| fs::read_to_string(file).is_ok_and(|value| value.trim() != "0");
    let four = config.network.bridge.ipv4.is_some();
    let six = config.network.bridge.ipv6.is_some();
    let mut off = Vec::new();
    if four && !read("/proc/sys/net/ipv4/ip_forward") {
        off.push("net.ipv4.ip_forward");
    }
    if six && !read("/proc/sys/net/ipv6/conf/all/forwarding") {
        off.push("net.ipv6.conf.all.forwarding");
    }
    if off.is_empty() {
        return Finding::ok(CHECK, "packets are forwarded");
    }
    Finding::degraded(
        CHECK,
        format!("{} is 0", off.join(", ")),
        "until the built-in bridge's first pod, which switches it on; with CNI plugins nobody does, and pods reach nothing",
        "install sysctl.d/90-holdfast.conf (the package does), or set it to 1",
    )
}

fn plugins(config: &Config) -> Finding {
    const CHECK: &str = "CNI";
    let dir = &config.network.cni_conf_dir;
    let mut files: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let extension = path.extension().and_then(|it| it.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        })
        .collect();
    files.sort();
    let Some(first) = files.first() else {
        return Finding::ok(
            CHECK,
            format!("none in {}: the built-in bridge is used", dir.display()),
        );
    };
    let absent = wanted(first)
        .into_iter()
        .filter(|name| {
            !config
                .network
                .cni_bin_dirs
                .iter()
                .any(|dir| dir.join(name).is_file())
        })
        .collect::<Vec<_>>();
    if absent.is_empty() {
        return Finding::ok(CHECK, first.display().to_string());
    }
    let dirs: Vec<_> = config
        .network
        .cni_bin_dirs
        .iter()
        .map(|dir| dir.display().to_string())
        .collect();
    Finding::missing(
        CHECK,
        format!(
            "{} wants {}, not in {}",
            first.display(),
            absent.join(", "),
            dirs.join(", ")
        ),
        "pods without the host's network cannot be made",
        "install the plugins, or name their directory in network.cni_bin_dirs",
    )
}

/// Names of the plugins in a configuration; of one that cannot be read, none.
fn wanted(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let kind = |plugin: &serde_json::Value| plugin["type"].as_str().map(str::to_owned);
    match value["plugins"].as_array() {
        Some(list) => list.iter().filter_map(kind).collect(),
        None => kind(&value).into_iter().collect(),
    }
}
