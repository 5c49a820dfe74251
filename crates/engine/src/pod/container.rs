//! One container as its pod's owner holds it.

use std::sync::Arc;
use std::time::Duration;

use holdfast_cgroups::Limits;
use holdfast_model::{ContainerEvent, ContainerId, ContainerRecord, ContainerState, Illegal, Resources};
use holdfast_monitor_api::message::FailureKind;
use holdfast_monitor_api::{ContainerDescriptors, Error as MonitorError};
use oci_spec::runtime::Spec;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::scope;
use super::update::Queue;
use crate::Error;
use crate::config::bounds;
use crate::waiters::{Reply, Waiters};

/// A longer grace is as good as none that ends.
const LONGEST_GRACE: Duration = Duration::from_secs(366 * 24 * 3600);

pub(super) struct Container {
    pub record: Arc<ContainerRecord>,
    /// Kept so that a dead monitor's replacement can carry on; closed when it has exited.
    pub vault: Option<ContainerDescriptors>,
    /// Those who wait for the creation in flight.
    pub creating: Option<Waiters<ContainerId>>,
    /// Created, but nobody was there to hear it.
    pub unclaimed_until: Option<Instant>,
    pub starting: Option<Waiters<()>>,
    /// The client has been told that it was not started, though it may be yet.
    pub given_up: bool,
    pub stop: Option<Stop>,
    /// Somebody (or a roll-back) wants it gone.
    pub removal: Option<Waiters<()>>,
    /// The removal is under way.
    pub removal_running: bool,
    /// Made at the first exec.
    pub template: Option<Arc<Template>>,
    /// Clients that are told when it ends.
    pub attached: Vec<oneshot::Sender<i32>>,
    /// New limits that are to be set.
    pub updates: Queue<Resources>,
}

/// What every exec in a container starts from.
pub(super) struct Template {
    pub spec: Spec,
    /// `linux.seccomp` of the spec, as JSON; empty: unconfined.
    pub seccomp: Vec<u8>,
}

/// A stop under way: when SIGKILL is due, then when to give up waiting.
pub(super) struct Stop {
    pub due: Instant,
    pub killed: bool,
    pub waiters: Waiters<()>,
}

/// What the owner has to send on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Send {
    Nothing,
    StopSignal,
    Kill,
}

impl Container {
    pub(super) fn new(record: Arc<ContainerRecord>) -> Self {
        Self {
            record,
            vault: None,
            creating: None,
            unclaimed_until: None,
            starting: None,
            given_up: false,
            stop: None,
            removal: None,
            removal_running: false,
            template: None,
            attached: Vec::new(),
            updates: Queue::default(),
        }
    }

    pub(super) fn state(&self) -> ContainerState {
        self.record.state
    }

    /// Has a process, or is about to have one.
    pub(super) fn live(&self) -> bool {
        matches!(self.state(), ContainerState::Created | ContainerState::Running)
    }

    pub(super) fn apply(&mut self, event: ContainerEvent) -> Result<(), Illegal> {
        Arc::make_mut(&mut self.record).apply(event)
    }

    pub(super) fn edit(&mut self) -> &mut ContainerRecord {
        Arc::make_mut(&mut self.record)
    }

    /// Asks for a stop, or makes the one under way more urgent. `reply` is told at the exit.
    pub(super) fn request_stop(&mut self, grace: Duration, reply: Option<Reply<()>>) -> Send {
        if !self.live() {
            if let Some(reply) = reply {
                let _ = reply.send(Ok(()));
            }
            return Send::Nothing;
        }
        // What has not been started knows no signal yet.
        let grace = if self.state() == ContainerState::Created {
            Duration::ZERO
        } else {
            grace.min(LONGEST_GRACE)
        };
        let due = Instant::now() + grace;
        let id = self.record.id;
        let (send, stop) = match &mut self.stop {
            Some(stop) if stop.killed || stop.due <= due => (Send::Nothing, stop),
            Some(stop) => {
                stop.due = due;
                (Send::Nothing, stop)
            }
            none => {
                let stop = none.insert(Stop {
                    due,
                    killed: false,
                    waiters: Waiters::default(),
                });
                (
                    if grace.is_zero() {
                        Send::Nothing
                    } else {
                        Send::StopSignal
                    },
                    stop,
                )
            }
        };
        if let Some(reply) = reply {
            stop.waiters.add(id.as_str(), reply);
        }
        let send = if grace.is_zero() && !stop.killed {
            Send::Kill
        } else {
            send
        };
        if send == Send::Kill {
            stop.kill_sent();
        }
        send
    }

