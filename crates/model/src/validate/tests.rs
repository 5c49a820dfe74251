#![allow(clippy::unwrap_used, clippy::semicolon_if_nothing_returned)]

use proptest::prelude::*;

use super::*;
use crate::{
    ContainerMetadata, ContainerSpec, Device, DnsConfig, EnvVar, HugepageLimit, ImageSpec, Mount,
    NamespaceMode, Namespaces, PortMapping, Propagation, SandboxMetadata, SandboxSpec, UserNamespace,
};

fn pod() -> SandboxSpec {
    SandboxSpec {
        metadata: SandboxMetadata {
            name: "web".into(),
            namespace: "prod".into(),
            uid: "u-1".into(),
            attempt: 0,
        },
        log_directory: "/var/log/pods/prod_web".into(),
        ..SandboxSpec::default()
    }
}

fn container() -> ContainerSpec {
    ContainerSpec {
        metadata: ContainerMetadata {
            name: "main".into(),
            attempt: 1,
        },
        image: ImageSpec {
            image: "busybox".into(),
            ..ImageSpec::default()
        },
        ..ContainerSpec::default()
    }
}

fn pod_error(change: impl FnOnce(&mut SandboxSpec)) -> String {
    let mut spec = pod();
    change(&mut spec);
    spec.validate().unwrap_err().to_string()
}

fn container_error(change: impl FnOnce(&mut ContainerSpec)) -> String {
    let mut spec = container();
    change(&mut spec);
    spec.validate(&pod()).unwrap_err().to_string()
}

#[test]
fn plain_specs_pass() {
    pod().validate().unwrap();
    container().validate(&pod()).unwrap();
}

#[test]
fn bandwidth_is_none_of_the_hosts_networks() {
    let annotation = "kubernetes.io/egress-bandwidth";
    let wrong = |spec: &mut SandboxSpec| {
        spec.annotations.insert(annotation.into(), "fast".into());
    };
    assert!(pod_error(wrong).contains(annotation));
    let mut spec = pod();
    wrong(&mut spec);
    spec.security.namespaces.network = NamespaceMode::Node;
    spec.validate().unwrap();
}

#[test]
fn pods_that_are_refused() {
    let cases: Vec<(&str, String)> = vec![
        (
            "metadata.name: is missing",
            pod_error(|p| p.metadata.name.clear()),
        ),
        (
            "metadata.name: contains a slash",
            pod_error(|p| p.metadata.name = "a/b".into()),
        ),
        (
            "metadata.name: contains a NUL byte",
            pod_error(|p| p.metadata.name = "a\0b".into()),
        ),
        (
            "metadata.uid: contains the character '\\n'",
            pod_error(|p| p.metadata.uid = "a\nb".into()),
        ),
        (
            "metadata.namespace: \"..\" is not a name",
            pod_error(|p| p.metadata.namespace = "..".into()),
        ),
        (
            "hostname: contains the character ' '",
            pod_error(|p| p.hostname = "a b".into()),
        ),
        (
            "hostname: is longer than 64 bytes",
            pod_error(|p| p.hostname = "a".repeat(65)),
        ),
        (
            "log_directory: \"logs\" is not an absolute path",
            pod_error(|p| p.log_directory = "logs".into()),
        ),
        (
            "dns_config.servers: \"here\" is not an IP address",
            pod_error(|p| {
                p.dns = Some(DnsConfig {
                    servers: vec!["here".into()],
                    ..DnsConfig::default()
                })
            }),
        ),
        (
            "dns_config.options: has an entry that is empty, too long or contains white space",
            pod_error(|p| {
                p.dns = Some(DnsConfig {
                    options: vec!["a\nb".into()],
                    ..DnsConfig::default()
                })
            }),
        ),
        (
            "port_mappings[0].host_port: 65536 is not a port from 0 to 65535",
            pod_error(|p| {
                p.port_mappings = vec![PortMapping {
                    container_port: 1,
                    host_port: 65_536,
                    ..PortMapping::default()
                }];
            }),
        ),
        (
            "linux.security_context.run_as_user: 2147483648 is not an id from 0 to 2147483647",
            pod_error(|p| p.security.run_as_user = Some(1 << 31)),
        ),
        (
            "linux.security_context.run_as_group: is given without run_as_user",
            pod_error(|p| p.security.run_as_group = Some(5)),
        ),
        (
            "linux.sysctls[\"kernel.panic\"]: is not a parameter of a namespace, so it cannot be set for a pod",
            pod_error(|p| p.sysctls = [("kernel.panic".into(), "1".into())].into()),
        ),
        (
            "linux.sysctls[\"net.ipv4.ip_forward\"]: would change the host: the pod has the host's network namespace",
            pod_error(|p| {
                p.security.namespaces.network = NamespaceMode::Node;
                p.sysctls = [("net.ipv4.ip_forward".into(), "1".into())].into();
            }),
        ),
        (
            "linux.security_context.namespace_options.network: only POD and NODE are possible",
            pod_error(|p| p.security.namespaces.network = NamespaceMode::Container),
        ),
        (
            "linux.security_context.namespace_options.userns_options: mode POD needs id mappings for users and for groups",
            pod_error(|p| p.security.namespaces.user = Some(UserNamespace::default())),
        ),
        (
            "linux.cgroup_parent: \"/a/../b\" is not the path of a cgroup",
            pod_error(|p| p.cgroup_parent = "/a/../b".into()),
        ),
        (
            "labels: is larger than 262144 bytes in total",
            pod_error(|p| p.labels = [("k".into(), "v".repeat(262_144))].into()),
        ),
    ];
    for (wanted, got) in cases {
        assert_eq!(wanted, got);
    }
}

