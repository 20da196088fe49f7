//! REST: exact bodies, errors, and shutdown.

use super::*;

#[tokio::test]
async fn key_lifecycle_over_rest() {
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
    assert_eq!((valid.status, &valid.body), (200, &json!({"token_info": expected})));

    let listed = api.list("organization_id=org_1&user_id=usr_1&page_size=2").await;
    let page = json!({"tokens": [expected], "total_count": 1, "next_page_token": "", "prev_page_token": ""});
    assert_eq!((listed.status, listed.body), (200, page));

    let changed = api.post("/api/v1/tokens:update", json!({"token": key, "customClaims": {"a": "b"}})).await;
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
async fn token_endpoint_follows_oauth() {
    let api =
        Api::start(Settings { access_token_lifetime: Duration::from_secs(7), ..Settings::default() }).await;
    let good = "grant_type=client_credentials&client_id=dev&client_secret=dev";
    let answer = api.send("POST", "/oauth/token", None, good).await.unwrap();
    assert_eq!((answer.status, &answer.body["token_type"]), (200, &json!("Bearer")));
    assert_eq!((&answer.body["expires_in"], &answer.body["scope"]), (&json!(7), &json!("openid")));
    api.emulator.set_client_secret("new");
    let answer = api.send("POST", "/oauth/token", None, good).await.unwrap();
    assert_eq!((answer.status, &answer.body["error"]), (401, &json!("invalid_client")));
    let answer = api.send("POST", "/oauth/token", None, "grant_type=password").await.unwrap();
    assert_eq!((answer.status, &answer.body["error"]), (400, &json!("unsupported_grant_type")));
    assert_eq!(api.emulator.counts().token_fetches, 4);
}

#[tokio::test]
async fn invalid_requests_get_gateway_errors() {
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
        ("POST", "/api/v1/tokens:validate", token, r#"{"token": 7}"#, 400, 3),
        ("POST", "/api/v1/tokens:validate", token, r#"{"token": "abc", "more": [1]}"#, 404, 5),
        ("POST", "/api/v1/tokens", token, r#"{"organization_id": "org_1", "expiry": "tomorrow"}"#, 400, 3),
        ("POST", "/api/v1/tokens", token, r#"{"organization_id": "org_1", "expiry": null}"#, 201, 0),
        ("POST", "/api/v1/tokens", token, r#"{"organization_id": "o", "custom_claims": {"a": 1}}"#, 400, 3),
        ("GET", "/api/v1/tokens?organization_id=org_1&page_size=ten", token, "", 400, 3),
        ("GET", "/api/v1/tokens?organization_id=org_1&page_size=31", token, "", 400, 3),
        ("GET", "/api/v1/tokens?organization_id=org_1&page_size=-1", token, "", 400, 3),
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
async fn client_can_be_limited_to_reading() {
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
        assert_eq!((refused.status, &refused.body["code"]), (403, &json!(7)), "{path}");
    }
    api.emulator.set_permissions(&[]);
    assert_eq!(api.validate(&key).await.status, 403);
}

#[tokio::test]
async fn directly_issued_key_keeps_all_properties() {
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
async fn http2_prior_knowledge_works_on_same_port() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    let stream = TcpStream::connect(api.address).await.unwrap();
    let (mut client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://{}/api/v1/tokens:validate", api.address))
        .header("authorization", format!("Bearer {}", api.access_token))
        .body(Full::new(Bytes::from(json!({"token": key}).to_string())))
        .unwrap();
    let answer = read(client.send_request(request).await.unwrap()).await.unwrap();
    assert_eq!((answer.status, &answer.body["token_info"]["organization_id"]), (200, &json!("org_1")));
}

#[tokio::test]
async fn stop_ends_all_connections_and_calls() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    api.fault("validate:hang");
    let _idle = TcpStream::connect(api.address).await.unwrap();
    let body = json!({"token": key}).to_string();
    let (answer, ()) =
        tokio::join!(api.send("POST", "/api/v1/tokens:validate", Some(&api.access_token), &body), async {
            api.emulator.validations_begun(1).await;
            api.stop.cancel();
        });
    assert!(answer.is_err());
    timeout(SOON, api.served).await.unwrap().unwrap();
    assert!(TcpStream::connect(api.address).await.is_err());
}

#[tokio::test]
async fn closing_connections_keeps_listener_open() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    api.fault("validate:hang");
    let body = json!({"token": key}).to_string();
    let (answer, ()) =
        tokio::join!(api.send("POST", "/api/v1/tokens:validate", Some(&api.access_token), &body), async {
            api.emulator.validations_begun(1).await;
            api.emulator.close_connections();
        });
    assert!(answer.is_err());
    api.emulator.clear_faults();
    assert_eq!(api.validate(&key).await.status, 200);
}

#[tokio::test]
async fn readiness_needs_no_token_and_heeds_no_fault() {
    let api = Api::start(Settings::default()).await;
    api.fault("any:status=503");
    let answer = api.send("GET", "/readyz", None, "").await.unwrap();
    assert_eq!((answer.status, answer.body), (200, json!("ready\n")));
    assert_eq!(api.list("organization_id=org_1").await.status, 503);
}
