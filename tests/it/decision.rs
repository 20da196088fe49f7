//! Decisions for gateways: what is asked, what is answered, and that nothing is permitted by mistake.

mod listener;

use std::collections::HashMap;

use base64::Engine as _;
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{HeaderMap, Method};
use keyward::decision::ext_authz::{
    AttributeContext, AttributeRequest, CheckRequest, CheckResponse, HttpRequest, RawHeader, RawHeaders,
};
use keyward::listener::Listen;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use keyward_emulator::store::Issue;

use prost::Message as _;

use crate::support::http::{HttpClient, HttpVersion};
use crate::support::raw::{Client, Reply};
use crate::support::{Setup, Stage};

const SECTIONS: &str = "[decision]\nlisten = \"127.0.0.1:0\"\n[identity]\nclaims_header = \"X-Claims\"";

async fn start() -> Stage {
    Stage::with(Setup { sections: SECTIONS, ..Setup::default() }).await
}

async fn send(stage: &Stage, request: &str) -> Reply {
    let Some(Listen::Tcp(address)) = stage.decision else { panic!("a port") };
    let mut client = Client::connect(address).await;
    client.send(request).await;
    client.read_reply().await
}

/// Asks as nginx, Traefik and Caddy do.
async fn ask(stage: &Stage, method: &str, uri: &str, lines: &str) -> Reply {
    let target =
        format!("x-forwarded-method: {method}\r\nx-forwarded-uri: {uri}\r\nx-forwarded-host: api.test\r\n");
    send(stage, &format!("GET /decision HTTP/1.1\r\nhost: keyward\r\n{target}{lines}\r\n")).await
}

fn bearer(key: &str) -> String {
    format!("authorization: Bearer {key}\r\n")
}

#[tokio::test]
async fn good_key_is_permitted_with_identity_headers() {
    let stage = start().await;
    let claims = [("Team 1".to_owned(), "é".to_owned())].into();
    let issue = Issue { user_id: "usr_1".into(), custom_claims: claims, ..Issue::default() };
    let key = stage.issue(issue).key;
    let forged = "x-org-id: org_evil\r\nX_User-Id: usr_evil\r\nx-claim-admin: 1\r\n";
    for prefixed in [false, true] {
        let reply = if prefixed {
            let lines = format!("{}{forged}", bearer(&key));
            send(&stage, &format!("PUT /decision/v1/orders?q=1 HTTP/1.1\r\nhost: api.test\r\n{lines}\r\n"))
                .await
        } else {
            ask(&stage, "PUT", "/v1/orders?q=1", &format!("{}{forged}", bearer(&key))).await
        };
        assert_eq!((reply.status, reply.text().as_str()), (200, ""), "{reply:?}");
        assert_eq!(reply.header("x-org-id"), Some("org_1"));
        assert_eq!(reply.header("x-user-id"), Some("usr_1"));
        assert_eq!(reply.header("x-claim-team-1"), Some("%C3%A9"));
        let claims =
            base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(reply.header("x-claims").unwrap()).unwrap();
        assert_eq!(claims, "{\"Team 1\":\"é\"}".as_bytes());
        assert_eq!(reply.header("x-claim-admin"), None);
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        let removals = reply.header("x-envoy-auth-headers-to-remove");
        assert_eq!(removals.is_some(), prefixed);
        if let Some(removals) = removals {
            let removals: Vec<_> = removals.split(',').collect();
            for name in ["authorization", "x-roles", "x-org-external-id", "x_user-id", "x-claim-admin"] {
                assert!(removals.contains(&name), "{name} in {removals:?}");
            }
            assert!(!removals.contains(&"x-org-id"), "its value replaces the client's");
        }
    }
    assert_eq!(stage.forwarded_count(), 0, "nothing is forwarded");
}

