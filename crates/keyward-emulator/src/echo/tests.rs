//! Tests of the echo upstream over sockets.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::*;

const SOON: Duration = Duration::from_secs(5);

struct Upstream {
    echo: Echo,
    address: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

async fn start() -> Upstream {
    let echo = Echo::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn({
        let (echo, stop) = (echo.clone(), stop.clone());
        async move { echo.serve(listener, stop).await }
    });
    Upstream { echo, address, stop, served }
}

impl Upstream {
    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        client.send_request(request).await
    }

    async fn get(&self, path: &str) -> Result<Response<Incoming>, hyper::Error> {
        self.send(Request::get(path).header("host", "up").body(empty()).unwrap()).await
    }

    /// Waits for the counts to become so.
    async fn counts(&self, expected: impl Fn(Counts) -> bool) {
        let until = Instant::now() + SOON;
        while !expected(self.echo.counts()) {
            assert!(Instant::now() < until, "{:?}", self.echo.counts());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn request_is_echoed_byte_for_byte() {
    let upstream = start().await;
    let request = Request::post("/a//b%2Fc?q=%20&r")
        .header("host", "up")
        .header("x-one", "1")
        .header("x-two", HeaderValue::from_bytes(b"caf\xe9").unwrap())
        .header("x-one", "2")
        .body(full("hello"))
        .unwrap();
    let response = upstream.send(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    let shown: Value = serde_json::from_str(&text(response).await).unwrap();
    let expected = json!({
        "method": "POST", "path": "/a//b%2Fc?q=%20&r", "version": "HTTP/1.1",
        "headers": [["host", "up"], ["x-one", "1"], ["x-one", "2"], ["x-two", "caf\u{fffd}"], ["content-length", "5"]],
        "trailers": [], "body": "hello", "body_bytes": 5,
    });
    assert_eq!(shown, expected);
    let counts = upstream.echo.counts();
    assert_eq!((counts.connections, counts.requests, counts.body_bytes, counts.broken_bodies), (1, 1, 5, 0));
    let received = upstream.echo.received();
    assert_eq!(serde_json::to_value(&received[0]).unwrap(), expected);
    assert_eq!(
        (received[0].header("X-One"), received[0].header_values("x-one")),
        (Some("1"), vec!["1", "2"])
    );
}

#[tokio::test]
async fn http2_echoes_trailers_and_long_bodies() {
    let upstream = start().await;
    let stream = TcpStream::connect(upstream.address).await.unwrap();
    let (mut client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let body = Full::new(Bytes::from(vec![b'x'; 200_000])).map_err(|never| match never {});
    let trailers = HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_static("7"))]);
    let body: Body = body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed_unsync();
    let request = Request::post(format!("http://{}/trailers", upstream.address)).body(body).unwrap();
    let response = client.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(response.trailers().unwrap()["x-echo"], "done");
    let shown: Value = serde_json::from_slice(&response.to_bytes()).unwrap();
    assert_eq!(shown["version"], "HTTP/2.0");
    assert_eq!(shown["trailers"], json!([["x-sum", "7"]]));
    assert_eq!((&shown["body"], &shown["body_bytes"]), (&Value::Null, &json!(200_000)));
}

#[tokio::test]
async fn special_paths_answer_as_documented() {
    let upstream = start().await;
    for (path, expected) in [
        ("/status/418", 418),
        ("/status/204", 204),
        ("/status/101", 400),
        ("/status/70000", 400),
        ("/status/99/1", 200),
        ("/ws", 426),
        ("/slow/1", 200),
    ] {
        assert_eq!(upstream.get(path).await.unwrap().status(), expected, "{path}");
    }
    let started = Instant::now();
    assert_eq!(text(upstream.get("/stream/3").await.unwrap()).await, "line 0\nline 1\nline 2\n");
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(text(upstream.get("/bytes/100000").await.unwrap()).await.len(), 100_000);
    assert_eq!(text(upstream.get("/bytes/0").await.unwrap()).await.len(), 0);
    assert!(upstream.get("/cut/100000").await.unwrap().into_body().collect().await.is_err());
    assert!(upstream.get("/reset").await.is_err());
    let response = upstream.get("/?header=Keyward-Error:%20fake&header=X-A:1&header=bad%0a").await.unwrap();
    assert_eq!(response.headers()["keyward-error"], "fake");
    assert_eq!(response.headers()["x-a"], "1");
    let head = Request::head("/bytes/9").header("host", "up").body(empty()).unwrap();
    assert_eq!(upstream.send(head).await.unwrap().headers()["content-length"], "9");
}

#[tokio::test]
async fn events_continue_until_client_disconnects() {
    let upstream = start().await;
    let mut response = upstream.get("/events?every=1ms").await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    for event in 0..3 {
        let data = response.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(data.starts_with(format!("id: {event}\n").as_bytes()), "{data:?}");
    }
    assert_eq!(upstream.echo.counts().open, 1);
    drop(response);
    upstream.counts(|counts| counts.open == 0).await;
}

#[tokio::test]
async fn broken_request_bodies_are_counted() {
    let upstream = start().await;
    let frames =
        futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"abc"))), Err("gone".into())]);
    let body: Body = StreamBody::new(frames).boxed_unsync();
    let request = Request::post("/").header("host", "up").header("content-length", "9").body(body).unwrap();
    assert!(upstream.send(request).await.is_err());
    let mut half = TcpStream::connect(upstream.address).await.unwrap();
    half.write_all(b"POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 9\r\n\r\nabc").await.unwrap();
    upstream.counts(|counts| counts.body_bytes >= 3).await;
    let before = upstream.echo.counts().broken_bodies;
    drop(half);
    upstream.counts(|counts| counts.broken_bodies > before).await;
    assert_eq!(upstream.echo.received(), []);
}

