//! Streams are closed within one interval of revocation and at expiry, visibly for the client; in an outage, only after
//! `unconfirmed_for` without a confirmation.

use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::Method;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keyward::metrics::Outcome;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use keyward_emulator::store::Issue;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::support::http::{HttpVersion, body_of_size, channel_body, data_frame, start_upstream};
use crate::support::raw::Client;
use crate::support::{Setup, Stage, TEST_TIMEOUT, wait_until};

const SECOND: Duration = Duration::from_secs(1);
/// One interval, with a margin for a busy machine.
const SOON: Duration = Duration::from_millis(1900);

async fn every_second() -> Stage {
    Stage::with(Setup { sections: "[streams]\nrevalidate_every = \"1s\"", ..Setup::default() }).await
}

fn closed(stage: &Stage, outcome: &'static str) -> u64 {
    stage.metrics.streams_closed.get_or_create(&Outcome { outcome }).get()
}

/// A request whose response has begun.
async fn open(stage: &Stage, path: &str, key: &str) -> Client {
    let mut client = stage.connect().await;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n")).await;
    assert_eq!(client.read_head().await.status, 200);
    client
}

#[tokio::test]
async fn revoked_stream_is_visibly_truncated_within_interval() {
    let stage = every_second().await;
    let (key, other) = (stage.issue_key(), stage.issue_key());
    let mut streams = Vec::new();
    for path in ["/events?every=50ms", "/stream/1000", "/bytes/100000000000"] {
        streams.push((path, open(&stage, path, &key).await));
    }
    let mut stays = open(&stage, "/events?every=50ms", &other).await;
    // Read continuously: a client that does not read notices at its next read.
    let reading = streams.into_iter().map(async |(path, mut client)| {
        let (mut last, began) = (Vec::new(), Instant::now());
        loop {
            let bytes = client.read_bytes(1).await;
            if bytes.is_empty() {
                return (path, last, began.elapsed());
            }
            last.extend(bytes);
            let more = last.len().saturating_sub(16);
            last.drain(..more);
            if path.starts_with("/bytes") {
                // Paced, as a bulk transfer would slow down the other tests.
                client.read_bytes(256 * 1024).await;
                sleep(Duration::from_millis(1)).await;
            }
        }
    });
    sleep(SECOND * 3 / 2).await;
    let reading: Vec<_> = reading.collect();
    assert_eq!(stage.metrics.open_streams.get(), 4, "a good key's stays open beyond one interval");
    stage.emulator.revoke(&key);
    let ended = timeout(TEST_TIMEOUT, futures_util::future::join_all(reading)).await.unwrap();
    for (path, last, after) in ended {
        assert!(after < SOON, "{path}: {after:?}");
        assert!(!last.ends_with(b"0\r\n\r\n"), "{path}: cut, not ended");
    }
    assert!(!stays.read_bytes(1).await.is_empty());
    assert_eq!((closed(&stage, "revoked"), stage.metrics.open_streams.get()), (3, 1));
    wait_until(|| stage.echo.counts().open == 1).await;
}

#[tokio::test]
async fn upload_of_revoked_key_is_refused_within_interval() {
    let stage = every_second().await;
    let (key, other) = (stage.issue_key(), stage.issue_key());
    let (mut client, mut stays) = (stage.connect().await, stage.connect().await);
    for (client, key) in [(&mut client, &key), (&mut stays, &other)] {
        let head = format!("POST /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n");
        client.send(format!("{head}content-length: 6\r\n\r\nabc")).await;
    }
    wait_until(|| stage.echo.counts().body_bytes == 6).await;
    stage.emulator.revoke(&key);
    let began = Instant::now();
    let reply = client.read_reply().await;
    assert_eq!((reply.code(), reply.header("connection")), (Some("invalid_key"), Some("close")));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    wait_until(|| stage.echo.counts().open == 1).await;
    stays.send("def").await;
    assert_eq!(stays.read_reply().await.status, 200);
}

#[tokio::test]
async fn upload_of_revoked_key_ends_with_unread_response() {
    for (http_version, upstream_speaks) in [(HttpVersion::Http1, "http"), (HttpVersion::Http2, "h2c")] {
        let (ended, mut end) = mpsc::unbounded_channel();
        let address = start_upstream(move |request| {
            let ended = ended.clone();
            async move {
                tokio::spawn(async move { ended.send(request.into_body().collect().await.is_err()) });
                Ok(hyper::Response::new(body_of_size(64 * 1024 * 1024)))
            }
        })
        .await;
        let upstream_url = Some(format!("{upstream_speaks}://{address}"));
        let sections = "[streams]\nrevalidate_every = \"1s\"";
        let stage = Stage::with(Setup { sections, upstream_url, ..Setup::default() }).await;
        let (key, mut http_client) = (stage.issue_key(), stage.connect_http(http_version).await);
        let (feed, content) = channel_body();
        let request = http_client.request(Method::POST, "/v1", &key, content);
        feed.send(data_frame("abc")).await.unwrap();
        let _unread = http_client.send(request).await.unwrap();
        stage.emulator.revoke(&key);
        let began = Instant::now();
        assert_eq!(
            timeout(TEST_TIMEOUT, end.recv()).await.expect("the end in time"),
            Some(true),
            "{http_version:?}"
        );
        assert!(began.elapsed() < SOON, "{http_version:?}: {:?}", began.elapsed());
        drop(feed);
    }
}

