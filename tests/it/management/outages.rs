//! Scalekit unavailable, slow, malformed or refusing: the response names the cause and what may have been done.

use std::time::Duration;

use keyward_emulator::access::Permission;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use serde_json::json;
use tokio::time::Instant;

use super::{ApiRequest, KEYS, ManagementStage, id, key, ordinary_body};
use crate::support::Setup;

/// Every operation, on this key.
fn operations(id: &str) -> [(&'static str, ApiRequest); 6] {
    let one = format!("{KEYS}/{id}");
    [
        ("create", ApiRequest::create(&ordinary_body()).with_idempotency_key("one")),
        ("list", ApiRequest::new("GET", KEYS)),
        ("show", ApiRequest::new("GET", &*one)),
        ("update", ApiRequest::new("PATCH", &*one).json(&json!({"description": "new"}))),
        ("revoke", ApiRequest::new("DELETE", &*one)),
        ("rotate", ApiRequest::new("POST", format!("{one}/rotate"))),
    ]
}

#[tokio::test]
async fn missing_scalekit_permission_is_named() {
    use Permission::{Read, Rotate, Write};
    let management = ManagementStage::start().await;
    let made = management.create(&ordinary_body()).await;
    for (given, missing) in [
        (&[Read, Rotate][..], &[("create", "write"), ("update", "write"), ("rotate", "write")][..]),
        (&[Read, Write], &[("revoke", "rotate")]),
        (
            &[Write, Rotate],
            &[("list", "read"), ("show", "read"), ("update", "read"), ("revoke", "read"), ("rotate", "read")],
        ),
    ] {
        management.stage.emulator.set_permissions(given);
        for (operation, permission) in missing {
            let (_, ask) = operations(id(&made)).into_iter().find(|(name, _)| name == operation).unwrap();
            let reply = management.send(&ask).await;
            assert_eq!((reply.status, reply.code()), (502, Some("scalekit_permission")), "{operation}");
            assert!(
                reply.text().contains(&format!("api_credentials:{permission}")),
                "{operation}: {}",
                reply.text()
            );
        }
    }
    // A rotation that must not revoke has still created a key.
    management.stage.emulator.set_permissions(&[Read, Write]);
    let next = management.send(&operations(id(&made))[5].1).await.json();
    assert_eq!(next["replaced_token_revoked"], false);
    assert!(next["warning"].as_str().unwrap().contains("api_credentials:rotate"), "{next}");
    assert_eq!(
        (management.proxied_status(key(&made)).await, management.proxied_status(key(&next)).await),
        (200, 200)
    );
}

#[tokio::test]
async fn scalekit_outage_is_503_and_nothing_is_begun() {
    let management = ManagementStage::start().await;
    let made = management.create(&ordinary_body()).await;
    management.stage.emulator.set_fault("listener:refuse".parse().unwrap());
    management.stage.emulator.close_connections();
    for (operation, ask) in operations(id(&made)) {
        let reply = management.send(&ask).await;
        assert_eq!(reply.status, 503, "{operation}: {}", reply.text());
        // A connection that is accepted and closed may have delivered the request.
        assert!(matches!(reply.code(), Some("scalekit_unavailable" | "outcome_unknown")), "{operation}");
        assert!(reply.header("retry-after").is_some());
    }
    management.stage.emulator.clear_faults();
    assert_eq!(management.stage.emulator.counts().creations, 1);
    let ended = ApiRequest::new("DELETE", format!("{KEYS}/{}", id(&made)));
    assert_eq!(management.send(&ended).await.status, 204);
}

#[tokio::test]
async fn throttling_and_bad_credentials_send_retry_after() {
    let management = ManagementStage::start().await;
    let throttled = Answer { retry_after: Some(7), ..Answer::status(429) };
    management.stage.emulator.set_fault(Fault::new(Target::Any, Effect::Answer(throttled)));
    for (operation, ask) in operations("apit_1") {
        let reply = management.send(&ask).await;
        assert_eq!((reply.status, reply.code()), (503, Some("scalekit_unavailable")), "{operation}");
        assert_eq!(reply.header("retry-after"), Some("7"), "{operation}");
    }
    management.stage.emulator.clear_faults();
    management.stage.emulator.expire_access_tokens();
    management.stage.emulator.set_client_secret("another");
    let reply = management.send(&ApiRequest::create(&ordinary_body())).await;
    assert_eq!((reply.status, reply.code()), (503, Some("scalekit_unavailable")));
    assert!(reply.text().contains("SCALEKIT_CLIENT_SECRET"), "{}", reply.text());
}

#[tokio::test]
async fn revocation_with_lost_response_is_looked_up() {
    let management = ManagementStage::start().await;
    for effect in [Effect::Truncated, Effect::Reset] {
        let made = management.create(&ordinary_body()).await;
        let done = effect == Effect::Truncated;
        // A response truncated before its head is a reset; two bytes have no readable half.
        management.stage.emulator.set_fault(Fault::new(Target::Invalidate, effect).times(1));
        let revoke = ApiRequest::new("DELETE", format!("{KEYS}/{}", id(&made)));
        let reply = management.send(&revoke).await;
        match done {
            true => assert_eq!(reply.status, 204, "it is revoked: {}", reply.text()),
            false => assert_eq!((reply.status, reply.code()), (503, Some("outcome_unknown"))),
        }
        assert_eq!(management.proxied_status(key(&made)).await, if done { 401 } else { 200 });
        assert_eq!(management.send(&revoke).await.status, 204);
        assert_eq!(management.proxied_status(key(&made)).await, 401);
    }
}

#[tokio::test]
async fn update_with_lost_response_can_be_repeated() {
    let management = ManagementStage::start().await;
    let made = management.create(&ordinary_body()).await;
    management.stage.emulator.set_fault(Fault::new(Target::Update, Effect::Truncated).times(1));
    let body = json!({"custom_claims": {"team": "b"}});
    assert_eq!(management.patch(id(&made), &body).await.code(), Some("outcome_unknown"));
    assert_eq!(management.patch(id(&made), &body).await.json()["custom_claims"], json!({"team": "b"}));
}

/// Keyward's limit for a call is ten seconds. The operations run concurrently, so that all take ten seconds.
#[tokio::test]
async fn unresponsive_scalekit_is_given_up_within_ten_seconds() {
    let long = Duration::from_secs(20);
    let before = async {
        let management = ManagementStage::start().await;
        management.stage.emulator.set_fault(Fault::new(Target::Create, Effect::Hang));
        let mut client = management.connect().await;
        client.send(ApiRequest::create(&ordinary_body()).with_idempotency_key("one").to_bytes()).await;
        let reply = client.read_reply_within(long).await;
        // Nothing was created; whether it will be is unknown.
        assert_eq!(reply.code(), Some("outcome_unknown"), "{}", reply.text());
        assert!(reply.json().get("possible_token_ids").is_none());
        management.stage.emulator.clear_faults();
        assert_eq!(
            management.code(&ApiRequest::create(&ordinary_body()).with_idempotency_key("one")).await.0,
            409
        );
    };
    let after = async {
        let management = ManagementStage::start().await;
        management.stage.emulator.set_fault(Fault::new(Target::Create, Effect::HangAfter));
        let mut client = management.connect().await;
        let began = Instant::now();
        client.send(ApiRequest::create(&ordinary_body()).with_idempotency_key("one").to_bytes()).await;
        let reply = client.read_reply_within(long).await;
        assert!(began.elapsed() < Duration::from_secs(12));
        assert_eq!(reply.code(), Some("outcome_unknown"), "{}", reply.text());
        let suspect = reply.json()["possible_token_ids"][0].as_str().unwrap().to_owned();
        assert_eq!(
            management.send(&ApiRequest::new("GET", KEYS)).await.json()["tokens"][0]["token_id"],
            *suspect
        );
        assert_eq!(
            management.code(&ApiRequest::create(&ordinary_body()).with_idempotency_key("one")).await.0,
            409
        );
    };
    tokio::join!(before, after);
}

#[tokio::test]
async fn scalekit_calls_are_bounded_and_waiting_times_out() {
    let management =
        std::sync::Arc::new(ManagementStage::of("listen = \"127.0.0.1:0\"", Setup::default()).await);
    management.stage.emulator.set_fault(Fault::new(Target::List, Effect::Hang));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let management = std::sync::Arc::clone(&management);
        asking.spawn(async move { management.send(&ApiRequest::new("GET", KEYS)).await });
    }
    for _ in 0..8 {
        let reply = asking.join_next().await.unwrap().unwrap();
        assert_eq!((reply.status, reply.code()), (503, Some("overloaded")));
        assert!(reply.header("retry-after").is_some());
    }
    assert_eq!(management.stage.emulator.counts().lists, 32);
    management.stage.emulator.clear_faults();
    while let Some(reply) = asking.join_next().await {
        assert_eq!(reply.unwrap().status, 200);
    }
}