#[test]
fn containers_that_are_refused() {
    let host_mount = |change: fn(&mut Mount)| {
        let mut mount = Mount {
            container_path: "/data".into(),
            host_path: "/srv".into(),
            ..Mount::default()
        };
        change(&mut mount);
        move |c: &mut ContainerSpec| c.mounts = vec![mount]
    };
    let cases: Vec<(&str, String)> = vec![
        (
            "image.image: is missing",
            container_error(|c| c.image.image.clear()),
        ),
        (
            "envs[0].value: (HOME) contains a newline",
            container_error(|c| c.envs = vec![EnvVar::new("HOME", "/root\nevil")]),
        ),
        (
            "envs[0].key: \"A=B\" contains `=`, a newline or NUL",
            container_error(|c| c.envs = vec![EnvVar::new("A=B", "")]),
        ),
        (
            "envs[0].value: (A) contains a NUL byte",
            container_error(|c| c.envs = vec![EnvVar::new("A", "x\0")]),
        ),
        (
            "log_path: \"../x\" leads outside with `..`",
            container_error(|c| c.log_path = "../x".into()),
        ),
        (
            "log_path: \"/x\" must be relative",
            container_error(|c| c.log_path = "/x".into()),
        ),
        (
            "mounts[0].container_path: \"data\" is not an absolute path",
            container_error(host_mount(|m| m.container_path = "data".into())),
        ),
        (
            "mounts[0].container_path: is the container's root",
            container_error(host_mount(|m| m.container_path = "/.".into())),
        ),
        (
            "mounts[0].host_path: is missing",
            container_error(host_mount(|m| m.host_path.clear())),
        ),
        (
            "mounts[0].recursive_read_only: needs readonly",
            container_error(host_mount(|m| m.recursive_read_only = true)),
        ),
        (
            "mounts[0].recursive_read_only: is not possible with propagation: a mount that arrives later would be writable",
            container_error(host_mount(|m| {
                m.readonly = true;
                m.recursive_read_only = true;
                m.propagation = Propagation::HostToContainer;
            })),
        ),
        (
            "devices[0].permissions: \"x\" is not made of `r`, `w` and `m`",
            container_error(|c| {
                c.devices = vec![Device {
                    host_path: "/dev/null".into(),
                    permissions: "x".into(),
                    ..Device::default()
                }];
            }),
        ),
        (
            "linux.security_context.run_as_group: is given without run_as_user or run_as_username",
            container_error(|c| c.security.run_as_group = Some(5)),
        ),
        (
            "linux.security_context.privileged: is set, but the pod is not privileged",
            container_error(|c| c.security.privileged = true),
        ),
        (
            "linux.security_context.namespace_options.network: differs from the pod's",
            container_error(|c| {
                c.security.namespaces = Some(Namespaces {
                    network: NamespaceMode::Node,
                    ..Namespaces::default()
                });
            }),
        ),
        (
            "linux.resources.hugepage_limits[0].page_size: \"2M\" is not a page size such as 2MB",
            container_error(|c| {
                c.resources.hugepages = vec![HugepageLimit {
                    page_size: "2M".into(),
                    limit: 1,
                }]
            }),
        ),
        (
            "linux.resources.unified: \"../memory.max\" is not a file of a cgroup",
            container_error(|c| c.resources.unified = [("../memory.max".into(), "1".into())].into()),
        ),
        (
            "linux.security_context.seccomp_profile_path: \"weird\" is not `runtime/default`, `unconfined` or `localhost/<absolute path>`",
            container_error(|c| c.security.seccomp_profile_path = "weird".into()),
        ),
    ];
    for (wanted, got) in cases {
        assert_eq!(wanted, got);
    }
}

