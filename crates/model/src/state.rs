//! The life of a pod and of a container, as pure functions.
//!
//! ```text
//! pod        Creating ──Created──▶ Ready ──StopRequested──▶ Stopping ──Stopped──▶ Stopped ──RemoveRequested──▶ Removing
//!               │                   │ Died                    ▲  ▲                                                ▲
//!               │                   └─────────▶ Dead ─────────┘  └── (a stop that failed stays here)               │
//!               └─────────────────────────── Unwound ────────────────────────────────────────────────────────────┘
//!
//! container  Creating ──Created──▶ Created ──Started──▶ Running ──Exited──▶ Exited ──RemoveRequested──▶ Removing
//!               │                   │  StartFailed, Exited                    ▲                            ▲
//!               │                   └─────────────────────────────────────────┘                            │
//!               └──────────────────────────── Unwound ─────────────────────────────────────────────────────┘
//! ```
//!
//! `Creating` and `Removing` are never shown to clients as live: the first has not been answered yet, the second is
//! work that must still be done. Repeating a request in the state that it leads to is legal and changes nothing, for
//! CRI's calls are idempotent. A pod that `Died` (its init is gone: killed, or the machine was restarted) still holds
//! its network and its directories until it is stopped.

use serde::{Deserialize, Serialize};

/// An event that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event} is not possible in state {state}")]
pub struct Illegal {
    pub state: &'static str,
    pub event: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SandboxState {
    /// Reserved and on record; the kernel may hold parts of it.
    Creating,
    Ready,
    /// Its processes are gone; network and directories are not yet cleaned up.
    Dead,
    Stopping,
    /// Nothing runs, no namespace and no address is held.
    Stopped,
    Removing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SandboxEvent {
    Created,
    /// The creation failed or was given up.
    Unwound,
    Died,
    StopRequested,
    Stopped,
    RemoveRequested,
}

impl SandboxState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Dead => "dead",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Removing => "removing",
        }
    }

    /// The state that `event` leads to.
    pub fn transition(self, event: SandboxEvent) -> Result<Self, Illegal> {
        use SandboxEvent as E;
        use SandboxState as S;
        let next = match (self, event) {
            (S::Creating, E::Created) => S::Ready,
            (S::Creating, E::Unwound) => S::Removing,
            // Whoever waits for the creation learns of the death from its failure.
            (S::Creating, E::Died) => S::Creating,
            (S::Ready, E::Died) => S::Dead,
            (S::Dead, E::Died) => S::Dead,
            (S::Ready | S::Dead | S::Stopping, E::StopRequested) => S::Stopping,
            (S::Stopping, E::Stopped) => S::Stopped,
            (S::Stopping, E::Died) => S::Stopping,
            (S::Stopped, E::StopRequested | E::Stopped | E::Died) => S::Stopped,
            (S::Stopped, E::RemoveRequested) => S::Removing,
            (S::Removing, E::RemoveRequested | E::Unwound | E::StopRequested | E::Stopped | E::Died) => {
                S::Removing
            }
            (S::Creating, E::StopRequested | E::Stopped | E::RemoveRequested)
            | (S::Ready | S::Dead, E::Created | E::Unwound | E::Stopped | E::RemoveRequested)
            | (S::Stopping, E::Created | E::Unwound | E::RemoveRequested)
            | (S::Stopped, E::Created | E::Unwound)
            | (S::Removing, E::Created) => {
                return Err(Illegal {
                    state: self.name(),
                    event: event.name(),
                });
            }
        };
        Ok(next)
    }
}

