#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::frame::{Frame, goaway};
use super::mux::Mux;
use super::reset;
use super::testing::{Blocks, Client, bytes, data, syn_stream, words};
use crate::activity::{Activity, CROWDED, PARTING, SILENCE};
use crate::stream::{Item, Sink};

const STDIN: &[(&str, &str)] = &[("streamtype", "stdin")];

fn pair() -> (Mux, Client<DuplexStream>) {
    crowded(1)
}

/// A server that has so many slots for clients from which it parts.
fn crowded(partings: usize) -> (Mux, Client<DuplexStream>) {
    let (near, far) = tokio::io::duplex(4096);
    let activity = Activity::new(Arc::new(Semaphore::new(partings)));
    (Mux::start(near, activity), Client::new(far))
}

async fn open(mux: &mut Mux, client: &mut Client<DuplexStream>) -> super::Opened {
    client.open(STDIN).await;
    let opened = mux.opened.recv().await.unwrap();
    mux.handle.reply(opened.id).await.unwrap();
    assert_eq!(
        client.recv().await,
        Some(Frame::SynReply {
            id: opened.id,
            fin: false
        })
    );
    opened
}

#[tokio::test]
async fn streams_both_ways_and_half_closed() {
    let (mut mux, mut client) = pair();
    let mut opened = open(&mut mux, &mut client).await;
    assert_eq!(opened.headers.get("streamtype"), Some("stdin"));
    client.send(&data(1, b"hello", false)).await;
    assert_eq!(opened.input.next().await, Item::Data(bytes("hello")));
    client.send(&data(1, b"", true)).await;
    assert_eq!(opened.input.next().await, Item::End);
    // Our side goes on.
    let out = Sink::Spdy(mux.handle.outgoing(1));
    out.write(bytes("world")).await.unwrap();
    out.finish().await;
    assert_eq!(
        client.recv().await,
        Some(Frame::Data {
            id: 1,
            bytes: bytes("world"),
            fin: false
        })
    );
    assert_eq!(
        client.recv().await,
        Some(Frame::Data {
            id: 1,
            bytes: bytes(""),
            fin: true
        })
    );
    assert_eq!(mux.handle.open_streams(), 0);
    assert!(out.write(bytes("more")).await.is_err());
}

#[tokio::test]
async fn pings_are_answered_and_odd() {
    let (_mux, mut client) = pair();
    client.send(&words(6, &[2])).await;
    client.send(&words(6, &[11])).await;
    assert_eq!(client.recv().await, Some(Frame::Ping { id: 11 }));
}

#[tokio::test]
async fn resets() {
    let (mut mux, mut client) = pair();
    let mut opened = open(&mut mux, &mut client).await;
    client.send(&words(3, &[1, 5])).await;
    assert_eq!(opened.input.next().await, Item::Reset);
    assert!(
        Sink::Spdy(mux.handle.outgoing(1))
            .write(bytes("x"))
            .await
            .is_err()
    );
    // Data for a stream that never was.
    client.send(&data(9, b"x", false)).await;
    assert_eq!(
        client.recv().await,
        Some(Frame::Reset {
            id: 9,
            status: reset::INVALID_STREAM
        })
    );
    // Data behind the end.
    let _kept = open(&mut mux, &mut client).await;
    client.send(&data(3, b"x", true)).await;
    client.send(&data(3, b"y", false)).await;
    assert_eq!(
        client.recv().await,
        Some(Frame::Reset {
            id: 3,
            status: reset::STREAM_ALREADY_CLOSED
        })
    );
}

#[tokio::test]
async fn streams_out_of_order_end_the_session() {
    for id in [1u32, 4] {
        let (mut mux, mut client) = pair();
        for _ in 0..2 {
            open(&mut mux, &mut client).await;
        }
        let block = Blocks::new().block(STDIN);
        // The compressor is a new one, so that this ends the session for one reason or the other.
        client.send(&syn_stream(id, &block, false)).await;
        assert_eq!(
            client.recv().await,
            Some(Frame::GoAway {
                status: goaway::PROTOCOL_ERROR
            })
        );
        timeout(Duration::from_secs(5), mux.gone.cancelled())
            .await
            .unwrap();
        assert_eq!(mux.handle.open_streams(), 0);
    }
}

