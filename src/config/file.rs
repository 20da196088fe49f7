//! The sections of the route file but for upstreams and routes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hyper::header::HeaderName;
use ipnet::IpNet;
use toml::de::DeTable;

use super::reader::{Found, Problem, Section, boolean, choice, duration, integer, list, size, text};
use super::{Config, Environment, routes, scalekit};
use crate::access_log::Format;
use crate::credential::Alphabet;
use crate::listener::Listen;
use crate::tls::KeyPair;
use crate::upstream::forwarded::Trusted;
use crate::{access_log, credential, gateway, identity, listener, message, upstream, validator};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

pub(super) fn read(text: &str, environment: &Environment) -> Result<Config, Vec<Problem>> {
    let found = Found::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        found.add(error.span().map(|span| span.start), "", error.message());
    }
    if !errors.is_empty() {
        return Err(found.into_inner());
    }
    let config = read_document(Section::new(&found, "", 0, document.into_inner()), &found, environment);
    let problems = found.into_inner();
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(problems),
    }
}

/// `None` only where a problem was found.
fn read_document(mut file: Section<'_, '_>, found: &Found, environment: &Environment) -> Option<Config> {
    if file.require("version", "1", integer(1, u64::MAX)).is_some_and(|version| version != 1) {
        file.problem("version", "is not one that this Keyward knows; it knows 1");
    }
    let mut warnings = Vec::new();
    let mut server = file.section("server");
    let mut limits = file.section("limits");
    let max_headers = limits.take("headers", integer(1, 10_000)).unwrap_or(100) as usize;
    let head = message::Limits {
        max_uri: limits.take("uri", size(256, 64 * 1024)).unwrap_or(16 * 1024),
        max_headers,
    };
    let body = upstream::outgoing::Limits {
        max_bytes: limits.take("body", size(0, 1 << 50)).map(|bytes| bytes as u64),
        timeout: limits.take("body_timeout", duration(MILLISECOND)),
    };
    let log = log(file.section("log"));
    let listener = listener::Settings {
        listen: server
            .take("listen", listen)
            .unwrap_or_else(|| Listen::Tcp(std::net::SocketAddr::from(([0, 0, 0, 0], 4480)))),
        tls: server.has("tls").then(|| key_pair(server.section("tls"))).flatten(),
        header_timeout: server.take("header_timeout", duration(MILLISECOND)).unwrap_or(10 * SECOND),
        idle_timeout: server.take("idle_timeout", duration(MILLISECOND)).unwrap_or(60 * SECOND),
        max_head: limits.take("head", size(8 * 1024, 16 * 1024 * 1024)).unwrap_or(64 * 1024),
        max_headers,
        max_connections: limits.take("connections", integer(1, 1_000_000)).unwrap_or(10_000) as usize,
    };
    limits.finish();
    let drain_delay = server.take("drain_delay", duration(Duration::ZERO)).unwrap_or(5 * SECOND);
    let drain_timeout = server.take("drain_timeout", duration(Duration::ZERO)).unwrap_or(25 * SECOND);
    let trusted = server.take("trusted_proxies", trusted).unwrap_or_default();
    let realm = server.take("realm", realm).unwrap_or_else(|| "api".to_owned());
    server.finish();
    let mut streams = file.section("streams");
    let revalidate_every = streams.take("revalidate_every", duration(SECOND)).unwrap_or(30 * SECOND);
    streams.finish();
    let mut admin = file.section("admin");
    let admin_listen = admin
        .take("listen", listen)
        .unwrap_or_else(|| Listen::Tcp(std::net::SocketAddr::from(([127, 0, 0, 1], 4481))));
    admin.finish();
    let mut validator = validator::Settings::default();
    let scalekit =
        scalekit::read(file.section("scalekit"), &mut validator, found, environment, &mut warnings);
    let mut negative = file.section("negative_cache");
    validator.negative_ttl = negative.take("ttl", duration(Duration::ZERO)).unwrap_or(validator.negative_ttl);
    validator.negative_entries =
        negative.take("max_entries", integer(1, 10_000_000)).unwrap_or(validator.negative_entries);
    negative.finish();
    let mut throttle = file.section("throttle");
    let per_minute = throttle.take("bad_keys_per_minute", integer(0, 1_000_000)).unwrap_or(0);
    validator.bad_keys_per_minute = (per_minute > 0).then_some(per_minute as u32);
    throttle.finish();
    if per_minute > 0 && trusted == Trusted::default() {
        warnings.push(
            "throttle.bad_keys_per_minute is set without server.trusted_proxies: behind an ingress all callers share \
             one address, and so one allowance"
                .to_owned(),
        );
    }
    let credential = credential(file.section("credential"));
    let identity = identity(file.section("identity"), found);
    let (upstreams, names) = routes::upstreams(file.section("upstreams"));
    let routes = routes::routes(file.sections("routes"), &names, found, &mut warnings);
    file.finish();
    Some(Config {
        listener,
        drain_delay,
        drain_timeout,
        trusted,
        admin: admin_listen,
        scalekit: scalekit?,
        validator,
        credential,
        identity,
        gateway: gateway::Settings { realm, head, body, revalidate_every, access_log: log.line() },
        log,
        upstreams,
        routes: routes?,
        warnings,
    })
}