#[tokio::test]
async fn denied_decision_has_status_and_headers_of_the_proxy() {
    let stage = start().await;
    let key = stage.issue_key();
    for (method, uri, lines, status, code) in [
        ("GET", "/v1/x", String::new(), 401, "missing_credential"),
        ("GET", "/v1/x", bearer(&"0".repeat(30)), 401, "invalid_key"),
        ("GET", "/v1/admin/x", bearer(&key), 403, "not_permitted"),
        ("DELETE", "/v1/admin/x", bearer(&key), 405, "method_not_allowed"),
        ("GET", "//v1/admin/x", bearer(&key), 400, "ambiguous_path"),
        ("GET", "/V1/Admin", bearer(&key), 400, "ambiguous_path"),
        ("GET", "/v1/x", format!("{0}{0}", bearer(&key)), 400, "ambiguous_credential"),
        ("TRACE", "/v1/x", bearer(&key), 405, "method_not_allowed"),
    ] {
        let reply = ask(&stage, method, uri, &lines).await;
        assert_eq!((reply.status, reply.code()), (status, Some(code)), "{method} {uri}");
        assert_eq!(reply.header("keyward-error"), Some(code));
        assert_eq!(reply.header("www-authenticate").is_some(), status == 401 || status == 403, "{reply:?}");
    }
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(503))));
    let reply = ask(&stage, "GET", "/v1/x", &bearer(&key)).await;
    assert_eq!((reply.status, reply.code()), (503, Some("validation_unavailable")));
    assert!(reply.header("retry-after").is_some());
}

#[tokio::test]
async fn revoked_key_is_denied_on_next_decision() {
    let stage = start().await;
    let key = stage.issue_key();
    assert_eq!(ask(&stage, "GET", "/v1/x", &bearer(&key)).await.status, 200);
    assert!(stage.emulator.revoke(&key));
    assert_eq!(ask(&stage, "GET", "/v1/x", &bearer(&key)).await.status, 401);
}

#[tokio::test]
async fn grpc_client_is_never_permitted_by_an_error() {
    let stage = start().await;
    let grpc = "content-type: application/grpc\r\nte: trailers\r\ncontent-length: 0\r\n";
    // SECURITY: as a response to a gRPC client each of these would have the status 200.
    let target = "x-forwarded-method: POST\r\nx-forwarded-uri: /v1/x\r\nx-forwarded-host: a\r\n";
    for lines in [String::new(), target.to_owned(), format!("{target}x-forwarded-uri: /\r\n")] {
        let request = format!("POST /decision HTTP/1.1\r\nhost: a\r\n{lines}{grpc}\r\n");
        assert!(matches!(send(&stage, &request).await.status, 400 | 401), "{lines}");
    }
    for request in [
        format!("POST /decision HTTP/1.1\r\nhost: a\r\n{target}{grpc}\r\n"),
        format!("POST /decision/v1/x HTTP/1.1\r\nhost: a\r\n{grpc}\r\n"),
    ] {
        let reply = send(&stage, &request).await;
        assert_eq!((reply.status, reply.header("grpc-status"), reply.text().as_str()), (401, Some("16"), ""));
    }
}