    /// What a signal that was not delivered means for the stop under way; `false`: that it has failed.
    pub(super) fn not_signalled(&mut self, cause: Option<&MonitorError>) -> bool {
        match cause {
            _ if !self.live() => true,
            // It has ended by itself. The monitor says so before its exit, which waits for the log; should that never come, the
            // stop's own bound ends the wait.
            Some(MonitorError::Refused {
                kind: FailureKind::NotFound,
                ..
            }) => true,
            Some(MonitorError::Gone) => {
                self.signal_again();
                true
            }
            _ => false,
        }
    }

    /// The monitor is being looked for or replaced: the stop goes on with the one that comes.
    pub(super) fn signal_again(&mut self) {
        if let Some(stop) = &mut self.stop {
            stop.killed = false;
            stop.due = Instant::now() + bounds::RETRY_FIRST;
        }
    }

    /// What is due by now.
    pub(super) fn on_time(&mut self, now: Instant) -> Send {
        let Some(stop) = self.stop.as_mut().filter(|stop| stop.due <= now) else {
            return Send::Nothing;
        };
        if !stop.killed {
            stop.kill_sent();
            return Send::Kill;
        }
        let error = Error::Deadline {
            what: "killing",
            id: self.record.id.to_string(),
            limit: bounds::KILL,
        };
        if let Some(stop) = self.stop.take() {
            stop.waiters.settle(Err(error.share()));
        }
        if let Some(waiters) = self.removal.take() {
            waiters.settle(Err(error));
        }
        Send::Nothing
    }

    /// Parsed once.
    pub(super) fn template(&mut self) -> Result<Arc<Template>, Error> {
        if let Some(known) = &self.template {
            return Ok(known.clone());
        }
        let unreadable = |e| Error::Internal {
            what: format!("the recorded spec of {} cannot be read: {e}", self.record.id),
        };
        let spec: Spec = serde_json::from_str(&self.record.oci_spec).map_err(unreadable)?;
        let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let seccomp = seccomp
            .map(serde_json::to_vec)
            .transpose()
            .map_err(unreadable)?
            .unwrap_or_default();
        Ok(self.template.insert(Arc::new(Template { spec, seccomp })).clone())
    }

    /// What its spec limits; `None` where it cannot be read.
    pub(super) fn limits(&mut self) -> Option<Limits> {
        scope::limits(&self.template().ok()?.spec).ok()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let stop = self.stop.as_ref().map(|stop| stop.due);
        [stop, self.unclaimed_until].into_iter().flatten().min()
    }
}

