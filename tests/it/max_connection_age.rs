//! `server.max_connection_age`: an old connection ends, and nothing that is under way on it.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use keyward::listener::Listen;
use tokio::time::{Instant, sleep, timeout};

use crate::support::http::HttpVersion;
use crate::support::raw::Client;
use crate::support::{Setup, Stage, TEST_TIMEOUT};
use crate::tunnel;

const AGE: &str = "max_connection_age = \"1s\"\nidle_timeout = \"1h\"\nheader_timeout = \"1h\"";
/// 1 s less a tenth.
const LEAST_AGE: Duration = Duration::from_millis(900);
const OPEN: &str = "GET /public/x HTTP/1.1\r\nhost: a\r\n\r\n";

async fn start(server: &'static str) -> Stage {
    let sections = "[decision]\nlisten = \"127.0.0.1:0\"";
    Stage::with(Setup { server, sections, ..Setup::default() }).await
}

/// Waits until a connection that is opened now has reached its age and was closed.
async fn an_age_passes(stage: &Stage) {
    let mut idle = stage.connect().await;
    idle.send(OPEN).await;
    assert_eq!(idle.read_reply().await.status, 200);
    assert_eq!(idle.read_to_end().await, [0_u8; 0]);
}

/// Sends requests until a response says that the connection ends.
async fn use_until_close(address: SocketAddr, request: &str, pause: Duration) {
    let began = Instant::now();
    let mut client = Client::connect(address).await;
    let mut answered = 0;
    loop {
        client.send(request).await;
        let reply = client.read_reply().await;
        assert!(reply.whole && reply.status < 500, "{reply:?}");
        if reply.header("connection") == Some("close") {
            break;
        }
        answered += 1;
        assert!(began.elapsed() < TEST_TIMEOUT, "the connection is never closed");
        sleep(pause).await;
    }
    assert!(answered > 1 && began.elapsed() >= LEAST_AGE, "{answered} in {:?}", began.elapsed());
    assert_eq!(client.read_to_end().await, [0_u8; 0]);
}

#[tokio::test]
async fn busy_http1_connection_ends_with_a_response() {
    let stage = start(AGE).await;
    let Some(Listen::Tcp(decision)) = stage.decision.clone() else { panic!("a port") };
    let asked = "GET /decision HTTP/1.1\r\nhost: a\r\nx-forwarded-method: GET\r\nx-forwarded-uri: /public/x\r\n\
                 x-forwarded-host: a\r\n\r\n";
    // Also with pauses in which the connection is idle: a close would cross the next request.
    for pause in [Duration::ZERO, Duration::from_millis(50)] {
        tokio::join!(use_until_close(stage.address, OPEN, pause), use_until_close(decision, asked, pause));
    }
}

#[tokio::test]
async fn idle_http1_connection_is_closed_at_max_age() {
    let stage = start(AGE).await;
    let began = Instant::now();
    an_age_passes(&stage).await;
    assert!(began.elapsed() >= LEAST_AGE, "{:?}", began.elapsed());
    let text = stage.metrics.encode();
    assert!(!text.contains("keyward_connection_errors_total{"), "it is no error: {text}");
}

#[tokio::test]
async fn http1_stream_and_tunnel_outlive_max_age() {
    let stage = start(AGE).await;
    let key = stage.issue_key();
    let mut tunnel = tunnel::open(&stage, &key).await;
    let mut events = stage.connect().await;
    events
        .send(format!("GET /events?every=20ms HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n"))
        .await;
    assert_eq!(events.read_head().await.status, 200);
    an_age_passes(&stage).await;
    tunnel.send(tunnel::masked(0x81, b"still")).await;
    assert_eq!(tunnel.read_bytes(7).await, tunnel::unmasked(0x81, b"still"));
    let aged = Instant::now();
    // Longer than it takes to read what has arrived.
    while aged.elapsed() < Duration::from_millis(300) {
        assert_eq!(events.read_bytes(16).await.len(), 16, "it goes on");
    }
}

/// Reads some more events.
async fn read_events(events: &mut Response<Incoming>) {
    for _ in 0..20 {
        let frame = timeout(TEST_TIMEOUT, events.frame()).await.expect("an event in time");
        frame.expect("it goes on").expect("it is not cut");
    }
}

#[tokio::test]
async fn http2_requests_finish_after_goaway_at_max_age() {
    let stage = start(AGE).await;
    let key = stage.issue_key();
    let began = Instant::now();
    let mut client = stage.connect_http(HttpVersion::Http2).await;
    let slow = {
        let mut client = client.again();
        let key = key.clone();
        tokio::spawn(async move { client.get("/slow/3500", &key).await })
    };
    let mut events = client.get("/events?every=20ms", &key).await.unwrap();
    // After GOAWAY the client sends nothing more on this connection.
    let refused =
        async { while client.get("/v1", &key).await.is_ok_and(|response| response.status() == 200) {} };
    timeout(TEST_TIMEOUT, refused).await.expect("a GOAWAY in time");
    assert!(began.elapsed() >= LEAST_AGE, "{:?}", began.elapsed());
    assert!(!slow.is_finished());
    read_events(&mut events).await;
    assert_eq!(slow.await.unwrap().expect("it finishes").status(), 200);
    read_events(&mut events).await;
    assert_eq!(stage.connect_http(HttpVersion::Http2).await.get("/v1", &key).await.unwrap().status(), 200);
}

#[tokio::test]
async fn drain_ends_stream_on_connection_beyond_max_age() {
    let mut stage = start(concat!(
        "max_connection_age = \"1s\"\nidle_timeout = \"1h\"\nheader_timeout = \"1h\"\n",
        "drain_delay = \"0s\"\ndrain_timeout = \"200ms\""
    ))
    .await;
    let key = stage.issue_key();
    let mut client = stage.connect_http(HttpVersion::Http2).await;
    let mut events = client.get("/events?every=20ms", &key).await.unwrap();
    an_age_passes(&stage).await;
    read_events(&mut events).await;
    stage.stop.cancel();
    timeout(TEST_TIMEOUT, &mut stage.running).await.expect("it ends in time").unwrap();
}