#[tokio::test]
async fn hostile_scalekit_responses_are_escaped() {
    let management = ManagementStage::start().await;
    let hostile = "x\r\nset-cookie: a=b\u{1b}[31m\u{0}\u{202e}<script>";
    let info = json!({
        "token_id": "apit_1\r\nx: y", "organization_id": hostile, "description": hostile, "roles": [hostile], "email": hostile,
        "custom_claims": {hostile: hostile, "number": 1.5, "deep": [[{"a": null}]]},
        "token_suffix": null, "expiry": null, "unknown": {"a": 1},
    });
    let answer = |status: u16, body: &serde_json::Value| {
        Effect::Answer(Answer { body: Some(body.to_string().into()), ..Answer::status(status) })
    };
    let created = json!({"token": "made-up-key", "token_id": "apit_1", "token_info": info});
    management.stage.emulator.set_fault(Fault::new(Target::Create, answer(201, &created)).times(1));
    let mut client = management.connect().await;
    client.send(ApiRequest::create(&ordinary_body()).to_bytes()).await;
    let reply = client.read_reply().await;
    assert_eq!(reply.status, 201);
    assert!(
        reply.header("location").is_none()
            && reply.header("set-cookie").is_none()
            && reply.header("x").is_none()
    );
    assert_eq!(reply.json()["token_info"]["description"], hostile);
    assert_eq!(reply.json()["token_info"]["custom_claims"]["deep"], "[[{\"a\":null}]]");
    let said = json!({"code": 3, "message": format!("{hostile}{}", "y".repeat(10_000)), "details": []});
    management.stage.emulator.set_fault(Fault::new(Target::Create, answer(400, &said)).times(1));
    let reply = management.send(&ApiRequest::create(&ordinary_body())).await;
    assert_eq!(reply.status, 400);
    let detail = reply.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.len() < 500 && !detail.contains(|char: char| char.is_control()), "{detail}");
    // A response about another key does not apply to this one.
    let (_, own) = management.issue("org_1");
    let other = json!({"token_info": {"token_id": "apit_other", "organization_id": "org_1"}});
    management.stage.emulator.set_fault(Fault::new(Target::Validate, answer(200, &other)));
    for (operation, ask) in operations(&own).into_iter().skip(2) {
        assert_eq!(management.code(&ask).await, (503, "scalekit_unavailable".to_owned()), "{operation}");
    }
    // A malformed response is none.
    for body in [
        "",
        "null",
        "[]",
        "{\"token_info\":null}",
        "{\"token_info\":{}}",
        "{\"token_info\":{\"token_id\":1}}",
        "junk",
    ] {
        let answer = Answer { body: Some(body.into()), ..Answer::status(200) };
        management.stage.emulator.clear_faults();
        management.stage.emulator.set_fault(Fault::new(Target::Any, Effect::Answer(answer)));
        for (operation, ask) in operations(&own) {
            let reply = management.send(&ask).await;
            let is_empty_list = operation == "list" && body.starts_with('{');
            let is_replay = reply.status == 409 && reply.code() == Some("outcome_unknown");
            assert!(
                reply.status == 503 || is_empty_list || is_replay,
                "{operation} {body}: {} {}",
                reply.status,
                reply.text()
            );
        }
    }
}
