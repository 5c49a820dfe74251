//! What is true of this machine and this server for as long as it runs.

/// Facts for Version, Status and RuntimeConfig.
#[derive(Debug, Clone)]
pub struct Node {
    pub version: String,
    /// Names of the runtime handlers, the default's (empty) first.
    pub handlers: Vec<String>,
    /// The kernel can make a whole tree of mounts read-only (mount_setattr(2), Linux 5.12).
    pub recursive_read_only: bool,
    /// Pods can have user namespaces: layers and volumes can be shown through their ids.
    pub user_namespaces: bool,
    /// The configuration as it came out, for verbose status.
    pub config: serde_json::Value,
}
