//! Keyward's own access token: fetched once, renewed before it is missed, never waited for while it is good; and what is said
//! of it when there is none.

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

use crate::rig::{Plan, Probing, Rig, scratch, until};
use crate::support::raw::Scripted;
use crate::support::{LIMIT, listen};

const SECOND: Duration = Duration::from_secs(1);

fn unavailable() -> Rejection {
    Rejection::ValidationUnavailable(SECOND)
}

#[tokio::test]
async fn ten_thousand_requests_at_start_cause_one_fetch() {
    let rig = Rig::with(Plan {
        validator: Settings { timeout: LIMIT, max_waiting: 20_000, ..Settings::default() },
        faults: vec![Fault::new(Target::Token, Effect::Hang)],
        ..Plan::default()
    })
    .await;
    let keys: Vec<_> = (0..20).map(|_| rig.key()).collect();
    let requests: Vec<_> = (0..10_000).map(|number| rig.spawn(&keys[number % keys.len()])).collect();
    rig.waiting(10_000).await;
    assert_eq!(rig.emulator.counts().validations, 0, "nothing is asked without a token");
    rig.emulator.clear_faults();
    for request in requests {
        request.await.unwrap().unwrap();
    }
    // Those who asked for it while it was under way are no reason for another one.
    sleep(SECOND * 6 / 5).await;
    assert_eq!(rig.emulator.counts().token_fetches, 1);
}

#[tokio::test]
async fn fifty_calls_refused_at_once_cause_one_renewal_and_each_is_made_once_more() {
    let rig = Rig::start(Settings::default()).await;
    rig.ask(&rig.key()).await.unwrap();
    rig.emulator.expire_access_tokens();
    let keys: Vec<_> = (0..50).map(|_| rig.key()).collect();
    let requests: Vec<_> = keys.iter().map(|key| rig.spawn(key)).collect();
    for request in requests {
        assert!(request.await.unwrap().is_ok());
    }
    let counts = rig.emulator.counts();
    assert_eq!(counts.token_fetches, 2);
    assert!(counts.validations <= 1 + 100, "{counts:?}");
}

#[tokio::test]
async fn however_often_it_is_refused_the_token_is_renewed_at_most_once_a_second() {
    let rig = Rig::start(Settings::default()).await;
    let key = rig.key();
    rig.ask(&key).await.unwrap();
    rig.fault(Target::Validate, Effect::ExpireAccessTokens);
    let began = Instant::now();
    while began.elapsed() < 2 * SECOND {
        assert_eq!(rig.ask(&key).await.unwrap_err(), unavailable());
    }
    let fetches = rig.emulator.counts().token_fetches;
    let seconds = began.elapsed().as_secs() + 1;
    assert!((3..=1 + seconds).contains(&fetches), "{fetches} in {seconds} s");
    rig.emulator.clear_faults();
    assert!(rig.ask(&key).await.is_ok());
}

#[tokio::test]
async fn a_short_lived_token_is_renewed_before_it_ends_and_nobody_waits_for_that() {
    let rig = Rig::with(Plan {
        emulator: emulator::Settings { access_token_lifetime: 3 * SECOND, ..Default::default() },
        ..Plan::default()
    })
    .await;
    let key = rig.key();
    rig.ask(&key).await.unwrap();
    let fetched = Instant::now();
    rig.fault(Target::Token, Effect::Hang);
    until(|| rig.emulator.counts().token_fetches == 2).await;
    let after = fetched.elapsed();
    assert!((2 * SECOND..SECOND * 5 / 2).contains(&after), "renewed at 72 to 80 % of its life: {after:?}");
    // The renewal hangs; the old token is good.
    let began = Instant::now();
    for _ in 0..5 {
        rig.ask(&key).await.unwrap();
    }
    assert!(began.elapsed() < SECOND / 4, "{:?}", began.elapsed());
    rig.emulator.clear_faults();
    // Beyond the end of the first one.
    sleep((3 * SECOND).saturating_sub(fetched.elapsed())).await;
    rig.ask(&key).await.unwrap();
    let counts = rig.emulator.counts();
    assert_eq!((counts.token_fetches, counts.validations), (2, 7), "no call was refused");
}

