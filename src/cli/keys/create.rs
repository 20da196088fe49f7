//! `keyward keys create`.

use std::process::ExitCode;

use ::scalekit::token::NewToken;
use anyhow::Result;
use clap::Args;
use jiff::Timestamp;

use super::{Claim, Expiry, KeyOutputArgs, Session, collect_claims, create_key, print_new_key};

pub(super) const HELP: &str = include_str!("../help/keys_create.txt").trim_ascii_end();

#[derive(Args)]
pub(super) struct CreateArgs {
    /// The organization that the key belongs to
    #[arg(long, value_name = "ORG")]
    org: String,
    /// A user of that organization; without one, the key is for the organization as a whole
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// A claim, which users of the key cannot change; may be repeated, up to 20 times
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    claims: Vec<Claim>,
    /// When the key expires: 90d, or 2027-01-01T00:00:00Z; without it, never
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    expires: Option<Expiry>,
    /// What the key is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    #[command(flatten)]
    output: KeyOutputArgs,
}

pub(super) async fn run_create(session: &Session, args: CreateArgs) -> Result<ExitCode> {
    let now = Timestamp::now();
    let new = NewToken {
        organization_id: args.org,
        user_id: args.user,
        custom_claims: collect_claims(&args.claims)?,
        expiry: args.expires.map(|expires| expires.to_timestamp(now)).transpose()?,
        description: args.description.filter(|text| !text.is_empty()),
    };
    new.check(now)?;
    let keys = session.open_keys().await?;
    let created = create_key(&new.organization_id, keys.create(&new)).await?;
    print_new_key(&created, None, args.output, now)?;
    Ok(ExitCode::SUCCESS)
}
