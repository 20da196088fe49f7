//! `keyward emulator`: the Scalekit emulator alone.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Args;
use keyward_emulator::certificate::Certificate;
use keyward_emulator::directory::Only;
use keyward_emulator::faults::Fault;
use keyward_emulator::{Emulator, Settings};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use super::{build_runtime, signals, write_stdout};
use crate::logging::{self, Format};
use crate::metrics::Metrics;

#[derive(Args)]
pub(super) struct EmulatorArgs {
    /// Address for HTTP/1.1 and HTTP/2 in clear text
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4490")]
    listen: SocketAddr,
    /// Address for TLS, with the same keys; needs --ca-out
    #[arg(long, value_name = "ADDRESS", requires = "ca_out")]
    tls_listen: Option<SocketAddr>,
    /// File to write the CA certificate to that verifies the TLS certificate, which is for localhost and --tls-name
    #[arg(long, value_name = "FILE", requires = "tls_listen")]
    ca_out: Option<PathBuf>,
    /// Host name or IP address that the TLS certificate is for too, such as a container's name. Repeatable
    #[arg(long, value_name = "NAME", requires = "tls_listen")]
    tls_name: Vec<String>,
    /// Client id to accept
    #[arg(long, default_value = "dev")]
    client_id: String,
    /// Client secret to accept
    #[arg(long, default_value = "dev", env = "KEYWARD_EMULATOR_CLIENT_SECRET", hide_env_values = true)]
    client_secret: String,
    /// Organization or user that exists; without this option, all do that a request names. Repeatable
    #[arg(long, value_name = "ORG[/USER[:ROLE,…]]")]
    only: Vec<Only>,
    /// Fault to inject, such as validate:latency=200ms or token:status=503,times=3. Repeatable
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Fault>,
}

pub(super) fn run_emulator(args: EmulatorArgs) -> Result<()> {
    let metrics = Arc::new(Metrics::default());
    let _log = logging::start(logging::Settings { format: Format::Text, access: false }, &metrics);
    build_runtime(None)?.block_on(async {
        let (stop, _) = signals::watch_signals(None)?;
        let emulator = Emulator::new(Settings {
            client_id: args.client_id.clone(),
            client_secret: args.client_secret,
            only: args.only,
            ..Settings::default()
        });
        for fault in args.fault {
            emulator.set_fault(fault);
        }
        let listener = bind_listener(args.listen).await?;
        let mut text = format!("Scalekit emulator\n\n  http://{}", listener.local_addr()?);
        let tasks = TaskTracker::new();
        if let (Some(address), Some(file)) = (args.tls_listen, args.ca_out) {
            let certificate = Certificate::generate_for(&args.tls_name).context("--tls-name")?;
            std::fs::write(&file, certificate.ca_pem())
                .with_context(|| format!("cannot write {}", file.display()))?;
            let listener = bind_listener(address).await?;
            let name = args.tls_name.first().map_or("localhost", String::as_str);
            text += &format!("\n  https://{name}:{}", listener.local_addr()?.port());
            text += &format!("  verified with {}", file.display());
            let (emulator, stop) = (emulator.clone(), stop.clone());
            tasks.spawn(async move { emulator.serve_tls(listener, &certificate, stop).await });
        }
        write_stdout(&format!("{text}\n\n  client id {}; all keys are lost when it ends\n", args.client_id))?;
        emulator.serve(listener, stop).await;
        tasks.close();
        tasks.wait().await;
        Ok(())
    })
}

pub(super) async fn bind_listener(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}
