//! The use of keys and by organizations: counted, shown, kept over restarts, and used to carry out a rotation.

mod commands;
mod management;
mod restarts;

use keyward::listener::Listen;
use keyward_emulator::store::Issue;
use serde_json::Value;
use tokio::time::timeout;

use crate::support::raw::Client;
use crate::support::{Setup, Stage, TEST_TIMEOUT};

async fn start(sections: &'static str) -> Stage {
    Stage::with(Setup { sections, ..Setup::default() }).await
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn time(value: &Value) -> jiff::Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

/// What the admin port knows of a key.
async fn seen(stage: &Stage, id: &str) -> Option<Value> {
    let reply = stage.get_admin(&format!("/usage?id={id}")).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/jsonl")));
    lines(&reply.text()).into_iter().nth(1)
}

/// Waits until so many requests of a key have ended: a client has its response before.
async fn ended(stage: &Stage, id: &str, requests: u64) -> Value {
    let wait = async {
        loop {
            if let Some(seen) = seen(stage, id).await.filter(|seen| seen["requests"] == requests) {
                return seen;
            }
        }
    };
    timeout(TEST_TIMEOUT, wait).await.expect("requests are counted in time")
}

#[tokio::test]
async fn admin_port_shows_last_use_of_keys() {
    let stage = start("").await;
    let issued = stage.issue(Issue::default());
    assert_eq!(seen(&stage, &issued.token_id).await, None);
    assert_eq!(stage.get("/v1/orders?secret=1", &issued.key).await.status, 200);
    let first = ended(&stage, &issued.token_id, 1).await;
    assert_eq!(stage.get("/v1/admin/x", &issued.key).await.status, 403);
    let second = ended(&stage, &issued.token_id, 2).await;
    assert_eq!((&first["last_status"], &first["last_route"]), (&"2xx".into(), &"/*".into()));
    assert_eq!((&second["last_status"], &second["last_route"]), (&"4xx".into(), &"/v1/admin/*".into()));
    assert_eq!(second["first_used"], first["first_used"]);
    assert_eq!(second["last_network"], "127.0.0.0/24");
    assert_eq!((&second["organization_id"], &second["open_requests"]), (&"org_1".into(), &0.into()));
    let all = lines(&stage.get_admin("/usage").await.text());
    assert_eq!(all[1], second);
    assert_eq!(all.len(), 2);
    for name in ["now", "instance", "started", "counted_since", "complete_since"] {
        assert!(all[0][name].is_string(), "{name}: {}", all[0]);
    }
    let metrics = stage.get_admin("/metrics").await.text();
    assert!(metrics.contains("keyward_usage_keys 1\n"), "{metrics}");
    assert!(!metrics.contains("org_1") && !metrics.contains("apit_"), "{metrics}");
    assert_eq!(stage.get_admin("/usage?key=x").await.status, 400);
}

#[tokio::test]
async fn flood_of_invalid_keys_leaves_no_usage() {
    let stage = start("").await;
    for number in 0..50 {
        assert_eq!(stage.get("/v1", &format!("{number:030}")).await.status, 401);
    }
    assert_eq!(stage.get("/public/x", &stage.issue_key()).await.status, 200);
    let all = lines(&stage.get_admin("/usage").await.text());
    assert_eq!(all.len(), 1, "only what the counts cover: {all:?}");
}

#[tokio::test]
async fn usage_never_contains_a_key() {
    let stage = start("[usage]\nmetrics = true").await;
    let issued = stage.issue(Issue::default());
    stage.get("/v1", &issued.key).await;
    ended(&stage, &issued.token_id, 1).await;
    let metrics = stage.get_admin("/metrics").await.text();
    let line = "keyward_organization_requests_total{organization=\"org_1\",class=\"2xx\"} 1\n";
    assert!(metrics.contains(line), "{metrics}");
    for text in [metrics, stage.get_admin("/usage").await.text()] {
        assert!(!text.contains(&issued.key), "{text}");
    }
}

#[tokio::test]
async fn use_of_keys_is_for_this_machine_alone() {
    let stage = start("").await;
    let issued = stage.issue(Issue::default());
    stage.get("/v1", &issued.key).await;
    ended(&stage, &issued.token_id, 1).await;
    for lines in [
        "host: localhost\r\nx-forwarded-for: 192.0.2.1\r\n",
        "host: localhost\r\nvia: 1.1 mesh\r\n",
        "host: localhost\r\norigin: https://evil.example\r\n",
        "host: rebound.example\r\n",
    ] {
        let mut client = Client::connect(stage.admin).await;
        client.send(format!("GET /usage HTTP/1.1\r\n{lines}\r\n")).await;
        let reply = client.read_reply().await;
        assert_eq!(reply.status, 403, "{lines}");
        assert!(!reply.text().contains("apit_") && !reply.text().contains("org_1"), "{}", reply.text());
    }
    let mut client = Client::connect(stage.admin).await;
    client.send("POST /usage HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(client.read_reply().await.status, 405);
    assert_eq!(stage.get("/usage", &issued.key).await.status, 200, "of the service behind the public port");
    assert!(!stage.last_request().path.is_empty());
}

#[tokio::test]
async fn stream_is_in_use_until_it_ends() {
    let stage = start("").await;
    let issued = stage.issue(Issue::default());
    let mut client = stage.connect().await;
    client
        .send(format!("GET /stream/1000 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n", issued.key))
        .await;
    client.read_head().await;
    // Times are in milliseconds.
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let open = seen(&stage, &issued.token_id).await.unwrap();
    assert_eq!((&open["open_requests"], &open["requests"]), (&1.into(), &0.into()));
    assert_eq!(open["last_status"], Value::Null);
    drop(client);
    let closed = ended(&stage, &issued.token_id, 1).await;
    assert_eq!(closed["open_requests"], 0);
    assert!(time(&closed["last_used"]) > time(&open["last_used"]), "its end is a use: {closed}");
}

#[tokio::test]
async fn decisions_count_as_use() {
    let stage = start("[decision]\nlisten = \"127.0.0.1:0\"").await;
    let issued = stage.issue(Issue::default());
    let Some(Listen::Tcp(address)) = stage.decision else { panic!("TCP") };
    let mut client = Client::connect(address).await;
    client
        .send(format!(
            "GET /decision HTTP/1.1\r\nhost: keyward\r\nx-forwarded-method: GET\r\nx-forwarded-uri: /v1\r\n\
             x-forwarded-host: api.test\r\nauthorization: Bearer {}\r\n\r\n",
            issued.key
        ))
        .await;
    assert_eq!(client.read_reply().await.status, 200);
    assert_eq!(ended(&stage, &issued.token_id, 1).await["last_status"], "2xx");
}

#[tokio::test]
async fn usage_can_be_turned_off() {
    let stage = start("[usage]\nenabled = false").await;
    let key = stage.issue_key();
    assert_eq!(stage.get("/v1", &key).await.status, 200);
    let reply = stage.get_admin("/usage").await;
    assert_eq!(
        (reply.status, reply.text().as_str()),
        (404, "usage is not counted: usage.enabled is false\n")
    );
}
