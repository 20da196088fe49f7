//! `keyward keys update`: shows the difference before anything is changed.

use std::process::ExitCode;

use ::scalekit::token::TokenUpdate;
use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use super::super::{write_stderr, write_stdout};
use super::display::{format_difference, format_scope};
use super::{Claim, OutputArgs, Session, collect_claims, parse_token_id, prompt, to_json_line};
use crate::keys::{self, KeyError};

pub(super) const HELP: &str = include_str!("../help/keys_update.txt").trim_ascii_end();

#[derive(Args)]
pub(super) struct UpdateArgs {
    /// The id of the key
    #[arg(value_name = "ID")]
    id: String,
    /// A claim; together these replace all that the key has
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    claims: Vec<Claim>,
    /// Keep the claims that are not named
    #[arg(long)]
    merge: bool,
    /// Remove a claim, and keep the others
    #[arg(long = "remove-claim", value_name = "NAME", requires = "merge")]
    removed: Vec<String>,
    /// What the key is for; "" removes the description
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run_update(session: &Session, args: UpdateArgs) -> Result<ExitCode> {
    let id = parse_token_id(&args.id)?;
    let (given, removed) = (collect_claims(&args.claims)?, &args.removed);
    if given.is_empty() && removed.is_empty() && args.description.is_none() {
        bail!("there is nothing to change; give --claim, --remove-claim or --description");
    }
    let keys = session.open_keys().await?;
    let before = keys.find(&id).await?;
    if let Some(name) = removed.iter().find(|name| !before.custom_claims.contains_key(*name)) {
        bail!("the key has no claim {name:?}");
    }
    let custom_claims = match (given.is_empty() && removed.is_empty(), args.merge) {
        (true, _) => None,
        (false, false) => Some(given),
        (false, true) => {
            let removals = removed.iter().map(|name| (name.clone(), None));
            let changes = removals.chain(given.into_iter().map(|(name, value)| (name, Some(value))));
            Some(keys::merge_claims(&before.custom_claims, changes))
        }
    };
    let custom_claims = custom_claims.filter(|claims| *claims != before.custom_claims);
    let replaces = !args.merge && custom_claims.is_some();
    let change = TokenUpdate { custom_claims, description: args.description };
    let difference = format_difference(&before, &change);
    if difference.is_empty() {
        write_stderr(format_args!("Nothing to change: {id} is already like that.\n"));
        if args.output.json {
            write_stdout(&to_json_line(&json!({ "token_info": before }))?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    change.check()?;
    if !args.output.json {
        let how = if replaces {
            ", whose claims are replaced by those given (--merge keeps the others)"
        } else {
            ""
        };
        let scope = format_scope(&before.organization_id, before.user_id.as_deref());
        write_stderr(format_args!("{id} of {scope}{how}:\n{difference}"));
    }
    if !args.yes && !prompt::ask_confirmation("Change it?").await? {
        write_stderr("Nothing was changed.\n");
        return Ok(ExitCode::FAILURE);
    }
    let unknown = || format!("it is unknown whether {id} was changed: keyward keys inspect {id}");
    let after = match prompt::unless_interrupted(keys.update(&id, &change)).await {
        Ok(Err(error @ KeyError::OutcomeUnknown(_))) => bail!("{error}; {}", unknown()),
        Ok(done) => done?,
        Err(error) => {
            write_stderr(format_args!("keyward: {}\n", unknown()));
            return Err(error);
        }
    };
    write_stdout(&if args.output.json {
        to_json_line(&json!({ "token_info": after }))?
    } else {
        format!("Changed {id}.\n")
    })?;
    Ok(ExitCode::SUCCESS)
}
