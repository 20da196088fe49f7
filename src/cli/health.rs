//! `keyward healthcheck`: asks the admin port of a Keyward that runs beside it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::header::{HOST, HeaderValue};
use tokio_util::task::TaskTracker;

use crate::body;
use crate::origin::{Address, Origin, Protocol, Settings};

#[derive(Args)]
pub(super) struct Healthcheck {
    /// The admin port, or unix:/path
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4481", env = "KEYWARD_ADMIN")]
    admin: String,
    /// Ask whether it lives, not whether it is ready
    #[arg(long)]
    live: bool,
}

const LIMIT: Duration = Duration::from_secs(3);

pub(super) fn check(args: &Healthcheck) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (status, text) = runtime
        .block_on(async { tokio::time::timeout(LIMIT, ask(args)).await })
        .context("no answer in time")??;
    if status != 200 {
        bail!("{}", text.trim());
    }
    super::print(&text)?;
    Ok(())
}

async fn ask(args: &Healthcheck) -> Result<(u16, String)> {
    let address = match args.admin.strip_prefix("unix:") {
        Some(path) => Address::Unix(path.into()),
        None => {
            let (host, port) = args.admin.rsplit_once(':').context("--admin is HOST:PORT or unix:/path")?;
            let port = port.parse().context("--admin is HOST:PORT or unix:/path")?;
            Address::Tcp(host.trim_matches(['[', ']']).into(), port)
        }
    };
    let settings = Settings {
        address,
        tls: None,
        protocol: Protocol::Http1,
        connect_timeout: LIMIT,
        idle_timeout: LIMIT,
    };
    let origin = Origin::new(&settings, TaskTracker::new())?;
    let mut request = Request::new(body::empty());
    *request.uri_mut() = hyper::Uri::from_static(if args.live { "/livez" } else { "/readyz" });
    request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    let response = origin.send(request).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
