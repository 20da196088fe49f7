//! Request framing: ambiguous framing is refused, and forwarded bodies are framed anew.

use super::{SMUGGLED, Wire, chunked, rest, statuses};
use crate::support::raw::ScriptedUpstream;
use crate::support::{Setup, wait_until};

/// The response to a head with these framing lines and this body, followed by a hidden request.
async fn try_framing(wire: &Wire, framing: &str, body: &str) -> (Vec<u16>, bool) {
    let before = wire.upstream.received().concat().len();
    let all = wire.all(wire.head("POST /v1", framing) + body + SMUGGLED).await;
    (statuses(&all), wire.upstream.received().concat().len() > before)
}

#[tokio::test]
async fn invalid_content_length_is_refused() {
    let wire = Wire::start().await;
    #[rustfmt::skip]
    let cases = [
        "content-length: 3\r\ncontent-length: 4\r\n", "content-length: 3\r\nx: y\r\nCONTENT-LENGTH: 0\r\n",
        "content-length: 3, 3\r\n", "content-length: 3,4\r\n", "content-length: +3\r\n",
        "content-length: -3\r\n", "content-length: 0x3\r\n", "content-length: 3 3\r\n",
        "content-length: 3.0\r\n", "content-length: 3e0\r\n", "content-length: 3;\r\n",
        "content-length: \"3\"\r\n", "content-length: 1_0\r\n", "content-length: three\r\n",
        "content-length:\r\n", "content-length: \u{b2}\r\n", "content-length: 3\u{a0}\r\n",
        "content-length: 18446744073709551615\r\n", "content-length: 18446744073709551619\r\n",
        "content-length: 99999999999999999999999999999\r\n", "content-length : 3\r\n",
        " content-length: 3\r\n", "content-length: 3\r\n 0\r\n", "content-length:\r\n 3\r\n",
        "content-length: 3\x0b\r\n", "content-length: 3\0\r\n",
        "content-length: 3\rtransfer-encoding: chunked\r\n",
    ];
    for framing in cases {
        let (statuses, forwarded) = try_framing(&wire, framing, "abc").await;
        assert!(matches!(statuses[..], [400 | 431] | []), "{framing:?}: {statuses:?}");
        assert!(!forwarded, "{framing:?}");
    }
}

#[tokio::test]
async fn transfer_encoding_other_than_chunked_is_refused() {
    let wire = Wire::start().await;
    #[rustfmt::skip]
    let cases = [
        "transfer-encoding: x\r\n", "transfer-encoding: identity\r\n", "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: identity, chunked\r\n", "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: chunked, identity\r\n", "transfer-encoding: chunked, gzip\r\n",
        "transfer-encoding: ,chunked\r\n", "transfer-encoding: chunked,\r\n",
        "transfer-encoding: chunked;q=1\r\n", "transfer-encoding: \"chunked\"\r\n",
        "transfer-encoding: 'chunked'\r\n", "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked x\r\n", "transfer-encoding: chunke\r\n", "transfer-encoding:\r\n",
        "transfer-encoding: \x0bchunked\r\n", "transfer-encoding: chunked\x0b\r\n",
        "transfer-encoding: chunked\0\r\n", "transfer-encoding: chunked\u{a0}\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: x\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: x\r\n", "transfer-encoding:\r\n chunked\r\n",
        "transfer-encoding: chunked\r\n ,x\r\n", "transfer-encoding : chunked\r\n",
        " transfer-encoding: chunked\r\n", "transfer-encoding: x\ntransfer-encoding: chunked\r\n",
        "x: y\rtransfer-encoding: chunked\r\n",
    ];
    for framing in cases {
        for more in ["", "content-length: 3\r\n"] {
            let (statuses, forwarded) =
                try_framing(&wire, &format!("{more}{framing}"), &chunked("abc")).await;
            assert!(matches!(statuses[..], [400] | []), "{more:?} {framing:?}: {statuses:?}");
            assert!(!forwarded, "{framing:?}");
        }
    }
    let head = wire.head("POST /v1", "transfer-encoding: chunked\r\n").replace("HTTP/1.1", "HTTP/1.0");
    assert_eq!(statuses(&wire.all(head + &chunked("abc") + SMUGGLED).await), [400]);
    assert_eq!(wire.upstream.text(), "");
}

#[tokio::test]
async fn content_length_with_transfer_encoding_is_refused() {
    let wire = Wire::start().await;
    for framing in [
        "content-length: 3\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 3\r\n",
        "transfer-encoding: Chunked\r\ncontent-length: x\r\n",
        "content-length: 3\r\ntransfer-encoding: chunked\r\nconnection: content-length, keep-alive\r\n",
        "content-length: 3\r\ntransfer-encoding: chunked\r\nconnection: transfer-encoding, keep-alive\r\n",
        "connection: keep-alive\r\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n",
        "content-length: 3\r\ncontent-length: 3\r\n",
        "content-length: 3\r\ncontent-length: 3\r\nconnection: close\r\n",
    ] {
        for body in ["abc".to_owned(), chunked("abc")] {
            let (statuses, forwarded) = try_framing(&wire, framing, &body).await;
            assert_eq!((statuses, forwarded), (vec![400], false), "{framing:?}");
        }
    }
}

