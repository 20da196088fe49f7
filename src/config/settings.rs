//! Converts the sections of a route file to the settings of each part, and checks values that depend on each other.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::decision::convert_decision;
use super::diagnostics::{Lines, Report, quote_text};
use super::document::{Place, parse_toml, read_document};
use super::file::{self, File};
use super::headers::{convert_identity, convert_pass_headers};
use super::management::convert_management;
use super::rate_limits::convert_rate_limits;
use super::routes::convert_routes;
use super::scalekit::convert_scalekit;
use super::shared::convert_shared;
use super::traces::read_traces;
use super::upstreams::convert_upstreams;
use super::urls::listeners_clash;
use super::usage::convert_usage;
use super::values::special::{BadKeys, Lifetime};
use super::values::{FromText, Text, Time};
use super::{Config, Environment};
use crate::access_log::Line;
use crate::listener::Listen;
use crate::peer::TrustedProxies;
use crate::route::{Auth, RouteTable};
use crate::tls::{self, KeyPair, ServerCertificate};
use crate::upstream::request_body;
use crate::{credential, expiry, gateway, listener, logging, request_head, validator};

/// `None` if there are problems in the report.
pub(super) fn read_config(
    text: &str,
    lines: &Lines<'_>,
    report: &Report,
    environment: &Environment,
) -> Option<Config> {
    let document = parse_toml(text, report)?;
    let file = read_document(&document, report)?;
    let config = convert_file(file, &Place::root(&document, report), lines, report, environment);
    config.filter(|_| report.problems().is_empty())
}

/// `None` only if a problem was reported.
fn convert_file(
    file: File,
    root: &Place<'_>,
    lines: &Lines<'_>,
    report: &Report,
    environment: &Environment,
) -> Option<Config> {
    let (server, limits, log) = (file.server.0, file.limits.0, file.log.0);
    let scalekit_limits = validator_limits(&file.scalekit.0, &file.negative_cache.0);
    root.require_key("version", file.version, "1");
    let scalekit = convert_scalekit(file.scalekit.0, &root.child("scalekit"), report, environment);
    let credential = convert_credential(&file.credential.0, &root.child("credential"));
    let identity = convert_identity(file.identity.0, &root.child("identity"));
    let has_decision = file.decision.is_some();
    let upstreams = convert_upstreams(file.upstreams, &root.child("upstreams"), has_decision);
    let rate_limits = convert_rate_limits(file.rate_limits, &root.child("rate_limits"));
    let shared =
        file.shared.and_then(|shared| convert_shared(shared.0, &root.child("shared"), report, environment));
    let routes = convert_routes(file.routes, root, &upstreams, lines, has_decision, &rate_limits);

    let place = root.child("server");
    let trusted = merge_trusted(server.trusted_proxies);
    let proxied = merge_trusted(server.proxy_protocol_from);
    let pass_headers = convert_pass_headers(
        server.pass_headers,
        &place.child("pass_headers"),
        &identity,
        trusted != TrustedProxies::default(),
    );
    let (listen, admin) = (server.listen.0, file.admin.0.listen.0);
    let has_upstream = |table: &RouteTable| table.routes().iter().any(|route| !route.upstream.is_empty());
    let proxy_listens = !has_decision || place.has_key("listen") || routes.as_ref().is_none_or(has_upstream);
    let mut others = vec![("admin", &admin)];
    if proxy_listens {
        check_listeners(root, &listen, &admin);
        others.insert(0, ("server", &listen));
    }
    let decision =
        file.decision.and_then(|decision| convert_decision(decision.0, &root.child("decision"), &others));
    if decision.is_some() && identity.claims.is_none() && identity.claims_header.is_none() {
        root.add_warning(format!(
            "identity.claims is not set: behind nginx, ingress-nginx and APISIX, which remove headers by name only, a client's own \
             {}* headers reach the service, and behind these and Caddy Keyward's do not; list the claims that the service reads, or \
             let it read identity.claims_header",
            identity.claim_prefix
        ));
    }
    others.extend(decision.as_ref().map(|decision| ("decision", &decision.listen)));
    let management = file
        .management
        .and_then(|management| convert_management(management.0, &root.child("management"), &others));
    let (revalidate_every, unconfirmed_for) = convert_streams(&file.streams.0, &root.child("streams"));
    let addresses_are_known = [&trusted, &proxied] != [&TrustedProxies::default(); 2];
    let validator = validator::Settings {
        bad_keys_per_minute: match file.throttle.0.bad_keys_per_minute {
            BadKeys::Auto => addresses_are_known.then_some(file::Throttle::AUTO),
            BadKeys::PerMinute(number) => (number > 0).then_some(number),
        },
        ..scalekit_limits
    };
    warn_of_addresses(root, routes.as_ref(), &validator, [&trusted, &proxied]);

    let max_headers = limits.headers.to_usize();
    let max_connections = limits.connections.to_usize();
    // PROXY headers tell the addresses of clients. Other addresses may be those of an ingress or a mesh, which all clients share.
    let per_address = if proxied == TrustedProxies::default() { 0 } else { max_connections.div_ceil(4) };
    let per_address = limits.connections_per_address.map_or(per_address, |most| most.to_usize());
    let log = logging::Settings { format: log.format.0, access: log.access };
    Some(Config {
        listener: listener::Settings {
            listen,
            tls: server.tls.and_then(|tls| convert_tls(tls.0, &place.child("tls"))),
            proxied,
            header_timeout: server.header_timeout.0,
            idle_timeout: server.idle_timeout.0,
            max_connection_age: server.max_connection_age.map(|age| age.0),
            answer_timeout: unless_zero(limits.answer_timeout),
            max_head: limits.head.0,
            max_headers,
            max_streams: limits.streams.to_u32(),
            max_connections,
            max_connections_per_address: (per_address > 0).then_some(per_address),
            memory: usize::MAX,
            socket_mode: None,
        },
        proxy_listens,
        drain_delay: server.drain_delay.0,
        drain_timeout: server.drain_timeout.0,
        trusted,
        admin,
        decision,
        management,
        scalekit: scalekit?,
        validator,
        credential,
        identity,
        gateway: gateway::Settings {
            realm: server.realm.0.0,
            head: request_head::Limits { max_uri: limits.uri.0, max_headers },
            body: request_body::Limits {
                max_bytes: limits.body.map(|bytes| bytes.0 as u64),
                timeout: unless_zero(limits.body_timeout),
            },
            revalidate_every,
            pass_headers,
            unconfirmed_for,
            access_log: Line::from_settings(log),
        },
        traces: read_traces(environment, report),
        trust_parent: file.traces.0.trust_parent.0,
        log,
        expiry: expiry::Settings { warn_before: file.expiry.0.warn_before.map(|Lifetime(before)| before) },
        usage: convert_usage(file.usage.0, &root.child("usage")),
        rate_limits: rate_limits.limits,
        shared,
        upstreams,
        routes: routes?,
        memory: limits.memory.map(|bytes| bytes.0),
        warnings: report.take_warnings(),
    })
}

