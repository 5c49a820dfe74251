//! From holdfast's spec to one that other runtimes understand: what is the launcher's own word in it becomes a path.

use holdfast_sys::process::Limit;
use oci_spec::runtime::{PosixRlimit, Process, Spec};
use serde_json::{Value, json};

use crate::bundle::{ROOT, SHM};
use crate::creds::Credentials;
use crate::fault::{Fault, Result};
use crate::limits::{Limits, set_oom_score};
use crate::mounts::{Entry, Kind, Layers};
use crate::namespaces::of_target;
use crate::plan::{CgroupDriver, ContainerPlan};
use crate::procfs::Procfs;

/// What every release of the runtimes in use understands.
pub(crate) const OCI_VERSION: &str = "1.0.2";

/// A spec in the making, and the overlays that must lie in the bundle for it.
pub(super) struct Translated {
    pub spec: Value,
    /// Directory of the bundle, and what is to be mounted there.
    pub overlays: Vec<(String, Layers)>,
    /// The pod's own /dev/shm is wanted in the bundle.
    pub shm: bool,
}

pub(super) fn translate(plan: &ContainerPlan<'_>, bundle: &std::path::Path, tty: bool) -> Result<Translated> {
    let unreadable = |e| Fault::invalid(format!("the spec of {} is unreadable: {e}", plan.name));
    let typed: Spec = serde_json::from_slice(plan.spec).map_err(unreadable)?;
    if plan.namespaces.user.is_some() {
        return Err(Fault::unsupported(format!(
            "{} is in a pod with a user namespace, which external runtime handlers do not have",
            plan.name
        )));
    }
    let entries = Entry::parse_all(typed.mounts().as_deref().unwrap_or_default())?;
    let mut spec = outline(plan, bundle, tty)?;
    let (mut overlays, mut shm) = (Vec::new(), false);
    let listed = spec["mounts"].as_array_mut().into_iter().flatten();
    for (n, (mount, entry)) in listed.zip(entries).enumerate() {
        match entry.kind {
            Kind::PodShm if plan.namespaces.ipc.is_some() => {
                shm = true;
                mount["source"] = bundle.join(SHM).to_string_lossy().into();
            }
            Kind::PodShm => mount["source"] = "/dev/shm".into(),
            Kind::Overlay(layers) => {
                let name = format!("overlay{n}");
                bind(mount, bundle.join(&name).to_string_lossy().into());
                overlays.push((name, layers));
            }
            _ => {}
        }
    }
    Ok(Translated { spec, overlays, shm })
}

/// The spec but for its mounts: with the root, the cgroup and the namespaces as others find them.
pub(crate) fn outline(plan: &ContainerPlan<'_>, bundle: &std::path::Path, tty: bool) -> Result<Value> {
    let mut spec: Value = serde_json::from_slice(plan.spec)
        .map_err(|e| Fault::invalid(format!("the spec of {} is unreadable: {e}", plan.name)))?;
    spec["ociVersion"] = OCI_VERSION.into();
    let readonly = spec["root"]["readonly"].as_bool().unwrap_or(false);
    spec["root"] = json!({"path": bundle.join(ROOT), "readonly": readonly});
    spec["process"]["terminal"] = tty.into();
    spec["linux"]["cgroupsPath"] = plan.cgroup.path.clone().into();
    if spec["linux"]["namespaces"].is_array() {
        namespaces(&mut spec["linux"]["namespaces"], plan)?;
    }
    Ok(spec)
}

/// An overlay is made by us and bound by the runtime: its own options go, those of a mount stay.
fn bind(mount: &mut Value, source: Value) {
    mount["type"] = "bind".into();
    mount["source"] = source;
    if let Some(options) = mount["options"].as_array_mut() {
        let of_mount = |option: &Value| {
            let one = [option.as_str().unwrap_or_default().to_owned()];
            let parsed = crate::options::Options::parse(&one);
            parsed.data.is_empty()
        };
        options.retain(of_mount);
        options.push("bind".into());
    }
}

