//! What can go wrong with a pod or a container, and which kind of trouble it is.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_model::{Illegal, Invalid};
use holdfast_monitor_api::message::FailureKind;

/// What a caller can do about an error; `cri-server` makes the status code of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    NotFound,
    AlreadyExists,
    /// The request is wrong and stays wrong.
    Invalid,
    /// Not in this state; another call must come first.
    Precondition,
    /// Try again later.
    Unavailable,
    DeadlineExceeded,
    Exhausted,
    /// The machine, its kernel or this release cannot do it.
    Unsupported,
    Internal,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no {what} has the id {id:?}")]
    NotFound { what: &'static str, id: String },
    #[error("{id:?} is the beginning of more than one {what} id")]
    Ambiguous { what: &'static str, id: String },
    #[error("{what} {name} exists already, as {id}")]
    Exists {
        what: &'static str,
        name: String,
        id: String,
    },
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("{what} {id} is {state}: {wanted}")]
    State {
        what: &'static str,
        id: String,
        state: &'static str,
        wanted: &'static str,
    },
    #[error("{what} {id}")]
    Illegal {
        what: &'static str,
        id: String,
        #[source]
        source: Illegal,
    },
    #[error("runtime handler {handler:?} is not configured; there are {}", listed(.known))]
    UnknownHandler { handler: String, known: Vec<String> },
    #[error("runtime handler {handler} cannot be used: {reason}")]
    BrokenHandler { handler: String, reason: String },
    #[error("image {image:?} is not present: pull it first")]
    NoImage { image: String },
    #[error("{step} of {id}")]
    Image {
        step: &'static str,
        id: String,
        #[source]
        source: Box<holdfast_images::Error>,
    },
    #[error("{step} for pod {id}")]
    Network {
        step: &'static str,
        id: String,
        #[source]
        source: Box<holdfast_network::Error>,
    },
    #[error("setting the node's pod ranges")]
    PodRanges(#[source] Box<holdfast_network::Error>),
    #[error("{step} of {id}")]
    Monitor {
        step: &'static str,
        id: String,
        #[source]
        source: Box<holdfast_monitor_api::Error>,
    },
    #[error("{step} of {path}")]
    Cgroup {
        step: &'static str,
        path: String,
        #[source]
        source: Box<holdfast_cgroups::Error>,
    },
    #[error("{step} of {id}")]
    Systemd {
        step: &'static str,
        id: String,
        #[source]
        source: Box<crate::systemd::BusError>,
    },
    /// Limits were not changed. Everything is as it was but for what could not be put back.
    #[error("{field} of {what} {id} cannot be changed{}", and_left(.left))]
    Update {
        what: &'static str,
        id: String,
        /// As CRI spells it.
        field: String,
        left: Vec<String>,
        kind: Kind,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cgroup {cgroup} of pod {id} cannot be limited: {reason}")]
    SharedCgroup {
        id: String,
        cgroup: String,
        reason: String,
    },
    #[error("record of {id}")]
    Record {
        id: String,
        #[source]
        source: Box<holdfast_store::Error>,
    },
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Unsupported(String),
    /// A device that this node has not got, or not now.
    #[error("CDI device {device}: {reason}")]
    Cdi { device: String, reason: String },
    #[error("{what} of {id} was not done within {limit:?}")]
    Deadline {
        what: &'static str,
        id: String,
        limit: Duration,
    },
    #[error("pod {id} has {limit} {what}: no more than that")]
    TooMany {
        what: &'static str,
        id: String,
        limit: usize,
    },
    /// The pod's owner is overwhelmed or has ended.
    #[error("pod {id} does not answer: {reason}")]
    Busy { id: String, reason: &'static str },
    /// The monitor that had it in hand is gone; a new attempt finds its replacement.
    #[error("{what} {id} was cut off: the pod's monitor died or was lost meanwhile")]
    CutOff { what: &'static str, id: String },
    #[error("nothing answers at port {port} of pod {id}: {reason}")]
    NoConnection { id: String, port: u16, reason: String },
    /// The same failure, told to each of several callers who waited for one operation.
    #[error("{message}")]
    Shared { kind: Kind, message: String },
    /// Clean-up carried on past errors; these are all of them.
    #[error("{what} of {id} is not complete: {}", .failures.join("; "))]
    Incomplete {
        what: &'static str,
        id: String,
        failures: Vec<String>,
    },
    #[error("{what}")]
    Internal { what: String },
}

impl Error {
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } | Self::NoImage { .. } => Kind::NotFound,
            Self::Exists { .. } => Kind::AlreadyExists,
            Self::Invalid(_) | Self::Ambiguous { .. } | Self::UnknownHandler { .. } => Kind::Invalid,
            Self::State { .. }
            | Self::Illegal { .. }
            | Self::Cdi { .. }
            | Self::SharedCgroup { .. }
            | Self::BrokenHandler { .. } => Kind::Precondition,
            Self::Update { kind, .. } => *kind,
            Self::Monitor { source, .. } => monitor_kind(source),
            Self::Network { source, .. } | Self::PodRanges(source) => network_kind(source),
            Self::Unsupported(_) => Kind::Unsupported,
            Self::TooMany { .. } => Kind::Exhausted,
            Self::Deadline { .. } => Kind::DeadlineExceeded,
            Self::Busy { .. } | Self::CutOff { .. } | Self::NoConnection { .. } => Kind::Unavailable,
            Self::Shared { kind, .. } => *kind,
            Self::Image { source, .. } => image_kind(source),
            Self::Systemd { source, .. } => source.kind(),
            Self::Cgroup { .. }
            | Self::Record { .. }
            | Self::Io { .. }
            | Self::Incomplete { .. }
            | Self::Internal { .. } => Kind::Internal,
        }
    }

    /// Adds what an update that failed has left changed.
    pub(crate) fn with_left(mut self, more: Vec<String>) -> Self {
        match &mut self {
            Self::Update { left, .. } => left.extend(more),
            _ if more.is_empty() => {}
            _ => {
                let what = format!("{}; could not be put back: {}", self.chain(), more.join("; "));
                return Self::Shared {
                    kind: self.kind(),
                    message: what,
                };
            }
        }
        self
    }

    /// The whole chain of causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }

    /// What the monitor's client said, where it was that which failed.
    pub(crate) fn monitor_cause(&self) -> Option<&holdfast_monitor_api::Error> {
        match self {
            Self::Monitor { source, .. } => Some(source),
            _ => None,
        }
    }

    /// For the second and later of those who wait for one operation.
    pub(crate) fn share(&self) -> Self {
        Self::Shared {
            kind: self.kind(),
            message: self.chain(),
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }

    pub(crate) fn monitor(
        step: &'static str,
        id: impl std::fmt::Display,
    ) -> impl FnOnce(holdfast_monitor_api::Error) -> Self {
        let id = id.to_string();
        move |source| Self::Monitor {
            step,
            id,
            source: Box::new(source),
        }
    }
}

fn and_left(left: &[String]) -> String {
    if left.is_empty() {
        ", and nothing was".into()
    } else {
        format!("; could not be put back: {}", left.join("; "))
    }
}

/// Names for people: the default's is empty.
fn listed(names: &[String]) -> String {
    let shown = names.iter().map(|name| match name.as_str() {
        "" => "\"\" (the default)".to_owned(),
        name => format!("{name:?}"),
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn monitor_kind(error: &holdfast_monitor_api::Error) -> Kind {
    use holdfast_monitor_api::Error as E;
    match error {
        E::Gone => Kind::Unavailable,
        E::Deadline { .. } => Kind::DeadlineExceeded,
        E::Refused { kind, .. } => match kind {
            FailureKind::NotFound => Kind::NotFound,
            FailureKind::Invalid => Kind::Invalid,
            FailureKind::Precondition => Kind::Precondition,
            FailureKind::Unsupported => Kind::Unsupported,
            FailureKind::Exhausted => Kind::Exhausted,
            FailureKind::Internal => Kind::Internal,
        },
        _ => Kind::Internal,
    }
}

fn network_kind(error: &holdfast_network::Error) -> Kind {
    use holdfast_network::Kind as N;
    match error.kind() {
        N::Invalid => Kind::Invalid,
        N::Unavailable => Kind::Unavailable,
        N::Conflict => Kind::AlreadyExists,
        N::Exhausted => Kind::Exhausted,
        N::DeadlineExceeded => Kind::DeadlineExceeded,
        N::Internal => Kind::Internal,
    }
}

fn image_kind(error: &holdfast_images::Error) -> Kind {
    use holdfast_images::Kind as I;
    match error.kind() {
        I::Invalid | I::Denied => Kind::Invalid,
        I::NotFound => Kind::NotFound,
        I::AlreadyExists => Kind::AlreadyExists,
        I::Unavailable => Kind::Unavailable,
        I::Exhausted => Kind::Exhausted,
        I::Corrupt | I::Internal => Kind::Internal,
    }
}
