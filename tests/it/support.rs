//! A stage: emulator, echo upstream and Keyward, each on its own port.

pub mod http;
pub mod raw;
pub mod redis;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use keyward::config::{self, Environment};
use keyward::listener::Listen;
use keyward::metrics::Metrics;
use keyward::server::Server;
use keyward_emulator::echo::{Echo, Received};
use keyward_emulator::store::{Issue, Issued};
use keyward_emulator::{self as emulator, Emulator};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use raw::{Client, Reply};

/// A step that takes longer has failed.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The settings of a stage. The texts are TOML.
pub struct Setup {
    /// More lines for `[server]`.
    pub server: &'static str,
    /// More lines for `[scalekit]`.
    pub scalekit: &'static str,
    /// More lines for `[upstreams.echo]`.
    pub upstream: &'static str,
    /// More sections.
    pub sections: &'static str,
    /// The routes.
    pub routes: &'static str,
    /// The upstream's URL, if it is not the echo.
    pub upstream_url: Option<String>,
    /// More environment variables.
    pub environment: Vec<(&'static str, String)>,
    /// The emulator's settings.
    pub emulator: emulator::Settings,
    /// The emulator of another stage, to be a replica of its Keyward.
    pub scalekit_address: Option<SocketAddr>,
    /// Whether to wait until Keyward is ready.
    pub ready: bool,
}

/// `/public/*` is public, `/v1/admin/*` is for admins, other paths are for any key.
pub const ROUTES: &str = r#"
    [[routes]]
    path = "/public/*"
    upstream = "echo"
    auth = "none"

    [[routes]]
    path = "/v1/admin/*"
    methods = ["GET", "POST"]
    upstream = "echo"
    require = { scope = "user", roles = ["admin"], claims = { environment = "production" } }

    [[routes]]
    path = "/*"
    upstream = "echo"
"#;

impl Default for Setup {
    fn default() -> Self {
        Self {
            server: "",
            scalekit: "",
            upstream: "",
            sections: "",
            routes: ROUTES,
            upstream_url: None,
            environment: Vec::new(),
            emulator: emulator::Settings::default(),
            scalekit_address: None,
            ready: true,
        }
    }
}

/// The running parts. They stop when this is dropped.
pub struct Stage {
    pub emulator: Emulator,
    pub emulator_address: SocketAddr,
    pub echo: Echo,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    /// The address of the decision listener, if it is on.
    pub decision: Option<Listen>,
    /// The address of key management, if it is on.
    pub management: Option<Listen>,
    pub metrics: Arc<Metrics>,
    /// Cancelled as by SIGTERM.
    pub stop: CancellationToken,
    /// Cancelled as by a second signal.
    pub kill: CancellationToken,
    pub running: JoinHandle<()>,
    ends: CancellationToken,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.ends.cancel();
        self.running.abort();
    }
}

/// Waits until a condition holds, by polling.
pub async fn wait_until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(TEST_TIMEOUT, wait).await.expect("it becomes so in time");
}

pub async fn bind_loopback() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

impl Stage {
    pub async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub async fn with(setup: Setup) -> Self {
        let ends = CancellationToken::new();
        let (emulator, echo) = (Emulator::new(setup.emulator.clone()), Echo::new());
        let (emulator_listener, emulator_address) = bind_loopback().await;
        let (echo_listener, echo_address) = bind_loopback().await;
        {
            let (emulator, echo) = (emulator.clone(), echo.clone());
            let (until, until_too) = (ends.clone(), ends.clone());
            tokio::spawn(async move { emulator.serve(emulator_listener, until).await });
            tokio::spawn(async move { echo.serve(echo_listener, until_too).await });
        }
        let upstream = setup.upstream_url.clone().unwrap_or_else(|| format!("http://{echo_address}"));
        let server = setup.server;
        let server = if server.contains("drain_delay") {
            server.to_owned()
        } else {
            format!("drain_delay = \"0s\"\n{server}")
        };
        let server =
            if server.contains("listen = ") { server } else { format!("listen = \"127.0.0.1:0\"\n{server}") };
        let file = format!(
            "version = 1\n[server]\n{server}\n[admin]\nlisten = \"127.0.0.1:0\"\n[log]\naccess = false\n\
             [scalekit]\n{}\n[upstreams.echo]\nurl = \"{upstream}\"\n{}\n{}\n{}",
            setup.scalekit, setup.upstream, setup.sections, setup.routes
        );
        let url = format!("http://{}", setup.scalekit_address.unwrap_or(emulator_address));
        let scalekit = [
            ("SCALEKIT_ENVIRONMENT_URL", &*url),
            ("SCALEKIT_CLIENT_ID", "dev"),
            ("SCALEKIT_CLIENT_SECRET", "dev"),
        ];
        let more = setup.environment.iter().map(|(name, value)| (*name, &**value));
        let environment = Environment::from_pairs(scalekit.into_iter().chain(more));
        let mut config =
            config::parse(&file, "test.toml", &environment).unwrap_or_else(|problems| panic!("{problems}"));
        // Applies `limits.memory`, as `run` does.
        config.fit(config::Resources::default());
        let metrics = Arc::new(Metrics::default());
        let server = Server::bind(config, Arc::clone(&metrics)).unwrap();
        let address = |listen| match listen {
            Listen::Tcp(address) => address,
            // The test knows the path.
            Listen::Unix(_) => SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let public = address(server.address().expect("the proxy listens"));
        let admin = address(server.admin_address());
        let (decision, management) = (server.decision_address(), server.management_address());
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let readiness = server.readiness();
        let running = tokio::spawn(server.run(stop.clone(), kill.clone()));
        if setup.ready {
            timeout(TEST_TIMEOUT, readiness.wait_until_ready()).await.expect("Keyward gets ready");
        }
        Self {
            emulator,
            emulator_address,
            echo,
            address: public,
            admin,
            decision,
            management,
            metrics,
            stop,
            kill,
            running,
            ends,
        }
    }

    /// A new key of `org_1` without user, roles and claims.
    pub fn issue_key(&self) -> String {
        self.issue(Issue::default()).key
    }

    /// A new key, of `org_1` by default.
    pub fn issue(&self, issue: Issue) -> Issued {
        let organization_id =
            if issue.organization_id.is_empty() { "org_1".into() } else { issue.organization_id };
        self.emulator.issue(Issue { organization_id, ..issue })
    }

    /// A new connection to Keyward.
    pub async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// A new connection to Keyward with hyper's client.
    pub async fn connect_http(&self, version: http::HttpVersion) -> http::HttpClient {
        http::HttpClient::connect(self.address, version).await
    }

    /// One GET on a connection of its own.
    pub async fn get(&self, path: &str, key: &str) -> Reply {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: api.test\r\nauthorization: Bearer {key}\r\n\r\n"))
            .await
    }

    /// One request, byte for byte, on a connection of its own.
    pub async fn send(&self, request: impl AsRef<[u8]>) -> Reply {
        let mut client = self.connect().await;
        client.send(request).await;
        client.read_reply().await
    }

    /// One GET to the admin port.
    pub async fn get_admin(&self, path: &str) -> Reply {
        let mut client = Client::connect(self.admin).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
        client.read_reply().await
    }

    /// The last request that reached the echo.
    pub fn last_request(&self) -> Received {
        self.echo.received().pop().expect("a request reached the upstream")
    }

    /// The number of requests that reached the echo.
    pub fn forwarded_count(&self) -> u64 {
        self.echo.counts().requests
    }
}
