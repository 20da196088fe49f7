//! `[scalekit]`, and what the environment says of it.

use std::path::PathBuf;
use std::time::Duration;

use ::scalekit::environment::Environment as ScalekitEnvironment;
use ::scalekit::proxy::{InvalidProxy, Proxy};
use ::scalekit::transport::Transport;

use super::Environment;
use super::reader::{Found, NO_SECRETS, Section, Value};
use super::urls::url;
use super::values::{choice, duration, integer, roots, text};
use crate::secret::{Secret, SecretSource};
use crate::{scalekit, validator};

const URL: Wanted = Wanted {
    variable: "SCALEKIT_ENVIRONMENT_URL",
    value_key: Some("environment_url"),
    file_key: None,
    placeholder: "https://environment.invalid",
};
const CLIENT_ID: Wanted = Wanted {
    variable: "SCALEKIT_CLIENT_ID",
    value_key: Some("client_id"),
    file_key: Some("client_id_file"),
    placeholder: "missing",
};
const CLIENT_SECRET: Wanted = Wanted {
    variable: "SCALEKIT_CLIENT_SECRET",
    value_key: None,
    file_key: Some("client_secret_file"),
    placeholder: "missing",
};

pub(super) fn read(
    mut section: Section<'_, '_>,
    validator: &mut validator::Settings,
    found: &Found,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Option<scalekit::Settings> {
    for secret in ["client_secret", "access_token"] {
        if section.has(secret) {
            section.take(secret, |_| Err::<(), _>(NO_SECRETS.to_owned()));
        }
    }
    let mut find = |wanted: &Wanted| wanted.find(&mut section, found, environment, warnings);
    let (url, client_id, client_secret) = (find(&URL), find(&CLIENT_ID), find(&CLIENT_SECRET));
    let roots = section.take("ca_file", roots);
    let transports = choice(&[("rest", Transport::Rest), ("grpc", Transport::Grpc)]);
    let proxy = section.take("proxy", proxy).unwrap_or_default();
    let transport = section.take("transport", transports).unwrap_or_default();
    if let Some(timeout) = section.take("timeout", duration(Duration::from_millis(10))) {
        validator.timeout = timeout;
    }
    let mut number = |key, least, default: usize| {
        section.take(key, integer(least, 1_000_000)).map_or(default, |number| number as usize)
    };
    validator.max_in_flight_per_key = number("max_in_flight_per_key", 1, validator.max_in_flight_per_key);
    validator.max_in_flight = number("max_in_flight", 1, validator.max_in_flight);
    validator.max_waiting = number("max_waiting", 0, validator.max_waiting);
    let per_minute = section.take("validations_per_minute", integer(0, 100_000_000)).unwrap_or(0);
    validator.max_per_minute = (per_minute > 0).then_some(per_minute as u32);

    let scalekit = url.and_then(|(source, place)| {
        // Where it comes from a file, it was read just now.
        let url = source.read().ok()?.expose().trim_end_matches('/').to_owned();
        let parsed = is_valid_url(&url)
            .and_then(|()| url.parse::<ScalekitEnvironment>().map_err(|error| error.to_string()));
        parsed.map_err(|problem| place.problem(&section, found, problem)).ok()
    });
    section.finish();
    let scalekit = scalekit?;
    let proxy = proxy.resolve_with(&scalekit, |name| environment.get(name).map(str::to_owned));
    let proxy = proxy.map_err(|problem| {
        // The variable's name, and what is wrong with its value.
        let text = problem.to_string();
        let (name, reason) = text.split_once(": ").unwrap_or(("HTTPS_PROXY", &text));
        found.add(None, name, reason);
    });
    let proxy = proxy.ok()?;
    let mut origin = scalekit::origin_settings(&scalekit, roots);
    origin.connect_timeout = origin.connect_timeout.min(validator.timeout);
    let settings = scalekit::Settings {
        environment: scalekit,
        origin,
        proxy,
        client_id: client_id?.0,
        client_secret: client_secret?.0,
        timeout: validator.timeout,
        transport: Transport::Rest,
    };
    Some(settings.over(transport))
}

fn is_valid_url(given: &str) -> Result<(), String> {
    url(given, "a URL, as in \"https://acme.scalekit.com\"").map(|_| ())
}

/// Something that the environment or the file has to say.
struct Wanted {
    variable: &'static str,
    value_key: Option<&'static str>,
    file_key: Option<&'static str>,
    /// Where it may be missing.
    placeholder: &'static str,
}

/// Who said it.
enum Place {
    Variable(String),
    Key(&'static str),
}

impl Wanted {
    /// The environment comes first. A file that is named must be readable now.
    fn find(
        &self,
        section: &mut Section<'_, '_>,
        found: &Found,
        environment: &Environment,
        warnings: &mut Vec<String>,
    ) -> Option<(SecretSource, Place)> {
        let value = self.value_key.and_then(|key| Some((section.take(key, visible)?, Place::Key(key))));
        let file = self.file_key.and_then(|key| Some((section.take(key, file)?, Place::Key(key))));
        if let (Some(value), Some(file)) = (self.value_key, self.file_key)
            && section.had(value)
            && section.had(file)
        {
            section.problem(file, format!("and {value} are both set; set one"));
        }
        let (source, place) = match environment.secret(self.variable) {
            Ok(None) => match value.or(file) {
                Some(given) => given,
                None => return self.missing(section, found, environment, warnings),
            },
            Ok(Some(SecretSource::Value(value))) if !is_visible(value.expose()) => {
                found.add(
                    None,
                    self.variable,
                    "has white space or a character in it that is not visible ASCII",
                );
                return None;
            }
            Ok(Some(source @ SecretSource::Value(_))) => (source, Place::Variable(self.variable.to_owned())),
            Ok(Some(source @ SecretSource::File(_))) => {
                (source, Place::Variable(format!("{}_FILE", self.variable)))
            }
            Err(problem) => {
                found.add(None, self.variable, problem);
                return None;
            }
        };
        if let SecretSource::File(path) = &source
            && let Err(problem) = is_path(&path.to_string_lossy())
        {
            place.problem(section, found, problem);
            return None;
        }
        match source.read() {
            Ok(_) => Some((source, place)),
            Err(error) => {
                place.problem(section, found, error.to_string());
                None
            }
        }
    }

    fn missing(
        &self,
        section: &Section<'_, '_>,
        found: &Found,
        environment: &Environment,
        warnings: &mut Vec<String>,
    ) -> Option<(SecretSource, Place)> {
        let keys: Vec<&str> = self.value_key.into_iter().chain(self.file_key).collect();
        if keys.iter().any(|key| section.had(key)) {
            // What the file says of it is a problem already.
            return None;
        }
        let variable = self.variable;
        let keys: Vec<String> = keys.iter().map(|key| format!("scalekit.{key}")).collect();
        let problem = format!("is not set, nor {variable}_FILE, nor {} in the file", keys.join(", nor "));
        if environment.incomplete {
            warnings.push(format!("{variable} {problem}; `keyward run` needs it"));
            let placeholder = SecretSource::Value(Secret::new(self.placeholder));
            return Some((placeholder, Place::Variable(variable.to_owned())));
        }
        found.add(None, variable, problem);
        None
    }
}

impl Place {
    fn problem(&self, section: &Section<'_, '_>, found: &Found, text: String) {
        match self {
            Self::Variable(name) => found.add(None, name, text),
            Self::Key(key) => section.problem(key, text),
        }
    }
}

fn is_visible(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn visible(value: &Value<'_>) -> Result<SecretSource, String> {
    let given = text(value)?;
    is_visible(&given)
        .then(|| SecretSource::Value(Secret::new(given)))
        .ok_or_else(|| "should be visible ASCII, without spaces".to_owned())
}

/// SECURITY: there may be a password in it, which the error does not repeat.
fn proxy(value: &Value<'_>) -> Result<Proxy, String> {
    match text(value)?.as_str() {
        "none" => Ok(Proxy::None),
        url => url.parse().map(Proxy::Server).map_err(|error: InvalidProxy| error.to_string()),
    }
}

pub(super) fn file(value: &Value<'_>) -> Result<SecretSource, String> {
    let path = text(value)?;
    is_path(&path)?;
    Ok(SecretSource::File(PathBuf::from(path)))
}

/// SECURITY: a path is shown when it cannot be read, and a secret in its place must not be.
fn is_path(given: &str) -> Result<(), String> {
    let is_one = ["/", "./", "../"].iter().any(|start| given.starts_with(start));
    let problem = "should be the path of a file that holds it, beginning with '/' or './'";
    is_one.then_some(()).ok_or_else(|| problem.to_owned())
}