/// "0s" means no limit.
fn unless_zero(timeout: Time<0>) -> Option<Duration> {
    (!timeout.0.is_zero()).then_some(timeout.0)
}

/// The validator's settings without the throttle.
fn validator_limits(scalekit: &file::Scalekit, cache: &file::NegativeCache) -> validator::Settings {
    let per_minute = scalekit.validations_per_minute.to_u32();
    validator::Settings {
        timeout: scalekit.timeout.0,
        max_in_flight_per_key: scalekit.max_in_flight_per_key.to_usize(),
        max_in_flight: scalekit.max_in_flight.to_usize(),
        max_waiting: scalekit.max_waiting.to_usize(),
        max_per_minute: (per_minute > 0).then_some(per_minute),
        negative_ttl: cache.ttl.0,
        negative_entries: cache.max_entries.0,
        bad_keys_per_minute: None,
    }
}

fn convert_credential(file: &file::Credential, place: &Place<'_>) -> credential::Settings {
    let (min_length, max_length) = (file.min_length.to_usize(), file.max_length.to_usize());
    if min_length > max_length {
        let blamed = if place.has_key("max_length") { "max_length" } else { "min_length" };
        place.child(blamed).add_problem(format!(
            "allows no key: the minimum length is {min_length} characters, the maximum {max_length}"
        ));
    }
    credential::Settings { alphabet: file.alphabet.0, min_length, max_length }
}

/// `revalidate_every` and `unconfirmed_for`.
fn convert_streams(file: &file::Streams, place: &Place<'_>) -> (Duration, Duration) {
    let every = file.revalidate_every.0;
    let within = file.unconfirmed_for.map_or(2 * every, |within| within.0);
    if within < every {
        let every = humantime::format_duration(every);
        place.child("unconfirmed_for").add_problem(format!(
            "should be at least \"{every}\" (streams.revalidate_every), as keys are not validated more often"
        ));
    }
    (every, within)
}

fn check_listeners(root: &Place<'_>, server: &Listen, admin: &Listen) {
    if listeners_clash(server, admin) {
        let (section, other, taken) = match root.child("admin").has_key("listen") {
            true => ("admin", "server", server),
            false => ("server", "admin", admin),
        };
        root.child(section).child("listen").add_problem(format!(
            "is already the address of {other}.listen ({taken}); health and metrics need a port of their own"
        ));
    }
}

