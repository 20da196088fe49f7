//! Limits that replicas share over a real Redis or Valkey server.

mod figures;
mod outage;

use std::collections::HashMap;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use keyward_emulator::store::Issue;

use crate::support::redis::RedisServer;
use crate::support::tls::Authority;
use crate::support::{Setup, Stage, bind_loopback, wait_until};

pub(crate) const ALL: &str = "[[routes]]\npath = \"/*\"\nupstream = \"echo\"";
/// Builders are slow where tests run at once: only the tests of outages have a short deadline.
const PATIENT: &str = "timeout = \"5s\"";

fn limit(requests: u32) -> String {
    format!("[rate_limits.shared]\nrequests = {requests}\nper = \"1day\"\nheaders = true\ndefault = true\n")
}

/// A replica, which validates with the emulator of `first` if there is one.
async fn start(sections: String, first: Option<&Stage>) -> Stage {
    let scalekit_address = first.map(|first| first.emulator_address);
    let sections = sections.leak();
    let stage = Stage::with(Setup { sections, routes: ALL, scalekit_address, ..Setup::default() }).await;
    wait_until_shared(&stage, true).await;
    stage
}

async fn wait_until_shared(stage: &Stage, is_up: bool) {
    let line = if is_up { "\nkeyward_shared_up 1.0\n" } else { "\nkeyward_shared_up 0.0\n" };
    wait_until(|| stage.metrics.encode().contains(line)).await;
}

async fn statuses(requests: impl Iterator<Item = (&Stage, &str)>) -> HashMap<u16, usize> {
    let mut counts = HashMap::new();
    // As many as a small machine accepts at once.
    let replies = futures_util::stream::iter(requests.map(|(stage, key)| stage.get("/", key)));
    let mut replies = replies.buffer_unordered(64);
    while let Some(reply) = replies.next().await {
        *counts.entry(reply.status).or_default() += 1;
    }
    counts
}

/// How often an allowance was asked for on the server, without the probes of `keep_connected`.
async fn count_trips(server: &RedisServer, during: impl Future<Output = ()>) -> usize {
    let client = redis::Client::open(format!("unix:{}", server.socket().display())).unwrap();
    let monitor = client.get_async_monitor().await.unwrap();
    let mut lines = monitor.into_on_message::<String>();
    during.await;
    server.ask::<String>("ECHO end-of-test").await;
    let mut trips = 0;
    while let Some(line) = lines.next().await {
        if line.contains("end-of-test") {
            break;
        }
        trips += usize::from(line.contains("\"EVALSHA\"") && !line.contains("\"1000.000\" \"1000\""));
    }
    trips
}

#[tokio::test]
async fn two_replicas_hold_one_limit() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let sections = server.section(PATIENT) + &limit(1000);
    let first = start(sections.clone(), None).await;
    let second = start(sections, Some(&first)).await;
    let keys: Vec<String> = (0..8).map(|_| first.issue_key()).collect();
    // Three quarters of the requests on one replica, and in sum more than are allowed.
    let requests = (0..1400).map(|number| {
        let stage = if number % 4 == 0 { &second } else { &first };
        (stage, &*keys[number % keys.len()])
    });
    let counts = statuses(requests).await;
    let passed = counts[&200];
    assert!((990..=1000).contains(&passed), "{counts:?}");
    assert_eq!(passed + counts[&429], 1400, "{counts:?}");
}

#[tokio::test]
async fn exhausted_limit_is_exhausted_on_every_replica() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let sections = server.section(PATIENT) + &limit(4);
    let first = start(sections.clone(), None).await;
    let second = start(sections.clone(), Some(&first)).await;
    let key = first.issue_key();
    for (stage, left) in [(&first, "r=3;"), (&second, "r=2;"), (&first, "r=1;"), (&second, "r=0;")] {
        let reply = stage.get("/", &key).await;
        assert_eq!(reply.status, 200);
        assert!(reply.header("ratelimit").unwrap().contains(left), "{left} {:?}", reply.header("ratelimit"));
    }
    let third = start(sections, Some(&first)).await;
    for stage in [&first, &second, &third] {
        let reply = stage.get("/", &key).await;
        assert_eq!((reply.status, reply.code()), (429, Some("rate_limited")));
        let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((86_400 / 4 - 60..=86_400 / 4).contains(&wait), "{wait}");
    }
    let other = first.issue(Issue { organization_id: "org_2".into(), ..Issue::default() }).key;
    assert_eq!(third.get("/", &other).await.status, 200);
}

#[tokio::test]
async fn one_trip_serves_many_requests() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let stage = start(server.section(PATIENT) + &limit(100_000), None).await;
    let key = stage.issue_key();
    let trips = count_trips(&server, async {
        let requests = (0..1000).map(|_| (&stage, &*key));
        assert_eq!(statuses(requests).await[&200], 1000);
    });
    let trips = trips.await;
    assert!((1..=100).contains(&trips), "{trips} trips for 1000 requests");
}

#[tokio::test]
async fn request_beyond_shared_limit_costs_no_trip() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let stage = start(server.section(PATIENT) + &limit(3), None).await;
    // Each with a key of its own, of which it is not known that its organization has nothing left.
    let keys: Vec<String> = (0..40).map(|_| stage.issue_key()).collect();
    let trips = count_trips(&server, async {
        for (number, key) in keys.iter().enumerate() {
            let expected = if number < 3 { 200 } else { 429 };
            assert_eq!(stage.get("/", key).await.status, expected, "{number}");
        }
    });
    assert_eq!(trips.await, 3);
}

