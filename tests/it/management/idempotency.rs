//! `Idempotency-Key`: one key for each value, even if the first response is lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{ApiRequest, KEYS, ManagementStage, id, key, ordinary_body};
use crate::support::wait_until;

fn named(name: &str) -> ApiRequest {
    ApiRequest::create(&ordinary_body()).with_idempotency_key(name)
}

#[tokio::test]
async fn repeated_creation_returns_id_but_never_key() {
    let management = ManagementStage::start().await;
    let made = management.send(&named("one")).await.json();
    let reply = management.send(&named("one")).await;
    assert_eq!((reply.status, reply.code()), (409, Some("already_created")));
    assert_eq!(reply.json()["token_id"], made["token_id"]);
    assert!(!format!("{:?}{}", reply.headers, reply.text()).contains(key(&made)));
    let other = ApiRequest::create(&json!({"description": "other"})).with_idempotency_key("one");
    assert_eq!(management.code(&other).await, (422, "idempotency_key_reused".to_owned()));
    // Requests of another organization, with another value, or without the header, are separate.
    let theirs = ApiRequest::new("POST", "/v1/organizations/org_2/keys")
        .json(&ordinary_body())
        .with_idempotency_key("one");
    for ask in
        [theirs, named("two"), ApiRequest::create(&ordinary_body()), ApiRequest::create(&ordinary_body())]
    {
        assert_eq!(management.send(&ask).await.status, 201);
    }
    assert_eq!(management.count_keys().await, 4);
}

#[tokio::test]
async fn repeated_rotation_is_recognized_without_old_key() {
    let management = ManagementStage::start().await;
    let made = management.create(&ordinary_body()).await;
    let rotate = ApiRequest::new("POST", format!("{KEYS}/{}/rotate", id(&made))).with_idempotency_key("one");
    let next = management.send(&rotate).await.json();
    let reply = management.send(&rotate).await;
    assert_eq!((reply.status, reply.code()), (409, Some("already_created")), "{}", reply.text());
    assert_eq!(reply.json()["token_id"], next["token_id"]);
    assert!(!reply.text().contains(key(&next)));
    let other = rotate.clone().json(&json!({"keep_old": true}));
    assert_eq!(management.send(&other).await.status, 422);
    assert_eq!(
        management.code(&ApiRequest::new("POST", format!("{KEYS}/{}/rotate", id(&made)))).await.0,
        404
    );
    assert_eq!(management.count_keys().await, 1);
}

#[tokio::test]
async fn twenty_concurrent_creations_create_one_key() {
    let management = Arc::new(ManagementStage::start().await);
    management.stage.emulator.set_fault(Fault::new(Target::Create, Effect::Hang));
    let mut asking = JoinSet::new();
    for _ in 0..20 {
        let management = Arc::clone(&management);
        asking.spawn(async move { management.send(&named("one")).await });
    }
    let mut codes = BTreeMap::new();
    for _ in 0..19 {
        let reply = asking.join_next().await.unwrap().unwrap();
        *codes.entry((reply.status, reply.code().unwrap().to_owned())).or_insert(0) += 1;
    }
    assert_eq!(codes, [((409, "request_in_progress".to_owned()), 19)].into());
    management.stage.emulator.clear_faults();
    assert_eq!(asking.join_next().await.unwrap().unwrap().status, 201);
    assert_eq!((management.stage.emulator.counts().creations, management.count_keys().await), (1, 1));
}

#[tokio::test]
async fn creation_can_be_retried_after_definite_refusal() {
    let management = ManagementStage::only(&["org_1/usr_1"]).await;
    let emulator = &management.stage.emulator;
    let unknown_user = ApiRequest::create(&json!({"user_id": "usr_9"})).with_idempotency_key("one");
    assert_eq!(management.send(&unknown_user).await.status, 404);
    // The next request on the connection may be another one.
    for (status, expected) in [(400, 400), (403, 502), (404, 404), (409, 409), (429, 503)] {
        emulator.set_fault(Fault::new(Target::Create, Effect::Answer(Answer::status(status))).times(1));
        let reply = management.send(&named("one")).await;
        assert_eq!(reply.status, expected, "{}", reply.text());
        assert!(reply.text().find("possible_token_ids").is_none());
    }
    assert_eq!(
        management.code(&ApiRequest::create(&json!({"x": 1})).with_idempotency_key("one")).await.0,
        400
    );
    assert_eq!(management.send(&named("one")).await.status, 201);
    assert_eq!(management.code(&named("one")).await.1, "already_created");
}

/// One creation whose response is lost in this way.
async fn lost(effect: Effect) -> (ManagementStage, Value) {
    let management = ManagementStage::start().await;
    management.stage.emulator.set_fault(Fault::new(Target::Create, effect).times(1));
    let reply = management.send(&named("one")).await;
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(reply.header("retry-after").is_some());
    let answer = reply.json();
    (management, answer)
}

