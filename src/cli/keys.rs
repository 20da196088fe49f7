//! `keyward keys`: manages keys from a shell, configured only by environment variables. A key is read from standard input or a
//! prompt, never from an argument, as other users see those, and printed once.

mod create;
mod display;
mod inspect;
mod list;
mod prompt;
mod revoke;
mod rotate;
mod update;
mod usage;
mod watch;

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;
use std::sync::Arc;

use ::scalekit::ExposeSecret as _;
use ::scalekit::client::Client;
use ::scalekit::token::{Claims, Created};
use ::scalekit::transport::Transport;
use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use tokio::time::Duration;

use self::prompt::{Interrupt, Interrupted};
use super::admin_client::AdminsArgs;
use super::write_stderr;
use crate::config::{Environment, parse_duration};
use crate::keys::{KeyError, Keys, TokenId};
use crate::metrics::Metrics;
use crate::scalekit::{self, Explained};

#[derive(Args)]
#[command(after_help = HELP)]
pub(super) struct KeysArgs {
    #[command(subcommand)]
    command: Command,
    /// How to call Scalekit: rest, or grpc as its SDKs do
    #[arg(
        long,
        global = true,
        value_name = "WIRE",
        env = "KEYWARD_TRANSPORT",
        default_value = "rest",
        value_parser = parse_transport
    )]
    transport: Transport,
}

fn parse_transport(text: &str) -> Result<Transport, &'static str> {
    match text {
        "rest" => Ok(Transport::Rest),
        "grpc" => Ok(Transport::Grpc),
        _ => Err("it should be rest or grpc"),
    }
}

const HELP: &str = include_str!("help/keys.txt").trim_ascii_end();

#[derive(Subcommand)]
enum Command {
    /// Create a key, and show it once
    #[command(after_help = create::HELP)]
    Create(create::CreateArgs),
    /// List an organization's live keys
    #[command(after_help = list::HELP)]
    List(list::ListArgs),
    /// Show whose a key is, its claims and its expiry; exit 1 if it is not live
    #[command(after_help = inspect::HELP)]
    Inspect(inspect::InspectArgs),
    /// Change a key's claims and description
    #[command(after_help = update::HELP)]
    Update(update::UpdateArgs),
    /// Replace a key by a new one with the same scope, claims, description and expiry
    #[command(after_help = rotate::HELP)]
    Rotate(rotate::RotateArgs),
    /// Wait until a key has not been used for some time
    #[command(after_help = watch::HELP)]
    Watch(watch::WatchArgs),
    /// Revoke keys: they stop working on the next request
    #[command(after_help = revoke::HELP)]
    Revoke(revoke::RevokeArgs),
}

#[derive(Args, Clone, Copy)]
struct OutputArgs {
    /// JSON for programs, one object per line, with Scalekit's field names
    #[arg(long)]
    json: bool,
}

/// For commands that show the use of keys.
#[derive(Args)]
struct SeenArgs {
    /// Show when a key was last used, as a running Keyward has counted it
    #[arg(long)]
    seen: bool,
    #[command(flatten)]
    admins: AdminsArgs,
}

/// For commands that print a new key.
#[derive(Args, Clone, Copy)]
#[group(multiple = false)]
struct KeyOutputArgs {
    /// JSON for programs, with Scalekit's field names
    #[arg(long)]
    json: bool,
    /// Print the key and nothing else
    #[arg(short, long)]
    quiet: bool,
}

/// A claim, as `NAME=VALUE`.
#[derive(Clone)]
struct Claim(String, String);

impl std::str::FromStr for Claim {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or("a claim should be NAME=VALUE")?;
        Ok(Self(name.to_owned(), value.to_owned()))
    }
}

/// # Errors
/// When a claim is given twice, as it is unknown which one is meant.
fn collect_claims(given: &[Claim]) -> Result<Claims> {
    let mut claims = Claims::new();
    for Claim(name, value) in given {
        if claims.insert(name.clone(), value.clone()).is_some() {
            bail!("the claim {name:?} is given twice");
        }
    }
    Ok(claims)
}

/// A point in time, or a duration from now.
#[derive(Clone, Copy)]
enum Expiry {
    At(Timestamp),
    In(Duration),
}

impl std::str::FromStr for Expiry {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let date = || {
            let date: jiff::civil::Date = text.parse().ok()?;
            jiff::tz::TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok()
        };
        let at = text.parse().ok().or_else(date);
        at.map(Self::At).or_else(|| parse_duration(text).map(Self::In)).ok_or(
            "it should be a duration such as 90d, or a time such as 2027-01-01T00:00:00Z or 2027-01-01",
        )
    }
}

impl Expiry {
    fn to_timestamp(self, now: Timestamp) -> Result<Timestamp> {
        match self {
            Self::At(timestamp) => Ok(timestamp),
            Self::In(time) => {
                let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
                // jiff's own message names its internal limits.
                whole.checked_add(time).map_err(|_| anyhow::anyhow!("that is too far in the future"))
            }
        }
    }
}

