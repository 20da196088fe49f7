//! HTTP/2 frame by frame: invalid frames end the stream or the connection, and nothing is forwarded.

use super::{OK, Wire, values};
use crate::support::Setup;
use crate::support::raw::{Client, ScriptedUpstream};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
const BOTH: u8 = END_STREAM | END_HEADERS;

type Fields<'a> = [(&'a str, &'a str)];

pub(crate) const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/public/x")];
const POST: [(&str, &str); 4] = [(":method", "POST"), GET[1], GET[2], GET[3]];

/// How a stream, or its connection, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Answered(u16),
    Reset,
    Ended,
}

pub(crate) fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, b"")].concat()
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A block of literals without indexing (RFC 7541 section 6.2.2).
pub(crate) fn block(fields: &Fields<'_>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            let mut length = text.len();
            if length < 127 {
                block.push(length as u8);
            } else {
                block.push(127);
                length -= 127;
                while length >= 128 {
                    block.push((length % 128) as u8 | 128);
                    length /= 128;
                }
                block.push(length as u8);
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

/// The status at the start of a header block of hyper's: an index, or a Huffman-coded literal.
fn status(block: &[u8]) -> u16 {
    let block = &block[block.iter().position(|byte| byte & 0xe0 != 0x20).unwrap()..];
    if block[0] & 0x80 != 0 {
        return [200, 204, 206, 304, 400, 404, 500][usize::from(block[0] - 0x88)];
    }
    assert_eq!((block[0], block[1] & 0x80), (0x48, 0x80), "{block:?}");
    let bits: String = block[2..].iter().take(3).map(|byte| format!("{byte:08b}")).collect();
    let (mut at, mut status) = (0, 0);
    for _ in 0..3 {
        let short = bits[at..].starts_with("000");
        let code = u16::from_str_radix(&bits[at..at + if short { 5 } else { 6 }], 2).unwrap();
        status = status * 10 + if short { code } else { code - 0b01_1001 + 3 };
        at += if short { 5 } else { 6 };
    }
    status
}

/// Reads until the end of this stream, or without one until the end of the connection.
pub(super) async fn fate(client: &mut Client, wanted: Option<u32>) -> Fate {
    loop {
        let head = client.read_bytes(9).await;
        let &[_, high, low, kind, flags, ref stream @ ..] = &*head else { return Fate::Ended };
        let payload = client.read_bytes(usize::from(high) << 8 | usize::from(low)).await;
        let stream = u32::from_be_bytes(stream.try_into().unwrap_or_default());
        match kind {
            GOAWAY => return Fate::Ended,
            HEADERS if wanted == Some(stream) => return Fate::Answered(status(&payload)),
            RST_STREAM if wanted == Some(stream) => return Fate::Reset,
            SETTINGS if flags == 0 => client.send(frame(SETTINGS, 1, 0, b"")).await,
            _ => {}
        }
    }
}

/// The end of the only stream of a connection.
async fn sent(wire: &Wire, frames: &[Vec<u8>]) -> Fate {
    let mut client = wire.stage.connect().await;
    client.send([preface(), frames.concat()].concat()).await;
    fate(&mut client, Some(1)).await
}

fn with<'a>(base: &Fields<'a>, more: &Fields<'a>) -> Vec<(&'a str, &'a str)> {
    [base, more].concat()
}

/// The GET with other values for some of its fields; `None` leaves one out.
fn but<'a>(name: &str, value: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
    GET.into_iter().filter_map(|(own, was)| Some((own, if own == name { value? } else { was }))).collect()
}

async fn refused(wire: &Wire, fields: &Fields<'_>) {
    let found = sent(wire, &[frame(HEADERS, BOTH, 1, &block(fields))]).await;
    assert!(matches!(found, Fate::Answered(400..=499) | Fate::Reset | Fate::Ended), "{fields:?}: {found:?}");
    assert_eq!(wire.upstream.text(), "", "{fields:?}");
}

