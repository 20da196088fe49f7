//! WebSocket tunnels: their identity headers, their bytes, and their end.

use keyward_emulator::store::Issue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::raw::{Client, ScriptedUpstream};
use crate::support::{Setup, Stage, TEST_TIMEOUT, bind_loopback, wait_until};

pub fn handshake(path: &str, key: &str) -> String {
    let authorization =
        if key.is_empty() { String::new() } else { format!("authorization: Bearer {key}\r\n") };
    format!(
        "GET {path} HTTP/1.1\r\nhost: api.test\r\n{authorization}connection: keep-alive, Upgrade\r\n\
         upgrade: WebSocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A frame as a client sends it; its mask is zero.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = unmasked(first, payload);
    let head = frame.len() - payload.len();
    frame[1] |= 0x80;
    frame.splice(head..head, [0; 4]);
    frame
}

/// The same frame as a server sends it.
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..=125 => frame.push(short as u8),
        long => {
            frame.push(127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

pub async fn open(stage: &Stage, key: &str) -> Client {
    let mut client = stage.connect().await;
    client.send(handshake("/ws", key)).await;
    let head = client.read_head().await;
    assert_eq!((head.status, head.header("upgrade")), (101, Some("websocket")));
    assert_eq!(head.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    client
}

/// An upstream that switches protocols and gives the connection to the test.
async fn switching() -> (tokio::net::TcpListener, String) {
    let (listener, address) = bind_loopback().await;
    (listener, format!("http://{address}"))
}

async fn accept(listener: &tokio::net::TcpListener) -> tokio::net::TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn websocket_handshake_has_identity_not_key() {
    let stage = Stage::start().await;
    let key = stage.issue(Issue { user_id: "usr_1".into(), ..Issue::default() }).key;
    let _client = open(&stage, &key).await;
    let received = stage.last_request();
    for (name, value) in [("x-org-id", "org_1"), ("x-user-id", "usr_1"), ("upgrade", "websocket")] {
        assert_eq!(received.header(name), Some(value));
    }
    assert_eq!(received.header("connection").map(str::to_ascii_lowercase).as_deref(), Some("upgrade"));
    assert!(!format!("{received:?}").contains(&key));
}

#[tokio::test]
async fn frames_pass_both_ways_until_close() {
    let stage = Stage::start().await;
    let mut client = open(&stage, &stage.issue_key()).await;
    assert_eq!((stage.metrics.connections.get(), stage.metrics.requests_in_flight.get()), (1, 1));
    for (first, payload, back) in
        [(0x81, &b"hello"[..], 0x81), (0x82, &[7; 300_000], 0x82), (0x89, b"ping", 0x8A)]
    {
        client.send(masked(first, payload)).await;
        let expected = unmasked(back, payload);
        assert!(client.read_bytes(expected.len()).await == expected, "{first:x}");
    }
    client.send(masked(0x88, &[0x03, 0xE8])).await;
    assert_eq!(client.read_to_end().await, unmasked(0x88, &[0x03, 0xE8]));
    drop(client);
    wait_until(|| stage.echo.counts().open == 0).await;
    wait_until(|| (stage.metrics.connections.get(), stage.metrics.requests_in_flight.get()) == (0, 0)).await;
}

#[tokio::test]
async fn bytes_sent_with_handshake_are_not_lost() {
    let stage = Stage::start().await;
    let mut client = stage.connect().await;
    let early = masked(0x81, b"early");
    client.send([handshake("/ws", &stage.issue_key()).as_bytes(), &early].concat()).await;
    assert_eq!(client.read_head().await.status, 101);
    assert_eq!(client.read_bytes(7).await, unmasked(0x81, b"early"));
}

#[tokio::test]
async fn client_disconnect_ends_upstream_tunnel() {
    for resets in [false, true] {
        let stage = Stage::start().await;
        let client = open(&stage, &stage.issue_key()).await;
        assert_eq!(stage.echo.counts().open, 1);
        if resets {
            client.stream.set_zero_linger().unwrap();
        }
        drop(client);
        wait_until(|| stage.echo.counts().open == 0 && stage.metrics.connections.get() == 0).await;
    }
}

#[tokio::test]
async fn upstream_disconnect_ends_client_tunnel() {
    let (listener, url) = switching().await;
    let stage = Stage::with(Setup { upstream_url: Some(url), ..Setup::default() }).await;
    for resets in [false, true] {
        let mut client = stage.connect().await;
        client.send(handshake("/public/ws", "")).await;
        let upstream = accept(&listener).await;
        assert_eq!(client.read_head().await.status, 101);
        if resets {
            upstream.set_zero_linger().unwrap();
        }
        drop(upstream);
        assert_eq!(client.read_to_end().await, [0_u8; 0]);
        drop(client);
        wait_until(|| stage.metrics.requests_in_flight.get() == 0).await;
    }
}

#[tokio::test]
async fn half_closed_tunnel_is_not_kept_open() {
    let (listener, url) = switching().await;
    let stage = Stage::with(Setup { upstream_url: Some(url), ..Setup::default() }).await;
    let mut client = stage.connect().await;
    client.send(handshake("/public/ws", "")).await;
    let _deaf = accept(&listener).await;
    assert_eq!(client.read_head().await.status, 101);
    drop(client);
    wait_until(|| stage.metrics.requests_in_flight.get() == 0 && stage.metrics.connections.get() == 0).await;
}

#[tokio::test]
async fn bytes_after_half_close_still_pass() {
    let (listener, url) = switching().await;
    let stage = Stage::with(Setup { upstream_url: Some(url), ..Setup::default() }).await;
    let mut client = stage.connect().await;
    client.send(handshake("/public/ws", "")).await;
    let mut upstream = accept(&listener).await;
    assert_eq!(client.read_head().await.status, 101);
    client.stream.shutdown().await.unwrap();
    assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
    upstream.write_all(b"last words").await.unwrap();
    drop(upstream);
    assert_eq!(client.read_to_end().await, b"last words");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn tunnel_whose_client_stops_reading_is_closed() {
    let (listener, url) = switching().await;
    let sections = "[limits]\nanswer_timeout = \"300ms\"";
    let stage = Stage::with(Setup { sections, upstream_url: Some(url), ..Setup::default() }).await;
    let mut client = stage.connect().await;
    client.send(handshake("/public/ws", "")).await;
    let mut upstream = accept(&listener).await;
    assert_eq!(client.read_head().await.status, 101);
    // Until the connection fails, which only Keyward can cause: the client stays connected and reads nothing.
    let flood = async { while upstream.write_all(&[0; 65_536]).await.is_ok() {} };
    tokio::time::timeout(TEST_TIMEOUT, flood).await.expect("Keyward closes the connection");
    wait_until(|| stage.metrics.connections.get() == 0).await;
}

#[tokio::test]
async fn tunnel_needs_a_key() {
    let stage = Stage::start().await;
    let mut client = stage.connect().await;
    client.send(handshake("/ws", "")).await;
    let reply = client.read_reply().await;
    assert_eq!((reply.status, reply.code()), (401, Some("missing_credential")));
    assert_eq!(stage.forwarded_count(), 0);
}

#[tokio::test]
async fn http2_only_upstream_has_no_websockets() {
    let stage = Stage::with(Setup { upstream: "http = \"2\"", ..Setup::default() }).await;
    let reply = stage.send(handshake("/ws", &stage.issue_key())).await;
    assert_eq!((reply.status, reply.code()), (502, Some("upstream_unreachable")));
}

#[tokio::test]
async fn declined_or_invalid_upgrade_opens_no_tunnel() {
    for (answer, status) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno", 200),
        ("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", 502),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", 502),
    ] {
        let upstream = ScriptedUpstream::answering(answer).await;
        let stage = Stage::with(Setup { upstream_url: upstream.url(), ..Setup::default() }).await;
        let mut client = stage.connect().await;
        client.send(handshake("/ws", &stage.issue_key())).await;
        let reply = client.read_reply().await;
        assert_eq!(reply.status, status, "{answer}");
        // The following bytes are an ordinary request, not tunnel bytes.
        client.send("GET /v1/smuggled HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.read_reply().await;
        assert!(!upstream.text().contains("smuggled"), "{}", upstream.text());
    }
}

#[tokio::test]
async fn only_websocket_upgrade_is_forwarded() {
    let upstream = ScriptedUpstream::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let stage = Stage::with(Setup { upstream_url: upstream.url(), ..Setup::default() }).await;
    for other in ["h2c", "TLS/1.0", "websocket, h2c", "foo"] {
        let request = handshake("/ws", &stage.issue_key())
            .replace("upgrade: WebSocket", &format!("upgrade: {other}\r\nhttp2-settings: AAMAAABkAAQ"));
        assert_eq!(stage.send(request).await.status, 200);
    }
    let text = upstream.text().to_lowercase();
    assert!(!text.contains("\r\nupgrade:") && !text.contains("\r\nconnection:"), "{text}");
}
