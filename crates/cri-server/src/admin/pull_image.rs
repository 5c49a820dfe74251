//! Admin.PullImage: a pull that tells how far it is. The pull is as alive as the stream.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_cri_api::admin::PullProgress;
use holdfast_cri_api::v1::PullImageRequest;
use holdfast_images::Progress;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::Services;
use crate::image::pull_request;

pub type Stream = Pin<Box<dyn futures::Stream<Item = Result<PullProgress, Status>> + Send>>;

/// How often a client hears of a pull.
const INTERVAL: Duration = Duration::from_millis(150);
/// Messages that a client may leave unread; a slow one hears less often.
const QUEUE: usize = 4;

pub fn call(services: &Services, request: PullImageRequest) -> Result<Stream, Status> {
    let request = pull_request(request)?;
    let images = services.images.clone();
    let (sender, receiver) = mpsc::channel(QUEUE);
    let latest = Arc::new(Mutex::new(Progress::default()));
    let seen = Arc::clone(&latest);
    tokio::spawn(async move {
        let pull = images.pull(request, move |progress| {
            *seen.lock().unwrap_or_else(PoisonError::into_inner) = progress;
        });
        tokio::pin!(pull);
        let mut tick = tokio::time::interval(INTERVAL);
        let outcome = loop {
            tokio::select! {
                outcome = &mut pull => break outcome,
                () = sender.closed() => return,
                _ = tick.tick() => {
                    let progress = *latest.lock().unwrap_or_else(PoisonError::into_inner);
                    let _ = sender.try_send(Ok(message(progress, String::new())));
                }
            }
        };
        let last = *latest.lock().unwrap_or_else(PoisonError::into_inner);
        crate::image::give_memory_back();
        let _ = sender
            .send(
                outcome
                    .map(|id| message(last, id.to_string()))
                    .map_err(crate::error::images),
            )
            .await;
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn message(progress: Progress, image_ref: String) -> PullProgress {
    PullProgress {
        layers: u32::try_from(progress.layers).unwrap_or(u32::MAX),
        layers_done: u32::try_from(progress.layers_done).unwrap_or(u32::MAX),
        bytes: progress.bytes,
        bytes_done: progress.bytes_done,
        image_ref,
    }
}