#[tokio::test]
async fn a_rotated_secret_file_is_used_without_a_restart() {
    let file = scratch("rotated", "dev\n");
    let rig = Rig::with(Plan { client_secret: SecretSource::File(file.clone()), ..Plan::default() }).await;
    let key = rig.key();
    rig.ask(&key).await.unwrap();
    rig.emulator.set_client_secret("second");
    rig.ask(&key).await.expect("the token that is there is good");
    std::fs::write(&file, "second\n").unwrap();
    rig.emulator.expire_access_tokens();
    rig.ask(&key).await.expect("the new secret gave a new token");
    // What a rotation gone wrong looks like, and that it heals by itself.
    std::fs::write(&file, "").unwrap();
    rig.emulator.expire_access_tokens();
    assert_eq!(rig.ask(&key).await.unwrap_err(), unavailable());
    std::fs::write(&file, "second").unwrap();
    rig.ask(&key).await.unwrap();
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn a_secret_that_is_refused_is_not_waited_out_and_not_tried_again_and_again() {
    let rig = Rig::with(Plan {
        validator: Settings { timeout: Duration::from_secs(60), ..Settings::default() },
        faults: vec![Fault::new(Target::Token, Effect::Answer(Answer::status(401)))],
        ..Plan::default()
    })
    .await;
    let began = Instant::now();
    while began.elapsed() < 2 * SECOND {
        let key = rig.key();
        assert_eq!(rig.ask(&key).await.unwrap_err(), unavailable());
    }
    let fetches = rig.emulator.counts().token_fetches;
    assert!((3..=7).contains(&fetches), "with a pause that grows to a second: {fetches}");
    assert_eq!(rig.emulator.counts().validations, 0);
    rig.emulator.clear_faults();
    assert!(rig.ask(&rig.key()).await.is_ok());
}

#[tokio::test]
async fn a_token_endpoint_broken_in_any_way_is_503_with_a_reason_and_heals_by_itself() {
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
            let reason = keyward.reason().await;
            assert!(reason.contains(expected), "{effect:?}: {reason}");
            let reply = keyward.get(&key.key).await;
            assert_eq!((reply.status, reply.code()), (503, Some("validation_unavailable")), "{effect:?}");
            own.clear_faults();
            keyward.ready().await;
            // The key is good; that there is no upstream is another matter.
            assert_eq!(keyward.get(&key.key).await.code(), Some("upstream_unreachable"), "{effect:?}");
        })
        .collect();
    timeout(LIMIT, futures_util::future::join_all(probes)).await.expect("in time");
    let keyward = Probing::start(&url, "not-the-secret", "");
    assert!(keyward.reason().await.contains("check SCALEKIT_CLIENT_ID and SCALEKIT_CLIENT_SECRET"));
    emulator.set_client_secret("not-the-secret");
    timeout(LIMIT, keyward.ready()).await.unwrap();
}

#[tokio::test]
async fn the_first_probe_tells_what_is_wrong_apart() {
    let (emulator, url, _ends) = emulator().await;
    emulator.set_permissions(&[Permission::Write]);
    let keyward = Probing::start(&url, "dev", "");
    assert!(keyward.reason().await.contains("grant it api_credentials:read"));
    assert_eq!(keyward.get(&"0".repeat(30)).await.code(), Some("validation_unavailable"));
    emulator.set_permissions(&[Permission::Read]);
    timeout(LIMIT, keyward.ready()).await.unwrap();

    // Another service altogether.
    let (listener, address) = listen().await;
    let stop = CancellationToken::new();
    let _echo = stop.clone().drop_guard();
    tokio::spawn(async move { Echo::new().serve(listener, stop).await });
    let keyward = Probing::start(&format!("http://{address}"), "dev", "");
    let reason = keyward.reason().await;
    assert!(reason.contains("no Scalekit token API at this URL"), "{reason}");
    assert!(reason.contains("check SCALEKIT_ENVIRONMENT_URL"), "{reason}");

    // An environment without the REST token API: its gateway does not know the path.
    let (emulator, url, _ends) = self::emulator().await;
    let body = r#"{"code":5,"message":"Not Found","details":[]}"#;
    let answer = Answer { body: Some(body.into()), ..Answer::status(404) };
    emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(answer)));
    let keyward = Probing::start(&url, "dev", "");
    let reason = keyward.reason().await;
    assert!(reason.contains("no Scalekit token API at this URL (HTTP 404)"), "{reason}");

    // Nobody there at all.
    let (listener, address) = listen().await;
    drop(listener);
    let keyward = Probing::start(&format!("http://{address}"), "dev", "");
    let reason = keyward.reason().await;
    assert!(reason.contains("cannot be reached") && reason.contains("refused"), "{reason}");
}

