//! A misbehaving upstream affects only its own request: the client gets a 5xx or a truncated response, nothing is sent
//! twice, and no such connection is reused.

use std::sync::Arc;

use hyper::Method;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use keyward::body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::{OK, Wire, values};
use crate::support::http::{HttpVersion, read_body};
use crate::support::raw::{Act, Reply, ScriptedUpstream};
use crate::support::{Setup, Stage, TEST_TIMEOUT, bind_loopback};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// A 502 of Keyward's own.
    Refused,
    /// A head, and a visibly truncated body.
    Cut,
    /// The complete response, with this status and body.
    Whole(u16, &'static str),
}

fn seen(reply: &Reply) -> Seen {
    let known =
        |text: String| ["", "ok"].into_iter().find(|known| *known == text).unwrap_or("something else");
    match (reply.status, reply.code()) {
        (502, Some("upstream_unreachable")) => Seen::Refused,
        (status, None) if reply.whole => Seen::Whole(status, known(reply.text())),
        (0 | 200, None) => Seen::Cut,
        (status, code) => panic!("{status} {code:?} {}", reply.text()),
    }
}

/// The result of this response. Afterwards the upstream works, and the next request is served on a new connection.
async fn check(method: &str, act: Act, expected: Seen) {
    let wire =
        Wire::with(ScriptedUpstream::acting([act.clone(), Act::Say(OK.into())]).await, Setup::default())
            .await;
    let shown = match &act {
        Act::Say(bytes) | Act::Last(bytes) => {
            String::from_utf8_lossy(&bytes[..bytes.len().min(160)]).into_owned()
        }
        Act::Reset => "reset".into(),
    };
    let head = wire.head(&format!("{method} /v1"), "content-length: 3\r\nconnection: close\r\n") + "abc";
    let mut client = wire.stage.connect().await;
    client.send(head).await;
    let reply = if method == "HEAD" { client.read_head().await } else { client.read_reply().await };
    if method == "HEAD" {
        assert_eq!((reply.status, client.read_to_end().await.len()), (200, 0), "{shown}");
    } else {
        assert_eq!(seen(&reply), expected, "{method} {shown}");
    }
    let framings = [reply.header("content-length"), reply.header("transfer-encoding")];
    assert!(framings.iter().flatten().count() < 2, "{method} {shown}: {:?}", reply.headers);
    assert_eq!(
        wire.upstream.text().matches(&format!("{method} /v1")).count(),
        1,
        "{method} {shown}: sent once"
    );
    let next = wire.stage.get("/v1/next", &wire.key).await;
    assert_eq!((next.status, next.text().as_str()), (200, "ok"), "{method} {shown}");
    let connections = wire.upstream.received();
    assert_eq!(connections.len(), 2, "{method} {shown}: a new connection");
    assert!(String::from_utf8_lossy(&connections[1]).starts_with("GET /v1/next "), "{method} {shown}");
}

fn answer(fields: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}")
}

#[tokio::test]
async fn malformed_response_is_502() {
    let twice = "content-length: 2\r\n".repeat(2).replacen('2', "3", 1);
    #[rustfmt::skip]
    let cases = [
        "", "garbage", "garbage\r\n\r\n", "<html>hello</html>\r\n\r\n", "\0\x01\x02\r\n\r\n",
        "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2", "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/0.9 200 OK\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n", "HTTP/1.1 abc OK\r\n\r\n", "HTTP/1.1 -20 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n", "ICY 200 OK\r\n\r\n", "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nok",
        &answer(&twice, "ok"), &answer("content-length: 2\r\ncontent-length: 2\r\n", "ok"),
        &answer("content-length: 2, 2\r\n", "ok"), &answer("content-length: 2, 3\r\n", "ok"),
        &answer("content-length: +2\r\n", "ok"), &answer("content-length: -2\r\n", "ok"),
        &answer("content-length: 0x2\r\n", "ok"), &answer("content-length: two\r\n", "ok"),
        &answer("content-length: 99999999999999999999999\r\n", "ok"),
        &answer("content-length: 2\r\ntransfer-encoding: chunked\r\n", "2\r\nok\r\n0\r\n\r\n"),
        &answer("transfer-encoding: chunked\r\ncontent-length: 9\r\n", "2\r\nok\r\n0\r\n\r\n"),
        &answer("transfer-encoding: chunked\r\ncontent-length: 1\r\n", "2\r\nok\r\n0\r\n\r\n"),
        &answer("transfer-encoding: gzip, chunked\r\n", "2\r\nok\r\n0\r\n\r\n"),
        &answer("transfer-encoding: chunked, chunked\r\n", "2\r\nok\r\n0\r\n\r\n"),
        &answer("transfer-encoding: gzip\r\n", "ok"),
        &answer("transfer-encoding: chunked, identity\r\n", "2\r\nok\r\n0\r\n\r\n"),
        &answer("x\0: y\r\ncontent-length: 2\r\n", "ok"), &answer("x: \0\r\ncontent-length: 2\r\n", "ok"),
        &answer("x: a\rb\r\ncontent-length: 2\r\n", "ok"), &answer("x\r\ncontent-length: 2\r\n", "ok"),
        &answer(": x\r\ncontent-length: 2\r\n", "ok"),
        &answer(&format!("x: {}\r\ncontent-length: 2\r\n", "y".repeat(1 << 20)), "ok"),
        &answer(&("x: y\r\n".repeat(2000) + "content-length: 2\r\n"), "ok"),
    ];
    for text in cases {
        for method in ["GET", "POST"] {
            check(method, Act::Last(text.into()), Seen::Refused).await;
        }
    }
    check("POST", Act::Reset, Seen::Refused).await;
    check("GET", Act::Reset, Seen::Refused).await;
}

