//! Malformed requests are refused with advice, without effect, and without repeating their content.

use serde_json::json;

use super::{ApiRequest, KEYS, ManagementStage, id, ordinary_body};

/// Status, code, and a part of the detail.
async fn refused(management: &ManagementStage, ask: ApiRequest, status: u16, code: &str, part: &str) {
    let reply = management.send(&ask).await;
    let context = format!("{} -> {} {}", ask.to_bytes(), reply.status, reply.text());
    assert_eq!((reply.status, reply.code()), (status, Some(code)), "{context}");
    assert!(reply.json()["detail"].as_str().unwrap().contains(part), "{context}");
}

#[tokio::test]
async fn invalid_bodies_create_no_key() {
    let management = ManagementStage::start().await;
    let long = "ä".repeat(257);
    let many: serde_json::Map<_, _> = (0..21).map(|number| (format!("claim{number}"), json!("x"))).collect();
    for (body, part) in [
        (json!({"claims": {}}), "unknown field `claims`"),
        (json!({"organization_id": "org_2"}), "unknown field `organization_id`"),
        (json!({"user_id": 1}), "expected a string"),
        (json!({"custom_claims": []}), "expected an object"),
        (json!({"custom_claims": {"a": 1}}), "expected a string"),
        (json!({"custom_claims": {"a": null}}), "expected a string"),
        (json!({"custom_claims": {"a": ""}}), "\"a\" has no value"),
        (json!({"custom_claims": {"": "a"}}), "a name has 0 characters"),
        (json!({"custom_claims": {"a": long}}), "a value of 257 characters"),
        (json!({"custom_claims": many}), "21 are too many"),
        (json!({"expiry": ""}), "such as \"2027-01-01T00:00:00Z\""),
        (json!({"user_id": ""}), "user_id: is empty"),
        (json!({"user_id": " "}), "user_id: should be an id"),
        (json!({"user_id": "usr\u{0}1"}), "user_id: should be an id"),
        (json!({"user_id": "usr_1\r\nx-org-id: org_2"}), "user_id: should be an id"),
        (json!({"user_id": "üser"}), "user_id: should be an id"),
        (json!({"user_id": "u".repeat(65)}), "user_id: should be an id"),
        (json!({"expiry": "tomorrow"}), "such as \"2027-01-01T00:00:00Z\""),
        (json!({"expiry": 1}), "expected a string"),
        (json!({"expiry": "2020-01-01T00:00:00Z"}), "has passed"),
        (json!({"expiry": "99999-01-01T00:00:00Z"}), "such as"),
        (json!({"description": "x".repeat(256)}), "has 256 characters"),
        (json!([]), "a JSON object"),
        (json!(["usr_1", {}]), "a JSON object"),
        (json!(null), "a JSON object"),
    ] {
        refused(&management, ApiRequest::create(&body), 400, "invalid_request", part).await;
    }
    for text in [
        "",
        "{",
        "{}x",
        "{\"user_id\":\"a\",\"user_id\":\"b\"}",
        "{\"custom_claims\":{\"a\":\"1\",\"a\":\"2\"}}",
        "\u{feff}{}",
    ] {
        let ask = ApiRequest::new("POST", KEYS).header("content-type", "application/json").body(text);
        refused(&management, ask, 400, "invalid_request", "").await;
    }
    assert_eq!(management.stage.emulator.counts().creations, 0);
    // Empty and null mean absent.
    let made = management
        .create(&json!({"user_id": null, "custom_claims": null, "expiry": null, "description": ""}))
        .await;
    let plain = management.create(&json!({})).await;
    for name in ["user_id", "custom_claims", "expiry", "description"] {
        assert_eq!(made["token_info"][name], plain["token_info"][name]);
    }
    for (body, part) in [
        (json!({"custom_claims": {"a": 1}}), "expected a string"),
        (json!({"custom_claims": {"a": ""}}), "has no value"),
        (json!({"expiry": "2099-01-01T00:00:00Z"}), "unknown field `expiry`"),
        (json!({}), "Nothing to change"),
    ] {
        let ask = ApiRequest::new("PATCH", format!("{KEYS}/{}", id(&made))).json(&body);
        refused(&management, ask, 400, "invalid_request", part).await;
    }
    for body in
        [json!({"keep_old": "yes"}), json!({"keep_old": null}), json!([true]), json!({"overlap": "1h"})]
    {
        let ask = ApiRequest::new("POST", format!("{KEYS}/{}/rotate", id(&made))).json(&body);
        refused(&management, ask, 400, "invalid_request", "").await;
    }
    assert_eq!(management.count_keys().await, 2);
}