#[tokio::test]
async fn websocket_echoes_messages_pings_and_close() {
    let upstream = start().await;
    let mut socket = TcpStream::connect(upstream.address).await.unwrap();
    let handshake = "GET /ws HTTP/1.1\r\nhost: up\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                     sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(handshake.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    let long = vec![7; 70_000];
    for (first, payload, expected) in [
        (0x81, &b"hello"[..], 0x81),
        (0x02, &[0xff; 200][..], 0x02),
        (0x80, &long[..], 0x80),
        (0x89, b"ping", 0x8A),
        (0x8A, b"pong", 0),
        (0x88, &[0x03, 0xe8], 0x88),
    ] {
        let mut frame = websocket_head(first, payload.len());
        frame.extend([1, 2, 3, 4]);
        frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ [1, 2, 3, 4][at % 4]));
        socket.write_all(&frame).await.unwrap();
        if expected != 0 {
            let mut unmasked = websocket_head(expected, payload.len());
            unmasked[1] &= 0x7f;
            unmasked.extend(payload);
            let mut answer = vec![0; unmasked.len()];
            timeout(SOON, socket.read_exact(&mut answer)).await.unwrap().unwrap();
            assert!(answer == unmasked, "{first:x}");
        }
    }
    assert_eq!(timeout(SOON, socket.read(&mut [0])).await.unwrap().unwrap(), 0);
    upstream.counts(|counts| counts.open == 0).await;
}

fn websocket_head(first: u8, length: usize) -> Vec<u8> {
    let mut head = vec![first];
    match length {
        0..=125 => head.push(0x80 | length as u8),
        126..=65_535 => {
            head.push(0x80 | 126);
            head.extend((length as u16).to_be_bytes());
        }
        _ => {
            head.push(0x80 | 127);
            head.extend((length as u64).to_be_bytes());
        }
    }
    head
}

#[tokio::test]
async fn stop_ends_streams_and_websockets() {
    let upstream = start().await;
    let mut events = upstream.get("/events").await.unwrap();
    events.frame().await.unwrap().unwrap();
    upstream.stop.cancel();
    timeout(SOON, upstream.served).await.unwrap().unwrap();
    while let Some(Ok(_)) = events.frame().await {}
    assert_eq!(upstream.echo.counts().open, 0);
}
