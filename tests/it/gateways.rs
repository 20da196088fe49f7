//! Real gateways, started with the files that `keyward gateway-config --standalone` wrote, in front of the decision listener and an
//! echo service. A gateway that is not installed is skipped with a line that says so: `.ci/install-gateways` installs them.

mod calls;
mod documentation;
mod failures;
mod traffic;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use keyward_emulator::echo::{Echo, Received};
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use keyward_emulator::store::Issue;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::process::keyward;
use crate::support::http::{HttpClient, HttpVersion};
use crate::support::raw::{Client, Reply};
use crate::support::tls::Folder;
use crate::support::{ROUTES, Setup, Stage, TEST_TIMEOUT, bind_loopback};

const GATEWAYS: [&str; 6] = ["nginx", "traefik", "caddy", "envoy-http", "envoy-grpc", "haproxy"];

const SECTIONS: &str = "[throttle]\nbad_keys_per_minute = 10\n[identity]\nclaims = [\"plan\"]\nclaims_header = \"X-Claims\"\n[decision]\nlisten = \"127.0.0.1:0\"";

/// What differs between the gateways, as docs/gateways.md states it.
#[derive(Clone, Copy)]
struct Expected {
    gateway: &'static str,
    /// Whether headers of claims with unknown names are removed.
    removes_unknown_claims: bool,
    /// Whether a denial reaches the client with all of Keyward's headers and its body.
    keeps_denials: bool,
    keeps_retry_after: bool,
    /// The status when Keyward is gone.
    gone: u16,
}

const WHOLE: Expected = Expected {
    gateway: "",
    removes_unknown_claims: true,
    keeps_denials: true,
    keeps_retry_after: true,
    gone: 503,
};

#[tokio::test]
async fn nginx_enforces_decisions() {
    check_gateway(Expected {
        gateway: "nginx",
        removes_unknown_claims: false,
        keeps_denials: false,
        ..WHOLE
    })
    .await;
}

#[tokio::test]
async fn traefik_enforces_decisions() {
    check_gateway(Expected { gateway: "traefik", gone: 500, ..WHOLE }).await;
}

#[tokio::test]
async fn caddy_enforces_decisions() {
    check_gateway(Expected { gateway: "caddy", gone: 502, ..WHOLE }).await;
}

#[tokio::test]
async fn envoy_http_enforces_decisions() {
    check_gateway(Expected { gateway: "envoy-http", keeps_retry_after: false, ..WHOLE }).await;
}

#[tokio::test]
async fn envoy_grpc_enforces_decisions() {
    check_gateway(Expected { gateway: "envoy-grpc", ..WHOLE }).await;
}

#[tokio::test]
async fn haproxy_enforces_decisions() {
    check_gateway(Expected { gateway: "haproxy", ..WHOLE }).await;
}

#[tokio::test]
async fn gateways_ask_over_a_unix_socket() {
    for gateway in ["nginx", "caddy", "envoy-http", "envoy-grpc", "haproxy"] {
        let folder = Folder::new();
        let socket = folder.file("decision.sock");
        let listen = format!("unix:{}", socket.display());
        let sections = SECTIONS.replace("127.0.0.1:0", &listen).leak();
        let stage = Stage::with(Setup { sections, ..Setup::default() }).await;
        // As root, nginx makes its workers another user.
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        let Some(gateway) = Running::start(gateway, &stage).await else { continue };
        assert_eq!(gateway.get("/v1/x", &stage.issue_key()).await.status, 200);
        assert_eq!(gateway.last_request().header("x-org-id"), Some("org_1"));
        assert_eq!(gateway.get("/v1/x", &"0".repeat(30)).await.status, 401);
    }
}

