//! From keys to the `Config` of each crate. Every refusal names the key, the value and where it stands.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow};
use holdfast_engine::{CgroupDriver, Rlimit};
use holdfast_network::Subnet;
use holdfast_streaming::TlsFiles;

use super::handlers;
use super::load::Origins;
use super::raw::{self, Raw};
use crate::units::{bytes, duration};

const ROOT: &str = "/var/lib/holdfast";
const STATE: &str = "/run/holdfast";
const INSTALLED_HELPERS: &str = "/usr/libexec/holdfast";

/// What the command line says goes before the files.
#[derive(Debug, Default)]
pub struct Overrides {
    pub root: Option<PathBuf>,
    pub state: Option<PathBuf>,
    pub listen: Option<PathBuf>,
}

/// Everything that the server needs to know, checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub root: PathBuf,
    pub state: PathBuf,
    pub listen: PathBuf,
    pub log: String,
    pub workers: usize,
    pub drain: Duration,
    pub streaming: holdfast_streaming::Config,
    pub engine: holdfast_engine::Config,
    pub images: holdfast_images::Config,
    pub registry: holdfast_registry::Config,
    pub network: holdfast_network::Config,
}

impl Config {
    pub fn new(raw: Raw, origins: &Origins, overrides: Overrides) -> Result<Self> {
        let check = Check { origins };
        let root = check.absolute("root", overrides.root.or(raw.root).unwrap_or_else(|| ROOT.into()))?;
        let state = check.absolute(
            "state",
            overrides.state.or(raw.state).unwrap_or_else(|| STATE.into()),
        )?;
        if root == state || root.starts_with(&state) || state.starts_with(&root) {
            return Err(check.bad("state", state.display(), "root and state must lie apart"));
        }
        let listen = overrides.listen.or(raw.listen);
        let listen = check.absolute("listen", listen.unwrap_or_else(|| state.join("holdfast.sock")))?;
        let helpers = match raw.helpers {
            Some(path) => check.absolute("helpers", path)?,
            None => helpers(),
        };
        Ok(Self {
            log: raw.log.level.unwrap_or_else(|| "info".to_owned()),
            workers: check
                .range("server.workers", raw.server.workers, 1..=64)?
                .unwrap_or(2),
            drain: check
                .parsed("server.drain", raw.server.drain, duration)?
                .unwrap_or(Duration::from_secs(10)),
            streaming: check.streaming(raw.streaming)?,
            engine: check.security(
                raw.security,
                check.engine((raw.pods, raw.handlers), &root, &state, helpers)?,
            )?,
            images: check.images(raw.images)?,
            registry: check.registry(raw.registry)?,
            network: check.network(raw.network, &root, &state)?,
            root,
            state,
            listen,
        })
    }
}

/// In a build tree the helpers lie beside this program.
fn helpers() -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_owned))
        .filter(|dir| dir.join("holdfast-monitor").is_file());
    beside.unwrap_or_else(|| INSTALLED_HELPERS.into())
}

/// What is in our cgroups and on no record is removed at the start, so a second daemon beside the node's (a test, a
/// demonstration) must have cgroups of its own. The node's has the plain names.
fn own_suffix(root: &Path) -> String {
    if root == Path::new(ROOT) {
        return String::new();
    }
    // FNV-1a: the same for the same root in every release.
    let hash = root
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
    format!("-{hash:08x}")
}

pub(super) struct Check<'a> {
    origins: &'a Origins,
}

