//! The decision listener beside the proxy's, and alone: start, reload, drain.

use std::net::SocketAddr;

use keyward_emulator::store::Issue;
use keyward_emulator::{self as emulator, Emulator};
use rustix::process::Signal;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::process::{Folder, Running, keyward, keyward_run};
use crate::support::bind_loopback;
use crate::support::raw::{Client, Reply};

const FILE: &str = "version = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n[decision]\nlisten = \"127.0.0.1:0\"\n[identity]\n\
                    claims_header = \"X-Claims\"\n[server]\ndrain_delay = \"0s\"\n[[routes]]\npath = \"/v1/*\"\n";

/// A program that decides, and a key.
struct Decider {
    folder: Folder,
    running: Running,
    key: String,
    decision: SocketAddr,
    _ends: DropGuard,
}

impl Decider {
    async fn start(name: &str, file: &str) -> Self {
        let (folder, ends) = (Folder::new(name), CancellationToken::new());
        let secret = folder.write("secret", "dev\n");
        let (listener, scalekit) = bind_loopback().await;
        let emulator = Emulator::new(emulator::Settings::default());
        let key = emulator.issue(Issue { organization_id: "org_1".into(), ..Issue::default() }).key;
        let until = ends.clone();
        tokio::spawn(async move { emulator.serve(listener, until).await });
        let file = folder.write("keyward.toml", file);
        let running = Running::start(keyward_run(&file, scalekit, &secret));
        let decision = running.address("decision.address").await;
        running.until("\"ready\"").await;
        Self { folder, running, key, decision, _ends: ends.drop_guard() }
    }

    async fn ask(&self, uri: &str) -> Reply {
        let mut client = Client::connect(self.decision).await;
        let (key, target) = (&self.key, "x-forwarded-method: GET\r\nx-forwarded-host: a\r\nhost: a\r\n");
        let lines = format!("{target}x-forwarded-uri: {uri}\r\nauthorization: Bearer {key}\r\n");
        client.send(format!("GET /decision HTTP/1.1\r\n{lines}\r\n")).await;
        client.read_reply().await
    }

    fn reload(&self, file: &str) {
        self.folder.write("keyward.toml", file);
        self.running.signal(Signal::HUP);
    }
}

#[tokio::test]
async fn proxy_does_not_listen_without_upstreams() {
    let mut decider = Decider::start("decisions-alone", FILE).await;
    let text = decider.running.text();
    let line = text.lines().find(|line| line.contains("\"listening\"")).unwrap();
    assert!(!line.contains("server.address"), "{line}");
    assert_eq!(decider.ask("/v1/x").await.status, 200);
    let mut admin = Client::connect(decider.running.address("admin.address").await).await;
    admin.send("GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(admin.read_reply().await.status, 200);
    decider.running.signal(Signal::TERM);
    assert_eq!(decider.running.exit().await, Some(0));
    decider.running.until("\"stopped\"").await;
}

#[tokio::test]
async fn proxy_listens_where_its_address_is_set() {
    let file = FILE.replace("[server]\n", "[server]\nlisten = \"127.0.0.1:0\"\n");
    let decider = Decider::start("decisions-beside", &file).await;
    let mut client = Client::connect(decider.running.address("server.address").await).await;
    client.send("GET /v1/x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.read_reply().await.code(), Some("no_route"));
}

#[tokio::test]
async fn reload_that_needs_proxy_says_restart() {
    let decider = Decider::start("decisions-reload", FILE).await;
    let more = "[[routes]]\npath = \"/v2/*\"\n";
    decider.reload(&format!("{FILE}{more}"));
    decider.running.until("\"reloaded\"").await;
    assert_eq!(decider.ask("/v2/x").await.status, 200);
    let proxied =
        "[[routes]]\npath = \"/v3/*\"\nupstream = \"a\"\n[upstreams.a]\nurl = \"http://127.0.0.1:9\"\n";
    decider.reload(&format!("{FILE}{more}{proxied}"));
    decider.running.until("whether the proxy listens").await;
    decider.running.until("cannot change without a restart").await;
    assert_eq!(decider.ask("/v2/x").await.status, 200, "the previous file stays in force");
    assert_eq!(decider.ask("/v3/x").await.status, 404);
}

#[tokio::test]
async fn reload_changes_limits_of_decision_listener() {
    let slow = FILE.replace("[server]\n", "[server]\nheader_timeout = \"1h\"\n");
    let decider = Decider::start("decisions-limits", &slow).await;
    decider.reload(&slow.replace("1h", "50ms"));
    decider.running.until("\"reloaded\"").await;
    let mut client = Client::connect(decider.decision).await;
    client.send("GET /decision HTTP/1.1\r\n").await;
    client.read_to_end().await;
}

#[tokio::test]
async fn check_says_what_decisions_leave_open() {
    let folder = Folder::new("decisions-check");
    let check = async |text: &str| {
        let file = folder.write("keyward.toml", text);
        let output = keyward(&["check", "--config", &file]).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap())
    };
    let [printed, warned] = check(FILE).await;
    assert!(printed.contains("The proxy does not listen"), "{printed}");
    assert!(!warned.contains("identity.claims"), "{warned}");
    let [_, warned] = check(&FILE.replace("claims_header = \"X-Claims\"", "claims = [\"plan\"]")).await;
    assert!(!warned.contains("identity.claims"), "{warned}");
    let [_, warned] = check(&FILE.replace("claims_header = \"X-Claims\"", "")).await;
    assert!(warned.contains("warning: identity.claims is not set: behind nginx"), "{warned}");
    assert!(warned.contains("a client's own x-claim-* headers reach the service"), "{warned}");
    // Only with the section.
    let proxied = "version = 1\n[[routes]]\npath = \"/v3/*\"\nupstream = \"a\"\n[upstreams.a]\nurl = \"http://127.0.0.1:9\"\n";
    let [printed, warned] = check(proxied).await;
    assert!(
        !printed.contains("does not listen") && !warned.contains("identity.claims"),
        "{printed} {warned}"
    );
}