async fn check_gateway(expected: Expected) {
    let server = "trusted_proxies = [\"127.0.0.1\"]";
    let mut stage = Stage::with(Setup { server, sections: SECTIONS, ..Setup::default() }).await;
    let Some(gateway) = Running::start(expected.gateway, &stage).await else { return };
    let claims = [("plan".to_owned(), "gold".to_owned())].into();
    let key = stage.issue(Issue { user_id: "usr_1".into(), custom_claims: claims, ..Issue::default() }).key;
    let plain_key = stage.issue_key();

    check_identity(&gateway, &key).await;
    check_forged_identity(&gateway, &plain_key, expected.removes_unknown_claims).await;
    check_denials(&gateway, &plain_key, expected.keeps_denials).await;
    check_methods(&gateway, &plain_key).await;

    assert_eq!(gateway.get("/v1/x", &plain_key).await.status, 200);
    assert!(stage.emulator.revoke(&plain_key));
    assert_eq!(gateway.get("/v1/x", &plain_key).await.status, 401, "the next request after the revocation");

    check_throttle(&gateway, expected.gateway).await;

    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(503))));
    let reply = gateway.get("/v1/x", &key).await;
    assert_eq!(reply.status, 503, "{reply:?}");
    assert_eq!(reply.header("retry-after").is_some(), expected.keeps_retry_after, "{reply:?}");

    let forwarded = gateway.echo.counts().requests;
    stage.stop.cancel();
    stage.kill.cancel();
    timeout(TEST_TIMEOUT, &mut stage.running).await.expect("an end in time").unwrap();
    for _ in 0..2 {
        let reply = gateway.get("/v1/x", &key).await;
        assert_eq!((reply.status, reply.code()), (expected.gone, None), "Keyward is gone: {reply:?}");
    }
    assert_eq!(gateway.echo.counts().requests, forwarded);
}

async fn check_identity(gateway: &Running, key: &str) {
    let reply = gateway.get("/v1/a%20b/c~%C3%A9?q=1&r=%2F", key).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let received = gateway.last_request();
    assert_eq!(received.path, "/v1/a%20b/c~%C3%A9?q=1&r=%2F", "forwarded as sent");
    for (name, value) in [("x-org-id", "org_1"), ("x-user-id", "usr_1"), ("x-claim-plan", "gold")] {
        assert_eq!(received.header_values(name), [value], "{name}: {received:?}");
    }
    assert_eq!(received.header_values("x-claims"), ["eyJwbGFuIjoiZ29sZCJ9"]);
    assert!(received.header("x-token-id").is_some());
    assert_eq!(received.header("authorization"), None, "the key");
}

/// With a key that has neither user nor claims, and on a route without a key.
async fn check_forged_identity(gateway: &Running, key: &str, removes_unknown_claims: bool) {
    let mut names: Vec<String> =
        ["X-Org-Id", "X-User-Id", "X-Roles", "X-Claims", "X-Claim-Plan", "x-token-id"]
            .into_iter()
            .flat_map(|name| [name.to_owned(), name.replace('-', "_"), name.replace('-', ".")])
            .collect();
    names.extend(["X-Org_Id", "X-User-External-Id"].map(str::to_owned));
    names.extend("!#$%&'*+.^`|~".chars().map(|separator| format!("X{separator}Org-Id")));
    if removes_unknown_claims {
        names.extend(["X-Claim-Admin", "X-CLAIM-", "X-Claim"].map(str::to_owned));
    }
    let forged: String = names.iter().map(|name| format!("{name}: forged\r\n")).collect();
    for (path, lines) in [("/v1/x", format!("authorization: Bearer {key}\r\n")), ("/public/x", String::new())]
    {
        let reply =
            gateway.send(&format!("GET {path} HTTP/1.1\r\nhost: api.test\r\n{lines}{forged}\r\n")).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let received = gateway.last_request();
        let kept: Vec<_> = received.headers.iter().filter(|(_, value)| value.contains("forged")).collect();
        assert!(kept.is_empty(), "{path}: {kept:?}");
        assert_eq!(received.header("x-org-id"), (path == "/v1/x").then_some("org_1"));
    }
}