impl Stop {
    fn kill_sent(&mut self) {
        self.killed = true;
        self.due = Instant::now() + bounds::KILL;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holdfast_model::{ContainerSpec, ContainerUser, ResolvedImage, SandboxId, Signal};
    use proptest::prelude::*;

    fn container(state: ContainerState) -> Container {
        Container::new(Arc::new(ContainerRecord {
            id: ContainerId::from_bytes([1; 32]),
            sandbox: SandboxId::from_bytes([2; 32]),
            spec: ContainerSpec::default(),
            state,
            created_at: 0,
            started_at: 0,
            finished_at: 0,
            pid: Some(1),
            exit: None,
            image: ResolvedImage::default(),
            cgroup: String::new(),
            log_path: String::new(),
            user: ContainerUser::default(),
            stop_signal: Signal::TERM,
            oci_spec: String::new(),
            snapshot_owed: true,
            mount_images: Vec::new(),
            undo: None,
            runtime: None,
        }))
    }

    #[tokio::test]
    async fn a_second_stop_shortens_the_wait_and_never_lengthens_it() {
        let mut one = container(ContainerState::Running);
        assert_eq!(one.request_stop(Duration::from_secs(30), None), Send::StopSignal);
        let first = one.stop.as_ref().unwrap().due;
        assert_eq!(one.request_stop(Duration::from_secs(60), None), Send::Nothing);
        assert_eq!(one.stop.as_ref().unwrap().due, first);
        assert_eq!(one.request_stop(Duration::from_secs(5), None), Send::Nothing);
        assert!(one.stop.as_ref().unwrap().due < first);
        assert_eq!(one.request_stop(Duration::ZERO, None), Send::Kill);
        assert_eq!(one.request_stop(Duration::ZERO, None), Send::Nothing);
    }

    #[tokio::test]
    async fn one_that_has_ended_is_killed_once_and_not_waited_for_without_end() {
        let ended = MonitorError::Refused {
            kind: FailureKind::NotFound,
            message: "it has exited".into(),
            errno: 0,
        };
        let mut one = container(ContainerState::Running);
        let (reply, mut told) = tokio::sync::oneshot::channel();
        assert_eq!(one.request_stop(Duration::ZERO, Some(reply)), Send::Kill);
        let due = one.stop.as_ref().unwrap().due;
        // As the owner does for as long as a removal is wanted.
        for _ in 0..3 {
            assert!(one.not_signalled(Some(&ended)));
            assert_eq!(one.request_stop(Duration::ZERO, None), Send::Nothing);
            assert_eq!(one.on_time(Instant::now()), Send::Nothing);
            assert_eq!(one.next_deadline(), Some(due));
        }
        assert!(told.try_recv().is_err());
        assert!(due <= Instant::now() + bounds::KILL);
        assert_eq!(one.on_time(due), Send::Nothing);
        let error = told.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), crate::Kind::DeadlineExceeded);
        assert!(one.stop.is_none());
    }

    #[tokio::test]
    async fn one_whose_monitor_was_lost_is_killed_by_the_next() {
        let mut one = container(ContainerState::Running);
        assert_eq!(one.request_stop(Duration::ZERO, None), Send::Kill);
        assert!(one.not_signalled(Some(&MonitorError::Gone)));
        assert_eq!(one.on_time(Instant::now()), Send::Nothing);
        assert_eq!(one.on_time(Instant::now() + bounds::RETRY_FIRST), Send::Kill);
        // Any other refusal ends the stop.
        assert!(!one.not_signalled(None));
    }

    #[tokio::test]
    async fn one_that_never_ran_is_killed_and_one_that_ended_is_left_alone() {
        assert_eq!(
            container(ContainerState::Created).request_stop(Duration::from_secs(9), None),
            Send::Kill
        );
        let (reply, told) = tokio::sync::oneshot::channel();
        assert_eq!(
            container(ContainerState::Exited).request_stop(Duration::ZERO, Some(reply)),
            Send::Nothing
        );
        told.await.unwrap().unwrap();
    }

    proptest! {
        /// However stops of any grace come in, the stop signal is sent at most once, first, and SIGKILL at most once.
        #[test]
        fn signals_are_sent_once(graces in prop::collection::vec(0u64..3, 1..12)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _entered = runtime.enter();
            let mut one = container(ContainerState::Running);
            let sent: Vec<Send> = graces
                .iter()
                .map(|grace| one.request_stop(Duration::from_secs(*grace), None))
                .filter(|send| *send != Send::Nothing)
                .collect();
            prop_assert!(sent.len() <= 2);
            prop_assert!(sent.iter().filter(|send| **send == Send::Kill).count() <= 1);
            prop_assert!(sent.iter().skip(1).all(|send| *send == Send::Kill));
            prop_assert_eq!(sent.contains(&Send::Kill), graces.contains(&0));
        }
    }
}
