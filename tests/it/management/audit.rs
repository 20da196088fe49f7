//! The audit line: who, what, which key, what became of it, and never the key. From a process of its own, as its log is.

use keyward_emulator::faults::{Effect, Fault, Target};
use keyward_emulator::{self as emulator, Emulator};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::{Ask, Desk, KEYS, SECRET, id, key, ordinary};
use crate::process::{Folder, Running, echo, keyward_run, route_file};
use crate::support::raw::{Client, Reply};
use crate::support::tls::Folder as Sockets;
use crate::support::{listen, soon};

fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines().filter(|line| line.contains("\"target\":\"audit\""));
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A process with key management on a unix socket, behind a secret.
struct Office {
    folder: Folder,
    sockets: Sockets,
    emulator: Emulator,
    running: Running,
    ends: CancellationToken,
}

impl Office {
    async fn open(name: &str) -> Self {
        let (folder, sockets, ends) = (Folder::new(name), Sockets::new(), CancellationToken::new());
        let emulator = Emulator::new(emulator::Settings::default());
        let (listener, scalekit) = listen().await;
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

    async fn ask(&self, ask: Ask) -> Reply {
        let mut client = self.connect().await;
        client.send(ask.header("authorization", &format!("Bearer {SECRET}")).bytes()).await;
        client.reply().await
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        self.ends.cancel();
    }
}

#[tokio::test]
async fn audit_line_has_client_action_and_key_ids() {
    let mut office = Office::open("audit").await;
    let ask = async |ask: Ask| office.ask(ask).await;

    let made = ask(Ask::create(&ordinary()).named("one")).await.json();
    assert_eq!(ask(Ask::create(&ordinary()).named("one")).await.status, 409);
    let one = format!("{KEYS}/{}", id(&made));
    assert_eq!(ask(Ask::new("GET", &*one)).await.status, 200);
    assert_eq!(ask(Ask::new("GET", KEYS)).await.status, 200);
    assert_eq!(ask(Ask::new("PATCH", &*one).json(&json!({"description": "new"}))).await.status, 200);
    let next = ask(Ask::new("POST", format!("{one}/rotate"))).await.json();
    assert_eq!(ask(Ask::new("DELETE", format!("{KEYS}/{}", id(&next)))).await.status, 204);
    assert_eq!(
        ask(Ask::new("DELETE", format!("/v1/organizations/org_2/keys/{}", id(&made)))).await.status,
        404
    );
    office.emulator.set_fault(Fault::new(Target::Create, Effect::Truncated).times(1));
    let lost = ask(Ask::create(&ordinary())).await.json();
    // A key where an id should be, and one as a secret.
    assert_eq!(ask(Ask::new("DELETE", format!("{KEYS}/{}", key(&made)))).await.status, 404);
    let mut stranger = office.connect().await;
    // Those who are not let in share a line every tenth of a second.
    tokio::time::sleep(std::time::Duration::from_millis(110)).await;
    for _ in 0..40 {
        stranger
            .send(Ask::new("GET", KEYS).header("authorization", &format!("Bearer {}", key(&made))).bytes())
            .await;
        assert_eq!(stranger.reply().await.status, 401);
    }
    office.running.signal(rustix::process::Signal::TERM);
    assert_eq!(office.running.exit().await, Some(0));
    office.running.until("\"stopped\"").await;

    let text = office.running.text();
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
    let mut office = Office::open("audit-cut").await;
    office.emulator.set_fault(Fault::new(Target::Create, Effect::Hang));
    let mut client = office.connect().await;
    client.send(Ask::create(&ordinary()).header("authorization", &format!("Bearer {SECRET}")).bytes()).await;
    soon(|| office.emulator.counts().creations == 1).await;
    office.running.signal(rustix::process::Signal::TERM);
    office.running.until("\"draining\"").await;
    office.running.signal(rustix::process::Signal::TERM);
    assert_eq!(office.running.exit().await, Some(0));
    office.running.until("\"cut\"").await;
    let line = &lines(&office.running.text())[0];
    assert_eq!((&line["keyward.audit.action"], &line["keyward.org.id"]), (&json!("create"), &json!("org_1")));
}

#[tokio::test]
async fn management_requests_are_counted_by_outcome() {
    let desk = Desk::open().await;
    let made = desk.create(&ordinary()).await;
    desk.show(id(&made)).await;
    desk.ask(&Ask::new("GET", format!("{KEYS}/apit_1"))).await;
    desk.ask(&Ask::new("GET", "/x")).await;
    let text = desk.stage.ask_admin("/metrics").await.text();
    for line in [
        "keyward_management_requests_total{operation=\"create\",outcome=\"done\"} 1",
        "keyward_management_requests_total{operation=\"show\",outcome=\"done\"} 1",
        "keyward_management_requests_total{operation=\"show\",outcome=\"not_found\"} 1",
        "keyward_management_requests_total{operation=\"none\",outcome=\"no_route\"} 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

/// Requests without a key, by connections that go on together; each is an access line.
async fn flood(address: std::net::SocketAddr, connections: usize, requests: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(async move {
            let mut client = Client::connect(address).await;
            for _ in 0..requests / 100 {
                client.send("GET /v1 HTTP/1.1\r\nhost: a\r\n\r\n".repeat(100)).await;
                for _ in 0..100 {
                    assert_eq!(client.reply().await.status, 401);
                }
            }
        });
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn audit_lines_survive_access_log_flood() {
    let mut office = Office::open("audit-flood").await;
    let address = office.running.address("server.address").await;
    office.running.pause(true);
    flood(address, 4, 4500).await;
    let mut made = Vec::new();
    for _ in 0..5 {
        let reply = office.ask(Ask::create(&ordinary())).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        made.push(id(&reply.json()).to_owned());
    }
    let mut admin = Client::connect(office.running.address("admin.address").await).await;
    admin.send("GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let metrics = admin.reply().await.text();
    let dropped =
        metrics.lines().find_map(|line| line.strip_prefix("keyward_log_lines_dropped_total ")).unwrap();
    assert_ne!(dropped, "0", "the flood was long enough to drop access lines");
    office.running.signal(rustix::process::Signal::TERM);
    office.running.pause(false);
    assert_eq!(office.running.exit().await, Some(0));
    office.running.until("\"stopped\"").await;
    let told: Vec<_> = lines(&office.running.text())
        .iter()
        .map(|line| line["keyward.new_token.id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(told, made, "all of them, in order");
}

#[tokio::test]
async fn no_change_without_room_for_audit_line() {
    let office = Office::open("audit-stuck").await;
    let address = office.running.address("server.address").await;
    office.running.pause(true);
    flood(address, 2, 400).await;
    let mut client = office.connect().await;
    let missing =
        Ask::new("GET", format!("{KEYS}/apit_1")).header("authorization", &format!("Bearer {SECRET}"));
    let mut statuses = Vec::new();
    while statuses.last() != Some(&503) && statuses.len() < 2000 {
        client.send(missing.bytes()).await;
        statuses.push(client.reply().await.status);
    }
    assert_eq!(statuses.last(), Some(&503), "so many lines wait");
    let reply = office.ask(Ask::create(&ordinary())).await;
    assert_eq!((reply.status, reply.code()), (503, Some("overloaded")));
    assert_eq!(office.emulator.counts().creations, 0);
    office.running.pause(false);
    let made = office.ask(Ask::create(&ordinary())).await;
    assert_eq!(made.status, 201, "{}", made.text());
    office.running.until(id(&made.json())).await;
    let told = lines(&office.running.text());
    assert_eq!(told.len(), statuses.len(), "each request that was looked at is a line");
}