#[tokio::test]
async fn target_that_is_not_told_once_is_never_guessed() {
    let stage = start().await;
    let key = stage.issue_key();
    let (method, uri, host) =
        ("x-forwarded-method: GET\r\n", "x-forwarded-uri: /public/x\r\n", "x-forwarded-host: a\r\n");
    for lines in [
        String::new(),
        format!("{uri}{host}"),
        format!("{method}{host}"),
        format!("{method}{uri}"),
        format!("{method}{uri}{uri}{host}"),
        format!("{method}{method}{uri}{host}"),
        format!("{method}{host}x-forwarded-uri: http://a/public/x\r\n"),
        format!("{method}{host}x-forwarded-uri: public/x\r\n"),
        format!("{method}{host}x-forwarded-uri: \r\n"),
        format!("{method}{host}x-forwarded-uri: *\r\n"),
        format!("{method}{host}x-forwarded-uri: /public/x#y\r\n"),
        format!("{method}{host}x-forwarded-uri: /public/a b\r\n"),
        format!("x-forwarded-method: G T\r\n{uri}{host}"),
        format!("{method}{uri}x-forwarded-host: a b\r\n"),
        "x-original-method: GET\r\nx-original-url: http://a/public/x\r\n".to_owned(),
    ] {
        let reply =
            send(&stage, &format!("GET /decision HTTP/1.1\r\nhost: a\r\n{lines}{}\r\n", bearer(&key))).await;
        assert_eq!((reply.status, reply.code()), (400, Some("malformed_request")), "{lines}");
    }
    for path in ["/", "/public/x", "/decisions", "/decision?x=/public/x"] {
        let reply = send(&stage, &format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        assert_eq!(reply.status, 400, "{path}");
    }
    // The query of the decision request itself, a body and an upgrade mean nothing.
    let target = format!("{method}{uri}{host}connection: upgrade\r\nupgrade: websocket\r\n");
    let reply = send(&stage, &format!("GET /decision?q=1 HTTP/1.1\r\nhost: a\r\n{target}\r\n")).await;
    assert_eq!(reply.status, 200);
    let body = "content-length: 3\r\n\r\nabc";
    let reply =
        send(&stage, &format!("POST /decision HTTP/1.1\r\nhost: a\r\n{method}{uri}{host}{body}")).await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn original_url_is_used_only_if_configured() {
    let sections = "[decision]\nlisten = \"127.0.0.1:0\"\nheaders = \"x-original\"";
    let stage = Stage::with(Setup { sections, ..Setup::default() }).await;
    let open = "x-original-method: GET\r\nx-original-url: https://api.test/public/x?y=1\r\n";
    let closed = "x-original-method: GET\r\nx-original-url: https://api.test/v1/x\r\n";
    let forged = "x-forwarded-method: GET\r\nx-forwarded-uri: /public/x\r\nx-forwarded-host: a\r\n";
    for (lines, status) in [
        (open.to_owned(), 200),
        (format!("{closed}{forged}"), 401),
        (forged.to_owned(), 400),
        ("x-original-method: GET\r\nx-original-url: /public/x\r\n".to_owned(), 400),
        ("x-original-method: GET\r\nx-original-url: https://api.test\r\n".to_owned(), 400),
        (format!("{open}x-original-url: https://api.test/public/x\r\n"), 400),
    ] {
        let reply = send(&stage, &format!("GET /decision HTTP/1.1\r\nhost: a\r\n{lines}\r\n")).await;
        assert_eq!(reply.status, status, "{lines}");
    }
}

#[tokio::test]
async fn routes_without_upstream_serve_decisions_alone() {
    let routes = "[[routes]]\npath = \"/only/*\"\n[[routes]]\npath = \"/open\"\nauth = \"none\"\n\
                  [[routes]]\npath = \"/v1/*\"\nupstream = \"echo\"";
    let stage = Stage::with(Setup { sections: SECTIONS, routes, ..Setup::default() }).await;
    let key = stage.issue_key();
    assert_eq!(ask(&stage, "GET", "/only/x", &bearer(&key)).await.status, 200);
    assert_eq!(ask(&stage, "GET", "/open", "").await.status, 200);
    for path in ["/only/x", "/open"] {
        let reply = stage.get(path, &key).await;
        assert_eq!((reply.status, reply.code()), (404, Some("no_route")), "{path}");
    }
    assert_eq!(stage.get("/v1/x", &key).await.status, 200);
}

#[tokio::test]
async fn only_bare_preflight_is_permitted_without_key() {
    let routes = "[[routes]]\npath = \"/*\"\npreflight = true";
    let stage = Stage::with(Setup { sections: SECTIONS, routes, ..Setup::default() }).await;
    let preflight = "origin: https://a.test\r\naccess-control-request-method: PUT\r\nx-request-start: 1\r\n";
    assert_eq!(ask(&stage, "OPTIONS", "/v1/x", preflight).await.status, 200);
    // SECURITY: the proxy removes these, and a gateway forwards them to a handler that may act on them.
    for line in [
        "cookie: session=1",
        "authorization: Bearer x",
        "X-HTTP-Method-Override: DELETE",
        "x-http-method: DELETE",
    ] {
        let reply = ask(&stage, "OPTIONS", "/v1/x", &format!("{preflight}{line}\r\n")).await;
        assert_eq!((reply.status, reply.code()), (401, Some("missing_credential")), "{line}");
    }
    let headers = [("origin", "https://a.test"), ("access-control-request-method", "PUT")];
    let (check, _) = call_check(&stage, frame(&check_request("OPTIONS", "/v1/x", &headers))).await;
    assert!(check.unwrap().ok_response.is_some());
    for body in [("content-length", "3"), ("transfer-encoding", "chunked")] {
        let headers = [headers[0], headers[1], body];
        let (check, _) = call_check(&stage, frame(&check_request("OPTIONS", "/v1/x", &headers))).await;
        assert!(check.unwrap().denied_response.is_some(), "{body:?}");
    }
}

#[tokio::test]
async fn peer_outside_allow_from_is_forbidden() {
    let sections = "[decision]\nlisten = \"127.0.0.1:0\"\nallow_from = [\"192.0.2.0/24\"]";
    let stage = Stage::with(Setup { sections, ..Setup::default() }).await;
    assert_eq!(ask(&stage, "GET", "/public/x", "").await.status, 403);
}

/// Makes Envoy's gRPC call. Gives the message, if there is one, and the trailers.
async fn call_check(stage: &Stage, content: Bytes) -> (Option<CheckResponse>, HeaderMap) {
    let Some(Listen::Tcp(address)) = stage.decision else { panic!("a port") };
    let mut client = HttpClient::connect(address, HttpVersion::Http2).await;
    let path = "/envoy.service.auth.v3.Authorization/Check";
    let mut request = client.request(Method::POST, path, "", keyward::body::full(content));
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let response = client.send(request).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"application/grpc".parse().unwrap())
    );
    let collected = response.into_body().collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap();
    let content = collected.to_bytes();
    let message = (!content.is_empty()).then(|| CheckResponse::decode(&content[5..]).unwrap());
    (message, trailers)
}