#[tokio::test]
async fn management_request_syntax_is_checked() {
    let management = ManagementStage::start().await;
    let made = management.create(&ordinary_body()).await;
    let one = format!("{KEYS}/{}", id(&made));
    let body = ordinary_body().to_string();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "", "application/json2"] {
        let ask = ApiRequest::new("POST", KEYS).header("content-type", kind).body(&*body);
        refused(&management, ask, 415, "unsupported_media_type", "application/json").await;
    }
    refused(&management, ApiRequest::new("POST", KEYS).body(&*body), 415, "unsupported_media_type", "").await;
    let upper =
        ApiRequest::new("POST", KEYS).header("content-type", "Application/JSON; charset=utf-8").body(&*body);
    assert_eq!(management.send(&upper).await.status, 201);
    for query in [
        "page_size=0",
        "page_size=31",
        "page_size=-1",
        "page_size=x",
        "page_size=999",
        "page_size=1&page_size=2",
        "user_id=a&user_id=b",
        "organization_id=org_2",
        "x",
        "page_token=junk",
    ] {
        refused(&management, ApiRequest::new("GET", format!("{KEYS}?{query}")), 400, "invalid_request", "")
            .await;
    }
    refused(&management, ApiRequest::new("GET", format!("{one}?x=1")), 400, "invalid_request", "no query")
        .await;
    for (method, path, allowed) in [
        ("PUT", KEYS, "GET, POST"),
        ("DELETE", KEYS, "GET, POST"),
        ("HEAD", KEYS, "GET, POST"),
        ("POST", &one, "GET, PATCH, DELETE"),
        ("GET", &format!("{one}/rotate"), "POST"),
        ("POST", "/openapi.json", "GET"),
    ] {
        let mut client = management.connect().await;
        client.send(ApiRequest::new(method, path).to_bytes()).await;
        let reply = client.read_head().await;
        assert_eq!((reply.status, reply.header("allow")), (405, Some(allowed)), "{method} {path}");
    }
    let named = |name: &str| ApiRequest::create(&ordinary_body()).with_idempotency_key(name);
    for ask in [
        named("a").with_idempotency_key("a"),
        named("a").with_idempotency_key("b"),
        named(""),
        named(&"x".repeat(256)),
        named("ä"),
    ] {
        refused(&management, ask, 400, "invalid_request", "Idempotency-Key").await;
    }
    assert_eq!(management.send(&named(&"x".repeat(255))).await.status, 201);
    assert_eq!(management.count_keys().await, 3);
}

