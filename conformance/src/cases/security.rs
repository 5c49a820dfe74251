//! What confines a container.

use std::sync::Arc;

use anyhow::ensure;
use k8s_cri::v1 as cri;

use super::{Pod, cases};
use crate::Context;
use crate::cri::container_config;
use crate::expect;

cases!["security";
    default_capabilities,
    capabilities_added_and_dropped,
    no_new_privileges,
    default_seccomp_profile,
    localhost_seccomp_profile,
    masked_and_read_only_paths,
    privileged,
    devices,
    nothing_of_the_runtime_leaks_in,
    symlinked_mount_destination,
];

/// Runs one shell script in a container whose security context `edit` has changed; its output.
async fn script(
    c: &Arc<Context>,
    pod: &Pod,
    name: &str,
    script: &str,
    edit: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
) -> anyhow::Result<String> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = container_config(name, &image, &["/bin/sh", "-c", script]);
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        edit(security);
    }
    Ok(pod.once(c, &config).await?.text.trim_end().to_owned())
}

fn capability_bits(names: &[u32]) -> String {
    format!("{:016x}", names.iter().fold(0u64, |bits, n| bits | 1 << n))
}

const CHOWN: u32 = 0;
const NET_ADMIN: u32 = 12;
/// chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod,
/// audit_write, setfcap: what the field gives a container by default.
const DEFAULT: &[u32] = &[0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];

async fn default_capabilities(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "caps-default").await?;
    let text = script(
        &c,
        &pod,
        "caps",
        "grep -E 'CapEff|CapBnd' /proc/self/status | cut -f2",
        |_| {},
    )
    .await?;
    let wanted = capability_bits(DEFAULT);
    expect!(text, format!("{wanted}\n{wanted}"), "effective and bounding set");
    pod.end().await
}

async fn capabilities_added_and_dropped(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "caps").await?;
    let show = "grep CapEff /proc/self/status | cut -f2";
    let added = script(&c, &pod, "added", show, |s| {
        s.capabilities = Some(cri::Capability {
            add_capabilities: vec!["NET_ADMIN".into()],
            ..Default::default()
        });
    })
    .await?;
    let mut wanted = DEFAULT.to_vec();
    wanted.push(NET_ADMIN);
    expect!(added, capability_bits(&wanted), "one more");
    let one = script(&c, &pod, "one", show, |s| {
        s.capabilities = Some(cri::Capability {
            add_capabilities: vec!["CHOWN".into()],
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        });
    })
    .await?;
    expect!(one, capability_bits(&[CHOWN]), "all dropped, one added");
    pod.end().await
}

async fn no_new_privileges(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "nnp").await?;
    let show = "grep NoNewPrivs /proc/self/status | cut -f2";
    expect!(script(&c, &pod, "off", show, |_| {}).await?, "0", "by default");
    expect!(
        script(&c, &pod, "on", show, |s| s.no_new_privs = true).await?,
        "1",
        "when asked for"
    );
    pod.end().await
}

async fn default_seccomp_profile(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "seccomp-default").await?;
    let show = "grep -w Seccomp: /proc/self/status | cut -f2; unshare -U true 2>/dev/null && echo made || echo refused";
    let default = script(&c, &pod, "default", show, |s| {
        s.seccomp = Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::RuntimeDefault.into(),
            ..Default::default()
        });
    })
    .await?;
    expect!(default, "2\nrefused", "RuntimeDefault");
    let unconfined = script(
        &c,
        &pod,
        "unconfined",
        "grep -w Seccomp: /proc/self/status | cut -f2",
        |s| {
            s.seccomp = Some(cri::SecurityProfile {
                profile_type: cri::security_profile::ProfileType::Unconfined.into(),
                ..Default::default()
            });
        },
    )
    .await?;
    expect!(unconfined, "0", "Unconfined");
    pod.end().await
}

async fn localhost_seccomp_profile(c: Arc<Context>) -> anyhow::Result<()> {
    let file = c.scratch.join("no-mkdir.json");
    std::fs::write(
        &file,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_AARCH64"],
        "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":122}]}"#,
    )?;
    let pod = Pod::run(&c, "seccomp-localhost").await?;
    let text = script(
        &c,
        &pod,
        "localhost",
        "mkdir /made 2>&1; ls -d /made 2>/dev/null; true",
        |s| {
            s.seccomp = Some(cri::SecurityProfile {
                profile_type: cri::security_profile::ProfileType::Localhost.into(),
                localhost_ref: file.to_string_lossy().into_owned(),
            });
        },
    )
    .await?;
    ensure!(
        text.to_lowercase().contains("quota") && !text.contains("\n/made"),
        "mkdir under the profile: {text}"
    );
    pod.end().await
}