#[tokio::test]
async fn a_blip_of_the_first_validation_does_not_keep_it_from_getting_ready() {
    for effect in [Effect::Answer(Answer::status(503)), Effect::Answer(Answer::status(429)), Effect::Hang] {
        let (emulator, url, _ends) = emulator().await;
        emulator.set_fault(Fault::new(Target::Validate, effect));
        let keyward = Probing::start(&url, "dev", "");
        timeout(2 * SECOND, keyward.ready()).await.expect("the token is there, and the rest will pass");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_told_apart_from_an_outage() {
    let certificate = Certificate::generate().unwrap();
    let (listener, address) = listen().await;
    let stop = CancellationToken::new();
    let _tls = stop.clone().drop_guard();
    let emulator = Emulator::new(emulator::Settings::default());
    let (own, presented) = (emulator.clone(), certificate.clone());
    tokio::spawn(async move { own.serve_tls(listener, &presented, stop).await });
    let url = format!("https://localhost:{}", address.port());

    let (other, right) = (Certificate::generate().unwrap(), scratch("ca", certificate.ca_pem()));
    let wrong = scratch("ca-wrong", other.ca_pem());
    let ca = |path: &std::path::Path| format!("ca_file = {path:?}");
    let reason = Probing::start(&url, "dev", &ca(&wrong)).reason().await;
    assert!(reason.contains("no trusted TLS connection to Scalekit"), "{reason}");
    assert!(reason.contains("scalekit.ca_file"), "{reason}");
    timeout(LIMIT, Probing::start(&url, "dev", &ca(&right)).ready()).await.unwrap();

    // TLS to a port that speaks none.
    let (_clear, clear, _ends) = self::emulator().await;
    let url = clear.replace("http://127.0.0.1", "https://localhost");
    let reason = Probing::start(&url, "dev", &ca(&right)).reason().await;
    assert!(reason.contains("no trusted TLS connection to Scalekit"), "{reason}");
    for file in [right, wrong] {
        std::fs::remove_file(file).unwrap();
    }
}

async fn emulator() -> (Emulator, String, DropGuard) {
    let emulator = Emulator::new(emulator::Settings::default());
    let (listener, address) = listen().await;
    let stop = CancellationToken::new();
    let (own, until) = (emulator.clone(), stop.clone());
    tokio::spawn(async move { own.serve(listener, until).await });
    (emulator, format!("http://{address}"), stop.drop_guard())
}

#[tokio::test]
async fn a_failed_renewal_leaves_the_old_token_and_its_fault_is_not_blamed_for_a_later_timeout() {
    let rig = Rig::with(Plan {
        validator: Settings { timeout: Duration::from_millis(150), ..Settings::default() },
        emulator: emulator::Settings { access_token_lifetime: 3 * SECOND, ..Default::default() },
        ..Plan::default()
    })
    .await;
    let key = rig.key();
    rig.ask(&key).await.unwrap();
    rig.status(Target::Token, 401);
    until(|| rig.emulator.counts().token_fetches == 2).await;
    rig.fault(Target::Validate, Effect::Hang);
    assert_eq!(rig.ask(&key).await.unwrap_err(), unavailable());
    let outcome = |outcome| {
        let label = keyward::metrics::Outcome { outcome };
        Arc::clone(&rig.metrics).validations.get_or_create(&label).get()
    };
    until(|| outcome("timeout") + outcome("credentials") == 1).await;
    assert_eq!(outcome("timeout"), 1);
}

#[tokio::test]
async fn what_scalekit_is_sent_says_how_long_it_is() {
    let scalekit = Scripted::answering("HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n").await;
    let _keyward = Probing::start(&scalekit.url().unwrap(), "dev", "");
    scalekit.until(|text| text.contains("client_credentials")).await;
    let sent = scalekit.text();
    assert!(sent.contains("content-length: ") && !sent.contains("transfer-encoding"), "{sent}");
}
