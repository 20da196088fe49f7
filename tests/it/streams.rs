//! Bodies stream in both directions over every pair of HTTP versions, and the other side sees how they end.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response};
use keyward::body;
use keyward_emulator::faults::{Effect, Fault, Target};
use tokio::time::{Instant, timeout};

use crate::support::http::{
    HttpVersion, VERSION_PAIRS, body_of_size, channel_body, data_frame, read_body, start_upstream,
};
use crate::support::raw::ScriptedUpstream;
use crate::support::{Setup, Stage, TEST_TIMEOUT, wait_until};

const MIB: usize = 1024 * 1024;

async fn stage(upstream: &'static str) -> (Stage, String) {
    let stage = Stage::with(Setup { upstream, ..Setup::default() }).await;
    let key = stage.issue_key();
    (stage, key)
}

#[tokio::test]
async fn long_bodies_pass_both_ways() {
    for (http_version, line) in VERSION_PAIRS {
        let size = if (http_version, line) == VERSION_PAIRS[0] { 96 * MIB } else { 16 * MIB };
        let (stage, key) = stage(line).await;
        let mut http_client = stage.connect_http(http_version).await;
        let request = http_client.request(Method::POST, "/v1", &key, body_of_size(size));
        assert_eq!(http_client.send(request).await.unwrap().status(), 200);
        assert_eq!(stage.last_request().body_bytes, size as u64, "{http_version:?} {line}");
        let response = http_client.get(&format!("/bytes/{size}"), &key).await.unwrap();
        assert_eq!(read_body(response).await.unwrap().0, size, "{http_version:?} {line}");
    }
}

#[tokio::test]
async fn protocol_pairs_keep_method_authority_and_identity() {
    for (http_version, line) in VERSION_PAIRS {
        let (stage, key) = stage(line).await;
        let mut http_client = stage.connect_http(http_version).await;
        let response = http_client.get("/v1/a?b=c", &key).await.unwrap();
        assert_eq!(response.status(), 200);
        let received = response.into_body().collect().await.unwrap().to_bytes();
        let received: serde_json::Value = serde_json::from_slice(&received).unwrap();
        let version = if line.is_empty() { "HTTP/1.1" } else { "HTTP/2.0" };
        assert_eq!((&received["version"], &received["path"]), (&version.into(), &"/v1/a?b=c".into()));
        assert_eq!(stage.last_request().header("x-org-id"), Some("org_1"));
        assert_eq!(stage.last_request().header("authorization"), None);
    }
}

#[tokio::test]
async fn http2_authority_is_host_of_client() {
    let (seen, mut authority) = tokio::sync::mpsc::unbounded_channel();
    let address = start_upstream(move |request| {
        seen.send((request.uri().to_string(), request.headers().get("host").cloned())).unwrap();
        async { Ok(Response::new(body::empty())) }
    })
    .await;
    let stage =
        Stage::with(Setup { upstream_url: Some(format!("h2c://{address}")), ..Setup::default() }).await;
    for http_version in [HttpVersion::Http1, HttpVersion::Http2] {
        stage.connect_http(http_version).await.get("/public/x?y", "").await.unwrap();
        assert_eq!(authority.recv().await.unwrap(), ("http://api.test/public/x?y".into(), None));
    }
}

#[tokio::test]
async fn first_event_is_immediate_and_disconnect_reaches_upstream() {
    for (http_version, line) in VERSION_PAIRS {
        let (stage, key) = stage(line).await;
        let mut http_client = stage.connect_http(http_version).await;
        let began = Instant::now();
        let mut response = http_client.get("/events?every=1h", &key).await.unwrap();
        let event = timeout(TEST_TIMEOUT, response.frame()).await.unwrap().unwrap().unwrap();
        assert!(event.data_ref().unwrap().starts_with(b"id: 0"));
        assert!(began.elapsed() < Duration::from_secs(1), "{http_version:?} {line}: {:?}", began.elapsed());
        assert_eq!(stage.echo.counts().open, 1);
        drop((response, http_client));
        wait_until(|| stage.echo.counts().open == 0).await;
    }
}