fn namespaces(list: &mut Value, plan: &ContainerPlan<'_>) -> Result<()> {
    let pod = plan.namespaces;
    let mut kept = Vec::new();
    for mut namespace in std::mem::take(list).as_array().cloned().unwrap_or_default() {
        let kind = namespace["type"].as_str().unwrap_or_default().to_owned();
        let (file, held) = match kind.as_str() {
            "network" => ("net", pod.net.as_ref()),
            "ipc" => ("ipc", pod.ipc.as_ref()),
            "uts" => ("uts", pod.uts.as_ref()),
            "pid" => ("pid", pod.pid.as_ref()),
            other => (other, None),
        };
        match namespace["path"].as_str() {
            Some("pod:") => {
                // The pod has the host's.
                let Some(held) = held else {
                    continue;
                };
                same_as_held(plan, file, held)?;
                namespace["path"] = format!("/proc/{}/ns/{file}", plan.pause_pid).into();
            }
            Some(path) => {
                if let Some(pid) = path.strip_prefix("pid:") {
                    let (pid, _there) = of_target(pid, file, plan.targets)?;
                    namespace["path"] = format!("/proc/{pid}/ns/{file}").into();
                }
            }
            None => {}
        }
        kept.push(namespace);
    }
    *list = Value::Array(kept);
    Ok(())
}

/// Pause may be gone and its number given out again: the path must lead to what we hold.
fn same_as_held(plan: &ContainerPlan<'_>, file: &str, held: &std::os::fd::OwnedFd) -> Result<()> {
    let gone = |_| {
        let text = format!("the sandbox of {} has ended", plan.name);
        Fault::new(crate::Kind::Precondition, text)
    };
    let named = Procfs::shared()?.namespace(plan.pause_pid, file).map_err(gone)?;
    match holdfast_sys::namespace::same(&named, held) {
        Ok(true) => Ok(()),
        _ => Err(gone(std::io::Error::other("another"))),
    }
}

/// Cuts a process's wishes to what this process may grant, as the built-in launcher does, or refuses them.
pub(super) fn clamp(process: &mut Value, clamp: bool, warnings: &mut Vec<String>) -> Result<()> {
    let typed: Process = serde_json::from_value(process.clone())
        .map_err(|e| Fault::invalid(format!("the process is unreadable: {e}")))?;
    let credentials = Credentials::new(&typed, clamp, warnings)?;
    process["capabilities"] = credentials.caps.to_spec();
    let rlimits = typed.rlimits().clone().unwrap_or_default();
    let mut limits = Limits::new(&rlimits)?;
    limits.raise(clamp, warnings)?;
    let listed: Vec<Value> = rlimits
        .iter()
        .map(|one| rlimit(one, limits.of(one.typ())))
        .collect();
    process["rlimits"] = Value::Array(listed);
    if let Some(score) = typed.oom_score_adj() {
        let proc = Procfs::shared()?;
        // Inherited by the runtime, which sets it once more: it must ask for what is granted.
        set_oom_score(score, clamp, proc, warnings)?;
        let now = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        let now: i32 = now.trim().parse().unwrap_or(score);
        process["oomScoreAdj"] = now.into();
    }
    Ok(())
}

fn rlimit(one: &PosixRlimit, granted: Option<Limit>) -> Value {
    let granted = granted.unwrap_or(Limit {
        soft: one.soft(),
        hard: one.hard(),
    });
    json!({"type": one.typ(), "soft": granted.soft, "hard": granted.hard})
}

/// Whether the runtime must make the cgroup by way of systemd.
pub(super) fn by_systemd(plan: &ContainerPlan<'_>) -> bool {
    plan.cgroup.driver == CgroupDriver::Systemd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_becomes_a_bind() {
        let mut mount = json!({"type": "overlay", "source": "overlay", "destination": "/d",
            "options": ["rprivate", "ro", "lowerdir=/a:/b", "volatile", "noexec"]});
        bind(&mut mount, "/bundle/overlay1".into());
        assert_eq!(
            mount,
            json!({"type": "bind", "source": "/bundle/overlay1", "destination": "/d",
                "options": ["rprivate", "ro", "noexec", "bind"]})
        );
    }

    #[test]
    fn a_process_is_cut_to_what_we_hold() {
        let mut process = json!({"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}]});
        let mut warnings = Vec::new();
        clamp(&mut process, true, &mut warnings).unwrap();
        assert_eq!(
            process["rlimits"][0],
            json!({"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20})
        );
        let caps = &process["capabilities"];
        // Root holds it; an ordinary user's test run does not.
        let held = rustix::process::geteuid().is_root();
        assert_eq!(caps["bounding"].as_array().map(Vec::len), Some(usize::from(held)));
        assert_eq!(caps["ambient"], json!([]));
    }
}
