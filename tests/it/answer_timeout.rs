//! `limits.answer_timeout`: clients that do not read their responses are disconnected; slow readers are not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::{Method, Response};
use keyward::body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::support::http::{self, HttpClient, HttpVersion, channel_body, data_frame, read_body};
use crate::support::tls::{Authority, toml};
use crate::support::{Setup, Stage, TEST_TIMEOUT, wait_until};
use crate::tunnel;

const ON: &str = "[limits]\nanswer_timeout = \"300ms\"";
const LONG: &str = "GET /public/long HTTP/1.1\r\nhost: a\r\n\r\n";
/// More than the buffers on the way can hold, in bytes.
const HUGE: usize = 64 << 20;

/// Keyward in front of an upstream with long responses, and a signal for each response that was dropped before its end.
struct Unread {
    stage: Stage,
    released: mpsc::UnboundedReceiver<()>,
}

struct Release(mpsc::UnboundedSender<()>);

impl Drop for Release {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Unread {
    async fn start(server: String, sections: &'static str) -> Self {
        let (release, released) = mpsc::unbounded_channel();
        let upstream = http::start_upstream(move |_| {
            let release = Release(release.clone());
            async move {
                let body = http::body_of_size(HUGE).map_frame(move |frame| {
                    let _ = &release;
                    frame
                });
                Ok(Response::new(body.boxed_unsync()))
            }
        })
        .await;
        let upstream_url = Some(format!("http://{upstream}"));
        let stage =
            Stage::with(Setup { server: server.leak(), sections, upstream_url, ..Setup::default() }).await;
        Self { stage, released }
    }

    async fn released(&mut self) {
        timeout(TEST_TIMEOUT, self.released.recv()).await.expect("the upstream's answer is dropped").unwrap();
    }

    fn cut(&self) -> bool {
        let line = "keyward_connection_errors_total{outcome=\"answer_unread\"} ";
        self.stage.metrics.encode().contains(line)
    }
}

#[tokio::test]
async fn http1_client_that_stops_reading_is_disconnected() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("api.test");
    let tls = format!("tls = {{ certificate = {}, key = {} }}", toml(&certificate), toml(&key));
    for tls in [String::new(), tls] {
        let secure = !tls.is_empty();
        let mut unread = Unread::start(tls, ON).await;
        let mut stream = TcpStream::connect(unread.stage.address).await.unwrap();
        let began = Instant::now();
        if secure {
            let connector = TlsConnector::from(authority.client(&["http/1.1"]));
            let mut stream = connector.connect("api.test".try_into().unwrap(), stream).await.unwrap();
            stream.write_all(LONG.as_bytes()).await.unwrap();
            unread.released().await;
        } else {
            stream.write_all(LONG.as_bytes()).await.unwrap();
            unread.released().await;
            // The kernel delivers what it had buffered; whether a reset or an end follows depends on it.
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert!(rest.starts_with(b"HTTP/1.1 200 ") && rest.len() < HUGE);
        }
        assert!(began.elapsed() >= Duration::from_millis(300));
        wait_until(|| unread.cut()).await;
        wait_until(|| unread.stage.metrics.connections.get() == 0).await;
        assert_eq!(unread.stage.metrics.requests_in_flight.get(), 0);
    }
}

#[tokio::test]
async fn http2_stream_that_is_not_read_is_reset() {
    let mut unread = Unread::start(String::new(), ON).await;
    let mut http_client = unread.stage.connect_http(HttpVersion::Http2).await;
    let request = http_client.request(Method::GET, "/public/long", "", body::empty());
    let stalled = http_client.send(request).await.unwrap();
    unread.released().await;
    wait_until(|| unread.cut()).await;
    let error = read_body(stalled).await.expect_err("it is reset");
    assert!(format!("{error:?}").contains("CANCEL"), "{error:?}");
    let request = http_client.request(Method::GET, "/public/long", "", body::empty());
    let read = http_client.send(request).await.unwrap();
    assert_eq!(read_body(read).await.unwrap().0, HUGE, "the connection goes on");
    assert_eq!(unread.stage.metrics.connections.get(), 1);
}

#[tokio::test]
async fn unread_http2_response_is_reset_until_last_byte() {
    // hyper has taken the whole body as soon as there is window for its first byte.
    for (window, bytes) in [(0, 1), (0, 3000), (1000, 1001), (1000, 3000), (65_535, 131_070)] {
        let echo = Stage::with(Setup { sections: ON, ..Setup::default() }).await;
        let mut http_client = windowed(&echo, window).await;
        let path = format!("/bytes/{bytes}");
        let request = http_client.request(Method::GET, &path, &echo.issue_key(), body::empty());
        let stalled = http_client.send(request).await.unwrap();
        wait_until(|| echo.metrics.encode().contains("outcome=\"answer_unread\"")).await;
        read_body(stalled).await.expect_err("it is reset");
    }
}

#[tokio::test]
async fn response_that_fills_window_exactly_completes() {
    let stage = Stage::with(Setup { sections: ON, ..Setup::default() }).await;
    for bytes in [1, 65_534, 65_535] {
        let mut http_client = windowed(&stage, 65_535).await;
        let response = http_client.get(&format!("/bytes/{bytes}"), &stage.issue_key()).await.unwrap();
        sleep(Duration::from_millis(600)).await;
        assert_eq!(read_body(response).await.unwrap().0, bytes);
    }
    assert!(!stage.metrics.encode().contains("outcome=\"answer_unread\""));
}

