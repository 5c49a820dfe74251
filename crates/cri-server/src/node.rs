//! What is true of this machine and this server for as long as it runs.

use holdfast_model::OciRuntime;

/// What a container's runtime is called in verbose statuses.
pub fn runtime_type(runtime: Option<&OciRuntime>) -> &'static str {
    match runtime {
        None => "holdfast",
        Some(_) => "oci",
    }
}

/// The names are those of containerd's options for runc, which debuggers read.
pub fn runtime_options(runtime: Option<&OciRuntime>) -> serde_json::Value {
    match runtime {
        None => serde_json::Value::Null,
        Some(runtime) => serde_json::json!({
            "BinaryName": runtime.program,
            "Root": runtime.root,
            "Options": runtime.options,
        }),
    }
}

/// Facts for Version, Status and RuntimeConfig.
#[derive(Debug, Clone)]
pub struct Node {
    pub version: String,
    /// The kernel can make a whole tree of mounts read-only (mount_setattr(2), Linux 5.12).
    pub recursive_read_only: bool,
    /// Pods can have user namespaces: layers and volumes can be shown through their ids.
    pub user_namespaces: bool,
    /// The configuration as it came out, for verbose status.
    pub config: serde_json::Value,
}
