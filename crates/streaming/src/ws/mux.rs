//! Channels over one WebSocket: the first byte of a message is the number of its channel.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::base64;
use super::frame::{Decoder, Event, FrameEncoder, FrameError, Out};
use crate::activity::Activity;
use crate::stream::{Budget, Feed};
use crate::writer::{Ends, Gone, Queue, Tasks, writer};

/// Read at a time.
pub const READ: usize = 16 << 10;
/// Under v5 a message that begins so ends the channel named by the next byte.
const CLOSE_SIGNAL: u8 = 255;
const NORMAL: u16 = 1000;
const PROTOCOL_ERROR: u16 = 1002;

/// How the agreed sub-protocol writes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codec {
    pub base64: bool,
    /// Single channels can be closed: v5.channel.k8s.io.
    pub close_signal: bool,
}

/// A connection. Dropping it closes the socket at once.
#[derive(Debug)]
pub struct Mux {
    queue: Queue<Out>,
    codec: Codec,
    /// The client has gone, or broken the protocol.
    pub gone: CancellationToken,
    tasks: Tasks,
}

impl Mux {
    /// `feeds` are those channels, by number, that the client writes to; what comes for others is dropped.
    pub fn start(
        io: impl AsyncRead + AsyncWrite + Send + 'static,
        codec: Codec,
        feeds: Vec<Option<Feed>>,
        activity: Activity,
    ) -> Self {
        let (read, write) = tokio::io::split(io);
        let ends = Ends::default();
        let gone = ends.over.clone();
        let (queue, writing) = writer(FrameEncoder, write, activity.clone(), ends.clone());
        let mut reader = Reader {
            queue: queue.clone(),
            codec,
            feeds,
            budget: Budget::new(),
            message: Message::Start,
            text: base64::Decoder::default(),
        };
        let reading_activity = activity.clone();
        let (gone_too, unreachable) = (gone.clone(), gone.clone());
        let writer = tokio::spawn(async move {
            writing.await;
            unreachable.cancel();
        });
        let reading = async move {
            let code = match reader.run(read, reading_activity).await {
                Ok(()) => NORMAL,
                Err(error) => {
                    tracing::debug!(%error, "a client broke the protocol");
                    PROTOCOL_ERROR
                }
            };
            reader.queue.try_urgent(Out::Close(code));
            drop(reader);
            gone_too.cancel();
        };
        Self {
            queue,
            codec,
            gone,
            tasks: Tasks {
                ends,
                activity,
                reader: AbortOnDropHandle::new(tokio::spawn(reading)),
                writer: AbortOnDropHandle::new(writer),
            },
        }
    }

    pub fn outgoing(&self, channel: u8) -> Outgoing {
        Outgoing {
            queue: self.queue.clone(),
            base64: self.codec.base64,
            channel,
        }
    }

    /// Parts from the client: see [`Tasks::part`].
    pub async fn close(self) {
        let goodbye = async {
            let _ = self.queue.send(Out::Close(NORMAL)).await;
        };
        self.tasks.part(goodbye).await;
    }
}

/// The sending side of one channel.
#[derive(Debug)]
pub struct Outgoing {
    queue: Queue<Out>,
    base64: bool,
    channel: u8,
}

impl Outgoing {
    pub async fn write(&self, bytes: Bytes) -> Result<(), Gone> {
        let channel = self.channel;
        let out = if self.base64 {
            Out::Base64 { channel, bytes }
        } else {
            Out::Channel { channel, bytes }
        };
        self.queue.send(out).await
    }
}

/// Where in a message we are.
#[derive(Debug, Clone, Copy)]
enum Message {
    /// Its first byte is still to come.
    Start,
    Channel(u8),
    /// After the close signal.
    Close,
}

struct Reader {
    queue: Queue<Out>,
    codec: Codec,
    feeds: Vec<Option<Feed>>,
    budget: Budget,
    message: Message,
    text: base64::Decoder,
}

impl Reader {
    async fn run(&mut self, mut io: impl AsyncRead + Unpin, activity: Activity) -> Result<(), FrameError> {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::new();
        loop {
            while let Some(event) = decoder.decode(&mut buffer)? {
                match event {
                    Event::Piece { bytes, first, last } => self.piece(bytes, first, last).await,
                    Event::Ping(payload) => self.queue.try_urgent(Out::Pong(payload)),
                    Event::Pong => {}
                    Event::Close(_) => return Ok(()),
                }
            }
            buffer.reserve(READ);
            if !matches!(io.read_buf(&mut buffer).await, Ok(1..)) {
                return Ok(());
            }
            activity.touch();
        }
    }

    async fn piece(&mut self, mut bytes: Bytes, first: bool, last: bool) {
        if first {
            self.message = Message::Start;
            self.text = base64::Decoder::default();
        }
        while !bytes.is_empty() {
            match self.message {
                Message::Start => {
                    let number = bytes.split_to(1)[0];
                    self.message = match number {
                        CLOSE_SIGNAL if self.codec.close_signal => Message::Close,
                        _ if self.codec.base64 => Message::Channel(number.wrapping_sub(b'0')),
                        _ => Message::Channel(number),
                    };
                }
                Message::Close => {
                    let channel = bytes.split_to(1)[0];
                    if let Some(feed) = self.feeds.get_mut(usize::from(channel)) {
                        *feed = None;
                    }
                    // Nothing else belongs into this message.
                    self.message = Message::Channel(CLOSE_SIGNAL);
                }
                Message::Channel(channel) => {
                    let bytes = std::mem::take(&mut bytes);
                    self.data(channel, bytes).await;
                }
            }
        }
        if last {
            self.message = Message::Start;
        }
    }

    async fn data(&mut self, channel: u8, mut bytes: Bytes) {
        let Some(feed) = self.feeds.get(usize::from(channel)).and_then(Option::as_ref) else {
            return;
        };
        if self.codec.base64 {
            let Some(decoded) = self.text.push(&bytes) else {
                tracing::debug!(channel, "a client's message is no base64");
                self.message = Message::Channel(CLOSE_SIGNAL);
                return;
            };
            bytes = decoded;
        }
        let queue = &self.queue;
        feed.push(&self.budget, bytes, || queue.try_urgent(Out::Ping))
            .await;
    }
}
