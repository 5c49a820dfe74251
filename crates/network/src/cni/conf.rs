//! CNI network configurations: files to [`NetworkList`], and a list to what each plugin reads on its standard input.
//!
//! Plugins own their part of the file: it is kept as it was written, unknown keys too. Only what the specification
//! gives a meaning for the runtime is read.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use rscni_types::types::{Cmd, NetConfList};
use rscni_types::version::SpecVersion;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Selected;

/// A configuration larger than this is a mistake.
const MAX_FILE: u64 = 1 << 20;
const MAX_PLUGINS: usize = 64;
/// Every version of the specification that a configuration may name.
const VERSIONS: [SpecVersion; 5] = [
    SpecVersion::new(0, 3, 0),
    SpecVersion::new(0, 3, 1),
    SpecVersion::new(0, 4, 0),
    SpecVersion::new(1, 0, 0),
    SpecVersion::new(1, 1, 0),
];

/// A network: plugins that are called one after the other. Serialised into records, so that a pod is taken down by the
/// configuration that it was set up with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetworkList {
    pub name: String,
    pub version: SpecVersion,
    pub disable_check: bool,
    pub disable_gc: bool,
    pub plugins: Vec<Plugin>,
    /// The file it came from.
    pub path: PathBuf,
}

/// One plugin: its executable's name and its part of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plugin {
    pub kind: String,
    pub conf: Map<String, Value>,
}

impl NetworkList {
    /// Whether the specification of the list's version has the operation, and the list does not forbid it.
    pub(crate) fn allows(&self, command: Cmd) -> bool {
        let forbidden = match command {
            Cmd::Check => self.disable_check,
            Cmd::Gc => self.disable_gc,
            _ => false,
        };
        !forbidden && self.version.allows(command).is_ok()
    }
}

impl Plugin {
    /// Standard input of the plugin: its part of the file, completed by the runtime.
    pub(crate) fn input(
        &self,
        list: &NetworkList,
        capabilities: &BTreeMap<String, Value>,
        previous: Option<&Value>,
    ) -> Map<String, Value> {
        let mut conf = self.conf.clone();
        conf.insert("name".into(), json!(list.name));
        conf.insert("cniVersion".into(), json!(list.version));
        let wanted = self.conf.get("capabilities").and_then(Value::as_object);
        let runtime: Map<String, Value> = capabilities
            .iter()
            .filter(|(name, _)| wanted.and_then(|w| w.get(*name)) == Some(&Value::Bool(true)))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !runtime.is_empty() {
            conf.insert("runtimeConfig".into(), Value::Object(runtime));
        }
        if let Some(previous) = previous {
            conf.insert("prevResult".into(), previous.clone());
        }
        conf
    }
}

/// Reads the directory: the first configuration by name is the one, whatever state it is in. Going on to the next one
/// would give pods another network than the one the administrator meant.
pub(crate) fn select(dir: &Path) -> Selected {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Selected::Builtin,
        Err(error) => {
            return Selected::Broken {
                path: dir.into(),
                reason: format!("cannot be listed: {error}"),
            };
        }
    };
    let first = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_conf(path) && path.is_file())
        .min_by(|a, b| a.file_name().cmp(&b.file_name()));
    let Some(path) = first else {
        return Selected::Builtin;
    };
    match load(&path) {
        Ok(list) => Selected::Network(list.into()),
        Err(reason) => Selected::Broken { path, reason },
    }
}

/// Whether text would do as a configuration at `path`.
pub(crate) fn check(text: &str, path: &Path) -> Result<(), String> {
    let value = serde_json::from_str(text).map_err(|e| format!("is not JSON: {e}"))?;
    let (list, extra) = parse(value, path)?;
    if list.plugins.is_empty() && extra.is_none() {
        return Err("has no plugins".into());
    }
    Ok(())
}

/// The configurations of a directory other than `except` that can be used.
pub(crate) fn usable(dir: &Path, except: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let others = paths.filter(|path| is_conf(path) && path.file_name().is_some_and(|name| name != except));
    let mut usable: Vec<PathBuf> = others.filter(|path| load(path).is_ok()).collect();
    usable.sort();
    usable
}

fn is_conf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e == "conf" || e == "conflist" || e == "json")
}

fn read(path: &Path) -> Result<Value, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| format!("cannot be opened: {e}"))?;
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err("is larger than 1 MiB".into());
    }
    serde_json::from_slice(&bytes).map_err(|e| format!("is not JSON: {e}"))
}

fn load(path: &Path) -> Result<NetworkList, String> {
    let mut list = parse(read(path)?, path)?;
    if let Some(extra) = &list.1 {
        let mut paths: Vec<_> = std::fs::read_dir(extra)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "conf"));
        paths.sort();
        for path in paths {
            let plugin = read(&path)
                .and_then(|v| plugin(v, 0))
                .map_err(|e| format!("{}: {e}", path.display()))?;
            list.0.plugins.push(plugin);
        }
    }
    match list.0.plugins.len() {
        0 => Err("has no plugins".into()),
        n if n > MAX_PLUGINS => Err(format!("has {n} plugins, {MAX_PLUGINS} are allowed")),
        _ => Ok(list.0),
    }
}

