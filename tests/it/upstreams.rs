//! Upstreams: TLS, unix sockets, and the reuse and end of their connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use keyward::body::{self, BodyError};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixListener};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use crate::support::http::{HttpVersion, serve};
use crate::support::raw::{Reply, ScriptedUpstream};
use crate::support::tls::{Authority, Folder, toml};
use crate::support::{Setup, Stage, TEST_TIMEOUT, bind_loopback, wait_until};

const GET: &str = "GET /public/x HTTP/1.1\r\nhost: api.test\r\n\r\n";
const POST: &str = "POST /public/x HTTP/1.1\r\nhost: api.test\r\ncontent-length: 3\r\n\r\nabc";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn stage(url: String, upstream: String) -> Stage {
    Stage::with(Setup { upstream_url: Some(url), upstream: upstream.leak(), ..Setup::default() }).await
}

/// An https upstream on `localhost` that responds with its HTTP version, the SNI name, and whether the client sent a
/// certificate.
async fn https(config: Arc<ServerConfig>) -> String {
    let (listener, address) = bind_loopback().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = TlsAcceptor::from(Arc::clone(&config));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let tls = stream.get_ref().1;
                let name = tls.server_name().unwrap_or_default().to_owned();
                let known = tls.peer_certificates().is_some();
                let answer = move |request: Request<Incoming>| {
                    let text = format!("{:?} {name} {known}", request.version());
                    std::future::ready(Ok::<_, BodyError>(Response::new(body::full(text))))
                };
                serve(stream, Arc::new(answer)).await;
            });
        }
    });
    format!("https://localhost:{}", address.port())
}

fn assert_unreachable(reply: &Reply) {
    assert_eq!((reply.status, reply.code()), (502, Some("upstream_unreachable")));
}

#[tokio::test]
async fn https_upstream_is_verified_and_negotiates_alpn() {
    let authority = Authority::new();
    for (alpn, version) in
        [(&["h2", "http/1.1"][..], "HTTP/2.0"), (&["http/1.1"], "HTTP/1.1"), (&[], "HTTP/1.1")]
    {
        let url = https(authority.server("localhost", alpn, false)).await;
        let stage = stage(url, format!("ca_file = {}", toml(&authority.file()))).await;
        let reply = stage.send(GET).await;
        assert_eq!((reply.status, reply.text()), (200, format!("{version} localhost false")));
    }
}

#[tokio::test]
async fn wrong_upstream_certificate_is_never_accepted() {
    let (authority, other) = (Authority::new(), Authority::new());
    let ca = format!("ca_file = {}", toml(&authority.file()));
    for config in [other.server("localhost", &[], false), authority.server("other.test", &[], false)] {
        assert_unreachable(&stage(https(config).await, ca.clone()).await.send(GET).await);
    }
    // Without ca_file the system's roots apply, which trust neither.
    let url = https(authority.server("localhost", &[], false)).await;
    assert_unreachable(&stage(url, String::new()).await.send(GET).await);
}

#[tokio::test]
async fn server_name_sets_sni_and_verified_name() {
    let authority = Authority::new();
    let url = https(authority.server("orders.internal", &[], false)).await;
    let lines = format!("ca_file = {}\nserver_name = \"orders.internal\"", toml(&authority.file()));
    let reply = stage(url, lines).await.send(GET).await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "HTTP/1.1 orders.internal false"));
}

#[tokio::test]
async fn client_certificate_is_sent_when_requested() {
    let authority = Authority::new();
    let url = https(authority.server("localhost", &["h2"], true)).await;
    let ca = format!("ca_file = {}", toml(&authority.file()));
    assert_unreachable(&stage(url.clone(), ca.clone()).await.send(GET).await);
    let (certificate, key) = authority.issue("keyward");
    let lines = format!("{ca}\nclient_certificate = {}\nclient_key = {}", toml(&certificate), toml(&key));
    let reply = stage(url, lines).await.send(GET).await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "HTTP/2.0 localhost true"));
}

#[tokio::test]
async fn unix_socket_upstream_is_served() {
    let folder = Folder::new();
    let path = folder.file("up.sock");
    let stage = stage(format!("unix:{}", path.display()), String::new()).await;
    assert_unreachable(&stage.send(GET).await);
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let answer = |request: Request<Incoming>| async move {
            Ok::<_, BodyError>(Response::new(body::full(format!("{:?}", request.headers()["host"]))))
        };
        serve(listener.accept().await.unwrap().0, Arc::new(answer)).await;
    });
    assert_eq!(stage.send(GET).await.text(), "\"api.test\"");
}

#[tokio::test]
async fn absent_upstream_is_502_until_it_listens() {
    let (listener, address) = bind_loopback().await;
    drop(listener);
    let stage = stage(format!("http://{address}"), String::new()).await;
    assert_unreachable(&stage.send(GET).await);
    assert_unreachable(&stage.send(POST).await);
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(OK.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    });
    assert_eq!(stage.send(GET).await.text(), "ok");
}

#[tokio::test]
async fn connect_timeout_covers_tls_handshake() {
    let (listener, address) = bind_loopback().await;
    let stage =
        stage(format!("https://localhost:{}", address.port()), "connect_timeout = \"100ms\"".into()).await;
    let began = Instant::now();
    assert_unreachable(&stage.send(GET).await);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    drop(listener);
}

