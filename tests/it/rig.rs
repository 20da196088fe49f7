//! The validator with an emulator and no listener, for tests with thousands of requests or an exact order of events.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::scalekit::transport::Transport;
use keyward::config::{self, Environment};
use keyward::credential::{self, ApiKey};
use keyward::identity::Identity;
use keyward::listener::Listen;
use keyward::metrics::Metrics;
use keyward::pool::Protocol;
use keyward::rejection::Rejection;
use keyward::scalekit::{self, Scalekit};
use keyward::secret::{Secret, SecretSource};
use keyward::server::Server;
use keyward::validator::{self, Validator};
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use keyward_emulator::store::Issue;
use keyward_emulator::{self as emulator, Emulator};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::support::raw::Client;
use crate::support::{TEST_TIMEOUT, bind_loopback, wait_until};

pub struct Rig {
    pub emulator: Emulator,
    pub validator: Arc<Validator>,
    pub metrics: Arc<Metrics>,
    _ends: DropGuard,
}

/// The settings of a rig.
pub struct Plan {
    pub validator: validator::Settings,
    pub emulator: emulator::Settings,
    pub client_secret: SecretSource,
    /// Faults that are set before the first call.
    pub faults: Vec<Fault>,
    /// Whether to use HTTP/2, as over TLS with a real Scalekit.
    pub http2: bool,
    /// Scalekit's address, if not the emulator's.
    pub scalekit_address: Option<SocketAddr>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            validator: validator::Settings::default(),
            emulator: emulator::Settings::default(),
            client_secret: SecretSource::Value(Secret::new("dev")),
            faults: Vec::new(),
            http2: false,
            scalekit_address: None,
        }
    }
}

impl Rig {
    pub async fn start(validator: validator::Settings) -> Self {
        Self::with(Plan { validator, ..Plan::default() }).await
    }

    pub async fn with(plan: Plan) -> Self {
        let ends = CancellationToken::new();
        let emulator = Emulator::new(plan.emulator);
        for fault in plan.faults {
            emulator.set_fault(fault);
        }
        let (listener, address) = bind_loopback().await;
        let (own, until) = (emulator.clone(), ends.clone());
        tokio::spawn(async move { own.serve(listener, until).await });
        let url = format!("http://{}", plan.scalekit_address.unwrap_or(address));
        let environment = url.parse().unwrap();
        let mut origin = scalekit::origin_settings(&environment, None);
        if plan.http2 {
            origin.protocol = Protocol::Http2;
        }
        let settings = scalekit::Settings {
            origin,
            environment,
            proxy: None,
            client_id: SecretSource::Value(Secret::new("dev")),
            client_secret: plan.client_secret,
            timeout: plan.validator.timeout,
            transport: Transport::Rest,
        };
        let (metrics, tasks) = (Arc::new(Metrics::default()), TaskTracker::new());
        let scalekit = Scalekit::new(&settings, Arc::clone(&metrics), tasks.clone()).unwrap();
        scalekit.client.access_token();
        let validator = Validator::new(plan.validator, scalekit, Arc::clone(&metrics), tasks, None).unwrap();
        Self { emulator, validator, metrics, _ends: ends.drop_guard() }
    }

    pub fn issue_key(&self) -> String {
        self.emulator.issue(Issue { organization_id: "org_1".into(), ..Issue::default() }).key
    }

    pub async fn validate(&self, key: &str) -> Result<Arc<Identity>, Rejection> {
        self.validate_from(key, None).await
    }

    pub async fn validate_from(&self, key: &str, client: Option<IpAddr>) -> Result<Arc<Identity>, Rejection> {
        let key = parse_key(key);
        timeout(TEST_TIMEOUT, self.validator.validate(&key, self.validator.digest(&key), client, &mut None))
            .await
            .expect("a verdict in time")
    }

    /// Starts a validation in the background.
    pub fn spawn_validation(&self, key: &str) -> tokio::task::JoinHandle<Result<Arc<Identity>, Rejection>> {
        let (validator, key) = (Arc::clone(&self.validator), parse_key(key));
        tokio::spawn(async move { validator.validate(&key, validator.digest(&key), None, &mut None).await })
    }

    /// Waits until this number of requests is without a verdict.
    pub async fn wait_for_waiting(&self, count: i64) {
        wait_until(|| self.metrics.validations_waiting.get() == count).await;
    }

    pub fn set_fault(&self, target: Target, effect: Effect) {
        self.emulator.set_fault(Fault::new(target, effect));
    }

    pub fn set_status_fault(&self, target: Target, status: u16) {
        self.set_fault(target, Effect::Answer(Answer::status(status)));
    }
}

pub fn parse_key(key: &str) -> ApiKey {
    ApiKey::parse(key, &credential::Settings::default()).unwrap()
}

/// A key that Scalekit does not know.
pub fn unknown_key(number: usize) -> String {
    format!("0000000000000000000000{number:08}")
}

/// Writes a file in the temporary folder.
pub fn write_scratch_file(name: &str, content: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("keyward-{name}-{}", std::process::id()));
    std::fs::write(&path, content).unwrap();
    path
}

/// Keyward with any Scalekit, working or not, for tests of its readiness.
pub struct Probing {
    pub admin: SocketAddr,
    pub address: SocketAddr,
    _ends: DropGuard,
}

impl Probing {
    pub fn start(url: &str, secret: &str, scalekit: &str) -> Self {
        let file = format!(
            "version = 1\n[server]\nlisten = \"127.0.0.1:0\"\ndrain_delay = \"0s\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [log]\naccess = false\n[scalekit]\ntimeout = \"400ms\"\n{scalekit}\n[upstreams.none]\nurl = \"http://127.0.0.1:9\"\n\
             [[routes]]\npath = \"/*\"\nupstream = \"none\""
        );
        let environment = Environment::from_pairs([
            ("SCALEKIT_ENVIRONMENT_URL", url),
            ("SCALEKIT_CLIENT_ID", "dev"),
            ("SCALEKIT_CLIENT_SECRET", secret),
        ]);
        let config =
            config::parse(&file, "probe.toml", &environment).unwrap_or_else(|problems| panic!("{problems}"));
        let server = Server::bind(config, Arc::default()).unwrap();
        let (Some(Listen::Tcp(address)), Listen::Tcp(admin)) = (server.address(), server.admin_address())
        else {
            panic!("TCP")
        };
        let ends = CancellationToken::new();
        tokio::spawn(server.run(ends.clone(), ends.clone()));
        Self { admin, address, _ends: ends.drop_guard() }
    }

    pub async fn get_readyz(&self) -> (u16, String) {
        let mut client = Client::connect(self.admin).await;
        client.send("GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let reply = client.read_reply().await;
        (reply.status, reply.text())
    }

    /// Waits for the first result of the probe: the reason, or "ready".
    pub async fn wait_for_reason(&self) -> String {
        loop {
            match self.get_readyz().await {
                (503, reason)
                    if !reason.contains("waiting for the first answer") && !reason.contains("starting") =>
                {
                    return reason;
                }
                (200, _) => return "ready".to_owned(),
                _ => sleep(Duration::from_millis(5)).await,
            }
        }
    }

    pub async fn wait_until_ready(&self) {
        while self.get_readyz().await.0 != 200 {
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn get(&self, key: &str) -> crate::support::raw::Reply {
        let mut client = Client::connect(self.address).await;
        client.send(format!("GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n")).await;
        client.read_reply().await
    }
}
