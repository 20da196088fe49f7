//! Converts `[shared]`.

use std::time::Duration;

use super::Environment;
use super::diagnostics::Report;
use super::document::Place;
use super::environment::Problem;
use super::file;
use super::scalekit::SecretPath;
use super::settings::check_roots;
use super::urls::{Url, read_url, unix_path};
use super::values::FromText;
use crate::secret::{SecretError, SecretSource};
use crate::shared::{Address, Settings};

const PASSWORD: &str = "KEYWARD_SHARED_PASSWORD";
const FORMS: &str = "\"redis://host:port\", \"rediss://host:port\" for TLS, or \"unix:/path\"";
const PORT: u16 = 6379;
/// The longest `timeout`.
const MOST: Duration = Duration::from_secs(10);

/// `None` if a problem was reported.
pub(super) fn convert_shared(
    file: file::Shared,
    place: &Place<'_>,
    report: &Report,
    environment: &Environment,
) -> Option<Settings> {
    let url = place.require_key("url", file.url, "\"redis://redis.internal:6379\"");
    let replicas = place.require_key("replicas", file.replicas, "2");
    let of_file = place.convert_value("password_file", file.password_file, |path| read_secret(path.0));
    let salt = place.convert_value("salt_file", file.salt_file, |path| read_secret(path.0));
    let roots = place.convert_value("ca_file", file.ca_file, |path| check_roots(&path.0));
    let password = match environment.find_secret(PASSWORD) {
        Ok(found) => found.map(|found| found.source).or(of_file),
        Err(Problem { variable, message }) => {
            report.add_problem(None, variable, message);
            None
        }
    };
    let timeout = file.timeout.0;
    if timeout > MOST {
        place.child("timeout").add_problem("should be at most \"10s\", as requests wait for it");
    }
    let SharedUrl { address, database } = url?.0;
    if place.has_key("ca_file") && !matches!(address, Address::Tls(..)) {
        place
            .child("ca_file")
            .add_problem("has no effect without TLS; the url should begin with \"rediss://\"");
    }
    if let Address::Tcp(host, _) = &address
        && password.is_some()
        && !is_loopback(host)
    {
        place.add_warning(
            "shared.url is without TLS, so the password can be read on the network; use \"rediss://\" if that is not trusted",
        );
    }
    if place.has_key("username") && password.is_none() {
        place.child("username").add_problem(format!(
            "has no effect without a password; set password_file, {PASSWORD} or {PASSWORD}_FILE"
        ));
    }
    Some(Settings {
        address,
        database,
        username: file.username.map(|name| name.0.0),
        password,
        roots,
        timeout,
        replicas: replicas?.to_u32(),
        prefix: file.prefix.0.0,
        salt,
    })
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn read_secret(path: SecretPath) -> Result<SecretSource, String> {
    let source = SecretSource::File(path.0);
    source.read().map(|_| source).map_err(|error: SecretError| error.to_string())
}

/// `shared.url`.
pub(super) struct SharedUrl {
    address: Address,
    database: u32,
}

impl FromText for SharedUrl {
    fn parse_text(text: &str) -> Result<Self, String> {
        if let Some(path) = unix_path(text) {
            return Ok(Self { address: Address::Unix(path?), database: 0 });
        }
        // SECURITY: the text is not repeated, as it may contain a password.
        if text.contains('@') {
            return Err(format!(
                "has a user or password, which is not accepted in the route file; set username, and password_file or {PASSWORD}"
            ));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("should be {FORMS}"))?;
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let database = match database {
            "" => 0,
            number => number.parse().map_err(|_| {
                "should end with a number after the last '/', that of the database".to_owned()
            })?,
        };
        let Url { scheme, host, port } = read_url(&format!("{scheme}://{authority}"), FORMS)?;
        let port = port.unwrap_or(PORT);
        let address = match &*scheme {
            "redis" | "valkey" => Address::Tcp(host, port),
            "rediss" | "valkeys" => Address::Tls(host, port),
            _ => return Err(format!("should be {FORMS}")),
        };
        Ok(Self { address, database })
    }
}
