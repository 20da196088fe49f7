//! Audit lines: client, action, ids and outcome, never the key. Read from the log of a process.

use keyward_emulator::faults::{Effect, Fault, Target};
use keyward_emulator::{self as emulator, Emulator};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::{ApiRequest, KEYS, ManagementStage, SECRET, id, key, ordinary_body};
use crate::process::{Folder, Running, echo, keyward_run, route_file};
use crate::support::raw::{Client, Reply};
use crate::support::tls::Folder as Sockets;
use crate::support::{bind_loopback, wait_until};

fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines().filter(|line| line.contains("\"target\":\"audit\""));
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A process with key management on a unix socket, with a secret.
struct AuditedProcess {
    folder: Folder,
    sockets: Sockets,
    emulator: Emulator,
    running: Running,
    ends: CancellationToken,
}

impl AuditedProcess {
    async fn open(name: &str) -> Self {
        let (folder, sockets, ends) = (Folder::new(name), Sockets::new(), CancellationToken::new());
        let emulator = Emulator::new(emulator::Settings::default());
        let (listener, scalekit) = bind_loopback().await;
        let (serving, until) = (emulator.clone(), ends.clone());
        tokio::spawn(async move { serving.serve(listener, until).await });
        let (client_secret, secret) = (folder.write("secret", "dev"), folder.write("backend", SECRET));
        let socket = sockets.file("management.sock");
        let routes = route_file(echo(&ends).await, "drain_delay = \"0s\"");
        let section =
            format!("[management]\nlisten = \"unix:{}\"\nsecret_file = \"{secret}\"\n", socket.display());
        let file = folder.write("keyward.toml", &routes.replacen("[admin]", &format!("{section}[admin]"), 1));
        let running = Running::start(keyward_run(&file, scalekit, &client_secret));
        running.until("\"ready\"").await;
        Self { folder, sockets, emulator, running, ends }
    }

    async fn connect(&self) -> Client<UnixStream> {
        Client::over(UnixStream::connect(self.sockets.file("management.sock")).await.unwrap())
    }

    async fn send(&self, request: ApiRequest) -> Reply {
        let mut client = self.connect().await;
        client.send(request.header("authorization", &format!("Bearer {SECRET}")).to_bytes()).await;
        client.read_reply().await
    }
}

impl Drop for AuditedProcess {
    fn drop(&mut self) {
        self.ends.cancel();
    }
}

