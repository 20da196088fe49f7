//! Identity headers come from Scalekit only, not from headers, aliases, trailers or `Connection` of a client; claims never
//! change other headers.

use std::collections::BTreeMap;

use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Frame;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use keyward::body;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use keyward_emulator::store::Issue;

use super::{OK, Wire, values};
use crate::support::http::{HttpVersion, VERSION_PAIRS, channel_body, data_frame};
use crate::support::raw::ScriptedUpstream;
use crate::support::{Setup, Stage};

/// Names that only Keyward may set. An organization key has no user, roles or claims, so nothing overwrites these.
#[rustfmt::skip]
const OWNED: [&str; 9] = [
    "x-org-id", "x-org-external-id", "x-user-id", "x-user-external-id", "x-roles", "x-token-id", "x-claim-admin",
    "x-claim-", "x-claim",
];
const SEPARATORS: &str = "-_.!#$%&'*+^`|~";

/// Each owned name with each separator, in three letter cases.
fn spellings() -> Vec<String> {
    let separated =
        |name: &str| SEPARATORS.chars().map(|with| name.replace('-', &with.to_string())).collect::<Vec<_>>();
    let mut names: Vec<String> = OWNED.iter().flat_map(|name| separated(name)).collect();
    names.extend(OWNED.map(str::to_ascii_uppercase));
    names.extend(
        ["X-Org_Id", "x_Org.iD", "X-CLAIM_admin", "x-claim-a_b", "x_claim_x-org-id"].map(str::to_owned),
    );
    names
}

const CORS: &str = "[[routes]]\npath = \"/public/*\"\nupstream = \"echo\"\nauth = \"none\"\n[[routes]]\npath = \"/*\"\n\
                    upstream = \"echo\"\npreflight = true";

#[tokio::test]
async fn identity_header_spellings_are_stripped_on_every_route() {
    let wire =
        Wire::with(ScriptedUpstream::answering(OK).await, Setup { routes: CORS, ..Setup::default() }).await;
    let preflight = "origin: https://a.test\r\naccess-control-request-method: PUT\r\n";
    let mut client = wire.stage.connect().await;
    let mut seen = 0;
    for (line, more, org) in
        [("GET /v1", "", &["org_1"][..]), ("GET /public/x", "", &[]), ("OPTIONS /v1", preflight, &[])]
    {
        for name in spellings() {
            let lines = format!("{name}: forged\r\nx-kept: 1\r\n{name}: forged\r\n{more}");
            client.send(wire.head(line, &lines)).await;
            assert_eq!(client.read_reply().await.status, 200, "{line} {name}");
            let head = wire.fresh(&mut seen);
            // Only headers that a browser sends pass in a preflight.
            let kept = head.contains("x-kept: 1");
            assert!(!head.contains("forged") && kept != more.contains("origin"), "{line} {name}: {head}");
            assert_eq!(values(&head, "x-org-id"), org, "{line} {name}");
        }
    }
}

#[tokio::test]
async fn connection_header_cannot_strip_identity_headers() {
    let wire = Wire::start().await;
    let issued = wire.stage.issue(Issue {
        user_id: "usr_1".into(),
        roles: vec!["admin".into()],
        custom_claims: BTreeMap::from([("team".into(), "blue".into())]),
        ..Issue::default()
    });
    let mut seen = 0;
    for connection in [
        "X-Org-Id, X-User-Id, X-Roles, X-Token-Id, X-Claim-Team",
        "x_org_id, x.claim.team",
        "keep-alive, x-org-id,,  x-claim-team ,\tx-roles",
        "X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto, X-Request-Id",
        "Host, Content-Length, Content-Type, Transfer-Encoding, Authorization",
        "close, X-Org-Id",
        "*, x-*, \"x-org-id\", x-org-id;q=1, x org id",
    ] {
        let mut client = wire.stage.connect().await;
        let key = &issued.key;
        client
            .send(format!(
                "POST /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\nconnection: {connection}\r\n\
                 content-length: 3\r\nconnection: x-org-id\r\nx-org-id: forged\r\n\r\nabc"
            ))
            .await;
        assert_eq!(client.read_reply().await.status, 200, "{connection}");
        wire.upstream.wait_until(|text| text[seen..].ends_with("\r\n\r\nabc")).await;
        let head = wire.fresh(&mut seen);
        #[rustfmt::skip]
        let cases = [
            ("x-org-id", "org_1"), ("x-user-id", "usr_1"), ("x-roles", "admin"),
            ("x-token-id", &issued.token_id.to_ascii_lowercase()), ("x-claim-team", "blue"),
            ("x-forwarded-for", "127.0.0.1"), ("x-forwarded-host", "a"), ("x-forwarded-proto", "http"),
            ("host", "a"), ("content-length", "3"),
        ];
        for (name, value) in cases {
            assert_eq!(values(&head, name), [value], "{connection}: {name}");
        }
        assert_eq!(values(&head, "x-request-id").len(), 1, "{connection}");
        for name in ["connection", "authorization", "transfer-encoding"] {
            assert_eq!(values(&head, name), [] as [&str; 0], "{connection}: {name}");
        }
    }
}

