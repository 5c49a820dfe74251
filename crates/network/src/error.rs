//! Everything that can go wrong, in words for the person who reads it at night.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::types::Protocol;

/// A coarse class of [`Error`], for those who translate it to a status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request or configuration is wrong; a retry will fail in the same way.
    Invalid,
    /// The network is not ready (no plugin, broken configuration).
    Unavailable,
    /// Something else holds what was asked for.
    Conflict,
    /// No address is left.
    Exhausted,
    /// A deadline passed.
    DeadlineExceeded,
    /// The kernel, the disk or a plugin failed.
    Internal,
}

/// An operation on a pod's network failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting makes no sense.
    #[error("network configuration: {what}")]
    InvalidConfig {
        /// What is wrong.
        what: String,
    },
    /// The request makes no sense.
    #[error("network of sandbox {id}: {what}")]
    InvalidPod {
        /// Sandbox id.
        id: String,
        /// What is wrong.
        what: String,
    },
    /// Set up twice.
    #[error("sandbox {id} already has a network")]
    AlreadySetUp {
        /// Sandbox id.
        id: String,
    },
    /// An external plugin is configured, but no path of the namespace was given.
    #[error(
        "sandbox {id}: network {network:?} is made by plugins, which need the path of the network namespace"
    )]
    NetnsPathMissing {
        /// Sandbox id.
        id: String,
        /// Name of the CNI network.
        network: String,
    },
    /// The subnets are used up.
    #[error(
        "no free address in {subnets} for sandbox {id}: {used} are in use or waiting for their namespace to die"
    )]
    NoAddress {
        /// Sandbox id.
        id: String,
        /// The configured subnets.
        subnets: String,
        /// Addresses in use.
        used: usize,
    },
    /// Somebody else has the host port.
    #[error("host port {port}/{} on {host_ip} is taken by pod {holder} (sandbox {holder_id})", protocol.name())]
    HostPortInUse {
        /// Port.
        port: u16,
        /// Protocol.
        protocol: Protocol,
        /// The address asked for, or "all addresses".
        host_ip: String,
        /// Namespace and name of the pod that has it.
        holder: String,
        /// Its sandbox id.
        holder_id: String,
    },
    /// The kernel refused a netlink request.
    #[error("{what}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Netlink {
        /// What was being done.
        what: String,
        /// The kernel's own words (extended acknowledgement).
        detail: Option<String>,
        /// The error number.
        #[source]
        source: io::Error,
    },
    /// A file or system call failed.
    #[error("{what} {}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A record could not be written, read or removed.
    #[error("network record of sandbox {id}")]
    Record {
        /// Sandbox id, or the directory.
        id: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The owner of the bridge is gone: the daemon is shutting down.
    #[error("the network is shut down")]
    Stopped,
    /// A file in the CNI directory cannot be used.
    #[error("cni configuration {}: {reason}", path.display())]
    CniConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A plugin is not installed.
    #[error("cni plugin {plugin:?} of network {network:?} was not found in {dirs}")]
    PluginMissing {
        /// Type of the plugin.
        plugin: String,
        /// Name of the network.
        network: String,
        /// The directories searched.
        dirs: String,
    },
    /// A plugin could not be executed at all.
    #[error("cannot execute cni plugin {}", path.display())]
    PluginExec {
        /// The executable.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A plugin reported an error, or died.
    #[error("cni plugin {plugin:?} failed {command}: {reason}")]
    PluginFailed {
        /// Type of the plugin.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// The plugin's message, or how it died and what it wrote.
        reason: String,
    },
    /// A plugin succeeded, but what it printed is no CNI result.
    #[error("cni plugin {plugin:?} printed no valid result for {command}: {reason}; it begins with {head:?}")]
    PluginGarbage {
        /// Type of the plugin.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// Why it is not one.
        reason: String,
        /// The first bytes of the output, made printable.
        head: String,
    },
    /// A plugin did not end in time and was killed.
    #[error("cni plugin {plugin:?} did not finish {command} within {} s and was killed", after.as_secs_f32())]
    PluginTimeout {
        /// Type of the plugin.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// An ADD failed, and so did its unwinding; the latter is repeated in the background.
    #[error("{}; unwinding it failed too and is being repeated: {}", add.chain(), unwind.chain())]
    Unwind {
        /// The first failure.
        add: Box<Error>,
        /// The failure of the unwinding.
        unwind: Box<Error>,
    },
}

impl Error {
    /// The class of the error.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::InvalidConfig { .. } | Self::InvalidPod { .. } | Self::NetnsPathMissing { .. } => {
                Kind::Invalid
            }
            Self::AlreadySetUp { .. } | Self::HostPortInUse { .. } => Kind::Conflict,
            Self::NoAddress { .. } => Kind::Exhausted,
            Self::CniConfig { .. } | Self::PluginMissing { .. } | Self::Stopped => Kind::Unavailable,
            Self::PluginTimeout { .. } => Kind::DeadlineExceeded,
            Self::Unwind { add, .. } => add.kind(),
            Self::Netlink { .. }
            | Self::Io { .. }
            | Self::Record { .. }
            | Self::PluginExec { .. }
            | Self::PluginFailed { .. }
            | Self::PluginGarbage { .. } => Kind::Internal,
        }
    }

    /// The whole of it for a log line: this error and what caused it.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// The kernel's error number, if it was the kernel's answer to a netlink request.
    pub(crate) fn netlink_errno(&self) -> Option<i32> {
        match self {
            Self::Netlink { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
