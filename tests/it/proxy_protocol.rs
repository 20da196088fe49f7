//! Behind a TCP load balancer: only its PROXY header sets the client address.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::rig::unknown_key;
use crate::support::http::{HttpClient, HttpVersion};
use crate::support::raw::Client;
use crate::support::tls::{Authority, Folder, toml};
use crate::support::{Setup, Stage, TEST_TIMEOUT, wait_until};

const GET: &str = "GET /public/x HTTP/1.1\r\nhost: a\r\n\r\n";
const V1: &[u8] = b"PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\r\n";
const FROM: &str = "proxy_protocol_from = [\"127.0.0.1\"]";

async fn stage(more: &str) -> Stage {
    Stage::with(Setup { server: format!("{FROM}\n{more}").leak(), ..Setup::default() }).await
}

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
}

/// 203.0.113.7, followed by a TLV.
fn v2_four() -> Vec<u8> {
    v2(0x21, 0x11, &[203, 0, 113, 7, 10, 0, 0, 1, 1, 2, 3, 4, 0x04, 0, 2, 9, 9])
}

/// 2001:db8::1.
fn v2_six() -> Vec<u8> {
    let mut addresses = [0; 36];
    addresses[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    addresses[15] = 1;
    v2(0x21, 0x21, &addresses)
}

/// A connection from another loopback address.
async fn stranger(to: SocketAddr) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    Client::over(socket.connect(to).await.unwrap())
}

fn refused(stage: &Stage, outcome: &str) -> bool {
    stage.metrics.encode().contains(&format!("keyward_connection_errors_total{{outcome=\"{outcome}\"}}"))
}

#[tokio::test]
async fn header_sets_client_address() {
    let stage = stage("").await;
    for (header, address) in [
        (V1.to_vec(), "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n".to_vec(), "2001:db8::1"),
        (b"PROXY TCP6 ::ffff:203.0.113.7 ::1 1 2\r\n".to_vec(), "203.0.113.7"),
        (v2_four(), "203.0.113.7"),
        (v2_six(), "2001:db8::1"),
        // Without an address in the header, the client is the load balancer itself.
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2(0x20, 0, &[]), "127.0.0.1"),
        (v2(0x21, 0, &[]), "127.0.0.1"),
        (v2(0x21, 0x31, &[b'/'; 216]), "127.0.0.1"),
    ] {
        let mut client = stage.connect().await;
        client.send([&header, GET.as_bytes()].concat()).await;
        assert_eq!(client.read_reply().await.status, 200, "{address}");
        assert_eq!(stage.last_request().header_values("x-forwarded-for"), [address]);
        // It applies to the whole connection.
        client.send("GET /public/x HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 198.51.100.1\r\n\r\n").await;
        assert_eq!(client.read_reply().await.status, 200, "{address}");
        assert_eq!(stage.last_request().header_values("x-forwarded-for"), [address]);
    }
}

