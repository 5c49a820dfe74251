//! What the reader, the streams and their users share: which streams there are, and how much may be sent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::frame::{FrameError, Out, goaway, reset};
use crate::stream::Feed;
use crate::writer::{Gone, Queue};

/// Streams of one connection at a time; two for each forwarded connection.
const MAX_STREAMS: usize = 1024;
/// Every window's size before anybody changes it (section 2.6.8).
const INITIAL_WINDOW: i64 = 64 << 10;
const LARGEST_WINDOW: i64 = 0x7fff_ffff;
/// The other side is told when this much was taken: half a window.
const CREDIT_STEP: u32 = 32 << 10;
/// Largest data frame that is sent.
const MAX_DATA: usize = 32 << 10;

/// A connection, to those who work with its streams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    queue: Queue<Out>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Windows have grown, or streams have gone.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    streams: HashMap<u32, Stream>,
    /// The highest stream that the client has opened.
    last: u32,
    going_away: bool,
    /// Whether the other side keeps windows, by stream and for the session: seen from its first frame about them.
    limited: bool,
    session_limited: bool,
    initial: i64,
    session: i64,
    /// Taken and not told yet, for the session.
    owed: u32,
}

#[derive(Debug)]
struct Stream {
    /// Gone once the client has ended its side.
    feed: Option<Feed>,
    /// We have ended ours.
    finished: bool,
    window: i64,
}

/// What became of a SYN_STREAM.
pub enum Admission {
    Admitted,
    Refused,
}