fn credential(mut section: Section<'_, '_>) -> credential::Settings {
    let default = credential::Settings::default();
    let alphabets = choice(&[("base62", Alphabet::Base62), ("token68", Alphabet::Token68)]);
    let settings = credential::Settings {
        alphabet: section.take("alphabet", alphabets).unwrap_or(default.alphabet),
        min_length: section
            .take("min_length", integer(1, 512))
            .map_or(default.min_length, |length| length as usize),
        max_length: section
            .take("max_length", integer(1, 8192))
            .map_or(default.max_length, |length| length as usize),
    };
    if settings.min_length > settings.max_length {
        section.problem("min_length", "is more than max_length");
    }
    section.finish();
    settings
}

fn identity(mut section: Section<'_, '_>, found: &Found) -> identity::Settings {
    let mut settings = identity::Settings::default();
    if let Some(prefix) = section.take("claim_prefix", claim_prefix) {
        settings.claim_prefix = prefix;
    }
    let prefix = settings.claim_prefix.clone();
    let names: [(&'static str, &mut HeaderName); 6] = [
        ("org_id", &mut settings.org_id),
        ("org_external_id", &mut settings.org_external_id),
        ("user_id", &mut settings.user_id),
        ("user_external_id", &mut settings.user_external_id),
        ("roles", &mut settings.roles),
        ("token_id", &mut settings.token_id),
    ];
    let mut taken: BTreeMap<String, &str> = BTreeMap::new();
    for (key, name) in names {
        if let Some(given) = section.take(key, |value| own_header(&text(value)?)) {
            *name = given;
        }
        if name.as_str().starts_with(&prefix) {
            section.problem(key, format!("begins with the claim prefix {prefix}, so a claim could reach it"));
        }
        let folded = name.as_str().replace(|char: char| !char.is_ascii_alphanumeric(), "-");
        if let Some(other) = taken.insert(folded, key) {
            section.problem(key, format!("has the same header as {other}"));
        }
    }
    settings.claims = section
        .take("claims", |value| match value.as_str() {
            Some("all") => Ok(None),
            Some(_) => Err("should be \"all\" or a list of claim names".to_owned()),
            None => list(value).map(Some),
        })
        .flatten();
    if let Some(bytes) = section.take("max_bytes", size(64, 1024 * 1024)) {
        settings.max_bytes = bytes;
    }
    let headers = section.section("claim_headers");
    let (path, place) = (headers.path().to_owned(), headers.place());
    for (claim, header) in headers.texts() {
        match own_header(&header) {
            Ok(name) if name.as_str().starts_with(&prefix) => {
                settings.claim_headers.insert(claim, name);
            }
            Ok(_) => found.add(Some(place), format!("{path}.{claim}"), format!("should begin with {prefix}")),
            Err(problem) => found.add(Some(place), format!("{path}.{claim}"), problem),
        }
    }
    section.finish();
    settings
}

fn claim_prefix(value: &super::reader::Value<'_>) -> Result<String, String> {
    let prefix = own_header(&text(value)?)?.as_str().to_owned();
    if prefix.ends_with('-') && prefix.len() >= 3 {
        Ok(prefix)
    } else {
        Err("should end in '-', as X-Claim- does".to_owned())
    }
}

/// A header that may carry an identity: none that HTTP, forwarding or Keyward itself gives a meaning.
fn own_header(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::try_from(text).map_err(|_| format!("{text:?} is not a header name"))?;
    let plain = name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !plain {
        return Err(
            "should be letters, digits and '-' alone, as backends read other characters in different ways"
                .into(),
        );
    }
    const RESERVED: [&str; 19] = [
        "authorization",
        "proxy-authorization",
        "host",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "transfer-encoding",
        "cookie",
        "set-cookie",
        "expect",
        "forwarded",
        "x-request-id",
        "traceparent",
        "tracestate",
        "keyward-error",
        "date",
        "via",
    ];
    let start = ["content-", "x-forwarded-", "access-control-", "accept", "if-", "sec-"];
    if RESERVED.contains(&name.as_str()) || start.iter().any(|start| name.as_str().starts_with(start)) {
        return Err(format!("{text} has a meaning of its own"));
    }
    Ok(name)
}

fn log(mut section: Section<'_, '_>) -> access_log::Settings {
    let formats = choice(&[("auto", Format::Auto), ("json", Format::Json), ("text", Format::Text)]);
    let settings = access_log::Settings {
        format: section.take("format", formats).unwrap_or(Format::Auto),
        access: section.take("access", boolean).unwrap_or(true),
    };
    section.finish();
    settings
}

/// A certificate and its key, both readable.
pub(super) fn key_pair(mut section: Section<'_, '_>) -> Option<KeyPair> {
    let certificate = section.require("certificate", "\"/tls/tls.crt\"", |value| readable(&text(value)?));
    let key = section.require("key", "\"/tls/tls.key\"", |value| readable(&text(value)?));
    section.finish();
    Some(KeyPair { certificate: certificate?, key: key? })
}

pub(super) fn readable(path: &str) -> Result<PathBuf, String> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(PathBuf::from(path)),
        Err(error) => Err(format!("{path} cannot be read: {error}")),
    }
}

