//! The writing half of a connection: one task, fed by two bounded queues.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::activity::Activity;

/// Frames of data that wait to be written; each is at most 32 KiB.
const QUEUE: usize = 8;
/// How long what is still in the queues may take when the connection is over.
pub const LAST_WORDS: Duration = Duration::from_secs(1);
/// Answers to what the other side asks: a few bytes each.
const URGENT: usize = 64;

/// How frames become bytes. Called in the order in which they are written.
pub trait Encoder: Send + 'static {
    type Item: Send + 'static;

    /// Appends what goes before the payload to `head` and returns the payload.
    fn encode(&mut self, item: Self::Item, head: &mut BytesMut) -> Bytes;

    /// Nothing may be written after a goodbye.
    const ENDS: bool;

    /// After this one no more data comes.
    fn is_goodbye(item: &Self::Item) -> bool;

    /// Asks only whether the client is there: no sign of life.
    fn is_probe(item: &Self::Item) -> bool;
}

/// What the task that writes is told, and what it tells.
#[derive(Debug, Clone, Default)]
pub struct Ends {
    /// The client has closed its side: the task writes what waits, closes ours, and ends.
    pub over: CancellationToken,
    /// The goodbye has been handed to the kernel.
    pub said: CancellationToken,
}

/// The two tasks of a connection. Dropping them closes the socket at once.
#[derive(Debug)]
pub struct Tasks {
    pub ends: Ends,
    pub activity: Activity,
    pub reader: AbortOnDropHandle<()>,
    pub writer: AbortOnDropHandle<()>,
}

impl Tasks {
    /// Lets the client read to the end: says goodbye, and waits for it to close the connection while it shows signs of life. If our side were
    /// closed before, kubelet and API server, through which clients come, would close both theirs at once, and their kernels would drop what
    /// a slow client has not read yet.
    pub async fn part(mut self, goodbye: impl Future<Output = ()>) {
        let said = async {
            goodbye.await;
            tokio::select! {
                () = self.ends.said.cancelled() => {}
                () = self.ends.over.cancelled() => {}
            }
        };
        self.activity
            .part(said, async { drop((&mut self.reader).await) })
            .await;
        self.ends.over.cancel();
        let _ = timeout(LAST_WORDS, &mut self.writer).await;
    }
}

/// Puts frames into the queues.
#[derive(Debug)]
pub struct Queue<T> {
    data: mpsc::Sender<T>,
    urgent: mpsc::Sender<T>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            data: self.data.clone(),
            urgent: self.urgent.clone(),
        }
    }
}

/// The connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

impl<T> Queue<T> {
    /// Waits for room: this is the back-pressure on whoever produces.
    pub async fn send(&self, item: T) -> Result<(), Gone> {
        self.data.send(item).await.map_err(|_| Gone)
    }

    /// Goes before all data that waits.
    pub async fn urgent(&self, item: T) -> Result<(), Gone> {
        self.urgent.send(item).await.map_err(|_| Gone)
    }

    /// Like [`urgent`](Self::urgent), but lost where there is no room: for answers to somebody who does not read them.
    pub fn try_urgent(&self, item: T) {
        let _ = self.urgent.try_send(item);
    }
}

/// The queues, and the task to be run. It ends when it is over, or the client cannot be written to.
pub fn writer<E: Encoder>(
    encoder: E,
    io: impl AsyncWrite + Send + Unpin + 'static,
    activity: Activity,
    ends: Ends,
) -> (Queue<E::Item>, impl Future<Output = ()> + Send + 'static) {
    let (data, data_queue) = mpsc::channel(QUEUE);
    let (urgent, urgent_queue) = mpsc::channel(URGENT);
    (
        Queue { data, urgent },
        run(encoder, io, activity, ends, (urgent_queue, data_queue)),
    )
}

async fn run<E: Encoder>(
    mut encoder: E,
    mut io: impl AsyncWrite + Send + Unpin,
    activity: Activity,
    ends: Ends,
    (mut urgent, mut data): (mpsc::Receiver<E::Item>, mpsc::Receiver<E::Item>),
) {
    let mut ended = false;
    let mut head = BytesMut::with_capacity(64);
    loop {
        let item = tokio::select! {
            biased;
            Some(item) = urgent.recv(), if !ended => item,
            Some(item) = data.recv(), if !ended => item,
            () = ends.over.cancelled() => break,
        };
        let (goodbye, probe) = (E::is_goodbye(&item), E::is_probe(&item));
        ended |= goodbye && E::ENDS;
        head.clear();
        let payload = encoder.encode(item, &mut head);
        let mut all = (&head[..]).chain(payload);
        // Each part that is taken is a sign of life.
        while all.has_remaining() {
            match io.write_buf(&mut all).await {
                Ok(1..) if probe => {}
                Ok(1..) => activity.touch(),
                Ok(0) | Err(_) => return,
            }
        }
        // TLS keeps records back until it is told; a plain socket has nothing to flush.
        if (goodbye || data.is_empty() && urgent.is_empty()) && io.flush().await.is_err() {
            return;
        }
        if goodbye {
            ends.said.cancel();
        }
    }
    let _ = io.flush().await;
    let _ = io.shutdown().await;
}
