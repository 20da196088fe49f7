//! Requests to the admin port of a running Keyward: where it is, and how to ask it.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use http_body_util::BodyExt as _;
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::task::TaskTracker;

use crate::body;
use crate::config;
use crate::listener::Listen;
use crate::pool::{Address, Origin, Protocol, Settings};

#[derive(Args)]
pub(super) struct AdminArgs {
    /// The admin port as HOST:PORT, or unix:/path; by default admin.listen of the route file, or 127.0.0.1:4481
    #[arg(long, value_name = "ADDRESS", env = "KEYWARD_ADMIN")]
    admin: Option<String>,
    /// The route file that has admin.listen
    #[arg(short, long, value_name = "FILE", env = "KEYWARD_CONFIG")]
    config: Option<PathBuf>,
}

/// Several admin ports, for what is counted by each of several replicas.
#[derive(Args)]
pub(super) struct AdminsArgs {
    /// The admin port of a running Keyward as HOST:PORT, or unix:/path; one for each replica. By default admin.listen of the route
    /// file, or 127.0.0.1:4481
    #[arg(long, value_name = "ADDRESS", env = "KEYWARD_ADMIN", value_delimiter = ',')]
    admin: Vec<String>,
    /// The route file that has admin.listen
    #[arg(short, long, value_name = "FILE", env = "KEYWARD_CONFIG")]
    config: Option<PathBuf>,
}

impl AdminsArgs {
    /// Finds the admin ports, of which there is at least one.
    ///
    /// # Errors
    /// When an `--admin` is not an address, or the route file cannot be read.
    pub(super) fn find_ports(self) -> Result<Vec<AdminPort>> {
        let given: Vec<_> = self.admin.into_iter().filter(|given| !given.is_empty()).collect();
        let find = |admin| AdminArgs { admin, config: self.config.clone() }.find_certain_port();
        match given.is_empty() {
            true => Ok(vec![find(None)?]),
            false => given.into_iter().map(|given| find(Some(given))).collect(),
        }
    }
}

/// Limit on one request to the admin port.
const TIMEOUT: Duration = Duration::from_secs(3);

const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4481);

/// A response of the admin port.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

/// The admin port of a running Keyward.
pub(super) struct AdminPort {
    address: Address,
    /// What to add to an error.
    caveat: String,
}

impl AdminArgs {
    /// Finds the admin port. A route file that cannot be read falls back to the default address, and errors then say so.
    ///
    /// # Errors
    /// When `--admin` is not an address.
    pub(super) fn find_port(&self) -> Result<AdminPort> {
        self.find(|problem| {
            Ok((DEFAULT_ADMIN, format!("; admin.listen cannot be read from the route file: {problem}")))
        })
    }

    /// Finds the admin port.
    ///
    /// # Errors
    /// When `--admin` is not an address, or the route file cannot be read.
    pub(super) fn find_certain_port(&self) -> Result<AdminPort> {
        self.find(|problem| Err(anyhow!("admin.listen cannot be read from the route file: {problem}")))
    }

    fn find(&self, fall_back: impl FnOnce(String) -> Result<(SocketAddr, String)>) -> Result<AdminPort> {
        if let Some(given) = self.admin.as_deref().filter(|given| !given.is_empty()) {
            return Ok(AdminPort { address: parse_address(given)?, caveat: String::new() });
        }
        let (listen, caveat) = match self.config.as_deref().map(config::read_admin_listen) {
            None | Some(Ok(None)) => (Listen::Tcp(DEFAULT_ADMIN), String::new()),
            Some(Ok(Some(listen))) => (listen, String::new()),
            Some(Err(problem)) => {
                let (address, caveat) = fall_back(problem)?;
                (Listen::Tcp(address), caveat)
            }
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
        Ok(AdminPort { address, caveat })
    }
}

impl AdminPort {
    /// Sends a request without a body, and reads the response.
    ///
    /// # Errors
    /// When there is no response within three seconds. The address is in the text.
    pub(super) async fn send(&self, method: Method, path: &str) -> Result<Answer> {
        let answer = tokio::time::timeout(TIMEOUT, self.exchange(method, path)).await;
        let answer = answer.map_err(|_| anyhow!("no answer within {TIMEOUT:?}")).and_then(|answer| answer);
        answer
            .map_err(|error| anyhow!("the admin port at {}: {error:#}{}", self.shown_address(), self.caveat))
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<Answer> {
        let settings = Settings {
            address: self.address.clone(),
            tls: None,
            protocol: Protocol::Http1,
            connect_timeout: TIMEOUT,
            idle_timeout: TIMEOUT,
        };
        let origin = Origin::new(&settings, TaskTracker::new())?;
        let mut request = Request::new(body::empty());
        *request.method_mut() = method;
        *request.uri_mut() = path.parse()?;
        request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
        let response = origin.send_request(request).await.map_err(|error| anyhow!(error.format_chain()))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
        Ok(Answer { status, text: String::from_utf8_lossy(&body).into_owned() })
    }

    /// Whether nothing listens there.
    pub(super) async fn is_closed(&self) -> bool {
        let connected = match &self.address {
            Address::Unix(path) => UnixStream::connect(path).await.map(drop),
            Address::Tcp(host, port) => TcpStream::connect((&**host, *port)).await.map(drop),
        };
        let kind = connected.err().map(|error| error.kind());
        matches!(kind, Some(ErrorKind::ConnectionRefused | ErrorKind::NotFound))
    }

    /// The address for messages.
    pub(super) fn shown_address(&self) -> String {
        match &self.address {
            Address::Unix(path) => format!("unix:{}", path.display()),
            Address::Tcp(host, port) if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp(host, port) => format!("{host}:{port}"),
        }
    }
}

fn parse_address(given: &str) -> Result<Address> {
    if let Some(path) = given.strip_prefix("unix:") {
        return Ok(Address::Unix(path.into()));
    }
    let (host, port) = given.rsplit_once(':').context("--admin should be HOST:PORT or unix:/path")?;
    let port = port.parse().context("--admin should be HOST:PORT or unix:/path")?;
    Ok(Address::Tcp(host.trim_matches(['[', ']']).into(), port))
}
