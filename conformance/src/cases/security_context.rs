//! The security context, field by field, and the contradictions that it can hold.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;

use super::{Pod, cases};
use crate::Context;
use crate::cri::{container_config, invalid, must_fail, namespaces, pod_config};
use crate::expect;

cases!["security_context";
    user_namespace => "Debian's release of the peer is older than user namespaces",
    user_namespace_with_the_hosts_network => "Debian's release of the peer is older than user namespaces",
    user_namespaces_differ_between_pods => "Debian's release of the peer is older than user namespaces",
    no_user_namespace,
    deprecated_seccomp_field,
    ambient_capabilities => "Debian's release of the peer is older than the field",
    unmasked_proc,
    masked_paths_literally,
    run_as_username_and_group,
    exec_is_confined_too,
    target_pid_namespace,
    wrong_namespace_options => "the specification: only what makes sense is possible; the peer takes the pod's",
    contradictions => "the peer takes one of the two",
    images_with_users_that_cannot_be => "the peer takes what passwd says, and HOME as it comes",
    cgroup_parent => "the peer leaves the parent that it has made",
];

fn security(config: &mut cri::ContainerConfig) -> Option<&mut cri::LinuxContainerSecurityContext> {
    config.linux.as_mut().and_then(|l| l.security_context.as_mut())
}

fn pod_security(config: &mut cri::PodSandboxConfig) -> Option<&mut cri::LinuxSandboxSecurityContext> {
    config.linux.as_mut().and_then(|l| l.security_context.as_mut())
}

/// A pod with a user namespace, and its map.
pub fn user_namespace_pod(
    c: &Context,
    name: &str,
    network: cri::NamespaceMode,
) -> (cri::PodSandboxConfig, cri::IdMapping) {
    let map = cri::IdMapping {
        host_id: 1_000_000,
        container_id: 0,
        length: 65_536,
    };
    (mapped_pod(c, name, network, map), map)
}

fn mapped_pod(
    c: &Context,
    name: &str,
    network: cri::NamespaceMode,
    map: cri::IdMapping,
) -> cri::PodSandboxConfig {
    let mut config = pod_config(name, &c.logs());
    if network == cri::NamespaceMode::Node {
        // As kubelet has it: the name is the host's.
        config.hostname.clear();
    }
    if let Some(security) = pod_security(&mut config) {
        let mut options = namespaces(network);
        options.userns_options = Some(cri::UserNamespace {
            mode: cri::NamespaceMode::Pod.into(),
            uids: vec![map],
            gids: vec![map],
        });
        security.namespace_options = Some(options);
    }
    config
}

/// A container that sleeps, of whose security context `edit` makes something.
async fn sleeper(
    c: &Arc<Context>,
    pod: &Pod,
    name: &str,
    edit: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
) -> anyhow::Result<String> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = container_config(name, &image, &["/bin/sleep", "3600"]);
    if let Some(security) = security(&mut config) {
        edit(security);
    }
    pod.start(&config).await
}

/// The first process of a container, in the host's numbers.
async fn pid(c: &Context, id: &str) -> anyhow::Result<i64> {
    let request = cri::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    };
    let info = c
        .cri
        .runtime
        .clone()
        .container_status(request)
        .await?
        .into_inner()
        .info;
    let text = info.get("info").context("the verbose status has no `info`")?;
    let value: serde_json::Value = serde_json::from_str(text)?;
    value["pid"].as_i64().context("the verbose status has no pid")
}

fn of_proc(pid: i64, file: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("/proc/{pid}/{file}"))
}

