//! `keyward drain`: drains a running Keyward and waits for the end, for the preStop hook of a container without a shell.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use hyper::{Method, StatusCode};
use tokio::time::{Instant, sleep};

use super::admin_client::{AdminArgs, AdminPort, Answer};
use crate::config;

pub(super) const HELP: &str = include_str!("help/drain.txt").trim_ascii_end();

#[derive(Args)]
pub(super) struct DrainArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How long to wait for the end of the drain, such as 30s; by default what is left of drain_delay and drain_timeout, and 5 s
    #[arg(long, value_name = "DURATION", value_parser = parse_timeout)]
    timeout: Option<Duration>,
}

/// Between two looks at the drain.
const INTERVAL: Duration = Duration::from_millis(100);
/// For closing what is open at the end of `drain_timeout`.
const MARGIN: Duration = Duration::from_secs(5);

pub(super) fn drain(args: &DrainArgs) -> Result<()> {
    // SECURITY: without a fallback to the default address, at which another Keyward may listen.
    let port = args.admin.find_certain_port()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(drain_at(&port, args.timeout))?;
    super::write_stdout(outcome)?;
    Ok(())
}

async fn drain_at(port: &AdminPort, timeout: Option<Duration>) -> Result<&'static str> {
    let began = Instant::now();
    let first = read_progress(port, &port.send(Method::POST, "/drain").await?)?;
    let Progress::Draining { left } = first else { return Ok(DRAINED) };
    let limit = timeout.unwrap_or_else(|| began.elapsed() + left + MARGIN);
    loop {
        if began.elapsed() >= limit {
            bail!("the drain has not ended within {}; it goes on", humantime::format_duration(round(limit)));
        }
        sleep(INTERVAL.min(limit.saturating_sub(began.elapsed()))).await;
        match port.send(Method::POST, "/drain").await {
            Ok(answer) => {
                if let Progress::Drained = read_progress(port, &answer)? {
                    return Ok(DRAINED);
                }
            }
            // SIGTERM came meanwhile. A Keyward that does not answer is asked again.
            Err(_) if port.is_closed().await => return Ok("stopped\n"),
            Err(_) => {}
        }
    }
}

const DRAINED: &str = "drained\n";

enum Progress {
    Draining { left: Duration },
    Drained,
}

fn read_progress(port: &AdminPort, answer: &Answer) -> Result<Progress> {
    let unexpected = || {
        let text = answer.text.lines().next().unwrap_or_default();
        let text: String = text.chars().take(200).filter(|char| !char.is_control()).collect();
        anyhow!("the admin port at {} answers {}: {text}", port.shown_address(), answer.status.as_u16())
    };
    let json: serde_json::Value = serde_json::from_str(&answer.text).map_err(|_| unexpected())?;
    match (answer.status, json["state"].as_str()) {
        (StatusCode::OK, Some("drained")) => Ok(Progress::Drained),
        (StatusCode::ACCEPTED, Some("draining")) => {
            let left = json["seconds_left"].as_f64().and_then(|left| Duration::try_from_secs_f64(left).ok());
            Ok(Progress::Draining { left: left.ok_or_else(unexpected)? })
        }
        _ => Err(unexpected()),
    }
}

/// To milliseconds, for messages.
fn round(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).ok_or_else(|| "should be a duration such as 30s or 1m".to_owned())
}
