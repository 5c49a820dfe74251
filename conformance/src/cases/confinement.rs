//! AppArmor and SELinux: what containers get where the kernel has them, and what is said where it has not.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;
use tonic::Code;

use super::{Pod, cases};
use crate::Context;
use crate::cri::{container_config, must_fail};
use crate::expect;

cases!["confinement";
    apparmor_by_default,
    apparmor_by_name,
    selinux_labels => "the peer leaves SELinux out unless it is configured to use it, whatever is asked for",
];

const REFUSED: &[Code] = &[
    Code::InvalidArgument,
    Code::FailedPrecondition,
    Code::Unimplemented,
    Code::NotFound,
    Code::Unknown,
];

fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

type Edit<'a> = &'a dyn Fn(&mut cri::LinuxContainerSecurityContext);

/// A container that sleeps, with a security context that `edit` has changed.
async fn sleeper(c: &Context, pod: &Pod, name: &str, edit: Edit<'_>) -> anyhow::Result<cri::ContainerConfig> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = container_config(name, &image, &["/bin/sleep", "3600"]);
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        edit(security);
    }
    ensure!(!pod.id.is_empty(), "the pod has no id");
    Ok(config)
}

fn profile(kind: cri::security_profile::ProfileType, name: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.into(),
    })
}

/// What confines process 1, and what confines an exec beside it.
async fn confined(c: &Context, pod: &Pod, name: &str, edit: Edit<'_>) -> anyhow::Result<[String; 2]> {
    let id = pod.start(&sleeper(c, pod, name, edit).await?).await?;
    let text = c
        .cri
        .shell(&id, "cat /proc/1/attr/current; echo; cat /proc/self/attr/current")
        .await?;
    c.cri.stop(&id, 0).await?;
    c.cri.remove(&id).await?;
    let mut lines = text
        .split('\n')
        .map(|line| line.trim_end_matches('\0').to_owned())
        .filter(|line| !line.is_empty());
    let mut next = || {
        lines
            .next()
            .context("a label for each of two processes is wanted")
    };
    Ok([next()?, next()?])
}

async fn apparmor_by_default(c: Arc<Context>) -> anyhow::Result<()> {
    use cri::security_profile::ProfileType;
    let pod = Pod::run(&c, "apparmor-default").await?;
    let default: Edit<'_> = &|s| s.apparmor = profile(ProfileType::RuntimeDefault, "");
    let nothing: Edit<'_> = &|_| {};
    let unconfined: Edit<'_> = &|s| s.apparmor = profile(ProfileType::Unconfined, "");
    if has_apparmor() {
        for (name, edit) in [("asked", default), ("not-asked", nothing)] {
            let [init, exec] = confined(&c, &pod, name, edit).await?;
            ensure!(init.ends_with(" (enforce)"), "{name}: process 1 is {init:?}");
            expect!(exec, init, "what confines an exec");
        }
        let [init, exec] = confined(&c, &pod, "unconfined", unconfined).await?;
        expect!(
            [init.as_str(), exec.as_str()],
            ["unconfined"; 2],
            "unconfined processes"
        );
    } else {
        let config = sleeper(&c, &pod, "asked", default).await?;
        let words = &["AppArmor"];
        must_fail(c.cri.create(&pod.id, &config, &pod.config).await, REFUSED, words)?;
        let config = sleeper(&c, &pod, "unconfined", unconfined).await?;
        pod.start(&config).await?;
    }
    pod.end().await
}

const PROFILE: &str = "conformance-deny-write";

/// Loads a profile, and takes it away again.
struct Loaded;

impl Loaded {
    fn new() -> anyhow::Result<Self> {
        Self::parse("--replace").map(|()| Self)
    }

    fn parse(how: &str) -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("profile");
        let text = format!(
            "profile {PROFILE} flags=(attach_disconnected) {{\n  file,\n  capability,\n  network,\n  signal,\n  ptrace,\n  umount,\n  deny /tmp/denied w,\n}}\n"
        );
        std::fs::write(&file, text)?;
        let done = Command::new("/usr/sbin/apparmor_parser")
            .args([how, "--skip-cache"])
            .arg(&file)
            .status()?;
        ensure!(done.success(), "apparmor_parser {how}: {done}");
        Ok(())
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Err(error) = Self::parse("--remove") {
            eprintln!("profile {PROFILE} is left: {error:#}");
        }
    }
}

async fn apparmor_by_name(c: Arc<Context>) -> anyhow::Result<()> {
    use cri::security_profile::ProfileType;
    let pod = Pod::run(&c, "apparmor-name").await?;
    let missing: Edit<'_> = &|s| s.apparmor = profile(ProfileType::Localhost, "no-such-profile");
    let config = sleeper(&c, &pod, "missing", missing).await?;
    let created = c.cri.create(&pod.id, &config, &pod.config).await;
    must_fail(created, REFUSED, &["AppArmor", "no-such-profile"])?;
    if has_apparmor() {
        let loaded = Loaded::new()?;
        let named: Edit<'_> = &|s| s.apparmor = profile(ProfileType::Localhost, PROFILE);
        let id = pod.start(&sleeper(&c, &pod, "named", named).await?).await?;
        let text = c
            .cri
            .shell(&id, "cat /proc/1/attr/current; : >/tmp/fine && echo fine; (: >/tmp/denied) 2>/dev/null || echo denied")
            .await?;
        expect!(
            text,
            format!("{PROFILE} (enforce)\nfine\ndenied"),
            "what the profile allows"
        );
        c.cri.stop(&id, 0).await?;
        c.cri.remove(&id).await?;
        drop(loaded);
    }
    pod.end().await
}

async fn selinux_labels(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "selinux").await?;
    let level: Edit<'_> = &|s| {
        s.selinux_options = Some(cri::SeLinuxOption {
            level: "s0:c7,c9".into(),
            ..Default::default()
        });
    };
    if has_selinux() {
        let [init, exec] = confined(&c, &pod, "own", &|_| {}).await?;
        ensure!(init.contains(":container_t:s0:c"), "process 1 is {init:?}");
        expect!(exec, init, "the label of an exec");
        let [asked, _] = confined(&c, &pod, "asked", level).await?;
        ensure!(asked.ends_with(":container_t:s0:c7,c9"), "process 1 is {asked:?}");
        let other = Pod::run(&c, "selinux-other").await?;
        let [theirs, _] = confined(&c, &other, "own", &|_| {}).await?;
        ensure!(theirs != init, "two pods share the label {init}");
        other.end().await?;
    } else {
        let config = sleeper(&c, &pod, "asked", level).await?;
        let created = c.cri.create(&pod.id, &config, &pod.config).await;
        must_fail(created, REFUSED, &["SELinux"])?;
    }
    pod.end().await
}