fn frame(check: &CheckRequest) -> Bytes {
    let mut content = BytesMut::new();
    content.put_u8(0);
    content.put_u32(check.encoded_len() as u32);
    content.extend(check.encode_to_vec());
    content.freeze()
}

fn check_request(method: &str, path: &str, headers: &[(&str, &str)]) -> CheckRequest {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let http = HttpRequest {
        method: method.to_owned(),
        path: path.to_owned(),
        host: "api.test".to_owned(),
        headers: headers.chain([(":path".to_owned(), "/public/x".to_owned())]).collect(),
        header_map: None,
    };
    let request = Some(AttributeRequest { http: Some(http) });
    CheckRequest { attributes: Some(AttributeContext { request }) }
}

#[tokio::test]
async fn envoy_check_permits_with_headers_and_metadata() {
    let stage = start().await;
    let claims = [("plan".to_owned(), "gold".to_owned())].into();
    let key = stage.issue(Issue { custom_claims: claims, ..Issue::default() }).key;
    let authorization = format!("Bearer {key}");
    let headers = [
        ("authorization", &*authorization),
        ("x_org_id", "org_evil"),
        ("x-claim-admin", "1"),
        ("accept", "*/*"),
    ];
    let (check, trailers) = call_check(&stage, frame(&check_request("GET", "/v1/x?q=1", &headers))).await;
    assert_eq!(trailers["grpc-status"], "0");
    let check = check.unwrap();
    assert_eq!(check.status.unwrap().code, 0);
    let ok = check.ok_response.unwrap();
    let set: HashMap<_, _> = ok
        .headers
        .iter()
        .map(|option| {
            assert_eq!(option.append_action, 2, "it replaces the client's");
            let header = option.header.as_ref().unwrap();
            (header.key.as_str(), header.value.as_str())
        })
        .collect();
    assert_eq!((set["x-org-id"], set["x-claim-plan"]), ("org_1", "gold"));
    for name in ["authorization", "x_org_id", "x-claim-admin", "x-user-id"] {
        assert!(ok.headers_to_remove.iter().any(|removed| removed == name), "{name}");
    }
    let metadata = check.dynamic_metadata.unwrap();
    let text = prost_types::value::Kind::StringValue("org_1".to_owned());
    assert_eq!(metadata.fields["organization_id"].kind, Some(text));
    assert!(metadata.fields.contains_key("claims") && metadata.fields.contains_key("token_id"));
    assert!(stage.emulator.revoke(&key));
    let (check, _) = call_check(&stage, frame(&check_request("GET", "/v1/x", &headers))).await;
    let denied = check.unwrap().denied_response.unwrap();
    assert_eq!(denied.status.unwrap().code, 401);
    assert!(denied.body.contains("\"code\":\"invalid_key\""), "{}", denied.body);
}

