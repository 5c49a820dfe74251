//! RuntimeService.GetContainerEvents (KEP-3386)
//!
//! Each subscriber has a task that translates events into a queue of its own. A queue that is full is emptied and its
//! subscriber told so: it lists again and comes back, as it does when the daemon stops.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::Stream;
use holdfast_cri_api::v1;
use holdfast_engine::{Event, Happened, Subject};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use crate::Services;
use crate::translate::{container_statuses, sandbox_status};

/// Events that wait for one subscriber to read on. A whole node of 110 pods can be stopped and removed in so many.
const QUEUE: usize = 1024;
/// Subscribers at a time. The kubelet is one; the rest is for people who watch.
const SUBSCRIBERS: usize = 64;

pub type Events = Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;

/// Who listens, and until when.
#[derive(Clone)]
pub struct Subscribers {
    stopping: CancellationToken,
    places: Arc<Semaphore>,
}

impl Subscribers {
    /// All streams end when `stopping` is cancelled.
    pub fn new(stopping: CancellationToken) -> Self {
        Self {
            stopping,
            places: Arc::new(Semaphore::new(SUBSCRIBERS)),
        }
    }

    fn subscribe(&self, events: Receiver<Event>) -> Result<Events, Status> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{SUBSCRIBERS} clients listen to events already"))
        })?;
        let queue = Arc::new(Queue::default());
        let left = CancellationToken::new();
        let feeder = Feeder {
            queue: queue.clone(),
            left: left.clone(),
            stopping: self.stopping.clone(),
            _place: place,
        };
        tokio::spawn(feeder.feed(events));
        let reader = Reader {
            queue,
            _left: left.drop_guard(),
        };
        Ok(Box::pin(futures::stream::unfold(reader, |reader| async {
            let next = reader.queue.next().await?;
            Some((next, reader))
        })))
    }
}

pub fn call(services: &Services, subscribers: &Subscribers) -> Result<Events, Status> {
    subscribers.subscribe(services.engine.events())
}

struct Reader {
    queue: Arc<Queue>,
    _left: DropGuard,
}

struct Feeder {
    queue: Arc<Queue>,
    left: CancellationToken,
    stopping: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Feeder {
    async fn feed(self, mut events: Receiver<Event>) {
        loop {
            let event = tokio::select! {
                biased;
                () = self.left.cancelled() => return,
                () = self.stopping.cancelled() => {
                    return self.queue.end(Status::unavailable("the runtime is stopping: pods run on"), false);
                }
                event = events.recv() => event,
            };
            match event {
                Ok(event) if self.queue.push(translate(&event)) => {}
                Ok(_) => return self.queue.end(stalled(QUEUE as u64 + 1), true),
                Err(RecvError::Lagged(missed)) => return self.queue.end(stalled(missed), true),
                Err(RecvError::Closed) => {
                    return self
                        .queue
                        .end(Status::unavailable("the runtime has let its pods go"), false);
                }
            }
        }
    }
}

fn stalled(missed: u64) -> Status {
    Status::resource_exhausted(format!(
        "{missed} events were not read in time and are lost: list pods and containers, then listen again"
    ))
}

/// What waits for one subscriber.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<v1::ContainerEventResponse>,
    /// How the stream ends, once what waits has been read.
    end: Option<Status>,
    over: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was room.
    fn push(&self, event: v1::ContainerEventResponse) -> bool {
        let mut state = self.state();
        if state.waiting.len() >= QUEUE {
            return false;
        }
        state.waiting.push_back(event);
        drop(state);
        self.changed.notify_one();
        true
    }

    /// No event comes any more. `forget`: nor is one worth reading that waits, for there is a gap behind it.
    fn end(&self, status: Status, forget: bool) {
        let mut state = self.state();
        state.end = Some(status);
        if forget {
            state.waiting = VecDeque::new();
        }
        drop(state);
        self.changed.notify_one();
    }

    async fn next(&self) -> Option<Result<v1::ContainerEventResponse, Status>> {
        loop {
            {
                let mut state = self.state();
                if let Some(event) = state.waiting.pop_front() {
                    return Some(Ok(event));
                }
                if state.over {
                    return None;
                }
                if let Some(status) = state.end.take() {
                    state.over = true;
                    return Some(Err(status));
                }
            }
            self.changed.notified().await;
        }
    }
}

