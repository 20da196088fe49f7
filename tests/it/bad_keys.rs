//! Bad keys: remembered for a short time in bounded memory, and throttled by address, without affecting good keys.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use keyward::rejection::Rejection;
use keyward::validator::Settings;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::{Instant, sleep, sleep_until};

use crate::rig::{Rig, unknown_key};
use crate::support::raw::Reply;
use crate::support::{Setup, Stage};

const SECOND: Duration = Duration::from_secs(1);

fn throttled(per_minute: u32) -> Settings {
    Settings { bad_keys_per_minute: Some(per_minute), ..Settings::default() }
}

fn address(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

#[tokio::test]
async fn bad_key_costs_one_call_per_ttl() {
    let ttl = Duration::from_millis(400);
    let rig = Rig::start(Settings { negative_ttl: ttl, ..Settings::default() }).await;
    let began = Instant::now();
    let mut tries = 0;
    while began.elapsed() < 3 * ttl {
        assert_eq!(rig.validate(&unknown_key(1)).await.unwrap_err(), Rejection::InvalidKey);
        tries += 1;
        sleep(Duration::from_millis(1)).await;
    }
    let calls = rig.emulator.counts().validations;
    assert!((3..=4).contains(&calls), "hits do not prolong it: {calls} calls for {tries} tries");
    assert!(tries > 100);
}

#[tokio::test]
async fn key_that_becomes_valid_is_accepted_after_ttl() {
    let ttl = Duration::from_millis(300);
    let rig = Rig::start(Settings { negative_ttl: ttl, ..Settings::default() }).await;
    let key = rig.issue_key();
    // A lagging replica does not know the new key yet.
    rig.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(404))).times(1));
    assert_eq!(rig.validate(&key).await.unwrap_err(), Rejection::InvalidKey);
    let until = Instant::now() + ttl;
    let mut refused = 0;
    while Instant::now() < until - Duration::from_millis(50) {
        assert_eq!(rig.validate(&key).await.unwrap_err(), Rejection::InvalidKey);
        refused += 1;
        sleep(Duration::from_millis(5)).await;
    }
    assert!(refused > 5);
    sleep_until(until + Duration::from_millis(10)).await;
    assert!(rig.validate(&key).await.is_ok());
}

#[tokio::test]
async fn without_ttl_no_bad_key_is_remembered() {
    let rig = Rig::start(Settings { negative_ttl: Duration::ZERO, ..Settings::default() }).await;
    for _ in 0..3 {
        assert_eq!(rig.validate(&unknown_key(1)).await.unwrap_err(), Rejection::InvalidKey);
    }
    assert_eq!(rig.emulator.counts().validations, 3);
}

#[tokio::test]
async fn remembered_bad_keys_are_bounded_in_number() {
    let rig = Rig::start(Settings { negative_entries: 50, ..Settings::default() }).await;
    for number in 0..400 {
        assert_eq!(rig.validate(&unknown_key(number)).await.unwrap_err(), Rejection::InvalidKey);
    }
    rig.validator.update_gauges();
    let entries = rig.metrics.negative_entries.get();
    assert!((1..=50).contains(&entries), "{entries}");
}

