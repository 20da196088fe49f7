//! `keyward healthcheck`: asks the admin port of a running Keyward.

use anyhow::{Result, bail};
use clap::Args;
use hyper::{Method, StatusCode};

use super::admin_client::AdminArgs;

#[derive(Args)]
pub(super) struct HealthcheckArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Ask for liveness instead of readiness
    #[arg(long)]
    live: bool,
}

pub(super) fn check_health(args: &HealthcheckArgs) -> Result<()> {
    // A route file that cannot be read must not make a container unhealthy whose Keyward still runs with what it has read before.
    let port = args.admin.find_port()?;
    let path = if args.live { "/livez" } else { "/readyz" };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(port.send(Method::GET, path))?;
    if answer.status != StatusCode::OK {
        bail!("{}", answer.text.trim());
    }
    super::write_stdout(&answer.text)?;
    Ok(())
}