fn parse_token_id(text: &str) -> Result<TokenId> {
    // SECURITY: the argument is not repeated, as it may be a key.
    text.parse().map_err(|error| anyhow::anyhow!("{error}; give a key itself on standard input only"))
}

pub(super) fn run_keys(args: KeysArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let session = || Session::new(args.transport);
        match args.command {
            // It needs no access to Scalekit.
            Command::Watch(args) => watch::run_watch(args).await,
            Command::Create(args) => create::run_create(&session()?, args).await,
            Command::List(args) => list::run_list(&session()?, args).await,
            Command::Inspect(args) => inspect::run_inspect(&session()?, args).await,
            Command::Update(args) => update::run_update(&session()?, args).await,
            Command::Rotate(args) => rotate::run_rotate(&session()?, args).await,
            Command::Revoke(args) => revoke::run_revoke(&session()?, args).await,
        }
    });
    // The exit code that shells use for a program ended by Ctrl-C: 128 + SIGINT.
    match done {
        Err(error) if error.is::<Interrupted>() => Ok(ExitCode::from(130)),
        done => done,
    }
}

/// A Scalekit environment that was not called yet, so that mistakes in the arguments are reported first.
struct Session(Client);

impl Session {
    fn new(transport: Transport) -> Result<Self> {
        let settings =
            Environment::from_process().scalekit_settings(transport).map_err(anyhow::Error::msg)?;
        Ok(Self(scalekit::build_client(&settings, Arc::new(Metrics::default()))?))
    }

    /// Waits for an access token.
    async fn open_keys(&self) -> Result<Keys> {
        self.0.authenticate().await.map_err(|error| anyhow!("{}", Explained(&error)))?;
        Ok(Keys::new(self.0.clone()))
    }
}

/// Carries out the creation of a key in this organization. The first Ctrl-C does not end the command, as the creation cannot be
/// cancelled and its key would be lost.
async fn create_key(
    organization: &str,
    creation: impl Future<Output = Result<Created, KeyError>>,
) -> Result<Created> {
    if is_dev_null(&io::stdout()) {
        bail!("standard output is closed or /dev/null, where the key would be lost; no key was created");
    }
    let mut interrupt = Interrupt::register()?;
    let mut creation = std::pin::pin!(creation);
    tokio::select! {
        created = &mut creation => return Ok(created?),
        () = interrupt.wait_for_signal() => {}
    }
    write_stderr(
        "keyward: waiting for Scalekit's response, so that the new key is not lost (Ctrl-C again to leave)\n",
    );
    tokio::select! {
        created = creation => Ok(created?),
        () = interrupt.wait_for_signal() => {
            let org = display::escape_text(organization);
            write_stderr(format_args!(
                "keyward: a key may have been created that nobody has received; look for it and revoke it: keyward keys list --org {org}\n"
            ));
            Err(Interrupted.into())
        }
    }
}

/// Also true where standard output is closed, as the standard library then opens `/dev/null` in its place.
fn is_dev_null(out: &io::Stdout) -> bool {
    let file = out.as_fd().try_clone_to_owned().map(std::fs::File::from);
    let here = file.and_then(|file| file.metadata());
    match (here, std::fs::metadata("/dev/null")) {
        (Ok(here), Ok(null)) => here.rdev() != 0 && here.rdev() == null.rdev(),
        _ => false,
    }
}

/// Prints a new key, which replaces the key `replaced` if there is one. A key that cannot be printed is lost, so the error names its
/// id.
fn print_new_key(
    created: &Created,
    replaced: Option<&TokenId>,
    output: KeyOutputArgs,
    now: Timestamp,
) -> Result<()> {
    let (key, token) = (created.token.expose_secret(), &created.info);
    let text = if output.quiet {
        format!("{key}\n")
    } else if output.json {
        let mut content = json!({ "token": key, "token_id": token.token_id, "token_info": token });
        if let Some(old) = replaced {
            content["replaced_token_id"] = old.to_string().into();
        }
        to_json_line(&content)?
    } else {
        let replacing = replaced.map_or_else(String::new, |old| format!(" in place of {old},"));
        let scope = display::format_scope(&token.organization_id, token.user_id.as_deref());
        format!(
            "Created {}{replacing} for {scope}.\n{}\n\n  {key}\n\nThis is the only time that the key is shown. Store it now.\n",
            display::escape_text(&token.token_id),
            display::expiry_sentence(token.expiry, now),
        )
    };
    let mut out = io::stdout().lock();
    let printed = write!(out, "{text}").and_then(|()| out.flush());
    printed.map_err(|error| {
        let id = display::escape_text(&created.info.token_id);
        anyhow::anyhow!(
            "{id} was created, but its key could not be printed ({error}) and is lost; revoke it: keyward keys revoke {id}"
        )
    })
}

fn to_json_line(value: &impl Serialize) -> Result<String> {
    Ok(display::escape_json(&serde_json::to_string(value)?) + "\n")
}