/// Makes a list of a file's content (a list, or a single plugin), and says where further plugins may lie.
fn parse(value: Value, path: &Path) -> Result<(NetworkList, Option<PathBuf>), String> {
    let Value::Object(mut object) = value else {
        return Err("is not a JSON object".into());
    };
    let (plugins, single) = match object.remove("plugins") {
        Some(Value::Array(plugins)) => (plugins, false),
        Some(_) => return Err("\"plugins\" is not a list".into()),
        None if object.contains_key("type") => (vec![Value::Object(object.clone())], true),
        None => (Vec::new(), false),
    };
    let header: NetConfList = serde_json::from_value(Value::Object(object)).map_err(|e| e.to_string())?;
    let version = header.version().map_err(|e| format!("cniVersion: {e}"))?;
    if !VERSIONS.contains(&version) {
        return Err(format!(
            "cniVersion {version} is not one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"
        ));
    }
    if !valid_name(&header.name) {
        return Err(format!(
            "name {:?} is not made of letters, digits, '_', '.' and '-'",
            header.name
        ));
    }
    let plugins = plugins
        .into_iter()
        .enumerate()
        .map(|(n, v)| plugin(v, n))
        .collect::<Result<_, _>>()?;
    // 1.1: a list may be completed by files in a directory of its name.
    let extra = (!single && !header.load_only_inlined_plugins)
        .then(|| path.parent().map(|dir| dir.join(&header.name)))
        .flatten()
        .filter(|dir| dir.is_dir());
    let list = NetworkList {
        name: header.name,
        version,
        disable_check: header.disable_check,
        disable_gc: header.disable_gc,
        plugins,
        path: path.into(),
    };
    Ok((list, extra))
}

fn plugin(value: Value, nth: usize) -> Result<Plugin, String> {
    let Value::Object(conf) = value else {
        return Err(format!("plugin {nth} is not a JSON object"));
    };
    let kind = conf
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    // It becomes a file name below the plugin directories and nothing else.
    if kind.is_empty() || kind.contains(['/', '\0']) || kind == "." || kind == ".." {
        return Err(format!("type {kind:?} of plugin {nth} is not a file name"));
    }
    Ok(Plugin { kind, conf })
}

fn valid_name(name: &str) -> bool {
    name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.len() <= 255
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<NetworkList, String> {
        let value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        parse(value, Path::new("/nowhere/10-x.conflist")).map(|(list, _)| list)
    }

    #[test]
    fn versions_are_negotiated_and_bad_lists_named() {
        let list = parsed(
            r#"{"cniVersion":"0.4.0","cniVersions":["0.3.1","1.0.0","1.1.0","9.0.0"],"name":"n","disableCheck":"true",
                "plugins":[{"type":"a","x":{"y":1}}]}"#,
        )
        .unwrap();
        assert_eq!(list.version, SpecVersion::new(1, 1, 0));
        assert!(!list.allows(Cmd::Check) && list.allows(Cmd::Gc));
        assert_eq!(
            parsed(r#"{"cniVersion":"0.3.1","name":"n","type":"bridge"}"#)
                .unwrap()
                .plugins[0]
                .kind,
            "bridge"
        );
        for (text, expect) in [
            ("[]", "not a JSON object"),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#, "name"),
            (r#"{"cniVersion":"1.0.0","name":"a/b","plugins":[]}"#, "name"),
            (r#"{"cniVersion":"0.2.0","name":"n","type":"a"}"#, "0.2.0"),
            (r#"{"name":"n","type":"a"}"#, "0.1.0"),
            (r#"{"cniVersion":"2.0.0","name":"n","type":"a"}"#, "2.0.0"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#, "not a list"),
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../x"}]}"#,
                "file name",
            ),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, "type"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        }
    }

    #[test]
    fn a_plugin_gets_the_capabilities_it_declares() {
        let list = parsed(
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[
                {"type":"a","capabilities":{"portMappings":true,"dns":false},"keep":[1]}]}"#,
        )
        .unwrap();
        let all = BTreeMap::from([
            ("portMappings".to_owned(), json!([{"hostPort":1}])),
            ("dns".to_owned(), json!({})),
            ("ips".to_owned(), json!([])),
        ]);
        let input = list.plugins[0].input(&list, &all, Some(&json!({"x":1})));
        assert_eq!(input["runtimeConfig"], json!({"portMappings":[{"hostPort":1}]}));
        assert_eq!(
            (&input["name"], &input["cniVersion"], &input["keep"]),
            (&json!("n"), &json!("1.0.0"), &json!([1]))
        );
        assert_eq!(input["prevResult"], json!({"x":1}));
    }

    #[test]
    fn the_first_file_decides() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert!(matches!(select(dir.path()), Selected::Builtin));
        assert!(matches!(select(&dir.path().join("missing")), Selected::Builtin));
        put("99.txt", "x");
        put("20.conf", r#"{"cniVersion":"1.0.0","name":"second","type":"a"}"#);
        assert!(matches!(select(dir.path()), Selected::Network(l) if l.name == "second"));
        put("10.conflist", "{");
        assert!(matches!(select(dir.path()), Selected::Broken { path, .. } if path.ends_with("10.conflist")));
        put("10.conflist", r#"{"cniVersion":"1.1.0","name":"first"}"#);
        assert!(
            matches!(select(dir.path()), Selected::Broken { reason, .. } if reason.contains("no plugins"))
        );
        std::fs::create_dir(dir.path().join("first")).unwrap();
        put("first/1.conf", r#"{"type":"b"}"#);
        assert!(
            matches!(select(dir.path()), Selected::Network(l) if l.name == "first" && l.plugins[0].kind == "b")
        );
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "\\PC*", name in "[a-z\"{}:,\\[\\]0-9.]{0,60}") {
            let _ = parsed(&text);
            let _ = parsed(&format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{name}]}}"#));
        }
    }
}
