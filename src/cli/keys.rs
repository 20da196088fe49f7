//! `keyward keys`: the life of a key from a shell, with the environment variables alone. A key is read from standard input or
//! a prompt, never from an argument, and printed once.

mod changes;
mod ends;
mod prompt;
mod reading;
mod words;

use std::fmt;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;
use std::sync::Arc;

use ::scalekit::client::Client;
use ::scalekit::token::{Claims, Created, NewToken};
use ::scalekit::transport::Transport;
use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Duration;

use self::prompt::{Interrupt, Interrupted};
use super::tell;
use crate::config::{self, Environment, parse_duration};
use crate::keys::{Keys, TokenId};
use crate::metrics::Metrics;
use crate::scalekit::{self, Explained};

#[derive(Args)]
#[command(after_help = ENVIRONMENT)]
pub(super) struct KeysArgs {
    #[command(subcommand)]
    command: Command,
    /// How Scalekit is spoken to: rest, or grpc, which is what its own SDKs speak
    #[arg(
        long,
        global = true,
        value_name = "WIRE",
        env = "KEYWARD_TRANSPORT",
        default_value = "rest",
        value_parser = transport
    )]
    transport: Transport,
}

fn transport(text: &str) -> Result<Transport, &'static str> {
    match text {
        "rest" => Ok(Transport::Rest),
        "grpc" => Ok(Transport::Grpc),
        _ => Err("it is rest or grpc"),
    }
}

const ENVIRONMENT: &str = "\
Environment:
  SCALEKIT_ENVIRONMENT_URL  the environment, as in https://acme.scalekit.com
  SCALEKIT_CLIENT_ID        the client
  SCALEKIT_CLIENT_SECRET    its secret
Each may be given as NAME_FILE instead: a file that holds the value. There is no configuration file. An HTTP proxy on the way is
taken from HTTPS_PROXY, unless NO_PROXY names the environment.

The client needs api_credentials:read to list and inspect, :write to create and update, :rotate to revoke.";

#[derive(Subcommand)]
enum Command {
    /// Create a key, and show it once
    #[command(after_help = CREATE_HELP)]
    Create(changes::Create),
    /// List an organization's live keys
    #[command(after_help = LIST_HELP)]
    List(reading::List),
    /// Show what a key is good for; exit 1 if it is dead
    #[command(after_help = INSPECT_HELP)]
    Inspect(reading::Inspect),
    /// Change a key's claims and description
    #[command(after_help = UPDATE_HELP)]
    Update(changes::Update),
    /// Replace a key by a new one with the same scope, claims, description and end
    #[command(after_help = ROTATE_HELP)]
    Rotate(ends::Rotate),
    /// Revoke keys: they stop working on the next request
    #[command(after_help = REVOKE_HELP)]
    Revoke(ends::Revoke),
}

const CREATE_HELP: &str = "\
Examples:
  keyward keys create --org org_1001 --expires 90d --description \"CI\"
  keyward keys create --org org_1001 --user usr_2001 --claim team=engineering --claim environment=production
  keyward keys create --org org_1001 --quiet | vault kv put -mount=secret ci key=-";

const LIST_HELP: &str = "\
Examples:
  keyward keys list --org org_1001
  keyward keys list --org org_1001 --user usr_2001 --all
  keyward keys list --org org_1001 --all --json | jq -r 'select(.expiry == null) | .token_id'";

const INSPECT_HELP: &str = "\
Examples:
  keyward keys inspect                        asks for the key, and does not show it
  keyward keys inspect < key.txt
  keyward keys inspect apit_123456789012345   by its id";

const UPDATE_HELP: &str = "\
Scalekit replaces all claims of a key by those that are given; with --merge the others stay.

Examples:
  keyward keys update apit_123456789012345 --merge --claim team=support
  keyward keys update apit_123456789012345 --merge --remove-claim trial
  keyward keys update apit_123456789012345 --description \"CI, main branch\"";

const ROTATE_HELP: &str = "\
Examples:
  keyward keys rotate apit_123456789012345                 the old key is revoked at once
  keyward keys rotate apit_123456789012345 --overlap 24h   the old key works on, and the command to revoke it is printed";

const REVOKE_HELP: &str = "\
The exit code says how many could not be revoked. A key that is revoked already is no failure.

Examples:
  keyward keys revoke apit_123456789012345
  keyward keys list --org org_1001 --all --json | jq -r .token_id | keyward keys revoke -";

/// How something is printed.
#[derive(Args, Clone, Copy)]
struct Form {
    /// JSON for programs, one object a line, with Scalekit's names
    #[arg(long)]
    json: bool,
}

/// How a new key is printed.
#[derive(Args, Clone, Copy)]
#[group(multiple = false)]
struct KeyForm {
    /// JSON for programs, with Scalekit's names
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
        let (name, value) = text.split_once('=').ok_or("a claim is NAME=VALUE")?;
        Ok(Self(name.to_owned(), value.to_owned()))
    }
}

