//! `keyward keys list`.

use std::process::ExitCode;
use std::time::Duration;

use ::scalekit::limits::MAX_PAGE_SIZE;
use ::scalekit::token::{PageRequest, Token};
use anyhow::{Result, bail};
use clap::Args;
use jiff::Timestamp;

use super::super::{write_stderr, write_stdout};
use super::display::{Table, escape_text, format_scope};
use super::usage::{Seen, SeenKey};
use super::{OutputArgs, SeenArgs, Session, to_json_line};
use crate::config::parse_duration;

pub(super) const HELP: &str = include_str!("../help/keys_list.txt").trim_ascii_end();

#[derive(Args)]
pub(super) struct ListArgs {
    /// The organization
    #[arg(long, value_name = "ORG")]
    org: String,
    /// Only the keys of this user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Fetch all pages, not only one
    #[arg(long, conflicts_with_all = ["page_size", "page_token"])]
    all: bool,
    /// Only keys that expire within this time, such as 14d; all pages are fetched
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with_all = ["page_size", "page_token"])]
    expiring: Option<Duration>,
    /// How many keys a page has, from 1 to 30; 10 by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_PAGE_SIZE)))]
    page_size: Option<u8>,
    /// The page to fetch, as printed below the page before it
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    page_token: Option<String>,
    #[command(flatten)]
    seen: SeenArgs,
    #[command(flatten)]
    output: OutputArgs,
}

fn parse_time(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "should be a duration, such as 14d or 36h".to_owned())
}

pub(super) async fn run_list(session: &Session, args: ListArgs) -> Result<ExitCode> {
    let all = args.all || args.expiring.is_some();
    let latest = |within| Timestamp::now().checked_add(within).unwrap_or(Timestamp::MAX);
    let expires_before = args.expiring.map(latest);
    let mut page_request = PageRequest {
        organization_id: args.org,
        user_id: args.user,
        page_size: if all { Some(MAX_PAGE_SIZE) } else { args.page_size },
        page_token: args.page_token,
    };
    page_request.check()?;
    let seen = args.seen.seen.then(|| Seen::new(args.seen.admins)).transpose()?;
    let keys = session.open_keys().await?;
    let mut table = Table::new(Timestamp::now(), seen.is_some());
    let mut has_keys = false;
    loop {
        let mut page = keys.list(&page_request).await?;
        if let Some(end) = expires_before {
            page.tokens.retain(|token| token.expiry.is_some_and(|expiry| expiry <= end));
        }
        has_keys |= !page.tokens.is_empty();
        let ids: Vec<&str> = page.tokens.iter().map(|token| &*token.token_id).collect();
        let usage = match &seen {
            Some(seen) if !ids.is_empty() => seen.find_keys(&ids).await?,
            _ => Vec::new(),
        };
        let text = if args.output.json {
            format_json(&page.tokens, &usage)?
        } else if page.tokens.is_empty() {
            String::new()
        } else {
            table.format_page(&page.tokens, &usage)
        };
        if !write_stdout(&text)? {
            return Ok(ExitCode::SUCCESS);
        }
        match page.next_page_token {
            Some(next) if all && page_request.page_token.as_ref() == Some(&next) => {
                bail!("Scalekit's pages repeat without end; not all keys may be listed")
            }
            Some(next) if all => page_request.page_token = Some(next),
            Some(next) => {
                write_stderr(format_args!(
                    "There are {} in all; for the next page add --page-token {}\n",
                    page.total_count,
                    escape_text(&next)
                ));
                break;
            }
            None => break,
        }
    }
    if !has_keys {
        write_stderr(format_args!(
            "There are no live keys of {}{}.\n",
            format_scope(&page_request.organization_id, page_request.user_id.as_deref()),
            if expires_before.is_some() { " that expire within that time" } else { "" }
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// `usage` is empty, or has that of each key.
fn format_json(tokens: &[Token], usage: &[SeenKey]) -> Result<String> {
    let mut text = String::new();
    for (index, token) in tokens.iter().enumerate() {
        let mut json = serde_json::to_value(token)?;
        if let Some(usage) = usage.get(index) {
            json["usage"] = usage.to_json();
        }
        text.push_str(&to_json_line(&json)?);
    }
    Ok(text)
}
