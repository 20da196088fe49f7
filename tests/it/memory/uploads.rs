//! Uploads and downloads with good keys while another client holds the memory for requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, StreamBody};
use hyper::Method;
use tokio::time::timeout;

use crate::support::http::{HttpClient, HttpVersion, start_upstream};
use crate::support::{Setup, Stage, TEST_TIMEOUT, wait_until};

/// Of 64 MiB, 15 MiB are for requests. Stalled uploads with another key hold more than half of that.
const SMALL: &str = "[usage]\nenabled = false\n[limits]\nmemory = \"64MiB\"\nbody_timeout = \"1h\"\n[negative_cache]\nmax_entries = 1000";

async fn upload_in_a_flood(upstream: &'static str, size: usize) -> Option<u16> {
    let stage = Stage::with(Setup { sections: SMALL, upstream, ..Setup::default() }).await;
    let (key, other) = (stage.issue_key(), stage.issue_key());
    let mut strangers = Vec::new();
    for requests in std::iter::once(90).chain(std::iter::repeat_n(1, 50)) {
        let http_client = stage.connect_http(HttpVersion::Http2).await;
        for _ in 0..requests {
            let body = StreamBody::new(futures_util::stream::pending()).boxed_unsync();
            let request = http_client.request(Method::POST, "/v1", &other, body);
            let mut http_client = http_client.again();
            strangers.push(tokio::spawn(async move { http_client.send(request).await.map(drop) }));
        }
    }
    wait_until(|| stage.metrics.requests_in_flight.get() >= 115).await;
    let mut client = stage.connect().await;
    let head = format!(
        "POST /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-length: {size}\r\n\r\n"
    );
    client.send(head).await;
    for _ in 0..size / 10_000 {
        client.send("x".repeat(10_000)).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let reply = timeout(Duration::from_secs(3), client.read_reply_within(TEST_TIMEOUT)).await;
    let status = reply.ok().map(|reply| reply.status);
    if status.is_none() {
        // The flood has ended, and memory is available again.
        strangers.iter().for_each(tokio::task::JoinHandle::abort);
        wait_until(|| stage.metrics.requests_in_flight.get() <= 1).await;
        let late = timeout(Duration::from_secs(5), client.read_reply_within(TEST_TIMEOUT)).await;
        eprintln!("5 s after the end of the flood: {:?}", late.ok().map(|reply| reply.status));
    }
    strangers.iter().for_each(tokio::task::JoinHandle::abort);
    status
}

#[tokio::test]
async fn good_key_upload_passes_over_http1_during_flood() {
    assert_eq!(upload_in_a_flood("", 60_000).await, Some(200));
}

#[tokio::test]
async fn good_key_upload_passes_over_http2_during_flood() {
    assert_eq!(upload_in_a_flood("http = \"2\"", 20_000).await, Some(200));
    assert_eq!(upload_in_a_flood("http = \"2\"", 60_000).await, Some(200));
}

#[tokio::test]
async fn download_resumes_after_flood() {
    let address = start_upstream(|request| async move {
        if request.method() == Method::GET {
            let body = http_body_util::Full::new(bytes::Bytes::from(vec![b'x'; 300_000]));
            return Ok(hyper::Response::new(body.map_err(|never| match never {}).boxed_unsync()));
        }
        let _unread = request;
        std::future::pending::<Result<hyper::Response<keyward::body::Body>, keyward::body::BodyError>>().await
    })
    .await;
    let stage = Stage::with(Setup {
        sections: SMALL,
        upstream_url: Some(format!("h2c://{address}")),
        ..Setup::default()
    })
    .await;
    let (key, other, mut strangers) = (stage.issue_key(), stage.issue_key(), Vec::new());
    let stranger = |strangers: &mut Vec<_>, http_client: &HttpClient| {
        let body = StreamBody::new(futures_util::stream::pending()).boxed_unsync();
        let request = http_client.request(Method::POST, "/v1", &other, body);
        let mut http_client = http_client.again();
        strangers.push(tokio::spawn(async move { http_client.send(request).await.map(drop) }));
    };
    for requests in std::iter::once(90).chain(std::iter::repeat_n(1, 50)) {
        let http_client = stage.connect_http(HttpVersion::Http2).await;
        (0..requests).for_each(|_| stranger(&mut strangers, &http_client));
    }
    wait_until(|| stage.metrics.requests_in_flight.get() >= 115).await;
    // An upload that the upstream does not read, and a download on the same connection.
    let good = stage.connect_http(HttpVersion::Http2).await;
    let pieces = (0..20).map(|_| piece(10_000));
    let upload = StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync();
    let (request, mut sender) = (good.request(Method::POST, "/v1", &key, upload), good.again());
    let upload = tokio::spawn(async move { sender.send(request).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let got = Arc::new(AtomicUsize::new(0));
    let (mut sender, count) = (good.again(), Arc::clone(&got));
    let download = tokio::spawn(async move {
        let mut answer = sender.get("/v1", &key).await.unwrap();
        while let Some(Ok(frame)) = answer.body_mut().frame().await {
            count.fetch_add(frame.data_ref().map_or(0, |data| data.len()), Ordering::SeqCst);
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let during = got.load(Ordering::SeqCst);
    strangers.iter().for_each(tokio::task::JoinHandle::abort);
    wait_until(|| stage.metrics.requests_in_flight.get() <= 2).await;
    let over = timeout(Duration::from_secs(5), download).await;
    let after = got.load(Ordering::SeqCst);
    assert!(over.is_ok(), "{during} bytes in the flood, {after} of 300000 five seconds after it");
    upload.abort();
}

fn piece(size: usize) -> Result<hyper::body::Frame<bytes::Bytes>, keyward::body::BodyError> {
    Ok(hyper::body::Frame::data(bytes::Bytes::from(vec![b'x'; size])))
}
