//! The drain: not ready, then no new connections, then the end. Requests that can end in time complete; others are visibly
//! truncated.

mod command;
mod http2;
mod on_request;

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Method;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::support::http::{HttpVersion, channel_body, data_frame, read_body};
use crate::support::raw::Client;
use crate::support::{Setup, Stage, TEST_TIMEOUT, wait_until};
use crate::tunnel;

fn get(path: &str, key: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n")
}

fn post(key: &str) -> String {
    format!("POST /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-length: 6\r\n\r\nabc")
}

async fn stage(server: &'static str) -> (Stage, String) {
    let stage = Stage::with(Setup { server, ..Setup::default() }).await;
    let key = stage.issue_key();
    (stage, key)
}

/// Waits until Keyward has stopped.
async fn ended(stage: &mut Stage) {
    timeout(TEST_TIMEOUT, &mut stage.running).await.expect("it ends in time").unwrap();
}

/// Waits until no connection is accepted.
async fn closed(stage: &Stage) {
    let wait = async { while TcpStream::connect(stage.address).await.is_ok() {} };
    timeout(TEST_TIMEOUT, wait).await.expect("it stops accepting");
}

#[tokio::test]
async fn requests_are_served_during_drain_delay() {
    let (mut stage, key) = stage("drain_delay = \"400ms\"").await;
    let mut kept = stage.connect().await;
    kept.send(get("/v1", &key)).await;
    assert_eq!(kept.read_reply().await.header("connection"), None);
    let mut http2 = stage.connect_http(HttpVersion::Http2).await;
    assert_eq!(http2.get("/v1", &key).await.unwrap().status(), 200);
    stage.stop.cancel();
    assert_eq!(stage.get_admin("/readyz").await.status, 503);
    let fresh = stage.get("/v1", &key).await;
    assert_eq!((fresh.status, fresh.header("connection")), (200, Some("close")));
    kept.send(get("/v1", &key)).await;
    let reply = kept.read_reply().await;
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert_eq!(kept.read_to_end().await, [0_u8; 0]);
    let response = http2.get("/v1", &key).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers().get("connection")), (200, None));
    stage.emulator.revoke(&key);
    assert_eq!(stage.get("/v1", &key).await.code(), Some("invalid_key"));
    assert_eq!(stage.get("/v1", &stage.issue_key()).await.status, 200);
    ended(&mut stage).await;
}

#[tokio::test]
async fn requests_ending_within_drain_timeout_complete() {
    let (mut stage, key) = stage("drain_timeout = \"8s\"").await;
    let (mut slow, mut lines, mut upload) =
        (stage.connect().await, stage.connect().await, stage.connect().await);
    slow.send(get("/slow/600", &key)).await;
    lines.send(get("/stream/6", &key)).await;
    upload.send(post(&key)).await;
    let mut tunnel = tunnel::open(&stage, &key).await;
    let mut http2 = stage.connect_http(HttpVersion::Http2).await;
    let stream = http2.get("/stream/6", &key).await.unwrap();
    wait_until(|| stage.echo.counts().requests == 5).await;
    stage.stop.cancel();
    closed(&stage).await;
    tunnel.send(tunnel::masked(0x81, b"still")).await;
    assert_eq!(tunnel.read_bytes(7).await, tunnel::unmasked(0x81, b"still"));
    upload.send("def").await;
    let reply = upload.read_reply().await;
    assert_eq!((reply.status, reply.json()["body"].as_str()), (200, Some("abcdef")));
    assert_eq!(reply.header("connection"), Some("close"));
    let reply = slow.read_reply().await;
    assert_eq!((reply.status, reply.whole), (200, true));
    let reply = lines.read_reply().await;
    assert!(reply.whole && reply.text().ends_with("line 5\n"), "{}", reply.text());
    assert_eq!(read_body(stream).await.unwrap().0, 6 * "line 0\n".len());
    assert!(!stage.running.is_finished(), "the tunnel is open");
    tunnel.send(tunnel::masked(0x88, &[0x03, 0xE8])).await;
    assert_eq!(tunnel.read_to_end().await, tunnel::unmasked(0x88, &[0x03, 0xE8]));
    drop(tunnel);
    let began = Instant::now();
    ended(&mut stage).await;
    assert!(began.elapsed() < Duration::from_secs(2), "it waits for nothing else: {:?}", began.elapsed());
}

