//! `[identity]`: which headers say who calls. No name may be one that HTTP, a proxy or Keyward gives another meaning, and
//! no claim may reach one.

use std::collections::HashMap;

use hyper::header::HeaderName;

use super::reader::Section;
use super::values::{expected, shown, size, text};
use crate::identity::{Headers, Settings};
use crate::upstream::forwarded;

pub(super) fn read(mut section: Section<'_, '_>, warnings: &mut Vec<String>) -> Settings {
    let mut settings = Settings::default();
    if let Some(prefix) = section.take("claim_prefix", |value| claim_prefix(&text(value)?)) {
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
    let mut taken: HashMap<HeaderName, &str> = HashMap::new();
    for (key, name) in names {
        if let Some(given) = section.take(key, |value| own_header(&text(value)?)) {
            *name = given;
        }
        if name.as_str().starts_with(&prefix) {
            // A default name is not what somebody wrote.
            let blamed = if section.had(key) { key } else { "claim_prefix" };
            section.problem(blamed, format!("would let a claim set {key}: {name} begins with {prefix}"));
        }
        if let Some(other) = taken.insert(name.clone(), key) {
            let (blamed, other) = if section.had(key) { (key, other) } else { (other, key) };
            section.problem(blamed, format!("is the header of {other} already"));
        }
    }
    settings.claims = claims(&mut section);
    if let Some(bytes) = section.take("max_bytes", size(64, 1024 * 1024)) {
        settings.max_bytes = bytes;
    }
    let (claims, mut headers) = (&settings.claims, HashMap::new());
    let pairs = section.section("claim_headers").texts(|claim, header| {
        let name = own_header(header)?;
        if !name.as_str().starts_with(&prefix) || name.as_str() == prefix {
            return Err(format!("should begin with {prefix}, as every claim's header does"));
        }
        if claims.as_ref().is_some_and(|claims| !claims.iter().any(|passed| passed == claim)) {
            return Err("is for a claim that identity.claims does not let pass".to_owned());
        }
        match headers.insert(name.clone(), claim.to_owned()) {
            Some(other) => Err(format!("is the header of {} already", shown(&other))),
            None => Ok(name),
        }
    });
    settings.claim_headers = pairs.into_iter().collect();
    section.finish();
    warn_of_shared_headers(&settings, warnings);
    settings
}

/// `server.pass_headers`: what is kept from trusted proxies beside the usual headers.
pub(super) fn pass_headers(
    server: &mut Section<'_, '_>,
    identity: &Settings,
    has_trusted: bool,
    warnings: &mut Vec<String>,
) -> Vec<HeaderName> {
    let identity = Headers::new(identity.clone());
    let names =
        server.list("pass_headers", None, |given| passed_header(given, &identity)).unwrap_or_default();
    if !names.is_empty() && !has_trusted {
        warnings.push(
            "server.pass_headers has no effect without server.trusted_proxies: these headers are kept from trusted proxies \
             alone"
                .to_owned(),
        );
    }
    for name in names.iter().filter(|name| !forwarded::is_removed(name.as_str())) {
        warnings
            .push(format!("server.pass_headers has {name}, which Keyward passes on from everybody anyway"));
    }
    names
}

fn passed_header(given: &str, identity: &Headers) -> Result<HeaderName, String> {
    let name = plain_header(given)?;
    // SECURITY: these are never the caller's to say, whoever stands between.
    if identity.owns(name.as_str()) {
        return Err(format!(
            "should be another header: {given} says who the caller is, which Keyward alone sets"
        ));
    }
    match name.as_str() {
        "authorization" => {
            Err("should be another header: Authorization carries the key, and never goes on".to_owned())
        }
        "content-length" | "transfer-encoding" | "host" | "expect" => Err(format!(
            "should be another header: {given} frames or addresses the message, which Keyward does anew"
        )),
        other if HOP_BY_HOP.split(' ').any(|name| name == other) => {
            Err(format!("should be another header: {given} concerns one connection, and never goes on"))
        }
        _ => Ok(name),
    }
}

const HOP_BY_HOP: &str = "connection http2-settings keep-alive proxy-authenticate proxy-authorization proxy-connection te \
    trailer upgrade";

/// Which is known beforehand only of claims that are chosen by name.
fn warn_of_shared_headers(settings: &Settings, warnings: &mut Vec<String>) {
    let (headers, mut taken) = (Headers::new(settings.clone()), HashMap::new());
    for claim in settings.claims.iter().flatten() {
        let Some(name) = headers.claim_header(claim) else { continue };
        if let Some(other) = taken.insert(name.clone(), claim).filter(|other| *other != claim) {
            warnings.push(format!(
                "identity.claims has {} and {}, which share the header {name}: a key with both is answered 502; name a \
                 header for one under identity.claim_headers",
                shown(other),
                shown(claim)
            ));
        }
    }
}

/// `None` for all of them.
fn claims(section: &mut Section<'_, '_>) -> Option<Vec<String>> {
    if section.has_list("claims") {
        return section.list("claims", None, |claim| Ok(claim.to_owned()));
    }
    section.take("claims", |value| match value.as_str() {
        Some("all") => Ok(()),
        Some(_) => Err("should be \"all\", or a list of claims".to_owned()),
        None => Err(expected("\"all\" or a list of claims", value)),
    });
    None
}

fn claim_prefix(given: &str) -> Result<String, String> {
    let prefix = own_header(given)?.as_str().to_owned();
    if !prefix.ends_with('-') || prefix.len() < 3 {
        return Err("should be some letters and a '-' at the end, as in \"X-Claim-\"".to_owned());
    }
    // SECURITY: a claim is named by whoever makes a key. With "Transfer-" for a prefix, one named "encoding" would frame
    // the request; with "X-User-" one named "id" would be a user to any backend that reads the usual name.
    let headers = Headers::new(Settings::default());
    let reserved = RESERVED.split(' ').chain(RESERVED_STARTS.split(' '));
    match reserved.chain(headers.names().map(HeaderName::as_str)).find(|name| name.starts_with(&prefix)) {
        Some(name) => Err(format!("would let a claim set {name}, which has a meaning of its own")),
        None => Ok(prefix),
    }
}

/// A header that may carry an identity: none that HTTP, a proxy or Keyward itself gives a meaning.
fn own_header(given: &str) -> Result<HeaderName, String> {
    let name = plain_header(given)?;
    let reserved = RESERVED.split(' ').any(|reserved| name == reserved)
        || RESERVED_STARTS.split(' ').any(|start| name.as_str().starts_with(start));
    if reserved { Err(format!("should be another name: {given} has a meaning of its own")) } else { Ok(name) }
}

fn plain_header(given: &str) -> Result<HeaderName, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let name = HeaderName::try_from(given).ok();
    let name = name.filter(|name| name.as_str().bytes().all(plain) && !name.as_str().starts_with('-'));
    name.ok_or_else(|| {
        "should be a header's name of letters, digits and '-' alone: backends read other characters in different ways"
            .to_owned()
    })
}

const RESERVED: &str = "authorization baggage cache-control connection cookie date expect forwarded from host \
    http2-settings keep-alive last-event-id max-forwards origin pragma priority range referer set-cookie te traceparent \
    tracestate trailer transfer-encoding upgrade user-agent via www-authenticate x-forwarded x-real-ip x-request-id";

const RESERVED_STARTS: &str = "accept access-control- content- grpc- if- keyward- proxy- sec- x-forwarded-";
