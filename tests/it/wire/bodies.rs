//! The body of a refused request is never read as the next request, and no body is requested before the verdict.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::{OK, SMUGGLED, Wire, chunked, rest, statuses, values};
use crate::support::Setup;
use crate::support::raw::{Act, ScriptedUpstream};

/// The lines that frame a body, and the body with a hidden request.
fn shapes() -> [(String, String); 4] {
    let length = format!("content-length: {}\r\n", SMUGGLED.len());
    let chunks = "transfer-encoding: chunked\r\n".to_owned();
    [
        (length.clone(), SMUGGLED.into()),
        (chunks.clone(), chunked(SMUGGLED)),
        (format!("expect: 100-continue\r\n{length}"), SMUGGLED.into()),
        (format!("expect: 100-continue\r\n{chunks}"), chunked(SMUGGLED)),
    ]
}

#[tokio::test]
async fn body_of_refused_request_is_never_a_request() {
    let wire = Wire::start().await;
    let bad = "authorization: Bearer 0123456789ABCDEFGHIJabcdefghij\r\n";
    let good = format!("authorization: Bearer {}\r\n", wire.key);
    let many = good.clone() + &"x: y\r\n".repeat(101);
    #[rustfmt::skip]
    let cases = [
        ("POST /v1", "a", "", 401), ("POST /v1", "a", bad, 401), ("GET /v1", "a", bad, 401),
        ("HEAD /v1", "a", bad, 401),
        ("OPTIONS /v1", "a", "origin: x\r\naccess-control-request-method: PUT\r\n", 401),
        ("POST /v1", "a", &*(good.clone() + &good), 400), ("POST /v1/../x", "a", &good, 400),
        ("POST /v1", "a b", &good, 400), ("POST /v1/admin/x", "a", &good, 403),
        ("PUT /v1/admin/x", "a", &good, 405), ("TRACE /v1", "a", &good, 405), ("POST /v1", "a", &many, 431),
        ("POST /v1", "a", "content-type: application/grpc\r\n", 200),
    ];
    for (line, host, lines, status) in cases {
        for (framing, body) in shapes() {
            for pause in [false, true] {
                for version in ["1.1", "1.0"] {
                    if version == "1.0" && framing.contains("chunked") {
                        continue;
                    }
                    let head = format!(
                        "{line} HTTP/{version}\r\nhost: {host}\r\nconnection: keep-alive\r\n{lines}{framing}\r\n"
                    );
                    let mut client = wire.stage.connect().await;
                    if pause {
                        client.send(head).await;
                        let reply = client.read_head().await;
                        assert_eq!(reply.status, status, "{line} {lines} {framing}");
                        client.send(body.clone() + SMUGGLED).await;
                        let left = rest(&mut client).await;
                        assert_eq!(statuses(&left), [] as [u16; 0], "{line} {lines} {framing}");
                    } else {
                        client.send(head + &body + SMUGGLED).await;
                        let all = rest(&mut client).await;
                        assert_eq!(statuses(&all), [status], "{line} {lines} {framing}");
                    }
                }
            }
        }
    }
    assert_eq!(wire.upstream.text(), "");
}

#[tokio::test]
async fn only_post_gets_grpc_refusal() {
    let wire = Wire::start().await;
    for (line, status) in
        [("POST /v1", 200), ("GET /v1", 401), ("HEAD /v1", 401), ("PUT /v1", 401), ("CONNECT a:443", 405)]
    {
        let lines = "content-type: application/grpc\r\nconnection: close\r\n";
        let all = wire.all(format!("{line} HTTP/1.1\r\nhost: a:443\r\n{lines}\r\n")).await;
        assert_eq!(statuses(&all), [status], "{line}");
    }
}

#[tokio::test]
async fn refusal_reaches_client_that_is_still_sending() {
    let wire = Wire::start().await;
    for (size, sent) in [(1_000_000_000, 10), (8 << 20, 8 << 20), (8 << 20, 1 << 20)] {
        for _ in 0..8 {
            let mut client = wire.stage.connect().await;
            client.send(format!("POST /v1 HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n")).await;
            client.send(vec![b'.'; sent]).await;
            let reply = client.read_reply().await;
            assert_eq!((reply.status, reply.whole), (401, true), "{size} {sent}");
        }
    }
    assert_eq!(wire.upstream.text(), "");
}