async fn user_namespace_in(c: &Arc<Context>, name: &str, network: cri::NamespaceMode) -> anyhow::Result<()> {
    let (config, map) = user_namespace_pod(c, name, network);
    let pod = Pod::run_with(c, config).await?;
    let own = namespaces(network);
    let id = sleeper(c, &pod, "root", |s| s.namespace_options = Some(own.clone())).await?;
    expect!(
        c.cri.shell(&id, "id -u; tr -s ' ' </proc/self/uid_map; stat -c %u:%g / /bin/busybox; touch /made; stat -c %u /made").await?,
        format!("0\n 0 {} 65536\n0:0\n0:0\n0", map.host_id),
        "root in its user namespace"
    );
    let first = pid(c, &id).await?;
    let status = of_proc(first, "status")?;
    let uid = status
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .unwrap_or_default();
    ensure!(
        uid.contains(&map.host_id.to_string()),
        "the user on the host: {uid}"
    );
    // What the kernel keeps for the host's root is not there.
    let refused = c
        .cri
        .exec(
            &id,
            &["/bin/sh", "-c", "echo x >/proc/sysrq-trigger || mknod /x b 8 0"],
            10,
        )
        .await?;
    ensure!(
        refused.exit_code != 0,
        "a device node was made in a user namespace"
    );
    let user = sleeper(c, &pod, "user", |s| {
        s.namespace_options = Some(own);
        s.run_as_user = Some(cri::Int64Value { value: 1000 });
    })
    .await?;
    expect!(c.cri.shell(&user, "id -u").await?, "1000", "another user");
    let host = namespaces_of(first, "net")?;
    let ours = std::fs::read_link("/proc/self/ns/net")?;
    expect!(
        host == ours,
        network == cri::NamespaceMode::Node,
        "whether the network namespace is the host's"
    );
    if network == cri::NamespaceMode::Pod {
        // Its network is its own to change where it has the capability.
        let admin = sleeper(c, &pod, "admin", |s| {
            s.capabilities = Some(cri::Capability {
                add_capabilities: vec!["NET_ADMIN".into()],
                ..Default::default()
            });
        })
        .await?;
        c.cri
            .shell(
                &admin,
                "ip link add dummy1 type dummy || ip addr add 10.99.0.1/32 dev lo",
            )
            .await?;
    }
    let shown = c.cri.pod_status(&pod.id).await?;
    let shown = shown
        .linux
        .and_then(|l| l.namespaces)
        .and_then(|n| n.options)
        .and_then(|o| o.userns_options);
    expect!(
        shown.map(|user| user.uids),
        Some(vec![map]),
        "the maps in the pod's status"
    );
    pod.end().await
}

fn namespaces_of(pid: i64, kind: &str) -> anyhow::Result<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).with_context(|| format!("namespace {kind} of {pid}"))
}

async fn user_namespace(c: Arc<Context>) -> anyhow::Result<()> {
    user_namespace_in(&c, "userns", cri::NamespaceMode::Pod).await
}

async fn user_namespace_with_the_hosts_network(c: Arc<Context>) -> anyhow::Result<()> {
    user_namespace_in(&c, "userns-host", cri::NamespaceMode::Node).await
}

async fn user_namespaces_differ_between_pods(c: Arc<Context>) -> anyhow::Result<()> {
    // One image, seen through two maps at once.
    let mut pods = Vec::new();
    for (name, host_id) in [("userns-a", 2_000_000), ("userns-b", 3_000_000)] {
        let map = cri::IdMapping {
            host_id,
            container_id: 0,
            length: 65_536,
        };
        let pod = Pod::run_with(&c, mapped_pod(&c, name, cri::NamespaceMode::Pod, map)).await?;
        let id = sleeper(&c, &pod, "one", |_| {}).await?;
        expect!(
            c.cri.shell(&id, "stat -c %u /bin/busybox /etc/passwd").await?,
            "0\n0",
            "the image's owner"
        );
        pods.push((pod, pid(&c, &id).await?, host_id));
    }
    for (_, pid, host_id) in &pods {
        let map = of_proc(*pid, "uid_map")?;
        ensure!(
            map.split_whitespace().nth(1) == Some(&host_id.to_string()),
            "uid_map: {map}"
        );
    }
    for (pod, ..) in pods {
        pod.end().await?;
    }
    Ok(())
}