#[tokio::test]
async fn invalid_http2_header_is_refused() {
    let wire = Wire::start().await;
    #[rustfmt::skip]
    let cases = [
        ("\"x-org-id\"", "forged"), ("x\"y", "x"), ("X-Org-Id", "forged"), ("x-Org-id", "forged"), ("", "x"), ("a b", "x"), ("a:b", "x"),
        ("x-org-id ", "forged"), (" x-org-id", "forged"), ("x\r\nx-org-id", "forged"),
        ("x\nx-org-id", "forged"), ("x\0", "x"), ("x\x7f", "x"), ("\u{e9}", "x"), ("x: y\r\nz", "x"),
        ("x", "a\r\nx-org-id: forged"), ("x", "a\nb"), ("x", "a\rb"), ("x", "a\0b"), ("x", "a\x7fb"),
        ("connection", "close"), ("connection", "x-org-id"), ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"), ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"), ("upgrade", "h2c"), ("upgrade", "websocket"), ("te", "gzip"),
        ("te", "trailers, gzip"), ("te", "chunked"), (":path", "/v1"), (":authority", "b"),
        (":status", "200"), (":protocol", "websocket"), (":unknown", "x"), (":", "x"), ("host", "b"),
        ("host", "u@a"), ("host", ""), ("content-length", "x"), ("content-length", "+3"),
        ("content-length", ""), ("content-length", "3, 4"), ("content-length", "18446744073709551616"),
    ];
    for field in cases {
        refused(&wire, &with(&GET, &[field])).await;
    }
    for fields in [
        &[("host", "a"), ("host", "a")],
        &[("content-length", "3"), ("content-length", "4")],
        &[("content-length", "0"), ("content-length", "3")],
        &[("content-length", "0"), ("content-length", "0")],
        &[("content-length", "00"), ("content-length", "0")],
    ] {
        refused(&wire, &with(&GET, fields)).await;
    }
}

#[tokio::test]
async fn invalid_pseudo_headers_are_refused() {
    let wire = Wire::start().await;
    #[rustfmt::skip]
    let cases = [
        (":method", &["", "G ET", "GET\r\nx: y", "GET / HTTP/1.1\r\n", "CONNECT", "TRACE", "G\0T"][..]),
        (":scheme", &["", "ftp", "ht tp", "http\r\n", "http://b", "file", "javascript"]),
        (":path", &[
            "", "*", "public/x", "?x", "\\public\\x", "http://b/public/x", "a:80", "/public/ x", "/public/x\r\n",
            "/public/x HTTP/1.1\r\nx-org-id: forged", "/public/\0", "/public/\x7f", "/public/../v1", "/public/%2e%2e/v1",
            "/public/%00", "//v1", "?public/x", "#/public/x",
        ]),
        (":authority", &[
            "", "u@a", "u:p@a", "a b", "a\r\nx: y", "a\0", "a/b", "a?b", "a#b", "a\\b", "a:x", "a:99999", "a,b", "[::1",
        ]),
    ];
    for (name, values) in cases {
        for value in values {
            refused(&wire, &but(name, Some(value))).await;
        }
        refused(&wire, &but(name, None)).await;
    }
    let [method, scheme, authority, path] = GET;
    #[rustfmt::skip]
    let cases = [
        &[method, scheme, authority, ("x", "y"), path][..], &[("x", "y"), method, scheme, authority, path],
        &[method, method, scheme, authority, path], &[method, scheme, scheme, authority, path],
        &[method, scheme, authority, authority, path], &[method, scheme, authority, path, path],
        &[method, scheme, authority, ("host", "b"), path], &[("method", "GET"), scheme, authority, path],
        &[(":Method", "GET"), scheme, authority, path], &[(":method", "CONNECT"), authority],
        &[(":method", "CONNECT"), (":authority", "a:443")],
        &[(":method", "CONNECT"), (":protocol", "websocket"), scheme, authority, path],
        &[(":method", "CONNECT"), (":protocol", "x"), scheme, path],
        &[method, (":protocol", "websocket"), scheme, authority, path], &[],
    ];
    for fields in cases {
        refused(&wire, fields).await;
    }
}

#[tokio::test]
async fn unusual_valid_http2_requests_are_served() {
    let wire = Wire::start().await;
    for fields in [
        GET.to_vec(),
        with(&but(":authority", None), &[("host", "a")]),
        with(&GET, &[("host", "a"), ("te", "trailers"), ("x_org_id", "forged"), ("x-org-id", "forged")]),
        with(&GET, &[("x", " \u{e9}\t"), ("content-length", "0"), ("x-claim.admin", "forged")]),
        with(&but(":method", Some("get")), &[]),
    ] {
        let mut seen = wire.upstream.text().len();
        let found = sent(&wire, &[frame(HEADERS, BOTH, 1, &block(&fields))]).await;
        assert_eq!(found, Fate::Answered(200), "{fields:?}");
        let head = wire.fresh(&mut seen);
        assert_eq!(
            (values(&head, "host"), head.contains("forged")),
            (vec!["a"], false),
            "{fields:?}: {head}"
        );
    }
}

