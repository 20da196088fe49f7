//! The emulator over real sockets: REST to the letter of the contract, faults, and the end of everything.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::faults::{Answer, Target};
use super::*;

const SOON: Duration = Duration::from_secs(5);

/// An emulator on a port of its own, with an access token for it.
struct Api {
    emulator: Emulator,
    address: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<()>,
    access_token: String,
}

#[derive(Debug)]
struct Answered {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Api {
    async fn start(settings: Settings) -> Self {
        let emulator = Emulator::new(settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn({
            let (emulator, stop) = (emulator.clone(), stop.clone());
            async move { emulator.serve(listener, stop).await }
        });
        let mut api = Self {
            emulator,
            address,
            stop,
            served,
            access_token: String::new(),
        };
        api.access_token = api.fetch_token().await;
        api
    }

    async fn fetch_token(&self) -> String {
        let form = "grant_type=client_credentials&client_id=dev&client_secret=dev";
        let answer = self.send("POST", "/oauth/token", None, form).await.unwrap();
        assert_eq!(answer.status, 200);
        answer.body["access_token"].as_str().unwrap().to_owned()
    }

    /// Sends a request on a connection of its own.
    async fn send(
        &self,
        method: &str,
        path: &str,
        bearer: Option<&str>,
        body: &str,
    ) -> Result<Answered, hyper::Error> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost");
        if let Some(bearer) = bearer {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        let request = request
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .unwrap();
        let answer = read(client.send_request(request).await?).await;
        connection.abort();
        answer
    }

    async fn post(&self, path: &str, body: Value) -> Answered {
        self.send("POST", path, Some(&self.access_token), &body.to_string())
            .await
            .unwrap()
    }

    async fn list(&self, query: &str) -> Answered {
        self.send(
            "GET",
            &format!("/api/v1/tokens?{query}"),
            Some(&self.access_token),
            "",
        )
        .await
        .unwrap()
    }

    async fn validate(&self, token: &str) -> Answered {
        self.post("/api/v1/tokens:validate", json!({"token": token}))
            .await
    }

    fn key(&self) -> String {
        self.emulator
            .issue(Issue {
                organization_id: "org_1".to_owned(),
                ..Issue::default()
            })
            .key
    }

    fn fault(&self, spec: &str) {
        self.emulator.set_fault(spec.parse().unwrap());
    }
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<Answered, hyper::Error> {
    let (head, body) = response.into_parts();
    let bytes = body.collect().await?.to_bytes();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Ok(Answered {
        status: head.status.as_u16(),
        headers: head.headers,
        body,
    })
}

#[tokio::test]
async fn a_key_lives_from_creation_to_revocation_as_the_contract_shows() {
    let api = Api::start(Settings::default()).await;
    let made = api
        .post(
            "/api/v1/tokens",
            json!({"organization_id": "org_1", "userId": "usr_1", "custom_claims": {"team": "engineering"},
                "expiry": "2999-12-01T00:00:00Z", "description": "CI"}),
        )
        .await;
    assert_eq!(made.status, 201);
    assert_eq!(made.headers["content-type"], "application/json");
    let key = made.body["token"].as_str().unwrap();
    let info = &made.body["token_info"];
    let expected = json!({
        "token_id": made.body["token_id"], "organization_id": "org_1", "organization_external_id": "",
        "user_id": "usr_1", "user_external_id": "", "custom_claims": {"team": "engineering"},
        "expiry": "2999-12-01T00:00:00Z", "created_at": info["created_at"], "description": "CI",
        "token_suffix": key[key.len() - 4..], "email": "", "roles": [],
    });
    assert_eq!(*info, expected);
    assert!(info["created_at"].as_str().unwrap().ends_with('Z'));
    assert!(made.body["token_id"].as_str().unwrap().starts_with("apit_"));

    let valid = api.validate(key).await;
    assert_eq!(
        (valid.status, &valid.body),
        (200, &json!({"token_info": expected}))
    );

    let listed = api.list("organization_id=org_1&user_id=usr_1&page_size=2").await;
    let page = json!({"tokens": [expected], "total_count": 1, "next_page_token": "", "prev_page_token": ""});
    assert_eq!((listed.status, listed.body), (200, page));

    let changed = api
        .post(
            "/api/v1/tokens:update",
            json!({"token": key, "customClaims": {"a": "b"}}),
        )
        .await;
    assert_eq!(changed.status, 200);
    assert_eq!(changed.body["token_info"]["custom_claims"], json!({"a": "b"}));
    assert_eq!(changed.body["token_info"]["description"], "CI");

    for _ in 0..2 {
        let gone = api.post("/api/v1/tokens:invalidate", json!({"token": key})).await;
        assert_eq!((gone.status, gone.body), (200, json!({})));
    }
    let refused = api.validate(key).await;
    let info =
        json!({"@type": "type.googleapis.com/scalekit.v1.errdetails.ErrorInfo", "error_code": "NOT_FOUND"});
    let expected = json!({"code": 5, "message": "Invalid or expired token", "details": [info]});
    assert_eq!((refused.status, refused.body), (404, expected));
}

#[tokio::test]
async fn the_token_endpoint_speaks_the_language_of_oauth() {
    let api = Api::start(Settings {
        access_token_lifetime: Duration::from_secs(7),
        ..Settings::default()
    })
    .await;
    let good = "grant_type=client_credentials&client_id=dev&client_secret=dev";
    let answer = api.send("POST", "/oauth/token", None, good).await.unwrap();
    assert_eq!(
        (answer.status, &answer.body["token_type"]),
        (200, &json!("Bearer"))
    );
    assert_eq!(
        (&answer.body["expires_in"], &answer.body["scope"]),
        (&json!(7), &json!("openid"))
    );
    api.emulator.set_client_secret("new");
    let answer = api.send("POST", "/oauth/token", None, good).await.unwrap();
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (401, &json!("invalid_client"))
    );
    let answer = api
        .send("POST", "/oauth/token", None, "grant_type=password")
        .await
        .unwrap();
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (400, &json!("unsupported_grant_type"))
    );
    assert_eq!(api.emulator.counts().token_fetches, 4);
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_in_the_form_of_the_gateway() {
    let api = Api::start(Settings::default()).await;
    let token = Some(api.access_token.as_str());
    let not_found = json!({"code": 5, "message": "Not Found", "details": []});
    let large = "x".repeat(1024 * 1024 + 1);
    for (method, path, bearer, body, status, code) in [
        ("POST", "/api/v1/tokens:fetch", token, "{}", 404, 5),
        ("GET", "/", None, "", 404, 5),
        ("DELETE", "/api/v1/tokens", token, "", 501, 12),
        ("POST", "/api/v1/tokens:validate", None, "{}", 401, 16),
        ("POST", "/api/v1/tokens:validate", Some("stale"), "{}", 401, 16),
        ("POST", "/api/v1/tokens:validate", token, "{}", 400, 3),
        ("POST", "/api/v1/tokens:validate", token, "", 400, 3),
        ("POST", "/api/v1/tokens:validate", token, "\u{0}{[", 400, 3),
        (
            "POST",
            "/api/v1/tokens:validate",
            token,
            r#"{"token": 7}"#,
            400,
            3,
        ),
        (
            "POST",
            "/api/v1/tokens:validate",
            token,
            r#"{"token": "abc", "more": [1]}"#,
            404,
            5,
        ),
        (
            "POST",
            "/api/v1/tokens",
            token,
            r#"{"organization_id": "org_1", "expiry": "tomorrow"}"#,
            400,
            3,
        ),
        (
            "POST",
            "/api/v1/tokens",
            token,
            r#"{"organization_id": "org_1", "expiry": null}"#,
            201,
            0,
        ),
        (
            "POST",
            "/api/v1/tokens",
            token,
            r#"{"organization_id": "o", "custom_claims": {"a": 1}}"#,
            400,
            3,
        ),
        (
            "GET",
            "/api/v1/tokens?organization_id=org_1&page_size=ten",
            token,
            "",
            400,
            3,
        ),
        ("POST", "/api/v1/tokens:validate", token, &large, 413, 8),
    ] {
        let answer = api.send(method, path, bearer, body).await.unwrap();
        let label = format!("{method} {path} {body:.80}");
        assert_eq!(answer.status, status, "{label}");
        assert_eq!(answer.body["code"].as_i64().unwrap_or_default(), code, "{label}");
        match (status, code) {
            (404, 5) if answer.body["message"] == "Not Found" => {
                assert_eq!(answer.body, not_found, "{label}")
            }
            (501 | 413, _) | (201, _) => {}
            _ => assert!(answer.body["details"][0]["error_code"].is_string(), "{label}"),
        }
    }
}

#[tokio::test]
async fn a_client_may_be_cut_down_to_reading() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    api.emulator.set_permissions(&[Permission::Read]);
    assert_eq!(api.validate(&key).await.status, 200);
    for (path, body) in [
        ("/api/v1/tokens", json!({"organization_id": "org_1"})),
        ("/api/v1/tokens:update", json!({"token": key})),
        ("/api/v1/tokens:invalidate", json!({"token": key})),
    ] {
        let refused = api.post(path, body).await;
        assert_eq!(
            (refused.status, &refused.body["code"]),
            (403, &json!(7)),
            "{path}"
        );
    }
    api.emulator.set_permissions(&[]);
    assert_eq!(api.validate(&key).await.status, 403);
}

#[tokio::test]
async fn a_key_issued_directly_has_everything_it_was_given() {
    let api = Api::start(Settings::default()).await;
    let issued = api.emulator.issue(Issue {
        organization_id: "org_1".to_owned(),
        organization_external_id: "acme".to_owned(),
        user_id: "usr_1".to_owned(),
        user_external_id: "u-1".to_owned(),
        email: "a@example.com".to_owned(),
        custom_claims: BTreeMap::from([("crlf".to_owned(), "a\r\nb".to_owned())]),
        roles: vec!["admin".to_owned()],
        expiry: Some("2999-01-01T00:00:00.123456Z".parse().unwrap()),
        description: "d".to_owned(),
    });
    let info = &api.validate(&issued.key).await.body["token_info"];
    for (field, expected) in [
        ("organization_external_id", json!("acme")),
        ("user_external_id", json!("u-1")),
        ("email", json!("a@example.com")),
        ("custom_claims", json!({"crlf": "a\r\nb"})),
        ("roles", json!(["admin"])),
        ("expiry", json!("2999-01-01T00:00:00.123456Z")),
    ] {
        assert_eq!(info[field], expected);
    }
    assert!(!format!("{issued:?} {:?}", api.emulator).contains(&issued.key));
    assert_eq!(api.emulator.validations_of(&issued.token_id), 1);
    assert!(api.emulator.revoke(&issued.token_id) && !api.emulator.revoke("unknown"));
    assert_eq!(api.validate(&issued.key).await.status, 404);
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_served_on_the_same_port() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    let stream = TcpStream::connect(api.address).await.unwrap();
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://{}/api/v1/tokens:validate", api.address))
        .header("authorization", format!("Bearer {}", api.access_token))
        .body(Full::new(Bytes::from(json!({"token": key}).to_string())))
        .unwrap();
    let answer = read(client.send_request(request).await.unwrap()).await.unwrap();
    assert_eq!(
        (answer.status, &answer.body["token_info"]["organization_id"]),
        (200, &json!("org_1"))
    );
}

#[tokio::test]
async fn an_answer_can_be_replaced_or_spoilt() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    for (spec, status, content_type, retry_after, body) in [
        (
            "validate:status=429,retry-after=3",
            429,
            "application/json",
            Some("3"),
            Some(json!(8)),
        ),
        ("any:status=503", 503, "application/json", None, Some(json!(14))),
        (
            "validate:status=404",
            404,
            "application/json",
            None,
            Some(json!(5)),
        ),
        ("validate:content-type=text/html", 200, "text/html", None, None),
        (
            "validate:status=200,content-type=text/html,body=<p>a,b",
            200,
            "text/html",
            None,
            None,
        ),
        ("validate:garbage", 200, "application/json", None, None),
    ] {
        api.fault(spec);
        let answer = api.validate(&key).await;
        assert_eq!(
            (answer.status, &answer.headers["content-type"]),
            (status, &content_type.parse().unwrap()),
            "{spec}"
        );
        let seconds = answer
            .headers
            .get("retry-after")
            .map(|value| value.to_str().unwrap());
        assert_eq!(seconds, retry_after, "{spec}");
        match body {
            Some(code) => assert_eq!(answer.body["code"], code, "{spec}"),
            None if spec.contains("body=") => assert_eq!(answer.body, "<p>a,b"),
            None if spec.contains("garbage") => assert!(answer.body.is_string()),
            None => assert!(answer.body["token_info"].is_object(), "{spec}"),
        }
        api.emulator.clear_faults();
        assert_eq!(api.validate(&key).await.status, 200);
    }
    let raw = Answer {
        body: Some(Bytes::from_static(b"\xff\x00")),
        ..Answer::status(500)
    };
    api.emulator
        .set_fault(Fault::new(Target::Validate, Effect::Answer(raw)));
    assert_eq!(api.validate(&key).await.body, "\u{fffd}\0");
}

