//! WebSockets through Keyward: only after a verdict, only after a 101, both ways, and ended from either side.

use tokio::io::AsyncWriteExt;

use crate::support::raw::{Client, Scripted};
use crate::support::{Setup, Stage};

fn upgrade(key: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\nx-org-id: forged\r\nconnection: Upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A masked text frame with a mask of zeros (RFC 6455 section 5.2).
fn frame(text: &str) -> Vec<u8> {
    [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0][..], text.as_bytes()].concat()
}

async fn open(stage: &Stage) -> Client {
    let mut client = stage.connect().await;
    client.send(upgrade(&stage.key())).await;
    let head = client.head().await;
    assert_eq!((head.status, head.header("upgrade")), (101, Some("websocket")));
    assert_eq!(head.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    client
}

#[tokio::test]
async fn frames_go_both_ways_and_the_upstream_knows_who_it_is() {
    let stage = Stage::start().await;
    let mut client = open(&stage).await;
    for text in ["hello", "again"] {
        client.send(frame(text)).await;
        assert_eq!(client.bytes(2 + text.len()).await, [&[0x81, text.len() as u8], text.as_bytes()].concat());
    }
    let received = stage.last();
    assert_eq!(received.header_values("x-org-id"), ["org_1"]);
    assert_eq!(received.header("authorization"), None);
}

#[tokio::test]
async fn without_a_good_key_nothing_is_upgraded() {
    let stage = Stage::start().await;
    let reply = stage.ask(upgrade("0123456789ABCDEFGHIJabcdefghij")).await;
    assert_eq!((reply.status, reply.code()), (401, Some("invalid_key")));
    assert_eq!(stage.forwarded(), 0);
}

#[tokio::test]
async fn either_side_that_ends_ends_the_other() {
    let stage = Stage::start().await;
    let mut client = open(&stage).await;
    // Close, 1000: the echo answers it and ends.
    client.send([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]).await;
    assert_eq!(client.rest().await, [0x88, 0x02, 0x03, 0xe8]);

    let mut client = open(&stage).await;
    client.stream.shutdown().await.unwrap();
    client.rest().await;
    let wait = async {
        while stage.echo.counts().open > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::support::LIMIT, wait).await.expect("the upstream's side has ended");
}

#[tokio::test]
async fn an_upstream_that_declines_or_lies_gets_no_tunnel() {
    for (answer, status) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno", 200),
        ("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", 502),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", 502),
    ] {
        let upstream = Scripted::answering(answer).await;
        let stage = Stage::with(Setup { instead: upstream.url(), ..Setup::default() }).await;
        let mut client = stage.connect().await;
        client.send(upgrade(&stage.key())).await;
        let reply = client.reply().await;
        assert_eq!(reply.status, status, "{answer}");
        // What follows is a request like any other, and not bytes for the upstream.
        client.send("GET /v1/smuggled HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.reply().await;
        assert!(!upstream.text().contains("smuggled"), "{}", upstream.text());
    }
}

#[tokio::test]
async fn no_other_upgrade_is_forwarded() {
    let upstream = Scripted::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let stage = Stage::with(Setup { instead: upstream.url(), ..Setup::default() }).await;
    for other in ["h2c", "TLS/1.0", "websocket, h2c", "foo"] {
        let request = upgrade(&stage.key())
            .replace("upgrade: websocket", &format!("upgrade: {other}\r\nhttp2-settings: AAMAAABkAAQ"));
        assert_eq!(stage.ask(request).await.status, 200);
    }
    let text = upstream.text().to_lowercase();
    assert!(!text.contains("\r\nupgrade:") && !text.contains("\r\nconnection:"), "{text}");
}
