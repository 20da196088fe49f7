//! Fault injection.

use super::*;

#[tokio::test]
async fn responses_are_replaced_or_damaged() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    for (spec, status, content_type, retry_after, body) in [
        ("validate:status=429,retry-after=3", 429, "application/json", Some("3"), Some(json!(8))),
        ("any:status=503", 503, "application/json", None, Some(json!(14))),
        ("validate:status=404", 404, "application/json", None, Some(json!(5))),
        ("validate:content-type=text/html", 200, "text/html", None, None),
        ("validate:status=200,content-type=text/html,body=<p>a,b", 200, "text/html", None, None),
        ("validate:garbage", 200, "application/json", None, None),
    ] {
        api.fault(spec);
        let answer = api.validate(&key).await;
        assert_eq!(
            (answer.status, &answer.headers["content-type"]),
            (status, &content_type.parse().unwrap()),
            "{spec}"
        );
        let seconds = answer.headers.get("retry-after").map(|value| value.to_str().unwrap());
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
    let raw = Answer { body: Some(Bytes::from_static(b"\xff\x00")), ..Answer::status(500) };
    api.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(raw)));
    assert_eq!(api.validate(&key).await.body, "\u{fffd}\0");
}

#[tokio::test]
async fn transfer_breaks_before_or_within_response() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    for spec in ["validate:reset", "validate:truncated", "listener:refuse"] {
        api.fault(spec);
        let body = json!({"token": key}).to_string();
        let broken = api.send("POST", "/api/v1/tokens:validate", Some(&api.access_token), &body).await;
        assert!(broken.is_err(), "{spec} {broken:?}");
        api.emulator.clear_faults();
        assert_eq!(api.validate(&key).await.status, 200);
    }
}

#[tokio::test]
async fn expired_access_tokens_can_be_replaced() {
    let api = Api::start(Settings::default()).await;
    let key = api.key();
    api.fault("validate:expire-access-tokens,times=1");
    let refused = api.validate(&key).await;
    assert_eq!((refused.status, &refused.body["code"]), (401, &json!(16)));
    let fresh = api.fetch_token().await;
    let body = json!({"token": key}).to_string();
    let answer = api.send("POST", "/api/v1/tokens:validate", Some(&fresh), &body).await.unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn key_is_revoked_after_nth_validation() {
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
async fn latency_applies_before_or_after_decision() {
    let api = Api::start(Settings::default()).await;
    for (spec, expected) in [("validate:latency=100ms", 404), ("validate:latency-after=100ms", 200)] {
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
async fn hanging_calls_resume_when_faults_are_cleared() {
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
