//! What happens while the shared server is gone, slow, full, or another program.

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{ALL, limit, start, statuses, wait_until_shared};
use crate::support::redis::RedisServer;
use crate::support::{Setup, Stage, bind_loopback, wait_until};

const IMPATIENT: &str = "timeout = \"200ms\"";

/// Requests until one is refused. None fails otherwise.
async fn count_allowed(stage: &Stage, key: &str) -> usize {
    let mut allowed = 0;
    loop {
        match stage.get("/", key).await.status {
            200 => allowed += 1,
            429 => return allowed,
            other => panic!("{other} after {allowed}"),
        }
    }
}

fn operations(stage: &Stage, outcome: &str) -> u64 {
    let start = format!("keyward_shared_operations_total{{outcome=\"{outcome}\"}} ");
    let text = stage.metrics.encode();
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    line.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn killed_server_leaves_each_replica_its_share() {
    let Some(mut server) = RedisServer::start(&[]).await else { return };
    let sections = server.section("timeout = \"5s\"") + &limit(20);
    let first = start(sections.clone(), None).await;
    let second = start(sections, Some(&first)).await;
    let key = first.issue_key();
    server.kill().await;
    for stage in [&first, &second] {
        wait_until_shared(stage, false).await;
        assert_eq!(count_allowed(stage, &key).await, 10, "half of the limit");
    }
    // The server has forgotten everything, but the replicas have not.
    server.restart().await;
    for stage in [&first, &second] {
        wait_until_shared(stage, true).await;
        let other_key = first.issue_key();
        assert_eq!(stage.get("/", &other_key).await.status, 429);
    }
    let other = keyward_emulator::store::Issue { organization_id: "org_2".into(), ..Default::default() };
    assert_eq!(count_allowed(&second, &first.issue(other).key).await, 20, "the whole limit again");
}

#[tokio::test]
async fn restarted_server_is_told_what_was_taken() {
    let Some(mut server) = RedisServer::start(&[]).await else { return };
    let sections = server.section("timeout = \"5s\"") + &limit(20);
    let first = start(sections.clone(), None).await;
    let second = start(sections, Some(&first)).await;
    let key = first.issue_key();
    for _ in 0..8 {
        assert_eq!(first.get("/", &key).await.status, 200);
    }
    server.kill().await;
    for stage in [&first, &second] {
        wait_until_shared(stage, false).await;
    }
    server.restart().await;
    for stage in [&first, &second] {
        wait_until_shared(stage, true).await;
    }
    assert_eq!(first.get("/", &key).await.status, 200);
    assert_eq!(count_allowed(&second, &key).await, 11, "of twenty, nine were taken");
}

#[tokio::test]
async fn server_killed_in_the_middle_fails_no_request() {
    let Some(mut server) = RedisServer::start(&[]).await else { return };
    let stage = start(server.section("timeout = \"5s\"") + &limit(1_000_000), None).await;
    let key = stage.issue_key();
    let requests = (0..600).map(|_| (&stage, &*key));
    let kill = async {
        wait_until(|| stage.forwarded_count() > 100).await;
        server.kill().await;
    };
    let (counts, ()) = tokio::join!(statuses(requests), kill);
    assert_eq!(counts[&200], 600, "{counts:?}");
    wait_until_shared(&stage, false).await;
}

#[tokio::test]
async fn stopped_server_delays_few_requests() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let stage = start(server.section(IMPATIENT) + &limit(1_000_000), None).await;
    server.signal(Signal::STOP);
    let organizations: Vec<String> = (0..60).map(|number| format!("org_{number}")).collect();
    for organization in &organizations {
        let issue =
            keyward_emulator::store::Issue { organization_id: organization.clone(), ..Default::default() };
        let key = stage.issue(issue).key;
        assert_eq!(stage.get("/", &key).await.status, 200);
    }
    // Those of requests and of the attempts to connect again, which no request waits for.
    let timeouts = operations(&stage, "timeout");
    assert!((1..=10).contains(&timeouts), "{timeouts}");
    wait_until_shared(&stage, false).await;
    server.signal(Signal::CONT);
    wait_until_shared(&stage, true).await;
}

#[tokio::test]
async fn full_or_read_only_server_is_used_again_when_it_is_not() {
    let Some(server) = RedisServer::start(&[]).await else { return };
    let stage = start(server.section("timeout = \"5s\"") + &limit(1_000_000), None).await;
    let key = stage.issue_key();
    for (command, undo, outcome) in [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "full"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "read_only"),
    ] {
        server.ask::<String>(command).await;
        wait_until(|| operations(&stage, outcome) > 0).await;
        wait_until_shared(&stage, false).await;
        assert_eq!(stage.get("/", &key).await.status, 200, "{outcome}");
        server.ask::<String>(undo).await;
        wait_until_shared(&stage, true).await;
    }
    server.ask::<String>("SCRIPT FLUSH").await;
    wait_until_shared(&stage, false).await;
    wait_until_shared(&stage, true).await;
    assert_eq!(stage.get("/", &key).await.status, 200);
}

#[tokio::test]
async fn wrong_password_limits_by_share_until_it_is_right() {
    let Some(server) = RedisServer::start(&["--requirepass", "made-up"]).await else { return };
    let password = server.folder.write("password", "wrong\n");
    let section = server.section(&format!("timeout = \"5s\"\npassword_file = \"{}\"", password.display()));
    let sections = (section + &limit(6)).leak();
    let stage = Stage::with(Setup { sections, routes: ALL, ..Setup::default() }).await;
    wait_until(|| operations(&stage, "denied") > 0).await;
    assert_eq!(count_allowed(&stage, &stage.issue_key()).await, 3);
    server.folder.write("password", "made-up\n");
    wait_until_shared(&stage, true).await;
}

#[tokio::test]
async fn other_program_on_the_port_limits_by_share() {
    let answers: [&[u8]; 8] = [
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
        b"\x00\xff\xfe garbage \r\n\r\n",
        b"$999999999999999\r\n",
        b"*2147483647\r\n",
        b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n",
        b"+OK\r\n+OK\r\n*2\r\n:1000000\r\n:-5\r\n",
        b"-ERR \x1b[2J no\r\n",
        b"",
    ];
    for answer in answers {
        let (listener, address) = bind_loopback().await;
        let program = tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { return };
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                        let _ = stream.write_all(answer).await;
                    }
                });
            }
        });
        let section = format!("[shared]\nurl = \"redis://{address}\"\nreplicas = 2\n{IMPATIENT}\n");
        let sections = (section + &limit(6)).leak();
        let stage = Stage::with(Setup { sections, routes: ALL, ..Setup::default() }).await;
        assert_eq!(count_allowed(&stage, &stage.issue_key()).await, 3, "{answer:?}");
        wait_until(|| stage.metrics.encode().contains("keyward_shared_operations_total{")).await;
        wait_until_shared(&stage, false).await;
        program.abort();
    }
}
