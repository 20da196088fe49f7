//! `keyward keys list` and `inspect`.

use std::process::ExitCode;

use ::scalekit::limits::MAX_PAGE_SIZE;
use ::scalekit::token::PageRequest;
use anyhow::{Result, bail};
use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::super::{print, tell};
use super::{Form, Session, id, json, prompt, words};
use crate::keys::KeyError;

#[derive(Args)]
pub(super) struct List {
    /// The organization
    #[arg(long, value_name = "ORG")]
    org: String,
    /// Only the keys of this user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// All of them, page by page
    #[arg(long, conflicts_with_all = ["page_size", "page_token"])]
    all: bool,
    /// How many, from 1 to 30; 10 where nothing is said
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_PAGE_SIZE)))]
    page_size: Option<u8>,
    /// Where to go on, as the page before told
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    page_token: Option<String>,
    #[command(flatten)]
    form: Form,
}

#[derive(Args)]
pub(super) struct Inspect {
    /// The id of the key; without it the key itself is read from standard input
    #[arg(value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    form: Form,
}

pub(super) async fn list(session: &Session, args: List) -> Result<ExitCode> {
    let mut listing = PageRequest {
        organization_id: args.org,
        user_id: args.user,
        page_size: if args.all { Some(MAX_PAGE_SIZE) } else { args.page_size },
        page_token: args.page_token,
    };
    listing.check()?;
    let keys = session.keys().await?;
    let mut table = words::Table::new(Timestamp::now());
    let mut any = false;
    loop {
        let page = keys.list(&listing).await?;
        any |= !page.tokens.is_empty();
        let text = if args.form.json {
            page.tokens.iter().map(json).collect::<Result<String>>()?
        } else if page.tokens.is_empty() {
            String::new()
        } else {
            table.page(&page.tokens)
        };
        if !print(&text)? {
            return Ok(ExitCode::SUCCESS);
        }
        match page.next_page_token {
            Some(next) if args.all && listing.page_token.as_ref() == Some(&next) => {
                bail!("Scalekit's pages go round in a circle: these may not be all keys")
            }
            Some(next) if args.all => listing.page_token = Some(next),
            Some(next) => {
                tell(format_args!(
                    "There are {} in all; go on with --page-token {}\n",
                    page.total_count,
                    words::safe(&next)
                ));
                break;
            }
            None => break,
        }
    }
    if !any {
        tell(format_args!(
            "There are no live keys of {}.\n",
            words::scope(&listing.organization_id, listing.user_id.as_deref())
        ));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn inspect(session: &Session, args: Inspect) -> Result<ExitCode> {
    let found = match &args.id {
        Some(text) => {
            let id = id(text)?;
            session.keys().await?.find(&id).await
        }
        None => {
            let key = prompt::key().await?;
            let keys = session.keys().await?;
            prompt::unless_interrupted(keys.inspect(&key)).await?
        }
    };
    let found = match found {
        Err(KeyError::NotFound) => None,
        found => Some(found?),
    };
    print(&match (&found, args.form.json) {
        (Some(token), false) => words::description(token, Timestamp::now()),
        (None, false) => "Not a live key: it is unknown, expired or revoked.\n".to_owned(),
        (found, true) => json(&json!({ "valid": found.is_some(), "token_info": found }))?,
    })?;
    Ok(if found.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
