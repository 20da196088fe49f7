//! `keyward healthcheck`: asks the admin port of a running Keyward.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::header::{HOST, HeaderValue};
use tokio_util::task::TaskTracker;

use crate::body;
use crate::config;
use crate::listener::Listen;
use crate::pool::{Address, Origin, Protocol, Settings};

#[derive(Args)]
pub(super) struct HealthcheckArgs {
    /// The admin port as HOST:PORT, or unix:/path; by default admin.listen of the route file, or 127.0.0.1:4481
    #[arg(long, value_name = "ADDRESS", env = "KEYWARD_ADMIN")]
    admin: Option<String>,
    /// The route file that has admin.listen
    #[arg(short, long, value_name = "FILE", env = "KEYWARD_CONFIG")]
    config: Option<PathBuf>,
    /// Ask for liveness instead of readiness
    #[arg(long)]
    live: bool,
}

const TIMEOUT: Duration = Duration::from_secs(3);

const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4481);

pub(super) fn check_health(args: &HealthcheckArgs) -> Result<()> {
    let (address, caveat) = find_address(args)?;
    let shown_address = match &address {
        Address::Unix(path) => format!("unix:{}", path.display()),
        Address::Tcp(host, port) if host.contains(':') => format!("[{host}]:{port}"),
        Address::Tcp(host, port) => format!("{host}:{port}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { tokio::time::timeout(TIMEOUT, fetch_health(args, address)).await });
    let answer = answer.map_err(|_| anyhow!("no answer within {TIMEOUT:?}")).and_then(|answer| answer);
    let (status, text) =
        answer.map_err(|error| anyhow!("the admin port at {shown_address}: {error:#}{caveat}"))?;
    if status != 200 {
        bail!("{}", text.trim());
    }
    super::write_stdout(&text)?;
    Ok(())
}

/// The address, and what to add to an error. A route file that cannot be read falls back to the default address: it must not make a
/// container unhealthy whose Keyward still runs with the configuration it has read before.
fn find_address(args: &HealthcheckArgs) -> Result<(Address, String)> {
    if let Some(given) = args.admin.as_deref().filter(|given| !given.is_empty()) {
        return Ok((parse_address(given)?, String::new()));
    }
    let (listen, caveat) = match args.config.as_deref().map(config::read_admin_listen) {
        None => (Listen::Tcp(DEFAULT_ADMIN), String::new()),
        Some(Ok(listen)) => (listen.unwrap_or(Listen::Tcp(DEFAULT_ADMIN)), String::new()),
        Some(Err(problem)) => (
            Listen::Tcp(DEFAULT_ADMIN),
            format!("; admin.listen cannot be read from the route file: {problem}"),
        ),
    };
    let address = match listen {
        Listen::Unix(path) => Address::Unix(path),
        Listen::Tcp(address) => {
            // A wildcard address cannot be connected to, but includes loopback.
            let ip = match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
                ip => ip,
            };
            Address::Tcp(ip.to_string().into(), address.port())
        }
    };
    Ok((address, caveat))
}

fn parse_address(given: &str) -> Result<Address> {
    if let Some(path) = given.strip_prefix("unix:") {
        return Ok(Address::Unix(path.into()));
    }
    let (host, port) = given.rsplit_once(':').context("--admin should be HOST:PORT or unix:/path")?;
    let port = port.parse().context("--admin should be HOST:PORT or unix:/path")?;
    Ok(Address::Tcp(host.trim_matches(['[', ']']).into(), port))
}

async fn fetch_health(args: &HealthcheckArgs, address: Address) -> Result<(u16, String)> {
    let settings = Settings {
        address,
        tls: None,
        protocol: Protocol::Http1,
        connect_timeout: TIMEOUT,
        idle_timeout: TIMEOUT,
    };
    let origin = Origin::new(&settings, TaskTracker::new())?;
    let mut request = Request::new(body::empty());
    *request.uri_mut() = hyper::Uri::from_static(if args.live { "/livez" } else { "/readyz" });
    request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    let response = origin.send_request(request).await.map_err(|error| anyhow!(error.format_chain()))?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
