//! Scalekit slow, down, restarting or overloaded: waiting times, retries and recovery.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keyward::metrics::Outcome;
use keyward::rejection::Rejection;
use keyward::scalekit::origin_settings;
use keyward::validator::Settings;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::rig::{Plan, Rig, unknown_key};
use crate::support::{Setup, Stage, TEST_TIMEOUT, bind_loopback, wait_until};

const SECOND: Duration = Duration::from_secs(1);

fn unavailable() -> Rejection {
    Rejection::ValidationUnavailable(SECOND)
}

fn short(millis: u64) -> Settings {
    Settings { timeout: Duration::from_millis(millis), ..Settings::default() }
}

#[tokio::test]
async fn breaker_limits_calls_and_recovers_after_outage() {
    let stage = Stage::start().await;
    let keys: Vec<_> = (0..8).map(|_| stage.issue_key()).collect();
    let (down, recovered) = (Arc::new(AtomicU64::new(0)), watch::Sender::new(false));
    let mut callers = JoinSet::new();
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(503))));
    let before = stage.emulator.counts().validations;
    for key in keys {
        let (mut client, down, recovered) = (stage.connect().await, Arc::clone(&down), recovered.clone());
        let request = format!("GET /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n");
        callers.spawn(async move {
            loop {
                client.send(&request).await;
                let reply = client.read_reply().await;
                match (reply.status, reply.code()) {
                    (503, Some("validation_unavailable")) => {
                        assert_eq!(reply.header("retry-after"), Some("1"));
                        down.fetch_add(1, Ordering::Relaxed);
                    }
                    (200, None) => {
                        recovered.send_replace(true);
                        return;
                    }
                    other => panic!("{other:?}"),
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
    }
    sleep(SECOND * 5 / 2).await;
    assert_eq!(stage.get_admin("/readyz").await.status, 200, "an outage takes no replica out");
    assert_eq!(stage.metrics.breaker_open.get(), 1);
    let (calls, requests) = (stage.emulator.counts().validations - before, down.load(Ordering::Relaxed));
    // Eight concurrent calls, four more before the fifth failure, three probes, and the retries in the budget.
    assert!(calls <= 8 + 4 + 3 + 12, "{calls} calls for {requests} requests");
    assert!(requests > 500, "refused at once: {requests}");
    stage.emulator.clear_faults();
    let cleared = Instant::now();
    recovered.subscribe().wait_for(|recovered| *recovered).await.unwrap();
    while let Some(http_client) = callers.join_next().await {
        http_client.unwrap();
    }
    assert!(cleared.elapsed() < 2 * SECOND, "{:?}", cleared.elapsed());
    assert_eq!(stage.metrics.breaker_open.get(), 0);
}

#[tokio::test]
async fn breaker_opens_after_five_timeouts() {
    let rig = Rig::start(short(150)).await;
    rig.validate(&rig.issue_key()).await.unwrap();
    rig.set_fault(Target::Validate, Effect::Hang);
    let keys: Vec<_> = (0..5).map(|_| rig.issue_key()).collect();
    let requests: Vec<_> = keys.iter().map(|key| rig.spawn_validation(key)).collect();
    for request in requests {
        assert_eq!(request.await.unwrap().unwrap_err(), unavailable());
    }
    wait_until(|| rig.metrics.breaker_open.get() == 1).await;
    let (began, calls) = (Instant::now(), rig.emulator.counts().validations);
    for number in 0..200 {
        assert!(matches!(rig.validate(&unknown_key(number)).await, Err(Rejection::ValidationUnavailable(_))));
    }
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
    assert_eq!(rig.emulator.counts().validations, calls);
}

#[tokio::test]
async fn call_refused_by_budget_takes_no_breaker_probe() {
    // Two of the eight are reserved for keys that were good.
    let rig = Rig::start(Settings { max_per_minute: Some(8), ..Settings::default() }).await;
    let good = rig.issue_key();
    rig.validate(&good).await.unwrap();
    rig.set_status_fault(Target::Validate, 500);
    for number in 0..5 {
        assert_eq!(rig.validate(&unknown_key(number)).await.unwrap_err(), unavailable());
    }
    assert_eq!(rig.metrics.breaker_open.get(), 1);
    rig.emulator.clear_faults();
    let probe_is_due = async {
        while let Err(Rejection::ValidationUnavailable(wait)) = rig.validate(&unknown_key(5)).await {
            sleep(wait).await;
        }
    };
    timeout(TEST_TIMEOUT, probe_is_due).await.expect("a probe in time");
    assert!(rig.validate(&good).await.is_ok(), "the probe is left for a call that is made");
}

#[tokio::test]
async fn queued_requests_make_no_calls_in_outage() {
    let rig = Rig::start(Settings { max_in_flight: 6, timeout: TEST_TIMEOUT, ..Settings::default() }).await;
    rig.validate(&rig.issue_key()).await.unwrap();
    rig.set_fault(Target::Validate, Effect::Hang);
    rig.set_status_fault(Target::Validate, 500);
    let requests: Vec<_> = (0..200).map(|number| rig.spawn_validation(&unknown_key(number))).collect();
    rig.wait_for_waiting(200).await;
    rig.emulator.validations_begun(6).await;
    rig.emulator.clear_faults();
    rig.set_status_fault(Target::Validate, 500);
    for request in requests {
        assert!(matches!(request.await.unwrap(), Err(Rejection::ValidationUnavailable(_))));
    }
    let calls = rig.emulator.counts().validations - 1;
    assert!(calls <= 10, "{calls}");
}

#[tokio::test]
async fn one_deadline_covers_token_calls_and_retries() {
    let rig = Rig::start(short(300)).await;
    rig.validate(&rig.issue_key()).await.unwrap();
    for (target, effect) in [
        (Target::Validate, Effect::Hang),
        (Target::Validate, Effect::HangAfter),
        (Target::Validate, Effect::Latency(Duration::from_millis(170))),
    ] {
        rig.set_fault(target, effect.clone());
        if matches!(effect, Effect::Latency(_)) {
            rig.set_status_fault(Target::Validate, 503);
        }
        let began = Instant::now();
        assert_eq!(rig.validate(&rig.issue_key()).await.unwrap_err(), unavailable());
        assert!(began.elapsed() < Duration::from_millis(450), "{effect:?}: {:?}", began.elapsed());
        rig.emulator.clear_faults();
    }
    rig.set_fault(Target::Token, Effect::Hang);
    rig.emulator.expire_access_tokens();
    let began = Instant::now();
    assert_eq!(rig.validate(&rig.issue_key()).await.unwrap_err(), unavailable());
    assert!(began.elapsed() < Duration::from_millis(450), "{:?}", began.elapsed());
}

#[tokio::test]
async fn hanging_call_frees_its_place_at_deadline() {
    let rig = Rig::start(Settings { max_in_flight: 1, ..short(200) }).await;
    let key = rig.issue_key();
    rig.validate(&key).await.unwrap();
    rig.emulator.set_fault(Fault::new(Target::Validate, Effect::Hang).times(1));
    assert_eq!(rig.validate(&key).await.unwrap_err(), unavailable());
    assert!(rig.validate(&key).await.is_ok(), "the place is free");
}

#[tokio::test]
async fn only_transient_errors_are_retried() {
    let rig = Rig::start(Settings::default()).await;
    rig.validate(&rig.issue_key()).await.unwrap();
    let status = |status| Effect::Answer(Answer::status(status));
    for (effect, tries) in [
        (Effect::Reset, 2),
        (Effect::Truncated, 2),
        (status(502), 2),
        (status(503), 2),
        (status(504), 2),
        (status(500), 1),
        (status(501), 1),
        (status(403), 1),
        (status(404), 1),
        (Effect::Garbage, 1),
        // This one last, as unknown keys are held for a second after it.
        (status(429), 1),
    ] {
        let before = rig.emulator.counts().validations;
        rig.emulator.set_fault(Fault::new(Target::Validate, effect.clone()).times(1));
        let answer = rig.validate(&rig.issue_key()).await;
        assert_eq!(rig.emulator.counts().validations - before, tries, "{effect:?}");
        assert_eq!(answer.is_ok(), tries == 2, "{effect:?}: {answer:?}");
    }
}

#[tokio::test]
async fn outage_does_not_double_load() {
    let rig = Rig::start(Settings::default()).await;
    rig.validate(&rig.issue_key()).await.unwrap();
    rig.set_fault(Target::Validate, Effect::Hang);
    rig.set_status_fault(Target::Validate, 503);
    let requests: Vec<_> = (0..100).map(|number| rig.spawn_validation(&unknown_key(number))).collect();
    rig.wait_for_waiting(100).await;
    rig.emulator.validations_begun(101).await;
    rig.emulator.clear_faults();
    rig.set_status_fault(Target::Validate, 503);
    for request in requests {
        assert!(request.await.unwrap().is_err());
    }
    let calls = rig.emulator.counts().validations - 1;
    assert!((100..=110).contains(&calls), "{calls}");
}

#[tokio::test]
async fn concurrent_calls_and_waiting_requests_are_capped() {
    let rig = Rig::start(Settings { max_in_flight: 3, max_waiting: 6, ..Settings::default() }).await;
    let keys: Vec<_> = (0..8).map(|_| rig.issue_key()).collect();
    rig.set_fault(Target::Validate, Effect::Hang);
    let requests: Vec<_> = keys.iter().map(|key| rig.spawn_validation(key)).collect();
    rig.wait_for_waiting(8).await;
    let began = Instant::now();
    for number in 0..20 {
        assert_eq!(rig.validate(&unknown_key(number)).await.unwrap_err(), Rejection::Overloaded(SECOND));
    }
    assert!(began.elapsed() < Duration::from_millis(100), "at once: {:?}", began.elapsed());
    rig.emulator.validations_begun(3).await;
    rig.emulator.clear_faults();
    for request in requests {
        assert!(request.await.unwrap().is_ok());
    }
    let counts = rig.emulator.counts();
    assert_eq!((counts.validations, counts.validations_open_max), (8, 3));
    assert!(rig.validate(&rig.issue_key()).await.is_ok());
}

#[tokio::test]
async fn requests_beyond_max_waiting_are_overloaded() {
    let scalekit = "max_in_flight = 1\nmax_waiting = 0";
    let stage = Stage::with(Setup { scalekit, ..Setup::default() }).await;
    let (key, before) = (stage.issue_key(), stage.emulator.counts().validations);
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Hang));
    let mut first = stage.connect().await;
    first.send(format!("GET /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n")).await;
    stage.emulator.validations_begun(before + 1).await;
    let reply = stage.get("/v1", &key).await;
    assert_eq!((reply.status, reply.code()), (503, Some("overloaded")));
    assert_eq!(reply.header("retry-after"), Some("1"));
    stage.emulator.clear_faults();
    assert_eq!(first.read_reply().await.status, 200);
}

#[tokio::test]
async fn connections_closed_by_scalekit_are_replaced() {
    for http2 in [false, true] {
        let rig = Rig::with(Plan { http2, ..Plan::default() }).await;
        let keys: Vec<_> = (0..8).map(|_| rig.issue_key()).collect();
        for _ in 0..20 {
            let requests: Vec<_> = keys.iter().map(|key| rig.spawn_validation(key)).collect();
            for request in requests {
                request.await.unwrap().expect("good");
            }
            rig.emulator.close_connections();
            // Until the closed connections are noticed; calls sent meanwhile are retried within the budget.
            sleep(Duration::from_millis(3)).await;
        }
        let failed = rig.metrics.validations.get_or_create(&Outcome { outcome: "unreachable" }).get();
        assert_eq!(failed, 0, "http2: {http2}");
    }
}

#[tokio::test]
async fn timed_out_call_closes_its_connection_once() {
    let rig = Rig::with(Plan { validator: short(200), http2: true, ..Plan::default() }).await;
    let (key, other) = (rig.issue_key(), rig.issue_key());
    rig.validate(&key).await.unwrap();
    let connections = rig.emulator.counts().connections;
    rig.emulator.set_fault(Fault::new(Target::Validate, Effect::Hang).times(2));
    let first = rig.spawn_validation(&key);
    rig.emulator.validations_begun(2).await;
    sleep(Duration::from_millis(100)).await;
    let second = rig.spawn_validation(&other);
    first.await.unwrap().unwrap_err();
    let timeouts = || rig.metrics.validations.get_or_create(&Outcome { outcome: "timeout" }).get();
    wait_until(|| timeouts() == 1).await;
    rig.validate(&key).await.expect("a new connection");
    second.await.unwrap().unwrap_err();
    wait_until(|| timeouts() == 2).await;
    rig.validate(&key).await.expect("the same, which is younger than the call that failed");
    assert_eq!(rig.emulator.counts().connections, connections + 1);
}

/// A Scalekit over HTTP/2 that calls every key valid; `going` makes its first connection send GOAWAY. HTTP/1.1 connections,
/// for access tokens, are not counted.
async fn going_away(
    going: watch::Receiver<bool>,
    release: Arc<Notify>,
) -> (std::net::SocketAddr, Arc<AtomicU64>) {
    let (listener, address) = bind_loopback().await;
    let connections = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut start = [0; 3];
            stream.peek(&mut start).await.unwrap();
            let is_http2 = start == *b"PRI";
            let number = if is_http2 { counted.fetch_add(1, Ordering::SeqCst) } else { 0 };
            let (mut going, release) = (going.clone(), Arc::clone(&release));
            tokio::spawn(async move {
                let answer = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let release = Arc::clone(&release);
                    async move {
                        let token = request.uri().path() == "/oauth/token";
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let held = String::from_utf8_lossy(&body).contains("0000held");
                        if held {
                            release.notified().await;
                        }
                        let body = if token {
                            r#"{"access_token":"x","expires_in":3600}"#
                        } else {
                            r#"{"token_info":{"organization_id":"org_1"}}"#
                        };
                        Ok::<_, Infallible>(hyper::Response::new(Full::new(bytes::Bytes::from(body))))
                    }
                });
                if !is_http2 {
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), answer).await;
                    return;
                }
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer);
                let mut connection = std::pin::pin!(connection);
                let told = async {
                    // Only the first connection sends GOAWAY.
                    if number > 0 {
                        std::future::pending::<()>().await;
                    }
                    let _ = going.wait_for(|going| *going).await;
                };
                tokio::select! {
                    _ = connection.as_mut() => return,
                    () = told => connection.as_mut().graceful_shutdown(),
                }
                let _ = connection.await;
            });
        }
    });
    (address, connections)
}

#[tokio::test]
async fn calls_move_to_new_connection_after_goaway() {
    let (going, release) = (watch::Sender::new(false), Arc::new(Notify::new()));
    let (address, connections) = going_away(going.subscribe(), Arc::clone(&release)).await;
    let rig = Rig::with(Plan { http2: true, scalekit_address: Some(address), ..Plan::default() }).await;
    let held = "00000000000000000000000000held";
    let under_way = rig.spawn_validation(held);
    rig.validate(&unknown_key(1)).await.unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    going.send_replace(true);
    sleep(Duration::from_millis(20)).await;
    for number in 0..10 {
        rig.validate(&unknown_key(number)).await.expect("on a new connection");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2);
    release.notify_one();
    under_way.await.unwrap().expect("a GOAWAY lets end what is under way");
    assert_eq!(rig.metrics.validation_retries.get(), 0, "what was never sent needs no retry");
}

#[test]
fn idle_connections_are_closed_before_scalekit_does() {
    let origin = origin_settings(&"https://acme.scalekit.com".parse().unwrap(), None);
    assert!(origin.idle_timeout < Duration::from_secs(240));
}
