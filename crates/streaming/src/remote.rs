//! Exec and attach: a process's descriptors joined with a client's streams.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backend::{AttachRequest, Backend, BackendError, ExecRequest, Process, Resize, TerminalSize};
use crate::pipe::{Reader, Writer};
use crate::status::Outcome;
use crate::stream::{Incoming, Item, Sink};

/// After a command's exit its output is read until its end, or until nothing has come for this long: a child in the
/// background may hold the pipes open for ever.
const QUIET: Duration = Duration::from_secs(2);
/// How long a command with a terminal waits for its size. Clients send it as soon as the streams stand (over SPDY a round trip later) or not
/// at all, and a command that begins before it is there draws its first screen for a terminal of no size.
const FIRST_SIZE: Duration = Duration::from_millis(if cfg!(test) { 2000 } else { 250 });
/// A size is a short JSON object; more than this without an end is none.
const MAX_SIZE: usize = 1 << 10;

/// What the client asked for.
#[derive(Debug, Clone)]
pub enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

/// Which of a process's streams a client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Request {
    pub fn wanted(&self) -> Wanted {
        match self {
            Self::Exec(r) => Wanted {
                stdin: r.stdin,
                stdout: r.stdout,
                stderr: r.stderr,
                tty: r.tty,
            },
            Self::Attach(r) => Wanted {
                stdin: r.stdin,
                stdout: r.stdout,
                stderr: r.stderr,
                tty: r.tty,
            },
        }
    }
}

/// A client's streams.
#[derive(Debug)]
pub struct Streams {
    pub stdin: Option<Incoming>,
    pub resize: Option<Incoming>,
    pub stdout: Option<Sink>,
    pub stderr: Option<Sink>,
    pub error: Sink,
    /// The status is sent as JSON.
    pub json: bool,
}

/// Serves one command or container to its end, or until the client has gone.
pub async fn serve(backend: &dyn Backend, request: Request, streams: Streams, gone: &CancellationToken) {
    tokio::select! {
        // Dropping the process hangs up.
        () = gone.cancelled() => tracing::debug!("the client has gone"),
        () = to_the_end(backend, request, streams) => {}
    }
}

async fn to_the_end(backend: &dyn Backend, request: Request, streams: Streams) {
    let attach = matches!(request, Request::Attach(_));
    let Streams {
        stdin,
        resize,
        stdout,
        stderr,
        error,
        json,
    } = streams;
    let mut sizes = resize.map(Sizes::new);
    let started = match request {
        Request::Exec(request) => {
            let first = match &mut sizes {
                Some(sizes) => tokio::time::timeout(FIRST_SIZE, sizes.next()).await,
                None => Ok(None),
            };
            let first = first.ok().flatten();
            let started = backend.exec(request, first).await;
            // Not every runtime heeds the size that a process is to begin with.
            if let (
                Some(size),
                Ok(Process {
                    resize: Some(resize), ..
                }),
            ) = (first, &started)
            {
                resize(size);
            }
            started
        }
        Request::Attach(request) => backend.attach(request).await,
    };
    let outcome = match started {
        Ok(process) => match join(process, stdin, sizes, stdout.as_ref(), stderr.as_ref()).await {
            // What a container that was attached to exits with is not the client's affair.
            Ok(_) if attach => Outcome::Success,
            Ok(code) => Outcome::ExitCode(code),
            Err(e) => Outcome::failed(&*e),
        },
        Err(e) => Outcome::failed(&*e),
    };
    if let Outcome::Failed(why) = &outcome {
        tracing::debug!("{why}");
    }
    for sink in [&stdout, &stderr].into_iter().flatten() {
        sink.finish().await;
    }
    let message = outcome.message(json);
    if !message.is_empty() {
        let _ = error.write(message).await;
    }
    error.finish().await;
}

