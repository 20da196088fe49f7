//! Key management over HTTP. Every response in these tests is checked against the OpenAPI document.

mod auth;
mod examples;
mod openapi;
mod shutdown;
mod robustness;
mod operations;
mod idempotency;
mod outages;
mod audit;
mod requests;
mod schema;

use std::collections::BTreeSet;
use std::sync::Mutex;

use keyward::listener::Listen;
use keyward::metrics;
use keyward_emulator as emulator;
use keyward_emulator::store::Issue;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::support::raw::{Client, Reply};
use crate::support::{Setup, Stage};

/// The path that most tests use.
pub const KEYS: &str = "/v1/organizations/org_1/keys";
/// A fictitious secret.
pub const SECRET: &str = "made-up-secret-of-management";

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Io for S {}

/// Keyward with key management, and the responses seen so far.
pub struct ManagementStage {
    pub stage: Stage,
    /// `METHOD path-template status` of every response.
    pub seen: Mutex<BTreeSet<String>>,
}

/// A request for key management.
#[derive(Clone, Default)]
pub struct ApiRequest {
    method: String,
    path: String,
    headers: String,
    body: Option<String>,
}

impl ApiRequest {
    pub fn new(method: &str, path: impl Into<String>) -> Self {
        Self { method: method.to_owned(), path: path.into(), ..Self::default() }
    }

    pub fn create(body: &Value) -> Self {
        Self::new("POST", KEYS).json(body)
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    pub fn with_idempotency_key(self, idempotency_key: &str) -> Self {
        self.header("idempotency-key", idempotency_key)
    }

    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// The request as text. A `host` header that was set replaces `localhost`.
    pub fn to_bytes(&self) -> String {
        let host =
            if self.headers.to_ascii_lowercase().contains("host:") { "" } else { "host: localhost\r\n" };
        let length =
            self.body.as_ref().map_or(String::new(), |body| format!("content-length: {}\r\n", body.len()));
        let body = self.body.as_deref().unwrap_or_default();
        format!("{} {} HTTP/1.1\r\n{host}{}{length}\r\n{body}", self.method, self.path, self.headers)
    }
}

impl ManagementStage {
    /// On a loopback port.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// On a loopback port, with more lines for `[management]`.
    pub async fn with(lines: &str) -> Self {
        Self::of(&format!("listen = \"127.0.0.1:0\"\n{lines}"), Setup::default()).await
    }

    /// With these lines for `[management]`.
    pub async fn of(lines: &str, setup: Setup) -> Self {
        let sections = format!("[management]\n{lines}\n").leak();
        Self { stage: Stage::with(Setup { sections, ..setup }).await, seen: Mutex::default() }
    }

    /// With an emulator that knows only these organizations and users.
    pub async fn only(only: &[&str]) -> Self {
        let only = only.iter().map(|only| only.parse().unwrap()).collect();
        let emulator = emulator::Settings { only, ..emulator::Settings::default() };
        Self::of("listen = \"127.0.0.1:0\"", Setup { emulator, ..Setup::default() }).await
    }

    pub async fn connect(&self) -> Client<Box<dyn Io>> {
        let stream: Box<dyn Io> = match self.stage.management.as_ref().expect("keys are managed") {
            Listen::Tcp(address) => Box::new(TcpStream::connect(address).await.unwrap()),
            Listen::Unix(path) => Box::new(UnixStream::connect(path).await.unwrap()),
        };
        Client::over(stream)
    }

    /// One request on a connection of its own.
    pub async fn send(&self, request: &ApiRequest) -> Reply {
        let mut client = self.connect().await;
        client.send(request.to_bytes()).await;
        let reply = client.read_reply().await;
        self.check_response(&request.method, &request.path, &reply);
        reply
    }

    /// Checks a response against the document.
    pub fn check_response(&self, method: &str, path: &str, reply: &Reply) {
        if let Some(seen) = schema::check(method, path, reply) {
            self.seen.lock().unwrap().insert(seen);
        }
    }

    /// Creates a key; returns the response.
    pub async fn create(&self, body: &Value) -> Value {
        let reply = self.send(&ApiRequest::create(body)).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.json()
    }

    pub async fn get_key(&self, id: &str) -> Value {
        let reply = self.send(&ApiRequest::new("GET", format!("{KEYS}/{id}"))).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    pub async fn patch(&self, id: &str, body: &Value) -> Reply {
        self.send(&ApiRequest::new("PATCH", format!("{KEYS}/{id}")).json(body)).await
    }

    /// Status and code of the response.
    pub async fn code(&self, request: &ApiRequest) -> (u16, String) {
        let reply = self.send(request).await;
        (reply.status, reply.code().unwrap_or_default().to_owned())
    }

    /// A key of this organization, created without Keyward.
    pub fn issue(&self, organization: &str) -> (String, String) {
        let issue = Issue {
            organization_id: organization.to_owned(),
            custom_claims: [("team".to_owned(), "a".to_owned())].into(),
            ..Issue::default()
        };
        let issued = self.stage.issue(issue);
        (issued.key, issued.token_id)
    }

    /// The status that this key gets on the public port.
    pub async fn proxied_status(&self, key: &str) -> u16 {
        self.stage.get("/v1/orders", key).await.status
    }

    /// How many live keys `org_1` has.
    pub async fn count_keys(&self) -> u64 {
        self.send(&ApiRequest::new("GET", KEYS)).await.json()["total_count"].as_u64().unwrap()
    }

    pub fn metric(&self, operation: &'static str, outcome: &'static str) -> u64 {
        self.stage.metrics.management.get_or_create(&metrics::Management { operation, outcome }).get()
    }
}

/// The body of an ordinary creation.
pub fn ordinary_body() -> Value {
    json!({"user_id": "usr_1", "custom_claims": {"team": "a"}, "description": "CI"})
}

fn id(created: &Value) -> &str {
    created["token_id"].as_str().unwrap()
}

fn key(created: &Value) -> &str {
    created["token"].as_str().unwrap()
}
