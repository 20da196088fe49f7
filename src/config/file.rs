//! The route file as a whole, and its small sections.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use toml::de::DeTable;

use super::reader::{Found, Lines, Problem, Section};
use super::values::{boolean, choice, duration, expected, file, integer, shown, size, text, usable};
use super::{Config, Environment, headers, management, routes, scalekit, upstreams, urls};
use crate::access_log::{self, Format};
use crate::credential::{self, Alphabet};
use crate::listener::{self, Listen};
use crate::request_head;
use crate::route::Auth;
use crate::tls::KeyPair;
use crate::upstream::forwarded::Trusted;
use crate::upstream::request_body;
use crate::{gateway, validator};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// The throttle where the file says nothing and client addresses are known: more than a misconfigured client tries, and
/// too few to use up a rate limit.
const BAD_KEYS_PER_MINUTE: u32 = 300;

pub(super) fn read(lines: &Lines<'_>, environment: &Environment) -> Result<Config, Vec<Problem>> {
    let (text, found) = (lines.text, Found::default());
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or_default();
        found.add(Some(span.start), "", no_toml(text, span, error.message()));
    }
    if !errors.is_empty() {
        return Err(found.into_inner());
    }
    let root = Section::root(&found, document.into_inner());
    let config = read_document(root, &found, lines, environment);
    let problems = found.into_inner();
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(problems),
    }
}

/// What the parser says, and where it is short, what it means. Values are not repeated: one could be a secret.
fn no_toml(text: &str, span: Range<usize>, message: &str) -> String {
    let (before, after) = text.split_at_checked(span.start).unwrap_or((text, ""));
    let line = before.rsplit('\n').next().unwrap_or_default();
    // The value as far as it was taken for one, where there is no sign of a string, list or table.
    let value = line.split_once('=').map(|(_, value)| value.trim_start());
    let bare = value.is_some_and(|value| !value.contains(['"', '\'', '[', '{', '#', ' ', '\t']));
    match (text.get(span), after.chars().next()) {
        (Some(key), _) if message == "duplicate key" => {
            format!("{} is here a second time, and TOML takes it once", shown(key))
        }
        (_, Some('\r' | '\n' | '#') | None) if bare => "this is not TOML: a value is missing".to_owned(),
        (_, Some(next)) if bare && !"\"'[{".contains(next) => {
            "this is not TOML: texts, durations and sizes stand in quotes".to_owned()
        }
        _ => format!("this is not TOML: {message}"),
    }
}

