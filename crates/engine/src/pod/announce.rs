//! What subscribers are told of a pod and its containers.

use holdfast_model::{ContainerId, ContainerState, SandboxState};

use super::owner::Pod;
use crate::shared::now;
use crate::{Event, Happened, Subject};

/// What has been said of the pod already, so that nothing is said twice and nobody hears of the end of a pod that
/// never was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Told {
    created: bool,
    stopped: bool,
}

impl Told {
    /// Of a pod from its record: an earlier daemon has said it.
    pub(super) fn of(state: SandboxState) -> Self {
        Self {
            created: state != SandboxState::Creating,
            stopped: matches!(
                state,
                SandboxState::Dead | SandboxState::Stopped | SandboxState::Removing
            ),
        }
    }

    /// Whether it is new.
    fn say(&mut self, what: Happened) -> bool {
        match what {
            Happened::Created => !std::mem::replace(&mut self.created, true),
            Happened::Started => self.created,
            Happened::Stopped => self.created && !std::mem::replace(&mut self.stopped, true),
            Happened::Removed => self.created,
        }
    }
}

impl Pod {
    pub(super) fn announce(&mut self, what: Happened) {
        if self.told.say(what) {
            self.tell(Subject::Pod(self.id()), what);
        }
    }

    /// Readers see the new record already.
    pub(super) fn announce_container(&self, id: ContainerId, what: Happened) {
        match what {
            Happened::Started => self.context.shared.meters.container_started(),
            Happened::Stopped => self.context.shared.meters.container_ended(&id),
            Happened::Created | Happened::Removed => {}
        }
        self.tell(Subject::Container(id), what);
    }

    fn tell(&self, subject: Subject, what: Happened) {
        let events = &self.context.shared.events;
        if events.receiver_count() == 0 {
            return;
        }
        let shown = self
            .containers
            .values()
            .filter(|container| container.state() != ContainerState::Creating);
        // An error says that the last receiver has left just now.
        let _ = events.send(Event {
            what,
            subject,
            at: now(),
            pod: self.record.clone(),
            containers: shown.map(|container| container.record.clone()).collect(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_twice_or_of_a_pod_that_never_was() {
        use Happened::{Created, Removed, Started, Stopped};
        let mut told = Told::default();
        assert!(!told.say(Stopped) && !told.say(Removed));
        assert!(told.say(Created) && told.say(Started) && told.say(Stopped));
        assert!(!told.say(Created) && !told.say(Stopped));
        assert!(told.say(Removed));
        let mut dead = Told::of(SandboxState::Dead);
        assert!(!dead.say(Stopped) && dead.say(Removed));
        let mut half_made = Told::of(SandboxState::Creating);
        assert!(!half_made.say(Stopped) && !half_made.say(Removed));
        assert!(Told::of(SandboxState::Stopping).say(Stopped));
    }
}
