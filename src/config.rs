//! The route file and the environment, read into the settings of each part. Every problem is reported at once, with its
//! place and what would be right; nothing secret is ever in the text.

mod file;
mod headers;
mod management;
mod reader;
mod resources;
mod routes;
mod scalekit;
mod upstreams;
mod urls;
mod values;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::resources::Resources;

use self::reader::Lines;

use crate::listener::Listen;
use crate::route::RouteTable;
use crate::secret::{Secret, SecretSource};
use crate::upstream::forwarded::Trusted;
use crate::{access_log, credential, gateway, identity, listener, upstream, validator};

/// Everything that `keyward run` needs to know.
#[derive(Debug)]
pub struct Config {
    /// `[server]` and `[limits]`.
    pub listener: listener::Settings,
    /// `[server] drain_delay`: not ready, still accepting.
    pub drain_delay: Duration,
    /// `[server] drain_timeout`: then, to finish what is open.
    pub drain_timeout: Duration,
    /// `[server] trusted_proxies`.
    pub trusted: Trusted,
    /// `[admin] listen`.
    pub admin: Listen,
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
    /// `[log]`.
    pub log: access_log::Settings,
    /// `[upstreams]`.
    pub upstreams: Vec<upstream::Settings>,
    /// `[[routes]]`.
    pub routes: RouteTable,
    /// `[limits] memory`, in bytes; after `fit`, what limits were fitted to.
    pub memory: Option<usize>,
    /// What is allowed, and probably not meant.
    pub warnings: Vec<String>,
}

/// What is wrong with a configuration: one line each.
#[derive(Debug)]
pub struct Problems(Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, s) = (self.0.len(), if self.0.len() == 1 { "" } else { "s" });
        write!(f, "the configuration has {count} problem{s}:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}

/// The environment variables that count.
#[derive(Default)]
pub struct Environment {
    variables: HashMap<String, String>,
    /// Whether what Scalekit needs may be missing.
    incomplete: bool,
}

impl Environment {
    /// Those of this process. One that is not UTF-8 counts as absent.
    pub fn process() -> Self {
        let text =
            |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Self { variables: std::env::vars_os().filter_map(text).collect(), incomplete: false }
    }

    /// These, for tests and for `keyward dev`.
    pub fn of<const N: usize>(variables: [(&str, &str); N]) -> Self {
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { variables, incomplete: false }
    }

    /// The same, where a file is to be looked at and not run: that a variable for Scalekit is missing, as on a machine without
    /// secrets, is a warning.
    #[must_use]
    pub fn without_scalekit(self) -> Self {
        Self { incomplete: true, ..self }
    }

    /// An empty one counts as absent, as Compose files and charts set those; white space around a value is not part of it, as
    /// secrets made from files end in a line break.
    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// `NAME`, or `NAME_FILE`.
    fn secret(&self, name: &str) -> Result<Option<SecretSource>, String> {
        match (self.get(name), self.get(&format!("{name}_FILE"))) {
            (Some(_), Some(_)) => Err(format!("{name} and {name}_FILE are both set; set one")),
            (Some(value), None) => Ok(Some(SecretSource::Value(Secret::new(value)))),
            (None, Some(path)) => Ok(Some(SecretSource::File(PathBuf::from(path)))),
            (None, None) => Ok(None),
        }
    }
}

/// How to reach Scalekit, from the environment alone, for commands without a route file.
///
/// # Errors
/// Everything that is missing or wrong.
pub fn scalekit_alone(
    environment: &Environment,
    transport: ::scalekit::transport::Transport,
) -> Result<crate::scalekit::Settings, String> {
    let missing = |name: &&&str| matches!(environment.secret(name), Ok(None));
    let names = ["SCALEKIT_ENVIRONMENT_URL", "SCALEKIT_CLIENT_ID", "SCALEKIT_CLIENT_SECRET"];
    let missing: Vec<String> =
        names.iter().filter(missing).map(|name| format!("{name} is not set, nor {name}_FILE")).collect();
    if !missing.is_empty() {
        return Err(missing.join("; "));
    }
    let found = reader::Found::default();
    let section = reader::Section::root(&found, toml::de::DeTable::new());
    let settings =
        scalekit::read(section, &mut validator::Settings::default(), &found, environment, &mut Vec::new());
    let line = |problem: reader::Problem| format!("{}: {}", problem.key, problem.text);
    let settings = settings.map(|settings| settings.over(transport));
    settings.ok_or_else(|| found.into_inner().into_iter().map(line).collect::<Vec<_>>().join("; "))
}

/// `admin.listen` of a route file, if it says; the rest of the file may be wrong.
///
/// # Errors
/// When the file cannot be read, is not TOML, or says something that is no address.
pub fn admin_listen(path: &Path) -> Result<Option<Listen>, String> {
    let name = path.display().to_string();
    let text = read_text(path).map_err(|problem| format!("{name}: {problem}"))?;
    let (document, errors) = toml::de::DeTable::parse_recoverable(&text);
    if !errors.is_empty() {
        return Err(format!("{name} is not TOML"));
    }
    let found = reader::Found::default();
    let mut file = reader::Section::root(&found, document.into_inner());
    let listen = file
        .optional_section("admin")
        .and_then(|mut admin| admin.take("listen", |value| urls::listen(&values::text(value)?)));
    match found.into_inner().into_iter().next() {
        Some(problem) => Err(format!("{name}: {}: {}", problem.key, problem.text)),
        None => Ok(listen),
    }
}

/// An upstream's URL as people type it: host and port alone are taken for `http://`.
///
/// # Errors
/// What would be right.
pub fn upstream_url(given: &str) -> Result<String, String> {
    let full = if given.contains("://") || given.starts_with("unix:") {
        given.to_owned()
    } else {
        format!("http://{given}")
    };
    upstreams::check_url(&full).map(|()| full)
}

/// `2s`, `250ms`, `1m 30s`: a duration as people write it.
pub fn parse_duration(text: &str) -> Option<Duration> {
    // humantime 2.4 panics where the seconds overflow by a carry, for which it takes more digits than this.
    let short = text.bytes().filter(u8::is_ascii_digit).count() <= 15;
    short.then(|| humantime::parse_duration(text).ok()).flatten()
}

/// A route file longer than this is a mistake in the path.
const MAX_FILE: u64 = 1024 * 1024;

/// Reads a file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path, environment: &Environment) -> Result<Config, Problems> {
    let name = path.display().to_string();
    let text = read_text(path).map_err(|problem| Problems(vec![format!("{name}: {problem}")]))?;
    parse(&text, &name, environment)
}

fn read_text(path: &Path) -> Result<String, String> {
    let unreadable = |error| format!("cannot be read: {error}");
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    if metadata.len() > MAX_FILE {
        return Err("is longer than 1 MiB; is it a route file?".to_owned());
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

/// Reads a text; `name` stands for it in messages.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, name: &str, environment: &Environment) -> Result<Config, Problems> {
    // Some editors begin with a byte order mark, which is no column.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = Lines::of(text);
    file::read(&lines, environment).map_err(|mut problems| {
        problems.sort_by_key(|problem| problem.at.unwrap_or(usize::MAX));
        let place = |at: usize| {
            let (line, column) = lines.place(at);
            format!("{name}:{line}:{column}")
        };
        let line = |problem: reader::Problem| {
            let place = problem.at.map_or_else(|| name.to_owned(), place);
            let key = if problem.key.is_empty() { String::new() } else { format!("{}: ", problem.key) };
            format!("{place}: {key}{}", problem.text)
        };
        Problems(problems.into_iter().map(line).collect())
    })
}

#[cfg(test)]
mod tests;
