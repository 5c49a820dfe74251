use std::fs::File;

use holdfast_sys::scm;

use super::*;
use crate::message::{Event, Reply};

/// The monitor's end, driven by hand.
struct Peer(OwnedFd);

impl Peer {
    async fn take(&self) -> (u64, request::Body) {
        let socket = self.0.try_clone().unwrap();
        let received = tokio::task::spawn_blocking(move || {
            codec::receive(socket.as_fd(), &mut vec![0; MAX_INLINE + 1024])
        });
        let (envelope, _) = received.await.unwrap().unwrap();
        (envelope.id, envelope.request.unwrap().body.unwrap())
    }

    fn reply(&self, id: u64, body: reply::Body, fds: &[BorrowedFd<'_>]) {
        let envelope = Envelope {
            id,
            reply: Some(Reply { body: Some(body) }),
            ..Envelope::default()
        };
        codec::send(self.0.as_fd(), &codec::encode(&envelope).unwrap(), fds).unwrap();
    }

    fn event(&self, container_id: &str) {
        let exit = Exit {
            container_id: container_id.to_owned(),
            ..Exit::default()
        };
        let envelope = Envelope {
            event: Some(Event {
                body: Some(event::Body::Exited(exit)),
            }),
            ..Envelope::default()
        };
        codec::send(self.0.as_fd(), &codec::encode(&envelope).unwrap(), &[]).unwrap();
    }
}

fn connected() -> (Client, EventStream, Peer) {
    let (left, right) = scm::pair().unwrap();
    let (client, events) = Client::from_socket(left).unwrap();
    (client, events, Peer(right))
}

#[tokio::test]
async fn replies_find_their_calls_in_any_order() {
    let (client, _events, peer) = connected();
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.reopen_log("a").await }
    });
    let (id_a, _) = peer.take().await;
    let second = tokio::spawn(async move { client.start("b").await });
    let (id_b, body) = peer.take().await;
    assert!(matches!(body, request::Body::StartContainer(r) if r.container_id == "b"));
    let started = ContainerStarted { started_at: 5 };
    peer.reply(id_b, reply::Body::ContainerStarted(started), &[]);
    assert_eq!(second.await.unwrap().unwrap().started_at, 5);
    let failure = Failure {
        kind: FailureKind::NotFound as i32,
        message: "no container a".to_owned(),
        errno: 0,
    };
    peer.reply(id_a, reply::Body::Error(failure), &[]);
    let error = first.await.unwrap().unwrap_err();
    assert!(matches!(
        error,
        Error::Refused {
            kind: FailureKind::NotFound,
            ..
        }
    ));
}

#[tokio::test]
async fn descriptors_come_as_structs() {
    let (client, _events, peer) = connected();
    let call = tokio::spawn(async move { client.create_container(CreateContainer::default()).await });
    let (id, _) = peer.take().await;
    let null = File::open("/dev/null").unwrap();
    let created = ContainerCreated {
        pid: 42,
        has_stdin: true,
        has_log_state: true,
        ..ContainerCreated::default()
    };
    let fds = [null.as_fd(); 5];
    peer.reply(id, reply::Body::ContainerCreated(created), &fds);
    let container = call.await.unwrap().unwrap();
    assert_eq!(container.pid, 42);
    assert_eq!(container.descriptors.as_fds().len(), 5);
    let shape = container.descriptors.shape();
    assert!(!shape.tty && shape.has_stdin && shape.has_log_state);
}

#[tokio::test]
async fn too_few_descriptors_are_an_error() {
    let (client, _events, peer) = connected();
    let call = tokio::spawn(async move { client.create_sandbox(CreateSandbox::default()).await });
    let (id, _) = peer.take().await;
    let created = SandboxCreated {
        has_net: true,
        ..SandboxCreated::default()
    };
    let null = File::open("/dev/null").unwrap();
    peer.reply(id, reply::Body::SandboxCreated(created), &[null.as_fd()]);
    assert!(matches!(call.await.unwrap(), Err(Error::Protocol { .. })));
}

