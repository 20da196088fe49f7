//! `keyward dev` and `keyward emulator`: everything on one machine, without an account.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{print, runtime, signals};
use crate::access_log::{self, Format};
use crate::config::{self, Environment};
use crate::dev::echo::Echo;
use crate::dev::emulator::certificate::Certificate;
use crate::dev::emulator::directory::Only;
use crate::dev::emulator::faults::Fault;
use crate::dev::emulator::store::{Issue, Issued};
use crate::dev::emulator::{Emulator, Settings};
use crate::metrics::Metrics;
use crate::origin::Address;
use crate::server::Server;

#[derive(Args)]
pub(super) struct Dev {
    /// A real service to put behind Keyward, instead of the one that shows what it receives; host:port is taken for http://
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Where Keyward listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4480")]
    listen: SocketAddr,
    /// Where its admin port is
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4481")]
    admin: SocketAddr,
    /// Where the Scalekit emulator listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4490")]
    emulator: SocketAddr,
}

#[derive(Args)]
pub(super) struct EmulatorArgs {
    /// Where to listen: HTTP/1.1 and HTTP/2 in clear text
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4490")]
    listen: SocketAddr,
    /// Where to listen with TLS, on the same keys; needs --ca-out
    #[arg(long, value_name = "ADDRESS", requires = "ca_out")]
    tls_listen: Option<SocketAddr>,
    /// Where to write the root that the TLS certificate, for localhost, can be verified with
    #[arg(long, value_name = "FILE", requires = "tls_listen")]
    ca_out: Option<PathBuf>,
    /// The client id that is accepted
    #[arg(long, default_value = "dev")]
    client_id: String,
    /// The client secret that is accepted
    #[arg(long, default_value = "dev", env = "KEYWARD_EMULATOR_CLIENT_SECRET", hide_env_values = true)]
    client_secret: String,
    /// Only these organizations and users exist; otherwise all that are named do
    #[arg(long, value_name = "ORG[/USER[:ROLE,…]]")]
    only: Vec<Only>,
    /// Misbehave, as in validate:latency=200ms or token:status=503,times=3; repeatable
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Fault>,
}

const CLIENT: &str = "dev";

pub(super) fn dev(mut args: Dev) -> Result<()> {
    if let Some(url) = &mut args.upstream {
        *url = config::upstream_url(url).map_err(|problem| anyhow::anyhow!("--upstream {problem}"))?;
    }
    let metrics = Arc::new(Metrics::default());
    // For people, piped or not.
    let log = access_log::Settings { format: Format::Text, access: true };
    let _log = access_log::start(log, Arc::clone(&metrics));
    runtime(None)?.block_on(async {
        let stop_all = CancellationToken::new();
        let tasks = TaskTracker::new();
        let emulator = Emulator::new(Settings::default());
        let listener = bind(args.emulator).await?;
        let environment_url = format!("http://{}", listener.local_addr()?);
        tasks.spawn({
            let (emulator, stop) = (emulator.clone(), stop_all.clone());
            async move { emulator.serve(listener, stop).await }
        });
        let upstream = match &args.upstream {
            Some(url) => url.clone(),
            None => {
                let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
                let url = format!("http://{}", listener.local_addr()?);
                let stop = stop_all.clone();
                tasks.spawn(async move { Echo::new().serve(listener, stop).await });
                url
            }
        };
        let file = route_file(&args, &upstream);
        let environment = Environment::of([
            ("SCALEKIT_ENVIRONMENT_URL", &environment_url),
            ("SCALEKIT_CLIENT_ID", CLIENT),
            ("SCALEKIT_CLIENT_SECRET", CLIENT),
        ]);
        let config = config::parse(&file, "dev", &environment)?;
        let upstream_address = config.upstreams.first().map(|upstream| upstream.origin.address.clone());
        let server = Server::bind(config, metrics)?;
        let (stop, kill) = signals::watch(None)?;
        let readiness = server.readiness();
        let address = server.address().to_string();
        let serving = tokio::spawn(server.run(stop.clone(), kill));
        tokio::select! {
            () = readiness.ready() => {}
            () = stop.cancelled() => {}
        }
        let keys = Keys::make(&emulator);
        print(&keys.welcome(&address, &environment_url, &upstream, &emulator.access_token()))?;
        if let (Some(url), Some(address)) = (&args.upstream, upstream_address)
            && let Err(error) = reach(&address).await
        {
            print(&format!(
                "Nothing answers at {url} ({error}): requests get 502 until something does.\n\n"
            ))?;
        }
        serving.await?;
        stop_all.cancel();
        tasks.close();
        tasks.wait().await;
        Ok(())
    })
}

/// Whether something accepts connections there.
async fn reach(address: &Address) -> std::io::Result<()> {
    let connect = async {
        match address {
            Address::Tcp(host, port) => TcpStream::connect((&**host, *port)).await.map(drop),
            Address::Unix(path) => UnixStream::connect(path).await.map(drop),
        }
    };
    tokio::time::timeout(Duration::from_secs(1), connect).await?
}

