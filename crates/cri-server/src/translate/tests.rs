#![allow(clippy::unwrap_used, deprecated)]

use std::collections::BTreeMap;

use holdfast_cri_api::v1;
use holdfast_model::{ContainerId, NamespaceMode, SandboxId, SandboxState, Signal};

use super::*;

fn map(key: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), "value".to_owned())])
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn mappings(first: u32) -> Vec<v1::IdMapping> {
    vec![v1::IdMapping {
        host_id: first,
        container_id: 0,
        length: 65536,
    }]
}

fn namespaces(pid: v1::NamespaceMode, target: &str) -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: v1::NamespaceMode::Node.into(),
        pid: pid.into(),
        ipc: v1::NamespaceMode::Pod.into(),
        target_id: target.to_owned(),
        userns_options: Some(v1::UserNamespace {
            mode: v1::NamespaceMode::Pod.into(),
            uids: mappings(100_000),
            gids: mappings(200_000),
        }),
    }
}

fn localhost(name: &str) -> v1::SecurityProfile {
    v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::Localhost.into(),
        localhost_ref: name.to_owned(),
    }
}

fn selinux() -> v1::SeLinuxOption {
    v1::SeLinuxOption {
        user: "u".into(),
        role: "r".into(),
        r#type: "t".into(),
        level: "l".into(),
    }
}

fn limits() -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: 1,
        cpu_quota: -1,
        cpu_shares: 3,
        memory_limit_in_bytes: 4,
        oom_score_adj: -5,
        cpuset_cpus: "0-1".into(),
        cpuset_mems: "0".into(),
        hugepage_limits: vec![v1::HugepageLimit {
            page_size: "2MB".into(),
            limit: 9,
        }],
        unified: map("memory.high"),
        memory_swap_limit_in_bytes: 10,
    }
}

/// Every field of a pod's configuration set.
fn full_sandbox() -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "n".into(),
            uid: "u".into(),
            namespace: "ns".into(),
            attempt: 4,
        }),
        hostname: "h".into(),
        log_directory: "/l".into(),
        dns_config: Some(v1::DnsConfig {
            servers: strings(&["1.1.1.1"]),
            searches: strings(&["x.y"]),
            options: strings(&["ndots:5"]),
        }),
        port_mappings: vec![v1::PortMapping {
            protocol: v1::Protocol::Sctp.into(),
            container_port: 80,
            host_port: 8080,
            host_ip: "127.0.0.1".into(),
        }],
        labels: map("label"),
        annotations: map("annotation"),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: "/p".into(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(v1::NamespaceMode::Container, "")),
                selinux_options: Some(selinux()),
                run_as_user: Some(v1::Int64Value { value: 0 }),
                run_as_group: Some(v1::Int64Value { value: 7 }),
                readonly_rootfs: true,
                supplemental_groups: vec![8],
                supplemental_groups_policy: v1::SupplementalGroupsPolicy::Strict.into(),
                privileged: true,
                seccomp: Some(localhost("/seccomp.json")),
                apparmor: Some(localhost("profile")),
                seccomp_profile_path: "unconfined".into(),
            }),
            sysctls: map("net.x"),
            overhead: Some(limits()),
            resources: Some(limits()),
        }),
        windows: None,
    }
}

/// Every field of a container's configuration set.
fn full_container() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: "c".into(),
            attempt: 2,
        }),
        image: Some(v1::ImageSpec {
            image: "i".into(),
            annotations: map("image"),
            user_specified_image: "ui".into(),
            runtime_handler: "rh".into(),
            image_ref: "ref".into(),
        }),
        command: strings(&["a"]),
        args: strings(&["b"]),
        working_dir: "/w".into(),
        envs: vec![v1::KeyValue {
            key: "K".into(),
            value: vec![0xff, 0x01],
        }],
        mounts: vec![full_mount("/host", None), full_mount("", Some("image"))],
        devices: vec![v1::Device {
            container_path: "/dev/a".into(),
            host_path: "/dev/b".into(),
            permissions: "rw".into(),
        }],
        labels: map("l"),
        annotations: map("a"),
        log_path: "0.log".into(),
        stdin: true,
        stdin_once: true,
        tty: true,
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(limits()),
            security_context: Some(full_container_security()),
        }),
        windows: None,
        cdi_devices: vec![v1::CdiDevice {
            name: "vendor.com/class=x".into(),
        }],
        stop_signal: v1::Signal::Sigrtminplus3.into(),
    }
}

fn full_mount(host: &str, image: Option<&str>) -> v1::Mount {
    v1::Mount {
        container_path: "/c".into(),
        host_path: host.into(),
        readonly: true,
        selinux_relabel: true,
        propagation: v1::MountPropagation::PropagationBidirectional.into(),
        uid_mappings: mappings(1),
        gid_mappings: mappings(2),
        recursive_read_only: true,
        image: image.map(|image| v1::ImageSpec {
            image: image.into(),
            ..Default::default()
        }),
        image_sub_path: image.map(|_| "sub".to_owned()).unwrap_or_default(),
        mount_options: strings(&["noexec"]),
    }
}

