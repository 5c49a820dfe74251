#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::mux::{Codec, Mux};
use super::testing::Client;
use super::tunnel;
use crate::activity::Activity;
use crate::stream::{Incoming, Item, Sink, incoming};

fn pair(base64: bool, close_signal: bool) -> (Mux, Incoming, Client<DuplexStream>) {
    let (near, far) = tokio::io::duplex(4096);
    let (feed, input) = incoming(None);
    let mux = Mux::start(
        near,
        Codec { base64, close_signal },
        vec![Some(feed)],
        Activity::new(Arc::new(Semaphore::new(1))),
    );
    (mux, input, Client::new(far))
}

fn item(text: &'static str) -> Item {
    Item::Data(Bytes::from_static(text.as_bytes()))
}

#[tokio::test]
async fn channels() {
    let (mux, mut input, mut client) = pair(false, true);
    client.channel(0, b"hello").await;
    assert_eq!(input.next().await, item("hello"));
    // One message in pieces, of which the first is only the channel; a ping in between; an unknown channel; nothing.
    client.send(0x02, &[0]).await;
    client.send(0x89, b"?").await;
    client.send(0x00, b"wor").await;
    client.send(0x80, b"ld").await;
    client.channel(7, b"dropped").await;
    client.send(0x82, b"").await;
    assert_eq!(input.next().await, item("wor"));
    assert_eq!(input.next().await, item("ld"));
    assert_eq!(client.recv().await, Some((10, b"?".to_vec())));
    Sink::WebSocket(mux.outgoing(1))
        .write(Bytes::from_static(b"out"))
        .await
        .unwrap();
    assert_eq!(client.recv().await, Some((2, b"\x01out".to_vec())));
    // The end of stdin is not the end of the connection.
    client.send(0x82, &[255, 0]).await;
    assert_eq!(input.next().await, Item::End);
    client.channel(0, b"too late").await;
    Sink::WebSocket(mux.outgoing(3))
        .write(Bytes::from_static(b"ok"))
        .await
        .unwrap();
    assert_eq!(client.recv().await, Some((2, b"\x03ok".to_vec())));
    let closing = tokio::spawn(mux.close());
    assert_eq!(client.recv().await, Some((8, vec![3, 232])));
    client.send(0x88, &[3, 232]).await;
    timeout(Duration::from_secs(2), closing).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_close_signal_is_for_v5_only() {
    let (_mux, mut input, mut client) = pair(false, false);
    client.send(0x82, &[255, 0]).await;
    client.channel(0, b"still open").await;
    assert_eq!(input.next().await, item("still open"));
}

#[tokio::test]
async fn base64() {
    let (mux, mut input, mut client) = pair(true, false);
    client.send(0x81, b"0aGVs").await;
    client.send(0x01, b"0bG").await;
    client.send(0x80, b"8=").await;
    assert_eq!(input.next().await, item("hel"));
    assert_eq!(input.next().await, item("lo"));
    client.send(0x81, b"0???!").await;
    client.send(0x81, b"0aGVs").await;
    assert_eq!(input.next().await, item("hel"));
    Sink::WebSocket(mux.outgoing(1))
        .write(Bytes::from_static(b"\n"))
        .await
        .unwrap();
    assert_eq!(client.recv().await, Some((1, b"1Cg==".to_vec())));
}

#[tokio::test]
async fn broken_frames_end_the_connection() {
    let (mux, mut input, mut client) = pair(false, false);
    client.send(0xf2, b"x").await;
    timeout(Duration::from_secs(5), mux.gone.cancelled())
        .await
        .unwrap();
    assert_eq!(input.next().await, Item::End);
    assert_eq!(client.recv().await, Some((8, vec![3, 234])));
}

#[tokio::test]
async fn a_tunnel_carries_bytes() {
    let (near, far) = tokio::io::duplex(4096);
    let (mut inner, _tunnel) = tunnel(near, Activity::new(Arc::new(Semaphore::new(1))));
    let mut client = Client::new(far);
    client.send(0x02, b"ab").await;
    client.send(0x80, b"cd").await;
    let mut got = [0; 4];
    inner.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"abcd");
    inner.write_all(b"back").await.unwrap();
    assert_eq!(client.recv().await, Some((2, b"back".to_vec())));
    inner.shutdown().await.unwrap();
    assert_eq!(client.recv().await, Some((8, vec![3, 232])));
    client.send(0x88, b"").await;
    assert_eq!(inner.read(&mut got).await.unwrap(), 0);
}