#[tokio::test]
async fn truncated_response_is_truncated_for_client() {
    let chunked = "transfer-encoding: chunked\r\n";
    #[rustfmt::skip]
    let cases = [
        answer("content-length: 9\r\n", "ok"), answer("content-length: 9\r\n", ""), answer(chunked, ""),
        answer(chunked, "2\r\nok\r\n"), answer(chunked, "9\r\nok"), answer(chunked, "2\r\nok\r\n0\r\n"),
        answer(chunked, "2\r\nok\r\nx\r\n"), answer(chunked, "2\r\nokay\r\n0\r\n\r\n"),
        answer(chunked, "2\nok\n0\n\n"), answer(chunked, "+2\r\nok\r\n0\r\n\r\n"),
        answer(chunked, "10000000000000002\r\nok\r\n0\r\n\r\n"),
        answer(chunked, &format!("2;{}\r\nok\r\n0\r\n\r\n", "x".repeat(1 << 20))),
    ];
    for text in cases {
        for method in ["GET", "POST"] {
            check(method, Act::Last(text.clone().into()), Seen::Cut).await;
        }
    }
}

#[tokio::test]
async fn bytes_after_response_close_upstream_connection() {
    let queued = format!("{OK}HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\npoisoned");
    for (text, expected) in [
        (queued.clone(), Seen::Whole(200, "ok")),
        (format!("{OK}garbage"), Seen::Whole(200, "ok")),
        (format!("{OK}\r\n\r\nx"), Seen::Whole(200, "ok")),
        (
            queued.replace("200 OK\r\ncontent-length: 2\r\n\r\nok", "204 No Content\r\n\r\n"),
            Seen::Whole(204, ""),
        ),
        ("HTTP/1.1 204 No Content\r\ncontent-length: 8\r\n\r\npoisoned".into(), Seen::Whole(204, "")),
        (
            "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n".into(),
            Seen::Whole(204, ""),
        ),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 8\r\n\r\npoisoned".into(), Seen::Whole(304, "")),
        (
            format!("{}x", answer("transfer-encoding: chunked\r\n", "2\r\nok\r\n0\r\n\r\n")),
            Seen::Whole(200, "ok"),
        ),
        (answer("content-length: 2\r\nconnection: close\r\n", "ok"), Seen::Whole(200, "ok")),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok".into(), Seen::Whole(200, "ok")),
    ] {
        for method in ["GET", "POST"] {
            check(method, Act::Say(text.clone().into()), expected).await;
        }
    }
    check("HEAD", Act::Say(answer("content-length: 8\r\n", "poisoned").into()), Seen::Whole(200, "")).await;
    check("HEAD", Act::Say(queued.into()), Seen::Whole(200, "")).await;
}