/// What `keyward dev` runs with.
fn route_file(args: &Dev, upstream: &str) -> String {
    format!(
        r#"
version = 1

[server]
listen = "{}"
drain_delay = "0s"
drain_timeout = "2s"

[admin]
listen = "{}"

[log]
format = "text"

[upstreams.service]
url = {upstream:?}

[[routes]]
path = "/public/*"
upstream = "service"
auth = "none"

[[routes]]
path = "/v1/admin/*"
upstream = "service"
require = {{ scope = "user", roles = ["admin"] }}

[[routes]]
path = "/*"
upstream = "service"
"#,
        args.listen, args.admin
    )
}

struct Keys {
    organization: Issued,
    user: Issued,
}

impl Keys {
    fn make(emulator: &Emulator) -> Self {
        let organization = Issue {
            organization_id: "org_1001".to_owned(),
            organization_external_id: "acme".to_owned(),
            custom_claims: [("plan".to_owned(), "pro".to_owned())].into(),
            description: "sample of an organization's key".to_owned(),
            ..Issue::default()
        };
        let user = Issue {
            user_id: "usr_2001".to_owned(),
            user_external_id: "jane".to_owned(),
            email: "jane@example.com".to_owned(),
            roles: vec!["admin".to_owned(), "reader".to_owned()],
            custom_claims: [
                ("team".to_owned(), "payments".to_owned()),
                ("city".to_owned(), "Zürich".to_owned()),
            ]
            .into(),
            description: "sample of a user's key".to_owned(),
            ..organization.clone()
        };
        Self { organization: emulator.issue(organization), user: emulator.issue(user) }
    }

    fn welcome(&self, address: &str, emulator: &str, upstream: &str, access_token: &str) -> String {
        let terminal = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let (bold, dim, off) = if terminal { ("\x1b[1m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
        let (user, organization) = (&self.user, &self.organization);
        let good = format!("curl -i http://{address}/v1/orders -H 'Authorization: Bearer {}'", user.key);
        let forged = format!("{good} -H 'X-Org-Id: org_of_somebody_else' -H 'X_Claim_Plan: gold'");
        let revoke = format!(
            "curl -i {emulator}/api/v1/tokens:invalidate -H 'Authorization: Bearer {access_token}' \
             -H 'Content-Type: application/json' -d '{{\"token\":\"{}\"}}'",
            user.token_id
        );
        format!(
            "
{bold}Keyward is running.{off}  Ctrl-C ends it.

  requests to     http://{address}
  are checked at  {emulator}  {dim}a Scalekit emulator; client id and secret: {CLIENT} / {CLIENT}{off}
  and go on to    {upstream}

Two keys, made for this run; they work nowhere else:

  a user's           {dim}{}{off}
  {}
  an organization's  {dim}{}{off}
  {}

{bold}1  A good key.{off} 200: the service sees X-Org-Id, X-User-Id, X-Roles and the claims, and no key.
{good}

{bold}2  No key.{off} 401 missing_credential; the service sees nothing.
curl -i http://{address}/v1/orders

{bold}3  A good key, and a forged identity.{off} 200: what is forged is gone, what Scalekit says is there.
{forged}

{bold}4  Revoke the key,{off} as Scalekit's API does it. 200.
{revoke}

{bold}5  The revoked key.{off} 401 invalid_key, on the very next request.
{good}

",
            user.token_id, user.key, organization.token_id, organization.key
        )
    }
}

pub(super) fn emulator(args: EmulatorArgs) -> Result<()> {
    let metrics = Arc::new(Metrics::default());
    let _log = access_log::start(access_log::Settings { format: Format::Text, access: false }, metrics);
    runtime(None)?.block_on(async {
        let (stop, _) = signals::watch(None)?;
        let emulator = Emulator::new(Settings {
            client_id: args.client_id.clone(),
            client_secret: args.client_secret,
            only: args.only,
            ..Settings::default()
        });
        for fault in args.fault {
            emulator.set_fault(fault);
        }
        let listener = bind(args.listen).await?;
        let mut text = format!("Scalekit emulator\n\n  http://{}", listener.local_addr()?);
        let tasks = TaskTracker::new();
        if let (Some(address), Some(file)) = (args.tls_listen, args.ca_out) {
            let certificate = Certificate::generate()?;
            std::fs::write(&file, certificate.ca_pem())
                .with_context(|| format!("cannot write {}", file.display()))?;
            let listener = bind(address).await?;
            text += &format!("\n  https://localhost:{}", listener.local_addr()?.port());
            text += &format!("  verified with {}", file.display());
            let (emulator, stop) = (emulator.clone(), stop.clone());
            tasks.spawn(async move { emulator.serve_tls(listener, &certificate, stop).await });
        }
        print(&format!("{text}\n\n  client id {}; nothing is kept when it ends\n", args.client_id))?;
        emulator.serve(listener, stop).await;
        tasks.close();
        tasks.wait().await;
        Ok(())
    })
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}