async fn masked_and_read_only_paths(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "masked").await?;
    let show = "wc -c </proc/keys; ls -A /proc/acpi 2>/dev/null | wc -l; echo x 2>/dev/null >/proc/sys/kernel/hostname || echo refused";
    let image_defaults = script(&c, &pod, "masked", show, |s| {
        s.masked_paths = vec!["/proc/keys".into(), "/proc/acpi".into()];
        s.readonly_paths = vec!["/proc/sys".into()];
    })
    .await?;
    expect!(image_defaults, "0\n0\nrefused", "masked and read-only paths");
    pod.end().await
}

async fn privileged(c: Arc<Context>) -> anyhow::Result<()> {
    let mut config = crate::cri::pod_config("privileged", &c.logs());
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.privileged = true;
    }
    let pod = Pod::run_with(&c, config).await?;
    let show = "mkdir /m && mount -t tmpfs t /m && echo mounted; ls /dev | wc -l; grep -w Seccomp: /proc/self/status | cut -f2";
    let text = script(&c, &pod, "privileged", show, |s| s.privileged = true).await?;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(
        lines.len() == 3 && lines[0] == "mounted" && lines[2] == "0",
        "{text}"
    );
    ensure!(lines[1].parse::<u32>()? > 20, "the host's devices: {}", lines[1]);
    pod.end().await
}

async fn devices(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "devices").await?;
    let show = "head -c 4 /dev/zero | wc -c; mknod /tmp/mem c 1 1 2>/dev/null && head -c 1 /tmp/mem 2>/dev/null | wc -c; \
        ls /dev/chosen; for d in null zero full random urandom tty ptmx pts shm mqueue fd stdin stdout stderr; do [ -e /dev/$d ] || echo no $d; done";
    let mut config = container_config("devices", &image, &["/bin/sh", "-c", show]);
    config.devices = vec![cri::Device {
        container_path: "/dev/chosen".into(),
        host_path: "/dev/null".into(),
        permissions: "rw".into(),
    }];
    let text = pod.once(&c, &config).await?.text;
    expect!(
        text,
        "4\n0\n/dev/chosen\n",
        "devices that are there, and one that is refused"
    );
    pod.end().await
}

async fn nothing_of_the_runtime_leaks_in(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "leak").await?;
    // The shell, which is process 1, closes its own ends of the pipe before anybody looks.
    let text = script(&c, &pod, "leak", "{ sleep 0.5; ls -l /proc/1/fd 2>/dev/null; } | grep -c -v -E 'total|pipe:|/dev/null|/proc'; env | sort | cut -d= -f1 | tr '\\n' ' '; \
        grep -c overlay /proc/mounts", |_| {}).await?;
    let lines: Vec<&str> = text.lines().collect();
    expect!(lines[0], "0", "descriptors beside the standard ones");
    for name in lines[1]
        .split_whitespace()
        .take_while(|n| n.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    {
        ensure!(
            ["HOME", "HOSTNAME", "PATH", "PWD", "SHLVL", "OLDPWD"].contains(&name),
            "environment variable {name}"
        );
    }
    pod.end().await
}

async fn symlinked_mount_destination(c: Arc<Context>) -> anyhow::Result<()> {
    // `alias` is a link in the image: a mount below it must land inside the container's root.
    let image = c.cri.pull(c.image("layered")).await?;
    let dir = c.scratch.join("link-target");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("mark"), "mark\n")?;
    let pod = Pod::run(&c, "link").await?;
    let mut config = container_config("link", &image, &["/bin/cat", "/real/sub/mark"]);
    config.mounts = vec![cri::Mount {
        container_path: "/other-alias/sub".into(),
        host_path: dir.to_string_lossy().into_owned(),
        ..Default::default()
    }];
    expect!(
        pod.once(&c, &config).await?.text,
        "mark\n",
        "the mount below a link of the image"
    );
    ensure!(
        !std::path::Path::new("/real/sub").exists(),
        "the mount point was made on the host"
    );
    pod.end().await
}
