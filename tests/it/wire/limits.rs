//! Limits on size, number and time of what a client sends, and the responses when they are reached.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::http2::{END_HEADERS, END_STREAM, Fate, GET, HEADERS, PING, block, fate, frame, preface};
use super::{OK, Wire, statuses};
use crate::support::raw::ScriptedUpstream;
use crate::support::{Setup, TEST_TIMEOUT, wait_until};

async fn wire(server: &'static str, sections: &'static str) -> Wire {
    Wire::with(ScriptedUpstream::answering(OK).await, Setup { server, sections, ..Setup::default() }).await
}

#[tokio::test]
async fn large_head_is_431_and_long_target_414() {
    let wire = wire("", "[limits]\nhead = \"8KiB\"\nheaders = 10\nuri = \"1KiB\"").await;
    let target = |length: usize| format!("GET /public/{} HTTP/1.1\r\nhost: a\r\n", "x".repeat(length - 8));
    let field = |length: usize| format!("GET /public/x HTTP/1.1\r\nhost: a\r\nx: {}\r\n", "y".repeat(length));
    let fields = |count: usize| format!("GET /public/x HTTP/1.1\r\nhost: a\r\n{}", "x: y\r\n".repeat(count));
    #[rustfmt::skip]
    let cases = [
        (target(1024), 200), (target(1025), 414), (target(7000), 414), (target(9000), 431),
        (target(70_000), 431), (field(7000), 200), (field(9000), 431), (field(1 << 20), 431),
        (field(9000).replace("x: ", "x"), 431), (fields(8), 200), (fields(10), 431), (fields(1000), 431),
        ("x".repeat(9000), 431),
    ];
    for (head, expected) in cases {
        let all = wire.all(format!("{head}connection: close\r\n\r\n")).await;
        assert_eq!(statuses(&all), [expected], "{} bytes: {}", head.len(), &head[..head.len().min(60)]);
    }
    // With or without a key: an oversized request is not validated.
    let all =
        wire.all(format!("{}connection: close\r\n\r\n", target(1025).replace("/public", "/v1/aaa"))).await;
    assert_eq!(statuses(&all), [414]);
    for (fields, expected) in
        [(vec![("x", "y"); 5], 200), (vec![("x", "y"); 11], 431), (vec![("x", &*"y".repeat(9000))], 431)]
    {
        let mut client = wire.stage.connect().await;
        let fields = [&GET[..], &fields].concat();
        client.send([preface(), frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields))].concat()).await;
        assert_eq!(fate(&mut client, Some(1)).await, Fate::Answered(expected), "{}", fields.len());
    }
    let path = format!("/public/{}", "x".repeat(1024));
    let mut client = wire.stage.connect().await;
    let fields = [GET[0], GET[1], GET[2], (":path", &*path)];
    client.send([preface(), frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields))].concat()).await;
    assert_eq!(fate(&mut client, Some(1)).await, Fate::Answered(414));
}

#[tokio::test]
async fn head_beyond_limit_never_reaches_upstream() {
    let setup = Setup { sections: "[limits]\nhead = \"8KiB\"", ..Setup::default() };
    let wire = Wire::with(ScriptedUpstream::answering(OK).await, setup).await;
    let mut seen = wire.upstream.text().len();
    let head = |length: usize| {
        let fields =
            |value: &str| wire.head("POST /public/x", &format!("content-length: 40\r\nx: {value}\r\n"));
        fields(&"y".repeat(length - fields("").len()))
    };
    let mut client = wire.stage.connect().await;
    client.send(format!("{}{}", head(8192), "B".repeat(40))).await;
    assert_eq!(client.read_reply().await.status, 200);
    wait_until(|| wire.upstream.text().ends_with(&"B".repeat(40))).await;
    wire.fresh(&mut seen);
    // SECURITY: nothing that Keyward reads in place of the rest completes such a head or becomes its body.
    for excess in 1..=6 {
        let mut client = wire.stage.connect().await;
        client.send(format!("{}{}", head(8192 + excess), "B".repeat(40))).await;
        assert_eq!(client.read_head().await.status, 431, "{excess} bytes more");
        let mut slow = wire.stage.connect().await;
        let head = head(8192 + excess);
        let (begin, end) = head.split_at(8190);
        slow.send(begin).await;
        for byte in end.bytes() {
            sleep(Duration::from_millis(2)).await;
            slow.send([byte]).await;
        }
        assert!(matches!(slow.read_head().await.status, 400 | 431), "{excess} bytes more, one by one");
        assert_eq!(wire.fresh(&mut seen), "", "{excess} bytes more");
    }
}