#[tokio::test]
async fn path_variants_do_not_reach_other_keys() {
    let management = ManagementStage::start().await;
    let (_, theirs) = management.issue("org_2");
    for (path, status) in [
        ("/", 404),
        ("/v1", 404),
        ("/v1/organizations/org_1", 404),
        ("/v1/organizations/org_1/keys/", 404),
        ("/v1/organizations/org_1/keys/apit_1/other", 404),
        ("/v1/organizations/org_1/keys/apit_1/rotate/", 404),
        ("//v1/organizations/org_1/keys", 404),
        ("/v1//organizations/org_1/keys", 404),
        ("/V1/organizations/org_1/keys", 404),
        ("/v1/organizations//keys", 400),
        ("/v1/organizations/org%5f1/keys", 400),
        ("/v1/organizations/org_1%2f..%2forg_2/keys", 400),
        ("/v1/organizations/org_1;x/keys", 400),
        ("/v1/organizations/%00/keys", 400),
        ("/v1/organizations/./keys", 400),
        ("/v1/organizations/org_1/../org_2/keys", 404),
        ("/v1/organizations/org_1/keys/%61pit_1", 404),
        ("/v1/organizations/org_1/keys/..", 404),
        ("/v1/organizations/org_1/keys/apit_1%2f..", 404),
        ("/api/v1/tokens", 404),
        ("/openapi.json/", 404),
        ("/metrics", 404),
    ] {
        let reply = management.send(&ApiRequest::new("GET", path)).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
    }
    for path in [
        format!("/v1/organizations/org_1/../org_2/keys/{theirs}"),
        format!("/v1/organizations/org_1/keys/../../org_2/keys/{theirs}"),
        format!("/v1/organizations/org_1%2f..%2forg_2/keys/{theirs}"),
    ] {
        assert!(matches!(management.send(&ApiRequest::new("DELETE", path)).await.status, 400 | 404));
    }
    assert_eq!(management.stage.emulator.counts().invalidations, 0);
    // A list needs an organization id in Scalekit's form.
    let other = ApiRequest::new("GET", "/v1/organizations/acme/keys");
    refused(&management, other, 400, "invalid_request", "begin with org_").await;
}

#[tokio::test]
async fn misplaced_key_is_neither_repeated_nor_sent() {
    let management = ManagementStage::start().await;
    let (key, _) = management.issue("org_1");
    let json = |body: serde_json::Value| ApiRequest::create(&body);
    let asked = management.stage.emulator.counts().validations;
    for ask in [
        ApiRequest::new("GET", format!("{KEYS}/{key}")),
        ApiRequest::new("DELETE", format!("{KEYS}/{key}")),
        ApiRequest::new("PATCH", format!("{KEYS}/{key}")).json(&json!({"description": "x"})),
        ApiRequest::new("POST", format!("{KEYS}/{key}/rotate")),
        ApiRequest::new("GET", format!("{KEYS}/{key}/x")),
        ApiRequest::new("GET", format!("/v1/organizations/{key}/keys")),
        ApiRequest::new("GET", format!("{KEYS}?page_size={key}")),
        ApiRequest::new("GET", format!("{KEYS}?{key}")),
        json(json!({&*key: "x"})),
        json(json!({"custom_claims": key})),
        json(json!({"custom_claims": {&*key: "x"}})),
        json(json!({"expiry": key})),
        ApiRequest::new("PATCH", format!("{KEYS}/apit_1")).json(&json!({"custom_claims": key})),
        ApiRequest::new("POST", format!("{KEYS}/apit_1/rotate")).json(&json!({"keep_old": key})),
    ] {
        let reply = management.send(&ask).await;
        assert!(matches!(reply.status, 400 | 404), "{}", ask.to_bytes());
        let said = format!("{:?}{}", reply.headers, reply.text());
        assert!(!said.contains(&key) && !said.contains(&key[..31]), "{} -> {said}", ask.to_bytes());
    }
    assert_eq!(management.stage.emulator.counts().validations, asked, "no key was asked about");
}

#[tokio::test]
async fn unknown_organization_or_user_is_404_with_detail() {
    let management = ManagementStage::only(&["org_1/usr_1:admin", "org_2/usr_2"]).await;
    for (path, user) in [("/v1/organizations/org_3/keys", "usr_1"), (KEYS, "usr_2"), (KEYS, "usr_3")] {
        let ask = ApiRequest::new("POST", path).json(&json!({"user_id": user}));
        refused(&management, ask, 404, "not_found", "Scalekit refuses the call").await;
    }
    refused(
        &management,
        ApiRequest::new("GET", "/v1/organizations/org_3/keys"),
        404,
        "not_found",
        "Scalekit",
    )
    .await;
    assert_eq!(management.create(&ordinary_body()).await["token_info"]["roles"], json!(["admin"]));
}
