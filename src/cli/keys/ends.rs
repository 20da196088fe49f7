//! `keyward keys rotate` and `revoke`.

use std::process::ExitCode;

use ::scalekit::ExposeSecret;
use ::scalekit::error::Class;
use anyhow::{Context as _, Result, bail};
use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Duration;

use super::super::{print, tell};
use super::{Form, KeyForm, Session, deliver, id, json, make, prompt, words};
use crate::config::parse_duration;
use crate::keys::{self, KeyError, Keys, TokenId};

#[derive(Args)]
pub(super) struct Rotate {
    /// The id of the key
    #[arg(value_name = "ID")]
    id: String,
    /// Leave the old key good for so long, as in 24h, and print the command that ends it
    #[arg(long, value_name = "TIME", value_parser = overlap)]
    overlap: Option<Duration>,
    #[command(flatten)]
    form: KeyForm,
}

#[derive(Args)]
pub(super) struct Revoke {
    /// The ids of the keys; `-` reads them from standard input, one a line
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    form: Form,
}

/// More are hardly meant.
const MOST_IDS: usize = 100_000;
/// After so many in a row that nobody knows about, the rest will hardly fare better.
const MOST_LOST: usize = 3;

fn overlap(text: &str) -> Result<Duration, &'static str> {
    parse_duration(text).filter(|time| !time.is_zero()).ok_or("it is a duration such as 24h")
}

pub(super) async fn rotate(session: &Session, args: Rotate) -> Result<ExitCode> {
    let old_id = id(&args.id)?;
    let keys = &session.keys().await?;
    let old = keys.find(&old_id).await?;
    let now = Timestamp::now();
    let until = args
        .overlap
        .map(|time| now.checked_add(time).map_err(|_| anyhow::anyhow!("that is too far in the future")))
        .transpose()?
        // By then it has ended by itself.
        .map(|until| old.expiry.map_or(until, |expiry| until.min(expiry)));
    let created = make(keys, &keys::successor(&old)).await?;
    let (key, token) = (created.token.expose_secret(), &created.info);
    let silent = args.form.quiet || args.form.json;
    // The new key is out before the old one ends.
    let text = if args.form.quiet {
        format!("{key}\n")
    } else if args.form.json {
        json(&json!({
            "token": key, "token_id": token.token_id, "token_info": token, "replaced_token_id": old.token_id,
        }))?
    } else {
        format!(
            "Created {} in place of {old_id}, for {}.\n{}\n\n  {key}\n\nThis is the only time that the key is shown. Store it now.\n",
            words::safe(&token.token_id),
            words::scope(&token.organization_id, token.user_id.as_deref()),
            words::end(token.expiry, now),
        )
    };
    deliver(&created, &text)?;
    let said = match until {
        Some(until) => format!(
            "{old_id} still works. Revoke it when callers have the new key, by {until:.0}:\n  keyward keys revoke --yes {old_id}\n"
        ),
        None => {
            end(keys, &old_id).await?;
            format!("{old_id} is revoked.\n")
        }
    };
    if !silent {
        print(&said)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Revokes a key whose successor is out.
async fn end(keys: &Keys, old: &TokenId) -> Result<()> {
    let error = match prompt::unless_interrupted(keys.revoke(old)).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error @ KeyError::OutcomeUnknown(_))) => {
            anyhow::anyhow!(
                "it is not known whether {old} is revoked: {error}; to be sure: keyward keys revoke {old}"
            )
        }
        Ok(Err(error)) => anyhow::anyhow!(
            "{old} is not revoked, and still good: {error}; when that is mended: keyward keys revoke {old}"
        ),
        Err(interrupted) => {
            tell(format_args!("keyward: {old} may still be good: keyward keys revoke {old}\n"));
            interrupted
        }
    };
    Err(error)
}

pub(super) async fn revoke(session: &Session, args: Revoke) -> Result<ExitCode> {
    let from_input = args.ids.iter().any(|id| id == "-");
    // All are read before the first is revoked, so that a mistake in the list leaves everything as it is.
    let mut ids: Vec<TokenId> = Vec::new();
    let mut take = |text: &str| {
        let number = ids.len() + 1;
        if number > MOST_IDS {
            bail!("these are more than {MOST_IDS} ids; nothing was revoked");
        }
        let id =
            id(text).with_context(|| format!("number {number} of the list, of which nothing was revoked"))?;
        ids.push(id);
        Ok(())
    };
    args.ids.iter().filter(|id| *id != "-").try_for_each(|id| take(id))?;
    if from_input {
        prompt::each_line(take)?;
    }
    let question = match ids.as_slice() {
        [] => bail!("there are no ids on standard input"),
        [one] => format!("Revoke {one}? It stops working at once, for good."),
        many => format!("Revoke {} keys? They stop working at once, for good.", many.len()),
    };
    let keys = session.keys().await?;
    if !args.yes && !prompt::confirmed(&question).await? {
        tell("Nothing was revoked.\n");
        return Ok(ExitCode::FAILURE);
    }
    let (mut failed, mut lost) = (0, 0);
    for (done, id) in ids.iter().enumerate() {
        let left = ids.len() - done - 1;
        let error = match prompt::unless_interrupted(keys.revoke(id)).await {
            Ok(done) => done.err(),
            Err(interrupted) => {
                tell(format_args!(
                    "keyward: it is not known whether {id} is revoked; the {left} after it were not tried\n"
                ));
                return Err(interrupted);
            }
        };
        if args.form.json {
            let error = error.as_ref().map(ToString::to_string);
            print(&json(
                &json!({ "token_id": id.to_string(), "revoked": error.is_none(), "error": error }),
            )?)?;
        } else if error.is_none() {
            print(&format!("{id} is revoked.\n"))?;
        }
        let Some(error) = error else {
            lost = 0;
            continue;
        };
        tell(format_args!(
            "keyward: {id}: {}\n",
            if matches!(error, KeyError::NotFound) {
                "there is no key of this id".to_owned()
            } else {
                error.to_string()
            }
        ));
        failed += 1;
        lost = if matches!(error, KeyError::OutcomeUnknown(_)) { lost + 1 } else { 0 };
        // What lasts for one lasts for all.
        if lost == MOST_LOST || matches!(&error, KeyError::Call(error) if error.class() != Class::Refused) {
            if left > 0 {
                tell(format_args!("keyward: the {left} after it were not tried\n"));
            }
            failed += left;
            break;
        }
    }
    Ok(ExitCode::from(u8::try_from(failed).unwrap_or(u8::MAX).min(125)))
}
