//! Which of the machine's objects belong to the holdfast under test.

use std::path::{Path, PathBuf};

/// The places and names of one holdfast. Several can be tested on one machine at a time, so nothing is taken for ours
/// by its kind alone.
#[derive(Clone, Debug)]
pub struct Scope {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) cgroups: Vec<String>,
    pub(crate) bridge: Option<String>,
    pub(crate) netns_prefix: String,
    pub(crate) nft_prefix: String,
    pub(crate) daemon: Option<i32>,
}

impl Scope {
    /// `root` as in `--root`, `state` as in `--state`.
    #[must_use]
    pub fn new(root: impl AsRef<Path>, state: impl AsRef<Path>) -> Self {
        // Links in /proc are without symbolic links.
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Self {
            root: real(root.as_ref()),
            state: real(state.as_ref()),
            cgroups: Vec::new(),
            bridge: None,
            netns_prefix: "holdfast-".into(),
            nft_prefix: "holdfast".into(),
            daemon: None,
        }
    }

    /// A cgroup, from the root of the hierarchy, below which everything is ours. May be given more than once.
    #[must_use]
    pub fn cgroup(mut self, path: &str) -> Self {
        self.cgroups.push(path.trim_end_matches('/').to_owned());
        self
    }

    /// The built-in network's bridge: its ports are ours.
    #[must_use]
    pub fn bridge(mut self, name: &str) -> Self {
        self.bridge = Some(name.to_owned());
        self
    }

    /// Files in /run/netns that begin so are ours; `holdfast-` unless said otherwise.
    #[must_use]
    pub fn netns_prefix(mut self, prefix: &str) -> Self {
        self.netns_prefix = prefix.to_owned();
        self
    }

    /// nftables tables whose names begin so are ours; `holdfast` unless said otherwise.
    #[must_use]
    pub fn nft_prefix(mut self, prefix: &str) -> Self {
        self.nft_prefix = prefix.to_owned();
        self
    }

    /// The daemon: its descriptors are counted, and its mount and network namespaces are the ones that are looked at
    /// (else the caller's).
    #[must_use]
    pub fn daemon(mut self, pid: i32) -> Self {
        self.daemon = Some(pid);
        self
    }

    /// The /proc entry whose namespaces count as the host's.
    pub(crate) fn host(&self) -> String {
        self.daemon.map_or("thread-self".into(), |pid| pid.to_string())
    }
}
