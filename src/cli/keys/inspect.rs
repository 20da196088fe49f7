//! `keyward keys inspect`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::super::write_stdout;
use super::display::describe_token;
use super::{OutputArgs, Session, parse_token_id, prompt, to_json_line};
use crate::keys::KeyError;

pub(super) const HELP: &str = include_str!("../help/keys_inspect.txt").trim_ascii_end();

#[derive(Args)]
pub(super) struct InspectArgs {
    /// The id of the key; without it the key itself is read from standard input
    #[arg(value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run_inspect(session: &Session, args: InspectArgs) -> Result<ExitCode> {
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
    write_stdout(&match (&found, args.output.json) {
        (Some(token), false) => describe_token(token, Timestamp::now()),
        (None, false) => "Not a live key: it is unknown, expired or revoked.\n".to_owned(),
        (found, true) => to_json_line(&json!({ "valid": found.is_some(), "token_info": found }))?,
    })?;
    Ok(if found.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