#[tokio::test]
async fn http2_content_length_mismatch_is_never_complete() {
    // An upstream that never responds: any response is Keyward's own.
    let wire = Wire::with(ScriptedUpstream::answering("").await, Setup::default()).await;
    let head = |method: &'static str, length: &'static str, flags| {
        let fields = [(":method", method), GET[1], GET[2], GET[3], ("content-length", length)];
        frame(HEADERS, flags, 1, &block(&fields))
    };
    let data = |flags, bytes: &[u8]| frame(DATA, flags, 1, bytes);
    let trailers = |fields: &Fields<'_>, flags| frame(HEADERS, flags, 1, &block(fields));
    let open = || frame(HEADERS, END_HEADERS, 1, &block(&POST));
    for frames in [
        vec![head("POST", "5", BOTH)],
        vec![head("GET", "5", BOTH)],
        vec![head("HEAD", "5", BOTH)],
        vec![head("POST", "5", END_HEADERS), data(END_STREAM, b"")],
        vec![head("POST", "5", END_HEADERS), data(END_STREAM, b"abc")],
        vec![head("POST", "5", END_HEADERS), data(0, b"abc"), trailers(&[("x", "y")], BOTH)],
        vec![head("POST", "2", END_HEADERS), data(END_STREAM, b"abc")],
        vec![head("POST", "2", END_HEADERS), data(0, b"abc"), data(END_STREAM, b"")],
        vec![head("GET", "0", END_HEADERS), data(END_STREAM, b"GET /public/smuggled HTTP/1.1\r\n\r\n")],
        vec![open(), data(0, b"abc"), trailers(&[("x", "y")], END_HEADERS)],
        vec![open(), data(0, b"abc"), trailers(&[(":path", "/v1")], BOTH)],
        vec![open(), data(0, b"abc"), trailers(&[("X-Org-Id", "forged")], BOTH)],
        vec![open(), data(0, b"abc"), trailers(&[("x", "a\r\nb: c")], BOTH)],
        vec![open(), data(0, b"abc"), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])],
        vec![open(), data(0, b"abc"), frame(DATA, 8, 1, &[9, 1, 2])],
        vec![open(), data(0, b"abc"), frame(SETTINGS, 0, 1, b"")],
    ] {
        let mut client = wire.stage.connect().await;
        client.send([preface(), frames.concat()].concat()).await;
        // A stream that the client itself reset has no end to read.
        client.send(frame(SETTINGS, 0, 3, b"")).await;
        let found = fate(&mut client, Some(1)).await;
        assert!(
            matches!(found, Fate::Answered(400..=499) | Fate::Reset | Fate::Ended),
            "{frames:?}: {found:?}"
        );
    }
    let mut next = wire.stage.connect().await;
    next.send("GET /public/next HTTP/1.1\r\nhost: a\r\n\r\n").await;
    wire.upstream.wait_until(|text| text.contains("/public/next")).await;
    for connection in wire.upstream.received() {
        let text = String::from_utf8(connection).unwrap();
        assert!(!text.contains("\r\n0\r\n") && !text.contains("forged"), "{text}");
        assert_eq!(text.matches(" HTTP/1.1\r\n").count(), 1, "{text}");
    }
}

#[tokio::test]
async fn refused_http2_request_keeps_its_connection() {
    let wire = Wire::with(ScriptedUpstream::answering(OK).await, Setup::default()).await;
    let mut client = wire.stage.connect().await;
    let no_key = with(&POST[..3], &[(":path", "/v1")]);
    client.send([preface(), frame(HEADERS, END_HEADERS, 1, &block(&no_key))].concat()).await;
    client.send(frame(DATA, 0, 1, b"GET /public/smuggled HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    client.send(frame(HEADERS, BOTH, 3, &block(&with(&GET, &[("te", "gzip")])))).await;
    client.send(frame(HEADERS, BOTH, 5, &block(&GET))).await;
    assert_eq!(fate(&mut client, Some(5)).await, Fate::Answered(200));
    assert!(!wire.upstream.text().contains("smuggled"));
}