#[test]
fn sysctl_names() {
    for (name, wanted) in [
        ("kernel.shm_rmid_forced", Some(SysctlNamespace::Ipc)),
        ("kernel/msgmax", Some(SysctlNamespace::Ipc)),
        ("fs.mqueue.msg_max", Some(SysctlNamespace::Ipc)),
        ("net.core.somaxconn", Some(SysctlNamespace::Network)),
        (
            "net/ipv4/conf/eth0.100/forwarding",
            Some(SysctlNamespace::Network),
        ),
        ("net/../kernel/panic", None),
        ("net..x", None),
        ("net.ipv4/../../kernel/panic", None),
        ("kernel.hostname", None),
        ("vm.overcommit_memory", None),
        ("net", None),
        ("", None),
    ] {
        assert_eq!(sysctl_namespace(name), wanted, "{name}");
    }
}

proptest! {
    #[test]
    fn no_name_with_a_separator_passes(name in ".*[/\0\n].*") {
        let mut spec = pod();
        spec.metadata.name = name;
        prop_assert!(spec.validate().is_err());
    }

    #[test]
    fn validation_never_panics(name in ".*", env in ".*", value: Vec<u8>, path in ".*", sysctl in ".*", uid: i64) {
        let mut spec = pod();
        spec.hostname = name.clone();
        spec.sysctls = [(sysctl, path.clone())].into();
        spec.security.run_as_user = Some(uid);
        let _ = spec.validate();
        let mut spec = container();
        spec.metadata.name = name;
        spec.envs = vec![EnvVar { key: env, value }];
        spec.mounts = vec![Mount { container_path: path.clone(), host_path: path.clone(), ..Mount::default() }];
        spec.log_path = path;
        let _ = spec.validate(&pod());
    }

    #[test]
    fn a_hostname_made_of_a_name_is_a_hostname(name in ".{0,100}") {
        let made = hostname_of(&name);
        prop_assert!(made.len() < limits::HOSTNAME_BYTES);
        let spec = SandboxSpec { hostname: made, ..pod() };
        prop_assert!(spec.validate().is_ok());
    }

    #[test]
    fn overlapping_maps_are_refused(a in 0u32..1000, b in 0u32..1000, len in 1u32..500) {
        let maps = [
            IdMapping { host_id: a, container_id: 0, length: len },
            IdMapping { host_id: b, container_id: 10_000, length: len },
        ];
        prop_assert_eq!(id_mappings("m", &maps).is_err(), a.abs_diff(b) < len);
    }
}