async fn check_denials(gateway: &Running, key: &str, keeps_denials: bool) {
    let forwarded = gateway.echo.counts().requests;
    let (bearer, bad) = (format!("authorization: Bearer {key}\r\n"), "0".repeat(30));
    let told = "x-forwarded-uri: /public/x\r\nx-forwarded-method: GET\r\nx-original-url: http://api.test/public/x\r\n";
    for (method, path, lines, status, code) in [
        ("GET", "/v1/x", String::new(), 401, "missing_credential"),
        ("GET", "/v1/x", told.to_owned(), 401, "missing_credential"),
        ("GET", "/v1/x", format!("authorization: Bearer {bad}\r\n"), 401, "invalid_key"),
        ("GET", "/v1/admin/x", bearer.clone(), 403, "not_permitted"),
        ("GET", "/v1/Admin/x", bearer.clone(), 400, "ambiguous_path"),
        ("GET", "/V1/ADMIN?q", bearer.clone(), 400, "ambiguous_path"),
        ("DELETE", "/v1/admin/x", bearer.clone(), 405, "method_not_allowed"),
    ] {
        let reply = gateway.send(&format!("{method} {path} HTTP/1.1\r\nhost: api.test\r\n{lines}\r\n")).await;
        assert_eq!(reply.status, status, "{method} {path} {lines}: {reply:?}");
        assert_eq!(
            reply.header("www-authenticate").is_some(),
            status == 401 || (status == 403 && keeps_denials)
        );
        assert_eq!(reply.code(), Some(code), "{reply:?}");
        if keeps_denials {
            assert_eq!(reply.json()["status"], status, "{reply:?}");
        }
    }
    // The gateway may refuse these itself.
    for path in ["//v1/admin/x", "/v1%2Fadmin/x", "/v1/x/..%2fadmin/x", "/v1\\admin/x", "/v1/admin;x/y"] {
        let reply = gateway.send(&format!("GET {path} HTTP/1.1\r\nhost: api.test\r\n{bearer}\r\n")).await;
        assert!(matches!(reply.status, 301..=308 | 400..=404), "{path}: {reply:?}");
    }
    assert_eq!(gateway.echo.counts().requests, forwarded, "nothing is forwarded");
}

/// The client's address is told, and 429 reaches the client.
async fn check_throttle(gateway: &Running, name: &str) {
    for number in 0..20 {
        let reply = gateway.get("/v1/x", &format!("{number:030}")).await;
        if reply.status == 429 {
            assert!(reply.header("retry-after").is_some(), "{reply:?}");
            return;
        }
        assert_eq!(reply.status, 401, "{reply:?}");
    }
    panic!("{name}: no 429");
}

async fn check_methods(gateway: &Running, key: &str) {
    let lines = format!("host: api.test\r\nauthorization: Bearer {key}\r\n");
    let body = "x".repeat(20_000);
    let upload = format!("POST /v1/x HTTP/1.1\r\n{lines}content-length: {}\r\n\r\n{body}", body.len());
    assert_eq!(gateway.send(&upload).await.status, 200);
    let received = gateway.last_request();
    assert_eq!((received.method.as_str(), received.body_bytes), ("POST", 20_000));
    for method in ["PUT", "DELETE", "OPTIONS"] {
        let request = format!("{method} /v1/x HTTP/1.1\r\n{lines}content-length: 0\r\n\r\n");
        assert_eq!(gateway.send(&request).await.status, 200, "{method}");
        assert_eq!(gateway.last_request().method, method);
    }
    for (lines, status) in [(lines.as_str(), 200), ("host: api.test\r\n", 401)] {
        let mut client = Client::connect(gateway.address).await;
        client.send(format!("HEAD /v1/x HTTP/1.1\r\n{lines}\r\n")).await;
        assert_eq!(client.read_head().await.status, status, "HEAD");
    }
}

/// How a gateway is started.
struct Plan {
    gateway: &'static str,
    /// The route file that its configuration is made from.
    file: String,
    /// The service's URL, if it is not an echo.
    service: Option<String>,
    /// More arguments of `gateway-config`.
    arguments: Vec<String>,
    /// The status for `/public/ready` when it has started.
    ready: u16,
}

impl Plan {
    fn for_stage(gateway: &'static str, stage: &Stage) -> Self {
        let decision = stage.decision.as_ref().expect("a decision listener");
        Self::new(gateway, &SECTIONS.replace("127.0.0.1:0", &decision.to_string()))
    }

    fn new(gateway: &'static str, sections: &str) -> Self {
        let file =
            format!("version = 1\n{sections}\n[upstreams.echo]\nurl = \"http://127.0.0.1:1\"\n{ROUTES}");
        Self { gateway, file, service: None, arguments: Vec::new(), ready: 200 }
    }
}

