//! One connection: a task that reads frames, a task that writes them, and the streams that the client opens.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::frame::{Decoder, Frame, FrameEncoder, FrameError};
use super::headers::Headers;
use super::shared::{Admission, Credit, Handle};
use crate::activity::Activity;
use crate::stream::{Budget, Incoming, incoming};
use crate::writer::{Ends, Tasks, writer};

/// Read at a time.
const READ: usize = 16 << 10;
/// Streams that were opened and not yet looked at.
const UNSEEN: usize = 16;

/// A stream that the client has opened, to be answered with a reply or a reset.
#[derive(Debug)]
pub struct Opened {
    pub id: u32,
    pub headers: Headers,
    pub input: Incoming,
}

/// A connection. Dropping it closes the socket at once.
#[derive(Debug)]
pub struct Mux {
    pub opened: mpsc::Receiver<Opened>,
    pub handle: Handle,
    /// The client has gone, or broken the protocol.
    pub gone: CancellationToken,
    tasks: Tasks,
}

impl Mux {
    pub fn start(io: impl AsyncRead + AsyncWrite + Send + 'static, activity: Activity) -> Self {
        let (read, write) = tokio::io::split(io);
        let ends = Ends::default();
        let gone = ends.over.clone();
        let (queue, writing) = writer(FrameEncoder::default(), write, activity.clone(), ends.clone());
        let handle = Handle::new(queue);
        let (sender, opened) = mpsc::channel(UNSEEN);
        let reader = Reader {
            handle: handle.clone(),
            opened: sender,
            budget: Budget::new(),
        };
        let reading_activity = activity.clone();
        let (gone_too, unreachable) = (gone.clone(), gone.clone());
        let writer = tokio::spawn(async move {
            writing.await;
            unreachable.cancel();
        });
        let reading = async move {
            match reader.run(read, reading_activity).await {
                Ok(()) => {}
                Err(Broken::Frame(error)) => {
                    tracing::debug!(%error, "a client broke the protocol");
                    reader.handle.protocol_error();
                }
                Err(Broken::Io(error)) => tracing::debug!(%error, "a client's connection broke"),
            }
            reader.handle.over();
            gone_too.cancel();
        };
        Self {
            opened,
            handle,
            gone,
            tasks: Tasks {
                ends,
                activity,
                reader: AbortOnDropHandle::new(tokio::spawn(reading)),
                writer: AbortOnDropHandle::new(writer),
            },
        }
    }

    /// Parts from the client: see [`Tasks::part`].
    pub async fn close(mut self) {
        // Who opens streams now is refused.
        self.opened.close();
        while self.opened.try_recv().is_ok() {}
        self.tasks.part(self.handle.go_away()).await;
    }
}

enum Broken {
    Frame(FrameError),
    Io(std::io::Error),
}

struct Reader {
    handle: Handle,
    opened: mpsc::Sender<Opened>,
    budget: Budget,
}

impl Reader {
    async fn run(&self, mut io: impl AsyncRead + Unpin, activity: Activity) -> Result<(), Broken> {
        let mut decoder = Decoder::new();
        let mut buffer = BytesMut::new();
        loop {
            while let Some(frame) = decoder.decode(&mut buffer).map_err(Broken::Frame)? {
                self.handle(frame).await.map_err(Broken::Frame)?;
            }
            buffer.reserve(READ);
            if io.read_buf(&mut buffer).await.map_err(Broken::Io)? == 0 {
                return Ok(());
            }
            activity.touch();
        }
    }

    async fn handle(&self, frame: Frame) -> Result<(), FrameError> {
        let handle = &self.handle;
        match frame {
            Frame::SynStream { id, headers, fin } => self.open(id, headers, fin).await?,
            Frame::Data { id, bytes, fin } => {
                let length = bytes.len();
                let wanted = match handle.feed(id) {
                    Some(feed) => feed.push(&self.budget, bytes, || handle.ping()).await,
                    None => false,
                };
                if !wanted {
                    handle.discarded(length);
                }
                if fin {
                    handle.client_finished(id);
                }
            }
            Frame::Headers { id, fin: true } => handle.client_finished(id),
            Frame::Reset { id, .. } => handle.client_reset(id),
            Frame::Settings {
                initial_window: Some(size),
            } => handle.initial_window(size),
            Frame::WindowUpdate { id, delta } => handle.window_update(id, delta)?,
            // An even number answers ours.
            Frame::Ping { id } if id % 2 == 1 => handle.pong(id),
            Frame::GoAway { .. } => handle.client_goes(),
            // We open no streams that could be replied to.
            Frame::SynReply { .. } | Frame::Headers { .. } | Frame::Settings { .. } | Frame::Ping { .. } => {}
        }
        Ok(())
    }

    async fn open(&self, id: u32, headers: Headers, fin: bool) -> Result<(), FrameError> {
        let credit = Credit::new(self.handle.clone(), id);
        let (feed, input) = incoming(Some(credit));
        if let Admission::Admitted = self.handle.admit(id, feed, fin)?
            && self.opened.send(Opened { id, headers, input }).await.is_err()
        {
            self.handle.reset(id, super::reset::REFUSED_STREAM);
        }
        Ok(())
    }
}
