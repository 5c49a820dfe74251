//! The keys, as they stand in the files. Nothing is checked here but names and types.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// What outlives a reboot. Needs a restart, like all of these unless said otherwise.
    pub root: Option<PathBuf>,
    /// What does not.
    pub state: Option<PathBuf>,
    /// The socket.
    pub listen: Option<PathBuf>,
    /// Directory of `holdfast-monitor` and `holdfast-pause`.
    pub helpers: Option<PathBuf>,
    pub log: Log,
    pub server: Server,
    pub streaming: Streaming,
    pub pods: Pods,
    pub security: Security,
    pub images: Images,
    pub registry: Registry,
    pub network: Network,
    /// Runtime handlers with a program of their own, by name.
    pub handlers: BTreeMap<String, Handler>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,holdfast_network=debug`.
    pub level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Threads that answer calls.
    pub workers: Option<usize>,
    /// How long calls in flight may take when the server is told to stop.
    pub drain: Option<String>,
}

/// Where exec, attach and port-forward are served.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streaming {
    pub address: Option<String>,
    /// 0 for any that is free.
    pub port: Option<u16>,
    /// PEM files; both or none.
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// A connection without any traffic for this long is closed.
    pub idle_timeout: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pods {
    /// `"cgroupfs"` or `"systemd"`.
    pub cgroup_driver: Option<String>,
    /// cgroup of pods that name no parent.
    pub cgroup: Option<String>,
    /// cgroup of the monitors.
    pub monitor_cgroup: Option<String>,
    /// `"auto"`: never ask the kernel for more than holdfast may; `"never"`: ask, and fail.
    pub restrict_oom_score_adj: Option<String>,
    /// Size of a pod's /dev/shm.
    pub shm_size: Option<String>,
    /// Copied into pods that ask for the node's name resolution.
    pub resolv_conf: Option<PathBuf>,
    /// Names under which RuntimeClass can ask for the built-in launcher.
    pub handlers: Option<Vec<String>>,
    /// Directories of CDI specs; a later one goes before an earlier one.
    pub cdi_spec_dirs: Option<Vec<PathBuf>>,
    /// Limits of containers' processes; without any they have the daemon's.
    pub rlimits: Vec<Rlimit>,
}

/// Security modules of the kernel: `"auto"` uses them where the kernel has them, `"off"` is as if it had not.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Security {
    pub apparmor: Option<String>,
    pub selinux: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` or `nofile`.
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}

/// An OCI runtime such as runc or crun.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handler {
    /// The program.
    pub path: PathBuf,
    /// Its state directory, which nobody else uses.
    pub root: Option<PathBuf>,
    /// Options before the command.
    #[serde(default)]
    pub options: Vec<String>,
    /// File with the `hooks` of the OCI runtime specification that every container gets.
    pub hooks: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Layers of one pull that are fetched at a time.
    pub parallel_layers: Option<usize>,
    /// Images that kubelet must not collect.
    pub pinned: Option<Vec<String>>,
    /// Layers of a failed pull are kept this long.
    pub retry_window: Option<String>,
    /// Largest layer, unpacked.
    pub max_layer_size: Option<String>,
    /// Space that pulls leave free.
    pub reserve: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Directories of `<host>/hosts.toml`.
    pub certs_d: Option<Vec<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    pub cni_conf_dir: Option<PathBuf>,
    pub cni_conf_template: Option<PathBuf>,
    pub cni_bin_dirs: Option<Vec<PathBuf>>,
    /// Limit of one plugin call.
    pub cni_timeout: Option<String>,
    pub bridge: Bridge,
}

/// The built-in network, in use while `cni_conf_dir` holds no configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bridge {
    pub name: Option<String>,
    /// Subnet, or `""` for no IPv4.
    pub ipv4: Option<String>,
    /// Subnet, or `""` for no IPv6.
    pub ipv6: Option<String>,
    pub mtu: Option<u32>,
}