#[tokio::test]
async fn an_inventory_is_put_together_from_its_parts() {
    let (client, _events, peer) = connected();
    let call = tokio::spawn(async move { client.inventory().await });
    let (id, _) = peer.take().await;
    let null = File::open("/dev/null").unwrap();
    for (name, more) in [("a", true), ("b", false)] {
        let entry = ContainerEntry {
            container_id: name.to_owned(),
            descriptors: 3,
            ..ContainerEntry::default()
        };
        let part = Inventory {
            containers: vec![entry],
            more,
            ..Inventory::default()
        };
        peer.reply(id, reply::Body::Inventory(part), &[null.as_fd(); 3]);
    }
    let whole = call.await.unwrap().unwrap();
    assert_eq!(whole.containers.len(), 2);
    assert!(whole.containers.iter().all(|c| c.descriptors.is_some()));
}

#[tokio::test]
async fn output_in_a_descriptor_is_put_back() {
    let (client, _events, peer) = connected();
    let call = tokio::spawn(async move { client.exec_sync(ExecSync::default()).await });
    let (id, _) = peer.take().await;
    let memfd = holdfast_sys::memfd::sealed("t", b"from the memfd").unwrap();
    let finished = ExecFinished {
        stdout: b"inline".to_vec(),
        stderr_in_descriptor: true,
        ..ExecFinished::default()
    };
    peer.reply(id, reply::Body::ExecFinished(finished), &[memfd.as_fd()]);
    let finished = call.await.unwrap().unwrap();
    assert_eq!(finished.stdout, b"inline");
    assert_eq!(finished.stderr, b"from the memfd");
}

#[tokio::test]
async fn a_silent_monitor_runs_into_the_deadline() {
    let (client, _events, _peer) = connected();
    let client = client.with_deadline(Duration::from_millis(50));
    let error = client.shutdown().await.unwrap_err();
    assert!(matches!(error, Error::Deadline { call: "Shutdown", .. }));
}

#[tokio::test]
async fn the_end_of_the_connection_fails_calls_and_ends_events() {
    let (client, mut events, peer) = connected();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.stop_sandbox().await }
    });
    peer.take().await;
    peer.event("c");
    drop(peer);
    assert!(matches!(call.await.unwrap(), Err(Error::Gone)));
    assert!(matches!(client.hello().await, Err(Error::Gone)));
    assert!(matches!(events.next().await, Some(MonitorEvent::Exited(exit)) if exit.container_id == "c"));
    assert!(matches!(events.next().await, Some(MonitorEvent::Gone)));
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn events_that_nobody_takes_do_not_stop_replies() {
    let (client, mut events, peer) = connected();
    let peer = flooded(&client, peer).await;
    // That some are missing is told though no other event follows.
    assert_eq!(until_lagged(&mut events).await, EVENT_QUEUE);
    peer.event("after");
    assert!(matches!(events.next().await, Some(MonitorEvent::Exited(exit)) if exit.container_id == "after"));
    drop(flooded(&client, peer).await);
    assert_eq!(until_lagged(&mut events).await, EVENT_QUEUE);
    assert!(matches!(events.next().await, Some(MonitorEvent::Gone)));
}

/// More events than the queue holds, and an answer behind them: when it has come, all of them have.
async fn flooded(client: &Client, peer: Peer) -> Peer {
    let flood = tokio::task::spawn_blocking(move || {
        for _ in 0..EVENT_QUEUE + 10 {
            peer.event("x");
        }
        peer
    });
    let peer = flood.await.unwrap();
    let caller = client.clone();
    let call = tokio::spawn(async move { caller.forget_exit("x").await });
    let (id, _) = peer.take().await;
    peer.reply(id, reply::Body::Done(Empty {}), &[]);
    call.await.unwrap().unwrap();
    peer
}

/// How many events come before that.
async fn until_lagged(events: &mut EventStream) -> usize {
    let mut taken = 0;
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), events.next());
        match next.await.expect("nothing told that events are missing") {
            Some(MonitorEvent::Exited(_)) => taken += 1,
            Some(MonitorEvent::Lagged) => return taken,
            other => panic!("{other:?}"),
        }
    }
}