#[tokio::test]
async fn bad_key_flood_of_one_address_is_429() {
    let rig = Rig::start(throttled(60)).await;
    let (good, flood, other) = (rig.issue_key(), address("192.0.2.1"), address("192.0.2.2"));
    rig.validate_from(&good, flood).await.unwrap();
    let began = Instant::now();
    let mut refused = 0_u64;
    for number in 0..2000 {
        match rig.validate_from(&unknown_key(number), flood).await.unwrap_err() {
            Rejection::InvalidKey => {}
            Rejection::Throttled(wait) => {
                assert!(wait <= SECOND, "{wait:?}");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    let (calls, refilled) = (rig.emulator.counts().validations - 1, began.elapsed().as_secs() + 1);
    assert!((60..=60 + refilled).contains(&calls), "{calls}");
    assert_eq!((rig.metrics.throttled.get(), refused + calls), (refused, 2000));
    // A key that was good is validated at once; an unknown key is throttled.
    rig.validate_from(&good, flood).await.expect("it was good a moment ago");
    let never = rig.issue_key();
    assert!(matches!(rig.validate_from(&never, flood).await, Err(Rejection::Throttled(_))));
    rig.validate_from(&never, other).await.expect("elsewhere");
    rig.emulator.revoke(&good);
    assert_eq!(
        rig.validate_from(&good, flood).await.unwrap_err(),
        Rejection::InvalidKey,
        "a hint is no verdict"
    );
}

#[tokio::test]
async fn only_keys_scalekit_calls_bad_are_throttled() {
    let rig = Rig::start(throttled(6)).await;
    let client = address("192.0.2.1");
    // Concurrent requests of one key count one bad key for each call.
    rig.set_fault(Target::Validate, Effect::Hang);
    let requests: Vec<_> = (0..40).map(|_| rig.validate_from("00000000000000000000one", client)).collect();
    let release = async {
        rig.wait_for_waiting(40).await;
        rig.emulator.validations_begun(4).await;
        rig.emulator.clear_faults();
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(requests), release);
    assert!(answers.iter().all(|answer| *answer == Err(Rejection::InvalidKey)), "{answers:?}");
    rig.validate_from(&rig.issue_key(), client).await.expect("four of six were used");

    let rig = Rig::start(throttled(3)).await;
    for _ in 0..20 {
        assert_eq!(rig.validate_from(&unknown_key(1), client).await.unwrap_err(), Rejection::InvalidKey);
    }
    rig.set_status_fault(Target::Validate, 403);
    for number in 0..20 {
        let unavailable = Rejection::ValidationUnavailable(SECOND);
        assert_eq!(rig.validate_from(&unknown_key(number + 2), client).await.unwrap_err(), unavailable);
    }
    rig.emulator.clear_faults();
    rig.validate_from(&rig.issue_key(), client).await.expect("one of three was used");
}

#[tokio::test]
async fn throttle_ignores_untrusted_forwarded_for() {
    let stage =
        Stage::with(Setup { sections: "[throttle]\nbad_keys_per_minute = 2", ..Setup::default() }).await;
    for (number, status) in [(0, 401), (1, 401), (2, 429), (3, 429)] {
        let reply =
            ask_from("127.0.0.1", stage.address, &unknown_key(number), &format!("203.0.113.{number}")).await;
        assert_eq!(reply.0, status, "{number}");
    }
    let reply = stage.get("/v1", &unknown_key(4)).await;
    assert_eq!((reply.status, reply.code()), (429, Some("throttled")));
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    assert_eq!(
        ask_from("127.0.0.2", stage.address, &unknown_key(5), "127.0.0.1").await.0,
        401,
        "another address"
    );
}

#[tokio::test]
async fn throttle_uses_client_address_of_trusted_proxies() {
    let stage = Stage::with(Setup {
        server: "trusted_proxies = [\"127.0.0.0/8\"]",
        sections: "[throttle]\nbad_keys_per_minute = 2",
        ..Setup::default()
    })
    .await;
    let mut number = 0;
    let mut ask = async |forwarded: &str| -> Reply {
        number += 1;
        let key = unknown_key(number);
        let request = format!(
            "GET /v1 HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {forwarded}\r\nauthorization: Bearer {key}\r\n\r\n"
        );
        stage.send(request).await
    };
    for (forwarded, status) in [
        ("203.0.113.1", 401),
        ("203.0.113.1", 401),
        ("203.0.113.1", 429),
        // A header that the client wrote itself has no effect.
        ("198.51.100.9, 203.0.113.1", 429),
        ("203.0.113.1, 127.0.0.9", 429),
        ("203.0.113.2", 401),
        // An IPv6 subscriber has a /64.
        ("2001:db8::1", 401),
        ("2001:db8::2", 401),
        ("2001:db8:0:0:ffff::3", 429),
        ("2001:db8:0:1::1", 401),
        // The same as 203.0.113.1.
        ("::ffff:203.0.113.1", 429),
    ] {
        assert_eq!(ask(forwarded).await.status, status, "{forwarded}");
    }
}

#[tokio::test]
async fn validation_budget_holds_and_shows_headroom() {
    let stage = Stage::with(Setup { scalekit: "validations_per_minute = 60", ..Setup::default() }).await;
    let (key, before) = (stage.issue_key(), stage.emulator.counts().validations);
    assert_eq!(headroom(&stage).await.round() as u64, 60);
    let began = Instant::now();
    let mut overloaded = 0;
    for _ in 0..100 {
        let reply = stage.get("/v1", &key).await;
        match (reply.status, reply.code()) {
            (200, None) => {}
            (503, Some("overloaded")) => {
                assert_eq!(reply.header("retry-after"), Some("1"));
                overloaded += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    let (calls, refilled) = (stage.emulator.counts().validations - before, began.elapsed().as_secs() + 1);
    assert!((60..=60 + refilled).contains(&calls), "{calls}");
    assert_eq!(calls + overloaded, 100);
    assert!(headroom(&stage).await < 1.0 + refilled as f64);
}

async fn headroom(stage: &Stage) -> f64 {
    let text = stage.get_admin("/metrics").await.text();
    let line = text.lines().find(|line| line.starts_with("keyward_validation_headroom ")).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

/// One request from the given loopback address: the status, and the whole response.
async fn ask_from(from: &str, to: SocketAddr, key: &str, forwarded: &str) -> (u16, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let request = format!(
        "GET /v1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-forwarded-for: {forwarded}\r\nauthorization: Bearer {key}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

#[tokio::test]
async fn bad_keys_per_minute_limit_holds_per_address() {
    let settings = Settings { bad_keys_per_minute: Some(300), ..Settings::default() };
    let rig = Arc::new(Rig::start(settings).await);
    rig.set_fault(Target::Validate, Effect::Latency(Duration::from_millis(300)));
    let client = Some(std::net::IpAddr::from([192, 0, 2, 1]));
    let asked: Vec<_> = (0..1900)
        .map(|number| {
            let rig = Arc::clone(&rig);
            tokio::spawn(async move { rig.validate_from(&unknown_key(number), client).await })
        })
        .collect();
    for asked in asked {
        assert!(asked.await.unwrap().is_err());
    }
    let calls = rig.emulator.counts().validations;
    assert!(calls <= 330, "{calls} calls within two seconds, of 300 a minute");
}