/// A gateway in front of a service. It ends when this is dropped.
struct Running {
    address: SocketAddr,
    echo: Echo,
    child: Child,
    folder: Folder,
    _ends: DropGuard,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not SIGKILL, which the worker processes of nginx would outlive.
        let id = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        let _ = id.map(|id| rustix::process::kill_process(id, rustix::process::Signal::TERM));
    }
}

impl Running {
    /// In front of an echo service. `None` if it is not installed.
    async fn start(gateway: &'static str, stage: &Stage) -> Option<Self> {
        Self::start_as(Plan::for_stage(gateway, stage)).await
    }

    async fn start_as(plan: Plan) -> Option<Self> {
        let program = find_program(plan.gateway.split('-').next()?)?;
        let (folder, ends, echo) = (Folder::new(), CancellationToken::new(), Echo::new());
        let (listener, service) = bind_loopback().await;
        let (own, until) = (echo.clone(), ends.clone());
        tokio::spawn(async move { own.serve(listener, until).await });
        let service = plan.service.clone().unwrap_or_else(|| format!("http://{service}"));
        let file = folder.write("keyward.toml", &plan.file);
        let address = bind_loopback().await.1;
        let command = write_files(&plan, &file, &folder.file("gateway"), address, &service).await;
        let log = std::fs::File::create(folder.file("log")).unwrap();
        let mut words = command.split_whitespace();
        assert_eq!(words.next(), program.file_name().and_then(|name| name.to_str()));
        let child = Command::new(&program)
            .args(words)
            .env("HOME", folder.file(""))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let running = Self { address, echo, child, folder, _ends: ends.drop_guard() };
        let ready = timeout(2 * TEST_TIMEOUT, running.wait_until_ready(plan.ready, &service)).await;
        assert!(ready.is_ok(), "{} starts: {}", plan.gateway, running.log());
        Some(running)
    }

    /// Asks for a path without a key until the gateway answers with this status.
    async fn wait_until_ready(&self, status: u16, service: &str) {
        const REQUEST: &str = "GET /public/ready HTTP/1.1\r\nhost: api.test\r\n\r\n";
        loop {
            if tokio::net::TcpStream::connect(self.address).await.is_ok() {
                let answer = if service.starts_with("h2c:") {
                    let mut client = HttpClient::connect(self.address, HttpVersion::Http2).await;
                    client.get("/public/ready", "").await.map_or(0, |response| response.status().as_u16())
                } else {
                    self.send(REQUEST).await.status
                };
                if answer == status {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The begin of what it printed.
    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.file("log")).unwrap().chars().take(2000).collect()
    }

    async fn send(&self, request: &str) -> Reply {
        let mut client = Client::connect(self.address).await;
        client.send(request).await;
        client.read_reply().await
    }

    async fn get(&self, path: &str, key: &str) -> Reply {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: api.test\r\nauthorization: Bearer {key}\r\n\r\n"))
            .await
    }

    fn last_request(&self) -> Received {
        self.echo.received().pop().expect("a request reached the service")
    }
}

/// Returns the command that starts the gateway.
async fn write_files(plan: &Plan, file: &Path, folder: &Path, address: SocketAddr, service: &str) -> String {
    let (file, folder) = (file.to_str().unwrap(), folder.to_str().unwrap());
    let address = address.to_string();
    let arguments =
        ["gateway-config", plan.gateway, "--config", file, "--standalone", folder, "--listen", &address];
    let output =
        keyward(&arguments).args(["--service", service]).args(&plan.arguments).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned()
}

/// In PATH, or where `.ci/install-gateways` put it.
fn find_program(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/keyward-bench"));
    let cache = std::env::var_os("KEYWARD_BENCH_CACHE").map(PathBuf::from).or(home)?.join("peers");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([cache, "/usr/sbin".into()]);
    let found = folders.map(|folder| folder.join(name)).find(|program| program.is_file());
    if found.is_none() {
        eprintln!("skipped: {name} is not installed; .ci/install-gateways installs it");
    }
    found
}
