//! `[scalekit]`, and what the environment says of it.

use std::path::PathBuf;
use std::time::Duration;

use super::Environment;
use super::file::readable;
use super::reader::{Found, Section, choice, duration, integer, text};
use crate::secret::{Secret, SecretSource};
use crate::{scalekit, validator};

pub(super) fn read(
    mut section: Section<'_, '_>,
    validator: &mut validator::Settings,
    found: &Found,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Option<scalekit::Settings> {
    // A secret in the file would be in version control, in a ConfigMap, in a backup.
    for secret in ["client_secret", "access_token"] {
        if section.has(secret) {
            section.take(secret, |_| -> Result<(), String> {
                Err("a secret does not belong in this file; set SCALEKIT_CLIENT_SECRET, or client_secret_file".to_owned())
            });
        }
    }
    if section.take("transport", choice(&[("rest", true), ("grpc", false)])) == Some(false) {
        section.problem("transport", "this version speaks \"rest\" alone");
    }
    validator.timeout =
        section.take("timeout", duration(Duration::from_millis(10))).unwrap_or(validator.timeout);
    let mut number = |key, least, default: usize| {
        section.take(key, integer(least, 1_000_000)).map_or(default, |number| number as usize)
    };
    validator.max_in_flight_per_key = number("max_in_flight_per_key", 1, validator.max_in_flight_per_key);
    validator.max_in_flight = number("max_in_flight", 1, validator.max_in_flight);
    validator.max_waiting = number("max_waiting", 0, validator.max_waiting);
    let per_minute = section.take("validations_per_minute", integer(0, 100_000_000)).unwrap_or(0);
    validator.max_per_minute = (per_minute > 0).then_some(per_minute as u32);
    let roots = section.take("ca_file", |value| readable(&text(value)?));

    let mut sources = Sources { found, environment, warnings };
    let url = section.take("environment_url", text).map(value);
    let url = sources.find("SCALEKIT_ENVIRONMENT_URL", "environment_url", url, "https://environment.invalid");
    let id = section.take("client_id", text).map(value);
    let id = id.or_else(|| section.take("client_id_file", text).map(file));
    let client_id = sources.find("SCALEKIT_CLIENT_ID", "client_id", id, "missing");
    let secret = section.take("client_secret_file", text).map(file);
    let client_secret = sources.find("SCALEKIT_CLIENT_SECRET", "client_secret_file", secret, "missing");
    // Where it comes from a file, it was read just now.
    let url = url.and_then(|url| url.read().ok()).map(|url| url.expose().trim_end_matches('/').to_owned());
    let origin = url.as_ref().and_then(|url| match scalekit::origin_settings(url, roots) {
        Ok(origin) => Some(origin),
        Err(problem) => {
            section.problem("environment_url", problem);
            None
        }
    });
    section.finish();
    Some(scalekit::Settings {
        environment_url: url?,
        origin: origin?,
        client_id: client_id?,
        client_secret: client_secret?,
        timeout: validator.timeout,
    })
}

fn value(text: String) -> SecretSource {
    SecretSource::Value(Secret::new(text))
}

fn file(path: String) -> SecretSource {
    SecretSource::File(PathBuf::from(path))
}

struct Sources<'a> {
    found: &'a Found,
    environment: &'a Environment,
    warnings: &'a mut Vec<String>,
}

impl Sources<'_> {
    /// What the environment or the file says, the environment first. A file that it names must be readable now.
    fn find(
        &mut self,
        variable: &str,
        key: &str,
        in_file: Option<SecretSource>,
        placeholder: &str,
    ) -> Option<SecretSource> {
        let source = match self.environment.secret(variable) {
            Ok(source) => source.or(in_file),
            Err(problem) => {
                self.found.add(None, variable, problem);
                return None;
            }
        };
        let Some(source) = source else {
            let problem = format!("is not set, nor {variable}_FILE, nor scalekit.{key} in the file");
            if self.environment.incomplete {
                self.warnings.push(format!("{variable} {problem}; `keyward run` needs it"));
                return Some(SecretSource::Value(Secret::new(placeholder)));
            }
            self.found.add(None, variable, problem);
            return None;
        };
        match source.read() {
            Ok(_) => Some(source),
            Err(error) => {
                self.found.add(None, variable, error.to_string());
                None
            }
        }
    }
}