#[tokio::test]
async fn hanging_upstream_is_504_and_disconnected() {
    let upstream = "response_timeout = \"150ms\"";
    for part in ["", "HTTP/1.1 200 OK\r\ncontent-", "HTTP/1.1 100 Continue\r\n\r\n"] {
        let acts = [Act::Say(part.into()), Act::Say(part.into()), Act::Say(OK.into())];
        let wire =
            Wire::with(ScriptedUpstream::acting(acts).await, Setup { upstream, ..Setup::default() }).await;
        for head in [wire.head("POST /v1", "content-length: 3\r\n") + "abc", wire.head("GET /v1", "")] {
            let reply = wire.stage.send(head).await;
            assert_eq!((reply.status, reply.code()), (504, Some("upstream_timeout")), "{part:?}");
        }
        assert_eq!(wire.stage.get("/v1", &wire.key).await.text(), "ok", "{part:?}");
        let connections = wire.upstream.received();
        assert_eq!(connections.len(), 3, "{part:?}");
        assert_eq!(wire.upstream.text().matches("POST /v1").count(), 1, "{part:?}");
    }
}

#[tokio::test]
async fn unreachable_upstream_is_502_until_it_listens() {
    let (listener, address) = bind_loopback().await;
    drop(listener);
    let stage =
        Stage::with(Setup { upstream_url: Some(format!("http://{address}")), ..Setup::default() }).await;
    for _ in 0..3 {
        let reply = stage.get("/public/x", "").await;
        assert_eq!((reply.status, reply.code()), (502, Some("upstream_unreachable")));
    }
}

#[tokio::test]
async fn dead_pooled_connection_retries_only_safe_requests() {
    for act in [Act::Last(Vec::new()), Act::Reset] {
        #[rustfmt::skip]
        let cases = [
            ("GET /v1", "", 200), ("HEAD /v1", "", 200), ("DELETE /v1", "", 200), ("PUT /v1", "abc", 502),
            ("POST /v1", "abc", 502), ("POST /v1", "", 502), ("PATCH /v1", "", 502),
        ];
        for (line, body, status) in cases {
            let acts = [Act::Say(OK.into()), act.clone(), Act::Say(OK.into())];
            let wire = Wire::with(ScriptedUpstream::acting(acts).await, Setup::default()).await;
            assert_eq!(wire.stage.get("/v1/first", &wire.key).await.status, 200);
            let lines = format!("content-length: {}\r\nconnection: close\r\n", body.len());
            let mut client = wire.stage.connect().await;
            client.send(wire.head(line, &lines) + body).await;
            assert_eq!(client.read_head().await.status, status, "{act:?} {line}");
            let times = wire.upstream.text().matches(&format!("{line} HTTP")).count();
            assert_eq!(times, if status == 200 { 2 } else { 1 }, "{act:?} {line}");
        }
    }
}

#[tokio::test]
async fn response_hop_by_hop_and_keyward_error_are_removed() {
    let fields = "keyward-error: invalid_key\r\nKEYWARD-ERROR: x\r\nconnection: keep-alive, X-Private\r\nx-private: 1\r\n\
                  keep-alive: timeout=5\r\nproxy-connection: x\r\nproxy-authenticate: Basic\r\nupgrade: h2c\r\nte: x\r\n\
                  x-request-id: forged\r\nx-kept: 1\r\nset-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 2\r\n";
    let wire = Wire::with(ScriptedUpstream::answering(answer(fields, "ok")).await, Setup::default()).await;
    let mut client = wire.stage.connect().await;
    client.send(wire.head("GET /v1", "connection: close\r\n")).await;
    let all = super::rest(&mut client).await.to_ascii_lowercase();
    #[rustfmt::skip]
    let cases = [
        "keyward-error", "x-private", "keep-alive", "proxy-connection", "proxy-authenticate", "upgrade", "te",
    ];
    for name in cases {
        assert_eq!(values(&all, name), [] as [&str; 0], "{name}: {all}");
    }
    assert_eq!((values(&all, "x-kept"), values(&all, "set-cookie")), (vec!["1"], vec!["a=1", "b=2"]));
    assert!(!all.contains("forged"), "{all}");
}

#[tokio::test]
async fn connection_with_unfinished_upload_is_not_reused() {
    let wire = Wire::start().await;
    let mut early = wire.stage.connect().await;
    early.send(wire.head("POST /v1", "content-length: 6\r\n") + "abc").await;
    assert_eq!(early.read_reply().await.text(), "ok");
    for _ in 0..3 {
        assert_eq!(wire.stage.get("/v1/next", &wire.key).await.text(), "ok");
    }
    let connections = wire.upstream.received();
    assert_eq!(connections.len(), 2);
    assert!(String::from_utf8_lossy(&connections[0]).ends_with("\r\n\r\nabc"));
}

