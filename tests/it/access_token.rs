//! Keyward's own access token: fetched once, renewed before it expires without delaying requests, and reported when it
//! cannot be had.

use std::sync::Arc;
use std::time::Duration;

use keyward::rejection::Rejection;
use keyward::secret::SecretSource;
use keyward::validator::Settings;
use keyward_emulator::access::Permission;
use keyward_emulator::certificate::Certificate;
use keyward_emulator::echo::Echo;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use keyward_emulator::{self as emulator, Emulator};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::rig::{Plan, Probing, Rig, write_scratch_file};
use crate::support::raw::ScriptedUpstream;
use crate::support::{TEST_TIMEOUT, bind_loopback, wait_until};

const SECOND: Duration = Duration::from_secs(1);

fn unavailable() -> Rejection {
    Rejection::ValidationUnavailable(SECOND)
}

#[tokio::test]
async fn ten_thousand_requests_at_start_cause_one_fetch() {
    let rig = Rig::with(Plan {
        validator: Settings { timeout: TEST_TIMEOUT, max_waiting: 20_000, ..Settings::default() },
        faults: vec![Fault::new(Target::Token, Effect::Hang)],
        ..Plan::default()
    })
    .await;
    let keys: Vec<_> = (0..20).map(|_| rig.issue_key()).collect();
    let requests: Vec<_> =
        (0..10_000).map(|number| rig.spawn_validation(&keys[number % keys.len()])).collect();
    rig.wait_for_waiting(10_000).await;
    assert_eq!(rig.emulator.counts().validations, 0, "nothing is asked without a token");
    rig.emulator.clear_faults();
    for request in requests {
        request.await.unwrap().unwrap();
    }
    // Requests that waited for the renewal cause no second one.
    sleep(SECOND * 6 / 5).await;
    assert_eq!(rig.emulator.counts().token_fetches, 1);
}

#[tokio::test]
async fn concurrent_refused_calls_cause_one_renewal() {
    let rig = Rig::start(Settings::default()).await;
    rig.validate(&rig.issue_key()).await.unwrap();
    rig.emulator.expire_access_tokens();
    let keys: Vec<_> = (0..50).map(|_| rig.issue_key()).collect();
    let requests: Vec<_> = keys.iter().map(|key| rig.spawn_validation(key)).collect();
    for request in requests {
        assert!(request.await.unwrap().is_ok());
    }
    let counts = rig.emulator.counts();
    assert_eq!(counts.token_fetches, 2);
    assert!(counts.validations <= 1 + 100, "{counts:?}");
}

#[tokio::test]
async fn refused_token_is_renewed_once_per_second() {
    let rig = Rig::start(Settings::default()).await;
    let key = rig.issue_key();
    rig.validate(&key).await.unwrap();
    rig.set_fault(Target::Validate, Effect::ExpireAccessTokens);
    let began = Instant::now();
    while began.elapsed() < 2 * SECOND {
        assert_eq!(rig.validate(&key).await.unwrap_err(), unavailable());
    }
    let fetches = rig.emulator.counts().token_fetches;
    let seconds = began.elapsed().as_secs() + 1;
    assert!((3..=1 + seconds).contains(&fetches), "{fetches} in {seconds} s");
    rig.emulator.clear_faults();
    assert!(rig.validate(&key).await.is_ok());
}

#[tokio::test]
async fn short_lived_token_is_renewed_before_expiry() {
    let rig = Rig::with(Plan {
        emulator: emulator::Settings { access_token_lifetime: 3 * SECOND, ..Default::default() },
        ..Plan::default()
    })
    .await;
    let key = rig.issue_key();
    rig.validate(&key).await.unwrap();
    let fetched = Instant::now();
    rig.set_fault(Target::Token, Effect::Hang);
    wait_until(|| rig.emulator.counts().token_fetches == 2).await;
    let after = fetched.elapsed();
    assert!((2 * SECOND..SECOND * 5 / 2).contains(&after), "renewed at 72 to 80 % of its life: {after:?}");
    // The renewal hangs; the old token is valid.
    let began = Instant::now();
    for _ in 0..5 {
        rig.validate(&key).await.unwrap();
    }
    assert!(began.elapsed() < SECOND / 4, "{:?}", began.elapsed());
    rig.emulator.clear_faults();
    // After the first token has expired.
    sleep((3 * SECOND).saturating_sub(fetched.elapsed())).await;
    rig.validate(&key).await.unwrap();
    let counts = rig.emulator.counts();
    assert_eq!((counts.token_fetches, counts.validations), (2, 7), "no call was refused");
}