#[tokio::test]
async fn drain_completes_all_open_request_kinds() {
    let (mut stage, key) = stage("drain_delay = \"300ms\"\ndrain_timeout = \"8s\"").await;
    let (mut idle, mut upload, mut events) =
        (stage.connect().await, stage.connect().await, stage.connect().await);
    idle.send(get("/v1", &key)).await;
    assert_eq!(idle.read_reply().await.header("connection"), None);
    upload.send(post(&key)).await;
    events.send(get("/events?every=20ms", &key)).await;
    let head = events.read_head().await;
    assert_eq!((head.status, head.header("connection")), (200, None));
    let mut tunnel = tunnel::open(&stage, &key).await;
    let mut http2 = stage.connect_http(HttpVersion::Http2).await;
    let mut feed2 = http2.get("/events?every=20ms", &key).await.unwrap();
    let lines = http2.get("/stream/8", &key).await.unwrap();
    let (feed, content) = channel_body();
    let (request, mut sender) = (http2.request(Method::POST, "/v1", &key, content), http2.again());
    let sending = tokio::spawn(async move { sender.send(request).await });
    feed.send(data_frame("abc")).await.unwrap();
    wait_until(|| stage.echo.counts().body_bytes == 6 && stage.echo.counts().open == 6).await;
    stage.stop.cancel();
    // While it accepts connections: on an idle connection, and on one with streams.
    sleep(Duration::from_millis(50)).await;
    idle.send(get("/v1", &key)).await;
    let reply = idle.read_reply().await;
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert_eq!(idle.read_to_end().await, [0_u8; 0]);
    assert_eq!(http2.get("/v1", &key).await.unwrap().status(), 200);
    closed(&stage).await;
    // After that: open requests continue to their end.
    upload.send("def").await;
    let reply = upload.read_reply().await;
    assert_eq!((reply.json()["body"].as_str(), reply.header("connection")), (Some("abcdef"), Some("close")));
    feed.send(data_frame("def")).await.unwrap();
    drop(feed);
    let response = sending.await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    read_body(response).await.unwrap();
    assert_eq!(read_body(lines).await.unwrap().0, 8 * "line 0\n".len());
    assert!(!events.read_bytes(4096).await.is_empty());
    feed2.frame().await.unwrap().unwrap();
    tunnel.send(tunnel::masked(0x81, b"still")).await;
    assert_eq!(tunnel.read_bytes(7).await, tunnel::unmasked(0x81, b"still"));
    tunnel.send(tunnel::masked(0x88, &[0x03, 0xE8])).await;
    assert_eq!(tunnel.read_to_end().await, tunnel::unmasked(0x88, &[0x03, 0xE8]));
    assert!(!stage.running.is_finished(), "event streams are open");
    // Their clients disconnect.
    drop((events, feed2, http2, tunnel));
    ended(&mut stage).await;
    assert_eq!(stage.echo.counts().broken_bodies, 0);
}

#[tokio::test]
async fn requests_beyond_drain_timeout_are_visibly_truncated() {
    let (mut stage, key) = stage("drain_timeout = \"300ms\"").await;
    let (mut events, mut upload) = (stage.connect().await, stage.connect().await);
    events.send(get("/events?every=1h", &key)).await;
    upload.send(post(&key)).await;
    let mut tunnel = tunnel::open(&stage, &key).await;
    let mut http2 = stage.connect_http(HttpVersion::Http2).await;
    let mut stream = http2.get("/events?every=1h", &key).await.unwrap();
    let (feed, content) = channel_body();
    let mut sender = stage.connect_http(HttpVersion::Http2).await;
    let request = sender.request(Method::POST, "/v1", &key, content);
    let sending = tokio::spawn(async move { sender.send(request).await.map(drop) });
    feed.send(data_frame("abc")).await.unwrap();
    assert_eq!(events.read_head().await.status, 200);
    stream.frame().await.unwrap().unwrap();
    wait_until(|| stage.echo.counts().body_bytes == 6).await;
    stage.stop.cancel();
    assert_eq!(tunnel.read_to_end().await, tunnel::unmasked(0x88, &[0x03, 0xE9]), "1001, going away");
    drop(tunnel);
    let rest = String::from_utf8(events.read_to_end().await).unwrap();
    assert!(!rest.ends_with("0\r\n\r\n"), "{rest:?} is no end of a chunked body");
    assert_eq!(upload.read_to_end().await, [0_u8; 0]);
    assert!(stream.frame().await.unwrap().is_err());
    sending.await.unwrap().unwrap_err();
    ended(&mut stage).await;
    wait_until(|| stage.echo.counts().broken_bodies == 2 && stage.echo.counts().open == 0).await;
}