fn translate(event: &Event) -> v1::ContainerEventResponse {
    let kind = match event.what {
        Happened::Created => v1::ContainerEventType::ContainerCreatedEvent,
        Happened::Started => v1::ContainerEventType::ContainerStartedEvent,
        Happened::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        Happened::Removed => v1::ContainerEventType::ContainerDeletedEvent,
    };
    v1::ContainerEventResponse {
        container_id: match event.subject {
            Subject::Pod(id) => id.to_string(),
            Subject::Container(id) => id.to_string(),
        },
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: Some(sandbox_status(&event.pod)),
        containers_statuses: container_statuses(&event.containers),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures::StreamExt;
    use holdfast_model::{ContainerId, SandboxId};
    use tokio::sync::broadcast;
    use tonic::Code;

    use crate::testing;

    fn event(what: Happened) -> Event {
        let pod = SandboxId::from_bytes([1; 32]);
        let container = ContainerId::from_bytes([2; 32]);
        Event {
            what,
            subject: Subject::Container(container),
            at: 5,
            pod: Arc::new(testing::sandbox(pod)),
            containers: vec![Arc::new(testing::container(container, pod))],
        }
    }

    fn setup() -> (broadcast::Sender<Event>, Subscribers, CancellationToken) {
        let stopping = CancellationToken::new();
        (
            broadcast::Sender::new(4 * QUEUE),
            Subscribers::new(stopping.clone()),
            stopping,
        )
    }

    #[tokio::test]
    async fn every_subscriber_hears_everything() {
        let (sender, subscribers, stopping) = setup();
        let mut streams: Vec<Events> = (0..3)
            .map(|_| subscribers.subscribe(sender.subscribe()).unwrap())
            .collect();
        for what in [Happened::Created, Happened::Stopped] {
            sender.send(event(what)).unwrap();
        }
        for stream in &mut streams {
            let first = stream.next().await.unwrap().unwrap();
            assert_eq!(
                first.container_event_type(),
                v1::ContainerEventType::ContainerCreatedEvent
            );
            assert_eq!(first.container_id, ContainerId::from_bytes([2; 32]).as_str());
            assert_eq!(first.created_at, 5);
            assert_eq!(first.containers_statuses.len(), 1);
            assert!(first.pod_sandbox_status.unwrap().metadata.is_some());
            let second = stream.next().await.unwrap().unwrap();
            assert_eq!(
                second.container_event_type(),
                v1::ContainerEventType::ContainerStoppedEvent
            );
        }
        stopping.cancel();
        for mut stream in streams {
            assert_eq!(
                stream.next().await.unwrap().unwrap_err().code(),
                Code::Unavailable
            );
            assert!(stream.next().await.is_none());
        }
    }

    #[tokio::test]
    async fn one_that_does_not_read_is_dropped_and_the_others_are_not() {
        let (sender, subscribers, _stopping) = setup();
        let mut stalled = subscribers.subscribe(sender.subscribe()).unwrap();
        let mut reading = subscribers.subscribe(sender.subscribe()).unwrap();
        for _ in 0..QUEUE + 10 {
            sender.send(event(Happened::Started)).unwrap();
            reading.next().await.unwrap().unwrap();
        }
        let told = stalled.next().await.unwrap().unwrap_err();
        assert_eq!(told.code(), Code::ResourceExhausted);
        assert!(stalled.next().await.is_none());
        // Nothing is kept for it any more.
        assert_eq!(sender.receiver_count(), 1);
    }

    #[tokio::test]
    async fn places_are_bounded_and_come_back() {
        let (sender, subscribers, _stopping) = setup();
        let held: Vec<Events> = (0..SUBSCRIBERS)
            .map(|_| subscribers.subscribe(sender.subscribe()).unwrap())
            .collect();
        let refused = subscribers.subscribe(sender.subscribe()).err().unwrap();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        drop(held);
        while subscribers.places.available_permits() < SUBSCRIBERS {
            tokio::task::yield_now().await;
        }
        assert_eq!(sender.receiver_count(), 0);
    }
}