impl SandboxEvent {
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Unwound => "unwound",
            Self::Died => "died",
            Self::StopRequested => "stop requested",
            Self::Stopped => "stopped",
            Self::RemoveRequested => "remove requested",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContainerState {
    /// Reserved and on record; the kernel may hold parts of it.
    Creating,
    /// Its init waits at the exec barrier.
    Created,
    Running,
    Exited,
    Removing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContainerEvent {
    Created,
    /// The creation failed or was given up.
    Unwound,
    Started,
    /// execve failed.
    StartFailed,
    Exited,
    RemoveRequested,
}

impl ContainerState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Removing => "removing",
        }
    }

    /// The state that `event` leads to.
    pub fn transition(self, event: ContainerEvent) -> Result<Self, Illegal> {
        use ContainerEvent as E;
        use ContainerState as S;
        let next = match (self, event) {
            (S::Creating, E::Created) => S::Created,
            (S::Creating, E::Unwound) => S::Removing,
            (S::Created, E::Started) => S::Running,
            (S::Created, E::StartFailed | E::Exited) => S::Exited,
            (S::Running, E::Exited) => S::Exited,
            // The monitor repeats an exit until it has been taken.
            (S::Exited, E::Exited | E::StartFailed) => S::Exited,
            (S::Created | S::Running | S::Exited, E::RemoveRequested) => S::Removing,
            (S::Removing, E::RemoveRequested | E::Unwound | E::Exited | E::StartFailed) => S::Removing,
            (S::Creating, E::Started | E::StartFailed | E::Exited | E::RemoveRequested)
            | (S::Created, E::Created | E::Unwound)
            | (S::Running, E::Created | E::Unwound | E::Started | E::StartFailed)
            | (S::Exited, E::Created | E::Unwound | E::Started)
            | (S::Removing, E::Created | E::Started) => {
                return Err(Illegal {
                    state: self.name(),
                    event: event.name(),
                });
            }
        };
        Ok(next)
    }
}

impl ContainerEvent {
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Unwound => "unwound",
            Self::Started => "started",
            Self::StartFailed => "start failed",
            Self::Exited => "exited",
            Self::RemoveRequested => "remove requested",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn sandbox_event() -> impl Strategy<Value = SandboxEvent> {
        prop::sample::select(vec![
            SandboxEvent::Created,
            SandboxEvent::Unwound,
            SandboxEvent::Died,
            SandboxEvent::StopRequested,
            SandboxEvent::Stopped,
            SandboxEvent::RemoveRequested,
        ])
    }

    fn container_event() -> impl Strategy<Value = ContainerEvent> {
        prop::sample::select(vec![
            ContainerEvent::Created,
            ContainerEvent::Unwound,
            ContainerEvent::Started,
            ContainerEvent::StartFailed,
            ContainerEvent::Exited,
            ContainerEvent::RemoveRequested,
        ])
    }

    fn rank(state: SandboxState) -> u8 {
        match state {
            SandboxState::Creating => 0,
            SandboxState::Ready => 1,
            SandboxState::Dead => 2,
            SandboxState::Stopping => 3,
            SandboxState::Stopped => 4,
            SandboxState::Removing => 5,
        }
    }

    proptest! {
        #[test]
        fn a_pod_never_goes_back(events in prop::collection::vec(sandbox_event(), 0..40)) {
            let mut state = SandboxState::Creating;
            for event in events {
                if let Ok(next) = state.transition(event) {
                    prop_assert!(rank(next) >= rank(state));
                    // Only a stopped or never finished pod may be taken away.
                    if next == SandboxState::Removing {
                        prop_assert!(matches!(
                            state,
                            SandboxState::Creating | SandboxState::Stopped | SandboxState::Removing
                        ));
                    }
                    // Every legal event can be repeated in the state that it leads to, or is refused; never a step on.
                    if let Ok(again) = next.transition(event) {
                        prop_assert_eq!(again, next);
                    }
                    state = next;
                }
            }
        }

        #[test]
        fn a_container_never_goes_back(events in prop::collection::vec(container_event(), 0..40)) {
            let mut state = ContainerState::Creating;
            let mut started = false;
            for event in events {
                if let Ok(next) = state.transition(event) {
                    prop_assert!(next as u8 >= state as u8);
                    started |= next == ContainerState::Running;
                    if next == ContainerState::Exited && !started {
                        prop_assert!(matches!(event, ContainerEvent::StartFailed | ContainerEvent::Exited));
                    }
                    if let Ok(again) = next.transition(event) {
                        prop_assert_eq!(again, next);
                    }
                    state = next;
                }
            }
        }
    }

    #[test]
    fn the_straight_line() {
        let mut state = SandboxState::Creating;
        for event in [
            SandboxEvent::Created,
            SandboxEvent::StopRequested,
            SandboxEvent::Stopped,
            SandboxEvent::RemoveRequested,
        ] {
            state = state.transition(event).unwrap();
        }
        assert_eq!(state, SandboxState::Removing);
        let illegal = ContainerState::Exited
            .transition(ContainerEvent::Started)
            .unwrap_err();
        assert_eq!(illegal.to_string(), "started is not possible in state exited");
    }
}