#[tokio::test]
async fn a_transfer_can_break_before_and_within_the_answer() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    for spec in ["validate:reset", "validate:truncated", "listener:refuse"] {
        api.fault(spec);
        let body = json!({"token": key}).to_string();
        let broken = api
            .send("POST", "/api/v1/tokens:validate", Some(&api.access_token), &body)
            .await;
        assert!(broken.is_err(), "{spec} {broken:?}");
        api.emulator.clear_faults();
        assert_eq!(api.validate(&key).await.status, 200);
    }
}

#[tokio::test]
async fn access_tokens_expire_on_command_and_new_ones_are_good() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    api.fault("validate:expire-access-tokens,times=1");
    let refused = api.validate(&key).await;
    assert_eq!((refused.status, &refused.body["code"]), (401, &json!(16)));
    let fresh = api.fetch_token().await;
    let body = json!({"token": key}).to_string();
    let answer = api
        .send("POST", "/api/v1/tokens:validate", Some(&fresh), &body)
        .await
        .unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_key_is_revoked_after_its_nth_validation() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    api.fault("validate:revoke-after=2");
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(api.validate(&key).await.status);
    }
    assert_eq!(statuses, [200, 200, 404]);
}

#[tokio::test]
async fn latency_comes_before_the_decision_or_after_it() {
    let api = Api::start(Settings::default()).await;
    for (spec, expected) in [
        ("validate:latency=100ms", 404),
        ("validate:latency-after=100ms", 200),
    ] {
        let key = api.key();
        api.fault(spec);
        let started = Instant::now();
        let begun = api.emulator.counts().validations + 1;
        let (answer, ()) = tokio::join!(api.validate(&key), async {
            api.emulator.validations_begun(begun).await;
            while spec.contains("after") && api.emulator.counts().validations_decided < begun {
                tokio::task::yield_now().await;
            }
            api.emulator.revoke(&key);
        });
        assert_eq!(answer.status, expected, "{spec}");
        assert!(started.elapsed() >= Duration::from_millis(100), "{spec}");
        api.emulator.clear_faults();
        api.validate(&key).await; // so that begun and decided agree again
    }
}

