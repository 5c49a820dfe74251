//! Port-forward: connections into a pod, each with a data stream and an error stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backend::Backend;
use crate::spdy::{self, Headers, Mux, Opened};
use crate::status::chain;
use crate::stream::{Incoming, Item, Sink};

/// Forwarded connections of one client at a time, those included whose second stream is awaited.
const MAX_CONNECTIONS: usize = 512;
/// How long a stream may wait for the other one of its pair.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
const READ: usize = 32 << 10;

/// One connection to be made.
pub struct Forward {
    pub sandbox: String,
    pub port: u16,
    pub data_in: Incoming,
    pub data_out: Sink,
    pub error: Sink,
}

/// Half of a pair.
struct Half {
    since: Instant,
    port: u16,
    error: Option<u32>,
    data: Option<(u32, Incoming)>,
}

/// Serves the streams of one SPDY connection until the client has gone. `portforward.k8s.io` pairs them by the header
/// `requestid`; clients older than that open the data stream right behind the error stream.
pub async fn serve(backend: Arc<dyn Backend>, sandbox: &str, mux: &mut Mux) {
    let gone = mux.gone.clone();
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut running = JoinSet::new();
    let mut check = tokio::time::interval(PAIR_TIMEOUT / 10);
    loop {
        tokio::select! {
            () = gone.cancelled() => return,
            Some(_) = running.join_next() => {}
            _ = check.tick() => expire(&mut halves, mux),
            opened = mux.opened.recv() => {
                let Some(opened) = opened else { return };
                let full = halves.len() + running.len() >= MAX_CONNECTIONS;
                if let Some((pair, half)) = accept(&mut halves, opened, &mux.handle, full).await
                    && let Some((error, data, data_in)) = half
                {
                    let forward = Forward {
                        sandbox: sandbox.to_owned(),
                        port: pair,
                        data_in,
                        data_out: Sink::Spdy(mux.handle.outgoing(data)),
                        error: Sink::Spdy(mux.handle.outgoing(error)),
                    };
                    running.spawn(one(backend.clone(), forward));
                }
            }
        }
    }
}

type Pair = (u16, Option<(u32, u32, Incoming)>);

/// Answers a stream. With the second of a pair: its port, and the streams of error and data.
async fn accept(
    halves: &mut HashMap<String, Half>,
    opened: Opened,
    handle: &spdy::Handle,
    full: bool,
) -> Option<Pair> {
    let Opened { id, headers, input } = opened;
    let Some((key, is_data, port)) = identify(id, &headers) else {
        handle.reset(id, spdy::reset::REFUSED_STREAM);
        return None;
    };
    let half = match halves.get_mut(&key) {
        Some(half) => half,
        None if full => {
            handle.reset(id, spdy::reset::REFUSED_STREAM);
            return None;
        }
        None => {
            let half = Half {
                since: Instant::now(),
                port,
                error: None,
                data: None,
            };
            halves.entry(key.clone()).or_insert(half)
        }
    };
    let taken = if is_data {
        half.data.is_some()
    } else {
        half.error.is_some()
    };
    if taken || half.port != port {
        handle.reset(id, spdy::reset::STREAM_IN_USE);
        return None;
    }
    handle.reply(id).await.ok()?;
    if is_data {
        half.data = Some((id, input));
    } else {
        half.error = Some(id);
    }
    if half.data.is_none() || half.error.is_none() {
        return Some((port, None));
    }
    let half = halves.remove(&key)?;
    let (data, input) = half.data?;
    Some((port, Some((half.error?, data, input))))
}

/// The pair that a stream belongs to, whether it is its data stream, and the port.
fn identify(id: u32, headers: &Headers) -> Option<(String, bool, u16)> {
    let is_data = match headers.get("streamtype")? {
        "data" => true,
        "error" => false,
        _ => return None,
    };
    let port = headers.get("port")?.parse().ok().filter(|port| *port != 0)?;
    let key = match headers.get("requestid") {
        Some(key) if !key.is_empty() => format!("request {key}"),
        _ if is_data => format!("stream {}", id.checked_sub(2)?),
        _ => format!("stream {id}"),
    };
    Some((key, is_data, port))
}