#[allow(clippy::needless_pass_by_value, reason = "raw values end here")]
impl Check<'_> {
    pub(super) fn bad(&self, key: &str, value: impl Display, reason: impl Display) -> anyhow::Error {
        anyhow!("{}: {key} = {value}: {reason}", self.origins.of(key))
    }

    pub(super) fn absolute(&self, key: &str, path: PathBuf) -> Result<PathBuf> {
        let plain = path
            .components()
            .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        if !path.is_absolute() || !plain || path == Path::new("/") {
            return Err(self.bad(key, path.display(), "an absolute path without `..` is wanted"));
        }
        Ok(path.components().collect())
    }

    fn parsed<T>(
        &self,
        key: &str,
        text: Option<String>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>> {
        text.map(|text| parse(&text).map_err(|reason| self.bad(key, format!("{text:?}"), reason)))
            .transpose()
    }

    fn range(
        &self,
        key: &str,
        value: Option<usize>,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<usize>> {
        match value {
            Some(value) if !range.contains(&value) => Err(self.bad(
                key,
                value,
                format_args!("{} to {} are possible", range.start(), range.end()),
            )),
            value => Ok(value),
        }
    }

    fn cgroup(&self, key: &str, path: String) -> Result<String> {
        let good = path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/')
                .all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains(['\0', '\n']))
        });
        if good && !path.ends_with(".slice") && !path.ends_with(".scope") {
            Ok(path)
        } else {
            Err(self.bad(key, format!("{path:?}"), "a path such as /holdfast is wanted"))
        }
    }

    /// The path of a slice.
    fn slice(&self, key: &str, name: &str) -> Result<String> {
        match holdfast_cgroups::slice_of_parent(name) {
            Ok((_, path)) if !path.is_empty() => Ok(path),
            _ => Err(self.bad(
                key,
                format!("{name:?}"),
                "with cgroup_driver = \"systemd\" a slice such as holdfast.slice is wanted",
            )),
        }
    }

    /// The path of a scope in a slice.
    fn scope(&self, key: &str, text: &str) -> Result<String> {
        let parts = text.rsplit_once('/').and_then(|(slice, unit)| {
            let stem = unit.strip_suffix(".scope")?;
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            let (_, path) = holdfast_cgroups::slice_of_parent(slice).ok()?;
            (!stem.is_empty() && unit.len() <= 255 && stem.bytes().all(plain))
                .then(|| format!("{path}/{unit}"))
        });
        parts.ok_or_else(|| {
            let wanted = "with cgroup_driver = \"systemd\" a scope in a slice such as \
                          system.slice/holdfast-monitors.scope is wanted";
            self.bad(key, format!("{text:?}"), wanted)
        })
    }

    fn engine(
        &self,
        (raw, external): (raw::Pods, BTreeMap<String, raw::Handler>),
        root: &Path,
        state: &Path,
        helpers: PathBuf,
    ) -> Result<holdfast_engine::Config> {
        let mut config = holdfast_engine::Config::new(root, state, helpers);
        let suffix = own_suffix(root);
        let by_systemd = match raw.cgroup_driver.as_deref() {
            None | Some("cgroupfs") => false,
            Some("systemd") => true,
            Some(word) => {
                return Err(self.bad(
                    "pods.cgroup_driver",
                    format!("{word:?}"),
                    "\"cgroupfs\" or \"systemd\" is wanted",
                ));
            }
        };
        if by_systemd {
            config.cgroup_driver = CgroupDriver::Systemd;
            // A dash in a slice's name is a level of the tree.
            config.default_cgroup = format!("/holdfast{}.slice", suffix.replace('-', "_"));
            config.monitor_cgroup = format!("/system.slice/holdfast-monitors{suffix}.scope");
        } else {
            config.default_cgroup.push_str(&suffix);
            config.monitor_cgroup.push_str(&suffix);
        }
        if let Some(path) = raw.cgroup {
            config.default_cgroup = match by_systemd {
                true => self.slice("pods.cgroup", &path)?,
                false => self.cgroup("pods.cgroup", path)?,
            };
        }
        if let Some(path) = raw.monitor_cgroup {
            config.monitor_cgroup = match by_systemd {
                true => self.scope("pods.monitor_cgroup", &path)?,
                false => self.cgroup("pods.monitor_cgroup", path)?,
            };
        }
        if let Some(word) = raw.restrict_oom_score_adj {
            config.clamp_privileges = match word.as_str() {
                "auto" => true,
                "never" => false,
                _ => {
                    return Err(self.bad(
                        "pods.restrict_oom_score_adj",
                        format!("{word:?}"),
                        "\"auto\" or \"never\" is wanted",
                    ));
                }
            };
        }
        if let Some(size) = self.parsed("pods.shm_size", raw.shm_size, bytes)? {
            if size == 0 {
                return Err(self.bad("pods.shm_size", size, "it must not be nothing"));
            }
            config.shm_size = size;
        }
        if let Some(path) = raw.resolv_conf {
            config.host_resolv_conf = self.absolute("pods.resolv_conf", path)?;
        }
        if let Some(names) = raw.handlers {
            config.handlers = handlers::built_in(self, names)?;
        }
        if let Some(dirs) = raw.cdi_spec_dirs {
            let dirs = dirs
                .into_iter()
                .map(|dir| self.absolute("pods.cdi_spec_dirs", dir));
            config.cdi_dirs = dirs.collect::<Result<_>>()?;
        }
        let external = handlers::external(self, external, (state, &config.handlers))?;
        config.handlers.extend(external);
        config.rlimits = raw
            .rlimits
            .into_iter()
            .map(|limit| self.rlimit(limit))
            .collect::<Result<_>>()?;
        Ok(config)
    }

    fn security(
        &self,
        raw: raw::Security,
        mut config: holdfast_engine::Config,
    ) -> Result<holdfast_engine::Config> {
        let switch = |text: &str| match text {
            "auto" => Ok(true),
            "off" => Ok(false),
            _ => Err("\"auto\" or \"off\" is wanted".to_owned()),
        };
        config.apparmor = self
            .parsed("security.apparmor", raw.apparmor, switch)?
            .unwrap_or(true);
        config.selinux = self
            .parsed("security.selinux", raw.selinux, switch)?
            .unwrap_or(true);
        Ok(config)
    }

    fn rlimit(&self, raw: raw::Rlimit) -> Result<Rlimit> {
        const KNOWN: [&str; 16] = [
            "AS",
            "CORE",
            "CPU",
            "DATA",
            "FSIZE",
            "LOCKS",
            "MEMLOCK",
            "MSGQUEUE",
            "NICE",
            "NOFILE",
            "NPROC",
            "RSS",
            "RTPRIO",
            "RTTIME",
            "SIGPENDING",
            "STACK",
        ];
        let upper = raw.name.to_ascii_uppercase();
        let short = upper.strip_prefix("RLIMIT_").unwrap_or(&upper);
        if !KNOWN.contains(&short) {
            return Err(self.bad(
                "pods.rlimits",
                format!("{:?}", raw.name),
                "a name such as RLIMIT_NOFILE is wanted",
            ));
        }
        if raw.soft > raw.hard {
            return Err(self.bad("pods.rlimits", raw.soft, "the soft limit is above the hard one"));
        }
        Ok(Rlimit {
            kind: format!("RLIMIT_{short}"),
            soft: raw.soft,
            hard: raw.hard,
        })
    }

    fn streaming(&self, raw: raw::Streaming) -> Result<holdfast_streaming::Config> {
        let mut config = holdfast_streaming::Config::default();
        let address = |text: &str| text.parse().map_err(|_| "an IP address is wanted".to_owned());
        if let Some(address) = self.parsed("streaming.address", raw.address, address)? {
            config.address = address;
        }
        config.port = raw.port.unwrap_or(config.port);
        config.tls = match (raw.tls_cert, raw.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles {
                cert: self.absolute("streaming.tls_cert", cert)?,
                key: self.absolute("streaming.tls_key", key)?,
            }),
            (None, None) => None,
            (Some(cert), None) => {
                return Err(self.bad("streaming.tls_cert", cert.display(), "tls_key is missing"));
            }
            (None, Some(key)) => {
                return Err(self.bad("streaming.tls_key", key.display(), "tls_cert is missing"));
            }
        };
        if let Some(limit) = self.parsed("streaming.idle_timeout", raw.idle_timeout, duration)? {
            if limit < Duration::from_secs(1) {
                return Err(self.bad(
                    "streaming.idle_timeout",
                    format!("{limit:?}"),
                    "at least 1s is wanted",
                ));
            }
            config.idle_timeout = limit;
        }
        Ok(config)
    }

    fn images(&self, raw: raw::Images) -> Result<holdfast_images::Config> {
        let mut config = holdfast_images::Config::default();
        if let Some(count) = self.range("images.parallel_layers", raw.parallel_layers, 1..=32)? {
            config.parallel_layers = count;
        }
        if let Some(window) = self.parsed("images.retry_window", raw.retry_window, duration)? {
            config.retry_window = window;
        }
        if let Some(size) = self.parsed("images.max_layer_size", raw.max_layer_size, bytes)? {
            config.limits.layer_bytes = size;
        }
        if let Some(size) = self.parsed("images.reserve", raw.reserve, bytes)? {
            config.limits.reserve_bytes = size;
        }
        config.pinned = raw.pinned.unwrap_or_default();
        Ok(config)
    }

    fn registry(&self, raw: raw::Registry) -> Result<holdfast_registry::Config> {
        let mut config = holdfast_registry::Config::default();
        if let Some(dirs) = raw.certs_d {
            config.certs_d = dirs
                .into_iter()
                .map(|dir| self.absolute("registry.certs_d", dir))
                .collect::<Result<_>>()?;
        }
        Ok(config)
    }

    fn network(&self, raw: raw::Network, root: &Path, state: &Path) -> Result<holdfast_network::Config> {
        let mut config = holdfast_network::Config::new(root.join("network"), state);
        if let Some(dir) = raw.cni_conf_dir {
            config.cni_conf_dir = self.absolute("network.cni_conf_dir", dir)?;
        }
        if let Some(file) = raw.cni_conf_template {
            config.cni_conf_template = Some(self.absolute("network.cni_conf_template", file)?);
        }
        if let Some(dirs) = raw.cni_bin_dirs {
            config.cni_bin_dirs = dirs
                .into_iter()
                .map(|dir| self.absolute("network.cni_bin_dirs", dir))
                .collect::<Result<_>>()?;
        }
        if let Some(limit) = self.parsed("network.cni_timeout", raw.cni_timeout, duration)? {
            config.cni_timeout = limit;
        }
        let bridge = &mut config.bridge;
        if let Some(name) = raw.bridge.name {
            bridge.name = name;
        }
        bridge.mtu = raw.bridge.mtu;
        bridge.ipv4 = self.subnet("network.bridge.ipv4", raw.bridge.ipv4, bridge.ipv4)?;
        bridge.ipv6 = self.subnet("network.bridge.ipv6", raw.bridge.ipv6, bridge.ipv6)?;
        Ok(config)
    }

    fn subnet(&self, key: &str, text: Option<String>, default: Option<Subnet>) -> Result<Option<Subnet>> {
        match text.as_deref() {
            None => Ok(default),
            Some("") => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|e: holdfast_network::Error| self.bad(key, format!("{text:?}"), e)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;

    fn config(text: &str) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        let (raw, origins) = crate::config::load(Some(&path))?;
        Config::new(raw, &origins, Overrides::default())
    }

    fn refused(text: &str) -> String {
        let error = format!("{:#}", config(text).unwrap_err());
        error
            .rsplit_once("config.toml:")
            .map_or(error.clone(), |(_, rest)| rest.to_owned())
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = config("").unwrap();
        assert_eq!(config.listen, Path::new("/run/holdfast/holdfast.sock"));
        assert_eq!(config.root, Path::new("/var/lib/holdfast"));
        assert_eq!(config.workers, 2);
        assert_eq!(config.engine.default_cgroup, "/holdfast");
        assert_eq!(config.network.root, Path::new("/var/lib/holdfast/network"));
    }

    #[test]
    fn every_section_arrives() {
        let config = config(
            "state = \"/run/x/\"\n[pods]\nshm_size = \"1Mi\"\nhandlers = [\"holdfast\", \"other\"]\n\
             rlimits = [{ name = \"nofile\", soft = 1, hard = 2 }]\n[images]\nparallel_layers = 7\n\
             [registry]\ncerts_d = [\"/certs\"]\n[network.bridge]\nipv4 = \"\"\nipv6 = \"fd00::/64\"\n",
        )
        .unwrap();
        assert_eq!(config.listen, Path::new("/run/x/holdfast.sock"));
        assert_eq!(config.engine.shm_size, 1 << 20);
        assert_eq!(config.engine.handlers.len(), 3);
        assert_eq!(config.engine.rlimits[0].kind, "RLIMIT_NOFILE");
        assert_eq!(config.images.parallel_layers, 7);
        assert_eq!(config.registry.certs_d, [Path::new("/certs")]);
        assert_eq!(config.network.bridge.ipv4, None);
    }

    #[test]
    fn systemd_has_slices_and_a_scope() {
        let of = |text: &str| {
            let config = config(&format!("[pods]\ncgroup_driver = \"systemd\"\n{text}"));
            config.unwrap().engine
        };
        let default = of("");
        assert_eq!(default.cgroup_driver, CgroupDriver::Systemd);
        assert_eq!(default.default_cgroup, "/holdfast.slice");
        assert_eq!(default.monitor_cgroup, "/system.slice/holdfast-monitors.scope");
        let own = of("cgroup = \"a-b.slice\"\nmonitor_cgroup = \"a-c.slice/m.scope\"");
        assert_eq!(own.default_cgroup, "/a.slice/a-b.slice");
        assert_eq!(own.monitor_cgroup, "/a.slice/a-c.slice/m.scope");
    }

    #[test]
    fn handlers_with_a_program() {
        let dir = tempfile::tempdir().unwrap();
        let hooks = dir.path().join("hooks.json");
        std::fs::write(&hooks, r#"{"poststop":[{"path":"/bin/true"}]}"#).unwrap();
        let text = format!(
            "state = \"/run/x\"\n[handlers.crun]\npath = \"/usr/bin/crun\"\n[handlers.runc]\n\
             path = \"/usr/sbin/runc\"\nroot = \"/run/runc-of-holdfast\"\noptions = [\"--debug\"]\nhooks = \"{}\"\n",
            hooks.display()
        );
        let handlers = config(&text).unwrap().engine.handlers;
        let names: Vec<&str> = handlers.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["", "holdfast", "crun", "runc"]);
        let runtime = |n: usize| handlers[n].runtime.clone().unwrap();
        assert_eq!(runtime(2).root, Path::new("/run/x/handlers/crun"));
        assert_eq!(runtime(3).root, Path::new("/run/runc-of-holdfast"));
        assert_eq!(runtime(3).options, ["--debug"]);
        assert!(runtime(3).hooks.unwrap().poststop().is_some());
        assert!(handlers[1].runtime.is_none());
    }

    #[test]
    fn another_root_has_cgroups_of_its_own() {
        let of = |root: &str| config(&format!("root = \"{root}\"")).unwrap().engine;
        assert_eq!(of("/a").default_cgroup, of("/a").default_cgroup);
        assert_ne!(of("/a").default_cgroup, of("/b").default_cgroup);
        assert!(of("/a").default_cgroup.starts_with("/holdfast-"));
        assert!(of("/a").monitor_cgroup.starts_with("/holdfast-monitors-"));
    }

    #[test]
    fn bad_values_are_named_with_their_place() {
        for (text, wanted) in [
            ("\nroot = \"var\"", "2: root = var: an absolute path"),
            (
                "root = \"/a\"\nstate = \"/a/b\"",
                "2: state = /a/b: root and state",
            ),
            ("[server]\nworkers = 0", "2: server.workers = 0: 1 to 64"),
            ("[server]\ndrain = \"x\"", "2: server.drain = \"x\": a time"),
            ("[pods]\ncgroup = \"x\"", "2: pods.cgroup = \"x\": a path"),
            ("[pods]\ncgroup = \"/a/../b\"", "2: pods.cgroup"),
            ("[pods]\ncgroup = \"/a.slice\"", "2: pods.cgroup"),
            (
                "[pods]\ncgroup_driver = \"cgroup\"",
                "2: pods.cgroup_driver = \"cgroup\": \"cgroupfs\" or",
            ),
            (
                "[pods]\ncgroup_driver = \"systemd\"\ncgroup = \"/pods\"",
                "3: pods.cgroup = \"/pods\": with cgroup_driver",
            ),
            (
                "[pods]\ncgroup_driver = \"systemd\"\nmonitor_cgroup = \"x.scope\"",
                "3: pods.monitor_cgroup",
            ),
            (
                "[pods]\nshm_size = \"lots\"",
                "2: pods.shm_size = \"lots\": a size",
            ),
            (
                "[pods]\nrestrict_oom_score_adj = \"no\"",
                "2: pods.restrict_oom_score_adj",
            ),
            (
                "[security]\napparmor = \"on\"",
                "2: security.apparmor = \"on\": \"auto\" or \"off\"",
            ),
            ("[pods]\nhandlers = [\"A/b\"]", "2: pods.handlers = \"A/b\""),
            ("[handlers.A_b]\npath = \"/r\"", "1: handlers.A_b = \"A_b\""),
            (
                "[handlers.holdfast]\npath = \"/r\"",
                "1: handlers.holdfast = \"holdfast\": is a name",
            ),
            (
                "[handlers.runc]\npath = \"runc\"",
                "2: handlers.runc.path = runc: an absolute",
            ),
            (
                "[handlers.runc]\npath = \"/r\"\nhooks = \"/nowhere/h\"",
                "3: handlers.runc.hooks = /nowhere/h: No such file",
            ),
            (
                "[pods]\nrlimits = [{ name = \"x\", soft = 1, hard = 1 }]",
                "2: pods.rlimits = \"x\"",
            ),
            (
                "[network]\n[network.bridge]\nipv4 = \"10.0.0.0/40\"",
                "3: network.bridge.ipv4",
            ),
        ] {
            let error = refused(text);
            assert!(error.starts_with(wanted), "{error} does not start with {wanted}");
        }
    }
}