#[tokio::test]
async fn trailers_carry_no_identity_key_or_framing() {
    #[rustfmt::skip]
    const NAMES: [&str; 12] = [
        "x-org-id", "x_org_id", "x.user.id", "x-claim-admin", "x-roles", "authorization", "content-length",
        "transfer-encoding", "host", "x-forwarded-for", "x_request_id", "connection",
    ];
    let wire = Wire::start().await;
    let names = NAMES.join(", ");
    let fields: String = NAMES.iter().map(|name| format!("{name}: forged\r\n")).collect();
    for line in ["POST /v1", "POST /public/x"] {
        let lines = format!("transfer-encoding: chunked\r\ntrailer: {names}, x-sum\r\nte: trailers\r\n");
        let head = wire.head(line, &lines);
        let mut client = wire.stage.connect().await;
        client.send(format!("{head}3\r\nabc\r\n0\r\n{fields}x-sum: 7\r\n\r\n")).await;
        assert_eq!(client.read_reply().await.status, 200);
        wire.upstream.wait_until(|text| text.ends_with("\r\n0\r\nx-sum: 7\r\n\r\n")).await;
        assert!(!wire.upstream.text().contains("forged"), "{}", wire.upstream.text());
    }
    for (http_version, line) in VERSION_PAIRS {
        let stage = Stage::with(Setup { upstream: line, ..Setup::default() }).await;
        let mut http_client = stage.connect_http(http_version).await;
        let (feed, content) = channel_body();
        let mut request = http_client.request(Method::POST, "/v1", &stage.issue_key(), content);
        request.headers_mut().insert("trailer", HeaderValue::try_from(format!("{names}, x-sum")).unwrap());
        let mut trailers =
            HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_static("7"))]);
        // HTTP/2 itself refuses connection headers.
        for name in NAMES.iter().filter(|name| !matches!(**name, "connection" | "transfer-encoding")) {
            trailers.insert(HeaderName::from_static(name), HeaderValue::from_static("forged"));
        }
        tokio::spawn(async move {
            feed.send(data_frame("abc")).await.unwrap();
            feed.send(Ok(Frame::trailers(trailers))).await.unwrap();
        });
        let status = http_client.send(request).await.unwrap().status();
        assert_eq!(status, 200, "{http_version:?} {line}");
        let received = stage.last_request();
        assert_eq!(received.trailers, [("x-sum".into(), "7".into())], "{http_version:?} {line}");
        assert!(!format!("{received:?}").contains("forged"), "{http_version:?} {line}");
    }
}

#[tokio::test]
async fn hostile_claims_set_only_their_own_headers() {
    let wire = Wire::start().await;
    let mut seen = 0;
    for (claims, expected) in [
        (
            &[("team", "a\r\nX-Org-Id: org_2\r\n\r\nGET / HTTP/1.1")][..],
            Ok(&[("x-claim-team", "a%0d%0ax-org-id: org_2%0d%0a%0d%0aget / http/1.1")][..]),
        ),
        (&[("team", "a\nb\r\0\x7f\t")], Ok(&[("x-claim-team", "a%0ab%0d%00%7f%09")])),
        (&[("team", "é\u{2028}💥 ")], Ok(&[("x-claim-team", "%c3%a9%e2%80%a8%f0%9f%92%a5%20")])),
        (&[("team", "")], Ok(&[("x-claim-team", "")])),
        (&[("Org-Id", "x"), ("x-org-id", "y")], Ok(&[("x-claim-org-id", "x"), ("x-claim-x-org-id", "y")])),
        (&[("a\r\nx-org-id: org_2", "x")], Ok(&[("x-claim-a--x-org-id--org-2", "x")])),
        (&[("", "x"), ("é", "y")], Ok(&[("x-claim-", "x"), ("x-claim--", "y")])),
        (&[("a b", "x"), ("a.b", "y"), ("A-B", "z"), ("c", "kept")], Err("ambiguous_identity")),
        (&[("readonly", "true"), ("READONLY", "x")], Err("ambiguous_identity")),
        (&[("team", "%0d%0a")], Ok(&[("x-claim-team", "%250d%250a")])),
        (&[("huge", "@9000")], Err("identity_too_large")),
        (&[("é", "@3000")], Err("identity_too_large")),
    ] {
        let value = |text: &str| match text.strip_prefix('@') {
            Some(count) => "é".repeat(count.parse().unwrap()),
            None => text.to_owned(),
        };
        let custom_claims = claims.iter().map(|(name, text)| ((*name).to_owned(), value(text))).collect();
        let key = wire.stage.issue(Issue { custom_claims, ..Issue::default() }).key;
        let reply = wire.stage.get("/v1", &key).await;
        let head = wire.fresh(&mut seen);
        let expected = match expected {
            Ok(expected) => expected,
            Err(code) => {
                assert_eq!((reply.status, reply.code()), (502, Some(code)));
                assert_eq!(head, "");
                continue;
            }
        };
        assert_eq!((reply.status, values(&head, "x-org-id")), (200, vec!["org_1"]), "{claims:?}");
        let found: Vec<_> = head.lines().filter(|line| line.starts_with("x-claim")).collect();
        let expected: Vec<_> = expected.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        assert_eq!(found, expected, "{claims:?}");
        assert_eq!(head.matches("\r\n\r\n").count(), 1, "{claims:?}");
    }
}