#[tokio::test]
async fn request_refused_by_second_limit_returns_the_first() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let sections = server.section(PATIENT)
        + "[rate_limits.many]\nrequests = 4\nper = \"1day\"\ndefault = true\n\
           [rate_limits.few]\nby = \"key\"\nrequests = 2\nper = \"1day\"\ndefault = true\n";
    let stage = start(sections, None).await;
    let (first, second) = (stage.issue_key(), stage.issue_key());
    let mut statuses = Vec::new();
    for key in [&first, &first, &first, &first, &second, &second, &second] {
        statuses.push(stage.get("/", key).await.status);
    }
    assert_eq!(statuses, [200, 200, 429, 429, 200, 200, 429]);
}

#[tokio::test]
async fn replicas_share_budget_of_validations() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let setup = |scalekit_address| Setup {
        scalekit: "validations_per_minute = 80",
        sections: server.section(PATIENT).leak(),
        routes: ALL,
        scalekit_address,
        ..Setup::default()
    };
    let first = Stage::with(setup(None)).await;
    let second = Stage::with(setup(Some(first.emulator_address))).await;
    for stage in [&first, &second] {
        wait_until_shared(stage, true).await;
    }
    let good = first.issue_key();
    assert_eq!(first.get("/", &good).await.status, 200);
    let before = first.emulator.counts().validations;
    let began = std::time::Instant::now();
    let unknown: Vec<String> = (0..160).map(crate::rig::unknown_key).collect();
    let requests = unknown.iter().enumerate();
    let counts =
        statuses(requests.map(|(number, key)| (if number % 2 == 0 { &first } else { &second }, &**key)))
            .await;
    let refilled = began.elapsed().as_secs() * 80 / 60 + 1;
    let calls = first.emulator.counts().validations - before;
    // Of 80, a quarter is kept, and one was spent.
    assert!((57..=59 + refilled).contains(&calls), "{calls} {counts:?}");
    assert_eq!(counts[&401] as u64, calls, "{counts:?}");
    assert_eq!(first.get("/", &good).await.status, 200, "the kept quarter is for good keys");
}

#[tokio::test]
async fn server_sees_no_key_and_no_id() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let sections = server.section(PATIENT)
        + "[rate_limits.a]\nby = \"key\"\nrequests = 9\ndefault = true\n\
           [rate_limits.b]\nby = \"user\"\nrequests = 9\ndefault = true\n\
           [rate_limits.c]\nrequests = 9\nclaim = \"plan_claim\"\nmax = 99\ndefault = true\n";
    let stage = start(sections, None).await;
    let issued = stage.issue(Issue {
        organization_id: "org_visible".into(),
        user_id: "usr_visible".into(),
        custom_claims: [("plan_claim".to_owned(), "77".to_owned())].into(),
        ..Issue::default()
    });
    let client = redis::Client::open(format!("unix:{}", server.socket().display())).unwrap();
    let monitor = client.get_async_monitor().await.unwrap();
    assert_eq!(stage.get("/", &issued.key).await.status, 200);
    let keys: Vec<String> = server.ask("KEYS *").await;
    assert!(keys.len() >= 3 && keys.iter().all(|key| key.starts_with("keyward:")), "{keys:?}");
    let mut seen = keys.join("\n");
    let mut lines = monitor.into_on_message::<String>();
    server.ask::<String>("ECHO end-of-test").await;
    while let Some(line) = lines.next().await.filter(|line| !line.contains("end-of-test")) {
        seen.push_str(&line);
    }
    assert!(seen.contains("EVALSHA"), "{seen}");
    let id = issued.token_id.as_str();
    for word in ["visible", "org_", "usr_", "plan_claim", "Bearer", &issued.key, id] {
        assert!(!seen.contains(word), "{word} in {seen}");
    }
}

#[tokio::test]
async fn stored_allowance_expires_when_it_is_full() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let section = "[rate_limits.a]\nrequests = 10\nper = \"100s\"\ndefault = true\n";
    let stage = start(server.section(PATIENT) + section, None).await;
    let key = stage.issue_key();
    for _ in 0..2 {
        assert_eq!(stage.get("/", &key).await.status, 200);
    }
    let mut lives = Vec::new();
    for key in server.ask::<Vec<String>>("KEYS *").await {
        lives.push(server.ask::<i64>(&format!("PTTL {key}")).await);
    }
    assert!(lives.iter().any(|life| (10_000..=20_000).contains(life)), "{lives:?}");
    assert!(lives.iter().all(|life| *life != -1), "each key expires: {lives:?}");
}

#[tokio::test]
async fn server_with_user_and_tls_is_used() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    // The server is to listen on it in a moment.
    let (listener, address) = bind_loopback().await;
    drop(listener);
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let port = address.port().to_string();
    let ca = authority.file();
    let arguments = ["--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key];
    let more = ["--tls-ca-cert-file", ca.to_str().unwrap(), "--tls-auth-clients", "no"];
    // The rights that docs/rate-limits.md names, and no others.
    let user = "--user keyward on >made-up ~keyward:* +evalsha +script|load +time +get +set +select";
    let user: Vec<&str> = user.split(' ').collect();
    let more = [&arguments[..], &more[..], &user].concat();
    let Some(server) = RedisServer::start(&more).await else { return };
    let password = server.folder.write("password", "made-up\n");
    let section = format!(
        "[shared]\nurl = \"rediss://localhost:{port}/3\"\nreplicas = 2\nusername = \"keyward\"\npassword_file = \"{}\"\n\
         ca_file = \"{}\"\nsalt_file = \"{}\"\n{PATIENT}\n",
        password.display(),
        ca.display(),
        password.display(),
    );
    let stage = start(section + &limit(3), None).await;
    let key = stage.issue_key();
    let replies = join_all((0..5).map(|_| stage.get("/", &key))).await;
    assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 3);
}
