//! One direction of one stream, whatever carries it.
//!
//! What has come in and was not taken yet counts against one budget of its connection; when that is used up, nothing
//! more is read from the connection. Clients of Kubernetes know no flow control per stream, so that one stream which nobody
//! reads holds up the others of its connection (as it does with the peers), though never those of another.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::writer::Gone;
use crate::{spdy, ws};

/// What one connection keeps for streams that are read slowly.
const BUDGET: usize = 256 << 10;
/// Whether the client is still there is asked so often while its input waits.
const PROBE_EVERY: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 30_000 });
/// The least that a piece counts, however small it is.
const LEAST: usize = 256;

#[derive(Debug, Clone)]
pub struct Budget(Arc<Semaphore>);

impl Budget {
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET)))
    }
}

#[derive(Debug)]
enum Piece {
    Data(Bytes, OwnedSemaphorePermit),
    Reset,
}

/// Where the connection puts what arrives. Dropping it is the end of the stream.
#[derive(Debug, Clone)]
pub struct Feed(mpsc::UnboundedSender<Piece>);

impl Feed {
    /// False if nobody wants it any more. Nothing is read from the connection meanwhile, so its end would not be seen: `probe` is
    /// called from time to time, to write something that the kernel of a client that has gone refuses.
    pub async fn push(&self, budget: &Budget, bytes: Bytes, probe: impl Fn()) -> bool {
        if bytes.is_empty() {
            return true;
        }
        let cost = u32::try_from(bytes.len().clamp(LEAST, BUDGET)).unwrap_or(u32::MAX);
        let room = budget.0.clone().acquire_many_owned(cost);
        tokio::pin!(room);
        let permit = loop {
            tokio::select! {
                biased;
                () = self.0.closed() => return false,
                permit = &mut room => break permit,
                () = tokio::time::sleep(PROBE_EVERY) => probe(),
            }
        };
        permit.is_ok_and(|permit| self.0.send(Piece::Data(bytes, permit)).is_ok())
    }

    pub fn reset(self) {
        let _ = self.0.send(Piece::Reset);
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Data(Bytes),
    /// The other side has ended it, and may still read.
    End,
    /// The other side wants no more of it.
    Reset,
}

/// What arrives on a stream.
#[derive(Debug)]
pub struct Incoming {
    pieces: mpsc::UnboundedReceiver<Piece>,
    credit: Option<spdy::Credit>,
}

pub fn incoming(credit: Option<spdy::Credit>) -> (Feed, Incoming) {
    let (sender, pieces) = mpsc::unbounded_channel();
    (Feed(sender), Incoming { pieces, credit })
}

impl Incoming {
    pub async fn next(&mut self) -> Item {
        match self.pieces.recv().await {
            Some(Piece::Data(bytes, permit)) => {
                drop(permit);
                if let Some(credit) = &mut self.credit {
                    credit.taken(bytes.len()).await;
                }
                Item::Data(bytes)
            }
            Some(Piece::Reset) => Item::Reset,
            None => Item::End,
        }
    }
}

/// Where a stream's output goes.
#[derive(Debug)]
pub enum Sink {
    Spdy(spdy::Outgoing),
    WebSocket(ws::Outgoing),
}

impl Sink {
    /// Waits while the client does not read.
    pub async fn write(&self, bytes: Bytes) -> Result<(), Gone> {
        match self {
            Self::Spdy(out) => out.write(bytes).await,
            Self::WebSocket(out) => out.write(bytes).await,
        }
    }

    /// Nothing more will come. WebSocket clients learn that from the end of the connection.
    pub async fn finish(&self) {
        match self {
            Self::Spdy(out) => out.finish().await,
            Self::WebSocket(_) => {}
        }
    }
}
