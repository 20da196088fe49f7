//! Verdicts and errors: every row of contract section 5, the client's response, and that only a definite "invalid" is
//! remembered.

use bytes::Bytes;
use keyward_emulator::access::Permission;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};

use crate::support::raw::Reply;
use crate::support::{Setup, Stage};

fn respond_with(status: u16, body: impl Into<Bytes>) -> Effect {
    Effect::Answer(Answer { body: Some(body.into()), ..Answer::status(status) })
}

fn validate(effect: Effect) -> Fault {
    Fault::new(Target::Validate, effect)
}

/// The response to a good key under this fault. Afterwards the key must pass at once, as nothing is remembered.
#[track_caller]
fn our_fault(reply: &Reply, after: &Reply, row: &str) {
    assert_eq!((reply.status, reply.code()), (503, Some("validation_unavailable")), "{row}");
    assert_eq!(reply.header("retry-after"), Some("1"), "{row}");
    assert_eq!(reply.header("www-authenticate"), None, "{row}: nobody is told that their key is bad");
    assert_eq!(after.status, 200, "{row}: asked again at once");
}

async fn check_our_fault(stage: &Stage, effect: Effect) {
    let (row, key) = (format!("{effect:?}"), stage.issue_key());
    let forwarded = stage.forwarded_count();
    stage.emulator.set_fault(validate(effect));
    let reply = stage.get("/v1", &key).await;
    stage.emulator.clear_faults();
    assert_eq!(stage.forwarded_count(), forwarded, "{row}: nothing got through");
    let after = stage.get("/v1", &key).await;
    our_fault(&reply, &after, &row);
}

async fn check_bad_key(stage: &Stage, effect: Effect) {
    let (row, key) = (format!("{effect:?}"), stage.issue_key());
    let before = stage.emulator.counts().validations;
    stage.emulator.set_fault(validate(effect));
    let reply = stage.get("/v1", &key).await;
    stage.emulator.clear_faults();
    let after = stage.get("/v1", &key).await;
    for reply in [&reply, &after] {
        assert_eq!((reply.status, reply.code()), (401, Some("invalid_key")), "{row}");
    }
    assert_eq!(stage.emulator.counts().validations, before + 1, "{row}: remembered");
}

#[tokio::test]
async fn incomplete_200_is_503_and_not_remembered() {
    let stage = Stage::start().await;
    for body in [
        "",
        "{}",
        "null",
        "<html>welcome</html>",
        r#"{"token_info":null}"#,
        r#"{"token_info":{"organization_id":""}}"#,
        r#"{"token_info":{"user_id":"usr_1"}}"#,
        r#"{"token_info":{"organization_id":"org_1","token_suffix":"!!!!"}}"#,
        r#"{"token_info":{"organization_id":"org_1","token_suffix":"x"}}"#,
        r#"{"token_info":{"organization_id":"org_1","expiry":"2001-01-01T00:00:00Z"}}"#,
        r#"{"token_info":{"organization_id":"org_1","expiry":"tomorrow"}}"#,
        r#"{"token_info":{"organization_id":"org 1"}}"#,
        r#"{"token_info":{"organization_id":"org_1","user_id":"a\u0000b"}}"#,
    ] {
        check_our_fault(&stage, respond_with(200, body)).await;
    }
    check_our_fault(&stage, Effect::Garbage).await;
}