#[tokio::test]
async fn header_may_arrive_byte_by_byte() {
    let stage = stage("").await;
    for header in [V1.to_vec(), v2_four(), v2_six()] {
        let mut client = stage.connect().await;
        client.stream.set_nodelay(true).unwrap();
        for byte in [&header, GET.as_bytes()].concat() {
            client.send([byte]).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(client.read_reply().await.status, 200);
    }
}

#[tokio::test]
async fn connection_without_header_is_closed_and_counted() {
    let stage = stage("").await;
    let v1 = |line: &str| format!("PROXY {line}\r\n").into_bytes();
    for header in [
        Vec::new(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        v1("TCP4 203.0.113.7 10.0.0.1 56324"),
        v1("TCP4 203.0.113.7  10.0.0.1 56324 443"),
        v1("TCP4 203.0.113.07 10.0.0.1 56324 443"),
        v1(&format!("UNKNOWN {}", "x".repeat(200))),
        v2(0x22, 0x11, &[1; 12]),
        v2(0x21, 0x12, &[1; 12]),
        v2(0x21, 0x11, &[1; 4]),
        v2(0x21, 0x11, &[1; 60_000]),
    ] {
        let mut client = stage.connect().await;
        client.send([&header, GET.as_bytes()].concat()).await;
        assert_eq!(client.read_to_end().await, b"", "{:?}", String::from_utf8_lossy(&header));
    }
    assert_eq!(stage.forwarded_count(), 0);
    assert!(refused(&stage, "proxy_header"));
    wait_until(|| stage.metrics.connections.get() == 0).await;
}

#[tokio::test]
async fn header_from_untrusted_peer_is_bad_request() {
    let stage = stage("").await;
    for header in [V1.to_vec(), v2_four()] {
        let mut client = stranger(stage.address).await;
        client.send([&header, GET.as_bytes()].concat()).await;
        let answer = String::from_utf8_lossy(&client.read_to_end().await).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!(stage.forwarded_count(), 0);
    let mut client = stranger(stage.address).await;
    client.send(GET).await;
    assert_eq!(client.read_reply().await.status, 200, "without one it is served");
    assert_eq!(stage.last_request().header_values("x-forwarded-for"), ["127.0.0.2"]);
}

#[tokio::test]
async fn without_setting_every_header_is_bad_request() {
    let stage = Stage::start().await;
    let mut client = stage.connect().await;
    client.send([V1, GET.as_bytes()].concat()).await;
    assert!(client.read_to_end().await.starts_with(b"HTTP/1.1 400 "));
    assert_eq!(stage.forwarded_count(), 0);
}

#[tokio::test]
async fn second_header_is_bad_request() {
    let stage = stage("").await;
    for (first, second) in [(V1.to_vec(), v2_four()), (v2_four(), V1.to_vec()), (V1.to_vec(), V1.to_vec())] {
        let mut client = stage.connect().await;
        client.send([&first, &second, GET.as_bytes()].concat()).await;
        let answer = String::from_utf8_lossy(&client.read_to_end().await).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!(stage.forwarded_count(), 0);
}

#[tokio::test]
async fn one_timeout_covers_header_tls_and_head() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("api.test");
    let tls = format!("tls = {{ certificate = {}, key = {} }}", toml(&certificate), toml(&key));
    let plain = stage("header_timeout = \"400ms\"").await;
    let secure = stage(&format!("header_timeout = \"400ms\"\n{tls}")).await;
    for (stage, begin, outcome) in [
        (&plain, &b""[..], "proxy_header_timeout"),
        (&plain, b"PROXY TCP4 203.", "proxy_header_timeout"),
        (&plain, b"\r\n\r\n\0\r\nQUIT\n", "proxy_header_timeout"),
        (&plain, V1, "head_timeout"),
        (&secure, V1, "tls_timeout"),
    ] {
        let began = Instant::now();
        let mut client = stage.connect().await;
        client.send(begin).await;
        assert_eq!(client.read_to_end().await, b"");
        assert!(refused(stage, outcome), "{outcome}");
        assert!(began.elapsed().as_millis() >= 390, "{outcome}");
    }
    // The header used most of the time; the rest is left for what follows.
    for tls in ["", &tls] {
        let slow = stage(&format!("header_timeout = \"1s\"\n{tls}")).await;
        let began = Instant::now();
        let mut client = slow.connect().await;
        client.send(&V1[..6]).await;
        tokio::time::sleep(Duration::from_millis(800)).await;
        client.send(&V1[6..]).await;
        client.read_to_end().await;
        // A step is a quarter of the limit.
        assert!(began.elapsed().as_millis() < 1700, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn tls_and_http2_work_after_header() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("api.test");
    let secure =
        stage(&format!("tls = {{ certificate = {}, key = {} }}", toml(&certificate), toml(&key))).await;
    let plain = stage("").await;
    for (alpn, http_version) in [("h2", HttpVersion::Http2), ("http/1.1", HttpVersion::Http1)] {
        for header in [V1.to_vec(), v2_four()] {
            let mut stream = TcpStream::connect(secure.address).await.unwrap();
            stream.write_all(&header).await.unwrap();
            let connector = TlsConnector::from(authority.client(&[alpn]));
            let stream = connector.connect("api.test".try_into().unwrap(), stream).await.unwrap();
            let mut http_client = HttpClient::over(stream, http_version).await;
            assert_eq!(http_client.get("/v1", &secure.issue_key()).await.unwrap().status(), 200);
            let received = secure.last_request();
            assert_eq!(received.header_values("x-forwarded-for"), ["203.0.113.7"]);
            assert_eq!(received.header_values("x-forwarded-proto"), ["https"]);

            let mut stream = TcpStream::connect(plain.address).await.unwrap();
            stream.write_all(&header).await.unwrap();
            let mut http_client = HttpClient::over(stream, http_version).await;
            assert_eq!(http_client.get("/v1", &plain.issue_key()).await.unwrap().status(), 200);
            assert_eq!(plain.last_request().header_values("x-forwarded-for"), ["203.0.113.7"]);
        }
    }
}

#[tokio::test]
async fn trusted_proxies_and_throttle_use_header_address() {
    let stage = Stage::with(Setup {
        server: "proxy_protocol_from = [\"127.0.0.1\"]\ntrusted_proxies = [\"203.0.113.0/24\"]",
        sections: "[throttle]\nbad_keys_per_minute = 1",
        ..Setup::default()
    })
    .await;
    let mut number = 0;
    let mut ask = async |from: &str, forwarded: &str| {
        number += 1;
        let mut client = stage.connect().await;
        let key = unknown_key(number);
        client
            .send(format!(
                "PROXY TCP4 {from} 10.0.0.1 1 2\r\nGET /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\
                 x-forwarded-for: {forwarded}\r\n\r\n"
            ))
            .await;
        client.read_reply().await.status
    };
    for (from, forwarded, status) in [
        ("198.51.100.1", "192.0.2.1", 401),
        ("198.51.100.1", "192.0.2.2", 429),
        ("198.51.100.2", "192.0.2.1", 401),
        // A proxy in front of the load balancer is trusted.
        ("203.0.113.7", "192.0.2.1", 401),
        ("203.0.113.8", "192.0.2.1", 429),
    ] {
        assert_eq!(ask(from, forwarded).await, status, "{from} for {forwarded}");
    }
}

#[tokio::test]
async fn unix_socket_accepts_proxy_header() {
    let folder = Folder::new();
    let path = folder.file("keyward.sock");
    let server = format!("listen = \"unix:{}\"\nproxy_protocol_from = [\"unix:\"]", path.display()).leak();
    let stage = Stage::with(Setup { server, ..Setup::default() }).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(V1).await.unwrap();
    let mut http_client = HttpClient::over(stream, HttpVersion::Http1).await;
    assert_eq!(http_client.get("/public/x", "").await.unwrap().status(), 200);
    assert_eq!(stage.last_request().header_values("x-forwarded-for"), ["203.0.113.7"]);
}

#[tokio::test]
async fn admin_port_needs_no_header() {
    let stage = stage("").await;
    assert_eq!(stage.get_admin("/livez").await.status, 200);
}

#[tokio::test]
async fn missing_header_does_not_delay_drain() {
    let mut stage = stage("header_timeout = \"1h\"\ndrain_timeout = \"9s\"").await;
    let _silent = stage.connect().await;
    wait_until(|| stage.metrics.connections.get() == 1).await;
    let began = Instant::now();
    stage.stop.cancel();
    timeout(TEST_TIMEOUT, &mut stage.running).await.expect("it ends in time").unwrap();
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}
