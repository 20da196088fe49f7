//! Decisions for gateways: what is asked, what is answered, and that nothing is permitted by mistake.

use base64::Engine as _;
use keyward::listener::Listen;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use keyward_emulator::store::Issue;

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
    let request = format!("POST /decision/v1/x HTTP/1.1\r\nhost: a\r\n{grpc}\r\n");
    assert_eq!(send(&stage, &request).await.status, 401);
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
async fn peer_outside_allow_from_is_forbidden() {
    let sections = "[decision]\nlisten = \"127.0.0.1:0\"\nallow_from = [\"192.0.2.0/24\"]";
    let stage = Stage::with(Setup { sections, ..Setup::default() }).await;
    assert_eq!(ask(&stage, "GET", "/public/x", "").await.status, 403);
}