#[tokio::test]
async fn envoy_check_denies_with_status_and_short_text_for_grpc() {
    let stage = start().await;
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(503))));
    let authorization = format!("Bearer {}", stage.issue_key());
    let headers = [("authorization", &*authorization), ("content-type", "application/grpc")];
    let (check, _) = call_check(&stage, frame(&check_request("POST", "/v1/x", &headers))).await;
    let check = check.unwrap();
    assert!(check.ok_response.is_none() && check.status.unwrap().code != 0);
    let denied = check.denied_response.unwrap();
    assert_eq!(denied.status.unwrap().code, 503, "not the 200 of a gRPC error");
    assert!(!denied.body.is_empty() && !denied.body.contains('{'), "{}", denied.body);
    let names: Vec<_> =
        denied.headers.iter().map(|option| option.header.as_ref().unwrap().key.as_str()).collect();
    assert!(names.contains(&"retry-after") && names.contains(&"keyward-error"), "{names:?}");
}

#[tokio::test]
async fn unreadable_envoy_check_is_invalid_argument() {
    let stage = start().await;
    let sound = check_request("GET", "/public/x", &[]);
    let with = |change: fn(&mut HttpRequest)| {
        let mut check = sound.clone();
        change(check.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap());
        frame(&check)
    };
    let mut invalid_utf8 = frame(&sound).to_vec();
    let at = invalid_utf8.windows(8).position(|bytes| bytes == b"api.test").unwrap();
    invalid_utf8[at] = 0xff;
    let raw = |key: &str| RawHeader { key: key.to_owned(), value: "x".to_owned(), raw_value: Vec::new() };
    let bad_name = {
        let mut check = sound.clone();
        let http = check.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
        http.header_map = Some(RawHeaders { headers: vec![raw("x org-id")] });
        frame(&check)
    };
    let mut not_text = frame(&check_request("GET", "/public/x", &[("x-note", "api note")])).to_vec();
    let at = not_text.windows(8).position(|bytes| bytes == b"api note").unwrap();
    not_text[at] = 0xff;
    let not_text = Bytes::from(not_text);
    let raw_nul = {
        let mut check = sound.clone();
        let http = check.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
        http.header_map =
            Some(RawHeaders { headers: vec![RawHeader { raw_value: vec![0], ..raw("x-note") }] });
        frame(&check)
    };
    for (what, content) in [
        ("nothing", Bytes::new()),
        ("no message", Bytes::from_static(&[0, 0, 0, 0])),
        ("compressed", Bytes::from_static(&[1, 0, 0, 0, 0])),
        ("too short", Bytes::from_static(&[0, 0, 0, 0, 9, 1])),
        ("no attributes", frame(&CheckRequest { attributes: None })),
        ("no protobuf", Bytes::from_static(&[0, 0, 0, 0, 2, 0xff, 0xff])),
        ("not UTF-8", invalid_utf8.into()),
        ("no method", with(|http| http.method.clear())),
        ("no path", with(|http| http.path.clear())),
        ("no host", with(|http| http.host.clear())),
        ("an absolute path", with(|http| http.path = "http://a/public/x".to_owned())),
        ("a header with a bad name", bad_name),
        ("a header map that is not UTF-8", not_text),
        ("a raw value with a NUL", raw_nul),
        ("40,000 headers", with_headers(40_000)),
        ("2 MiB", Bytes::from(vec![0; 2 << 20])),
        ("a length of 4 GiB", Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff, 1])),
    ] {
        let (check, trailers) = call_check(&stage, content).await;
        assert!(check.is_none(), "{what}");
        assert_eq!(trailers["grpc-status"], "3", "{what}");
        assert!(trailers["grpc-message"].to_str().unwrap().contains("the gateway must"), "{what}");
    }
    assert!(call_check(&stage, frame(&sound)).await.0.unwrap().ok_response.is_some());
}

/// About an open path.
fn with_headers(count: usize) -> Bytes {
    let names: Vec<String> = (0..count).map(|number| format!("x-{number}")).collect();
    let headers: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    frame(&check_request("GET", "/public/x", &headers))
}

#[tokio::test]
async fn ten_thousand_headers_are_denied() {
    let stage = start().await;
    let (check, _) = call_check(&stage, with_headers(10_000)).await;
    assert_eq!(check.unwrap().denied_response.unwrap().status.unwrap().code, 431);
    let headers: String = (0..10_000).map(|number| format!("x-{number}:\r\n")).collect();
    let reply = ask(&stage, "GET", "/public/x", &headers).await;
    assert!(matches!(reply.status, 0 | 431), "{reply:?}");
    assert_eq!(ask(&stage, "GET", "/public/x", "").await.status, 200);
}