async fn join(
    process: Process,
    stdin: Option<Incoming>,
    sizes: Option<Sizes>,
    stdout: Option<&Sink>,
    stderr: Option<&Sink>,
) -> Result<i32, BackendError> {
    let (exited, exit_seen) = watch::channel(false);
    let no_outputs = process.stdout.is_none() && process.stderr.is_none();
    let open = |fd: Option<_>| fd.map(Reader::new).transpose();
    let (from_stdout, from_stderr) = (open(process.stdout)?, open(process.stderr)?);
    let to_stdin = process.stdin.map(Writer::new).transpose()?;
    let outputs = async {
        tokio::join!(
            copy_out(from_stdout, stdout, exit_seen.clone()),
            copy_out(from_stderr, stderr, exit_seen.clone())
        );
        if no_outputs {
            // Nothing to drain: the exit alone decides.
            wait_for(&mut exit_seen.clone()).await;
        }
    };
    let inputs = async {
        tokio::join!(copy_in(stdin, to_stdin), resizes(sizes, process.resize));
        std::future::pending::<()>().await;
    };
    let mut exit = process.exit;
    let exit = async {
        let code = (&mut exit).await;
        let _ = exited.send(true);
        code
    };
    tokio::select! {
        (code, ()) = async { tokio::join!(exit, outputs) } => code,
        () = inputs => Err("the streams ended".into()),
    }
}

async fn wait_for(exited: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the wait.
    let _ = exited.wait_for(|exited| *exited).await;
}

/// Until the end; what the client does not want or take any more is read and dropped, so that nobody waits for us.
async fn copy_out(from: Option<Reader>, to: Option<&Sink>, mut exited: watch::Receiver<bool>) {
    let Some(mut from) = from else { return };
    let mut to = to;
    loop {
        let quiet = async {
            wait_for(&mut exited).await;
            tokio::time::sleep(QUIET).await;
        };
        let data = tokio::select! {
            biased;
            data = from.read() => data,
            () = quiet => return,
        };
        match data {
            Ok(Some(data)) => {
                if let Some(sink) = to
                    && sink.write(data).await.is_err()
                {
                    to = None;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "cannot read a container's output");
                return;
            }
        }
    }
}

/// Until the client or the process has had enough; closing our end tells the process.
async fn copy_in(from: Option<Incoming>, to: Option<Writer>) {
    let (Some(mut from), Some(to)) = (from, to) else {
        return;
    };
    while let Item::Data(data) = from.next().await {
        if let Err(error) = to.write_all(&data).await {
            tracing::debug!(%error, "a process reads no more");
            return;
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

async fn resizes(from: Option<Sizes>, resize: Option<Resize>) {
    let (Some(mut from), Some(resize)) = (from, resize) else {
        return;
    };
    while let Some(size) = from.next().await {
        resize(size);
    }
}

/// Sizes come as JSON objects, one behind the other; of those that come together only the last counts.
struct Sizes {
    from: Incoming,
    /// The beginning of one.
    text: BytesMut,
}

impl Sizes {
    fn new(from: Incoming) -> Self {
        Self {
            from,
            text: BytesMut::new(),
        }
    }

    /// `None` at the end. One that is given up while it waits loses a size at most.
    async fn next(&mut self) -> Option<TerminalSize> {
        while let Item::Data(data) = self.from.next().await {
            if let Some(Size { width, height }) = last_size(&mut self.text, &data) {
                return Some(TerminalSize {
                    columns: width,
                    rows: height,
                });
            }
        }
        None
    }
}

fn last_size(text: &mut BytesMut, data: &Bytes) -> Option<Size> {
    let mut last = None;
    for byte in data {
        if text.len() >= MAX_SIZE {
            text.clear();
        }
        text.extend_from_slice(&[*byte]);
        if *byte == b'}' {
            last = serde_json::from_slice(text).ok().or(last);
            text.clear();
        }
    }
    last
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_in_pieces() {
        let mut text = BytesMut::new();
        let mut push = |data: &'static str| {
            last_size(&mut text, &Bytes::from_static(data.as_bytes())).map(|s| (s.width, s.height))
        };
        assert_eq!(push("{\"Width\":80,\"Hei"), None);
        assert_eq!(push("ght\":24}\n"), Some((80, 24)));
        assert_eq!(
            push("{\"Width\":1,\"Height\":2}{\"Width\":3,\"Height\":4}"),
            Some((3, 4))
        );
        assert_eq!(push("nonsense}"), None);
        assert_eq!(push("{\"Width\":70000,\"Height\":1}"), None);
        assert_eq!(push("{\"Width\":5,\"Height\":6}"), Some((5, 6)));
    }

    #[test]
    fn endless_sizes_are_dropped() {
        let mut text = BytesMut::new();
        for _ in 0..100 {
            assert!(last_size(&mut text, &Bytes::from(vec![b'{'; 1000])).is_none());
            assert!(text.len() <= MAX_SIZE);
        }
    }
}
