//! Reads the route file and the environment into the settings of each part. All problems are reported at once, each with its
//! place and a hint, and no message contains a secret.

mod decision;
mod diagnostics;
mod document;
mod environment;
mod file;
mod headers;
mod management;
mod rate_limits;
mod resources;
mod routes;
mod scalekit;
mod schema;
mod settings;
mod shared;
mod traces;
mod upstreams;
mod urls;
mod usage;
mod values;

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

pub use self::diagnostics::{Diagnostic, Diagnostics};
pub use self::environment::Environment;
pub use self::resources::Resources;
pub use self::schema::json_schema;

use self::diagnostics::{Lines, Report};
use self::values::{FromText as _, Text};

use crate::listener::Listen;
use crate::peer::TrustedProxies;
use crate::route::RouteTable;
use crate::traces::TrustParent;
use crate::{credential, expiry, gateway, identity, listener, logging, rate_limit, upstream, validator};

/// Everything that `keyward run` needs to know.
#[derive(Debug)]
pub struct Config {
    /// `[server]` and `[limits]`. With `[decision]`, `Server` divides its connections and memory.
    pub listener: listener::Settings,
    /// Whether the proxy listens: not if `server.listen` is not set and all routes serve decisions alone.
    pub proxy_listens: bool,
    /// `[server] drain_delay`: not ready, but still accepting.
    pub drain_delay: Duration,
    /// `[server] drain_timeout`: the time for open requests to finish after that.
    pub drain_timeout: Duration,
    /// `[server] trusted_proxies`.
    pub trusted: TrustedProxies,
    /// `[admin] listen`.
    pub admin: Listen,
    /// `[decision]`.
    pub decision: Option<crate::decision::Settings>,
    /// `[management]`.
    pub management: Option<crate::management::Settings>,
    /// `[scalekit]`.
    pub scalekit: crate::scalekit::Settings,
    /// `[scalekit]`, `[negative_cache]`, `[throttle]`.
    pub validator: validator::Settings,
    /// `[credential]`.
    pub credential: credential::Settings,
    /// `[identity]`.
    pub identity: identity::Settings,
    /// `[server] realm`, `[limits]`, `[streams]`, `[log] access`.
    pub gateway: gateway::Settings,
    /// The collector of traces, from the environment; `None` where traces are not exported.
    pub traces: Option<crate::traces::Settings>,
    /// `[traces]`.
    pub trust_parent: TrustParent,
    /// `[log]`.
    pub log: logging::Settings,
    /// `[expiry]`.
    pub expiry: expiry::Settings,
    /// `[usage]`; `None` if it is not counted.
    pub usage: Option<crate::usage::Settings>,
    /// `[rate_limits]`.
    pub rate_limits: Vec<rate_limit::Settings>,
    /// `[shared]`.
    pub shared: Option<crate::shared::Settings>,
    /// `[upstreams]`.
    pub upstreams: Vec<upstream::Settings>,
    /// `[[routes]]`.
    pub routes: RouteTable,
    /// `[limits] memory`, in bytes; after `fit`, the memory that the limits were fitted to.
    pub memory: Option<usize>,
    /// Settings that are allowed but probably not intended.
    pub warnings: Vec<String>,
}

/// Reads only `admin.listen` from a route file; `None` if it is not set. The rest of the file may be invalid.
///
/// # Errors
/// When the file cannot be read or is not TOML, or the value is not an address.
pub fn read_admin_listen(path: &Path) -> Result<Option<Listen>, String> {
    #[derive(Deserialize)]
    struct File {
        admin: Option<Admin>,
    }

    #[derive(Deserialize)]
    struct Admin {
        listen: Option<Text<Listen>>,
    }

    let name = path.display().to_string();
    let text = read_text(path).map_err(|problem| format!("{name}: {problem}"))?;
    let report = Report::default();
    let Some(document) = document::parse_toml(&text, &report) else {
        return Err(format!("{name} is not TOML"));
    };
    let file: Option<File> = document::read_document(&document, &report);
    match report.problems().first() {
        Some(problem) => Err(format!("{name}: {}: {}", problem.key, problem.message)),
        None => Ok(file.and_then(|file| Some(file.admin?.listen?.0))),
    }
}

/// Checks an upstream's URL from the command line. `http://` is added if there is no scheme.
///
/// # Errors
/// What is wrong.
pub fn parse_upstream_url(given: &str) -> Result<String, String> {
    let full = if given.contains("://") || given.starts_with("unix:") {
        given.to_owned()
    } else {
        format!("http://{given}")
    };
    upstreams::UpstreamUrl::parse_text(&full).map(|_| full)
}

/// Parses a duration such as `2s`, `250ms` or `1m 30s`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    // humantime 2.4 panics if a carry overflows the seconds, which needs more digits than this.
    let short = text.bytes().filter(u8::is_ascii_digit).count() <= 15;
    short.then(|| humantime::parse_duration(text).ok()).flatten()
}

/// Maximum length of a route file, in bytes; a longer file means that the path is wrong.
const MAX_FILE: u64 = 1024 * 1024;

/// The name of standard input in messages.
const STANDARD_INPUT: &str = "<stdin>";

/// Reads a route file.
///
/// # Errors
/// All problems of the file.
pub fn load(path: &Path, environment: &Environment) -> Result<Config, Diagnostics> {
    let name = path.display().to_string();
    parse_read(read_text(path), &name, environment)
}

/// Reads a route file from standard input.
///
/// # Errors
/// All problems of the file.
pub fn load_from_stdin(environment: &Environment) -> Result<Config, Diagnostics> {
    parse_read(read_utf8(std::io::stdin().lock()), STANDARD_INPUT, environment)
}

fn parse_read(
    text: Result<String, String>,
    name: &str,
    environment: &Environment,
) -> Result<Config, Diagnostics> {
    let unreadable =
        |message| Diagnostic { file: name.to_owned(), line: None, column: None, key: String::new(), message };
    let text = text.map_err(|message| Diagnostics(vec![unreadable(message)]))?;
    parse(&text, name, environment)
}

fn read_text(path: &Path) -> Result<String, String> {
    let unreadable = |error| format!("cannot be read: {error}");
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("is not a file".to_owned());
    }
    read_utf8(std::fs::File::open(path).map_err(unreadable)?)
}

fn read_utf8(source: impl Read) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = source.take(MAX_FILE + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err("is longer than 1 MiB; is it a route file?".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

/// Parses a route file. `name` is its name in messages.
///
/// # Errors
/// All problems of the file.
pub fn parse(text: &str, name: &str, environment: &Environment) -> Result<Config, Diagnostics> {
    // A byte order mark, which some editors write, does not count as a column.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (lines, report) = (Lines::new(text), Report::default());
    let config = settings::read_config(text, &lines, &report, environment);
    config.ok_or_else(|| report.into_diagnostics(name, &lines))
}

#[cfg(test)]
mod tests;
