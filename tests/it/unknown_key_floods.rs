//! Floods of unknown keys affect neither recently good keys nor the end of a revoked key's stream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keyward_emulator::faults::{Effect, Fault, Quota, Target};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::support::raw::Client;
use crate::support::{Setup, Stage, TEST_TIMEOUT, wait_until};

/// One interval of a second, with a margin for a busy machine.
const SOON: Duration = Duration::from_millis(1400);

/// Connections that send unknown keys until this is dropped.
struct Flood {
    _senders: JoinSet<()>,
    unavailable: Arc<AtomicU64>,
}

impl Flood {
    /// Each connection sends a key after each pause, or as soon as it has the last response.
    fn start(address: SocketAddr, connections: usize, pause: Duration) -> Self {
        let (mut senders, unavailable) = (JoinSet::new(), Arc::<AtomicU64>::default());
        for _ in 0..connections {
            let unavailable = Arc::clone(&unavailable);
            senders.spawn(async move {
                let mut client = Client::connect(address).await;
                loop {
                    let key = format!("{:030}", fastrand::u64(..));
                    let head = format!("GET /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n");
                    client.send(head).await;
                    if client.read_reply().await.status == 503 {
                        unavailable.fetch_add(1, Ordering::Relaxed);
                    }
                    sleep(pause).await;
                }
            });
        }
        Self { _senders: senders, unavailable }
    }

    /// About two hundred keys a second.
    fn steady(stage: &Stage) -> Self {
        Self::start(stage.address, 10, Duration::from_millis(50))
    }

    /// Waits until Keyward or Scalekit refuses keys of the flood.
    async fn is_refused(&self) {
        wait_until(|| self.unavailable.load(Ordering::Relaxed) > 20).await;
    }
}

async fn statuses(stage: &Stage, key: &str, requests: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..requests {
        statuses.push(stage.get("/v1", key).await.status);
        sleep(Duration::from_millis(20)).await;
    }
    statuses
}

fn throttling(stage: &Stage) {
    let quota = Quota::new(40, Duration::from_secs(2), Some(30));
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Quota(quota)));
}

/// The time that an event stream continues after its key was revoked.
async fn stream_outlives_revocation(stage: &Stage, flood: impl FnOnce() -> Flood) -> Duration {
    let key = stage.issue_key();
    let mut client = stage.connect().await;
    let head = format!("GET /events?every=20ms HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n");
    client.send(head).await;
    assert_eq!(client.read_head().await.status, 200);
    let flood = flood();
    flood.is_refused().await;
    stage.emulator.revoke(&key);
    let began = Instant::now();
    timeout(TEST_TIMEOUT, client.read_to_end()).await.expect("it ends");
    began.elapsed()
}

const EVERY_SECOND: &str = "[streams]\nrevalidate_every = \"1s\"\nunconfirmed_for = \"1m\"";

#[tokio::test]
async fn revoked_stream_ends_when_budget_is_used_up() {
    let scalekit = "validations_per_minute = 60";
    let stage = Stage::with(Setup { scalekit, sections: EVERY_SECOND, ..Setup::default() }).await;
    let lived = stream_outlives_revocation(&stage, || Flood::steady(&stage)).await;
    assert!(lived < SOON, "{lived:?}");
}

#[tokio::test]
async fn revoked_stream_ends_when_scalekit_throttles() {
    let stage = Stage::with(Setup { sections: EVERY_SECOND, ..Setup::default() }).await;
    throttling(&stage);
    let lived = stream_outlives_revocation(&stage, || Flood::steady(&stage)).await;
    assert!(lived < SOON, "{lived:?}");
}

#[tokio::test]
async fn revoked_stream_ends_when_calls_are_taken() {
    let scalekit = "max_in_flight = 4\nmax_waiting = 40";
    let stage = Stage::with(Setup { scalekit, sections: EVERY_SECOND, ..Setup::default() }).await;
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Latency(Duration::from_millis(200))));
    let flood = || Flood::start(stage.address, 60, Duration::ZERO);
    let lived = stream_outlives_revocation(&stage, flood).await;
    assert!(lived < SOON + Duration::from_millis(200), "{lived:?}");
}

#[tokio::test]
async fn good_key_passes_when_budget_is_used_up() {
    let stage = Stage::with(Setup { scalekit: "validations_per_minute = 600", ..Setup::default() }).await;
    let key = stage.issue_key();
    assert_eq!(stage.get("/v1", &key).await.status, 200);
    let flood = Flood::start(stage.address, 10, Duration::from_millis(5));
    flood.is_refused().await;
    assert_eq!(statuses(&stage, &key, 25).await, [200; 25]);
}

#[tokio::test]
async fn good_key_passes_when_scalekit_throttles() {
    let stage = Stage::start().await;
    let key = stage.issue_key();
    assert_eq!(stage.get("/v1", &key).await.status, 200);
    throttling(&stage);
    let flood = Flood::steady(&stage);
    flood.is_refused().await;
    assert_eq!(statuses(&stage, &key, 25).await, [200; 25]);
    let calls = stage.emulator.counts().validations;
    // A burst of the quota, the calls in progress when the first 429 came, and those of good keys with a few retries.
    assert!(calls < 40 + 20 + 25 + 25, "{calls}");
}

#[tokio::test]
async fn good_key_passes_when_waiting_places_are_taken() {
    let scalekit = "max_in_flight = 8\nmax_waiting = 16";
    let stage = Stage::with(Setup { scalekit, ..Setup::default() }).await;
    let key = stage.issue_key();
    assert_eq!(stage.get("/v1", &key).await.status, 200);
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Latency(Duration::from_millis(300))));
    let flood = Flood::start(stage.address, 40, Duration::ZERO);
    flood.is_refused().await;
    let began = Instant::now();
    assert_eq!(statuses(&stage, &key, 5).await, [200; 5]);
    assert!(
        began.elapsed() < 5 * Duration::from_millis(500),
        "none waits behind junk: {:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn good_keys_call_throttling_scalekit_at_bounded_rate() {
    let stage = Stage::start().await;
    let key = stage.issue_key();
    assert_eq!(stage.get("/v1", &key).await.status, 200);
    let before = stage.emulator.counts().validations;
    // No request passes.
    let quota = Quota::new(0, Duration::from_secs(1), Some(1));
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Quota(quota)));
    let until = Instant::now() + Duration::from_secs(2);
    let ask = async || {
        let mut client = stage.connect().await;
        while Instant::now() < until {
            let head = format!("GET /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n");
            client.send(head).await;
            let reply = client.read_reply().await;
            assert_eq!((reply.status, reply.code()), (503, Some("validation_unavailable")));
        }
    };
    futures_util::future::join_all((0..20).map(|_| ask())).await;
    let calls = stage.emulator.counts().validations - before;
    assert!((3..=14).contains(&calls), "{calls}");
    // The effect of the flood ends as soon as Scalekit responds.
    stage.emulator.clear_faults();
    assert_eq!(statuses(&stage, &key, 5).await, [200; 5]);
}
