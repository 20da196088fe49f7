//! Limits on bodies, connections and memory: their responses, and that other clients are not affected.

use std::time::Duration;

use hyper::Method;
use keyward::body;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::support::http::{HttpClient, HttpVersion, channel_body, read_body};
use crate::support::raw::{Client, ScriptedUpstream};
use crate::support::{Setup, Stage, TEST_TIMEOUT, wait_until};
use crate::tunnel::handshake;

const POST: &str = "POST /public/x HTTP/1.1\r\nhost: a\r\n";

async fn stage(sections: &'static str) -> Stage {
    Stage::with(Setup { sections, ..Setup::default() }).await
}

#[tokio::test]
async fn body_over_limit_is_413() {
    let stage = stage("[limits]\nbody = 8").await;
    for (body, status) in [
        ("content-length: 8\r\n\r\n12345678", 200),
        ("content-length: 9\r\n\r\n123456789", 413),
        ("content-length: 4000000000\r\n\r\n", 413),
        ("transfer-encoding: chunked\r\n\r\n4\r\n1234\r\n4\r\n5678\r\n0\r\n\r\n", 200),
        ("transfer-encoding: chunked\r\n\r\n4\r\n1234\r\n5\r\n56789\r\n0\r\n\r\n", 413),
    ] {
        let reply = stage.send(format!("{POST}{body}")).await;
        assert_eq!(reply.status, status, "{body}");
        if status == 413 {
            assert_eq!((reply.code(), reply.header("connection")), (Some("body_too_large"), Some("close")));
        }
    }
    assert_eq!(stage.get("/public/x", "none").await.status, 200);
}

#[tokio::test]
async fn announced_body_over_limit_never_reaches_upstream() {
    let upstream = ScriptedUpstream::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let setup = Setup { sections: "[limits]\nbody = 8", upstream_url: upstream.url(), ..Setup::default() };
    let stage = Stage::with(setup).await;
    assert_eq!(stage.send(format!("{POST}content-length: 9\r\n\r\n123456789")).await.status, 413);
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn paused_body_is_408_after_body_timeout() {
    let stage = stage("[limits]\nbody_timeout = \"50ms\"").await;
    let reply = stage.send(format!("{POST}content-length: 8\r\n\r\n1234")).await;
    assert_eq!((reply.status, reply.code()), (408, Some("body_timeout")));
    let mut client = stage.connect().await;
    client.send(format!("{POST}content-length: 8\r\n\r\n1234")).await;
    client.send("5678").await;
    assert_eq!(client.read_reply().await.status, 200);
}

#[tokio::test]
async fn quiet_grpc_stream_has_no_body_timeout() {
    let stage = stage("[limits]\nbody_timeout = \"50ms\"").await;
    let grpc = "content-type: application/grpc+proto\r\ncontent-length: 8\r\n\r\n1234";
    let key = stage.issue_key();
    let mut client = stage.connect().await;
    client.send(format!("POST /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n{grpc}")).await;
    // For longer than the limit, no response may come.
    timeout(Duration::from_millis(250), client.read_bytes(1)).await.unwrap_err();
    client.send("5678").await;
    assert_eq!(client.read_reply().await.status, 200);
    // A gRPC content type on a public route does not lift the limit. As a gRPC error, the 408 has HTTP status 200.
    let reply = stage.send(format!("{POST}{grpc}")).await;
    assert_eq!(reply.header("keyward-error"), Some("body_timeout"));
}

#[tokio::test]
async fn stalled_public_uploads_leave_upstream_to_good_keys() {
    let stage = Stage::with(Setup { upstream: "max_requests = 4", ..Setup::default() }).await;
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let mut client = stage.connect().await;
        client.send(format!("{POST}content-length: 10\r\n\r\n1")).await;
        stalled.push(client);
    }
    wait_until(|| stage.forwarded_count() == 3).await;
    let reply = stage.get("/public/x", "none").await;
    assert_eq!((reply.status, reply.code()), (503, Some("overloaded")));
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(stage.get("/v1", &stage.issue_key()).await.status, 200);
    stalled[0].send("234567890").await;
    assert_eq!(stalled[0].read_reply().await.status, 200);
    soon_ok(&stage).await;
}