#[tokio::test]
async fn lost_response_names_key_and_retry_creates_none() {
    for effect in [Effect::Truncated, Effect::Garbage, Effect::ContentType("text/html".into())] {
        let is_read = matches!(effect, Effect::ContentType(_));
        let management = ManagementStage::start().await;
        management.stage.emulator.set_fault(Fault::new(Target::Create, effect.clone()).times(1));
        let first = management.send(&named("one")).await;
        if is_read {
            assert_eq!(first.status, 201, "a key is a key");
            continue;
        }
        assert_eq!((first.status, first.code()), (503, Some("outcome_unknown")), "{effect:?}");
        let suspects = first.json()["possible_token_ids"].clone();
        let live = management.send(&ApiRequest::new("GET", KEYS)).await.json();
        assert_eq!(suspects, json!([live["tokens"][0]["token_id"]]), "{effect:?}");
        let again = management.send(&named("one")).await;
        assert_eq!((again.status, again.code()), (409, Some("outcome_unknown")));
        assert_eq!(again.json()["possible_token_ids"], suspects);
        assert_eq!(management.count_keys().await, 1);
        // The response names what to revoke.
        let revoke = ApiRequest::new("DELETE", format!("{KEYS}/{}", suspects[0].as_str().unwrap()));
        assert_eq!(management.send(&revoke).await.status, 204);
        assert_eq!(management.send(&named("two")).await.status, 201);
    }
}

#[tokio::test]
async fn lost_rotation_does_not_suspect_replaced_key() {
    let management = ManagementStage::start().await;
    let made = management.create(&ordinary_body()).await;
    let rotate = ApiRequest::new("POST", format!("{KEYS}/{}/rotate", id(&made))).with_idempotency_key("one");
    management.stage.emulator.set_fault(Fault::new(Target::Create, Effect::Truncated).times(1));
    let lost = management.send(&rotate).await;
    assert_eq!(lost.code(), Some("outcome_unknown"));
    let newest = management.send(&ApiRequest::new("GET", KEYS)).await.json()["tokens"][0]["token_id"].clone();
    assert_eq!(lost.json()["possible_token_ids"], json!([newest]));
    assert_eq!(
        management.proxied_status(key(&made)).await,
        200,
        "nothing is revoked for a key that nobody has"
    );
    management.stage.emulator.set_fault(Fault::new(Target::Create, Effect::Reset).times(1));
    let lost =
        management.send(&ApiRequest::new("POST", format!("{KEYS}/{newest}/rotate").replace('"', ""))).await;
    assert_eq!(lost.code(), Some("outcome_unknown"), "the first key looks like it: {}", lost.text());
    assert_eq!(lost.json()["possible_token_ids"], json!([made["token_id"]]));
}

#[tokio::test]
async fn failed_creation_can_be_retried() {
    let (management, answer) = lost(Effect::Reset).await;
    assert_eq!(answer["code"], "scalekit_unavailable", "{answer}");
    assert!(
        answer["detail"].as_str().unwrap().ends_with("no such key is in the organization's list"),
        "{answer}"
    );
    assert_eq!(management.send(&named("one")).await.status, 201);
    assert_eq!(management.count_keys().await, 1);
}

#[tokio::test]
async fn outcome_is_unknown_when_search_fails() {
    let management = ManagementStage::start().await;
    for (target, effect) in [(Target::Create, Effect::Truncated), (Target::List, Effect::Reset)] {
        management.stage.emulator.set_fault(Fault::new(target, effect));
    }
    let reply = management.send(&named("one")).await;
    assert_eq!(reply.code(), Some("outcome_unknown"));
    assert!(
        reply.json()["detail"].as_str().unwrap().contains("list the organization's keys"),
        "{}",
        reply.text()
    );
    management.stage.emulator.clear_faults();
    assert_eq!(management.code(&named("one")).await, (409, "outcome_unknown".to_owned()));
    assert_eq!(management.count_keys().await, 1);
}

#[tokio::test]
async fn creation_completes_after_client_disconnects() {
    let management = ManagementStage::start().await;
    management.stage.emulator.set_fault(Fault::new(Target::Create, Effect::Hang));
    let mut client = management.connect().await;
    client.send(named("one").to_bytes()).await;
    wait_until(|| management.stage.emulator.counts().creations == 1).await;
    drop(client);
    assert_eq!(management.code(&named("one")).await.1, "request_in_progress");
    management.stage.emulator.clear_faults();
    wait_until(|| management.metric("create", "done") == 1).await;
    let reply = management.send(&named("one")).await;
    assert_eq!(reply.code(), Some("already_created"));
    assert_eq!(
        reply.json()["token_id"],
        management.send(&ApiRequest::new("GET", KEYS)).await.json()["tokens"][0]["token_id"]
    );
    assert_eq!(management.count_keys().await, 1);
}