fn full_container_security() -> v1::LinuxContainerSecurityContext {
    v1::LinuxContainerSecurityContext {
        capabilities: Some(v1::Capability {
            add_capabilities: strings(&["A"]),
            drop_capabilities: strings(&["B"]),
            add_ambient_capabilities: strings(&["C"]),
        }),
        privileged: true,
        namespace_options: Some(namespaces(v1::NamespaceMode::Target, &"a".repeat(64))),
        selinux_options: Some(selinux()),
        run_as_user: Some(v1::Int64Value { value: 1 }),
        run_as_group: Some(v1::Int64Value { value: 2 }),
        run_as_username: "who".into(),
        readonly_rootfs: true,
        supplemental_groups: vec![3],
        supplemental_groups_policy: v1::SupplementalGroupsPolicy::Strict.into(),
        no_new_privs: true,
        masked_paths: strings(&["/m"]),
        readonly_paths: strings(&["/r"]),
        seccomp: Some(v1::SecurityProfile {
            profile_type: v1::security_profile::ProfileType::Unconfined.into(),
            localhost_ref: String::new(),
        }),
        apparmor: Some(localhost("p")),
        apparmor_profile: "unconfined".into(),
        seccomp_profile_path: "localhost/x".into(),
    }
}

#[test]
fn no_field_is_lost() {
    let pod = full_sandbox();
    assert_eq!(sandbox_config(&sandbox_spec(pod.clone()).unwrap()), pod);
    let container = full_container();
    assert_eq!(
        container_config(&container_spec(container.clone()).unwrap()),
        container
    );
}

#[test]
fn what_clients_leave_out() {
    let spec = sandbox_spec(v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata::default()),
        dns_config: Some(v1::DnsConfig::default()),
        ..Default::default()
    })
    .unwrap();
    assert_eq!(spec.security.namespaces.pid, NamespaceMode::Pod);
    assert_eq!(spec.dns, None);

    let spec = container_spec(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata::default()),
        image: Some(v1::ImageSpec::default()),
        ..Default::default()
    })
    .unwrap();
    assert_eq!(spec.security.namespaces, None);
    assert_eq!(spec.stop_signal, None);
    assert_eq!(spec.resources, holdfast_model::Resources::default());
}

#[test]
fn what_the_model_cannot_say_is_refused_by_name() {
    let refused = |change: fn(&mut v1::ContainerConfig)| {
        let mut config = full_container();
        change(&mut config);
        container_spec(config).unwrap_err().field
    };
    assert_eq!(refused(|c| c.metadata = None), "metadata");
    assert_eq!(refused(|c| c.image = None), "image");
    assert_eq!(refused(|c| c.stop_signal = 99), "stop_signal");
    assert_eq!(refused(|c| c.mounts[1].propagation = 3), "mounts[1].propagation");
    assert_eq!(refused(|c| c.mounts[1].image = None), "mounts[1].image_sub_path");
    assert_eq!(
        refused(|c| security(c).namespace_options.as_mut().unwrap().pid = 7),
        "linux.security_context.namespace_options.pid"
    );
    assert_eq!(
        refused(|c| security(c).namespace_options.as_mut().unwrap().target_id = "short".into()),
        "linux.security_context.namespace_options.target_id"
    );
    assert_eq!(
        refused(|c| security(c).seccomp.as_mut().unwrap().profile_type = 5),
        "linux.security_context.seccomp.profile_type"
    );
    assert_eq!(
        refused(|c| security(c).supplemental_groups_policy = 2),
        "linux.security_context.supplemental_groups_policy"
    );
    let mut pod = full_sandbox();
    pod.port_mappings[0].protocol = 4;
    assert_eq!(sandbox_spec(pod).unwrap_err().field, "port_mappings[0].protocol");
}

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

#[test]
fn every_signal_has_a_number_here_and_there() {
    for number in 1..=65 {
        let wire = v1::Signal::try_from(number).unwrap();
        let mut config = full_container();
        config.stop_signal = number;
        let signal = container_spec(config).unwrap().stop_signal.unwrap();
        let back = v1::Signal::try_from(container::wire_signal(signal)).unwrap();
        // Three have two names: SIGCLD, SIGIOT and SIGPOLL.
        match wire {
            v1::Signal::Sigcld => assert_eq!(back, v1::Signal::Sigchld),
            v1::Signal::Sigiot => assert_eq!(back, v1::Signal::Sigabrt),
            v1::Signal::Sigpoll => assert_eq!(back, v1::Signal::Sigio),
            _ => assert_eq!(back, wire),
        }
    }
    assert_eq!(
        container::wire_signal(Signal::TERM),
        i32::from(v1::Signal::Sigterm)
    );
}

#[test]
fn addresses_and_states() {
    let mut record = crate::testing::sandbox(SandboxId::from_bytes([1; 32]));
    record.ips = strings(&["10.0.0.2", "fd00::2"]);
    let network = sandbox_status(&record).network.unwrap();
    assert_eq!(network.ip, "10.0.0.2");
    assert_eq!(network.additional_ips[0].ip, "fd00::2");
    record.state = SandboxState::Dead;
    assert_eq!(
        sandbox_item(&record).state,
        i32::from(v1::PodSandboxState::SandboxNotready)
    );
    let container = crate::testing::container(ContainerId::from_bytes([2; 32]), record.id);
    let status = container_status(&container);
    assert_eq!(status.reason, "");
    assert_eq!(status.stop_signal, i32::from(v1::Signal::Sigterm));
}

#[test]
fn containers_of_a_pod_come_newest_first() {
    let record = |id: u8, created_at, attempt| {
        let mut record =
            crate::testing::container(ContainerId::from_bytes([id; 32]), SandboxId::from_bytes([1; 32]));
        record.created_at = created_at;
        record.spec.metadata.attempt = attempt;
        std::sync::Arc::new(record)
    };
    let statuses = container_statuses(&[
        record(2, 10, 0),
        record(3, 30, 2),
        record(4, 20, 1),
        record(5, 30, 3),
    ]);
    let attempts: Vec<u32> = statuses
        .into_iter()
        .map(|s| s.metadata.unwrap().attempt)
        .collect();
    assert_eq!(attempts, [3, 2, 1, 0]);
}
