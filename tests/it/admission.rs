//! Admission: keys, routes, policy and rejections.

use std::collections::BTreeMap;

use keyward_emulator::store::Issue;

use crate::support::{Setup, Stage};

fn claims(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

#[tokio::test]
async fn good_key_becomes_identity_and_is_not_forwarded() {
    let stage = Stage::start().await;
    let key = stage.issue(Issue {
        organization_external_id: "acme".into(),
        user_id: "usr_1".into(),
        user_external_id: "jane, née x".into(),
        roles: vec!["admin".into(), "a,b".into()],
        custom_claims: claims(&[("team", "a\r\nX-Evil: 1"), ("Te am", " 100% ")]),
        ..Issue::default()
    });
    let reply = stage.get("/v1/orders?page=2", &key.key).await;
    assert_eq!(reply.status, 200);
    let received = stage.last_request();
    assert_eq!(received.path, "/v1/orders?page=2");
    for (name, value) in [
        ("x-org-id", "org_1"),
        ("x-org-external-id", "acme"),
        ("x-user-id", "usr_1"),
        ("x-user-external-id", "jane, n%C3%A9e x"),
        ("x-roles", "admin,a%2Cb"),
        ("x-token-id", &key.token_id),
        ("x-claim-team", "a%0D%0AX-Evil: 1"),
        ("x-claim-te-am", "%20100%25%20"),
        ("host", "api.test"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "api.test"),
    ] {
        assert_eq!(received.header_values(name), [value], "{name}");
    }
    assert_eq!(received.header("authorization"), None);
    assert!(!format!("{received:?}").contains(&key.key), "the key is nowhere in what the upstream got");
    assert_eq!(reply.header("x-request-id"), received.header("x-request-id"));
}

#[tokio::test]
async fn organization_key_has_no_user_headers() {
    let stage = Stage::start().await;
    let key = stage.issue_key();
    stage.get("/v1/orders", &key).await;
    let received = stage.last_request();
    for name in ["x-user-id", "x-user-external-id", "x-roles", "x-org-external-id"] {
        assert_eq!(received.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn revoked_key_is_refused_on_next_request() {
    let stage = Stage::start().await;
    let key = stage.issue_key();
    let mut client = stage.connect().await;
    let request = format!("GET /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n");
    for _ in 0..3 {
        client.send(&request).await;
        assert_eq!(client.read_reply().await.status, 200);
    }
    assert!(stage.emulator.revoke(&key));
    client.send(&request).await;
    let reply = client.read_reply().await;
    assert_eq!((reply.status, reply.code()), (401, Some("invalid_key")));
    assert_eq!(stage.forwarded_count(), 3);
}

#[tokio::test]
async fn every_request_is_validated_bad_key_once() {
    let stage = Stage::start().await;
    let (good, bad) = (stage.issue_key(), "0123456789ABCDEFGHIJabcdefghij");
    let before = stage.emulator.counts().validations;
    for _ in 0..5 {
        assert_eq!(stage.get("/v1", &good).await.status, 200);
    }
    assert_eq!(stage.emulator.counts().validations - before, 5);
    for _ in 0..5 {
        assert_eq!(stage.get("/v1", bad).await.code(), Some("invalid_key"));
    }
    assert_eq!(stage.emulator.counts().validations - before, 6);
}

#[tokio::test]
async fn token_id_is_refused_without_a_call() {
    let stage = Stage::start().await;
    let before = stage.emulator.counts().validations;
    let issued = stage.issue(Issue::default());
    for id in [issued.token_id.clone(), issued.token_id.to_uppercase()] {
        let reply = stage.get("/v1", &id).await;
        assert_eq!((reply.status, reply.code()), (401, Some("invalid_key")));
    }
    assert_eq!(stage.emulator.counts().validations, before);
    assert_eq!(stage.forwarded_count(), 0);
}

#[tokio::test]
async fn missing_or_duplicate_credential_is_refused_without_call() {
    let stage = Stage::start().await;
    let key = stage.issue_key();
    let before = stage.emulator.counts().validations;
    for (headers, status, code) in [
        (String::new(), 401, "missing_credential"),
        ("authorization: Basic dTpw\r\n".into(), 401, "missing_credential"),
        (format!("x-api-key: {key}\r\ncookie: key={key}\r\n"), 401, "missing_credential"),
        (format!("proxy-authorization: Bearer {key}\r\n"), 401, "missing_credential"),
        (
            format!("authorization: Bearer {key}\r\nAuthorization: Bearer {key}\r\n"),
            400,
            "ambiguous_credential",
        ),
        (format!("authorization: Bearer {key} {key}\r\n"), 401, "invalid_key"),
        ("authorization: Bearer eyJhbGci.eyJzdWIi.c2ln0123456789\r\n".into(), 401, "invalid_key"),
    ] {
        let reply =
            stage.send(format!("GET /v1?access_token={key} HTTP/1.1\r\nhost: a\r\n{headers}\r\n")).await;
        assert_eq!((reply.status, reply.code()), (status, Some(code)), "{headers}");
        assert!(!reply.text().contains(&key));
    }
    assert_eq!(stage.emulator.counts().validations, before);
    assert_eq!(stage.forwarded_count(), 0);
}

#[tokio::test]
async fn refusal_is_problem_json_with_challenge() {
    let stage = Stage::start().await;
    let reply = stage.send("GET /v1 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"api\""));
    let body = reply.json();
    assert_eq!(body["error"], "Missing authorization token");
    assert_eq!(body["request_id"].as_str(), reply.header("x-request-id"));
    let reply = stage.send("HEAD /v1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert_eq!((reply.status, reply.body.len()), (401, 0));
}

#[tokio::test]
async fn route_requirements_must_all_be_met() {
    let stage = Stage::start().await;
    let issue = |user: &str, roles: &[&str], environment: &str| Issue {
        user_id: user.into(),
        roles: roles.iter().map(ToString::to_string).collect(),
        custom_claims: claims(&[("environment", environment)]),
        ..Issue::default()
    };
    for (issue, status) in [
        (issue("usr_1", &["reader", "admin"], "production"), 200),
        (issue("usr_1", &["reader"], "production"), 403),
        (issue("usr_1", &["admin"], "staging"), 403),
        (issue("", &["admin"], "production"), 403),
    ] {
        let reply = stage.get("/v1/admin/x", &stage.issue(issue).key).await;
        assert_eq!(reply.status, status);
        if status == 403 {
            assert_eq!(reply.code(), Some("not_permitted"));
            assert!(reply.header("www-authenticate").unwrap().contains("error=\"insufficient_scope\""));
        }
    }
    assert_eq!(stage.forwarded_count(), 1);
}

#[tokio::test]
async fn wider_route_never_serves_method_refused_by_winner() {
    let stage = Stage::start().await;
    let key = stage.issue_key();
    let reply = stage
        .send(format!("PUT /v1/admin/x HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n"))
        .await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, POST")));
    for (path, code) in [
        ("/public/../v1", "ambiguous_path"),
        ("/public/%2e%2e/v1", "ambiguous_path"),
        ("/v1%2fadmin/x", "ambiguous_path"),
        ("//v1/admin/x", "ambiguous_path"),
    ] {
        let reply = stage.get(path, &key).await;
        assert_eq!((reply.status, reply.code()), (400, Some(code)), "{path}");
    }
    assert_eq!(stage.forwarded_count(), 0);
}

#[tokio::test]
async fn request_without_route_is_not_forwarded() {
    let routes = "[[routes]]\npath = \"/v1/*\"\nupstream = \"echo\"\nauth = \"none\"";
    let stage = Stage::with(Setup { routes, ..Setup::default() }).await;
    let reply = stage.get("/v2", &stage.issue_key()).await;
    assert_eq!((reply.status, reply.code()), (404, Some("no_route")));
    assert_eq!(stage.forwarded_count(), 0);
}

#[tokio::test]
async fn path_is_forwarded_byte_for_byte() {
    let stage = Stage::start().await;
    let key = stage.issue_key();
    for path in ["/v1/a%2Fb//c;d=e?q=%20&r=a/../b", "/v1/%C3%A9%20x", "/v1/a+b?", "/v1/a|b"] {
        stage.get(path, &key).await;
        assert_eq!(stage.last_request().path, path);
    }
}

#[tokio::test]
async fn preflight_carries_only_what_browsers_send() {
    let routes = "[[routes]]\npath = \"/v1/*\"\nupstream = \"echo\"\npreflight = true";
    let stage = Stage::with(Setup { routes, ..Setup::default() }).await;
    let request = "OPTIONS /v1/export?all=1 HTTP/1.1\r\nhost: api.test\r\norigin: https://a.test\r\n\
                   access-control-request-method: GET\r\naccess-control-request-headers: x-a\r\n\
                   access-control-request-private-network: true\r\naccept: */*\r\nuser-agent: browser\r\n";
    let more = "cookie: session=1\r\nx-http-method-override: POST\r\nx-api-key: 1\r\nx_method: POST\r\n\
                authorization: Bearer x\r\ncontent-type: application/json\r\n";
    assert_eq!(stage.send(format!("{request}{more}\r\n")).await.status, 200);
    let received = stage.last_request();
    assert_eq!(received.path, "/v1/export?all=1");
    for name in [
        "origin",
        "access-control-request-method",
        "access-control-request-headers",
        "access-control-request-private-network",
        "accept",
        "user-agent",
        "host",
        "x-request-id",
        "x-forwarded-for",
    ] {
        assert!(received.header(name).is_some(), "{name}");
    }
    for name in ["cookie", "x-http-method-override", "x-api-key", "x_method", "authorization", "content-type"]
    {
        assert_eq!(received.header(name), None, "{name}");
    }
    for twice in ["access-control-request-method: PUT\r\n", "origin: https://b.test\r\n"] {
        assert_eq!(
            stage.send(format!("{request}{twice}\r\n")).await.code(),
            Some("missing_credential"),
            "{twice}"
        );
    }
    assert_eq!(stage.forwarded_count(), 1);
}

#[tokio::test]
async fn only_cors_preflight_passes_where_route_allows() {
    let routes = "[[routes]]\npath = \"/*\"\nmethods = [\"PUT\"]\nupstream = \"echo\"\npreflight = true";
    let stage = Stage::with(Setup { routes, ..Setup::default() }).await;
    let options = "OPTIONS /v1 HTTP/1.1\r\nhost: a\r\nx-org-id: forged\r\nauthorization: Bearer x\r\n";
    let asks = "origin: https://a.test\r\naccess-control-request-method: PUT\r\n";
    assert_eq!(stage.send(format!("{options}{asks}\r\n")).await.status, 200);
    let received = stage.last_request();
    assert_eq!((received.header("x-org-id"), received.header("authorization")), (None, None));
    for (request, code) in [
        (format!("{options}\r\n"), "method_not_allowed"),
        (format!("{options}origin: https://a.test\r\n\r\n"), "method_not_allowed"),
        (format!("{options}{}\r\n", asks.replace("PUT", "DELETE")), "method_not_allowed"),
        (format!("{options}{asks}content-length: 1\r\n\r\nx"), "method_not_allowed"),
        (format!("PUT /v1 HTTP/1.1\r\nhost: a\r\n{asks}\r\n"), "missing_credential"),
    ] {
        assert_eq!(stage.send(request).await.code(), Some(code));
    }
    assert_eq!(stage.forwarded_count(), 1);
}