async fn no_user_namespace(c: Arc<Context>) -> anyhow::Result<()> {
    let mut config = pod_config("userns-node", &c.logs());
    if let Some(security) = pod_security(&mut config) {
        let mut options = namespaces(cri::NamespaceMode::Pod);
        options.userns_options = Some(cri::UserNamespace {
            mode: cri::NamespaceMode::Node.into(),
            ..Default::default()
        });
        security.namespace_options = Some(options);
    }
    let pod = Pod::run_with(&c, config).await?;
    let id = sleeper(&c, &pod, "node", |_| {}).await?;
    expect!(
        namespaces_of(pid(&c, &id).await?, "user")?,
        std::fs::read_link("/proc/self/ns/user")?,
        "the user namespace of mode NODE"
    );
    pod.end().await
}

const SECCOMP: &str = "grep -w Seccomp: /proc/1/status | cut -f2";

#[allow(deprecated, reason = "it is the old field that is looked at")]
async fn deprecated_seccomp_field(c: Arc<Context>) -> anyhow::Result<()> {
    let file = c.scratch.join("deprecated.json");
    std::fs::write(
        &file,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":122}]}"#,
    )?;
    let pod = Pod::run(&c, "seccomp-old").await?;
    for (name, text, wanted) in [
        ("default", "runtime/default".to_owned(), "2"),
        ("docker", "docker/default".to_owned(), "2"),
        ("unconfined", "unconfined".to_owned(), "0"),
        ("localhost", format!("localhost/{}", file.display()), "2"),
    ] {
        let id = sleeper(&c, &pod, name, |s| s.seccomp_profile_path = text.clone()).await?;
        expect!(c.cri.shell(&id, SECCOMP).await?, wanted, "the filter of {text}");
        if name == "localhost" {
            let made = c.cri.exec(&id, &["/bin/mkdir", "/made"], 10).await?;
            ensure!(
                String::from_utf8_lossy(&made.stderr)
                    .to_lowercase()
                    .contains("quota"),
                "mkdir under the profile: {made:?}"
            );
        }
    }
    // The new field goes before it.
    let id = sleeper(&c, &pod, "both", |s| {
        s.seccomp_profile_path = "runtime/default".into();
        s.seccomp = Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::Unconfined.into(),
            ..Default::default()
        });
    })
    .await?;
    expect!(c.cri.shell(&id, SECCOMP).await?, "0", "both fields");
    let image = c.cri.pull(c.image("busybox")).await?;
    for rubbish in ["weird", "localhost/", "localhost/relative.json"] {
        let mut config = container_config("refused", &image, &["/bin/true"]);
        if let Some(security) = security(&mut config) {
            security.seccomp_profile_path = rubbish.into();
        }
        must_fail(
            c.cri.create(&pod.id, &config, &pod.config).await,
            invalid(),
            &["linux.security_context.seccomp_profile_path"],
        )?;
    }
    pod.end().await
}

async fn ambient_capabilities(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "ambient").await?;
    let id = sleeper(&c, &pod, "ambient", |s| {
        s.run_as_user = Some(cri::Int64Value { value: 1000 });
        s.capabilities = Some(cri::Capability {
            add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
            drop_capabilities: Vec::new(),
            add_capabilities: Vec::new(),
        });
    })
    .await?;
    // Number 10: a user who is not root has it, over execve.
    expect!(
        c.cri
            .shell(&id, "grep -E 'CapInh|CapEff|CapAmb' /proc/self/status | cut -f2")
            .await?,
        "0000000000000400\n0000000000000400\n0000000000000400",
        "inheritable, effective and ambient set of a user"
    );
    let plain = sleeper(&c, &pod, "plain", |s| {
        s.run_as_user = Some(cri::Int64Value { value: 1000 });
    })
    .await?;
    expect!(
        c.cri
            .shell(&plain, "grep -E 'CapEff|CapAmb' /proc/self/status | cut -f2")
            .await?,
        "0000000000000000\n0000000000000000",
        "without"
    );
    pod.end().await
}

