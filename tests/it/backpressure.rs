//! Backpressure: Keyward stops reading from one side when the other does not read, and delays nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Method, Response};
use keyward::body::{self, BodyError};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use crate::support::http::{HttpVersion, body_of_size, data_frame, read_body, start_upstream};
use crate::support::{Setup, Stage, TEST_TIMEOUT, bind_loopback};

/// More than the socket buffers hold, and much less than what is offered, in bytes.
const BOUND: u64 = 48 * 1024 * 1024;
const OFFERED: u64 = 256 * 1024 * 1024;
const PIECE: Bytes = Bytes::from_static(&[b'.'; 64 * 1024]);

/// Waits until a count stops changing.
async fn settled(count: &AtomicU64) -> u64 {
    let wait = async {
        let (mut last, mut still) = (count.load(Relaxed), 0);
        while still < 25 || last == 0 {
            sleep(Duration::from_millis(20)).await;
            let now = count.load(Relaxed);
            still = if now == last { still + 1 } else { 0 };
            last = now;
        }
        last
    };
    timeout(TEST_TIMEOUT, wait).await.expect("the transfer stops")
}

/// A body that produces bytes as fast as they are read, and counts them.
fn offered(count: &Arc<AtomicU64>) -> body::Body {
    let count = Arc::clone(count);
    let frames = (0..OFFERED / PIECE.len() as u64).map(move |_| {
        count.fetch_add(PIECE.len() as u64, Relaxed);
        data_frame(PIECE)
    });
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

async fn stage(url: String) -> Stage {
    Stage::with(Setup { upstream_url: Some(url), ..Setup::default() }).await
}

#[tokio::test]
async fn upstream_that_stops_reading_stops_upload() {
    let address = start_upstream(|request| async move {
        let _unread = request;
        std::future::pending::<Result<Response<body::Body>, BodyError>>().await
    })
    .await;
    for (http_version, scheme) in
        [(HttpVersion::Http1, "http"), (HttpVersion::Http1, "h2c"), (HttpVersion::Http2, "http")]
    {
        let stage = stage(format!("{scheme}://{address}")).await;
        let mut http_client = stage.connect_http(http_version).await;
        let count = Arc::default();
        let request = http_client.request(Method::POST, "/public/x", "", offered(&count));
        let sending = tokio::spawn(async move { http_client.send(request).await.map(drop) });
        let stopped = settled(&count).await;
        assert!(stopped < BOUND, "{http_version:?} {scheme}: {stopped}");
        sending.abort();
    }
}

#[tokio::test]
async fn client_that_stops_reading_stops_download() {
    let count = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&count);
    let address = start_upstream(move |_| std::future::ready(Ok(Response::new(offered(&counted))))).await;
    for (http_version, scheme) in
        [(HttpVersion::Http1, "http"), (HttpVersion::Http1, "h2c"), (HttpVersion::Http2, "http")]
    {
        let stage = stage(format!("{scheme}://{address}")).await;
        count.store(0, Relaxed);
        let mut http_client = stage.connect_http(http_version).await;
        let response = http_client.get("/public/x", "").await.unwrap();
        let stopped = settled(&count).await;
        assert!(stopped < BOUND, "{http_version:?} {scheme}: {stopped}");
        drop(response);
    }
}

#[tokio::test]
async fn unread_responses_do_not_block_shared_http2_upstream() {
    let count = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&count);
    let address = start_upstream(move |request| {
        let stalls = request.uri().path() == "/public/stalls";
        let body = if stalls { offered(&counted) } else { body::full(PIECE.repeat(16)) };
        std::future::ready(Ok(Response::new(body)))
    })
    .await;
    let stage = stage(format!("h2c://{address}")).await;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut client = stage.connect().await;
        client.send("GET /public/stalls HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(client.read_head().await.status, 200);
        stalled.push(client);
    }
    settled(&count).await;
    let reply = stage.get("/public/x", "").await;
    assert_eq!((reply.status, reply.body.len(), reply.whole), (200, 1 << 20, true));
}

#[tokio::test]
async fn slow_reader_gets_whole_response() {
    let (listener, address) = bind_loopback().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 33554432\r\n\r\n").await.unwrap();
        for _ in 0..512 {
            stream.write_all(&PIECE).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    let stage = stage(format!("http://{address}")).await;
    let mut client = stage.connect().await;
    client.send("GET /public/x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.read_head().await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(client.read_bytes(33_554_432).await.len(), 33_554_432);
}

#[tokio::test]
async fn stalled_uploads_do_not_block_their_http2_connection() {
    let address = start_upstream(|request| async move {
        if request.uri().path() == "/public/stalls" {
            let _unread = request;
            return std::future::pending().await;
        }
        let length = request.into_body().collect().await?.to_bytes().len();
        Ok(Response::new(body::full(length.to_string())))
    })
    .await;
    let stage = stage(format!("http://{address}")).await;
    let mut http_client = stage.connect_http(HttpVersion::Http2).await;
    let count = Arc::default();
    for _ in 0..4 {
        let request = http_client.request(Method::POST, "/public/stalls", "", offered(&count));
        let mut sender = http_client.again();
        tokio::spawn(async move { sender.send(request).await.map(drop) });
    }
    settled(&count).await;
    let request = http_client.request(Method::POST, "/public/x", "", body_of_size(4 * 1024 * 1024));
    let (bytes, _) = read_body(http_client.send(request).await.unwrap()).await.unwrap();
    assert_eq!(bytes, "4194304".len());
}