#[tokio::test]
async fn no_more_streams_than_there_may_be() {
    let (mut mux, mut client) = pair();
    let mut kept = Vec::new();
    for _ in 0..1024 {
        client.open(STDIN).await;
        kept.push(mux.opened.recv().await.unwrap());
    }
    let id = client.open(STDIN).await;
    assert_eq!(
        client.recv().await,
        Some(Frame::Reset {
            id,
            status: reset::REFUSED_STREAM
        })
    );
    mux.opened.close();
    mux.handle.reset(1, reset::REFUSED_STREAM);
    assert_eq!(
        client.recv().await,
        Some(Frame::Reset {
            id: 1,
            status: reset::REFUSED_STREAM
        })
    );
    // Nobody looks at streams any more.
    let id = client.open(STDIN).await;
    assert_eq!(
        client.recv().await,
        Some(Frame::Reset {
            id,
            status: reset::REFUSED_STREAM
        })
    );
}

/// How much data comes before nothing does.
async fn arrives(client: &mut Client<DuplexStream>) -> usize {
    let mut got = 0;
    while let Ok(Some(Frame::Data { bytes, .. })) = timeout(Duration::from_secs(1), client.recv()).await {
        got += bytes.len();
    }
    got
}

/// A client that keeps windows is never sent more than they allow.
#[tokio::test]
async fn windows_bind_those_who_know_them() {
    let (mut mux, mut client) = pair();
    client.send(&words(4, &[1, 7, 1000])).await;
    let opened = open(&mut mux, &mut client).await;
    let out = Sink::Spdy(mux.handle.outgoing(opened.id));
    let sending = tokio::spawn(async move { out.write(vec![1; 5000].into()).await });
    assert_eq!(arrives(&mut client).await, 1000);
    client.send(&words(9, &[1, 500])).await;
    assert_eq!(arrives(&mut client).await, 500);
    // The session's window is known from here on: 1500 of its 65,536 are gone, and it is no hindrance.
    client.send(&words(9, &[0, 1])).await;
    client.send(&words(9, &[1, 100_000])).await;
    assert_eq!(arrives(&mut client).await, 3500);
    sending.await.unwrap().unwrap();
    // Overflows: of a stream, and of the session.
    client.send(&words(9, &[1, 0x7fff_ffff])).await;
    assert_eq!(
        client.recv().await,
        Some(Frame::Reset {
            id: 1,
            status: reset::FLOW_CONTROL_ERROR
        })
    );
    client.send(&words(9, &[0, 0x7fff_ffff])).await;
    assert_eq!(
        client.recv().await,
        Some(Frame::GoAway {
            status: goaway::PROTOCOL_ERROR
        })
    );
}

#[tokio::test]
async fn clients_that_keep_windows_are_given_credit() {
    let (mut mux, mut client) = pair();
    let mut opened = open(&mut mux, &mut client).await;
    for _ in 0..3 {
        client.send(&data(1, &[0; 16 << 10], false)).await;
        let mut left = 16 << 10;
        while left > 0 {
            let Item::Data(piece) = opened.input.next().await else {
                panic!("ended")
            };
            left -= piece.len();
        }
    }
    let mut credit = [0; 2];
    while credit != [32 << 10, 32 << 10] {
        match client.recv().await {
            Some(Frame::WindowUpdate { id, delta }) => credit[id as usize] += delta,
            other => panic!("{other:?}"),
        }
    }
}

/// A stream that nobody reads holds no more than the connection's budget, and its end frees that.
#[tokio::test]
async fn what_is_not_read_is_not_kept() {
    let (mut mux, mut client) = pair();
    let opened = open(&mut mux, &mut client).await;
    let mut taken = 0;
    let frame = data(1, &[7; 4096], false);
    let wait = Duration::from_secs(1);
    while timeout(wait, client.io.write_all(&frame)).await.is_ok() {
        taken += frame.len();
        assert!(taken < 400 << 10, "{taken} bytes were taken");
    }
    assert!(taken > 200 << 10, "only {taken} bytes were taken");
    // Nobody wants it any more: everything flows again, into nothing. The frame that was cut ends first.
    drop(opened);
    for _ in 0..10 {
        timeout(wait, client.io.write_all(&[0; 64 << 10]))
            .await
            .unwrap()
            .unwrap();
    }
}

