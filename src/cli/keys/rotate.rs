//! `keyward keys rotate`. The new key is printed before the old one is revoked, so that at no time there is none.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use jiff::Timestamp;
use tokio::time::Duration;

use super::super::{write_stderr, write_stdout};
use super::{KeyOutputArgs, Session, create_key, parse_token_id, print_new_key, prompt};
use crate::config::parse_duration;
use crate::keys::{self, KeyError, Keys, TokenId};

pub(super) const HELP: &str = include_str!("../help/keys_rotate.txt").trim_ascii_end();

#[derive(Args)]
pub(super) struct RotateArgs {
    /// The id of the key
    #[arg(value_name = "ID")]
    id: String,
    /// Do not revoke the old key, but print the command to revoke it within this time, such as 24h
    #[arg(long, value_name = "TIME", value_parser = parse_overlap)]
    overlap: Option<Duration>,
    #[command(flatten)]
    output: KeyOutputArgs,
}

fn parse_overlap(text: &str) -> Result<Duration, &'static str> {
    parse_duration(text).filter(|time| !time.is_zero()).ok_or("it should be a duration such as 24h")
}

pub(super) async fn run_rotate(session: &Session, args: RotateArgs) -> Result<ExitCode> {
    let old_id = parse_token_id(&args.id)?;
    let keys = &session.open_keys().await?;
    let old = keys.find(&old_id).await?;
    let now = Timestamp::now();
    let revoke_by = args
        .overlap
        .map(|time| now.checked_add(time).map_err(|_| anyhow!("that is too far in the future")))
        .transpose()?
        // There is nothing left to revoke once the old key has expired.
        .map(|until| old.expiry.map_or(until, |expiry| until.min(expiry)));
    let new = keys::to_successor(&old);
    let created = create_key(&new.organization_id, keys.create_successor(&old, &new)).await?;
    print_new_key(&created, Some(&old_id), args.output, now)?;
    let old_key = match revoke_by {
        Some(until) => format!(
            "{old_id} still works. To see when it was last used, and to wait until clients have the new key:\n  \
             keyward keys watch {old_id} --silent-for {}\nRevoke it then, by {until:.0}:\n  keyward keys revoke --yes {old_id}\n",
            format_silence(args.overlap.unwrap_or_default()),
        ),
        None => {
            revoke_replaced(keys, &old_id).await?;
            format!("{old_id} is revoked.\n")
        }
    };
    if !args.output.quiet && !args.output.json {
        write_stdout(&old_key)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How long the old key should be silent before it is revoked: a quarter of the overlap, and a day at most.
fn format_silence(overlap: Duration) -> String {
    const LONGEST: u64 = 86_400;
    humantime::format_duration(Duration::from_secs((overlap.as_secs() / 4).clamp(1, LONGEST)))
        .to_string()
        .replace(' ', "")
}

/// Every error names the command with which to revoke the old key later.
async fn revoke_replaced(keys: &Keys, old: &TokenId) -> Result<()> {
    let error = match prompt::unless_interrupted(keys.revoke(old)).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error @ KeyError::OutcomeUnknown(_))) => {
            anyhow!("it is unknown whether {old} is revoked: {error}; to be sure: keyward keys revoke {old}")
        }
        Ok(Err(error)) => {
            anyhow!(
                "{old} is not revoked and still works: {error}; revoke it later: keyward keys revoke {old}"
            )
        }
        Err(interrupted) => {
            write_stderr(format_args!("keyward: {old} may still work: keyward keys revoke {old}\n"));
            interrupted
        }
    };
    Err(error)
}