#[tokio::test]
async fn scalekit_response_without_usable_ids_is_503() {
    let wire = Wire::start().await;
    let suffix = &wire.key[wire.key.len() - 4..];
    let info = |fields: &str| format!(r#"{{"token_info":{{"token_suffix":"{suffix}",{fields}}}}}"#);
    #[rustfmt::skip]
    let organizations = [
        r#""""#, "null", r#"" ""#, r#""org 1""#, r#""org_1\r\nX-Org-Id: org_2""#, r#""org_1\u0000""#, r#""org_\u00e9""#,
        r#"["org_1"]"#, "1", "{}", r#""org_1","organization_id":"org_2""#, r#""org_1","user_id":"a\r\nb""#,
        r#""org_1","user_id":"é""#, r#""org_1","token_id":"a\nb""#, r#""org_1","roles":"admin""#,
    ];
    #[rustfmt::skip]
    let mut bodies = vec![
        info(r#""Organization_Id":"org_1""#), info(r#""organization_id":"org_1""#) + "x", r#"{"token_info":null}"#.into(),
        r#"{"token_info":[]}"#.into(), "{}".into(), "null".into(), "[]".into(), String::new(), "<html>ok</html>".into(),
    ];
    bodies.extend(organizations.map(|value| info(&format!(r#""organization_id":{value}"#))));
    for body in bodies {
        let answer =
            Answer { status: 200, retry_after: None, content_type: None, body: Some(body.clone().into()) };
        wire.stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(answer)));
        let reply = wire.stage.get("/v1", &wire.key).await;
        assert_eq!((reply.status, reply.code()), (503, Some("validation_unavailable")), "{body}");
        wire.stage.emulator.clear_faults();
    }
    assert_eq!(wire.upstream.text(), "");
}

#[tokio::test]
async fn requests_on_one_connection_never_share_identity() {
    let wire = Wire::start().await;
    let keys: Vec<_> = (0..4)
        .map(|number| {
            let organization_id = format!("org_{number}");
            wire.stage
                .issue(Issue { organization_id, user_id: format!("usr_{number}"), ..Issue::default() })
                .key
        })
        .collect();
    let request = |number: usize| match number % 5 {
        4 => format!("GET /public/{number} HTTP/1.1\r\nhost: a\r\n\r\n"),
        own => format!("GET /v1/{number} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n", keys[own]),
    };
    let mut client = wire.stage.connect().await;
    for number in 0..10 {
        client.send(request(number)).await;
        assert_eq!(client.read_reply().await.status, 200);
    }
    client.send((10..20).map(request).collect::<String>()).await;
    for _ in 10..20 {
        assert_eq!(client.read_reply().await.status, 200);
    }
    let text = wire.upstream.text();
    assert_eq!(wire.upstream.received().len(), 1, "the upstream's connection is shared");
    for (number, head) in text.split_terminator("\r\n\r\n").enumerate() {
        let (own, path) = (number % 5, head.split(' ').nth(1).unwrap());
        assert!(path.ends_with(&format!("/{number}")), "{path}");
        let (org, user) = (format!("org_{own}"), format!("usr_{own}"));
        let expected = if own == 4 { (vec![], vec![]) } else { (vec![&*org], vec![&*user]) };
        assert_eq!((values(head, "x-org-id"), values(head, "x-user-id")), expected, "{number}");
    }
}

#[tokio::test]
async fn streams_of_one_connection_never_share_identity() {
    for line in ["", "http = \"2\""] {
        let stage = Stage::with(Setup { upstream: line, ..Setup::default() }).await;
        let http_client = &stage.connect_http(HttpVersion::Http2).await;
        let crate::support::http::HttpClient::Http2(sender) = http_client else { unreachable!() };
        let asks = (0..64).map(|number| {
            let org = format!("org_{}", number % 9);
            let issued = stage.issue(Issue { organization_id: org.clone(), ..Issue::default() });
            let path = if number % 9 == 8 { "/public/none".to_owned() } else { format!("/v1/{org}") };
            let (mut sender, request) =
                (sender.clone(), http_client.request(Method::GET, &path, &issued.key, body::empty()));
            async move { sender.send_request(request).await.unwrap().into_body().collect().await.unwrap() }
        });
        futures_util::future::join_all(asks).await;
        let all = stage.echo.received();
        assert_eq!(all.len(), 64);
        for received in all {
            let wanted = received.path.strip_prefix("/v1/");
            assert_eq!(received.header("x-org-id"), wanted, "{line} {}", received.path);
        }
    }
}
