//! `keyward keys rotate` and `revoke`.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Duration;

use super::super::print;
use super::{Form, KeyForm, deliver, id, json, make, prompt, words};
use crate::config::parse_duration;
use crate::keys::{self, KeyError, Keys, TokenId};
use crate::scalekit::management::CallError;

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

fn overlap(text: &str) -> Result<Duration, &'static str> {
    parse_duration(text).filter(|time| !time.is_zero()).ok_or("it is a duration such as 24h")
}

pub(super) async fn rotate(keys: &Keys, args: Rotate) -> Result<ExitCode> {
    let old_id = id(&args.id)?;
    let old = keys.find(&old_id).await?;
    let now = Timestamp::now();
    let until = args
        .overlap
        .map(|time| now.checked_add(time).context("that is too far in the future"))
        .transpose()?;
    let created = make(keys, &keys::successor(&old)).await?;
    let (key, token) = (created.key.expose(), &created.token);
    let silent = args.form.quiet || args.form.json;
    if args.form.quiet {
        deliver(&created, &format!("{key}\n"))?;
    } else if !args.form.json {
        let text = format!(
            "Created {} in place of {old_id}, for {}. {}\n\n  {key}\n\nThis is the only time that the key is shown. Store it now.\n",
            words::safe(&token.token_id),
            words::scope(&token.organization_id, token.user_id.as_deref()),
            words::end(token.expiry, now),
        );
        deliver(&created, &text)?;
    }
    // The new key is out before the old one ends.
    let ended = if until.is_none() { Some(keys.revoke(&old_id).await) } else { None };
    if args.form.json {
        let content = json!({
            "token": key, "token_id": token.token_id, "token_info": token,
            "replaced_token_id": old.token_id, "replaced_token_revoked": matches!(ended, Some(Ok(()))),
        });
        deliver(&created, &json(&content)?)?;
    }
    match (ended, until) {
        (Some(Err(error)), _) => bail!(
            "{old_id} is not revoked, and still good: {error}; when that is mended: keyward keys revoke {old_id}"
        ),
        (Some(Ok(())), _) if !silent => print(&format!("{old_id} is revoked.\n"))?,
        (_, Some(until)) if !silent => print(&format!(
            "{old_id} still works. When callers have the new key, at the latest on {until:.0}:\n  keyward keys revoke --yes {old_id}\n"
        ))?,
        _ => true,
    };
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn revoke(keys: &Keys, args: Revoke) -> Result<ExitCode> {
    let from_input = args.ids.iter().any(|id| id == "-");
    let mut texts: Vec<String> = args.ids.into_iter().filter(|id| id != "-").collect();
    if from_input {
        texts.extend(prompt::lines()?);
    }
    // All are read before the first is revoked, so that a mistake in the list leaves everything as it is.
    let read = |(number, text): (usize, &String)| -> Result<TokenId> {
        id(text).with_context(|| format!("number {} of the list", number + 1))
    };
    let ids: Vec<TokenId> = texts.iter().enumerate().map(read).collect::<Result<_>>()?;
    let question = match ids.as_slice() {
        [] => bail!("there are no ids on standard input"),
        [one] => format!("Revoke {one}? It stops working at once, for good."),
        many => format!("Revoke {} keys? They stop working at once, for good.", many.len()),
    };
    if !args.yes && !prompt::confirmed(&question).await? {
        eprintln!("Nothing was revoked.");
        return Ok(ExitCode::FAILURE);
    }
    let mut failed = 0;
    for (done, id) in ids.iter().enumerate() {
        let error = keys.revoke(id).await.err();
        if args.form.json {
            let error = error.as_ref().map(ToString::to_string);
            print(&json(
                &json!({ "token_id": id.to_string(), "revoked": error.is_none(), "error": error }),
            )?)?;
        } else if error.is_none() {
            print(&format!("{id} is revoked.\n"))?;
        }
        let Some(error) = error else { continue };
        eprintln!(
            "keyward: {id}: {}",
            if matches!(error, KeyError::NotFound) {
                "there is no key of this id".to_owned()
            } else {
                error.to_string()
            }
        );
        failed += 1;
        // What lasts for one lasts for all.
        if matches!(error, KeyError::Call(CallError::Permission(_) | CallError::Fault(_))) {
            let left = ids.len() - done - 1;
            if left > 0 {
                eprintln!("keyward: the {left} after it were not tried");
            }
            failed += left;
            break;
        }
    }
    Ok(ExitCode::from(u8::try_from(failed).unwrap_or(u8::MAX).min(125)))
}