/// A place is free once the response has ended, which may be shortly after it was read.
async fn soon_ok(stage: &Stage) {
    let wait = async { while stage.get("/public/x", "none").await.status != 200 {} };
    timeout(TEST_TIMEOUT, wait).await.expect("the place is given back");
}

#[tokio::test]
async fn silent_connections_are_evicted_for_new_client() {
    let stage = stage("[limits]\nconnections = 20").await;
    let key = stage.issue_key();
    let mut good = stage.connect().await;
    let request = format!("GET /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n");
    good.send(&request).await;
    assert_eq!(good.read_reply().await.status, 200);
    let mut silent = Vec::new();
    for begin in ["", "GET /v1 HTTP/1.1\r\nx: "].into_iter().cycle().take(60) {
        let mut client = stage.connect().await;
        client.send(begin).await;
        silent.push(client);
    }
    let began = Instant::now();
    assert_eq!(stage.get("/v1", &key).await.status, 200);
    // Much less than server.header_timeout.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // A connection with a good key stays open.
    good.send(&request).await;
    assert_eq!(good.read_reply().await.status, 200);
}

#[tokio::test]
async fn connections_per_address_limit_holds() {
    let stage = stage("[limits]\nconnections_per_address = 1").await;
    let mut first = stage.connect().await;
    first.send("GET /public/x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(first.read_reply().await.status, 200);
    assert_eq!(stage.connect().await.read_to_end().await, b"");
    drop(first);
    let wait = async {
        loop {
            let mut client = stage.connect().await;
            client.send("GET /public/x HTTP/1.1\r\nhost: a\r\n\r\n").await;
            if client.read_head().await.status == 200 {
                return;
            }
        }
    };
    timeout(TEST_TIMEOUT, wait).await.expect("the place is given back");
}

#[tokio::test]
async fn without_body_limit_large_body_passes() {
    let stage = stage("").await;
    let body = "x".repeat(1024 * 1024);
    let reply = stage.send(format!("{POST}content-length: {}\r\n\r\n{body}", body.len())).await;
    assert_eq!((reply.status, stage.last_request().body_bytes), (200, 1024 * 1024));
}

#[tokio::test]
async fn http2_settings_announce_max_concurrent_streams() {
    for (sections, streams) in [("", 100), ("[limits]\nstreams = 7", 7)] {
        let stage = stage(sections).await;
        let mut client = stage.connect().await;
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        // The first frame is SETTINGS, with six bytes for each setting (RFC 9113 section 6.5).
        let head = client.read_bytes(9).await;
        assert_eq!(head[3], 4, "SETTINGS");
        let settings = client.read_bytes(usize::from(head[2])).await;
        let most = settings.chunks(6).find(|setting| setting[..2] == [0, 3]).expect("the most of streams");
        assert_eq!(u32::from_be_bytes(most[2..].try_into().unwrap()), streams);
    }
}

#[tokio::test]
async fn public_requests_leave_connections_to_good_keys() {
    let routes = "[[routes]]\npath = \"/ws\"\nupstream = \"echo\"\nauth = \"none\"\n\
                  [[routes]]\npath = \"/upload\"\nupstream = \"echo\"\nauth = \"none\"\n\
                  [[routes]]\npath = \"/*\"\nupstream = \"echo\"";
    let stage =
        Stage::with(Setup { sections: "[limits]\nconnections = 8", routes, ..Setup::default() }).await;
    let key = stage.issue_key();
    let mut held = Vec::new();
    for number in 0..6 {
        let mut client = stage.connect().await;
        if number % 2 == 0 {
            client.send(handshake("/ws", "")).await;
            assert_eq!(client.read_head().await.status, 101);
        } else {
            client.send("POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n1").await;
            wait_until(|| stage.forwarded_count() > number).await;
        }
        held.push(client);
    }
    for _ in 0..4 {
        let mut client = stage.connect().await;
        client.send(handshake("/ws", "")).await;
        let reply = client.read_reply().await;
        assert_eq!((reply.status, reply.code()), (503, Some("overloaded")));
        held.push(client);
    }
    assert_eq!(stage.get("/v1", &key).await.status, 200);
    // Open requests continue.
    held[1].send("234567890").await;
    assert_eq!(held[1].read_reply().await.status, 200);
}

/// A response that the upstream sends before it has read the request's body.
const EARLY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly";

#[tokio::test]
async fn upload_keeps_public_place_after_early_response() {
    let upstream = ScriptedUpstream::answering(EARLY).await;
    let sections = "[limits]\nconnections = 4";
    let stage = Stage::with(Setup { sections, upstream_url: upstream.url(), ..Setup::default() }).await;
    let mut uploads = Vec::new();
    for _ in 0..3 {
        let mut client = stage.connect().await;
        client.send(format!("{POST}content-length: 10\r\n\r\n1")).await;
        assert_eq!(client.read_reply().await.text(), "early");
        uploads.push(client);
    }
    // Longer than a response that has ended takes to give its place back.
    sleep(Duration::from_millis(200)).await;
    let reply = stage.get("/public/x", "none").await;
    assert_eq!((reply.status, reply.code()), (503, Some("overloaded")));
    uploads[0].send("234567890").await;
    soon_ok(&stage).await;
}

#[tokio::test]
async fn upload_keeps_memory_after_early_response() {
    let upstream = ScriptedUpstream::answering(EARLY).await;
    // 15 MiB are for all requests, and half of that for one connection: 80 requests.
    let sections = "[limits]\nmemory = \"64MiB\"\nstreams = 200\n[negative_cache]\nmax_entries = 1000";
    let stage = Stage::with(Setup { sections, upstream_url: upstream.url(), ..Setup::default() }).await;
    let mut client = stage.connect_http(HttpVersion::Http2).await;
    let mut uploads = Vec::new();
    loop {
        assert!(uploads.len() < 150, "uploads after their responses take no memory");
        let (feed, content) = channel_body();
        let request = client.request(Method::POST, "/public/x", "", content);
        let response = client.send(request).await.unwrap();
        if response.status() == 503 {
            assert_eq!(response.headers()["keyward-error"], "overloaded");
            break;
        }
        assert_eq!(read_body(response).await.unwrap().0, 5);
        uploads.push(feed);
    }
    assert!(uploads.len() > 50, "refused after {} uploads", uploads.len());
    drop(uploads);
    let wait = async { while client.get("/public/x", "").await.unwrap().status() != 200 {} };
    timeout(TEST_TIMEOUT, wait).await.expect("the memory is given back");
}

#[tokio::test]
async fn connections_with_only_refused_requests_are_evicted() {
    let stage = stage("[limits]\nconnections = 2").await;
    let key = stage.issue_key();
    let began = Instant::now();
    let mut held = Vec::new();
    for _ in 0..2 {
        // Without a window the response to the bad key does not end, so that the connection is never idle.
        let mut client = HttpClient::windowed(TcpStream::connect(stage.address).await.unwrap(), 0).await;
        let request = client.request(Method::GET, "/v1", "0123456789ABCDEFGHIJabcdefghij", body::empty());
        let refused = client.send(request).await.unwrap();
        assert_eq!(refused.status(), 401);
        held.push((client, refused));
    }
    let reply = timeout(Duration::from_secs(8), stage.get("/v1", &key)).await;
    assert_eq!(reply.expect("a place within 8 s").status, 200);
    assert!(began.elapsed() >= Duration::from_secs(4), "{:?}: not closed as idle", began.elapsed());
}

#[tokio::test]
async fn idle_connections_of_revoked_key_are_evicted() {
    let stage = Stage::with(Setup {
        sections: "[limits]\nconnections = 2\n[negative_cache]\nttl = \"5s\"",
        ..Setup::default()
    })
    .await;
    let issued = stage.issue(Default::default());
    let key = stage.issue_key();
    let request = format!("GET /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n", issued.key);
    let mut held: Vec<Client> = Vec::new();
    for _ in 0..2 {
        let mut client = stage.connect().await;
        client.send(&request).await;
        assert_eq!(client.read_reply().await.status, 200);
        held.push(client);
    }
    assert!(stage.emulator.revoke(&issued.token_id));
    for client in &mut held {
        client.send(&request).await;
        assert_eq!(client.read_reply().await.status, 401);
    }
    let reply = timeout(Duration::from_secs(8), stage.get("/v1", &key)).await;
    assert!(reply.is_ok(), "no answer in 8 s while connections of a revoked key hold all places");
}