#[tokio::test]
async fn closed_pooled_connection_is_never_used() {
    let wire = Wire::with(ScriptedUpstream::closing_after(OK).await, Setup::default()).await;
    let mut client = wire.stage.connect().await;
    for number in 0..50 {
        client.send(wire.head("POST /v1", "content-length: 3\r\n") + "abc").await;
        assert_eq!(client.read_reply().await.status, 200, "{number}");
    }
}

#[tokio::test]
async fn unsolicited_response_closes_idle_connection() {
    let (listener, address) = bind_loopback().await;
    let (poison, closed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (wait, told) = (Arc::clone(&poison), Arc::clone(&closed));
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        let (mut first, _) = listener.accept().await.unwrap();
        assert!(first.read(&mut buffer).await.unwrap() > 0);
        first.write_all(OK.as_bytes()).await.unwrap();
        wait.notified().await;
        first.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\npoisoned").await.unwrap();
        while first.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
        told.notify_one();
        let (mut second, _) = listener.accept().await.unwrap();
        assert!(second.read(&mut buffer).await.unwrap() > 0);
        second.write_all(OK.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    });
    let stage =
        Stage::with(Setup { upstream_url: Some(format!("http://{address}")), ..Setup::default() }).await;
    assert_eq!(stage.get("/public/x", "").await.text(), "ok");
    poison.notify_one();
    timeout(TEST_TIMEOUT, closed.notified()).await.expect("Keyward closes it");
    assert_eq!(stage.get("/public/x", "").await.text(), "ok");
}

#[tokio::test]
async fn response_trailers_are_cleaned_like_headers() {
    let names = ["keyward-error", "connection", "content-length", "transfer-encoding", "keep-alive"];
    let fields: String = names.iter().map(|name| format!("{name}: forged\r\n")).collect();
    let text = answer(
        &format!("transfer-encoding: chunked\r\ntrailer: {}, x-sum\r\n", names.join(", ")),
        &format!("2\r\nok\r\n0\r\n{fields}x-sum: 7\r\n\r\n"),
    );
    let wire = Wire::with(ScriptedUpstream::answering(text).await, Setup::default()).await;
    for http_version in [HttpVersion::Http1, HttpVersion::Http2] {
        let mut http_client = wire.stage.connect_http(http_version).await;
        let mut request = http_client.request(Method::GET, "/v1", &wire.key, body::empty());
        request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
        let (bytes, trailers) = read_body(http_client.send(request).await.unwrap()).await.unwrap();
        let expected =
            HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_static("7"))]);
        assert_eq!((bytes, trailers), (2, expected), "{http_version:?}");
    }
}

#[tokio::test]
async fn no_content_response_has_no_content_length() {
    let none = "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n";
    let wire = Wire::with(ScriptedUpstream::closing_after(none).await, Setup::default()).await;
    for method in ["GET", "HEAD", "POST"] {
        let all = wire.all(wire.head(&format!("{method} /v1"), "connection: close\r\n")).await;
        assert!(all.starts_with("HTTP/1.1 204 ") && !all.to_ascii_lowercase().contains("length"), "{all}");
    }
}

#[tokio::test]
async fn http_1_0_works_on_either_side() {
    let old = "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let wire = Wire::with(ScriptedUpstream::closing_after(old).await, Setup::default()).await;
    let mut client = wire.stage.connect().await;
    for _ in 0..2 {
        client.send(wire.head("GET /v1", "")).await;
        assert_eq!(client.read_reply().await.text(), "ok", "the client's connection is kept");
    }
    client.send(wire.head("GET /v1", "connection: close\r\n")).await;
    assert!(super::rest(&mut client).await.starts_with("HTTP/1.1 200 "));

    let chunks = answer("transfer-encoding: chunked\r\n", "2\r\nok\r\n0\r\n\r\n");
    let wire = Wire::with(ScriptedUpstream::answering(chunks).await, Setup::default()).await;
    let all = wire.all(wire.head("GET /v1", "").replace("HTTP/1.1", "HTTP/1.0")).await.to_ascii_lowercase();
    assert!(all.starts_with("http/1.0 200 ") && all.ends_with("\r\n\r\nok"), "{all}");
    assert_eq!(values(&all, "transfer-encoding"), [] as [&str; 0], "{all}");
    assert!(wire.upstream.text().starts_with("GET /v1 HTTP/1.1\r\n"));
}