async fn unmasked_proc(c: Arc<Context>) -> anyhow::Result<()> {
    // procMount Unmasked reaches the runtime as two empty lists, and nothing of the runtime's own comes in their place.
    let pod = Pod::run(&c, "unmasked").await?;
    let id = sleeper(&c, &pod, "unmasked", |_| {}).await?;
    expect!(
        c.cri
            .shell(&id, "grep -c ' /proc/' /proc/self/mounts || true")
            .await?,
        "0",
        "mounts over parts of /proc"
    );
    c.cri
        .shell(
            &id,
            "head -c 1 /proc/kcore >/dev/null 2>&1; head -n 1 /proc/timer_list 2>/dev/null; true",
        )
        .await?;
    pod.end().await
}

async fn masked_paths_literally(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "masked-literally").await?;
    let id = sleeper(&c, &pod, "masked", |s| {
        s.masked_paths = ["/etc/passwd", "/home", "/not/there", "/proc/version"]
            .map(str::to_owned)
            .to_vec();
        s.readonly_paths = ["/tmp", "/proc/sys", "/also/not"].map(str::to_owned).to_vec();
    })
    .await?;
    expect!(
        c.cri.shell(&id, "wc -c </etc/passwd; ls -A /home | wc -l; wc -c </proc/version; cat /proc/uptime >/dev/null && echo other").await?,
        "0\n0\n0\nother",
        "what is masked, and what is not"
    );
    for script in [
        "touch /tmp/x",
        "echo x >/proc/sys/kernel/domainname",
        "touch /home/x",
    ] {
        let write = c.cri.exec(&id, &["/bin/sh", "-c", script], 10).await?;
        ensure!(write.exit_code != 0, "`{script}` was possible");
    }
    c.cri
        .shell(&id, "touch /root/x; test ! -e /also/not; test ! -e /not/there")
        .await?;
    pod.end().await
}

async fn run_as_username_and_group(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "username").await?;
    let id = sleeper(&c, &pod, "named", |s| {
        s.run_as_username = "app".into();
        s.run_as_group = Some(cri::Int64Value { value: 77 });
        s.supplemental_groups = vec![78];
    })
    .await?;
    let groups = c.cri.shell(&id, "id -u; id -g; id -G").await?;
    let lines: Vec<&str> = groups.lines().collect();
    ensure!(
        lines.len() == 3
            && lines[0] == "1000"
            && lines[1] == "77"
            && ["77", "78", "2000"]
                .iter()
                .all(|g| lines[2].split(' ').any(|x| x == *g)),
        "a name with a group: {groups}"
    );
    // A number by name, as kubelet may send it.
    let id = sleeper(&c, &pod, "number", |s| s.run_as_username = "4321".into()).await?;
    expect!(c.cri.shell(&id, "id -u").await?, "4321", "a number as the name");
    pod.end().await
}

async fn exec_is_confined_too(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "exec-confined").await?;
    let id = sleeper(&c, &pod, "confined", |s| {
        s.no_new_privs = true;
        s.run_as_user = Some(cri::Int64Value { value: 1000 });
        s.supplemental_groups = vec![78];
        s.capabilities = Some(cri::Capability {
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        });
        s.seccomp = Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::RuntimeDefault.into(),
            ..Default::default()
        });
    })
    .await?;
    let show = "grep -E 'NoNewPrivs|Seccomp:|CapBnd|^Groups' ";
    let of = async |whose: &str| c.cri.shell(&id, &format!("{show} /proc/{whose}/status")).await;
    expect!(
        of("self").await?,
        of("1").await?,
        "an exec beside the container's first process"
    );
    pod.end().await
}