#[tokio::test]
async fn http2_clients_get_goaway() {
    let (mut stage, _) = stage("drain_timeout = \"300ms\"").await;
    let mut client = stage.connect().await;
    // The client preface and an empty SETTINGS frame.
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    client.read_bytes(9).await;
    stage.stop.cancel();
    let mut rest = client.read_to_end().await;
    // The rest of Keyward's SETTINGS, then frames; GOAWAY has type 7 and stream 0.
    let mut kinds = Vec::new();
    let at =
        rest.windows(9).position(|head| head == [0, 0, 0, 4, 1, 0, 0, 0, 0]).expect("an acknowledgement");
    rest.drain(..at);
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        kinds.push(rest[3]);
        rest.drain(..9 + length);
    }
    assert!(kinds.contains(&7), "{kinds:?}");
    ended(&mut stage).await;
}

#[tokio::test]
async fn second_signal_ends_at_once() {
    let (mut stage, key) = stage("drain_delay = \"1h\"").await;
    let mut events = stage.connect().await;
    events.send(get("/events?every=1h", &key)).await;
    assert_eq!(events.read_head().await.status, 200);
    stage.stop.cancel();
    assert_eq!(stage.get("/v1", &key).await.status, 200);
    let began = Instant::now();
    stage.kill.cancel();
    ended(&mut stage).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(!events.read_to_end().await.ends_with(b"0\r\n\r\n"));
}

#[tokio::test]
async fn idle_connections_do_not_delay_shutdown() {
    let (mut stage, key) = stage("drain_timeout = \"1h\"").await;
    let (_unused, mut kept) = (stage.connect().await, stage.connect().await);
    kept.send(get("/v1", &key)).await;
    assert_eq!(kept.read_reply().await.status, 200);
    let began = Instant::now();
    stage.stop.cancel();
    ended(&mut stage).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn request_arriving_with_signal_is_served() {
    let (mut stage, key) = stage("").await;
    let (mut kept, mut late) = (stage.connect().await, stage.connect().await);
    kept.send(get("/v1", &key)).await;
    assert_eq!(kept.read_reply().await.status, 200);
    let mut parted = stage.connect().await;
    let request = get("/v1", &key);
    let (first, second) = request.split_at(20);
    parted.send(first).await;
    wait_until(|| stage.metrics.connections.get() == 3).await;
    // In the kernel's queue, not accepted by Keyward yet.
    let mut fresh = stage.connect().await;
    fresh.send(get("/v1", &key)).await;
    kept.send(get("/v1", &key)).await;
    stage.stop.cancel();
    assert_eq!(fresh.read_reply().await.status, 200);
    assert_eq!(kept.read_reply().await.status, 200);
    closed(&stage).await;
    sleep(Duration::from_millis(100)).await;
    late.send(get("/v1", &key)).await;
    assert_eq!(
        late.read_reply().await.status,
        200,
        "the first request of a connection that was accepted before"
    );
    parted.send(second).await;
    assert_eq!(parted.read_reply().await.status, 200, "the rest of a head");
    ended(&mut stage).await;
}

#[tokio::test]
async fn request_awaiting_verdict_completes_during_drain() {
    let (mut stage, key) = stage("drain_delay = \"0s\"").await;
    stage.emulator.set_fault("validate:hang".parse().unwrap());
    let begun = stage.emulator.counts().validations;
    let mut waiting = stage.connect().await;
    waiting.send(get("/v1", &key)).await;
    stage.emulator.validations_begun(begun + 1).await;
    stage.stop.cancel();
    closed(&stage).await;
    stage.emulator.clear_faults();
    assert_eq!(waiting.read_reply().await.status, 200);
    ended(&mut stage).await;
}

/// Sends requests until no connection is accepted; returns the numbers of responses and of failures.
async fn asking(address: std::net::SocketAddr, request: String) -> (usize, usize) {
    let (mut answered, mut lost) = (0, 0);
    while let Ok(stream) = TcpStream::connect(address).await {
        let mut client = Client::over(stream);
        loop {
            client.send(&request).await;
            let reply = client.read_reply().await;
            if reply.status != 200 || !reply.whole {
                lost += 1;
                break;
            }
            answered += 1;
            if reply.header("connection") == Some("close") {
                break;
            }
        }
    }
    (answered, lost)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_under_load_loses_no_http1_request() {
    for _ in 0..5 {
        let (mut stage, key) = stage("drain_delay = \"250ms\"").await;
        let mut callers = JoinSet::new();
        for _ in 0..12 {
            callers.spawn(asking(stage.address, get("/v1", &key)));
        }
        wait_until(|| stage.forwarded_count() > 50).await;
        stage.stop.cancel();
        let (mut answered, mut lost) = (0, 0);
        while let Some(counts) = timeout(TEST_TIMEOUT, callers.join_next()).await.unwrap() {
            let counts = counts.unwrap();
            (answered, lost) = (answered + counts.0, lost + counts.1);
        }
        assert_eq!(lost, 0, "of {answered}");
        ended(&mut stage).await;
    }
}