#[tokio::test]
async fn cancelled_http2_stream_cancels_only_its_request() {
    let (stage, key) = stage("http = \"2\"").await;
    let mut http_client = stage.connect_http(HttpVersion::Http2).await;
    let cancelled = http_client.get("/events?every=1h", &key).await.unwrap();
    let _open = http_client.get("/events?every=1h", &key).await.unwrap();
    assert_eq!(stage.echo.counts().open, 2);
    drop(cancelled);
    wait_until(|| stage.echo.counts().open == 1).await;
    assert_eq!(http_client.get("/v1", &key).await.unwrap().status(), 200);
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    for (http_version, line) in VERSION_PAIRS {
        let (stage, key) = stage(line).await;
        let mut http_client = stage.connect_http(http_version).await;
        let (feed, content) = channel_body();
        let mut request = http_client.request(Method::POST, "/trailers", &key, content);
        request.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
        request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
        let trailers =
            HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_static("7"))]);
        tokio::spawn(async move {
            feed.send(data_frame("abc")).await.unwrap();
            feed.send(Ok(Frame::trailers(trailers))).await.unwrap();
        });
        let (_, trailers) = read_body(http_client.send(request).await.unwrap()).await.unwrap();
        assert_eq!(stage.last_request().trailers, [("x-sum".into(), "7".into())], "{http_version:?} {line}");
        assert_eq!(trailers.get("x-echo").unwrap(), "done", "{http_version:?} {line}");
        assert_eq!(trailers.get("grpc-status").unwrap(), "0", "{http_version:?} {line}");
    }
}

#[tokio::test]
async fn early_response_to_upload_is_forwarded_at_once() {
    let address = start_upstream(|_unread| async {
        let mut response = Response::new(body::full("too much"));
        *response.status_mut() = hyper::StatusCode::PAYLOAD_TOO_LARGE;
        Ok(response)
    })
    .await;
    for scheme in ["http", "h2c"] {
        let stage =
            Stage::with(Setup { upstream_url: Some(format!("{scheme}://{address}")), ..Setup::default() })
                .await;
        for http_version in [HttpVersion::Http1, HttpVersion::Http2] {
            let mut http_client = stage.connect_http(http_version).await;
            let (feed, content) = channel_body();
            let request = http_client.request(Method::POST, "/public/x", "", content);
            feed.try_send(data_frame("the beginning")).unwrap();
            let response = http_client.send(request).await.unwrap();
            assert_eq!(response.status(), 413, "{scheme} {http_version:?}");
            assert_eq!(read_body(response).await.unwrap().0, 8, "{scheme} {http_version:?}");
            drop(feed);
        }
    }
}

#[tokio::test]
async fn upload_continues_after_early_response() {
    let upstream = ScriptedUpstream::answering("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly").await;
    let stage = Stage::with(Setup {
        server: "header_timeout = \"200ms\"\nidle_timeout = \"200ms\"",
        upstream: "idle_timeout = \"100ms\"",
        upstream_url: upstream.url(),
        ..Setup::default()
    })
    .await;
    let mut client = stage.connect().await;
    client.send("POST /public/x HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\n").await;
    assert_eq!(client.read_reply().await.text(), "early");
    for byte in ["a", "b", "c", "d", "e", "f"] {
        tokio::time::sleep(Duration::from_millis(120)).await;
        client.send(byte).await;
    }
    upstream.wait_until(|text| text.ends_with("\r\n\r\nabcdef")).await;
}