async fn target_pid_namespace(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "target").await?;
    let first = sleeper(&c, &pod, "first", |_| {}).await?;
    let target = first.clone();
    let second = sleeper(&c, &pod, "second", move |s| {
        let mut options = namespaces(cri::NamespaceMode::Pod);
        options.set_pid(cri::NamespaceMode::Target);
        options.target_id = target;
        s.namespace_options = Some(options);
    })
    .await?;
    expect!(
        namespaces_of(pid(&c, &first).await?, "pid")?,
        namespaces_of(pid(&c, &second).await?, "pid")?,
        "the PID namespace of a target"
    );
    expect!(
        c.cri.shell(&second, "tr '\\0' ' ' </proc/1/cmdline").await?,
        "/bin/sleep 3600",
        "the target's first process, seen from the other"
    );
    pod.end().await
}

type PodEdit = Box<dyn Fn(&mut cri::LinuxSandboxSecurityContext)>;
type ConfigEdit = Box<dyn Fn(&mut cri::ContainerConfig)>;

/// Each must be refused with the field's name.
async fn refused_pods(c: &Arc<Context>, cases: Vec<(&str, PodEdit)>) -> anyhow::Result<()> {
    for (field, edit) in cases {
        let mut config = pod_config("refused", &c.logs());
        std::fs::create_dir_all(&config.log_directory)?;
        if let Some(security) = pod_security(&mut config) {
            edit(security);
        }
        let made = c.cri.run_pod(&config).await;
        must_fail(made, invalid(), &[field]).with_context(|| format!("a pod with {field}"))?;
    }
    ensure!(c.cri.pods(None).await?.is_empty(), "a refused pod is listed");
    Ok(())
}

async fn refused_containers(
    c: &Arc<Context>,
    pod: &Pod,
    cases: Vec<(&str, ConfigEdit)>,
) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    for (field, edit) in cases {
        let mut config = container_config("refused", &image, &["/bin/sleep", "3600"]);
        edit(&mut config);
        let made = c.cri.create(&pod.id, &config, &pod.config).await;
        must_fail(made, invalid(), &[field]).with_context(|| format!("a container with {field}"))?;
    }
    ensure!(
        c.cri.containers(None).await?.is_empty(),
        "a refused container is listed"
    );
    Ok(())
}

fn options(edit: impl Fn(&mut cri::NamespaceOption)) -> cri::NamespaceOption {
    let mut options = namespaces(cri::NamespaceMode::Pod);
    edit(&mut options);
    options
}

async fn wrong_namespace_options(c: Arc<Context>) -> anyhow::Result<()> {
    const NODE: cri::NamespaceMode = cri::NamespaceMode::Node;
    const CONTAINER: cri::NamespaceMode = cri::NamespaceMode::Container;
    const TARGET: cri::NamespaceMode = cri::NamespaceMode::Target;
    fn with(edit: impl Fn(&mut cri::NamespaceOption) + 'static) -> PodEdit {
        Box::new(move |s| s.namespace_options = Some(options(&edit)))
    }
    fn users(mode: cri::NamespaceMode, count: u32) -> cri::UserNamespace {
        let maps: Vec<_> = (0..count)
            .map(|_| cri::IdMapping {
                host_id: 1_000_000,
                container_id: 0,
                length: 65_536,
            })
            .collect();
        cri::UserNamespace {
            mode: mode.into(),
            uids: maps.clone(),
            gids: maps,
        }
    }
    refused_pods(
        &c,
        vec![
            ("namespace_options.network", with(|o| o.set_network(CONTAINER))),
            ("namespace_options.ipc", with(|o| o.set_ipc(CONTAINER))),
            ("namespace_options.network", with(|o| o.network = 42)),
            ("namespace_options", with(|o| o.set_pid(TARGET))),
            (
                "userns_options",
                with(|o| o.userns_options = Some(users(cri::NamespaceMode::Pod, 0))),
            ),
            (
                "userns_options",
                with(|o| o.userns_options = Some(users(NODE, 1))),
            ),
            (
                "userns_options",
                with(|o| o.userns_options = Some(users(CONTAINER, 1))),
            ),
            (
                "userns_options.uids",
                with(|o| o.userns_options = Some(users(cri::NamespaceMode::Pod, 2))),
            ),
            (
                "userns_options",
                with(|o| {
                    o.userns_options = Some(users(cri::NamespaceMode::Pod, 1));
                    o.set_pid(NODE);
                }),
            ),
        ],
    )
    .await?;
    let pod = Pod::run(&c, "wrong-namespaces").await?;
    type Edit = Box<dyn Fn(&mut cri::ContainerConfig)>;
    fn of(edit: impl Fn(&mut cri::NamespaceOption) + 'static) -> Edit {
        Box::new(move |config| {
            if let Some(security) = security(config) {
                security.namespace_options = Some(options(&edit));
            }
        })
    }
    refused_containers(
        &c,
        &pod,
        vec![
            ("namespace_options.network", of(|o| o.set_network(NODE))),
            ("namespace_options.ipc", of(|o| o.set_ipc(CONTAINER))),
            ("namespace_options.pid", of(|o| o.pid = -3)),
            ("namespace_options.target_id", of(|o| o.set_pid(TARGET))),
            (
                "namespace_options.target_id",
                of(|o| {
                    o.set_pid(TARGET);
                    o.target_id = "0".repeat(64);
                }),
            ),
            (
                "userns_options",
                of(|o| o.userns_options = Some(users(cri::NamespaceMode::Pod, 1))),
            ),
        ],
    )
    .await?;
    pod.end().await
}

