//! A stage: emulator, echo upstream and Keyward between them, each on a port of its own.

pub mod http;
pub mod raw;
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

/// Longer than anything here may take; what takes longer has failed.
pub const LIMIT: Duration = Duration::from_secs(10);

/// What a stage is made from. The parts are TOML; `{upstream}` stands for the upstream's address.
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
    /// Where the upstream is, if it is not the echo.
    pub instead: Option<String>,
    /// The emulator's settings.
    pub emulator: emulator::Settings,
    /// Whether to wait until Keyward is ready.
    pub ready: bool,
}

/// `/public/*` open, `/v1/admin/*` for admins, the rest for any key.
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
            instead: None,
            emulator: emulator::Settings::default(),
            ready: true,
        }
    }
}

/// Everything running. Dropped, it ends.
pub struct Stage {
    pub emulator: Emulator,
    pub echo: Echo,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    /// Where keys are managed, if they are.
    pub management: Option<Listen>,
    pub metrics: Arc<Metrics>,
    /// What SIGTERM would cancel.
    pub stop: CancellationToken,
    /// What a second signal would.
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

/// Waits until a condition holds that nothing signals.
pub async fn soon(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LIMIT, wait).await.expect("it becomes so in time");
}

pub async fn listen() -> (TcpListener, SocketAddr) {
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
        let (emulator_listener, emulator_address) = listen().await;
        let (echo_listener, echo_address) = listen().await;
        {
            let (emulator, echo) = (emulator.clone(), echo.clone());
            let (until, until_too) = (ends.clone(), ends.clone());
            tokio::spawn(async move { emulator.serve(emulator_listener, until).await });
            tokio::spawn(async move { echo.serve(echo_listener, until_too).await });
        }
        let upstream = setup.instead.clone().unwrap_or_else(|| format!("http://{echo_address}"));
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
        let url = format!("http://{emulator_address}");
        let environment = Environment::from_pairs([
            ("SCALEKIT_ENVIRONMENT_URL", &*url),
            ("SCALEKIT_CLIENT_ID", "dev"),
            ("SCALEKIT_CLIENT_SECRET", "dev"),
        ]);
        let mut config =
            config::parse(&file, "test.toml", &environment).unwrap_or_else(|problems| panic!("{problems}"));
        // `limits.memory`, as `run` takes it into force.
        config.fit(config::Resources::default());
        let metrics = Arc::new(Metrics::default());
        let server = Server::bind(config, Arc::clone(&metrics)).unwrap();
        let address = |listen| match listen {
            Listen::Tcp(address) => address,
            // Whoever listens there knows where.
            Listen::Unix(_) => SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let (public, admin) = (address(server.address()), address(server.admin_address()));
        let management = server.management_address();
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let readiness = server.readiness();
        let running = tokio::spawn(server.run(stop.clone(), kill.clone()));
        if setup.ready {
            timeout(LIMIT, readiness.wait_until_ready()).await.expect("Keyward gets ready");
        }
        Self { emulator, echo, address: public, admin, management, metrics, stop, kill, running, ends }
    }

    /// A new key of an organization, without anything else.
    pub fn key(&self) -> String {
        self.issue(Issue::default()).key
    }

    /// A new key; `org_1` where nothing is said.
    pub fn issue(&self, issue: Issue) -> Issued {
        let organization_id =
            if issue.organization_id.is_empty() { "org_1".into() } else { issue.organization_id };
        self.emulator.issue(Issue { organization_id, ..issue })
    }

    /// A new connection to Keyward.
    pub async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// A new connection to Keyward, by hyper.
    pub async fn caller(&self, speaks: http::Speaks) -> http::Caller {
        http::Caller::connect(self.address, speaks).await
    }

    /// One GET on a connection of its own.
    pub async fn get(&self, path: &str, key: &str) -> Reply {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: api.test\r\nauthorization: Bearer {key}\r\n\r\n"))
            .await
    }

    /// One request, byte for byte, on a connection of its own.
    pub async fn ask(&self, request: impl AsRef<[u8]>) -> Reply {
        let mut client = self.connect().await;
        client.send(request).await;
        client.reply().await
    }

    /// One GET to the admin port.
    pub async fn ask_admin(&self, path: &str) -> Reply {
        let mut client = Client::connect(self.admin).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
        client.reply().await
    }

    /// The last request that reached the echo.
    pub fn last(&self) -> Received {
        self.echo.received().pop().expect("a request reached the upstream")
    }

    /// How many requests reached the echo.
    pub fn forwarded(&self) -> u64 {
        self.echo.counts().requests
    }
}
