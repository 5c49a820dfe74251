//! The process of a container: arguments, environment, identity, limits.

use holdfast_model::{EnvVar, Invalid, Signal};
use holdfast_streaming::TerminalSize;
use oci_spec::runtime::{BoxBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Spec, User};

use super::capabilities::Granted;
use super::user::Identity;
use super::{Inputs, security};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(crate) fn build(
    inputs: &Inputs<'_>,
    identity: &Identity,
    capabilities: &Granted,
) -> Result<Process, Invalid> {
    let container = inputs.container;
    let mut user = User::default();
    user.set_uid(identity.user.uid);
    user.set_gid(identity.user.gid);
    user.set_additional_gids(Some(identity.user.groups.clone()));

    let mut process = Process::default();
    process.set_terminal(Some(container.tty));
    process.set_user(user);
    process.set_args(Some(args(inputs)?));
    process.set_env(Some(env(inputs, identity)?));
    process.set_cwd(working_dir(inputs)?.into());
    process.set_capabilities(Some(capabilities.oci()));
    process.set_rlimits(rlimits(inputs)?);
    process.set_no_new_privileges(Some(container.security.no_new_privs));
    process.set_apparmor_profile(security::apparmor(inputs)?);
    process.set_selinux_label(security::process_label(inputs)?);
    let score = container.resources.oom_score_adj.clamp(-1000, 1000);
    process.set_oom_score_adj(i32::try_from(score).ok());
    Ok(process)
}

/// `command` replaces the entrypoint and with it the image's cmd; `args` replaces the cmd.
fn args(inputs: &Inputs<'_>) -> Result<Vec<String>, Invalid> {
    let (container, image) = (inputs.container, inputs.image);
    let mut words = if container.command.is_empty() {
        let mut words = image.entrypoint.clone();
        words.extend(if container.args.is_empty() {
            image.cmd.clone()
        } else {
            container.args.clone()
        });
        words
    } else {
        container.command.clone()
    };
    if !container.command.is_empty() {
        words.extend(container.args.iter().cloned());
    }
    if words.first().is_none_or(String::is_empty) {
        return Err(Invalid::new(
            "command",
            "is missing: neither the container nor its image names a program",
        ));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(Invalid::new("command", "contains a NUL byte"));
    }
    Ok(words)
}

fn working_dir(inputs: &Inputs<'_>) -> Result<String, Invalid> {
    let wanted = [&inputs.container.working_dir, &inputs.image.working_dir]
        .into_iter()
        .find(|dir| !dir.is_empty());
    match wanted {
        None => Ok("/".into()),
        Some(dir) if dir.contains('\0') => Err(Invalid::new("working_dir", "contains a NUL byte")),
        Some(dir) if dir.starts_with('/') => Ok(dir.clone()),
        // Images made by hand say `app` and mean `/app`.
        Some(dir) => Ok(format!("/{dir}")),
    }
}

/// Each layer wins over those before it: defaults, the image's, the container's. Order of first appearance is kept.
fn env(inputs: &Inputs<'_>, identity: &Identity) -> Result<Vec<String>, Invalid> {
    let mut merged: Vec<(String, String)> = vec![("PATH".into(), DEFAULT_PATH.into())];
    let mut set = |key: &str, value: String| match merged.iter_mut().find(|(known, _)| known == key) {
        Some(entry) => entry.1 = value,
        None => merged.push((key.to_owned(), value)),
    };
    if inputs.container.tty {
        set("TERM", "xterm".into());
    }
    if !inputs.sandbox.hostname.is_empty() {
        set("HOSTNAME", inputs.sandbox.hostname.clone());
    }
    set("HOME", identity.home.clone());
    for text in &inputs.image.env {
        // Without `=` docker's tools mean "take it from the client", of which there is none here.
        let Some((key, value)) = text.split_once('=') else {
            continue;
        };
        if key.is_empty() || text.contains('\0') {
            return Err(Invalid::new(
                "the image's environment",
                format!("{text:?} is not KEY=value"),
            ));
        }
        if key == "HOME" && value.contains('\n') {
            return Err(Invalid::new("the image's environment", "HOME contains a newline"));
        }
        set(key, value.to_owned());
    }
    for (n, EnvVar { key, value }) in inputs.container.envs.iter().enumerate() {
        let value = String::from_utf8(value.clone()).map_err(|_| {
            Invalid::new(
                format!("envs[{n}].value"),
                format!("({key}) is not UTF-8, which an OCI runtime spec cannot carry"),
            )
        })?;
        set(key, value);
    }
    Ok(merged
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect())
}

fn rlimits(inputs: &Inputs<'_>) -> Result<Option<Vec<PosixRlimit>>, Invalid> {
    if inputs.rlimits.is_empty() {
        return Ok(None);
    }
    let mut limits = Vec::with_capacity(inputs.rlimits.len());
    for limit in inputs.rlimits {
        let kind: PosixRlimitType = serde_json::from_value(serde_json::Value::String(limit.kind.clone()))
            .map_err(|_| Invalid::new("rlimits", format!("{:?} is no resource limit", limit.kind)))?;
        let own = PosixRlimitBuilder::default()
            .typ(kind)
            .soft(limit.soft)
            .hard(limit.hard)
            .build();
        limits.push(own.map_err(|error| Invalid::new("rlimits", error.to_string()))?);
    }
    Ok(Some(limits))
}

pub(crate) fn stop_signal(inputs: &Inputs<'_>) -> Result<Signal, Invalid> {
    if let Some(signal) = inputs.container.stop_signal {
        return Ok(signal);
    }
    match inputs.image.stop_signal.as_str() {
        "" => Ok(Signal::TERM),
        text => {
            Signal::parse(text).map_err(|error| Invalid::new("the image's stop signal", error.to_string()))
        }
    }
}

/// The process of an exec: the container's own with another command.
pub fn exec_process(
    spec: &Spec,
    command: &[String],
    tty: bool,
    size: Option<TerminalSize>,
) -> Result<Process, Invalid> {
    if command.first().is_none_or(String::is_empty) {
        return Err(Invalid::new("cmd", "is missing"));
    }
    if let Some(n) = command.iter().position(|word| word.contains('\0')) {
        return Err(Invalid::new(format!("cmd[{n}]"), "contains a NUL byte"));
    }
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(command.to_vec()));
    process.set_terminal(Some(tty));
    if let Some(TerminalSize { columns, rows }) = size {
        let size = BoxBuilder::default().width(columns).height(rows).build();
        let size = size.map_err(|error| Invalid::new("size", error.to_string()))?;
        process.set_console_size(Some(size));
    }
    if tty
        && let Some(env) = process.env_mut()
        && !env.iter().any(|text| text.starts_with("TERM="))
    {
        env.push("TERM=xterm".into());
    }
    Ok(process)
}