pub(super) fn listen(value: &super::reader::Value<'_>) -> Result<Listen, String> {
    let given = text(value)?;
    if let Some(path) = given.strip_prefix("unix:") {
        return if path.starts_with('/') {
            Ok(Listen::Unix(PathBuf::from(path)))
        } else {
            Err("a unix socket is written unix:/absolute/path".to_owned())
        };
    }
    let problem = "should be an IP address and a port, such as \"0.0.0.0:4480\", or \"unix:/path\"";
    given.parse().map(Listen::Tcp).map_err(|_| problem.to_owned())
}

fn trusted(value: &super::reader::Value<'_>) -> Result<Trusted, String> {
    let mut trusted = Trusted::default();
    for given in list(value)? {
        let address = || given.parse().ok().map(|address: std::net::IpAddr| IpNet::from(address));
        match given.parse().ok().or_else(address) {
            Some(network) => trusted.networks.push(network),
            None if given == "unix:" => trusted.unix = true,
            None => {
                return Err(format!(
                    "{given:?} is neither a network such as \"10.0.0.0/8\", an address, nor \"unix:\""
                ));
            }
        }
    }
    Ok(trusted)
}

fn realm(value: &super::reader::Value<'_>) -> Result<String, String> {
    let given = text(value)?;
    let plain = !given.is_empty()
        && given.bytes().all(|byte| (b' '..=b'~').contains(&byte) && !b"\"\\".contains(&byte));
    plain.then_some(given).ok_or_else(|| "should be printable ASCII without '\"' and '\\'".to_owned())
}