#[tokio::test]
async fn goodbye_lets_the_client_read_to_the_end() {
    let (mut mux, mut client) = pair();
    let opened = open(&mut mux, &mut client).await;
    let out = Sink::Spdy(mux.handle.outgoing(opened.id));
    let server = tokio::spawn(async move {
        out.write(vec![1; 100_000].into()).await.unwrap();
        out.finish().await;
        mux.close().await;
    });
    let (all, ended) = client.rest().await;
    assert_eq!((all[&1].len(), ended), (100_000, vec![1]));
    // The end of the connection is the client's to make; until then its pings are answered.
    client.send(&words(6, &[1])).await;
    assert_eq!(client.recv().await, Some(Frame::Ping { id: 1 }));
    assert!(timeout(SILENCE / 2, client.recv()).await.is_err());
    client.io.shutdown().await.unwrap();
    assert_eq!(client.recv().await, None);
    timeout(Duration::from_secs(2), server).await.unwrap().unwrap();
}

#[tokio::test]
async fn goodbye_does_not_wait_for_ever() {
    let (mut mux, mut client) = pair();
    let _opened = open(&mut mux, &mut client).await;
    let before = Instant::now();
    mux.close().await;
    assert!(before.elapsed() < PARTING / 2, "{:?}", before.elapsed());
    assert_eq!(client.recv().await, Some(Frame::GoAway { status: goaway::OK }));

    // One that gives signs of life and does not close has its limit too, and a lower one where there are many.
    for (partings, limit) in [(1, PARTING), (0, CROWDED)] {
        let (mut mux, mut client) = crowded(partings);
        let _opened = open(&mut mux, &mut client).await;
        let before = Instant::now();
        let closing = tokio::spawn(async move { mux.close().await });
        while !closing.is_finished() && client.io.write_all(&words(6, &[1])).await.is_ok() {
            tokio::time::sleep(SILENCE / 3).await;
        }
        closing.await.unwrap();
        let took = before.elapsed();
        assert!(limit <= took && took < 2 * limit, "{took:?}");
    }
}

/// What a slow line has not taken yet when the program ends is not cut off.
#[tokio::test]
async fn a_slow_client_reads_to_the_end() {
    let (mut mux, mut client) = pair();
    let opened = open(&mut mux, &mut client).await;
    let out = Sink::Spdy(mux.handle.outgoing(opened.id));
    out.write(vec![1; 60_000].into()).await.unwrap();
    out.finish().await;
    let (before, closing) = (Instant::now(), tokio::spawn(async move { mux.close().await }));
    let (mut length, mut buffer) = (0, vec![0; 16 << 10]);
    // A line that stands still for a while is no silent client either, as long as something is to be sent.
    tokio::time::sleep(2 * SILENCE).await;
    // The data's two frames, the end of the stream, and GOAWAY.
    let all = 60_000 + 8 * 3 + 16;
    while length < all {
        // The bytes that lie between us are 4096 at most.
        tokio::time::sleep(SILENCE / 4).await;
        match client.io.read(&mut buffer).await.unwrap() {
            0 => panic!("cut off after {length} bytes"),
            read => length += read,
        }
    }
    assert!(before.elapsed() > 3 * SILENCE, "this client is not slow");
    assert_eq!(length, all);
    drop(client);
    closing.await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_wakes_everybody() {
    let (mut mux, mut client) = pair();
    let mut opened = open(&mut mux, &mut client).await;
    client.send(&words(4, &[1, 7, 0])).await;
    // A window of nothing: this waits.
    let out = Sink::Spdy(mux.handle.outgoing(1));
    client.send(&data(1, b"", false)).await;
    client.send(&words(6, &[1])).await;
    client.recv().await;
    let waiting = tokio::spawn(async move { out.write(bytes("x")).await });
    tokio::task::yield_now().await;
    drop(client);
    assert!(
        timeout(Duration::from_secs(5), waiting)
            .await
            .unwrap()
            .unwrap()
            .is_err()
    );
    assert_eq!(opened.input.next().await, Item::End);
    mux.gone.cancelled().await;
}