/// `None` only where a problem was found.
fn read_document(
    mut file: Section<'_, '_>,
    found: &Found,
    lines: &Lines<'_>,
    environment: &Environment,
) -> Option<Config> {
    let mut warnings = Vec::new();
    file.require("version", "1", |value| match value.as_integer() {
        Some(number) if number.as_str() == "1" => Ok(()),
        Some(_) => Err("is one that this Keyward does not know; it knows 1".to_owned()),
        None => Err(expected("1", value)),
    });

    let mut server = file.section("server");
    let mut admin = file.section("admin");
    let mut validator = validator::Settings::default();
    let management = file.optional_section("management");
    let scalekit =
        scalekit::read(file.section("scalekit"), &mut validator, found, environment, &mut warnings);
    let credential = credential(file.section("credential"));
    negative_cache(file.section("negative_cache"), &mut validator);
    let bad_keys_per_minute = throttle(file.section("throttle"));
    let mut limits = file.section("limits");
    let mut streams = file.section("streams");
    let identity = headers::read(file.section("identity"), &mut warnings);
    let log = log(file.section("log"));
    let (upstreams, names) = upstreams::read(&mut file);
    let routes = routes::read(file.sections("routes"), &upstreams, &names, found, lines, &mut warnings);
    file.finish();

    let max_headers = limits.take("headers", integer(1, 10_000)).map_or(100, |headers| headers as usize);
    let head = request_head::Limits {
        max_uri: limits.take("uri", size(256, 64 * 1024)).unwrap_or(16 * 1024),
        max_headers,
    };
    let body = request_body::Limits {
        max_bytes: limits.take("body", size(0, 1 << 50)).map(|bytes| bytes as u64),
        timeout: limits
            .take("body_timeout", duration(Duration::ZERO))
            .map_or_else(|| Some(30 * SECOND), |timeout| (!timeout.is_zero()).then_some(timeout)),
    };
    let memory = limits.take("memory", size(32 << 20, 1 << 50));
    let per_address = limits.take("connections_per_address", integer(0, 1_000_000));
    let mut listener = listener::Settings {
        listen: listen(&mut server, Ipv4Addr::UNSPECIFIED, 4480),
        tls: server.optional_section("tls").and_then(certificate),
        proxied: trusted(&mut server, "proxy_protocol_from"),
        header_timeout: server.take("header_timeout", duration(MILLISECOND)).unwrap_or(10 * SECOND),
        idle_timeout: server.take("idle_timeout", duration(MILLISECOND)).unwrap_or(60 * SECOND),
        answer_timeout: limits
            .take("answer_timeout", duration(Duration::ZERO))
            .map_or_else(|| Some(30 * SECOND), |timeout| (!timeout.is_zero()).then_some(timeout)),
        max_head: limits.take("head", size(8 * 1024, 16 * 1024 * 1024)).unwrap_or(64 * 1024),
        max_headers,
        max_streams: limits.take("streams", integer(1, 10_000)).map_or(100, |streams| streams as u32),
        max_connections: limits
            .take("connections", integer(1, 1_000_000))
            .map_or(10_000, |connections| connections as usize),
        max_connections_per_address: None,
        memory: usize::MAX,
        socket_mode: None,
    };
    // The addresses that a load balancer tells are those of callers; others may be an ingress's or a mesh's, which all share.
    let is_told = listener.proxied != Trusted::default();
    let default = if is_told { listener.max_connections.div_ceil(4) } else { 0 };
    let per_address = per_address.map_or(default, |most| most as usize);
    listener.max_connections_per_address = (per_address > 0).then_some(per_address);
    let drain_delay = server.take("drain_delay", duration(Duration::ZERO)).unwrap_or(5 * SECOND);
    let drain_timeout = server.take("drain_timeout", duration(Duration::ZERO)).unwrap_or(25 * SECOND);
    let trusted = trusted(&mut server, "trusted_proxies");
    let has_trusted = trusted != Trusted::default();
    let pass_headers = headers::pass_headers(&mut server, &identity, has_trusted, &mut warnings);
    let realm = server.take("realm", |value| realm(text(value)?)).unwrap_or_else(|| "api".to_owned());
    let (revalidate_every, unconfirmed_for) = stream_limits(&mut streams);
    let admin_listen = listen(&mut admin, Ipv4Addr::LOCALHOST, 4481);
    if urls::clash(&listener.listen, &admin_listen) {
        let (section, other, taken) = match admin.had("listen") {
            true => (&admin, "server", &listener.listen),
            false => (&server, "admin", &admin_listen),
        };
        let text =
            format!("is taken by {other}.listen, {taken}; health and metrics have a port of their own");
        section.problem("listen", text);
    }
    let management = management.and_then(|section| {
        let others = [("server", &listener.listen), ("admin", &admin_listen)];
        management::read(section, others, &mut warnings)
    });
    [server, admin, limits, streams].into_iter().for_each(Section::finish);

    let from_proxies = [&trusted, &listener.proxied];
    let addresses_are_known = from_proxies != [&Trusted::default(); 2];
    validator.bad_keys_per_minute = match bad_keys_per_minute {
        Some(per_minute) => per_minute,
        None => addresses_are_known.then_some(BAD_KEYS_PER_MINUTE),
    };
    let takes_keys = routes
        .as_ref()
        .is_some_and(|routes| routes.routes().iter().any(|route| matches!(route.auth, Auth::Key(_))));
    if takes_keys && validator.bad_keys_per_minute.is_none() && validator.max_per_minute.is_none() {
        warnings.push(
            "nothing limits how many made-up keys strangers can have Scalekit asked about, which may use up its rate limit \
             for your logins too: set server.trusted_proxies or server.proxy_protocol_from where there are proxies in \
             front, else throttle.bad_keys_per_minute, or scalekit.validations_per_minute"
                .to_owned(),
        );
    }
    if validator.bad_keys_per_minute.is_some() && !addresses_are_known {
        warnings.push(
            "throttle.bad_keys_per_minute is set without server.trusted_proxies: behind an ingress all callers share \
             one address, and so one allowance"
                .to_owned(),
        );
    }
    for (key, from) in ["trusted_proxies", "proxy_protocol_from"].into_iter().zip(from_proxies) {
        if from.networks.iter().any(|network| network.prefix_len() == 0) {
            warnings.push(format!(
                "server.{key} has a network of all addresses: everybody can say who the client is"
            ));
        }
    }
    Some(Config {
        listener,
        drain_delay,
        drain_timeout,
        trusted,
        admin: admin_listen,
        management,
        scalekit: scalekit?,
        validator,
        credential,
        identity,
        gateway: gateway::Settings {
            realm,
            head,
            body,
            revalidate_every,
            pass_headers,
            unconfirmed_for,
            access_log: log.line(),
        },
        log,
        upstreams,
        routes: routes?,
        memory,
        warnings,
    })
}

