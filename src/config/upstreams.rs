//! `[upstreams.NAME]`.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::reader::Section;
use super::urls::{Url, unix_path, url};
use super::values::{boolean, choice, duration, file, integer, roots, shown, text, usable};
use crate::pool::{self, Address, Protocol, Tls};
use crate::tls::KeyPair;
use crate::upstream;

const EXAMPLE: &str = "[upstreams.api] with url = \"http://127.0.0.1:8080\"";
const FORMS: &str = "\"http://host:port\", \"https://host\", \"h2c://host:port\" or \"unix:/path\"";
/// What `url` must be for these to mean anything.
const FOR_TLS: [&str; 4] = ["ca_file", "server_name", "client_certificate", "client_key"];

/// The upstreams that can be used, and the names of all.
pub(super) fn read(file: &mut Section<'_, '_>) -> (Vec<upstream::Settings>, Vec<Arc<str>>) {
    let (mut upstreams, mut names) = (Vec::new(), Vec::new());
    if !file.has("upstreams") {
        file.problem("upstreams", format!("there are none; for example {EXAMPLE}"));
    }
    let Some(section) = file.optional_section("upstreams") else {
        return (upstreams, names);
    };
    if section.is_empty() {
        section.problem_with_all(format!("there are none; for example {EXAMPLE}"));
    }
    for (name, section) in section.named_sections(EXAMPLE) {
        let name: Arc<str> = name.into();
        names.push(Arc::clone(&name));
        let Some(section) = section else { continue };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            section.problem_with_all("has a name that is not 1 to 64 letters, digits, '-' and '_'");
        }
        upstreams.extend(upstream(name, section));
    }
    (upstreams, names)
}

fn upstream(name: Arc<str>, mut section: Section<'_, '_>) -> Option<upstream::Settings> {
    let target = section.require("url", "\"http://127.0.0.1:8080\"", |value| target(&text(value)?));
    let protocols = choice(&[("auto", Protocol::Auto), ("1", Protocol::Http1), ("2", Protocol::Http2)]);
    let protocol = section.take("http", protocols);
    let connect_timeout = time(&mut section, "connect_timeout", 1000);
    let idle_timeout = time(&mut section, "idle_timeout", 4000);
    let response_timeout = time(&mut section, "response_timeout", 30_000);
    let case_sensitive_paths = section.take("case_sensitive_paths", boolean).unwrap_or(false);
    let max_requests = section.take("max_requests", integer(1, 1_000_000)).map_or(4096, |most| most as usize);
    let tls = tls(&mut section);
    if target.as_ref().is_some_and(|target| !target.tls) {
        for key in FOR_TLS.into_iter().filter(|key| section.had(key)) {
            section.problem(key, "is for https:// alone, which url is not");
        }
    }
    let protocol = match (target.as_ref().map(|target| target.protocol), protocol) {
        (Some(Protocol::Http2), Some(Protocol::Http1)) => {
            section.problem("http", "contradicts url: h2c:// is HTTP/2");
            Protocol::Http1
        }
        (Some(Protocol::Http2), _) => Protocol::Http2,
        (_, protocol) => protocol.unwrap_or(Protocol::Auto),
    };
    section.finish();
    let target = target?;
    let origin = pool::Settings {
        address: target.address,
        tls: target.tls.then_some(tls),
        protocol,
        connect_timeout,
        idle_timeout,
    };
    Some(upstream::Settings { name, origin, response_timeout, case_sensitive_paths, max_requests })
}

fn time(section: &mut Section<'_, '_>, key: &'static str, default_ms: u64) -> Duration {
    section.take(key, duration(Duration::from_millis(1))).unwrap_or_else(|| Duration::from_millis(default_ms))
}

/// What an https upstream is verified with, and is shown.
fn tls(section: &mut Section<'_, '_>) -> Tls {
    let roots = section.take("ca_file", roots);
    let server_name = section.take("server_name", |value| {
        let name = text(value)?;
        let problem = || format!("{} is neither a DNS name nor an IP address", shown(&name));
        ServerName::try_from(name.as_str()).map(|_| name.as_str().into()).map_err(|_| problem())
    });
    let certificate = section.take("client_certificate", file);
    let key = section.take("client_key", file);
    for (one, other) in [("client_certificate", "client_key"), ("client_key", "client_certificate")] {
        if section.had(one) && !section.had(other) {
            section.problem(one, format!("does nothing without {other}"));
        }
    }
    let identity = certificate.zip(key).map(|(certificate, key)| KeyPair { certificate, key });
    if let Some(Err(problem)) = identity.as_ref().map(usable) {
        section.problem("client_certificate", problem);
    }
    Tls { roots, server_name, identity }
}

struct Target {
    address: Address,
    tls: bool,
    protocol: Protocol,
}

/// Whether it can be the `url` of an upstream; if not, what would be right.
pub(super) fn check_url(given: &str) -> Result<(), String> {
    target(given).map(drop)
}

fn target(given: &str) -> Result<Target, String> {
    if let Some(path) = unix_path(given) {
        return Ok(Target { address: Address::Unix(path?), tls: false, protocol: Protocol::Auto });
    }
    let Url { scheme, host, port } = url(given, FORMS)?;
    let (tls, protocol, default) = match scheme.as_str() {
        "http" => (false, Protocol::Auto, 80),
        "https" => (true, Protocol::Auto, 443),
        "h2c" => (false, Protocol::Http2, 80),
        _ => return Err(format!("should be {FORMS}")),
    };
    Ok(Target { address: Address::Tcp(host.into(), port.unwrap_or(default)), tls, protocol })
}
