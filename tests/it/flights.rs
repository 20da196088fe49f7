//! Shared validations: no request uses a validation that began before it arrived, in every interleaving of the bookkeeping
//! and in random schedules of the validator.

mod model;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward::rejection::Rejection;
use keyward::validator::Settings;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::rig::{Rig, unknown_key};
use crate::support::{Stage, TEST_TIMEOUT};

fn at_once(max_in_flight_per_key: usize) -> Settings {
    Settings { max_in_flight_per_key, timeout: Duration::from_secs(60), ..Settings::default() }
}

#[tokio::test]
async fn concurrent_requests_of_one_key_share_flights() {
    let rig = Rig::start(at_once(4)).await;
    let key = rig.issue_key();
    rig.set_fault(Target::Validate, Effect::Hang);
    let requests: Vec<_> = (0..50).map(|_| rig.spawn_validation(&key)).collect();
    rig.wait_for_waiting(50).await;
    rig.emulator.validations_begun(4).await;
    rig.emulator.clear_faults();
    for request in requests {
        assert!(request.await.unwrap().is_ok());
    }
    let counts = rig.emulator.counts();
    assert_eq!((counts.validations, counts.validations_open_max), (5, 4));
}

#[tokio::test]
async fn shared_flight_admits_no_request_after_revocation() {
    let rig = Rig::start(at_once(2)).await;
    let key = rig.issue_key();
    rig.set_fault(Target::Validate, Effect::HangAfter);
    let early = [rig.spawn_validation(&key), rig.spawn_validation(&key), rig.spawn_validation(&key)];
    rig.wait_for_waiting(3).await;
    rig.emulator.validations_begun(2).await;
    crate::support::wait_until(|| rig.emulator.counts().validations_decided == 2).await;
    assert!(rig.emulator.revoke(&key));
    let late = [rig.spawn_validation(&key), rig.spawn_validation(&key)];
    rig.wait_for_waiting(5).await;
    rig.emulator.clear_faults();
    let [first, second, third] = early;
    assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok(), "they were asked about before");
    for request in late.into_iter().chain([third]) {
        assert_eq!(request.await.unwrap().unwrap_err(), Rejection::InvalidKey);
    }
}

#[tokio::test]
async fn verdict_does_not_wait_for_the_next_flight() {
    let rig = Rig::start(at_once(1)).await;
    let key = rig.issue_key();
    rig.set_fault(Target::Validate, Effect::Latency(Duration::from_millis(200)));
    let first = rig.spawn_validation(&key);
    rig.emulator.validations_begun(1).await;
    rig.set_fault(Target::Validate, Effect::Hang);
    let second = rig.spawn_validation(&key);
    rig.wait_for_waiting(2).await;
    let answer = timeout(TEST_TIMEOUT, first).await.expect("the flight behind it is not its own");
    assert!(answer.unwrap().is_ok());
    rig.emulator.validations_begun(2).await;
    rig.emulator.clear_faults();
    assert!(second.await.unwrap().is_ok(), "somebody flies it when the first request is gone");
}

#[tokio::test]
async fn disconnected_client_does_not_cancel_flight() {
    let rig = Rig::start(at_once(1)).await;
    let key = rig.issue_key();
    rig.set_fault(Target::Validate, Effect::Hang);
    let leaves = rig.spawn_validation(&key);
    rig.emulator.validations_begun(1).await;
    let (leaves_too, stays) = (rig.spawn_validation(&key), rig.spawn_validation(&key));
    rig.wait_for_waiting(3).await;
    leaves.abort();
    leaves_too.abort();
    rig.wait_for_waiting(1).await;
    assert_eq!(rig.emulator.counts().validations_open, 1, "no call is reset");
    rig.emulator.clear_faults();
    assert!(stays.await.unwrap().is_ok());
    assert_eq!(rig.emulator.counts().validations, 2);
}

#[tokio::test]
async fn abandoned_flight_is_not_sent() {
    let rig = Rig::start(Settings { max_in_flight: 1, ..at_once(1) }).await;
    let (key, other) = (rig.issue_key(), rig.issue_key());
    rig.set_fault(Target::Validate, Effect::Hang);
    let stays = rig.spawn_validation(&key);
    rig.emulator.validations_begun(1).await;
    // One boards the next flight of this key, one waits for a place with a flight of its own.
    let leave = [rig.spawn_validation(&key), rig.spawn_validation(&other)];
    rig.wait_for_waiting(3).await;
    leave.iter().for_each(tokio::task::JoinHandle::abort);
    rig.wait_for_waiting(1).await;
    rig.emulator.clear_faults();
    assert!(stays.await.unwrap().is_ok());
    assert!(rig.validate(&key).await.is_ok() && rig.validate(&other).await.is_ok(), "the next ones fly");
    assert_eq!(rig.emulator.counts().validations, 3);
    assert_eq!(rig.emulator.validations_of(&other), 1);
}

#[tokio::test]
async fn failed_flight_fails_all_aboard() {
    let rig = Rig::start(at_once(1)).await;
    let key = rig.issue_key();
    rig.set_fault(Target::Validate, Effect::Latency(Duration::from_millis(100)));
    rig.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(500))).times(1));
    let requests: Vec<_> = (0..4).map(|_| rig.spawn_validation(&key)).collect();
    let answers: Vec<_> = futures_util::future::join_all(requests).await;
    let failed = answers.iter().filter(|answer| answer.as_ref().unwrap().is_err()).count();
    assert_eq!(failed, 1, "the one in the air failed; those who boarded the next are served by it");
    assert_eq!(rig.emulator.counts().validations, 2);
}

