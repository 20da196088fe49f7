//! Request lines, hosts, names, values and credentials that HTTP does not allow: refused, and nothing forwarded.

use super::{OK, SMUGGLED, Wire, rest, statuses, values};
use crate::support::Setup;
use crate::support::raw::ScriptedUpstream;

/// Sends each head followed by a request, and expects exactly one refusal.
async fn check(wire: &Wire, heads: &[&str], with: impl Fn(&str) -> String) {
    for head in heads {
        let all = wire.all(with(head) + SMUGGLED).await;
        assert!(matches!(statuses(&all)[..], [400..=499] | []), "{head:?}: {all}");
        assert!(!all.contains(&wire.key), "{head:?}: {all}");
        assert_eq!(wire.upstream.text(), "", "{head:?}");
    }
}

#[tokio::test]
async fn malformed_request_line_is_refused() {
    let wire = Wire::start().await;
    #[rustfmt::skip]
    let lines = [
        "GET /public/x", "GET /public/x ", "GET /public/x HTTP/2.0", "GET /public/x HTTP/3",
        "GET /public/x HTTP/1.2", "GET /public/x HTTP/0.9", "GET /public/x HTTP/1", "GET /public/x HTTP/11",
        "GET /public/x HTTP/01.1", "GET /public/x http/1.1", "GET /public/x HTTP/1.1 ",
        "GET /public/x HTTP/1.1 x", "GET /public/x XHTTP/1.1", "GET  /public/x HTTP/1.1",
        "GET /public/x  HTTP/1.1", "GET\t/public/x\tHTTP/1.1", "GET\x0b/public/x HTTP/1.1",
        " GET /public/x HTTP/1.1", "GET /public /x HTTP/1.1", "GET /public/\0x HTTP/1.1",
        "GET /public/\x7fx HTTP/1.1", "GET /public/x\rHTTP/1.1", "GET /public/x HTTP/1.1\rx: y",
        "G\0T /public/x HTTP/1.1", "G@T /public/x HTTP/1.1", "GET: /public/x HTTP/1.1", "/public/x HTTP/1.1",
        "HTTP/1.1 200 OK", "PRI * HTTP/1.1",
    ];
    check(&wire, &lines, |line| format!("{line}\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
}

#[tokio::test]
async fn non_path_target_is_refused() {
    let wire = Wire::start().await;
    let key = wire.key.clone();
    #[rustfmt::skip]
    let lines = [
        "OPTIONS *", "GET *", "GET public/x", "GET \\public\\x", "GET ?/public/x", "GET #/public/x",
        "GET http://a?x", "GET a.test:80", "GET http:/public/x", "GET http:///public/x", "GET http://u:p@a/public/x",
        "GET http://a:99999/public/x", "GET ftp://a/public/x", "GET file:///public/x", "GET javascript:x",
        "CONNECT a.test:443", "CONNECT a.test", "CONNECT /public/x", "CONNECT http://a/public/x",
        "TRACE /public/x", "TRACE http://a/public/x",
    ];
    check(&wire, &lines, |line| {
        format!("{line} HTTP/1.1\r\nhost: a\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\r\n")
    })
    .await;
}

#[tokio::test]
async fn target_without_path_is_forwarded_as_root() {
    let wire = Wire::start().await;
    for target in ["http://a", "http://a/", "http://a#x", "http://a/#x", "/#x", "/"] {
        let mut seen = wire.upstream.text().len();
        let all = wire.all(wire.head(&format!("GET {target}"), "connection: close\r\n")).await;
        assert_eq!(statuses(&all), [200], "{target}");
        assert!(wire.fresh(&mut seen).starts_with("get / http/1.1\r\n"), "{target}");
    }
}

#[tokio::test]
async fn missing_duplicate_or_malformed_host_is_400() {
    let wire = Wire::start().await;
    #[rustfmt::skip]
    let hosts = [
        "", "host:\r\n", "host: a\r\nhost: a\r\n", "host: a\r\nHOST: b\r\n", "host: a, b\r\n",
        "host: a b\r\n", "host: u@a\r\n", "host: a/x\r\n", "host: a?x\r\n", "host: a#x\r\n", "host: a\\x\r\n",
        "host: a:x\r\n", "host: a:80:80\r\n", "host: a:99999\r\n", "host: :80\r\n", "host: [::1\r\n",
        "host: [a]\r\n", "host: http://a\r\n", "host: a\u{e9}\r\n", "host: a%00\r\n", "host: a\0\r\n",
        "host: a\tb\r\n", "host: <a>\r\n", "host: a\r\n .b\r\n", "host : a\r\n", " host: a\r\n",
        "h\u{f6}st: a\r\n", "x-forwarded-host: a\r\n",
    ];
    check(&wire, &hosts, |host| format!("GET /public/x HTTP/1.1\r\nconnection: close\r\n{host}\r\n")).await;
    check(&wire, &["GET /public/x HTTP/1.0", "GET http://a/public/x HTTP/1.1"], |line| {
        format!("{line}\r\nconnection: close\r\n\r\n")
    })
    .await;
}

#[tokio::test]
async fn target_authority_is_used_as_host() {
    let wire = Wire::start().await;
    for line in ["GET http://b.test/public/x", "GET HTTP://b.test/public/x#y", "GET https://b.test/public/x"]
    {
        let mut seen = wire.upstream.text().len();
        let all = wire.all(format!("{line} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(statuses(&all), [200], "{line}");
        let head = wire.fresh(&mut seen);
        assert!(head.starts_with("get /public/x http/1.1\r\n"), "{head}");
        assert_eq!(
            (values(&head, "host"), values(&head, "x-forwarded-host")),
            (vec!["b.test"], vec!["b.test"])
        );
    }
}

#[tokio::test]
async fn ambiguous_header_is_refused() {
    let wire = Wire::start().await;
    #[rustfmt::skip]
    let lines = [
        "x-org-id : forged", "x-org-id\t: forged", "x-org-id\x0b: forged", "x-org-id\0: forged",
        "x-org-id\u{a0}: forged", "x-org\0-id: forged", "x-org-id\r: forged", "x-org-id", " x-org-id: forged",
        "\tx-org-id: forged", "\x0bx-org-id: forged", ": forged", ":", "x org id: forged",
        "x-org-id(: forged", "\"x-org-id\": forged", "x-org-id\\: forged", "x/org/id: forged",
        "x@org: forged", "x=org: forged", "x\u{ff0d}org: forged", "x: a\r\n b", "x: a\r\n\tx-org-id: forged",
        "x: a\rx-org-id: forged", "x: a\r\rx-org-id: forged", "x: a\0b", "x: a\x01b", "x: a\x0bb",
        "x: a\x0cb", "x: a\x1bb", "x: a\x7fb",
    ];
    check(&wire, &lines, |line| wire.head("GET /v1", &format!("a: b\r\n{line}\r\n"))).await;
    check(&wire, &lines, |line| {
        wire.head("GET /v1", "").replace("host: a\r\n", &format!("{line}\r\nhost: a\r\n"))
    })
    .await;
}

#[tokio::test]
async fn bare_line_feed_is_refused() {
    let wire = Wire::start().await;
    let head = wire.head("GET /v1", "x: a\r\nconnection: close\r\n");
    assert_eq!(statuses(&wire.all(&head).await), [200]);
    let seen = wire.upstream.text().len();
    for end in head.match_indices("\r\n").map(|(at, _)| at) {
        let bare = format!("{}{}", &head[..end], &head[end + 1..]);
        assert_eq!(statuses(&wire.all(bare + SMUGGLED).await), [400], "{end}");
    }
    assert_eq!(statuses(&wire.all(format!("\n{head}")).await), [400]);
    assert_eq!(wire.upstream.text().len(), seen);
    // Empty lines before a request are ignored (RFC 9112 section 2.2).
    assert_eq!(statuses(&wire.all(format!("\r\n\r\n{head}")).await), [200]);
}

#[tokio::test]
async fn unusual_header_value_bytes_pass_unchanged() {
    let wire = Wire::start().await;
    let mut client = wire.stage.connect().await;
    for value in [&b"\xff\xfe\x80"[..], b"a\tb", b"\"a:b, c;\\", "é".as_bytes()] {
        let head = wire.head("GET /v1", "x: ");
        client.send([head.trim_end().as_bytes(), b" ", value, b"\r\n\r\n"].concat()).await;
        assert_eq!(client.read_reply().await.status, 200);
        let all = wire.upstream.received().concat();
        assert!(all.windows(value.len()).any(|window| window == value), "{value:?}");
    }
}

#[tokio::test]
async fn malformed_credential_is_refused_without_a_call() {
    let wire = Wire::start().await;
    let before = wire.stage.emulator.counts().validations;
    let key = &wire.key;
    let long = |length| "a".repeat(length);
    #[rustfmt::skip]
    let cases = [
        (format!("Bearer {}", long(513)), &[401][..]), (format!("Bearer {}", long(8 << 10)), &[401]),
        (format!("Bearer {}", long(60 << 10)), &[401]), (format!("Bearer {}", long(70 << 10)), &[431]),
        (format!("Bearer {key}\0"), &[400]), (format!("Bearer {key}\x01"), &[400]),
        (format!("Bearer \x0b{key}"), &[400]), (format!("Bearer\0{key}"), &[400]),
        (format!("Bearer {key}\x7f"), &[400]), (format!("Bearer\r\n {key}"), &[400]),
        (format!("Bearer {key}\r\n x"), &[400]), (format!("Bearer {key}\u{e9}"), &[401]),
        (format!("Bearer\u{a0}{key}"), &[401]), (format!("Bearer {key}\u{a0}"), &[401]),
        (format!("Bearer \u{ff21}{key}"), &[401]), (format!("Bearer\t{key}"), &[401]),
        (format!("Bearer {key}\"}}"), &[401]), (format!("Bearer {key},{key}"), &[401]),
        (format!("Bearer {key}%00"), &[401]), (format!("Bearer {key}="), &[401]),
        (format!("Bearer \"{key}\""), &[401]), (format!("Bearer, Bearer {key}"), &[401]),
        (format!("Basic x, Bearer {key}"), &[401]), (format!("Bearer: {key}"), &[401]),
        (format!("Token {key}"), &[401]), (key.clone(), &[401]),
    ];
    for (value, expected) in cases {
        let mut client = wire.stage.connect().await;
        let head = "GET /v1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
        client.send(format!("{head}authorization: {value}\r\n\r\n")).await;
        let all = rest(&mut client).await;
        assert_eq!(statuses(&all), expected, "{}", &value[..value.len().min(80)]);
        assert!(!all.contains(key), "{all}");
    }
    assert_eq!(wire.stage.emulator.counts().validations, before);
    assert_eq!(wire.upstream.text(), "");
}

#[tokio::test]
async fn target_override_headers_open_no_route() {
    for server in ["", "trusted_proxies = [\"127.0.0.0/8\"]"] {
        let wire =
            Wire::with(ScriptedUpstream::answering(OK).await, Setup { server, ..Setup::default() }).await;
        #[rustfmt::skip]
        let cases = [
            "x-forwarded-uri: /public/x", "x-forwarded-path: /public/x", "x-forwarded-prefix: /public",
            "x-forwarded-method: OPTIONS", "x-forwarded-host: public.test", "x-original-url: /public/x",
            "x-original-uri: /public/x", "x-rewrite-url: /public/x", "x-http-method-override: OPTIONS",
            "forwarded: for=127.0.0.1;host=public",
        ];
        for header in cases {
            let all =
                wire.all(format!("GET /v1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{header}\r\n\r\n"));
            assert!(all.await.starts_with("HTTP/1.1 401 "), "{header}");
            assert_eq!(wire.upstream.text(), "", "{header}");
        }
    }
}

#[tokio::test]
async fn target_override_headers_never_reach_upstream() {
    let wire = Wire::start().await;
    let mut seen = 0;
    #[rustfmt::skip]
    let cases = [
        "x-original-url", "X-Rewrite-URL", "x_original.url", "x-original-uri", "x-forwarded-uri",
        "X_Forwarded-Prefix",
    ];
    for name in cases {
        let head =
            format!("GET /public/x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{name}: /v1/forged\r\n\r\n");
        assert!(wire.all(head).await.ends_with("ok"), "{name}");
        assert!(!wire.fresh(&mut seen).contains("forged"), "{name}");
    }
}

#[tokio::test]
async fn path_spellings_never_escape_public_route() {
    let wire = Wire::start().await;
    #[rustfmt::skip]
    let cases = [
        "/public/../v1", "/public/..%2fv1", "/public/..%2Fv1", "/public/%2e%2e/v1", "/public/%2E%2e%2fv1",
        "/public/.%2e/v1", "/public/..%5cv1", "/public/..\\v1", "/public\\..\\v1", "/public/..;/v1",
        "/public/..;x=y/v1", "/public/%252e%252e/v1", "/public/%252e%252e%252fv1", "/public/..%252fv1",
        "/public/..%255cv1", "/public/%25%32%65%25%32%65/v1", "/public/.;/../v1", "/public/./../v1",
        "/public/x/../../v1", "/public//../v1", "/public/..", "/public/..?x", "/public/%2e%2e%3b/v1",
        "/public%2f..%2fv1", "//public/../v1", "/./v1", "//v1", "/%2e/v1", "/\\v1", "/;/v1",
        "/public/..%00/v1", "/public/..%0d/v1", "/public/..%09/v1", "/public/%u002e%u002e/v1",
        "/public/..%c0%afv1", "/public/%c0%ae%c0%ae/v1", "/public/%e0%80%ae%e0%80%ae/v1",
        "/public/%25c0%25ae./v1", "/public;/../v1", "/PUBLIC/x", "/Public/x", "/publi%63/x", "/public%00/x",
        "/public%20/x", "/publicx", "http://a/public/../v1", "http://a//v1",
    ];
    for path in cases {
        let all = wire.all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
        assert!(matches!(statuses(&all)[..], [400 | 401]), "{path}: {all}");
        assert_eq!(wire.upstream.text(), "", "{path}");
    }
}