#[tokio::test]
async fn what_hangs_goes_on_when_the_faults_are_cleared() {
    let api = Api::start(Settings::default()).await;
    for (spec, expected) in [("validate:hang", 404), ("validate:hang-after", 200)] {
        let key = api.key();
        api.fault(spec);
        let begun = api.emulator.counts().validations + 1;
        let (answer, ()) = tokio::join!(api.validate(&key), async {
            api.emulator.validations_begun(begun).await;
            while spec.contains("after") && api.emulator.counts().validations_decided < begun {
                tokio::task::yield_now().await;
            }
            assert_eq!(api.emulator.counts().validations_open, 1);
            tokio::time::sleep(Duration::from_millis(20)).await;
            api.emulator.revoke(&key);
            api.emulator.clear_faults();
        });
        assert_eq!(answer.status, expected, "{spec}");
    }
    let counts = api.emulator.counts();
    assert_eq!((counts.validations_open, counts.validations_open_max), (0, 1));
}

#[tokio::test]
async fn stopping_ends_every_connection_and_every_call() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    api.fault("validate:hang");
    let _idle = TcpStream::connect(api.address).await.unwrap();
    let body = json!({"token": key}).to_string();
    let (answer, ()) = tokio::join!(
        api.send("POST", "/api/v1/tokens:validate", Some(&api.access_token), &body),
        async {
            api.emulator.validations_begun(1).await;
            api.stop.cancel();
        }
    );
    assert!(answer.is_err());
    timeout(SOON, api.served).await.unwrap().unwrap();
    assert!(TcpStream::connect(api.address).await.is_err());
}

#[tokio::test]
async fn closing_connections_leaves_the_listener() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    api.fault("validate:hang");
    let body = json!({"token": key}).to_string();
    let (answer, ()) = tokio::join!(
        api.send("POST", "/api/v1/tokens:validate", Some(&api.access_token), &body),
        async {
            api.emulator.validations_begun(1).await;
            api.emulator.close_connections();
        }
    );
    assert!(answer.is_err());
    api.emulator.clear_faults();
    assert_eq!(api.validate(&key).await.status, 200);
}