/// Each once: which of two is meant is not for Keyward to guess.
fn claims(given: &[Claim]) -> Result<Claims> {
    let mut claims = Claims::new();
    for Claim(name, value) in given {
        if claims.insert(name.clone(), value.clone()).is_some() {
            bail!("the claim {name:?} is given twice");
        }
    }
    Ok(claims)
}

/// A moment, or how long from now.
#[derive(Clone, Copy)]
enum Expiry {
    At(Timestamp),
    In(Duration),
}

impl std::str::FromStr for Expiry {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let day = || {
            let date: jiff::civil::Date = text.parse().ok()?;
            jiff::tz::TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok()
        };
        let at = text.parse().ok().or_else(day);
        at.map(Self::At)
            .or_else(|| parse_duration(text).map(Self::In))
            .ok_or("it is a duration such as 90d, or a moment such as 2027-01-01T00:00:00Z or 2027-01-01")
    }
}

impl Expiry {
    fn moment(self, now: Timestamp) -> Result<Timestamp> {
        match self {
            Self::At(moment) => Ok(moment),
            Self::In(time) => {
                let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
                // What jiff says of it is about its own numbers.
                whole.checked_add(time).map_err(|_| anyhow::anyhow!("that is too far in the future"))
            }
        }
    }
}

/// An id from the command line.
fn id(text: &str) -> Result<TokenId> {
    // SECURITY: the text is not repeated, as it may be a key.
    text.parse()
        .map_err(|error| anyhow::anyhow!("{error}; a key itself is only ever given on standard input"))
}

pub(super) fn run(args: KeysArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let session = Session::new(args.transport)?;
        match args.command {
            Command::Create(args) => changes::create(&session, args).await,
            Command::List(args) => reading::list(&session, args).await,
            Command::Inspect(args) => reading::inspect(&session, args).await,
            Command::Update(args) => changes::update(&session, args).await,
            Command::Rotate(args) => ends::rotate(&session, args).await,
            Command::Revoke(args) => ends::revoke(&session, args).await,
        }
    });
    // What a shell says of a program that Ctrl-C ended.
    match done {
        Err(error) if error.is::<Interrupted>() => Ok(ExitCode::from(130)),
        done => done,
    }
}

/// An environment that nothing was asked of yet: what is wrong with the arguments is told first.
struct Session(Client);

impl Session {
    fn new(transport: Transport) -> Result<Self> {
        let settings =
            config::scalekit_alone(&Environment::process(), transport).map_err(anyhow::Error::msg)?;
        Ok(Self(scalekit::client(&settings, Arc::new(Metrics::default()))?))
    }

    /// Its keys, once there is an access token.
    async fn keys(&self) -> Result<Keys> {
        self.0.authenticate().await.map_err(|error| anyhow!("{}", Explained(&error)))?;
        Ok(Keys::new(self.0.clone()))
    }
}

/// Makes a key. Whoever wants out meanwhile is asked to wait, as Scalekit cannot be told to stop.
async fn make(keys: &Keys, new: &NewToken) -> Result<Created> {
    if leads_nowhere(&io::stdout()) {
        bail!("standard output is closed or /dev/null, where the key would be lost; no key was made");
    }
    let mut interrupt = Interrupt::watch()?;
    let mut creation = std::pin::pin!(keys.create(new));
    tokio::select! {
        created = &mut creation => return Ok(created?),
        () = interrupt.comes() => {}
    }
    tell(
        "keyward: a key is being made; waiting for Scalekit's answer, so that it is not lost (Ctrl-C again to leave)\n",
    );
    tokio::select! {
        created = creation => Ok(created?),
        () = interrupt.comes() => {
            let org = words::safe(&new.organization_id);
            tell(format_args!(
                "keyward: a key may have been made that nobody has seen; look for it, and revoke it: keyward keys list --org {org}\n"
            ));
            Err(Interrupted.into())
        }
    }
}

/// What is closed when a program starts, the standard library opens as `/dev/null`.
fn leads_nowhere(out: &io::Stdout) -> bool {
    let file = out.as_fd().try_clone_to_owned().map(std::fs::File::from);
    let here = file.and_then(|file| file.metadata());
    match (here, std::fs::metadata("/dev/null")) {
        (Ok(here), Ok(null)) => here.rdev() != 0 && here.rdev() == null.rdev(),
        _ => false,
    }
}

/// Prints a new key. One that cannot be printed is lost, so its id is told.
fn deliver(created: &Created, text: &impl fmt::Display) -> Result<()> {
    let mut out = io::stdout().lock();
    let printed = write!(out, "{text}").and_then(|()| out.flush());
    printed.map_err(|error| {
        let id = words::safe(&created.info.token_id);
        anyhow::anyhow!(
            "{id} was made, but its key could not be printed ({error}), and is lost; revoke it: keyward keys revoke {id}"
        )
    })
}

/// An object on a line.
fn json(value: &impl Serialize) -> Result<String> {
    Ok(words::safe_json(&serde_json::to_string(value)?) + "\n")
}
