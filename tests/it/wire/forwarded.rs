//! Forwarding headers and misspelled framing headers, from untrusted peers and from trusted proxies.

use hyper::Method;
use keyward::body;

use super::{OK, Wire};
use crate::support::http::{HttpClient, HttpVersion};
use crate::support::raw::ScriptedUpstream;
use crate::support::{Setup, Stage};

const TRUSTED: &str = "trusted_proxies = [\"127.0.0.0/8\"]";

/// Headers that are reliable only from a proxy that sets them itself, and that proxies forward from clients.
#[rustfmt::skip]
const UNKNOWN_TO_PROXIES: [&str; 64] = [
    "X-Original-URL", "X-Original-URI", "X-Original-Host", "X-Original-Method", "X-Original-Forwarded-For", "X-Rewrite-URL",
    "X-Rewrite-URI", "X-Forwarded-Uri", "X-Forwarded-Path", "X-Forwarded-Prefix", "X-Forwarded-Method", "X-Forwarded-User",
    "X-Forwarded-Email", "X-Forwarded-Groups", "X-Forwarded-Server", "X-Forwarded-Scheme", "X-Forwarded-Ssl",
    "X-Forwarded-Protocol", "X-Forwarded-By", "X-Forwarded-Client-Cert", "X-Forwarded", "X-Forward-For", "Forwarded-For",
    "Forwarded-Host", "X-Envoy-Original-Path", "X-Envoy-Original-Host", "X-Envoy-External-Address", "X-Envoy-Internal",
    "X-Envoy-Retry-On", "Proxy", "Client-IP", "X-Real-IP", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP",
    "CF-Connecting-IP", "CF-Connecting-IPv6", "Fly-Client-IP", "Fastly-Client-IP", "X-Azure-ClientIP", "X-Appengine-User-IP",
    "X-Remote-IP", "X-Remote-Addr", "X-Originating-IP", "X-ProxyUser-Ip", "WL-Proxy-Client-IP", "Proxy-Client-IP",
    "HTTP_CLIENT_IP", "HTTP_X_FORWARDED_FOR", "REMOTE_ADDR", "X-Host", "X-HTTP-Host-Override", "X-Scheme", "X-Url-Scheme",
    "Front-End-Https", "X-ARR-SSL", "X-Sendfile-Type", "X-Accel-Mapping", "X-Accel-Redirect", "X-Middleware-Subrequest",
    "X_Original_URL", "x.original.url", "X_Forwarded-For", "X.Request!Id",
];

async fn before(server: &'static str) -> Wire {
    Wire::with(ScriptedUpstream::answering(OK).await, Setup { server, ..Setup::default() }).await
}

#[tokio::test]
async fn unknown_forwarding_headers_are_always_removed() {
    for server in ["", TRUSTED] {
        let wire = before(server).await;
        let mut seen = 0;
        for target in ["/public/x", "/v1/x"] {
            for names in UNKNOWN_TO_PROXIES.chunks(32) {
                let lines: String = names.iter().map(|name| format!("{name}: forged\r\n")).collect();
                let head = wire.head(&format!("GET {target}"), &format!("{lines}connection: close\r\n"));
                assert!(wire.all(head).await.ends_with("ok"), "{server} {target}");
                let received = wire.fresh(&mut seen);
                assert!(!received.contains("forged"), "{server} {target}: {received}");
            }
        }
    }
}

#[tokio::test]
async fn pass_headers_are_kept_from_trusted_proxies_only() {
    let lines = "X-Real-IP: 203.0.113.7\r\nX_Real_IP: forged\r\nX-Client-IP: forged\r\nx-forwarded-port: 8443\r\n\
                 forwarded: for=203.0.113.7\r\nconnection: close\r\n";
    let pass = "pass_headers = [\"X-Real-IP\"]";
    for (server, kept) in [(format!("{pass}\n{TRUSTED}"), true), (pass.to_owned(), false)] {
        let wire = before(server.leak()).await;
        let head = wire.head("GET /v1/x", lines);
        assert!(wire.all(head).await.ends_with("ok"));
        let received = wire.fresh(&mut 0);
        assert!(!received.contains("forged"), "{received}");
        for line in [
            "\r\nx-real-ip: 203.0.113.7\r\n",
            "\r\nx-forwarded-port: 8443\r\n",
            "\r\nforwarded: for=203.0.113.7\r\n",
        ] {
            assert_eq!(received.contains(line), kept, "{line} in {received}");
        }
    }
}

#[tokio::test]
async fn misspelled_framing_headers_are_not_forwarded() {
    for server in ["", TRUSTED] {
        let wire = before(server).await;
        let mut seen = 0;
        for http_version in [HttpVersion::Http1, HttpVersion::Http2] {
            let mut client = HttpClient::connect(wire.stage.address, http_version).await;
            let mut request = client.request(Method::POST, "/v1/x", &wire.key, body::full("abc"));
            for name in ["Transfer_Encoding", "transfer.encoding", "Content_Length", "content~length"] {
                let name = hyper::header::HeaderName::try_from(name).unwrap();
                request.headers_mut().insert(name, "forged".parse().unwrap());
            }
            assert_eq!(client.send(request).await.unwrap().status(), 200);
            let received = wire.fresh(&mut seen);
            assert!(!received.contains("forged"), "{http_version:?}: {received}");
            assert_eq!(received.matches("content-length: 3").count(), 1, "{http_version:?}: {received}");
        }
    }
}

#[tokio::test]
async fn trace_context_is_always_forwarded() {
    let wire = before("").await;
    let lines = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: a=1\r\nbaggage: b=2\r\n\
                 connection: close\r\n";
    assert!(wire.all(wire.head("GET /v1/x", lines)).await.ends_with("ok"));
    let received = wire.fresh(&mut 0);
    for line in ["traceparent: 00-4bf92f", "tracestate: a=1", "baggage: b=2"] {
        assert!(received.contains(line), "{line} in {received}");
    }
}

#[tokio::test]
async fn connection_header_cannot_strip_preflight_headers() {
    let routes = "[[routes]]\npath = \"/v1/*\"\nupstream = \"echo\"\npreflight = true";
    let stage = Stage::with(Setup { routes, ..Setup::default() }).await;
    let reply = stage
        .send(
            "OPTIONS /v1/export?all=1 HTTP/1.1\r\nhost: api.test\r\norigin: https://a.test\r\n\
             access-control-request-method: GET\r\n\
             connection: origin, access-control-request-method\r\n\r\n",
        )
        .await;
    if reply.status == 200 {
        let received = stage.last_request();
        assert!(
            received.header("origin").is_some() && received.header("access-control-request-method").is_some(),
            "without a key, the service got what is no preflight: {received:?}"
        );
    }
}

#[tokio::test]
async fn connection_header_cannot_strip_forwarding_headers() {
    let stage = Stage::with(Setup { server: "trusted_proxies = [\"127.0.0.1\"]", ..Setup::default() }).await;
    // As HAProxy forwards a client's header, with its own after it.
    stage
        .send(
            "GET /public/x HTTP/1.1\r\nhost: api.test\r\nconnection: X-Forwarded-For, X-Forwarded-Proto\r\n\
             x-forwarded-proto: https\r\nx-forwarded-for: 192.0.2.66\r\n\r\n",
        )
        .await;
    let received = stage.last_request();
    assert_eq!(received.header("x-forwarded-for"), Some("192.0.2.66, 127.0.0.1"));
    assert_eq!(received.header("x-forwarded-proto"), Some("https"));
}
