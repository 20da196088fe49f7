//! Lingering close: a client that is still sending when it is refused can read the response before a reset.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::support::raw::Client;
use crate::support::tls::{Authority, toml};
use crate::support::{Setup, Stage, TEST_TIMEOUT, wait_until};

const MIB: usize = 1024 * 1024;
/// Longer than the linger time, which is two seconds.
const BOUND: Duration = Duration::from_secs(5);

/// Sends all of a body before it reads anything, as simple clients do.
async fn upload(mut stream: TcpStream, head: String, bytes: usize) -> String {
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![b'x'; 64 * 1024];
    for _ in 0..bytes / piece.len() {
        // A reset ends it. Whether earlier bytes can still be read depends on the operating system.
        stream.write_all(&piece).await.expect("no reset");
    }
    let mut answer = Vec::new();
    let read = timeout(TEST_TIMEOUT, stream.read_to_end(&mut answer)).await.unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&answer),
        read.err().map_or(String::new(), |error| error.to_string())
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusal_is_readable_after_megabytes_more() {
    let stage = Stage::with(Setup { sections: "[limits]\nbody = \"1MiB\"", ..Setup::default() }).await;
    let refused = "POST /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer 0123456789012345678901";
    let open = "POST /public/x HTTP/1.1\r\nhost: a";
    let chunk = format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n", 8 * MIB);
    let length = format!("content-length: {}\r\n\r\n", 8 * MIB);
    for (lines, framing, status, code) in [
        (refused, &length, 401, "invalid_key"),
        (refused, &chunk, 401, "invalid_key"),
        (open, &length, 413, "body_too_large"),
        (open, &chunk, 413, "body_too_large"),
    ] {
        for round in 0..50 {
            let stream = TcpStream::connect(stage.address).await.unwrap();
            let answer = upload(stream, format!("{lines}\r\n{framing}"), 8 * MIB).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "round {round}: {answer}");
            assert!(answer.contains(code) && answer.ends_with("}\n"), "round {round}: {answer}");
        }
    }
    wait_until(|| stage.metrics.connections.get() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_request_gets_response_whatever_follows() {
    let stage = Stage::start().await;
    for (head, status) in [("GET / HTTP/1.1\r\nx: ", 431), ("GET / HTTP/1.1\r\nno field\r\n\r\n", 400)] {
        for round in 0..20 {
            let stream = TcpStream::connect(stage.address).await.unwrap();
            let answer = upload(stream, head.to_owned(), 4 * MIB).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "round {round}: {answer}");
            assert!(answer.ends_with("\r\n\r\n"), "round {round}: {answer}");
        }
    }
}

#[tokio::test]
async fn refusal_is_readable_over_tls() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("api.test");
    let server = format!("tls = {{ certificate = {}, key = {} }}", toml(&certificate), toml(&key)).leak();
    let stage = Stage::with(Setup { server, ..Setup::default() }).await;
    let connector = TlsConnector::from(authority.client(&["http/1.1"]));
    for _ in 0..10 {
        let stream = TcpStream::connect(stage.address).await.unwrap();
        let mut stream = connector.connect("api.test".try_into().unwrap(), stream).await.unwrap();
        let head = format!("POST /v1 HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", 2 * MIB);
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..32 {
            stream.write_all(&[b'x'; 64 * 1024]).await.expect("no reset");
        }
        let mut answer = Vec::new();
        timeout(TEST_TIMEOUT, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 401 ") && answer.ends_with(b"}\n"));
    }
}

#[tokio::test]
async fn lingering_waits_for_pausing_client() {
    let stage = Stage::start().await;
    let mut client = stage.connect().await;
    client.send("POST /v1 HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n").await;
    assert_eq!(client.read_reply().await.status, 401);
    assert_eq!(client.read_to_end().await, b"", "it is closed for sending");
    for _ in 0..3 {
        sleep(Duration::from_millis(200)).await;
        client.stream.write_all(b"more").await.expect("no reset");
    }
}

#[tokio::test]
async fn lingering_has_time_and_size_limits() {
    let stage = Stage::start().await;
    let head = "POST /v1 HTTP/1.1\r\nhost: a\r\ncontent-length: 999999999999\r\n\r\n";
    for sends in [true, false] {
        let mut client = stage.connect().await;
        client.send(head).await;
        assert_eq!(client.read_reply().await.status, 401);
        let began = Instant::now();
        let Client { mut stream, .. } = client;
        if sends {
            let flood = async { while stream.write_all(&[b'x'; 64 * 1024]).await.is_ok() {} };
            timeout(BOUND, flood).await.expect("the connection is closed");
        }
        wait_until(|| stage.metrics.connections.get() == 0).await;
        assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn refusal_without_further_bytes_closes_at_once() {
    let stage = Stage::start().await;
    for request in [
        "GET /v1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        "POST /public/x HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2\r\n\r\nxx",
    ] {
        let mut client = stage.connect().await;
        let began = Instant::now();
        client.send(request).await;
        client.read_to_end().await;
        // The client does not close; Keyward does not wait for it.
        wait_until(|| stage.metrics.connections.get() == 0).await;
        assert!(began.elapsed() < Duration::from_secs(1), "{request}");
    }
}