impl Handle {
    pub fn new(queue: Queue<Out>) -> Self {
        let state = State {
            streams: HashMap::new(),
            last: 0,
            going_away: false,
            limited: false,
            session_limited: false,
            initial: INITIAL_WINDOW,
            session: INITIAL_WINDOW,
            owed: 0,
        };
        Self {
            queue,
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Notify::new(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the client that its stream is accepted.
    pub async fn reply(&self, id: u32) -> Result<(), Gone> {
        self.queue.urgent(Out::Reply { id }).await
    }

    /// Ends a stream in both directions.
    pub fn reset(&self, id: u32, status: u32) {
        if self.state().streams.remove(&id).is_some() {
            self.shared.changed.notify_waiters();
            self.queue.try_urgent(Out::Reset { id, status });
        }
    }

    pub fn outgoing(&self, id: u32) -> Outgoing {
        Outgoing {
            handle: self.clone(),
            id,
        }
    }

    /// Says that no more data comes.
    pub async fn go_away(&self) {
        let last = self.state().last;
        let _ = self
            .queue
            .send(Out::GoAway {
                last,
                status: goaway::OK,
            })
            .await;
    }

    // What follows is for the reader.

    pub fn admit(&self, id: u32, feed: Feed, fin: bool) -> Result<Admission, FrameError> {
        let mut state = self.state();
        if id.is_multiple_of(2) || id < state.last {
            return Err(FrameError::Order(id));
        }
        let status = if id == state.last {
            reset::PROTOCOL_ERROR
        } else if state.going_away || state.streams.len() >= MAX_STREAMS {
            reset::REFUSED_STREAM
        } else {
            state.last = id;
            let window = state.initial;
            state.streams.insert(
                id,
                Stream {
                    feed: (!fin).then_some(feed),
                    finished: false,
                    window,
                },
            );
            return Ok(Admission::Admitted);
        };
        state.last = id;
        state.streams.remove(&id);
        drop(state);
        self.queue.try_urgent(Out::Reset { id, status });
        Ok(Admission::Refused)
    }

    /// Where data of a stream goes. What nobody takes is answered where the client should know better.
    pub fn feed(&self, id: u32) -> Option<Feed> {
        let state = self.state();
        let status = match state.streams.get(&id) {
            Some(Stream { feed: Some(feed), .. }) => return Some(feed.clone()),
            Some(_) => reset::STREAM_ALREADY_CLOSED,
            // We may have ended it while this was on its way.
            None if id <= state.last => return None,
            None => reset::INVALID_STREAM,
        };
        drop(state);
        if status == reset::STREAM_ALREADY_CLOSED {
            self.reset(id, status);
        } else {
            self.queue.try_urgent(Out::Reset { id, status });
        }
        None
    }

    pub fn client_finished(&self, id: u32) {
        let mut state = self.state();
        if let Some(stream) = state.streams.get_mut(&id) {
            stream.feed = None;
            if stream.finished {
                state.streams.remove(&id);
            }
        }
    }

    pub fn client_reset(&self, id: u32) {
        let stream = self.state().streams.remove(&id);
        if let Some(feed) = stream.and_then(|stream| stream.feed) {
            feed.reset();
        }
        self.shared.changed.notify_waiters();
    }

    /// No stream will be opened any more; those that are go on.
    pub fn client_goes(&self) {
        self.state().going_away = true;
    }

    /// The connection is over: every stream ends, every sender wakes.
    pub fn over(&self) {
        let mut state = self.state();
        state.going_away = true;
        state.streams.clear();
        drop(state);
        self.shared.changed.notify_waiters();
    }

    pub fn initial_window(&self, size: u32) {
        let mut state = self.state();
        let size = i64::from(size).min(LARGEST_WINDOW);
        let change = size - state.initial;
        state.initial = size;
        state.limited = true;
        for stream in state.streams.values_mut() {
            stream.window += change;
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }

    pub fn window_update(&self, id: u32, delta: u32) -> Result<(), FrameError> {
        let delta = i64::from(delta);
        let mut state = self.state();
        if id == 0 {
            state.session_limited = true;
            state.session += delta;
            if state.session > LARGEST_WINDOW {
                return Err(FrameError::Window);
            }
        } else {
            state.limited = true;
            if let Some(stream) = state.streams.get_mut(&id) {
                stream.window += delta;
                if stream.window > LARGEST_WINDOW {
                    drop(state);
                    self.reset(id, reset::FLOW_CONTROL_ERROR);
                    return Ok(());
                }
            }
        }
        drop(state);
        self.shared.changed.notify_waiters();
        Ok(())
    }

    /// Counts what was taken from the session, whether or not anybody wanted it.
    pub fn session_taken(&self, length: usize) -> Option<u32> {
        let mut state = self.state();
        state.owed = state
            .owed
            .saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
        (state.owed >= CREDIT_STEP).then(|| std::mem::take(&mut state.owed))
    }

    pub fn discarded(&self, length: usize) {
        if let Some(delta) = self.session_taken(length) {
            self.queue.try_urgent(Out::WindowUpdate { id: 0, delta });
        }
    }

    pub fn pong(&self, id: u32) {
        self.queue.try_urgent(Out::Ping { id });
    }

    /// The server's have even numbers; the answer says nothing that its arrival does not.
    pub fn ping(&self) {
        self.queue.try_urgent(Out::Ping { id: 2 });
    }

    pub fn protocol_error(&self) {
        let last = self.state().last;
        self.queue.try_urgent(Out::GoAway {
            last,
            status: goaway::PROTOCOL_ERROR,
        });
    }

    #[cfg(test)]
    pub fn open_streams(&self) -> usize {
        self.state().streams.len()
    }

    /// How much of `want` may be sent now; waits until that is something.
    async fn acquire(&self, id: u32, want: usize) -> Result<usize, Gone> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut guard = self.state();
                let state = &mut *guard;
                let stream = state.streams.get_mut(&id).filter(|s| !s.finished).ok_or(Gone)?;
                let mut room = i64::try_from(want.min(MAX_DATA)).unwrap_or(0);
                if state.limited {
                    room = room.min(stream.window);
                }
                if state.session_limited {
                    room = room.min(state.session);
                }
                if room > 0 {
                    stream.window -= room;
                    state.session -= room;
                    return Ok(usize::try_from(room).unwrap_or(0));
                }
            }
            changed.await;
        }
    }
}

/// The sending side of one stream.
#[derive(Debug)]
pub struct Outgoing {
    handle: Handle,
    id: u32,
}

impl Outgoing {
    pub async fn write(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let room = self.handle.acquire(self.id, bytes.len()).await?;
            let bytes = bytes.split_to(room);
            self.handle
                .queue
                .send(Out::Data {
                    id: self.id,
                    bytes,
                    fin: false,
                })
                .await?;
        }
        Ok(())
    }

    /// Ends our side; once only.
    pub async fn finish(&self) {
        {
            let mut state = self.handle.state();
            match state.streams.get_mut(&self.id) {
                Some(stream) if !stream.finished => stream.finished = true,
                _ => return,
            }
            if state.streams.get(&self.id).is_some_and(|s| s.feed.is_none()) {
                state.streams.remove(&self.id);
            }
        }
        let fin = Out::Data {
            id: self.id,
            bytes: Bytes::new(),
            fin: true,
        };
        let _ = self.handle.queue.send(fin).await;
    }
}

/// Tells the client what was taken from one of its streams.
#[derive(Debug)]
pub struct Credit {
    handle: Handle,
    id: u32,
    owed: u32,
}

impl Credit {
    pub fn new(handle: Handle, id: u32) -> Self {
        Self { handle, id, owed: 0 }
    }

    pub async fn taken(&mut self, length: usize) {
        self.owed = self
            .owed
            .saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
        if self.owed >= CREDIT_STEP {
            let delta = std::mem::take(&mut self.owed);
            let _ = self
                .handle
                .queue
                .urgent(Out::WindowUpdate { id: self.id, delta })
                .await;
        }
        if let Some(delta) = self.handle.session_taken(length) {
            let _ = self.handle.queue.urgent(Out::WindowUpdate { id: 0, delta }).await;
        }
    }
}
