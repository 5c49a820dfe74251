//! GetContainerEvents: what every subscriber hears of pods and containers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_cri::v1 as cri;
use tonic::Streaming;

use super::{Pod, cases};
use crate::Context;
use crate::cri::container_config;
use crate::expect;

cases!["events";
    the_whole_life => "the peer's release is older than the call",
    every_subscriber_hears_the_same => "the peer's release is older than the call",
    an_exit_is_told_with_its_code => "the peer's release is older than the call",
    status_of_the_pod_holds_its_containers => "a later release of the peer, as the specification, fills the containers' statuses",
];

/// Far longer than an event takes.
const PATIENCE: Duration = Duration::from_secs(10);

type Told = (String, cri::ContainerEventType);

async fn listen(c: &Context) -> anyhow::Result<Streaming<cri::ContainerEventResponse>> {
    let request = cri::GetEventsRequest {};
    let stream = c.cri.runtime.clone().get_container_events(request).await?;
    Ok(stream.into_inner())
}

async fn next(
    stream: &mut Streaming<cri::ContainerEventResponse>,
) -> anyhow::Result<cri::ContainerEventResponse> {
    tokio::time::timeout(PATIENCE, stream.message())
        .await
        .context("no event came")??
        .context("the stream of events ended")
}

/// Events until that of the removal of `last`.
async fn until_removed(
    stream: &mut Streaming<cri::ContainerEventResponse>,
    last: &str,
) -> anyhow::Result<Vec<cri::ContainerEventResponse>> {
    let mut all = Vec::new();
    loop {
        let event = next(stream).await?;
        let over = event.container_id == last
            && event.container_event_type() == cri::ContainerEventType::ContainerDeletedEvent;
        all.push(event);
        if over {
            return Ok(all);
        }
        ensure!(all.len() < 1000, "a thousand events for one pod");
    }
}

fn told(events: &[cri::ContainerEventResponse], id: &str) -> Vec<cri::ContainerEventType> {
    let of = events.iter().filter(|event| event.container_id == id);
    of.map(cri::ContainerEventResponse::container_event_type)
        .collect()
}

/// All four kinds, each once, in order.
fn whole() -> Vec<cri::ContainerEventType> {
    use cri::ContainerEventType as T;
    vec![
        T::ContainerCreatedEvent,
        T::ContainerStartedEvent,
        T::ContainerStoppedEvent,
        T::ContainerDeletedEvent,
    ]
}

async fn the_whole_life(c: Arc<Context>) -> anyhow::Result<()> {
    let mut stream = listen(&c).await?;
    let pod = Pod::run(&c, "events").await?;
    let container = pod.sleeper(&c).await?;
    c.cri.stop(&container, 0).await?;
    c.cri.remove(&container).await?;
    let id = pod.id.clone();
    let uid = pod
        .config
        .metadata
        .as_ref()
        .map(|m| m.uid.clone())
        .unwrap_or_default();
    pod.end().await?;
    let events = until_removed(&mut stream, &id).await?;
    expect!(told(&events, &id), whole(), "events of the pod");
    expect!(told(&events, &container), whole(), "events of the container");
    let mut before = 0;
    for event in &events {
        ensure!(
            event.created_at >= before,
            "events are not in the order of their times"
        );
        before = event.created_at;
        let Some(status) = &event.pod_sandbox_status else {
            bail!("{event:?} has no pod status")
        };
        expect!(status.id, id, "the pod of an event");
        expect!(
            status.metadata.as_ref().map(|m| m.uid.as_str()),
            Some(uid.as_str()),
            "uid of the pod"
        );
        if event.container_id != container {
            continue;
        }
        let own = event.containers_statuses.iter().find(|s| s.id == container);
        let state = own.map(cri::ContainerStatus::state);
        let wanted = match event.container_event_type() {
            cri::ContainerEventType::ContainerCreatedEvent => Some(cri::ContainerState::ContainerCreated),
            cri::ContainerEventType::ContainerStartedEvent => Some(cri::ContainerState::ContainerRunning),
            cri::ContainerEventType::ContainerStoppedEvent => Some(cri::ContainerState::ContainerExited),
            cri::ContainerEventType::ContainerDeletedEvent => None,
        };
        expect!(state, wanted, "state in {:?}", event.container_event_type());
    }
    Ok(())
}

async fn every_subscriber_hears_the_same(c: Arc<Context>) -> anyhow::Result<()> {
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(listen(&c).await?);
    }
    // One that leaves is no trouble to the others.
    streams.pop();
    let pod = Pod::run(&c, "heard").await?;
    pod.sleeper(&c).await?;
    let id = pod.id.clone();
    pod.end().await?;
    let mut first: Option<Vec<Told>> = None;
    for stream in &mut streams {
        let events = until_removed(stream, &id).await?;
        let heard: Vec<Told> = events
            .iter()
            .map(|event| (event.container_id.clone(), event.container_event_type()))
            .collect();
        match &first {
            Some(first) => expect!(heard, *first, "what another subscriber heard"),
            None => first = Some(heard),
        }
    }
    Ok(())
}

async fn an_exit_is_told_with_its_code(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "exit").await?;
    let mut stream = listen(&c).await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let id = pod
        .start(&container_config(
            "seven",
            &image,
            &["/bin/sh", "-c", "sleep 0.2; exit 7"],
        ))
        .await?;
    loop {
        let event = next(&mut stream).await?;
        if event.container_id == id
            && event.container_event_type() == cri::ContainerEventType::ContainerStoppedEvent
        {
            let status = event.containers_statuses.iter().find(|s| s.id == id);
            expect!(status.map(|s| s.exit_code), Some(7), "exit code in the event");
            break;
        }
    }
    pod.end().await
}

async fn status_of_the_pod_holds_its_containers(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "statuses").await?;
    let container = pod.sleeper(&c).await?;
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: false,
    };
    let status = c
        .cri
        .runtime
        .clone()
        .pod_sandbox_status(request)
        .await?
        .into_inner();
    let ids: Vec<&str> = status.containers_statuses.iter().map(|s| s.id.as_str()).collect();
    expect!(ids, [container.as_str()], "containers in the pod's status");
    ensure!(
        status.timestamp > 1_600_000_000_000_000_000,
        "timestamp {} is not in nanoseconds",
        status.timestamp
    );
    pod.end().await
}