async fn contradictions(c: Arc<Context>) -> anyhow::Result<()> {
    const GROUP: Option<cri::Int64Value> = Some(cri::Int64Value { value: 5 });
    refused_pods(
        &c,
        vec![
            (
                "linux.security_context.run_as_group",
                Box::new(|s| s.run_as_group = GROUP),
            ),
            (
                "linux.security_context.run_as_user",
                Box::new(|s| s.run_as_user = Some(cri::Int64Value { value: -1 })),
            ),
            (
                "linux.security_context.supplemental_groups",
                Box::new(|s| s.supplemental_groups = vec![1 << 31]),
            ),
            (
                "linux.security_context.seccomp.localhost_ref",
                Box::new(|s| {
                    s.seccomp = Some(cri::SecurityProfile {
                        profile_type: cri::security_profile::ProfileType::Localhost.into(),
                        ..Default::default()
                    });
                }),
            ),
            (
                "supplemental_groups_policy",
                Box::new(|s| s.supplemental_groups_policy = 9),
            ),
        ],
    )
    .await?;
    let pod = Pod::run(&c, "contradictions").await?;
    type Edit = fn(&mut cri::LinuxContainerSecurityContext);
    let cases: [(&str, Edit); 9] = [
        ("linux.security_context.run_as_group", |s| s.run_as_group = GROUP),
        ("linux.security_context.run_as_username", |s| {
            s.run_as_user = Some(cri::Int64Value { value: 1 });
            s.run_as_username = "app".into();
        }),
        ("linux.security_context.run_as_user", |s| {
            s.run_as_user = Some(cri::Int64Value { value: 1 << 31 });
        }),
        ("linux.security_context.privileged", |s| s.privileged = true),
        ("linux.security_context.masked_paths[0]", |s| {
            s.masked_paths = vec!["relative".into()];
        }),
        ("linux.security_context.readonly_paths[0]", |s| {
            s.readonly_paths = vec![String::new()];
        }),
        ("linux.security_context.capabilities.add_capabilities[0]", |s| {
            s.capabilities = Some(cri::Capability {
                add_capabilities: vec!["FLY".into()],
                ..Default::default()
            });
        }),
        ("linux.security_context.seccomp.profile_type", |s| {
            s.seccomp = Some(cri::SecurityProfile {
                profile_type: 9,
                ..Default::default()
            });
        }),
        ("linux.security_context.seccomp.localhost_ref", |s| {
            s.seccomp = Some(cri::SecurityProfile {
                profile_type: cri::security_profile::ProfileType::Localhost.into(),
                localhost_ref: "/not/there.json".into(),
            });
        }),
    ];
    let cases = cases
        .into_iter()
        .map(|(field, edit)| {
            let edit: Box<dyn Fn(&mut cri::ContainerConfig)> = Box::new(move |config| {
                if let Some(security) = security(config) {
                    edit(security);
                }
            });
            (field, edit)
        })
        .collect();
    refused_containers(&c, &pod, cases).await?;
    pod.end().await?;
    // Privileged, and in a user namespace.
    let (mut config, _) = user_namespace_pod(&c, "privileged-userns", cri::NamespaceMode::Pod);
    if let Some(security) = pod_security(&mut config) {
        security.privileged = true;
    }
    let pod = match Pod::run_with(&c, config).await {
        Ok(pod) => pod,
        // Refusing the pod is as good.
        Err(_) => return Ok(()),
    };
    refused_containers(
        &c,
        &pod,
        vec![(
            "linux.security_context.privileged",
            Box::new(|config| {
                if let Some(security) = security(config) {
                    security.privileged = true;
                }
            }),
        )],
    )
    .await?;
    pod.end().await
}

