//! What can go wrong between us and systemd. Every text names D-Bus.

use std::time::Duration;

use crate::Kind;

#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error(
        "cannot connect to D-Bus at {address} to ask systemd for a cgroup (cgroup_driver is systemd): see `systemctl status dbus`"
    )]
    Connect {
        address: String,
        #[source]
        source: Box<zbus::Error>,
    },
    #[error(
        "systemd did not answer {call} over D-Bus within {limit:?}: see `systemctl is-system-running` and `busctl status org.freedesktop.systemd1`"
    )]
    Timeout { call: &'static str, limit: Duration },
    #[error("the connection to D-Bus was lost during {call}")]
    Lost {
        call: &'static str,
        #[source]
        source: Box<zbus::Error>,
    },
    #[error(
        "systemd has a unit {unit} already, which this daemon did not make (D-Bus {call}): look at it with `systemctl status {unit}`, end it with `systemctl stop {unit}` or `systemctl reset-failed {unit}`"
    )]
    UnitExists { call: &'static str, unit: String },
    #[error("systemd refused {call} for {unit} over D-Bus: {name}: {text}")]
    Refused {
        call: &'static str,
        unit: String,
        name: String,
        text: String,
    },
    #[error(
        "systemd's job for {unit} ended as {result:?} instead of \"done\" (D-Bus {call}): see `journalctl -u {unit}`"
    )]
    Job {
        call: &'static str,
        unit: String,
        result: String,
    },
    #[error("systemd's job for {unit} was not done within {limit:?} (D-Bus {call})")]
    JobTimeout {
        call: &'static str,
        unit: String,
        limit: Duration,
    },
    #[error("what systemd answered to {call} over D-Bus is not understood")]
    Answer {
        call: &'static str,
        #[source]
        source: Box<zbus::Error>,
    },
    #[error("cannot start {program} to hold a scope for systemd (D-Bus) open")]
    Helper {
        program: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "systemd says over D-Bus that {unit} is running, but there is no cgroup {path}: is another cgroup hierarchy mounted, or the slice elsewhere?"
    )]
    Elsewhere { unit: String, path: String },
    #[error(
        "unit {unit} is there already and is {description:?} (D-Bus ListUnitsByPatterns): it belongs to another runtime or another root; stop it, or choose another pods.monitor_cgroup"
    )]
    Foreign { unit: String, description: String },
}

impl BusError {
    /// Whether systemd was not heard at all, so that the next call will most likely fail too.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::Timeout { .. } | Self::Lost { .. } | Self::JobTimeout { .. }
        )
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Timeout { .. } | Self::JobTimeout { .. } => Kind::DeadlineExceeded,
            Self::Connect { .. } | Self::Lost { .. } => Kind::Unavailable,
            Self::UnitExists { .. } | Self::Foreign { .. } => Kind::Precondition,
            Self::Refused { .. }
            | Self::Job { .. }
            | Self::Answer { .. }
            | Self::Helper { .. }
            | Self::Elsewhere { .. } => Kind::Internal,
        }
    }

    /// With its causes, in one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}