fn listen(section: &mut Section<'_, '_>, address: Ipv4Addr, port: u16) -> Listen {
    let given = section.take("listen", |value| urls::listen(&text(value)?));
    given.unwrap_or_else(|| Listen::Tcp(SocketAddr::from((address, port))))
}

/// A certificate and its key that can be used together.
pub(super) fn certificate(mut section: Section<'_, '_>) -> Option<KeyPair> {
    let certificate = section.require("certificate", "\"/tls/tls.crt\"", file);
    let key = section.require("key", "\"/tls/tls.key\"", file);
    let pair = certificate.zip(key).map(|(certificate, key)| KeyPair { certificate, key });
    if let Some(Err(problem)) = pair.as_ref().map(usable) {
        section.problem("certificate", problem);
    }
    section.finish();
    pair
}

fn trusted(server: &mut Section<'_, '_>, key: &'static str) -> Trusted {
    let mut trusted = Trusted::default();
    for one in server.list(key, None, urls::trust).unwrap_or_default() {
        trusted.networks.extend(one.networks);
        trusted.unix |= one.unix;
    }
    trusted
}

fn realm(given: String) -> Result<String, String> {
    let plain = !given.is_empty()
        && given.bytes().all(|byte| (b' '..=b'~').contains(&byte) && !b"\"\\".contains(&byte));
    plain.then_some(given).ok_or_else(|| "should be printable ASCII without '\"' and '\\'".to_owned())
}

fn credential(mut section: Section<'_, '_>) -> credential::Settings {
    let default = credential::Settings::default();
    let alphabets = choice(&[("base62", Alphabet::Base62), ("token68", Alphabet::Token68)]);
    let mut length =
        |key, most, default| section.take(key, integer(1, most)).map_or(default, |length| length as usize);
    let min_length = length("min_length", 512, default.min_length);
    let max_length = length("max_length", 8192, default.max_length);
    let alphabet = section.take("alphabet", alphabets).unwrap_or(default.alphabet);
    if min_length > max_length {
        let text = format!(
            "leaves no key: the shortest would have {min_length} characters, the longest {max_length}"
        );
        section.problem(if section.had("max_length") { "max_length" } else { "min_length" }, text);
    }
    section.finish();
    credential::Settings { alphabet, min_length, max_length }
}

fn negative_cache(mut section: Section<'_, '_>, validator: &mut validator::Settings) {
    if let Some(ttl) = section.take("ttl", duration(Duration::ZERO)) {
        validator.negative_ttl = ttl;
    }
    if let Some(entries) = section.take("max_entries", integer(1, 10_000_000)) {
        validator.negative_entries = entries;
    }
    section.finish();
}

/// `revalidate_every` and `unconfirmed_for`.
fn stream_limits(streams: &mut Section<'_, '_>) -> (Duration, Duration) {
    let every = streams.take("revalidate_every", duration(SECOND)).unwrap_or(30 * SECOND);
    let within = streams.take("unconfirmed_for", duration(SECOND)).unwrap_or(2 * every);
    if within < every {
        let every = humantime::format_duration(every);
        let text = format!(
            "should be at least \"{every}\" (streams.revalidate_every): no key is confirmed more often"
        );
        streams.problem("unconfirmed_for", text);
    }
    (every, within)
}

/// The limit of the throttle: `Some(None)` for none, `None` for "auto".
fn throttle(mut section: Section<'_, '_>) -> Option<Option<u32>> {
    let per_minute = section.take("bad_keys_per_minute", |value| match value.as_str() {
        Some("auto") => Ok(None),
        Some(_) => Err("should be \"auto\" or a whole number without quotes".to_owned()),
        None => integer(0, 1_000_000)(value).map(Some),
    });
    section.finish();
    let per_minute = per_minute.flatten();
    per_minute.map(|per_minute| (per_minute > 0).then_some(per_minute as u32))
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