async fn images_with_users_that_cannot_be(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "image-users").await?;
    for (name, words) in [
        ("user-too-large", &["the image's user", "2147483648"][..]),
        ("group-too-large", &["the image's user", "4294967295"]),
        ("user-of-passwd-too-large", &["giant", "3000000000"]),
        ("user-unknown", &["the image's user", "nobody-knows"]),
        ("home-with-newline", &["the image's environment", "HOME"]),
        ("home-of-passwd-with-control", &["HOME"]),
    ] {
        let image = c.cri.pull(c.image(name)).await?;
        let config = container_config("refused", &image, &["/bin/sleep", "3600"]);
        let made = c.cri.create(&pod.id, &config, &pod.config).await;
        must_fail(made, invalid(), words).with_context(|| format!("the image {name}"))?;
    }
    ensure!(
        c.cri.containers(None).await?.is_empty(),
        "a refused container is listed"
    );
    pod.end().await
}

async fn cgroup_parent(c: Arc<Context>) -> anyhow::Result<()> {
    let parent = c.cri.cgroup_parent("conformanceparent").await;
    let name = parent.trim_start_matches('/').to_owned();
    let mut config = pod_config("cgroup-parent", &c.logs());
    if let Some(linux) = &mut config.linux {
        linux.cgroup_parent.clone_from(&parent);
    }
    let pod = Pod::run_with(&c, config).await?;
    let id = sleeper(&c, &pod, "child", |_| {}).await?;
    let groups = of_proc(pid(&c, &id).await?, "cgroup")?;
    ensure!(
        groups.lines().any(|line| line.contains(&format!("/{name}/"))),
        "the container's cgroups: {groups}"
    );
    pod.end().await?;
    let left: Vec<String> = std::fs::read_dir("/sys/fs/cgroup")?
        .flatten()
        .flat_map(|entry| [entry.path().join(&name), entry.path()])
        .chain([std::path::Path::new("/sys/fs/cgroup").join(&name)])
        .filter(|path| path.ends_with(&name) && path.exists())
        // Counted as left, and taken away all the same: it is nobody else's.
        .inspect(|path| drop(std::fs::remove_dir(path)))
        .map(|path| path.display().to_string())
        .collect();
    ensure!(left.is_empty(), "cgroups that the pod's parent left: {left:?}");
    // It is refused where it is no path of this driver.
    let of_the_other = if parent.starts_with('/') { "x.slice" } else { "/x" };
    for parent in ["/a/../b", "relative", of_the_other] {
        let mut config = pod_config("cgroup-refused", &c.logs());
        if let Some(linux) = &mut config.linux {
            linux.cgroup_parent = parent.into();
        }
        std::fs::create_dir_all(&config.log_directory)?;
        if !crate::cri::PEER.load(std::sync::atomic::Ordering::Relaxed) {
            must_fail(c.cri.run_pod(&config).await, invalid(), &["linux.cgroup_parent"])?;
        }
    }
    Ok(())
}