#[tokio::test]
async fn slow_reader_is_not_disconnected() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("api.test");
    let tls = format!("tls = {{ certificate = {}, key = {} }}", toml(&certificate), toml(&key));
    let unread = Unread::start(String::new(), ON).await;
    let secure = Unread::start(tls, ON).await;
    let connect = async |unread: &Unread| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        socket.connect(unread.stage.address).await.unwrap()
    };
    let mut plain = connect(&unread).await;
    plain.write_all(LONG.as_bytes()).await.unwrap();
    let connector = TlsConnector::from(authority.client(&["http/1.1"]));
    let stream = connect(&secure).await;
    let mut secured = connector.connect("api.test".try_into().unwrap(), stream).await.unwrap();
    secured.write_all(LONG.as_bytes()).await.unwrap();
    let mut http2 = windowed(&unread.stage, 65_535).await;
    let request = http2.request(Method::GET, "/public/long", "", body::empty());
    let mut body = http2.send(request).await.unwrap().into_body();
    let mut chunk = vec![0; 128 * 1024];
    for _ in 0..20 {
        plain.read_exact(&mut chunk).await.unwrap();
        secured.read_exact(&mut chunk).await.unwrap();
        body.frame().await.unwrap().unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    assert!(!unread.cut() && !secure.cut());
}

#[tokio::test]
async fn quiet_event_stream_and_slow_upstream_continue() {
    let again = Arc::new(Notify::new());
    let waits = Arc::clone(&again);
    let upstream = http::start_upstream(move |_| {
        let again = Arc::clone(&waits);
        async move {
            // A late response head, and then pauses.
            again.notified().await;
            let (feed, body) = channel_body();
            tokio::spawn(async move {
                for _ in 0..3 {
                    feed.send(data_frame("event\n")).await.unwrap();
                    again.notified().await;
                }
            });
            Ok(Response::new(body))
        }
    })
    .await;
    let upstream_url = Some(format!("http://{upstream}"));
    let stage = Stage::with(Setup { sections: ON, upstream_url, ..Setup::default() }).await;
    for http_version in [HttpVersion::Http1, HttpVersion::Http2] {
        let mut http_client = stage.connect_http(http_version).await;
        let request = http_client.request(Method::GET, "/public/x", "", body::empty());
        let answer = tokio::spawn(async move { (http_client.send(request).await.unwrap(), http_client) });
        let quiet = async || {
            sleep(Duration::from_millis(700)).await;
            again.notify_one();
        };
        quiet().await;
        let (response, _caller) = answer.await.unwrap();
        let mut body = response.into_body();
        for _ in 0..3 {
            let frame = timeout(TEST_TIMEOUT, body.frame()).await.unwrap().unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), "event\n");
            quiet().await;
        }
        let rest = timeout(TEST_TIMEOUT, body.collect()).await.unwrap().expect("it comes to its end");
        assert!(rest.to_bytes().is_empty());
    }
    assert!(!stage.metrics.encode().contains("answer_unread"));
}

#[tokio::test]
async fn trailers_follow_body_that_is_read() {
    let stage = Stage::with(Setup { sections: ON, upstream: "http = \"2\"", ..Setup::default() }).await;
    let mut http_client = stage.connect_http(HttpVersion::Http2).await;
    let response = http_client.get("/trailers", &stage.issue_key()).await.unwrap();
    let (_, trailers) = read_body(response).await.unwrap();
    assert!(!trailers.is_empty());
}

#[tokio::test]
async fn tunnel_has_no_answer_timeout() {
    let stage = Stage::with(Setup { sections: ON, ..Setup::default() }).await;
    let mut tunnel = tunnel::open(&stage, &stage.issue_key()).await;
    // The echo sends it back, and the client does not read for longer than the limit.
    let message = vec![b'x'; 60_000];
    let writing = &mut tunnel.stream;
    let send = async {
        loop {
            writing.write_all(&tunnel::masked(0x82, &message)).await.unwrap();
        }
    };
    timeout(Duration::from_millis(900), send).await.expect_err("it is full");
    assert_eq!(stage.metrics.connections.get(), 1);
    assert!(!tunnel.read_bytes(1_000_000).await.is_empty());
    assert!(!stage.metrics.encode().contains("answer_unread"));
}

#[tokio::test]
async fn without_answer_timeout_nobody_is_disconnected() {
    let mut unread = Unread::start(String::new(), "").await;
    let mut stream = TcpStream::connect(unread.stage.address).await.unwrap();
    stream.write_all(LONG.as_bytes()).await.unwrap();
    let mut http_client = unread.stage.connect_http(HttpVersion::Http2).await;
    let request = http_client.request(Method::GET, "/public/long", "", body::empty());
    let stalled = http_client.send(request).await.unwrap();
    timeout(Duration::from_millis(900), unread.released.recv()).await.expect_err("both go on");
    assert_eq!(read_body(stalled).await.unwrap().0, HUGE);
}

/// An HTTP/2 client whose windows grow only as it reads.
async fn windowed(stage: &Stage, window: u32) -> HttpClient {
    let stream = TcpStream::connect(stage.address).await.unwrap();
    HttpClient::windowed(stream, window).await
}
