//! One upgraded connection: gathers a client's streams and serves them.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use crate::activity::Activity;
use crate::backend::Backend;
use crate::forward;
use crate::negotiate::{Remote, Transport};
use crate::remote::{self, Request, Streams, Wanted};
use crate::spdy;
use crate::stream::{Feed, Incoming, Sink, incoming};
use crate::ws;

/// How long a client may take to open the streams that it has asked for.
pub const STREAM_CREATION: Duration = Duration::from_secs(30);
/// Ports of one request of the older WebSocket protocols; each has two channels, numbered in one byte.
pub const MAX_PORTS: usize = 100;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// What a token stands for.
#[derive(Debug, Clone)]
pub enum Claim {
    Remote(Request),
    Forward { sandbox: String, ports: Vec<u16> },
}

/// Serves one connection to its end.
pub async fn serve(
    backend: Arc<dyn Backend>,
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    claim: Claim,
    transport: Transport,
    remote: Remote,
    activity: Activity,
) {
    match (claim, transport) {
        (Claim::Remote(request), Transport::Spdy | Transport::Tunnel) => {
            spdy_remote(&*backend, spdy::Mux::start(io, activity), request, remote).await;
        }
        (Claim::Remote(request), Transport::WebSocket(codec)) => {
            ws_remote(&*backend, io, codec, request, remote, activity).await;
        }
        (Claim::Forward { sandbox, .. }, Transport::Spdy) => {
            let mut mux = spdy::Mux::start(io, activity);
            forward::serve(backend, &sandbox, &mut mux).await;
            mux.close().await;
        }
        (Claim::Forward { sandbox, .. }, Transport::Tunnel) => {
            let (inner, tunnel) = ws::tunnel(io, activity.clone());
            let mut mux = spdy::Mux::start(inner, activity);
            forward::serve(backend, &sandbox, &mut mux).await;
            mux.close().await;
            tunnel.close().await;
        }
        (Claim::Forward { sandbox, ports }, Transport::WebSocket(codec)) => {
            ws_forward(backend, io, codec, &sandbox, &ports, activity).await;
        }
    }
}

async fn spdy_remote(backend: &dyn Backend, mut mux: spdy::Mux, request: Request, remote: Remote) {
    let wanted = request.wanted();
    match tokio::time::timeout(STREAM_CREATION, gather(&mut mux, wanted, remote)).await {
        Ok(Some(streams)) => {
            let (gone, handle) = (mux.gone.clone(), mux.handle.clone());
            let refuse_more = async {
                while let Some(opened) = mux.opened.recv().await {
                    handle.reset(opened.id, spdy::reset::REFUSED_STREAM);
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = remote::serve(backend, request, streams, &gone) => {}
                () = refuse_more => {}
            }
        }
        Ok(None) => {}
        Err(_) => tracing::debug!("a client did not open its streams within {STREAM_CREATION:?}"),
    }
    mux.close().await;
}

/// The streams that were asked for, in whatever order they are opened; `None` if the client goes away before that.
async fn gather(mux: &mut spdy::Mux, wanted: Wanted, remote: Remote) -> Option<Streams> {
    let (mut error, mut stdout, mut stderr) = (None, None, None);
    let (mut stdin, mut resize): (Option<Incoming>, Option<Incoming>) = (None, None);
    let sizes = wanted.tty && remote.resize;
    let mut seen: Vec<String> = Vec::new();
    while error.is_none()
        || (wanted.stdin && stdin.is_none())
        || (wanted.stdout && stdout.is_none())
        || (wanted.stderr && stderr.is_none())
        || (sizes && resize.is_none())
    {
        let spdy::Opened { id, headers, input } = mux.opened.recv().await?;
        let kind = headers.get("streamtype").unwrap_or_default();
        let known = matches!(kind, "error" | "stdin" | "stdout" | "stderr" | "resize");
        if !known || seen.iter().any(|s| s == kind) {
            mux.handle.reset(id, spdy::reset::REFUSED_STREAM);
            continue;
        }
        seen.push(kind.to_owned());
        mux.handle.reply(id).await.ok()?;
        let sink = || Some(Sink::Spdy(mux.handle.outgoing(id)));
        // A stream that was opened without having been asked for is left alone.
        match kind {
            "error" => error = sink(),
            "stdin" if wanted.stdin => stdin = Some(input),
            "stdout" if wanted.stdout => stdout = sink(),
            "stderr" if wanted.stderr => stderr = sink(),
            "resize" if sizes => resize = Some(input),
            _ => {}
        }
    }
    Some(Streams {
        stdin,
        resize,
        stdout,
        stderr,
        error: error?,
        json: remote.json,
    })
}

async fn ws_remote(
    backend: &dyn Backend,
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    codec: ws::Codec,
    request: Request,
    remote: Remote,
    activity: Activity,
) {
    let wanted = request.wanted();
    let mut feeds: Vec<Option<Feed>> = vec![None; usize::from(RESIZE) + 1];
    let mut channel = |number: u8, wanted: bool| {
        let (feed, input) = incoming(None);
        feeds[usize::from(number)] = wanted.then_some(feed);
        wanted.then_some(input)
    };
    let stdin = channel(STDIN, wanted.stdin);
    let resize = channel(RESIZE, wanted.tty && remote.resize);
    let mux = ws::Mux::start(io, codec, feeds, activity);
    let sink = |number, wanted: bool| wanted.then(|| Sink::WebSocket(mux.outgoing(number)));
    let streams = Streams {
        stdin,
        resize,
        stdout: sink(STDOUT, wanted.stdout),
        stderr: sink(STDERR, wanted.stderr),
        error: Sink::WebSocket(mux.outgoing(ERROR)),
        json: remote.json,
    };
    // An empty message on the lowest channel tells clients that the connection stands.
    let first = streams
        .stdout
        .as_ref()
        .or(streams.stderr.as_ref())
        .unwrap_or(&streams.error);
    let _ = first.write(bytes::Bytes::new()).await;
    remote::serve(backend, request, streams, &mux.gone).await;
    mux.close().await;
}

async fn ws_forward(
    backend: Arc<dyn Backend>,
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    codec: ws::Codec,
    sandbox: &str,
    ports: &[u16],
    activity: Activity,
) {
    let mut feeds = Vec::new();
    let mut inputs = Vec::new();
    for _ in ports {
        let (feed, input) = incoming(None);
        feeds.extend([Some(feed), None]);
        inputs.push(input);
    }
    let mux = ws::Mux::start(io, codec, feeds, activity);
    let mut running = JoinSet::new();
    for (channel, (port, data_in)) in (0u8..).step_by(2).zip(ports.iter().zip(inputs)) {
        let data_out = Sink::WebSocket(mux.outgoing(channel));
        let error = Sink::WebSocket(mux.outgoing(channel + 1));
        forward::announce(*port, &data_out, &error).await;
        let forward = forward::Forward {
            sandbox: sandbox.to_owned(),
            port: *port,
            data_in,
            data_out,
            error,
        };
        running.spawn(forward::one(backend.clone(), forward));
    }
    tokio::select! {
        () = mux.gone.cancelled() => {}
        () = async { while running.join_next().await.is_some() {} } => {}
    }
    drop(running);
    mux.close().await;
}