#[tokio::test]
async fn slow_head_is_closed_without_affecting_others() {
    let wire = wire("header_timeout = \"200ms\"", "").await;
    let mut patient = wire.stage.connect().await;
    patient.send(wire.head("GET /v1", "")).await;
    assert_eq!(patient.read_reply().await.status, 200);
    #[rustfmt::skip]
    let cases = [
        "", "G", "GET /public/x HTTP/1.1\r\nhost: a\r\n", "PRI * HT", "PRI * HTTP/2.0\r\n\r\nSM\r\n",
        "\r\n\r\n",
    ];
    for begin in cases {
        let mut client = wire.stage.connect().await;
        let began = Instant::now();
        client.send(begin).await;
        // Sending a byte from time to time does not extend it.
        let drip = async {
            loop {
                sleep(Duration::from_millis(50)).await;
                client.send(if begin.is_empty() { "" } else { "x" }).await;
                if timeout(Duration::from_millis(1), client.stream.readable()).await.is_ok() {
                    return client.read_to_end().await;
                }
            }
        };
        let left = timeout(TEST_TIMEOUT, drip).await.unwrap_or_else(|_| panic!("{begin:?} is never closed"));
        let took = began.elapsed();
        assert!(took < Duration::from_secs(2), "{begin:?}: {took:?}");
        assert!(matches!(statuses(&String::from_utf8_lossy(&left))[..], [] | [400]), "{begin:?}");
    }
    // Between requests `idle_timeout` applies.
    patient.send(wire.head("GET /v1", "")).await;
    assert_eq!(patient.read_reply().await.status, 200);
    // The limit applies to a second head as well.
    patient.send("GET /v1 HTTP/1.1\r\nx: y").await;
    assert_eq!(patient.read_to_end().await, b"");
    assert!(wire.upstream.text().matches("/public/x").count() == 0);
}

#[tokio::test]
async fn idle_client_connection_is_closed() {
    let wire = wire("idle_timeout = \"200ms\"", "").await;
    let mut client = wire.stage.connect().await;
    client.send(wire.head("GET /v1", "")).await;
    assert_eq!(client.read_reply().await.status, 200);
    assert_eq!(client.read_to_end().await, b"");
    for begin in [
        preface(),
        [preface(), frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&GET))].concat(),
        // A head that never ends.
        [preface(), frame(HEADERS, END_STREAM, 1, &block(&GET))].concat(),
    ] {
        let mut client = wire.stage.connect().await;
        client.send(begin).await;
        // PING frames do not count as requests.
        let ping = async {
            loop {
                sleep(Duration::from_millis(50)).await;
                client.send(frame(PING, 0, 0, &[0; 8])).await;
                while let Ok(head) = timeout(Duration::from_millis(1), client.read_bytes(9)).await {
                    if head.len() < 9 {
                        return;
                    }
                    client.read_bytes(usize::from(head[1]) << 8 | usize::from(head[2])).await;
                }
            }
        };
        timeout(TEST_TIMEOUT, ping).await.expect("the connection is closed");
    }
}

#[tokio::test]
async fn connections_over_limit_wait_until_served() {
    let wire = wire("", "[limits]\nconnections = 2").await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = wire.stage.connect().await;
        client.send(wire.head("GET /v1", "")).await;
        assert_eq!(client.read_reply().await.status, 200);
        held.push(client);
    }
    let mut waiting = wire.stage.connect().await;
    waiting.send(wire.head("GET /v1/waits", "")).await;
    timeout(Duration::from_millis(100), waiting.read_bytes(1)).await.unwrap_err();
    assert!(!wire.upstream.text().contains("/v1/waits"));
    // Open connections are served meanwhile.
    held[1].send(wire.head("GET /v1", "")).await;
    assert_eq!(held[1].read_reply().await.status, 200);
    held.remove(0);
    assert_eq!(waiting.read_reply().await.status, 200);
}
