//! `keyward keys inspect`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::super::write_stdout;
use super::display::{describe_token, describe_usage};
use super::usage::Seen;
use super::{OutputArgs, SeenArgs, Session, parse_token_id, prompt, to_json_line};
use crate::keys::KeyError;

pub(super) const HELP: &str = include_str!("../help/keys_inspect.txt").trim_ascii_end();

#[derive(Args)]
pub(super) struct InspectArgs {
    /// The id of the key; without it the key itself is read from standard input
    #[arg(value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    seen: SeenArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run_inspect(session: &Session, args: InspectArgs) -> Result<ExitCode> {
    let seen = args.seen.seen.then(|| Seen::new(args.seen.admins)).transpose()?;
    let found = match &args.id {
        Some(text) => {
            let id = parse_token_id(text)?;
            session.open_keys().await?.find(&id).await
        }
        None => {
            let key = prompt::read_key().await?;
            let keys = session.open_keys().await?;
            prompt::unless_interrupted(keys.inspect(&key)).await?
        }
    };
    let found = match found {
        Err(KeyError::NotFound) => None,
        found => Some(found?),
    };
    let usage = match (&seen, &found) {
        (Some(seen), Some(token)) => seen.find_keys(&[&token.token_id]).await?.pop(),
        _ => None,
    };
    write_stdout(&match (&found, args.output.json) {
        (Some(token), false) => {
            let now = Timestamp::now();
            describe_token(token, now) + &usage.map_or_else(String::new, |usage| describe_usage(&usage, now))
        }
        (None, false) => "Not a live key: it is unknown, expired or revoked.\n".to_owned(),
        (found, true) => {
            let mut json = json!({ "valid": found.is_some(), "token_info": found });
            if let Some(usage) = usage {
                json["usage"] = usage.to_json();
            }
            to_json_line(&json)?
        }
    })?;
    Ok(if found.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
