//! From the options of `holdfast run`, and its files, to what the CRI wants.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use holdfast_cri_api::v1;

use super::labels;
use crate::args::Run;
use crate::spec_file;

/// The labels that kubelet gives, by which crictl and others show names.
const NAME: &str = "io.kubernetes.pod.name";
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// CPU quotas are given per this many microseconds, the kernel's default.
const CPU_PERIOD: i64 = 100_000;

/// The pod, unless one is named that is there already.
pub fn pod(options: &Run) -> Result<v1::PodSandboxConfig> {
    let mut config = match &options.pod_config {
        Some(path) => spec_file::pod(path)?,
        None => v1::PodSandboxConfig::default(),
    };
    let from_file = options.pod_config.is_some();
    let metadata = config.metadata.get_or_insert_default();
    if !from_file || options.name.is_some() {
        metadata.name = name(options);
    }
    if metadata.namespace.is_empty() {
        metadata.namespace.clone_from(&options.namespace);
    }
    if metadata.uid.is_empty() {
        // No two runs may take one another for a repetition.
        metadata.uid = unique();
    }
    if config.log_directory.is_empty() {
        let directory = format!("{}_{}_{}", metadata.namespace, metadata.name, metadata.uid);
        config.log_directory = text(&options.log_directory.join(directory))?;
    }
    for (key, value) in kubelets(metadata) {
        config.labels.entry(key).or_insert(value);
    }
    config.labels.extend(labels(options.label.clone()));
    for publish in &options.publish {
        config.port_mappings.push(port(publish)?);
    }
    let context = config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default();
    let namespaces = context
        .namespace_options
        .get_or_insert_with(|| v1::NamespaceOption {
            // What kubelet asks for unless told otherwise.
            pid: v1::NamespaceMode::Container.into(),
            ..Default::default()
        });
    if options.host_network {
        namespaces.network = v1::NamespaceMode::Node.into();
    }
    context.privileged |= options.privileged;
    if config.hostname.is_empty() && namespaces.network() != v1::NamespaceMode::Node {
        config.hostname = config
            .metadata
            .as_ref()
            .map(|m| holdfast_engine::hostname_of(&m.name))
            .unwrap_or_default();
    }
    Ok(config)
}

pub fn container(options: &Run, pod: &v1::PodSandboxConfig) -> Result<v1::ContainerConfig> {
    let mut config = match &options.container_config {
        Some(path) => spec_file::container(path)?,
        None => v1::ContainerConfig::default(),
    };
    let from_file = options.container_config.is_some();
    if let Some(image) = &options.image {
        let spec = config.image.get_or_insert_default();
        spec.image.clone_from(image);
        spec.user_specified_image.clone_from(image);
    }
    if config.image.as_ref().is_none_or(|image| image.image.is_empty()) {
        bail!("no image is given, neither on the command line nor in a file");
    }
    let metadata = config.metadata.get_or_insert_default();
    if !from_file || options.name.is_some() || metadata.name.is_empty() {
        metadata.name = name(options);
    }
    if let Some(command) = &options.entrypoint {
        config.command = vec![command.clone()];
    }
    if !options.args.is_empty() {
        config.args.clone_from(&options.args);
    }
    config
        .envs
        .extend(options.env.iter().map(|(key, value)| v1::KeyValue {
            key: key.clone(),
            value: value.clone().into_bytes(),
        }));
    let own_name = metadata.name.clone();
    for (key, value) in pod.metadata.iter().flat_map(kubelets) {
        config.labels.entry(key).or_insert(value);
    }
    config.labels.entry(CONTAINER_NAME.to_owned()).or_insert(own_name);
    config.labels.extend(labels(options.label.clone()));
    for volume in &options.volume {
        config.mounts.push(mount(volume)?);
    }
    if config.log_path.is_empty() {
        config.log_path = format!(
            "{}.log",
            config.metadata.as_ref().map_or("container", |m| &m.name)
        );
    }
    let namespaces = pod
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .and_then(|c| c.namespace_options.clone());
    let linux = config.linux.get_or_insert_default();
    let context = linux.security_context.get_or_insert_default();
    if context.namespace_options.is_none() {
        context.namespace_options = namespaces;
    }
    context.privileged |= options.privileged;
    if let Some(user) = &options.user {
        match user.parse() {
            Ok(value) => context.run_as_user = Some(v1::Int64Value { value }),
            Err(_) => context.run_as_username.clone_from(user),
        }
    }
    let resources = linux.resources.get_or_insert_default();
    if let Some(memory) = options.memory {
        resources.memory_limit_in_bytes = memory;
    }
    if let Some(cpus) = options.cpus {
        if !(cpus.is_finite() && cpus > 0.0) {
            bail!("--cpus {cpus} is not a number above zero");
        }
        resources.cpu_period = CPU_PERIOD;
        resources.cpu_quota = (cpus * CPU_PERIOD as f64) as i64;
    }
    Ok(config)
}

fn kubelets(pod: &v1::PodSandboxMetadata) -> [(String, String); 3] {
    [(NAME, &pod.name), (NAMESPACE, &pod.namespace), (UID, &pod.uid)]
        .map(|(key, value)| (key.to_owned(), value.clone()))
}