/// A subscriber that panics when a flight logs an error.
struct Panicking(AtomicBool);

impl tracing::Subscriber for Panicking {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == "keyward::validator::call"
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        assert!(self.0.swap(true, Ordering::Relaxed), "a flight crashes, as this test wants it to");
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn panicked_flight_wakes_all_and_frees_key() {
    let rig = Rig::start(at_once(1)).await;
    let key = rig.issue_key();
    rig.set_fault(Target::Validate, Effect::Latency(Duration::from_millis(500)));
    rig.set_fault(Target::Validate, Effect::Answer(Answer::status(403)));
    // With one subscriber, tracing asks only that of the thread which reaches a call site first. Another test's thread has
    // none, which would disable the event for good. With two, it asks both.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let _panicking = tracing::subscriber::set_default(Panicking(AtomicBool::new(false)));
    let requests: Vec<_> = (0..3).map(|_| rig.spawn_validation(&key)).collect();
    // All must wait before the response comes, as a later one would begin a flight of its own.
    rig.wait_for_waiting(3).await;
    for request in requests {
        let answer = timeout(TEST_TIMEOUT, request).await.expect("nobody waits in vain").unwrap();
        assert_eq!(answer.unwrap_err(), Rejection::ValidationUnavailable(Duration::from_secs(1)));
    }
    assert_eq!(rig.emulator.counts().validations, 1, "the panic was in the first flight");
    rig.emulator.clear_faults();
    assert!(rig.validate(&key).await.is_ok());
}

#[tokio::test]
async fn random_schedules_admit_no_request_after_revocation() {
    let mut random = fastrand::Rng::with_seed(0x6b65_7977_6172_6421);
    let (mut served, mut refused) = (0, 0);
    for round in 0..12 {
        let limit = random.usize(1..=4);
        let rig = Rig::start(at_once(limit)).await;
        let key = rig.issue_key();
        rig.set_fault(Target::Validate, Effect::LatencyAfter(Duration::from_millis(random.u64(2..25))));
        let revoke_at = random.usize(20..60);
        let mut requests = JoinSet::new();
        let mut leaving = Vec::new();
        for number in 0..80 {
            if number == revoke_at {
                assert!(rig.emulator.revoke(&key));
            }
            let (validator, key) = (Arc::clone(&rig.validator), crate::rig::parse_key(&key));
            let handle = requests.spawn(async move {
                (number, validator.validate(&key, validator.digest(&key), None, &mut None).await.map(|_| ()))
            });
            if random.u8(..4) == 0 {
                leaving.push(handle);
            }
            if random.u8(..3) == 0 {
                sleep(Duration::from_millis(random.u64(0..4))).await;
            }
            if random.u8(..6) == 0
                && let Some(handle) = leaving.pop()
            {
                handle.abort();
            }
        }
        while let Some(ended) = requests.join_next().await {
            match ended {
                Ok((number, Ok(()))) => {
                    assert!(number < revoke_at, "round {round}: {number} came after {revoke_at}, and got in");
                    served += 1;
                }
                Ok((number, Err(rejection))) => {
                    assert_eq!(rejection, Rejection::InvalidKey, "round {round}: {number}");
                    refused += 1;
                }
                Err(error) => assert!(error.is_cancelled(), "{error}"),
            }
        }
        assert!(rig.emulator.counts().validations_open_max <= limit as u64);
        assert_eq!(rig.metrics.validations_waiting.get(), 0);
    }
    assert!(served > 150 && refused > 250, "both were tried: {served} {refused}");
}

#[tokio::test]
async fn concurrent_requests_of_bad_key_share_one_refusal() {
    let rig = Rig::start(at_once(4)).await;
    rig.set_fault(Target::Validate, Effect::Hang);
    let requests: Vec<_> = (0..50).map(|_| rig.spawn_validation(&unknown_key(1))).collect();
    rig.wait_for_waiting(50).await;
    rig.emulator.validations_begun(4).await;
    rig.emulator.clear_faults();
    for request in requests {
        assert_eq!(request.await.unwrap().unwrap_err(), Rejection::InvalidKey);
    }
    assert_eq!(rig.emulator.counts().validations, 4, "those who waited were answered from memory");
}

#[tokio::test]
async fn revocation_holds_end_to_end_with_shared_flights() {
    let stage = Stage::start().await;
    let key = stage.issue_key();
    stage.emulator.set_fault("validate:latency-after=20ms".parse().unwrap());
    let revoked = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    let begun = stage.emulator.counts().validations;
    for _ in 0..16 {
        let (mut client, revoked) = (stage.connect().await, Arc::clone(&revoked));
        let request = format!("GET /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n");
        clients.spawn(async move {
            for _ in 0..200 {
                let late = revoked.load(Ordering::SeqCst);
                client.send(&request).await;
                match (client.read_reply().await.status, late) {
                    (200, false) => {}
                    (401, _) => return,
                    (status, late) => panic!("{status}, late: {late}"),
                }
            }
            panic!("never refused");
        });
    }
    stage.emulator.validations_begun(begun + 20).await;
    stage.emulator.revoke(&key);
    revoked.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}