#[tokio::test]
async fn rotated_secret_file_is_used_without_restart() {
    let file = write_scratch_file("rotated", "dev\n");
    let rig = Rig::with(Plan { client_secret: SecretSource::File(file.clone()), ..Plan::default() }).await;
    let key = rig.issue_key();
    rig.validate(&key).await.unwrap();
    rig.emulator.set_client_secret("second");
    rig.validate(&key).await.expect("the token that is there is good");
    std::fs::write(&file, "second\n").unwrap();
    rig.emulator.expire_access_tokens();
    rig.validate(&key).await.expect("the new secret gave a new token");
    // A failed rotation is reported, and recovers without a restart.
    std::fs::write(&file, "").unwrap();
    rig.emulator.expire_access_tokens();
    assert_eq!(rig.validate(&key).await.unwrap_err(), unavailable());
    std::fs::write(&file, "second").unwrap();
    rig.validate(&key).await.unwrap();
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn refused_client_secret_fails_fast() {
    let rig = Rig::with(Plan {
        validator: Settings { timeout: Duration::from_secs(60), ..Settings::default() },
        faults: vec![Fault::new(Target::Token, Effect::Answer(Answer::status(401)))],
        ..Plan::default()
    })
    .await;
    let began = Instant::now();
    while began.elapsed() < 2 * SECOND {
        let key = rig.issue_key();
        assert_eq!(rig.validate(&key).await.unwrap_err(), unavailable());
    }
    let fetches = rig.emulator.counts().token_fetches;
    assert!((3..=7).contains(&fetches), "with a pause that grows to a second: {fetches}");
    assert_eq!(rig.emulator.counts().validations, 0);
    rig.emulator.clear_faults();
    assert!(rig.validate(&rig.issue_key()).await.is_ok());
}

#[tokio::test]
async fn broken_token_endpoint_is_503_and_recovers() {
    let text = |status, body: &str| {
        Effect::Answer(Answer { body: Some(body.to_owned().into()), ..Answer::status(status) })
    };
    let (emulator, url, _ends) = emulator().await;
    let checks = [
        (Effect::Answer(Answer::status(401)), "refuses Keyward's own credentials"),
        (Effect::Answer(Answer::status(400)), "refuses Keyward's own credentials"),
        (Effect::Answer(Answer::status(403)), "lacks a permission"),
        (Effect::Answer(Answer::status(429)), "throttles this client"),
        (Effect::Answer(Answer::status(500)), "answered 500"),
        (text(404, "<html>"), "no Scalekit token API at this URL (HTTP 404)"),
        (text(200, "<html>"), "its token endpoint returned no access_token"),
        (text(200, r#"{"access_token":""}"#), "the access token is empty"),
        (text(200, r#"{"access_token":"a\nb"}"#), "the access token is not"),
        (Effect::Reset, "connection to Scalekit broke"),
        (Effect::Truncated, "the response broke off"),
        (Effect::Hang, "did not answer in time"),
    ];
    let probes: Vec<_> = checks
        .iter()
        .map(async |(effect, expected)| {
            let (own, address, _ends) = self::emulator().await;
            own.set_fault(Fault::new(Target::Token, effect.clone()));
            let key = own.issue(keyward_emulator::store::Issue {
                organization_id: "org_1".into(),
                ..Default::default()
            });
            let keyward = Probing::start(&address, "dev", "");
            let reason = keyward.wait_for_reason().await;
            assert!(reason.contains(expected), "{effect:?}: {reason}");
            let reply = keyward.get(&key.key).await;
            assert_eq!((reply.status, reply.code()), (503, Some("validation_unavailable")), "{effect:?}");
            own.clear_faults();
            keyward.wait_until_ready().await;
            // The key is valid; the upstream does not exist.
            assert_eq!(keyward.get(&key.key).await.code(), Some("upstream_unreachable"), "{effect:?}");
        })
        .collect();
    timeout(TEST_TIMEOUT, futures_util::future::join_all(probes)).await.expect("in time");
    let keyward = Probing::start(&url, "not-the-secret", "");
    assert!(keyward.wait_for_reason().await.contains("check SCALEKIT_CLIENT_ID and SCALEKIT_CLIENT_SECRET"));
    emulator.set_client_secret("not-the-secret");
    timeout(TEST_TIMEOUT, keyward.wait_until_ready()).await.unwrap();
}

#[tokio::test]
async fn first_probe_distinguishes_failures() {
    let (emulator, url, _ends) = emulator().await;
    emulator.set_permissions(&[Permission::Write]);
    let keyward = Probing::start(&url, "dev", "");
    assert!(keyward.wait_for_reason().await.contains("grant it api_credentials:read"));
    assert_eq!(keyward.get(&"0".repeat(30)).await.code(), Some("validation_unavailable"));
    emulator.set_permissions(&[Permission::Read]);
    timeout(TEST_TIMEOUT, keyward.wait_until_ready()).await.unwrap();

    // A service that is not Scalekit.
    let (listener, address) = bind_loopback().await;
    let stop = CancellationToken::new();
    let _echo = stop.clone().drop_guard();
    tokio::spawn(async move { Echo::new().serve(listener, stop).await });
    let keyward = Probing::start(&format!("http://{address}"), "dev", "");
    let reason = keyward.wait_for_reason().await;
    assert!(reason.contains("no Scalekit token API at this URL"), "{reason}");
    assert!(reason.contains("check SCALEKIT_ENVIRONMENT_URL"), "{reason}");

    // An environment without the REST token API: its gateway returns 404 for the path.
    let (emulator, url, _ends) = self::emulator().await;
    let body = r#"{"code":5,"message":"Not Found","details":[]}"#;
    let answer = Answer { body: Some(body.into()), ..Answer::status(404) };
    emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(answer)));
    let keyward = Probing::start(&url, "dev", "");
    let reason = keyward.wait_for_reason().await;
    assert!(reason.contains("no Scalekit token API at this URL (HTTP 404)"), "{reason}");

    // Nothing listens there.
    let (listener, address) = bind_loopback().await;
    drop(listener);
    let keyward = Probing::start(&format!("http://{address}"), "dev", "");
    let reason = keyward.wait_for_reason().await;
    assert!(reason.contains("cannot be reached") && reason.contains("refused"), "{reason}");
}

#[tokio::test]
async fn first_probe_is_retried_after_transient_error() {
    for effect in [Effect::Answer(Answer::status(503)), Effect::Answer(Answer::status(429)), Effect::Hang] {
        let (emulator, url, _ends) = emulator().await;
        emulator.set_fault(Fault::new(Target::Validate, effect));
        let keyward = Probing::start(&url, "dev", "");
        timeout(2 * SECOND, keyward.wait_until_ready())
            .await
            .expect("the token is there, and the rest will pass");
    }
}

#[tokio::test]
async fn untrusted_certificate_is_distinguished_from_outage() {
    let certificate = Certificate::generate().unwrap();
    let (listener, address) = bind_loopback().await;
    let stop = CancellationToken::new();
    let _tls = stop.clone().drop_guard();
    let emulator = Emulator::new(emulator::Settings::default());
    let (own, presented) = (emulator.clone(), certificate.clone());
    tokio::spawn(async move { own.serve_tls(listener, &presented, stop).await });
    let url = format!("https://localhost:{}", address.port());

    let (other, right) = (Certificate::generate().unwrap(), write_scratch_file("ca", certificate.ca_pem()));
    let wrong = write_scratch_file("ca-wrong", other.ca_pem());
    let ca = |path: &std::path::Path| format!("ca_file = {path:?}");
    let reason = Probing::start(&url, "dev", &ca(&wrong)).wait_for_reason().await;
    assert!(reason.contains("no trusted TLS connection to Scalekit"), "{reason}");
    assert!(reason.contains("scalekit.ca_file"), "{reason}");
    timeout(TEST_TIMEOUT, Probing::start(&url, "dev", &ca(&right)).wait_until_ready()).await.unwrap();

    // TLS to a port without TLS.
    let (_clear, clear, _ends) = self::emulator().await;
    let url = clear.replace("http://127.0.0.1", "https://localhost");
    let reason = Probing::start(&url, "dev", &ca(&right)).wait_for_reason().await;
    assert!(reason.contains("no trusted TLS connection to Scalekit"), "{reason}");
    for file in [right, wrong] {
        std::fs::remove_file(file).unwrap();
    }
}

async fn emulator() -> (Emulator, String, DropGuard) {
    let emulator = Emulator::new(emulator::Settings::default());
    let (listener, address) = bind_loopback().await;
    let stop = CancellationToken::new();
    let (own, until) = (emulator.clone(), stop.clone());
    tokio::spawn(async move { own.serve(listener, until).await });
    (emulator, format!("http://{address}"), stop.drop_guard())
}

#[tokio::test]
async fn failed_renewal_is_not_blamed_for_later_timeout() {
    let rig = Rig::with(Plan {
        validator: Settings { timeout: Duration::from_millis(150), ..Settings::default() },
        emulator: emulator::Settings { access_token_lifetime: 3 * SECOND, ..Default::default() },
        ..Plan::default()
    })
    .await;
    let key = rig.issue_key();
    rig.validate(&key).await.unwrap();
    rig.set_status_fault(Target::Token, 401);
    wait_until(|| rig.emulator.counts().token_fetches == 2).await;
    rig.set_fault(Target::Validate, Effect::Hang);
    assert_eq!(rig.validate(&key).await.unwrap_err(), unavailable());
    let outcome = |outcome| {
        let label = keyward::metrics::Outcome { outcome };
        Arc::clone(&rig.metrics).validations.get_or_create(&label).get()
    };
    wait_until(|| outcome("timeout") + outcome("credentials") == 1).await;
    assert_eq!(outcome("timeout"), 1);
}

#[tokio::test]
async fn requests_to_scalekit_have_content_length() {
    let scalekit = ScriptedUpstream::answering("HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n").await;
    let _keyward = Probing::start(&scalekit.url().unwrap(), "dev", "");
    scalekit.wait_until(|text| text.contains("client_credentials")).await;
    let sent = scalekit.text();
    assert!(sent.contains("content-length: ") && !sent.contains("transfer-encoding"), "{sent}");
}
