//! How far replicas miss a limit in sum, for docs/rate-limits.md. Not a test of its own: it only prints.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{HeaderMap, HeaderValue};
use keyward::credential::Digester;
use keyward::gcra::Quota;
use keyward::identity::Identity;
use keyward::metrics::Metrics;
use keyward::rate_limit::{self, RateLimits, Subject};
use keyward::shared::{self, Address, SharedServer};
use tokio::task::JoinSet;

use crate::support::redis::RedisServer;

/// As many requests at once on each replica.
const AT_ONCE: usize = 32;

async fn start_replica(server: &RedisServer, is_shared: bool, requests: u32) -> Arc<RateLimits> {
    let settings = rate_limit::Settings {
        name: "figures".into(),
        by: Subject::Organization,
        quota: Quota { requests, per: Duration::from_secs(30 * 86_400), burst: requests },
        claim: None,
        max: requests,
        headers: false,
        max_entries: 1_000_000,
    };
    let shared = shared::Settings {
        address: Address::Unix(server.socket()),
        database: 0,
        username: None,
        password: None,
        roots: None,
        timeout: Duration::from_secs(10),
        replicas: 3,
        prefix: "keyward:".into(),
        salt: None,
    };
    let metrics = Arc::new(Metrics::default());
    let shared = SharedServer::new(shared, "https://figures.example", Arc::clone(&metrics)).unwrap();
    if is_shared {
        let keeper = Arc::clone(&shared);
        tokio::spawn(async move { keeper.keep_connected().await });
        crate::support::wait_until(|| metrics.encode().contains("keyward_shared_up 1.0")).await;
    }
    Arc::new(RateLimits::new(vec![settings], None, is_shared.then_some(&shared)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes and prints figures"]
async fn error_of_limit() {
    for (organizations, requests) in [(10, 10_000_u32), (1000, 400), (100_000, 2)] {
        for replicas in [1, 3] {
            let Some(server) = RedisServer::start(&[]).await else { return };
            let mut tasks = JoinSet::new();
            let began = Instant::now();
            for replica in 0..replicas {
                let limits = start_replica(&server, replicas > 1, requests).await;
                for task in 0..AT_ONCE {
                    // In sum one and a half times the limit, not evenly over the replicas.
                    let share = [0.8, 0.5, 0.2][replica] * if replicas == 1 { 1.5 / 0.8 } else { 1.0 };
                    let offered = (f64::from(requests) * share).ceil() as usize;
                    tasks.spawn(send_requests(Arc::clone(&limits), organizations, task, offered));
                }
            }
            let mut admitted = vec![0_u32; organizations];
            for counts in tasks.join_all().await {
                admitted.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
            let error = |count: u32| (f64::from(count) / f64::from(requests) - 1.0) * 100.0;
            let (least, most) = (admitted.iter().min().unwrap(), admitted.iter().max().unwrap());
            let sum: u64 = admitted.iter().map(|&count| u64::from(count)).sum();
            let mean = (sum as f64 / organizations as f64 / f64::from(requests) - 1.0) * 100.0;
            let calls =
                if replicas > 1 { server.ask::<String>("INFO commandstats").await } else { String::new() };
            let calls = calls.split("evalsha:calls=").nth(1).and_then(|text| text.split(',').next());
            eprintln!(
                "{organizations} organizations of {requests}, {replicas} replicas: error {:+.2} % to {:+.2} %, mean {mean:+.3} %; \
                 {} trips for {sum} admitted; {:.0} s",
                error(*least),
                error(*most),
                calls.unwrap_or("0"),
                began.elapsed().as_secs_f64()
            );
        }
    }
}

/// Sends so many requests of each organization that this task has a part of.
async fn send_requests(
    limits: Arc<RateLimits>,
    organizations: usize,
    task: usize,
    offered: usize,
) -> Vec<u32> {
    let metrics = Metrics::default();
    let digest = Digester::new().unwrap().digest(&crate::rig::parse_key(&crate::rig::unknown_key(0)));
    let names = ["figures".into()];
    let mut admitted = vec![0; organizations];
    for round in 0..offered {
        for (organization, admitted) in admitted.iter_mut().enumerate() {
            if (round + organization) % AT_ONCE != task {
                continue;
            }
            let identity = Identity {
                org_id: HeaderValue::from_str(&format!("org_{organization}")).unwrap(),
                org_external_id: None,
                user_id: None,
                user_external_id: None,
                roles: Vec::new(),
                token_id: None,
                claims: [].into(),
                expiry: None,
            };
            let taken = limits.take_request(&names, &identity, digest, &metrics, &mut HeaderMap::new()).await;
            *admitted += u32::from(taken.is_ok());
        }
    }
    admitted
}