fn warn_of_addresses(
    root: &Place<'_>,
    routes: Option<&RouteTable>,
    validator: &validator::Settings,
    proxies: [&TrustedProxies; 2],
) {
    let takes_keys =
        routes.is_some_and(|routes| routes.routes().iter().any(|route| route.auth != Auth::Public));
    if takes_keys && validator.bad_keys_per_minute.is_none() && validator.max_per_minute.is_none() {
        root.add_warning(
            "nothing limits how many invalid keys are sent to Scalekit, which may use up the rate limit that your logins \
             share: set server.trusted_proxies or server.proxy_protocol_from if proxies are in front, otherwise \
             throttle.bad_keys_per_minute or scalekit.validations_per_minute",
        );
    }
    if validator.bad_keys_per_minute.is_some() && proxies == [&TrustedProxies::default(); 2] {
        root.add_warning(
            "throttle.bad_keys_per_minute is set without server.trusted_proxies: behind an ingress, all clients share \
             one address and so one limit",
        );
    }
    for (key, proxies) in ["trusted_proxies", "proxy_protocol_from"].into_iter().zip(proxies) {
        if proxies.networks.iter().any(|network| network.prefix_len() == 0) {
            root.add_warning(format!(
                "server.{key} includes all addresses, so every client can choose the address that it seems to have"
            ));
        }
    }
}

pub(super) fn merge_trusted(given: Vec<Text<TrustedProxies>>) -> TrustedProxies {
    given.into_iter().fold(TrustedProxies::default(), |mut merged, Text(one)| {
        merged.networks.extend(one.networks);
        merged.unix |= one.unix;
        merged
    })
}

/// Checks the files of a certificate and its key.
pub(super) fn convert_tls(file: file::TlsFiles, place: &Place<'_>) -> Option<KeyPair> {
    let certificate = place.require_key("certificate", file.certificate, "\"/tls/tls.crt\"");
    let key = place.require_key("key", file.key, "\"/tls/tls.key\"");
    let certificate = place.convert_value("certificate", certificate, |path| check_file(&path.0));
    let key = place.convert_value("key", key, |path| check_file(&path.0));
    let pair = certificate.zip(key).map(|(certificate, key)| KeyPair { certificate, key });
    place.convert_value("certificate", pair, check_pair)
}

/// The path of a PEM file.
pub(super) struct PemPath(String);

impl FromText for PemPath {
    fn parse_text(text: &str) -> Result<Self, String> {
        // SECURITY: the text may be a private key, and is not repeated.
        match text.contains("-----BEGIN") {
            true => Err("should be the path of a PEM file, not its content".to_owned()),
            false => Ok(Self(text.to_owned())),
        }
    }
}

/// Checks that a file can be read.
pub(super) fn check_file(PemPath(given): &PemPath) -> Result<PathBuf, String> {
    // SECURITY: the text may be a key in base64, which is not repeated.
    let is_path = given.starts_with('/') || given.contains('.');
    let name = if is_path { quote_text(given) } else { "the file".to_owned() };
    let fail = |error: &dyn Display| format!("{name} cannot be read: {error}");
    let path = Path::new(given);
    // Opening a pipe would wait for a writer; a directory can be opened but not read.
    let metadata = std::fs::metadata(path).map_err(|error| fail(&error))?;
    if !metadata.is_file() {
        return Err(fail(&"it is not a file"));
    }
    std::fs::File::open(path).map_err(|error| fail(&error))?;
    Ok(path.to_owned())
}

/// Checks a file of root certificates.
pub(super) fn check_roots(path: &PemPath) -> Result<PathBuf, String> {
    let path = check_file(path)?;
    tls::client_config(Some(&path), None, &[]).map_err(|error| error.to_string())?;
    Ok(path)
}

/// Checks that a certificate and its key belong together.
pub(super) fn check_pair(pair: KeyPair) -> Result<KeyPair, String> {
    ServerCertificate::read(&pair).map_err(|error| error.to_string())?;
    Ok(pair)
}

/// The realm of `WWW-Authenticate`.
pub(super) struct Realm(pub(super) String);

impl FromText for Realm {
    fn parse_text(text: &str) -> Result<Self, String> {
        let is_plain = !text.is_empty()
            && text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && !b"\"\\".contains(&byte));
        let problem = || "should be printable ASCII without '\"' and '\\'".to_owned();
        is_plain.then(|| Self(text.to_owned())).ok_or_else(problem)
    }

    fn format_text(&self) -> Option<String> {
        Some(self.0.clone())
    }
}
