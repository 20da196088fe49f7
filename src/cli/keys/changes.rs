//! `keyward keys create` and `update`.

use std::process::ExitCode;

use ::scalekit::ExposeSecret;
use ::scalekit::token::{NewToken, TokenUpdate};
use anyhow::{Result, bail};
use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::super::{print, tell};
use super::{Claim, Expiry, Form, KeyForm, Session, claims, deliver, id, json, make, prompt, words};
use crate::keys::{self, KeyError};

#[derive(Args)]
pub(super) struct Create {
    /// The organization that it belongs to
    #[arg(long, value_name = "ORG")]
    org: String,
    /// A user of that organization; without one the key speaks for the organization alone
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// A claim, which callers cannot change; repeat it for more, up to 20
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    claims: Vec<Claim>,
    /// When it ends: 90d, or 2027-01-01T00:00:00Z; without it, never
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    expires: Option<Expiry>,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    #[command(flatten)]
    form: KeyForm,
}

#[derive(Args)]
pub(super) struct Update {
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
    /// What it is for; "" removes it
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    form: Form,
}

pub(super) async fn create(session: &Session, args: Create) -> Result<ExitCode> {
    let now = Timestamp::now();
    let new = NewToken {
        organization_id: args.org,
        user_id: args.user,
        custom_claims: claims(&args.claims)?,
        expiry: args.expires.map(|expires| expires.moment(now)).transpose()?,
        description: args.description.filter(|text| !text.is_empty()),
    };
    new.check(now)?;
    let created = make(&session.keys().await?, &new).await?;
    let (key, token) = (created.token.expose_secret(), &created.info);
    let text = if args.form.quiet {
        format!("{key}\n")
    } else if args.form.json {
        json(&json!({ "token": key, "token_id": token.token_id, "token_info": token }))?
    } else {
        format!(
            "Created {} for {}.\n{}\n\n  {key}\n\nThis is the only time that the key is shown. Store it now.\n",
            words::safe(&token.token_id),
            words::scope(&token.organization_id, token.user_id.as_deref()),
            words::end(token.expiry, now),
        )
    };
    deliver(&created, &text)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn update(session: &Session, args: Update) -> Result<ExitCode> {
    let id = id(&args.id)?;
    let (given, removed) = (claims(&args.claims)?, &args.removed);
    if given.is_empty() && removed.is_empty() && args.description.is_none() {
        bail!("there is nothing to change; give --claim, --remove-claim or --description");
    }
    let keys = session.keys().await?;
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
            Some(keys::merged(&before.custom_claims, changes))
        }
    };
    let custom_claims = custom_claims.filter(|claims| *claims != before.custom_claims);
    let replaces = !args.merge && custom_claims.is_some();
    let change = TokenUpdate { custom_claims, description: args.description };
    let difference = words::difference(&before, &change);
    if difference.is_empty() {
        tell(format_args!("Nothing changes: {id} is so already.\n"));
        if args.form.json {
            print(&json(&json!({ "token_info": before }))?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    change.check()?;
    if !args.form.json {
        let how = if replaces {
            ", whose claims are replaced by those given (--merge keeps the others)"
        } else {
            ""
        };
        let scope = words::scope(&before.organization_id, before.user_id.as_deref());
        tell(format_args!("{id} of {scope}{how}:\n{difference}"));
    }
    if !args.yes && !prompt::confirmed("Change it?").await? {
        tell("Nothing was changed.\n");
        return Ok(ExitCode::FAILURE);
    }
    let unknown = || format!("it is not known whether {id} was changed: keyward keys inspect {id}");
    let after = match prompt::unless_interrupted(keys.update(&id, &change)).await {
        Ok(Err(error @ KeyError::OutcomeUnknown(_))) => bail!("{error}; {}", unknown()),
        Ok(done) => done?,
        Err(error) => {
            tell(format_args!("keyward: {}\n", unknown()));
            return Err(error);
        }
    };
    print(&if args.form.json { json(&json!({ "token_info": after }))? } else { format!("Changed {id}.\n") })?;
    Ok(ExitCode::SUCCESS)
}
