//! Listeners: TCP, unix sockets, TLS, and trusted proxies.

use std::sync::Arc;
use std::time::Duration;

use keyward::config::{self, Environment};
use keyward::server::Server;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::support::http::{HttpClient, HttpVersion, read_body};
use crate::support::raw::Client;
use crate::support::tls::{Authority, Folder, toml};
use crate::support::{Setup, Stage, TEST_TIMEOUT, wait_until};
use crate::tunnel;

const GET: &str = "GET /public/x HTTP/1.1\r\nhost: api.test\r\n";

async fn stage(server: String) -> Stage {
    Stage::with(Setup { server: server.leak(), ..Setup::default() }).await
}

/// The error for these settings.
async fn refusal(listen: &str, admin: &str) -> String {
    let file = format!(
        "version = 1\n[server]\nlisten = \"{listen}\"\n[admin]\nlisten = \"{admin}\"\n\
         [upstreams.a]\nurl = \"http://127.0.0.1:9\"\n[[routes]]\npath = \"/*\"\nupstream = \"a\""
    );
    let environment = Environment::from_pairs([
        ("SCALEKIT_ENVIRONMENT_URL", "http://127.0.0.1:9"),
        ("SCALEKIT_CLIENT_ID", "dev"),
        ("SCALEKIT_CLIENT_SECRET", "dev"),
    ]);
    let config = config::parse(&file, "test.toml", &environment).unwrap();
    Server::bind(config, Arc::default()).err().expect("it cannot be had").to_string()
}

#[tokio::test]
async fn unix_socket_replaces_stale_one_and_is_removed() {
    let folder = Folder::new();
    let path = folder.file("keyward.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a dead socket's file stays");
    let mut stage = stage(format!("listen = \"unix:{}\"", path.display())).await;
    for http_version in [HttpVersion::Http1, HttpVersion::Http2] {
        let mut http_client = HttpClient::over(UnixStream::connect(&path).await.unwrap(), http_version).await;
        assert_eq!(http_client.get("/v1", &stage.issue_key()).await.unwrap().status(), 200);
    }
    let received = stage.last_request();
    assert_eq!(
        (received.header("x-forwarded-for"), received.header("x-forwarded-proto")),
        (None, Some("http"))
    );
    stage.stop.cancel();
    timeout(TEST_TIMEOUT, &mut stage.running).await.unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn address_in_use_is_refused_by_name() {
    let folder = Folder::new();
    let path = folder.file("taken.sock");
    let _taken = UnixListener::bind(&path).unwrap();
    let unix = format!("unix:{}", path.display());
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = tcp.local_addr().unwrap().to_string();
    let _held = std::net::TcpListener::bind(&tcp).ok();
    for (listen, admin, named) in
        [(&*unix, "127.0.0.1:0", &*unix), (&tcp, "127.0.0.1:0", &tcp), ("127.0.0.1:0", &tcp, &tcp)]
    {
        let text = refusal(listen, admin).await;
        assert!(text.contains(&format!("cannot listen on {named}")) && text.contains("in use"), "{text}");
    }
    assert!(path.exists(), "the socket of somebody who lives is left alone");
    let regular = folder.write("regular", "kept");
    let text = refusal(&format!("unix:{}", regular.display()), "127.0.0.1:0").await;
    assert!(text.contains("cannot listen on unix:"), "{text}");
    assert_eq!(std::fs::read_to_string(regular).unwrap(), "kept");
}

#[tokio::test]
async fn tls_alpn_chooses_http_version() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("api.test");
    let stage =
        stage(format!("tls = {{ certificate = {}, key = {} }}", toml(&certificate), toml(&key))).await;
    for (alpn, chosen, http_version) in [
        (&["h2", "http/1.1"][..], Some("h2"), HttpVersion::Http2),
        (&["http/1.1"], Some("http/1.1"), HttpVersion::Http1),
        (&[], None, HttpVersion::Http1),
    ] {
        let stream = TcpStream::connect(stage.address).await.unwrap();
        let name = ServerName::try_from("api.test").unwrap();
        let stream = TlsConnector::from(authority.client(alpn)).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen.map(str::as_bytes));
        let mut http_client = HttpClient::over(stream, http_version).await;
        let response = http_client.get("/bytes/100000", &stage.issue_key()).await.unwrap();
        assert_eq!(read_body(response).await.unwrap().0, 100_000);
        assert_eq!(stage.last_request().header("x-forwarded-proto"), Some("https"));
    }
    // Cleartext HTTP on it gets no response.
    let mut plain = stage.connect().await;
    plain.send(format!("{GET}\r\n")).await;
    assert!(!plain.read_to_end().await.starts_with(b"HTTP/"));
}