#[tokio::test]
async fn body_after_early_response_is_never_a_request() {
    let early = "HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n";
    for act in [Act::Say(early.into()), Act::Last(early.into())] {
        let wire = Wire::with(ScriptedUpstream::acting([act]).await, Setup::default()).await;
        for (framing, body) in shapes() {
            let mut client = wire.stage.connect().await;
            client.send(wire.head("POST /v1", &framing)).await;
            assert_eq!(client.read_reply().await.status, 413, "{framing}");
            client.send(&body).await;
            // Whether the connection stays open or closes, the next bytes are a separate request.
            client.send("GET /public/next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            let left = rest(&mut client).await;
            assert!(matches!(statuses(&left)[..], [] | [413]), "{framing}: {left}");
        }
        for connection in wire.upstream.received() {
            let text = String::from_utf8(connection).unwrap();
            // The hidden request was forwarded only as a body, if at all.
            let heads = text.matches("x-request-id: ").count();
            assert_eq!(
                heads,
                text.matches("POST /v1").count() + text.matches("GET /public/next").count(),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn continue_follows_verdict_and_interim_responses_are_skipped() {
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
    let wire =
        Wire::with(ScriptedUpstream::answering(format!("{interim}{OK}")).await, Setup::default()).await;
    for line in ["POST /v1", "POST /public/x"] {
        let mut client = wire.stage.connect().await;
        client.send(wire.head(line, "expect: 100-continue\r\ncontent-length: 3\r\n")).await;
        let wanted = "HTTP/1.1 100 Continue\r\n\r\n";
        assert_eq!(client.read_bytes(wanted.len()).await, wanted.as_bytes());
        client.send("abc").await;
        assert_eq!(client.read_reply().await.text(), "ok");
    }
}

#[tokio::test]
async fn body_passes_with_any_method() {
    let wire = Wire::start().await;
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "POST", "PURGE"] {
        for (framing, body) in
            [("content-length: 3\r\n", "abc".to_owned()), ("transfer-encoding: chunked\r\n", chunked("abc"))]
        {
            let mut seen = wire.upstream.text().len();
            let head = wire.head(&format!("{method} /v1"), &format!("{framing}connection: close\r\n"));
            assert_eq!(statuses(&wire.all(head + &body).await), [200], "{method} {framing}");
            wire.upstream.wait_until(|text| text[seen..].ends_with(&format!("\r\n\r\n{body}"))).await;
            let head = wire.fresh(&mut seen);
            assert!(head.contains(framing), "{method}: {head}");
        }
    }
}

#[tokio::test]
async fn upgrade_other_than_websocket_is_not_forwarded() {
    let wire = Wire::start().await;
    #[rustfmt::skip]
    let cases = [
        "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        "connection: Upgrade\r\nupgrade: h2c\r\n", "connection: upgrade\r\nupgrade: websocket, h2c\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\nupgrade: h2c\r\n", "upgrade: h2c\r\n",
        "upgrade: websocket\r\n", "connection: upgrade\r\nupgrade: websocket/13\r\n",
        "connection: upgrade\r\nupgrade: TLS/1.0\r\n",
    ];
    for lines in cases {
        let mut seen = wire.upstream.text().len();
        let mut client = wire.stage.connect().await;
        client.send(wire.head("GET /v1", lines)).await;
        assert_eq!(client.read_reply().await.status, 200, "{lines}");
        let head = wire.fresh(&mut seen);
        assert!(!head.contains("upgrade") && values(&head, "http2-settings").is_empty(), "{lines}: {head}");
        // The following bytes are HTTP and need their own key, or the connection closes.
        client.send("GET /v1/hidden HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let closes = lines.contains("upgrade: websocket\r\n");
        let expected: &[u16] = if closes { &[] } else { &[401] };
        assert_eq!(statuses(&rest(&mut client).await), expected, "{lines}");
        assert_eq!(wire.fresh(&mut seen), "", "{lines}");
    }
    for (line, lines, status) in [
        ("GET /v1", "", 401),
        ("GET /v1/none/../x", "", 400),
        ("GET /v1", "authorization: Bearer 0123456789ABCDEFGHIJabcdefghij\r\n", 401),
    ] {
        let seen = wire.upstream.text().len();
        let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n";
        let head = format!("{line} HTTP/1.1\r\nhost: a\r\n{lines}{upgrade}\r\n");
        let reply = wire.stage.send(head).await;
        assert_eq!((reply.status, wire.upstream.text().len()), (status, seen), "{line}");
    }
}

#[tokio::test]
async fn only_101_to_websocket_opens_tunnel() {
    let websocket = "connection: upgrade\r\nupgrade: websocket\r\n";
    let hidden = "GET /v1/hidden HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let switching = |lines: &str| format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\nhello");
    for (asked, answer, statuses_wanted) in [
        // Refused: the following bytes are not read.
        (websocket, OK.to_owned(), &[200][..]),
        (
            websocket,
            "HTTP/1.1 426 Upgrade Required\r\nupgrade: websocket\r\ncontent-length: 0\r\n\r\n".into(),
            &[426],
        ),
        (websocket, switching("connection: upgrade\r\nupgrade: h2c\r\n"), &[502]),
        (websocket, switching(""), &[502]),
        ("", switching(websocket), &[502, 401]),
        (
            "connection: upgrade\r\nupgrade: h2c\r\n",
            switching("connection: upgrade\r\nupgrade: h2c\r\n"),
            &[502, 401],
        ),
        (websocket, switching(websocket), &[101]),
    ] {
        let wire = Wire::with(ScriptedUpstream::answering(&*answer).await, Setup::default()).await;
        let mut client = wire.stage.connect().await;
        client.send(wire.head("GET /v1", asked) + hidden).await;
        if statuses_wanted == [101] {
            assert_eq!(client.read_head().await.status, 101);
            assert_eq!(client.read_bytes(5).await, b"hello");
            wire.upstream.wait_until(|text| text.ends_with(hidden)).await;
            client.stream.shutdown().await.unwrap();
            continue;
        }
        let all = rest(&mut client).await;
        assert_eq!(statuses(&all), statuses_wanted, "{asked} {answer}: {all}");
        assert!(
            !wire.upstream.text().contains("hidden") && !all.contains("hello"),
            "{asked} {answer}: {all}"
        );
    }
}

#[tokio::test]
async fn websocket_carries_nothing_before_verdict() {
    let wire = Wire::with(ScriptedUpstream::answering("").await, Setup::default()).await;
    let mut client = wire.stage.connect().await;
    client.send(wire.head("GET /v1", "connection: upgrade\r\nupgrade: websocket\r\n") + "early").await;
    wire.upstream.wait_until(|text| text.ends_with("\r\n\r\n")).await;
    timeout(Duration::from_millis(100), wire.upstream.wait_until(|text| text.contains("early")))
        .await
        .unwrap_err();
}
