//! `keyward keys revoke`.

use std::ops::ControlFlow;
use std::process::ExitCode;

use ::scalekit::error::Class;
use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;

use super::super::{write_stderr, write_stdout};
use super::{OutputArgs, Session, parse_token_id, prompt, to_json_line};
use crate::keys::{KeyError, Keys, TokenId};

pub(super) const HELP: &str = include_str!("../help/keys_revoke.txt").trim_ascii_end();

#[derive(Args)]
pub(super) struct RevokeArgs {
    /// The ids of the keys; `-` reads them from standard input, one a line
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: OutputArgs,
}

const MAX_IDS: usize = 100_000;
/// After so many outcomes in a row that are unknown, the remaining keys are not tried.
const MAX_LOST_IN_A_ROW: usize = 3;
/// Shells use higher exit codes for reasons of their own.
const MAX_EXIT_CODE: u8 = 125;

/// What became of the keys of one run.
#[derive(Default)]
struct Tally {
    /// Not revoked, not known to be revoked, or not tried.
    failed: usize,
    lost_in_a_row: usize,
}

pub(super) async fn run_revoke(session: &Session, args: RevokeArgs) -> Result<ExitCode> {
    let ids = read_ids(&args.ids)?;
    let question = match ids.as_slice() {
        [] => bail!("there are no ids on standard input"),
        [one] => format!("Revoke {one}? It stops working at once, for good."),
        many => format!("Revoke {} keys? They stop working at once, for good.", many.len()),
    };
    let keys = session.open_keys().await?;
    if !args.yes && !prompt::ask_confirmation(&question).await? {
        write_stderr("Nothing was revoked.\n");
        return Ok(ExitCode::FAILURE);
    }
    let mut tally = Tally::default();
    for (index, id) in ids.iter().enumerate() {
        let left = ids.len() - index - 1;
        let outcome = revoke_one(&keys, id, left, args.output.json).await?;
        if tally.record(&outcome).is_break() {
            if left > 0 {
                write_stderr(format_args!("keyward: the {left} after it were not tried\n"));
            }
            tally.failed += left;
            break;
        }
    }
    Ok(tally.to_exit_code())
}

/// Reads all ids before the first key is revoked, so that a mistake in the list leaves every key as it is.
fn read_ids(arguments: &[String]) -> Result<Vec<TokenId>> {
    let mut ids: Vec<TokenId> = Vec::new();
    let mut push_id = |text: &str| {
        let number = ids.len() + 1;
        if number > MAX_IDS {
            bail!("these are more than {MAX_IDS} ids; nothing was revoked");
        }
        let id = parse_token_id(text)
            .with_context(|| format!("number {number} of the list; nothing was revoked"))?;
        ids.push(id);
        Ok(())
    };
    arguments.iter().filter(|id| *id != "-").try_for_each(|id| push_id(id))?;
    if arguments.iter().any(|id| id == "-") {
        prompt::for_each_line(push_id)?;
    }
    Ok(ids)
}

/// Revokes a key and prints the outcome. `left` is the number of keys after it.
///
/// # Errors
/// When the command is interrupted, or standard output fails.
async fn revoke_one(keys: &Keys, id: &TokenId, left: usize, json: bool) -> Result<Result<(), KeyError>> {
    let outcome = match prompt::unless_interrupted(keys.revoke(id)).await {
        Ok(outcome) => outcome,
        Err(interrupted) => {
            write_stderr(format_args!(
                "keyward: it is unknown whether {id} is revoked; the {left} after it were not tried\n"
            ));
            return Err(interrupted);
        }
    };
    if json {
        let error = outcome.as_ref().err().map(ToString::to_string);
        let line = json!({ "token_id": id.to_string(), "revoked": error.is_none(), "error": error });
        write_stdout(&to_json_line(&line)?)?;
    } else if outcome.is_ok() {
        write_stdout(&format!("{id} is revoked.\n"))?;
    }
    match &outcome {
        Ok(()) => {}
        Err(KeyError::NotFound) => {
            write_stderr(format_args!("keyward: {id}: there is no key with this id\n"))
        }
        Err(error) => write_stderr(format_args!("keyward: {id}: {error}\n")),
    }
    Ok(outcome)
}

impl Tally {
    /// Whether to go on with the next key. A missing permission or an outage fails for all alike.
    fn record(&mut self, outcome: &Result<(), KeyError>) -> ControlFlow<()> {
        let Err(error) = outcome else {
            self.lost_in_a_row = 0;
            return ControlFlow::Continue(());
        };
        self.failed += 1;
        let is_lost = matches!(error, KeyError::OutcomeUnknown(_));
        self.lost_in_a_row = if is_lost { self.lost_in_a_row + 1 } else { 0 };
        let fails_for_all = matches!(error, KeyError::Call(error) if error.class() != Class::Refused);
        if fails_for_all || self.lost_in_a_row == MAX_LOST_IN_A_ROW {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn to_exit_code(&self) -> ExitCode {
        ExitCode::from(u8::try_from(self.failed).unwrap_or(u8::MAX).min(MAX_EXIT_CODE))
    }
}
