//! `[handlers.NAME]`: OCI runtimes beside the built-in launcher.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use holdfast_engine::{Handler, Hooks, OciHandler};

use super::raw;
use super::validate::Check;

/// Size of a file of hooks.
const HOOKS_LIMIT: u64 = 1 << 20;

/// The default, which has no name, is always there.
pub(super) fn built_in(check: &Check<'_>, names: Vec<String>) -> Result<Vec<Handler>> {
    let mut handlers = vec![Handler::built_in("")];
    for name in names {
        if !is_label(&name) {
            return Err(check.bad(
                "pods.handlers",
                format!("{name:?}"),
                "a name such as `holdfast` is wanted",
            ));
        }
        if !handlers.iter().any(|h| h.name == name) {
            handlers.push(Handler::built_in(name));
        }
    }
    Ok(handlers)
}

/// The name of a RuntimeClass handler is a DNS label.
fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Those with a program. Whether it is there and what it can do is seen when the daemon runs: one that is broken keeps
/// only its own pods from starting.
pub(super) fn external(
    check: &Check<'_>,
    raw: BTreeMap<String, raw::Handler>,
    (state, known): (&Path, &[Handler]),
) -> Result<Vec<Handler>> {
    let mut handlers = Vec::with_capacity(raw.len());
    for (name, raw) in raw {
        let key = |field: &str| format!("handlers.{name}.{field}");
        if !is_label(&name) {
            let reason = "a name such as `runc` is wanted: small letters, digits and `-`";
            return Err(check.bad(&format!("handlers.{name}"), format!("{name:?}"), reason));
        }
        if known.iter().any(|handler| handler.name == name) {
            let reason = "is a name of the built-in launcher (pods.handlers)";
            return Err(check.bad(&format!("handlers.{name}"), format!("{name:?}"), reason));
        }
        let root = raw.root.unwrap_or_else(|| state.join("handlers").join(&name));
        let hooks = match raw.hooks {
            Some(path) => Some(hooks(
                check,
                &key("hooks"),
                &check.absolute(&key("hooks"), path)?,
            )?),
            None => None,
        };
        if let Some(option) = raw.options.iter().find(|option| option.contains('\0')) {
            return Err(check.bad(&key("options"), format!("{option:?}"), "it holds a NUL"));
        }
        handlers.push(Handler {
            runtime: Some(OciHandler {
                program: check.absolute(&key("path"), raw.path)?,
                root: check.absolute(&key("root"), root)?,
                options: raw.options,
                hooks,
            }),
            name,
        });
    }
    Ok(handlers)
}

/// The `hooks` of the OCI runtime specification, as JSON.
fn hooks(check: &Check<'_>, key: &str, path: &Path) -> Result<Hooks> {
    let bad = |reason: String| check.bad(key, path.display(), reason);
    let size = std::fs::metadata(path).map_err(|e| bad(e.to_string()))?.len();
    if size > HOOKS_LIMIT {
        return Err(bad("it is larger than 1 MiB".into()));
    }
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| bad(format!("no hooks of the OCI runtime specification: {e}")))
}