fn expire(halves: &mut HashMap<String, Half>, mux: &Mux) {
    halves.retain(|_, half| {
        let keep = half.since.elapsed() < PAIR_TIMEOUT;
        if !keep {
            let ids = [half.error, half.data.as_ref().map(|(id, _)| *id)];
            for id in ids.into_iter().flatten() {
                mux.handle.reset(id, spdy::reset::REFUSED_STREAM);
            }
        }
        keep
    });
}

/// One connection, to its end.
pub async fn one(backend: Arc<dyn Backend>, forward: Forward) {
    let Forward {
        sandbox,
        port,
        mut data_in,
        data_out,
        error,
    } = forward;
    match backend.port_forward(&sandbox, port).await {
        Ok(socket) => {
            let _ = socket.set_nodelay(true);
            let (read, write) = socket.into_split();
            let inwards = async {
                let reset = copy_in(&mut data_in, write).await;
                if !reset {
                    // The other direction may go on for as long as it likes.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = copy_out(read, &data_out) => {}
                () = inwards => {}
            }
        }
        Err(e) => {
            let text = format!("error forwarding port {port} to pod {sandbox}: {}", chain(&*e));
            tracing::debug!("{text}");
            let _ = error.write(text.into()).await;
        }
    }
    data_out.finish().await;
    error.finish().await;
}

/// True if the client has hung up for both directions.
async fn copy_in(from: &mut Incoming, mut to: OwnedWriteHalf) -> bool {
    loop {
        match from.next().await {
            Item::Data(data) => {
                // The pod's end is told by the other direction.
                if to.write_all(&data).await.is_err() {
                    return false;
                }
            }
            Item::End => {
                let _ = to.shutdown().await;
                break;
            }
            Item::Reset => return true,
        }
    }
    // After its end a stream can still be reset; that is only seen when something is written to it.
    false
}

async fn copy_out(mut from: OwnedReadHalf, to: &Sink) {
    let mut buffer = BytesMut::new();
    loop {
        // Waiting holds no buffer.
        if from.readable().await.is_err() {
            return;
        }
        buffer.reserve(READ);
        match from.read_buf(&mut buffer).await {
            Ok(1..) if to.write(buffer.split().freeze()).await.is_ok() => {}
            _ => return,
        }
        if buffer.capacity() < READ / 8 {
            buffer = BytesMut::new();
        }
    }
}

/// Forwards of the older WebSocket protocols: the ports are known beforehand, and each has a channel for data and one
/// for errors, which begin with the port in two bytes.
pub async fn announce(port: u16, data: &Sink, error: &Sink) {
    let number = Bytes::copy_from_slice(&port.to_le_bytes());
    let _ = data.write(number.clone()).await;
    let _ = error.write(number).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs() {
        let of = |kind, port: Option<&str>, request: Option<&str>| {
            let all = [("streamtype", kind), ("port", port), ("requestid", request)];
            let all = all
                .into_iter()
                .filter_map(|(n, v)| Some((n.to_owned(), v?.to_owned())));
            identify(3, &Headers(all.collect()))
        };
        let is = |key: &str, is_data, port| Some((key.to_owned(), is_data, port));
        assert_eq!(of(Some("data"), Some("80"), Some("7")), is("request 7", true, 80));
        assert_eq!(
            of(Some("error"), Some("80"), Some("7")),
            is("request 7", false, 80)
        );
        assert_eq!(of(Some("error"), Some("80"), None), is("stream 3", false, 80));
        assert_eq!(of(Some("data"), Some("65535"), None), is("stream 1", true, 65535));
        for port in [None, Some("0"), Some("65536"), Some("x")] {
            assert_eq!(of(Some("data"), port, None), None, "{port:?}");
        }
        assert_eq!(of(Some("stdin"), Some("80"), None), None);
        assert_eq!(of(None, Some("80"), None), None);
    }
}
