//! Re-validation starts with the verdict, before the upstream responds: a late response head or 101 is not forwarded for a
//! key that was revoked meanwhile. No request outlives `streams.unconfirmed_for` without a confirmation.

use std::time::Duration;

use keyward::metrics::Outcome;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::support::raw::Client;
use crate::support::{Setup, Stage, TEST_TIMEOUT, bind_loopback, wait_until};
use crate::tunnel::handshake;

const SECOND: Duration = Duration::from_secs(1);
/// One interval of a second, with a margin for a busy machine.
const SOON: Duration = Duration::from_millis(1400);
const EVERY_SECOND: &str = "[streams]\nrevalidate_every = \"1s\"";

/// Keyward in front of an upstream that responds when the test says so.
async fn before_slow_service(sections: &'static str) -> (Stage, TcpListener) {
    let (listener, address) = bind_loopback().await;
    let upstream_url = Some(format!("http://{address}"));
    (Stage::with(Setup { sections, upstream_url, ..Setup::default() }).await, listener)
}

/// The connection of the request that reached the upstream.
async fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream
}

async fn get(stage: &Stage, path: &str, key: &str) -> Client {
    let mut client = stage.connect().await;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n")).await;
    client
}

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

fn hang(stage: &Stage) {
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Hang));
}

fn fail(stage: &Stage) {
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(500))));
}

/// Waits for this number of validations.
async fn asked(stage: &Stage, times: u64) {
    timeout(TEST_TIMEOUT, stage.emulator.validations_begun(times))
        .await
        .expect("the key is asked about again");
}

fn unconfirmed(stage: &Stage) -> u64 {
    stage.metrics.streams_closed.get_or_create(&Outcome { outcome: "unconfirmed" }).get()
}

#[tokio::test]
async fn revoked_key_is_refused_before_late_response() {
    let stage = Stage::with(Setup { sections: EVERY_SECOND, ..Setup::default() }).await;
    let (key, other) = (stage.issue_key(), stage.issue_key());
    let (mut client, mut stays) =
        (get(&stage, "/slow/10000", &key).await, get(&stage, "/slow/2500", &other).await);
    wait_until(|| stage.echo.counts().open == 2).await;
    stage.emulator.revoke(&key);
    let began = Instant::now();
    assert_eq!(client.read_reply().await.code(), Some("invalid_key"));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    wait_until(|| stage.echo.counts().open == 1).await;
    assert_eq!(stays.read_reply().await.status, 200);
    assert_eq!(stage.metrics.open_streams.get(), 0);
}

#[tokio::test]
async fn late_101_opens_no_tunnel_for_revoked_key() {
    let (stage, listener) = before_slow_service(EVERY_SECOND).await;
    let key = stage.issue_key();
    let mut client = stage.connect().await;
    client.send(handshake("/ws", &key)).await;
    let mut service = accept(&listener).await;
    let before = stage.emulator.counts().validations;
    // The validation has no result yet when the 101 comes.
    hang(&stage);
    asked(&stage, before + 1).await;
    tokio::time::sleep(SECOND / 2).await;
    service.write_all(SWITCH.as_bytes()).await.unwrap();
    timeout(SECOND / 5, client.read_bytes(1)).await.expect_err("it waits for the answer");
    stage.emulator.revoke(&key);
    stage.emulator.clear_faults();
    assert_eq!(client.read_reply().await.code(), Some("invalid_key"));
}

#[tokio::test]
async fn late_response_is_forwarded_after_revalidation() {
    for (request, head) in [("plain", HEAD), ("websocket", SWITCH)] {
        let (stage, listener) = before_slow_service(EVERY_SECOND).await;
        let key = stage.issue_key();
        let mut client = match request {
            "plain" => get(&stage, "/v1", &key).await,
            _ => {
                let mut client = stage.connect().await;
                client.send(handshake("/ws", &key)).await;
                client
            }
        };
        let mut service = accept(&listener).await;
        let before = stage.emulator.counts().validations;
        hang(&stage);
        asked(&stage, before + 1).await;
        tokio::time::sleep(SECOND / 2).await;
        service.write_all(head.as_bytes()).await.unwrap();
        timeout(SECOND / 5, client.read_bytes(1)).await.expect_err("it waits for the answer");
        stage.emulator.clear_faults();
        let status = client.read_head().await.status;
        assert_eq!(status, if request == "plain" { 200 } else { 101 }, "{request}");
    }
}

#[tokio::test]
async fn late_response_is_withheld_in_outage() {
    let (stage, listener) = before_slow_service(EVERY_SECOND).await;
    let key = stage.issue_key();
    let mut client = get(&stage, "/v1", &key).await;
    let mut service = accept(&listener).await;
    fail(&stage);
    tokio::time::sleep(SECOND * 3 / 2).await;
    service.write_all(HEAD.as_bytes()).await.unwrap();
    let reply = client.read_reply().await;
    assert_eq!((reply.status, reply.code()), (503, Some("validation_unavailable")));
}

#[tokio::test]
async fn early_response_costs_one_validation() {
    let stage = Stage::with(Setup { sections: EVERY_SECOND, ..Setup::default() }).await;
    let (key, before) = (stage.issue_key(), stage.emulator.counts().validations);
    assert_eq!(stage.get("/slow/300", &key).await.status, 200);
    assert_eq!(stage.emulator.counts().validations - before, 1);
    assert_eq!(stage.metrics.open_streams.get(), 0);
}

#[tokio::test]
async fn outage_longer_than_unconfirmed_for_closes_streams() {
    let stage = Stage::with(Setup { sections: EVERY_SECOND, ..Setup::default() }).await;
    let key = stage.issue_key();
    let mut events = get(&stage, "/events?every=50ms", &key).await;
    assert_eq!(events.read_head().await.status, 200);
    let mut socket = stage.connect().await;
    socket.send(handshake("/ws", &key)).await;
    assert_eq!(socket.read_head().await.status, 101);
    let mut slow = get(&stage, "/slow/10000", &key).await;
    wait_until(|| stage.echo.counts().open == 3).await;
    fail(&stage);
    let began = Instant::now();
    // Close code 1013: try again later.
    assert_eq!(socket.read_bytes(4).await, [0x88, 2, 0x03, 0xF5]);
    let after = began.elapsed();
    assert!((SECOND..3 * SECOND).contains(&after), "twice the interval: {after:?}");
    let rest = timeout(TEST_TIMEOUT, events.read_to_end()).await.unwrap();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "cut, not ended");
    let reply = slow.read_reply().await;
    assert_eq!((reply.status, reply.code()), (503, Some("validation_unavailable")));
    assert_eq!(unconfirmed(&stage), 3);
    let metrics = stage.get_admin("/metrics").await.text();
    for line in [
        "keyward_streams_closed_total{outcome=\"unconfirmed\"} 3",
        "keyward_streams_closed_total{outcome=\"revoked\"} 0",
    ] {
        assert!(metrics.lines().any(|own| own == line), "{line} in\n{metrics}");
    }
    wait_until(|| stage.echo.counts().open == 0).await;
}
