//! `[management]`: where keys are managed over HTTP, by whom, and within which rules.

use std::path::PathBuf;
use std::time::Duration;

use super::reader::{Section, Value};
use super::values::{boolean, expected, text};
use super::{file, scalekit, urls};
use crate::keys::rules::Rules;
use crate::listener::Listen;
use crate::management::{SHORTEST_SECRET, Settings};
use crate::secret::SecretSource;

const DAY: Duration = Duration::from_secs(86_400);
const SOCKET_MODE: u32 = 0o660;
const SECRET_IN_FILE: &str = "a secret does not belong in this file; set secret_file";

/// `None` without the section, or where a problem was found.
pub(super) fn read(
    mut section: Section<'_, '_>,
    others: [(&str, &Listen); 2],
    warnings: &mut Vec<String>,
) -> Option<Settings> {
    if section.has("secret") {
        section.take("secret", |_| Err::<(), _>(SECRET_IN_FILE.to_owned()));
    }
    let listen = section
        .require("listen", "\"unix:/run/keyward/management.sock\"", |value| urls::listen(&text(value)?));
    let tls = section.optional_section("tls").and_then(file::certificate);
    let secret_file = section.take("secret_file", secret);
    let socket_mode = section.take("socket_mode", socket_mode);
    let rules = Rules {
        max_expiry: section.take("max_expiry", life),
        require_expiry: section.take("require_expiry", boolean).unwrap_or(false),
        claims: section.list("allowed_claims", None, |claim| Ok(claim.to_owned())),
    };
    let is_guarded = section.had("tls") && section.had("secret_file");
    if let Some(listen) = &listen {
        match listen {
            // SECURITY: whoever gets there makes keys of every organization.
            Listen::Tcp(address) if !(address.ip().is_loopback() || is_guarded) => {
                section.problem(
                    "listen",
                    "is not a loopback address, and so needs tls and secret_file; better is a unix socket, or 127.0.0.1",
                );
            }
            Listen::Tcp(_) if section.had("socket_mode") => {
                section.problem("socket_mode", "is for a unix socket");
            }
            Listen::Tcp(_) if !section.had("secret_file") => warnings.push(
                "management.listen is a loopback port without secret_file: every process of this machine or pod can make \
                 and revoke keys; set management.secret_file, or listen on a unix socket"
                    .to_owned(),
            ),
            Listen::Tcp(_) | Listen::Unix(_) => {}
        }
        if let Some((name, taken)) = others.iter().find(|(_, other)| urls::clash(listen, other)) {
            section.problem(
                "listen",
                format!("is taken by {name}.listen, {taken}; keys are managed on a port of its own"),
            );
        }
    }
    section.finish();
    Some(Settings {
        listen: listen?,
        socket_mode: socket_mode.unwrap_or(SOCKET_MODE),
        tls,
        secret_file,
        rules,
    })
}

/// From an hour to ten years.
fn life(value: &Value<'_>) -> Result<Duration, String> {
    const EXAMPLE: &str = "a duration in quotes, such as \"90d\"";
    let given = value.as_str().ok_or_else(|| expected(EXAMPLE, value))?;
    let given = super::parse_duration(given).ok_or_else(|| format!("should be {EXAMPLE}"))?;
    let range = DAY / 24..=3660 * DAY;
    range.contains(&given).then_some(given).ok_or_else(|| "should be from \"1h\" to \"3660d\"".to_owned())
}

/// As `chmod` takes it, and nothing for others.
fn socket_mode(value: &Value<'_>) -> Result<u32, String> {
    const EXAMPLE: &str = "the mode of the socket in quotes, \"0600\" or \"0660\"";
    match value.as_str() {
        Some("0600" | "600") => Ok(0o600),
        Some("0660" | "660") => Ok(0o660),
        Some(_) => Err(format!("should be {EXAMPLE}: nobody else may manage keys")),
        None => Err(expected(EXAMPLE, value)),
    }
}

/// A file with a secret that can be used now, and not be guessed.
fn secret(value: &Value<'_>) -> Result<PathBuf, String> {
    let source = scalekit::file(value)?;
    let secret = source.read().map_err(|error| error.to_string())?;
    if secret.expose().len() < SHORTEST_SECRET {
        return Err(format!(
            "names a file with a secret of fewer than {SHORTEST_SECRET} characters; `openssl rand -hex 32` makes a good one"
        ));
    }
    match source {
        SecretSource::File(path) => Ok(path),
        SecretSource::Value(_) => Err("should be the path of a file".to_owned()),
    }
}