#[tokio::test]
async fn audit_line_has_client_action_and_key_ids() {
    let mut audited = AuditedProcess::open("audit").await;
    let ask = async |ask: ApiRequest| audited.send(ask).await;

    let made = ask(ApiRequest::create(&ordinary_body()).with_idempotency_key("one")).await.json();
    assert_eq!(ask(ApiRequest::create(&ordinary_body()).with_idempotency_key("one")).await.status, 409);
    let one = format!("{KEYS}/{}", id(&made));
    assert_eq!(ask(ApiRequest::new("GET", &*one)).await.status, 200);
    assert_eq!(ask(ApiRequest::new("GET", KEYS)).await.status, 200);
    assert_eq!(ask(ApiRequest::new("PATCH", &*one).json(&json!({"description": "new"}))).await.status, 200);
    let next = ask(ApiRequest::new("POST", format!("{one}/rotate"))).await.json();
    assert_eq!(ask(ApiRequest::new("DELETE", format!("{KEYS}/{}", id(&next)))).await.status, 204);
    assert_eq!(
        ask(ApiRequest::new("DELETE", format!("/v1/organizations/org_2/keys/{}", id(&made)))).await.status,
        404
    );
    audited.emulator.set_fault(Fault::new(Target::Create, Effect::Truncated).times(1));
    let lost = ask(ApiRequest::create(&ordinary_body())).await.json();
    // A key where an id should be, and one as a secret.
    assert_eq!(ask(ApiRequest::new("DELETE", format!("{KEYS}/{}", key(&made)))).await.status, 404);
    let mut stranger = audited.connect().await;
    // Refusals without authentication share one line per 100 ms.
    tokio::time::sleep(std::time::Duration::from_millis(110)).await;
    for _ in 0..40 {
        stranger
            .send(
                ApiRequest::new("GET", KEYS)
                    .header("authorization", &format!("Bearer {}", key(&made)))
                    .to_bytes(),
            )
            .await;
        assert_eq!(stranger.read_reply().await.status, 401);
    }
    audited.running.signal(rustix::process::Signal::TERM);
    assert_eq!(audited.running.exit().await, Some(0));
    audited.running.until("\"stopped\"").await;

    let text = audited.running.text();
    let lines = lines(&text);
    let uid = rustix::process::getuid().as_raw();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            assert_eq!(line["keyward.audit.client"], format!("uid {uid} with backend"));
            let field = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            (
                field("keyward.audit.action"),
                field("keyward.audit.outcome"),
                field("keyward.org.id"),
                field("keyward.token.id"),
                field("keyward.new_token.id"),
            )
        })
        .collect();
    let (made_id, next_id) = (id(&made), id(&next));
    let expected = [
        ("create", "done", "org_1", "-", made_id),
        ("create", "already_created", "org_1", "-", made_id),
        ("update", "done", "org_1", made_id, "-"),
        ("rotate", "done", "org_1", made_id, next_id),
        ("revoke", "done", "org_1", next_id, "-"),
        ("revoke", "not_found", "org_2", made_id, "-"),
        ("create", "outcome_unknown", "org_1", "-", "-"),
        ("none", "not_found", "-", "-", "-"),
        ("none", "unauthorized", "-", "-", "-"),
    ]
    .map(|(action, outcome, organization, token, new)| {
        (action.to_owned(), outcome.to_owned(), organization.to_owned(), token.to_owned(), new.to_owned())
    });
    assert_eq!(told[..9], expected, "{text}");
    assert!(told.len() <= 9 + 10, "strangers do not flood it: {}", told.len());
    let unknown = &lines[6];
    assert_eq!(unknown["keyward.possible_token.ids"], lost["possible_token_ids"][0]);
    assert!(
        unknown["keyward.audit.reason"].as_str().unwrap().contains("the connection to Scalekit broke"),
        "{unknown}"
    );
    for secret in [key(&made), key(&next), SECRET, "eyJ", "Bearer"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn change_cut_by_shutdown_is_audited() {
    let mut audited = AuditedProcess::open("audit-cut").await;
    audited.emulator.set_fault(Fault::new(Target::Create, Effect::Hang));
    let mut client = audited.connect().await;
    client
        .send(
            ApiRequest::create(&ordinary_body())
                .header("authorization", &format!("Bearer {SECRET}"))
                .to_bytes(),
        )
        .await;
    wait_until(|| audited.emulator.counts().creations == 1).await;
    audited.running.signal(rustix::process::Signal::TERM);
    audited.running.until("\"draining\"").await;
    audited.running.signal(rustix::process::Signal::TERM);
    assert_eq!(audited.running.exit().await, Some(0));
    audited.running.until("\"cut\"").await;
    let line = &lines(&audited.running.text())[0];
    assert_eq!((&line["keyward.audit.action"], &line["keyward.org.id"]), (&json!("create"), &json!("org_1")));
}

#[tokio::test]
async fn management_requests_are_counted_by_outcome() {
    let management = ManagementStage::start().await;
    let made = management.create(&ordinary_body()).await;
    management.get_key(id(&made)).await;
    management.send(&ApiRequest::new("GET", format!("{KEYS}/apit_1"))).await;
    management.send(&ApiRequest::new("GET", "/x")).await;
    let text = management.stage.get_admin("/metrics").await.text();
    for line in [
        "keyward_management_requests_total{operation=\"create\",outcome=\"done\"} 1",
        "keyward_management_requests_total{operation=\"show\",outcome=\"done\"} 1",
        "keyward_management_requests_total{operation=\"show\",outcome=\"not_found\"} 1",
        "keyward_management_requests_total{operation=\"none\",outcome=\"no_route\"} 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

/// Concurrent requests without a key; each writes an access log line.
async fn flood(address: std::net::SocketAddr, connections: usize, requests: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(async move {
            let mut client = Client::connect(address).await;
            for _ in 0..requests / 100 {
                client.send("GET /v1 HTTP/1.1\r\nhost: a\r\n\r\n".repeat(100)).await;
                for _ in 0..100 {
                    assert_eq!(client.read_reply().await.status, 401);
                }
            }
        });
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn audit_lines_survive_access_log_flood() {
    let mut audited = AuditedProcess::open("audit-flood").await;
    let address = audited.running.address("server.address").await;
    audited.running.pause(true);
    flood(address, 4, 4500).await;
    let mut made = Vec::new();
    for _ in 0..5 {
        let reply = audited.send(ApiRequest::create(&ordinary_body())).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        made.push(id(&reply.json()).to_owned());
    }
    let mut admin = Client::connect(audited.running.address("admin.address").await).await;
    admin.send("GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let metrics = admin.read_reply().await.text();
    let dropped =
        metrics.lines().find_map(|line| line.strip_prefix("keyward_log_lines_dropped_total ")).unwrap();
    assert_ne!(dropped, "0", "the flood was long enough to drop access lines");
    audited.running.signal(rustix::process::Signal::TERM);
    audited.running.pause(false);
    assert_eq!(audited.running.exit().await, Some(0));
    audited.running.until("\"stopped\"").await;
    let told: Vec<_> = lines(&audited.running.text())
        .iter()
        .map(|line| line["keyward.new_token.id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(told, made, "all of them, in order");
}

#[tokio::test]
async fn no_change_without_room_for_audit_line() {
    let audited = AuditedProcess::open("audit-stuck").await;
    let address = audited.running.address("server.address").await;
    audited.running.pause(true);
    flood(address, 2, 400).await;
    let mut client = audited.connect().await;
    let missing =
        ApiRequest::new("GET", format!("{KEYS}/apit_1")).header("authorization", &format!("Bearer {SECRET}"));
    let mut statuses = Vec::new();
    while statuses.last() != Some(&503) && statuses.len() < 2000 {
        client.send(missing.to_bytes()).await;
        statuses.push(client.read_reply().await.status);
    }
    assert_eq!(statuses.last(), Some(&503), "so many lines wait");
    let reply = audited.send(ApiRequest::create(&ordinary_body())).await;
    assert_eq!((reply.status, reply.code()), (503, Some("overloaded")));
    assert_eq!(audited.emulator.counts().creations, 0);
    audited.running.pause(false);
    let made = audited.send(ApiRequest::create(&ordinary_body())).await;
    assert_eq!(made.status, 201, "{}", made.text());
    audited.running.until(id(&made.json())).await;
    let told = lines(&audited.running.text());
    assert_eq!(told.len(), statuses.len(), "each request that was looked at is a line");
}