#[tokio::test]
async fn ambiguous_chunks_never_end_a_request() {
    // An upstream that would respond only at the end of the body.
    let wire = Wire::with(ScriptedUpstream::answering("").await, Setup::default()).await;
    let huge = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("3\r\nabc\r\n0\r\n{}\r\n", "a: b\r\n".repeat(5000));
    let zeros = format!("{}3\r\nabc\r\n0\r\n\r\n", "0".repeat(100_000));
    #[rustfmt::skip]
    let cases = [
        "3\nabc\r\n0\r\n\r\n", "3\rabc\r\n0\r\n\r\n", "3\r\nabc\n0\r\n\r\n", "3\r\nabc\r0\r\n\r\n",
        "3\r\nabc0\r\n\r\n", "3\r\nabc\r\n0\n\n", "3\r\nabc\r\n0\n\r\n", "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabcGET\r\n0\r\n\r\n", "3;a\nb\r\nabc\r\n0\r\n\r\n", "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "3;\n\r\nabc\r\n0\r\n\r\n", "0x3\r\nabc\r\n0\r\n\r\n", "+3\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n", " 3\r\nabc\r\n0\r\n\r\n", "3_0\r\nabc\r\n0\r\n\r\n",
        "3 0\r\nabc\r\n0\r\n\r\n", "3,\r\nabc\r\n0\r\n\r\n", "3\x0b\r\nabc\r\n0\r\n\r\n",
        "3\0\r\nabc\r\n0\r\n\r\n", "\r\nabc\r\n0\r\n\r\n", ";a\r\nabc\r\n0\r\n\r\n", "g\r\nabc\r\n0\r\n\r\n",
        "\u{ff13}\r\nabc\r\n0\r\n\r\n", "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "ffffffffffffffffffff\r\nabc\r\n0\r\n\r\n", "3\r\nabc\r\n0\r\nx : y\r\n\r\n",
        "3\r\nabc\r\n0\r\n x: y\r\n\r\n", "3\r\nabc\r\n0\r\nx\r\n\r\n", "3\r\nabc\r\n0\r\nx: a\rb\r\n\r\n",
        "3\r\nabc\r\n0\r\nx: a\0b\r\n\r\n", "3\r\nabc\r\n0\r\nGET /public/smuggled HTTP/1.1\r\n\r\n",
        "3\r\nabc\r\n-0\r\n\r\n", "3;a=\"\u{1}\"\r\nabc\r\n0\r\n\r\n", "3\r\nabc\r\n0\r\n\n",
        "3\r\nabc\r\n0\r\nx: y\r\n\n", "3\r\nabc\r\n0\r\nx: y\n\r\n", "3\r\nabc\r\n0\r\n\r", &zeros, &huge, &many,
    ];
    for body in cases {
        let head = wire.head("POST /v1", "transfer-encoding: chunked\r\n");
        let mut client = wire.stage.connect().await;
        client.send(head + body + SMUGGLED).await;
        let statuses = statuses(&rest(&mut client).await);
        let shown = &body[..body.len().min(40)];
        assert!(matches!(statuses[..], [400] | []), "{shown:?}: {statuses:?}");
    }
    let all = wire.upstream.text();
    assert!(!all.contains("\r\n0\r\n") && !all.contains("smuggled"), "{all}");
}

#[tokio::test]
async fn whitespace_before_framing_header_hides_no_request() {
    let wire = Wire::start().await;
    let padded = format!("transfer-encoding: {}chunked\r\n", " ".repeat(300));
    let bare = SMUGGLED.replace("\r\n", "\n");
    let all = wire.all(wire.head("POST /v1", &padded) + &chunked("abc") + &bare).await;
    assert!(matches!(statuses(&all)[..], [400] | [200, 400]), "{all}");
    assert!(!wire.upstream.text().contains("smuggled"));
}

#[tokio::test]
async fn unusual_valid_chunks_are_reframed() {
    let wire = Wire::start().await;
    for body in [
        "3;a=b\r\nabc\r\n0\r\n\r\n",
        "3;a=\"b\"\r\nabc\r\n0;x\r\n\r\n",
        "00000000000000000003\r\nabc\r\n000\r\n\r\n",
        "3\r\nabc\r\n0\r\ncontent-length: 9\r\ntransfer-encoding: x\r\nhost: b\r\n\r\n",
    ] {
        let before = wire.upstream.text().len();
        let framing = "transfer-encoding: chunked\r\ntrailer: content-length, transfer-encoding, host\r\nconnection: close\r\n";
        let (statuses, _) = try_framing(&wire, framing, body).await;
        assert_eq!(statuses, [200], "{body:?}");
        wire.upstream.wait_until(|text| text[before..].ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n")).await;
    }
}

#[tokio::test]
async fn aborted_http1_body_is_never_a_complete_request() {
    let wire = Wire::with(ScriptedUpstream::answering("").await, Setup::default()).await;
    for (framing, part) in [
        ("content-length: 9\r\n", "abc"),
        ("transfer-encoding: chunked\r\n", "3\r\nabc\r\n"),
        ("transfer-encoding: chunked\r\n", "9\r\nabc"),
        ("transfer-encoding: chunked\r\n", "3\r\nabc\r\n0\r\n"),
    ] {
        let before = wire.upstream.text().len();
        let mut client = wire.stage.connect().await;
        client.send(wire.head("POST /v1", framing) + part).await;
        wire.upstream.wait_until(|text| text[before..].contains("abc")).await;
        drop(client);
    }
    wait_until(|| wire.stage.metrics.connections.get() == 0).await;
    assert!(!wire.upstream.text().contains("\r\n0\r\n"));
}