/// The last part of the image's name: `registry/a/web:v1` gives `web`.
fn name(options: &Run) -> String {
    if let Some(name) = &options.name {
        return name.clone();
    }
    let image = options.image.as_deref().unwrap_or("container");
    let image = image.split('@').next().unwrap_or(image);
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split(':').next().unwrap_or(last).to_owned()
}

fn unique() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", now.as_nanos(), std::process::id())
}

/// `HOST:CONTAINER[:ro]`
fn mount(given: &str) -> Result<v1::Mount> {
    let bad = || format!("{given:?} is no volume: HOST:CONTAINER[:ro] is wanted");
    let mut parts = given.split(':');
    let (host, container) = (parts.next().with_context(bad)?, parts.next().with_context(bad)?);
    let readonly = match parts.next() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => bail!(bad()),
    };
    if parts.next().is_some() || container.is_empty() || host.is_empty() {
        bail!(bad());
    }
    let host = std::path::absolute(host).with_context(bad)?;
    Ok(v1::Mount {
        container_path: container.to_owned(),
        host_path: text(&host)?,
        readonly,
        ..Default::default()
    })
}

/// `[IP:]HOST:CONTAINER[/protocol]`, an IPv6 address in brackets.
fn port(given: &str) -> Result<v1::PortMapping> {
    let bad = || format!("{given:?} is no port: [IP:]HOST:CONTAINER[/tcp|/udp|/sctp] is wanted");
    let (ports, protocol) = given.split_once('/').unwrap_or((given, "tcp"));
    let protocol = match protocol {
        "tcp" => v1::Protocol::Tcp,
        "udp" => v1::Protocol::Udp,
        "sctp" => v1::Protocol::Sctp,
        _ => bail!(bad()),
    };
    let (rest, container) = ports.rsplit_once(':').with_context(bad)?;
    let (ip, host) = rest.rsplit_once(':').unwrap_or(("", rest));
    let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n > 0).with_context(bad);
    Ok(v1::PortMapping {
        protocol: protocol.into(),
        container_port: number(container)?.into(),
        host_port: number(host)?.into(),
        host_ip: ip.trim_start_matches('[').trim_end_matches(']').to_owned(),
    })
}

fn text(path: &std::path::Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser as _;

    use super::*;
    use crate::args::{Args, Command};

    fn options(line: &[&str]) -> Run {
        match Args::parse_from(["holdfast", "run"].iter().chain(line)).command {
            Command::Run(run) => *run,
            _ => unreachable!(),
        }
    }

    #[test]
    fn a_hostname_is_what_of_the_name_it_can_be() {
        let hostname = |name: &str| pod(&options(&["--name", name, "web"])).unwrap().hostname;
        assert_eq!(hostname("web-1.a_b"), "web-1.a_b");
        assert_eq!(hostname(&"äb".repeat(40)), "b".repeat(40));
        assert_eq!(hostname(&"x".repeat(64)), "x".repeat(63));
    }

    #[test]
    fn flags_alone() {
        let options = options(&[
            "--host-network",
            "-e",
            "A=b=c",
            "-v",
            "/h:/c:ro",
            "-p",
            "[::1]:8080:80/udp",
            "--memory",
            "64Mi",
            "--cpus",
            "0.5",
            "-u",
            "1000",
            "reg:5000/x/web:v1",
            "sleep",
            "-x",
        ]);
        let pod = pod(&options).unwrap();
        let container = container(&options, &pod).unwrap();
        let metadata = pod.metadata.clone().unwrap();
        assert_eq!(
            (metadata.name.as_str(), metadata.namespace.as_str()),
            ("web", "default")
        );
        assert_eq!(pod.hostname, "", "the host's");
        assert_eq!(
            pod.log_directory,
            format!("/var/log/pods/default_web_{}", metadata.uid)
        );
        let mapping = &pod.port_mappings[0];
        assert_eq!(
            (
                mapping.host_ip.as_str(),
                mapping.host_port,
                mapping.container_port
            ),
            ("::1", 8080, 80)
        );
        assert_eq!(container.args, ["sleep", "-x"]);
        assert_eq!(container.labels[NAME], "web");
        assert_eq!(container.labels[UID], metadata.uid);
        assert_eq!(container.envs[0].value, b"b=c");
        assert!(container.mounts[0].readonly);
        let linux = container.linux.unwrap();
        let context = linux.security_context.unwrap();
        assert_eq!(
            context.namespace_options.unwrap().network(),
            v1::NamespaceMode::Node
        );
        assert_eq!(context.run_as_user.unwrap().value, 1000);
        let resources = linux.resources.unwrap();
        assert_eq!(
            (resources.cpu_quota, resources.memory_limit_in_bytes),
            (50_000, 64 << 20)
        );
    }

    #[test]
    fn slips_are_named() {
        for volume in ["", "/a", "/a:", "/a:/b:rx", "/a:/b:ro:x"] {
            assert!(mount(volume).is_err(), "{volume}");
        }
        for text in ["80", "0:80", "80:70000", "80:80/icmp", "a:b"] {
            assert!(port(text).is_err(), "{text}");
        }
        let options = options(&["--name", "x"]);
        let pod = pod(&options).unwrap();
        assert!(
            container(&options, &pod)
                .unwrap_err()
                .to_string()
                .contains("no image")
        );
    }
}