#[tokio::test]
async fn aborted_upload_reaches_upstream_as_incomplete() {
    for (http_version, line) in VERSION_PAIRS {
        let (stage, key) = stage(line).await;
        let mut http_client = stage.connect_http(http_version).await;
        let (feed, content) = channel_body();
        let request = http_client.request(Method::POST, "/v1", &key, content);
        let sending = tokio::spawn(async move { http_client.send(request).await.map(drop) });
        feed.send(data_frame("abc")).await.unwrap();
        wait_until(|| stage.echo.counts().body_bytes == 3).await;
        feed.send(Err("gone".into())).await.unwrap();
        sending.await.unwrap().unwrap_err();
        wait_until(|| stage.echo.counts().broken_bodies == 1).await;
        assert_eq!(stage.echo.received(), [], "{http_version:?} {line}: an upload without its end is none");
    }
}

#[tokio::test]
async fn aborted_response_reaches_client_as_incomplete() {
    for (http_version, line) in VERSION_PAIRS {
        let (stage, key) = stage(line).await;
        let response = stage.connect_http(http_version).await.get("/cut/100000", &key).await.unwrap();
        assert_eq!(response.status(), 200);
        read_body(response).await.unwrap_err();
    }
}

#[tokio::test]
async fn no_100_continue_before_verdict() {
    let stage = Stage::start().await;
    let key = stage.issue_key();
    let head = |key: &str| {
        format!(
            "POST /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\nexpect: 100-continue\r\n\
             content-length: 3\r\n\r\n"
        )
    };
    let mut client = stage.connect().await;
    client.send(head("0123456789ABCDEFGHIJabcdefghij")).await;
    let all = String::from_utf8(client.read_to_end().await).unwrap();
    assert!(all.starts_with("HTTP/1.1 401 "), "{all}");

    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Hang));
    let before = stage.emulator.counts().validations;
    client = stage.connect().await;
    client.send(head(&key)).await;
    stage.emulator.validations_begun(before + 1).await;
    timeout(Duration::from_millis(100), client.read_bytes(1)).await.unwrap_err();
    stage.emulator.clear_faults();
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    assert_eq!(client.read_bytes(interim.len()).await, interim.as_bytes());
    client.send("abc").await;
    assert_eq!(client.read_reply().await.status, 200);
    assert_eq!(stage.last_request().body.as_deref(), Some("abc"));
}

#[tokio::test]
async fn response_timeout_spares_paused_uploads_and_bodies() {
    for (http_version, line) in [
        (HttpVersion::Http1, "response_timeout = \"150ms\""),
        (HttpVersion::Http2, "response_timeout = \"150ms\"\nhttp = \"2\""),
    ] {
        let (stage, key) = stage(line).await;
        let mut http_client = stage.connect_http(http_version).await;
        let (feed, content) = channel_body();
        let request = http_client.request(Method::POST, "/v1", &key, content);
        tokio::spawn(async move {
            for part in ["abc", "def"] {
                feed.send(data_frame(part)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
        });
        assert_eq!(http_client.send(request).await.unwrap().status(), 200, "{line}");
        assert_eq!(stage.last_request().body.as_deref(), Some("abcdef"));
        let response = http_client.get("/stream/4", &key).await.unwrap();
        assert_eq!(read_body(response).await.unwrap().0, 4 * "line 0\n".len());
        let response = http_client.get("/slow/60000", &key).await.unwrap();
        assert_eq!(response.status(), 504);
        assert_eq!(response.headers()["keyward-error"], "upstream_timeout");
        wait_until(|| stage.echo.counts().open == 0).await;
    }
}

#[tokio::test]
async fn split_http2_cookies_become_one_http1_header() {
    let (stage, key) = stage("").await;
    let mut http_client = stage.connect_http(HttpVersion::Http2).await;
    let mut request = http_client.request(Method::GET, "/v1", &key, body::empty());
    for crumb in ["a=1", "b=2"] {
        request.headers_mut().append("cookie", HeaderValue::from_static(crumb));
    }
    http_client.send(request).await.unwrap();
    assert_eq!(stage.last_request().header_values("cookie"), ["a=1; b=2"]);
}
