//! `keyward keys watch`: waits until a key has not been used for some time, at any of several replicas. It asks only their admin
//! ports, never Scalekit.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use tokio::time::{Duration, sleep};

use super::super::admin_client::{AdminPort, AdminsArgs};
use super::super::write_stdout;
use super::display::escape_text;
use super::usage::{Counted, count_keys};
use super::{parse_token_id, prompt};
use crate::config::parse_duration;
use crate::keys::TokenId;
use crate::usage::{Coverage, KeyUsage};

pub(super) const HELP: &str = include_str!("../help/keys_watch.txt").trim_ascii_end();

#[derive(Args)]
pub(super) struct WatchArgs {
    /// The id of the key
    #[arg(value_name = "ID")]
    id: String,
    /// How long the key must not have been used
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_silence)]
    silent_for: Duration,
    #[command(flatten)]
    admins: AdminsArgs,
}

fn parse_silence(text: &str) -> Result<Duration, &'static str> {
    parse_duration(text).filter(|time| !time.is_zero()).ok_or("it should be a duration such as 24h")
}

/// A replica is asked this often while it is waited for.
const LOOKS: u32 = 60;
/// The least and the longest time between two looks.
const INTERVALS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(30)];

/// What is known of the key at one replica.
struct Replica {
    port: AdminPort,
    coverage: Coverage,
    usage: Option<KeyUsage>,
    /// Whether the last request for it failed.
    is_lost: bool,
}

pub(super) async fn run_watch(args: WatchArgs) -> Result<ExitCode> {
    let id = parse_token_id(&args.id)?;
    prompt::unless_interrupted(watch(&id, args.silent_for, args.admins.find_ports()?)).await?
}

async fn watch(id: &TokenId, silent_for: Duration, ports: Vec<AdminPort>) -> Result<ExitCode> {
    let name = id.to_string();
    let mut replicas = Vec::new();
    for port in ports {
        let Counted { coverage, mut keys } = count_keys(&port, &[&name]).await?;
        let replica = Replica { port, coverage, usage: keys.remove(&name), is_lost: false };
        print_line(&replica.coverage, &replica.describe_use(&name))?;
        replicas.push(replica);
    }
    let interval = (silent_for / LOOKS).clamp(INTERVALS[0], INTERVALS[1]);
    loop {
        let left = replicas.iter().map(|replica| silent_for.saturating_sub(replica.silence())).max();
        let left = left.unwrap_or_default();
        if left.is_zero() && !replicas.iter().any(|replica| replica.is_lost) {
            break;
        }
        sleep(if left.is_zero() { interval } else { left.min(interval) }).await;
        for replica in &mut replicas {
            replica.look(&name).await?;
        }
    }
    let since = replicas.iter().map(Replica::silent_since).max().unwrap_or_default();
    let text = format!("{id} has not been used since {since:.0}. Revoke it: keyward keys revoke {id}");
    if let Some(replica) = replicas.first() {
        print_line(&replica.coverage, &text)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_line(coverage: &Coverage, text: &str) -> Result<()> {
    write_stdout(&format!("{:.0}  {text}\n", coverage.now)).map(drop)
}

impl Replica {
    /// Asks again, and prints a line for what has changed.
    async fn look(&mut self, name: &str) -> Result<()> {
        let Counted { coverage, mut keys } = match count_keys(&self.port, &[name]).await {
            Ok(counted) => counted,
            Err(error) => {
                if !std::mem::replace(&mut self.is_lost, true) {
                    let text =
                        format!("{error:#}. The key does not count as silent until this port answers again");
                    write_stdout(&format!("{:.0}  {text}\n", Timestamp::now()))?;
                }
                return Ok(());
            }
        };
        let address = self.port.shown_address();
        if std::mem::take(&mut self.is_lost) {
            print_line(&coverage, &format!("the admin port at {address} answers again"))?;
        }
        let (before, known_before) = (std::mem::replace(&mut self.coverage, coverage), self.usage.take());
        self.usage = keys.remove(name);
        if self.coverage.complete_since > before.complete_since {
            let why = match self.coverage.started > before.started {
                true => "was restarted, and may have lost uses of the key",
                false => "has forgotten keys that were used least recently (usage.max_keys)",
            };
            let text = format!(
                "the Keyward at {address} {why}; silence counts from {:.0} at the earliest",
                self.coverage.complete_since
            );
            print_line(&self.coverage, &text)?;
        }
        let changed = |usage: &KeyUsage| (usage.last_used, usage.requests, usage.open_requests);
        if self.usage.as_ref().map(changed) != known_before.as_ref().map(changed) && self.usage.is_some() {
            print_line(&self.coverage, &self.describe_use(name))?;
        }
        Ok(())
    }

    /// The time from which the key was certainly not used.
    fn silent_since(&self) -> Timestamp {
        match &self.usage {
            Some(usage) if usage.open_requests > 0 => self.coverage.now,
            Some(usage) => usage.last_used.max(self.coverage.complete_since),
            None => self.coverage.complete_since,
        }
    }

    /// By the clock of the replica.
    fn silence(&self) -> Duration {
        self.coverage.now.duration_since(self.silent_since()).try_into().unwrap_or_default()
    }

    fn describe_use(&self, name: &str) -> String {
        let address = self.port.shown_address();
        let Some(usage) = &self.usage else {
            return format!("{name} was not used at {address} since {:.0}", self.coverage.complete_since);
        };
        let network = usage.last_network.map_or_else(String::new, |network| format!(" from {network}"));
        let status = usage
            .last_status
            .as_ref()
            .map_or_else(String::new, |status| format!(", {}", escape_text(status)));
        let open = match usage.open_requests {
            0 => String::new(),
            open => format!(", {open} in progress"),
        };
        format!(
            "{name} was last used at {address} on {:.0}{network} for {}{status}; requests: {}{open}",
            usage.last_used,
            escape_text(&usage.last_route),
            usage.requests
        )
    }
}