#[tokio::test]
async fn unfinished_tls_handshake_does_not_delay_shutdown() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("api.test");
    let tls = format!("tls = {{ certificate = {}, key = {} }}", toml(&certificate), toml(&key));
    let mut stage = stage(format!("{tls}\nheader_timeout = \"1h\"\ndrain_timeout = \"100ms\"")).await;
    let _silent = stage.connect().await;
    wait_until(|| stage.metrics.connections.get() == 1).await;
    stage.stop.cancel();
    timeout(TEST_TIMEOUT, &mut stage.running).await.expect("it ends in time").unwrap();
}

#[tokio::test]
async fn connections_over_limit_wait_and_tunnels_count() {
    let stage = Stage::with(Setup { sections: "[limits]\nconnections = 2", ..Setup::default() }).await;
    let mut tunnel = tunnel::open(&stage, &stage.issue_key()).await;
    let mut kept = stage.connect().await;
    kept.send(format!("GET /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n", stage.issue_key()))
        .await;
    assert_eq!(kept.read_reply().await.status, 200);
    let mut waiting = stage.connect().await;
    waiting.send(format!("{GET}\r\n")).await;
    timeout(Duration::from_millis(150), waiting.read_bytes(1)).await.unwrap_err();
    assert_eq!(stage.metrics.connections.get(), 2);
    tunnel.send(tunnel::masked(0x88, &[0x03, 0xE8])).await;
    tunnel.read_to_end().await;
    drop(tunnel);
    assert_eq!(waiting.read_reply().await.status, 200);
    drop((kept, waiting));
    wait_until(|| stage.metrics.connections.get() == 0).await;
}

#[tokio::test]
async fn only_trusted_proxy_sets_client_address() {
    let said = "x-forwarded-for: 203.0.113.7\r\nx-forwarded-proto: https\r\nx-forwarded-host: www.test\r\n\
                x-request-id: from-the-edge\r\n\r\n";
    let believes = stage("trusted_proxies = [\"127.0.0.0/8\"]".into()).await;
    let reply = believes.send(format!("{GET}{said}")).await;
    assert_eq!(reply.header("x-request-id"), Some("from-the-edge"));
    let received = believes.last_request();
    for (name, value) in [
        ("x-forwarded-for", "203.0.113.7, 127.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "www.test"),
        ("x-request-id", "from-the-edge"),
    ] {
        assert_eq!(received.header_values(name), [value]);
    }
    let doubts = stage("trusted_proxies = [\"10.0.0.0/8\"]".into()).await;
    let reply = doubts.send(format!("{GET}{said}")).await;
    let received = doubts.last_request();
    for (name, value) in
        [("x-forwarded-for", "127.0.0.1"), ("x-forwarded-proto", "http"), ("x-forwarded-host", "api.test")]
    {
        assert_eq!(received.header_values(name), [value]);
    }
    assert_eq!(received.header_values("x-request-id"), [reply.header("x-request-id").unwrap()]);
    assert_ne!(reply.header("x-request-id"), Some("from-the-edge"));
}

#[tokio::test]
async fn many_simultaneous_connections_are_accepted() {
    let stage = Stage::with(Setup { upstream: "connect_timeout = \"9s\"", ..Setup::default() }).await;
    let mut clients = Vec::new();
    for _ in 0..300 {
        clients.push(Client::connect(stage.address).await);
    }
    for client in &mut clients {
        client.send(format!("{GET}\r\n")).await;
    }
    for client in &mut clients {
        assert_eq!(client.read_reply().await.status, 200);
    }
}