#[tokio::test]
async fn valid_response_for_token_id_is_refused() {
    let stage = Stage::start().await;
    let key = stage.issue_key();
    let body = format!(r#"{{"token_info":{{"organization_id":"org_1","token_id":"{key}"}}}}"#);
    stage.emulator.set_fault(validate(respond_with(200, body)));
    let reply = stage.get("/v1", &key).await;
    stage.emulator.clear_faults();
    our_fault(&reply, &stage.get("/v1", &key).await, "token_id");
}

#[tokio::test]
async fn only_not_found_and_invalid_argument_are_401() {
    let stage = Stage::start().await;
    for effect in [
        Effect::Answer(Answer::status(404)),
        Effect::Answer(Answer::status(400)),
        respond_with(404, r#"{"code":5,"message":"token not found","details":[]}"#),
        respond_with(404, r#"{"code":5,"message":"Not Found","details":[{"error_code":"NOT_FOUND"}]}"#),
        respond_with(400, r#"{"code":3,"message":"x"}"#),
    ] {
        check_bad_key(&stage, effect).await;
    }
    let html = |status| Answer { content_type: Some("text/html".into()), ..Answer::status(status) };
    for effect in [
        respond_with(404, r#"{"code":5,"message":"Not Found","details":[]}"#),
        respond_with(404, r#"{"code":5,"message":"Not Found"}"#),
        respond_with(404, "<html>404</html>"),
        respond_with(404, ""),
        respond_with(404, "{}"),
        respond_with(404, r#"{"code":16,"message":"x"}"#),
        respond_with(400, "bad request"),
        respond_with(400, r#"{"code":9,"message":"x"}"#),
        Effect::Answer(html(404)),
        Effect::Answer(html(400)),
        // Other responses are no verdict.
        respond_with(204, ""),
        respond_with(302, ""),
        respond_with(409, r#"{"code":6,"message":"x"}"#),
        respond_with(410, r#"{"code":5,"message":"x"}"#),
        respond_with(422, r#"{"code":3,"message":"x"}"#),
    ] {
        check_our_fault(&stage, effect).await;
    }
    assert_eq!(stage.forwarded_count(), 15);
}

#[tokio::test]
async fn unknown_expired_and_revoked_keys_are_401() {
    let stage = Stage::start().await;
    let revoked = stage.issue_key();
    stage.emulator.revoke(&revoked);
    let expired = stage.issue(keyward_emulator::store::Issue {
        expiry: Some("2001-01-01T00:00:00Z".parse().unwrap()),
        ..Default::default()
    });
    let mut bodies = Vec::new();
    for key in [&*revoked, &expired.key, "0123456789ABCDEFGHIJabcdefghij", "short"] {
        let reply = stage.get("/v1", key).await;
        assert_eq!((reply.status, reply.code()), (401, Some("invalid_key")));
        let mut body = reply.json();
        body["request_id"].take();
        bodies.push(body);
    }
    assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]), "one answer for all: {bodies:?}");
}

#[tokio::test]
async fn scalekit_401_renews_access_token_and_retries() {
    let stage = Stage::start().await;
    let (key, before) = (stage.issue_key(), stage.emulator.counts());
    stage.emulator.expire_access_tokens();
    assert_eq!(stage.get("/v1", &key).await.status, 200);
    let counts = stage.emulator.counts();
    assert_eq!(counts.validations - before.validations, 2);
    assert_eq!(counts.token_fetches - before.token_fetches, 1);
}

#[tokio::test]
async fn persistent_scalekit_401_is_503() {
    let bodies = [None, Some(r#"{"code":5,"message":"Token not found","details":[1]}"#), Some("")];
    let checks = bodies.map(async |body| {
        let stage = Stage::start().await;
        let before = stage.emulator.counts();
        let answer = Answer { body: body.map(Bytes::from), ..Answer::status(401) };
        check_our_fault(&stage, Effect::Answer(answer)).await;
        let counts = stage.emulator.counts();
        assert_eq!(
            counts.validations - before.validations,
            3,
            "asked, replayed; then asked about the good key"
        );
        assert_eq!(counts.token_fetches - before.token_fetches, 1);
    });
    futures_util::future::join_all(checks).await;
}

#[tokio::test]
async fn scalekit_403_is_503_without_token_renewal() {
    let stage = Stage::start().await;
    let before = stage.emulator.counts();
    check_our_fault(&stage, Effect::Answer(Answer::status(403))).await;
    check_our_fault(&stage, respond_with(403, r#"{"code":5,"message":"Token not found","details":[1]}"#))
        .await;
    stage.emulator.set_permissions(&[Permission::Write]);
    let key = stage.issue_key();
    let reply = stage.get("/v1", &key).await;
    stage.emulator.set_permissions(&[Permission::Read]);
    our_fault(&reply, &stage.get("/v1", &key).await, "the real refusal");
    let counts = stage.emulator.counts();
    assert_eq!(counts.token_fetches, before.token_fetches);
    assert_eq!(counts.validations - before.validations, 6);
}

#[tokio::test]
async fn scalekit_429_without_retry_after_holds_one_second() {
    for effect in [
        Effect::Answer(Answer::status(429)),
        respond_with(429, r#"{"code":5,"message":"Token not found","details":[1]}"#),
    ] {
        let stage = Stage::start().await;
        let (key, before) = (stage.issue_key(), stage.emulator.counts().validations);
        stage.emulator.set_fault(validate(effect).times(1));
        for _ in 0..3 {
            let reply = stage.get("/v1", &key).await;
            assert_eq!((reply.status, reply.code()), (503, Some("validation_unavailable")));
            assert_eq!(reply.header("retry-after"), Some("1"));
        }
        assert_eq!(stage.emulator.counts().validations - before, 1, "not retried, and then held");
        tokio::time::sleep(std::time::Duration::from_millis(1050)).await;
        assert_eq!(stage.get("/v1", &key).await.status, 200);
    }
}

#[tokio::test]
async fn scalekit_429_holds_calls_until_retry_after() {
    let stage = Stage::start().await;
    let (key, other) = (stage.issue_key(), stage.issue_key());
    let before = stage.emulator.counts().validations;
    let answer = Answer { retry_after: Some(7), ..Answer::status(429) };
    stage.emulator.set_fault(validate(Effect::Answer(answer)).times(1));
    for key in [&key, &other, &key] {
        let reply = stage.get("/v1", key).await;
        assert_eq!((reply.status, reply.code()), (503, Some("validation_unavailable")));
        assert_eq!(reply.header("retry-after"), Some("7"));
    }
    assert_eq!(stage.emulator.counts().validations - before, 1);
}

#[tokio::test]
async fn outage_of_any_kind_is_503() {
    let stage = Stage::start().await;
    let not_found = r#"{"code":5,"message":"Token not found","details":[1]}"#;
    for effect in [
        Effect::Answer(Answer::status(500)),
        Effect::Answer(Answer::status(501)),
        Effect::Answer(Answer::status(502)),
        Effect::Answer(Answer::status(503)),
        Effect::Answer(Answer::status(504)),
        respond_with(500, not_found),
        respond_with(503, "<html>maintenance</html>"),
        Effect::Reset,
        Effect::Truncated,
        Effect::Refuse,
    ] {
        check_our_fault(&stage, effect).await;
    }
}

#[tokio::test]
async fn scalekit_timeout_is_503() {
    let stage = Stage::with(Setup { scalekit: "timeout = \"150ms\"", ..Setup::default() }).await;
    for effect in [Effect::Hang, Effect::HangAfter] {
        check_our_fault(&stage, effect).await;
    }
}

#[tokio::test]
async fn outage_is_503_for_bad_key_too() {
    let stage = Stage::start().await;
    let bad = "0123456789ABCDEFGHIJabcdefghij";
    for effect in [Effect::Truncated, Effect::Garbage, Effect::ContentType("text/html".into())] {
        stage.emulator.set_fault(validate(effect.clone()));
        assert_eq!(stage.get("/v1", bad).await.code(), Some("validation_unavailable"), "{effect:?}");
        stage.emulator.clear_faults();
    }
    assert_eq!(stage.get("/v1", bad).await.code(), Some("invalid_key"));
}