#[tokio::test]
async fn connect_timeout_covers_unanswered_syn() {
    // A listener that accepts nothing: once its queue is full, the kernel leaves further connections unanswered.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        queued.push(stream.unwrap());
        assert!(queued.len() < 100, "the queue never fills");
    }
    let stage = stage(format!("http://{address}"), "connect_timeout = \"300ms\"".into()).await;
    let began = Instant::now();
    assert_unreachable(&stage.send(GET).await);
    let took = began.elapsed();
    // The kernel itself would try for minutes.
    assert!((300..3000).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test]
async fn upstream_connections_are_reused() {
    for line in ["", "http = \"2\""] {
        let stage = Stage::with(Setup { upstream: line, ..Setup::default() }).await;
        for _ in 0..5 {
            assert_eq!(stage.send(GET).await.status, 200);
        }
        assert_eq!(stage.echo.counts().connections, 1, "{line}");
    }
}

#[tokio::test]
async fn idle_upstream_connection_is_closed_after_idle_timeout() {
    for (line, preface) in [("", ""), ("http = \"2\"", "PRI")] {
        let (listener, address) = bind_loopback().await;
        let lines = format!("idle_timeout = \"150ms\"\n{line}");
        let stage = stage(format!("http://{address}"), lines).await;
        let asked = tokio::spawn(async move {
            let ask = stage.send(GET).await;
            (stage, ask)
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 3];
        stream.read_exact(&mut head).await.unwrap();
        if preface.is_empty() {
            stream.write_all(OK.as_bytes()).await.unwrap();
        } else {
            // SETTINGS, and HEADERS of stream 1: `:status: 200` with END_STREAM.
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]).await.unwrap();
        }
        let (_stage, reply) = asked.await.unwrap();
        assert_eq!(reply.status, 200);
        let mut rest = Vec::new();
        timeout(Duration::from_secs(2), stream.read_to_end(&mut rest)).await.expect("it is closed").unwrap();
    }
}

#[tokio::test]
async fn dead_pooled_connection_retries_get_not_post() {
    // Each connection responds once, and closes on a second request.
    let (listener, address) = bind_loopback().await;
    let posts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&posts);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let posts = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut chunk = [0; 4096];
                for answers in [true, false] {
                    let count = stream.read(&mut chunk).await.unwrap();
                    if chunk[..count].starts_with(b"POST") {
                        posts.fetch_add(1, Relaxed);
                    }
                    if answers {
                        stream.write_all(OK.as_bytes()).await.unwrap();
                    }
                }
            });
        }
    });
    let stage = stage(format!("http://{address}"), String::new()).await;
    for _ in 0..3 {
        assert_eq!(stage.send(GET).await.text(), "ok");
    }
    assert_unreachable(&stage.send(POST).await);
    assert_eq!(posts.load(Relaxed), 1);
}

#[tokio::test]
async fn connection_close_of_upstream_is_respected() {
    let upstream =
        ScriptedUpstream::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
            .await;
    let stage = stage(upstream.url().unwrap(), String::new()).await;
    for _ in 0..3 {
        assert_eq!(stage.send(POST).await.text(), "ok");
    }
    assert_eq!(upstream.received().len(), 3);
}

#[tokio::test]
async fn streams_over_http2_limit_open_second_connection() {
    let (listener, address) = bind_loopback().await;
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Relaxed);
            let answer = service_fn(|request: Request<Incoming>| async move {
                let holds = request.uri().path() == "/public/holds";
                let body = if holds {
                    crate::support::http::channel_body()
                } else {
                    return Ok(Response::new(body::full("ok")));
                };
                // Dropping the sender ends the body.
                std::mem::forget(body.0);
                Ok::<_, BodyError>(Response::new(body.1))
            });
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.max_concurrent_streams(3);
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), answer));
        }
    });
    let stage = stage(format!("h2c://{address}"), String::new()).await;
    assert_eq!(stage.send(GET).await.text(), "ok");
    let mut client = stage.connect_http(HttpVersion::Http2).await;
    let mut held = Vec::new();
    for _ in 0..7 {
        held.push(client.get("/public/holds", "").await.unwrap());
    }
    assert_eq!(stage.send(GET).await.text(), "ok");
    assert_eq!(connections.load(Relaxed), 3);
}

#[tokio::test]
async fn hundred_streams_share_one_connection() {
    let sections = "[limits]\nstreams = 128";
    let stage = Stage::with(Setup { upstream: "http = \"2\"", sections, ..Setup::default() }).await;
    let routes = stage.issue_key();
    let mut client = stage.connect_http(HttpVersion::Http2).await;
    let mut held = Vec::new();
    for _ in 0..101 {
        held.push(client.get("/events?every=1h", &routes).await.unwrap());
    }
    assert_eq!(stage.echo.counts().connections, 2);
    drop((held, client));
    wait_until(|| stage.echo.counts().open == 0).await;
    assert_eq!(timeout(TEST_TIMEOUT, stage.get("/v1", &routes)).await.unwrap().status, 200);
}