#[tokio::test]
async fn stream_ends_when_its_key_expires() {
    let stage = Stage::start().await;
    let expiry = jiff::Timestamp::now() + Duration::from_millis(600);
    let key = stage.issue(Issue { expiry: Some(expiry), ..Issue::default() }).key;
    let mut client = open(&stage, "/events?every=50ms", &key).await;
    // Scalekit is not needed for that.
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Hang));
    let all = client.read_to_end().await;
    let late = jiff::Timestamp::now().duration_since(expiry);
    assert!(!late.is_negative() && late.as_millis() < 300, "{late:?}");
    assert!(!all.is_empty() && !all.ends_with(b"0\r\n\r\n"));
}

#[tokio::test]
async fn short_outage_closes_no_stream() {
    let sections = "[streams]\nrevalidate_every = \"1s\"\nunconfirmed_for = \"1m\"";
    let stage = Stage::with(Setup { sections, ..Setup::default() }).await;
    let key = stage.issue_key();
    let mut client = open(&stage, "/events?every=20ms", &key).await;
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(500))));
    let before = stage.emulator.counts().validations;
    wait_until(|| stage.metrics.unconfirmed_streams.get() == 1).await;
    stage.emulator.validations_begun(before + 2).await;
    assert!(!client.read_bytes(4096).await.is_empty(), "it is still open");
    stage.emulator.clear_faults();
    wait_until(|| stage.metrics.unconfirmed_streams.get() == 0).await;
    stage.emulator.revoke(&key);
    client.read_to_end().await;
    assert_eq!(closed(&stage, "revoked"), 1);
}

#[tokio::test]
async fn stream_ends_when_requirements_are_no_longer_met() {
    let routes = r#"
        [[routes]]
        path = "/*"
        upstream = "echo"
        require = { roles = ["admin"] }"#;
    let sections = "[streams]\nrevalidate_every = \"1s\"";
    let stage = Stage::with(Setup { sections, routes, ..Setup::default() }).await;
    let key =
        stage.issue(Issue { user_id: "usr_1".into(), roles: vec!["admin".into()], ..Issue::default() }).key;
    let mut client = open(&stage, "/events?every=50ms", &key).await;
    let demoted = r#"{"token_info":{"organization_id":"org_1","user_id":"usr_1","roles":["reader"]}}"#;
    let answer = Answer { body: Some(demoted.into()), ..Answer::status(200) };
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(answer)));
    let began = Instant::now();
    client.read_to_end().await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn revoked_http2_stream_is_reset_connection_stays() {
    let stage = every_second().await;
    let (key, other) = (stage.issue_key(), stage.issue_key());
    let stream = TcpStream::connect(stage.address).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = |path: &str, key: &str| {
        let uri = format!("http://api.test{path}");
        let request = hyper::Request::builder().uri(uri).header("authorization", format!("Bearer {key}"));
        request.body(Empty::<bytes::Bytes>::new()).unwrap()
    };
    let mut body = sender.send_request(request("/events?every=50ms", &key)).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    stage.emulator.revoke(&key);
    let began = Instant::now();
    let reset = async {
        loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("it ended as if it were whole"),
            }
        }
    };
    let error = timeout(TEST_TIMEOUT, reset).await.expect("the end in time");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("stream error received"), "{cause}");
    assert_eq!(sender.send_request(request("/v1", &other)).await.unwrap().status(), 200);
}

async fn websocket(stage: &Stage, key: &str) -> Client {
    let mut client = stage.connect().await;
    let request = format!(
        "GET /ws HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    client.send(request).await;
    assert_eq!(client.read_head().await.status, 101);
    // Sends a message and reads its echo; the mask is zero.
    client.send([&[0x81, 0x80 | 5, 0, 0, 0, 0][..], b"hello"].concat()).await;
    assert_eq!(client.read_bytes(7).await, [&[0x81, 5][..], b"hello"].concat());
    client
}

#[tokio::test]
async fn revoked_websocket_closes_with_1008_between_frames() {
    let stage = every_second().await;
    let key = stage.issue_key();
    let (mut between, mut within) = (websocket(&stage, &key).await, websocket(&stage, &key).await);
    // A frame that announces a hundred bytes and has none.
    within.send([0x82, 0x80 | 100, 0, 0, 0, 0]).await;
    assert_eq!(within.read_bytes(2).await, [0x82, 100]);
    stage.emulator.revoke(&key);
    let began = Instant::now();
    assert_eq!(between.read_bytes(4).await, [0x88, 2, 0x03, 0xF0]);
    assert_eq!(within.read_to_end().await, [0_u8; 0]);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // Further frames of the client are ignored; its Close ends the connection.
    between.send([0x88, 0x80 | 2, 0, 0, 0, 0, 0x03, 0xF0]).await;
    assert_eq!(between.read_to_end().await, [0_u8; 0]);
    drop((between, within));
    wait_until(|| stage.metrics.open_streams.get() == 0 && stage.echo.counts().open == 0).await;
    assert_eq!(closed(&stage, "revoked"), 2);
}

#[tokio::test]
async fn websocket_survives_outage_and_ends_at_expiry() {
    let stage = every_second().await;
    let expiry = jiff::Timestamp::now() + Duration::from_millis(1600);
    let key = stage.issue(Issue { expiry: Some(expiry), ..Issue::default() }).key;
    let mut client = websocket(&stage, &key).await;
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(500))));
    wait_until(|| stage.metrics.unconfirmed_streams.get() == 1).await;
    client.send([&[0x81, 0x80 | 5, 0, 0, 0, 0][..], b"still"].concat()).await;
    assert_eq!(client.read_bytes(7).await, [&[0x81, 5][..], b"still"].concat());
    assert_eq!(client.read_bytes(4).await, [0x88, 2, 0x03, 0xF0]);
    let late = jiff::Timestamp::now().duration_since(expiry);
    assert!(!late.is_negative() && late.as_millis() < 300, "{late:?}");
}
