//! Converts `[identity]` and `server.pass_headers`. An identity header must not have a name to which HTTP, proxies or Keyward give
//! another meaning, and the header of a claim must not have such a name or that of another identity header.

use std::collections::HashMap;

use hyper::header::HeaderName;
use toml::Spanned;

use super::diagnostics::quote_text;
use super::document::Place;
use super::file;
use super::values::tables::Claims;
use super::values::{FromText, Text};
use crate::identity::{IdentityHeaders, Settings};
use crate::upstream::forwarded;

pub(super) fn convert_identity(file: file::Identity, place: &Place<'_>) -> Settings {
    let mut settings = Settings {
        org_id: file.org_id.0.0,
        org_external_id: file.org_external_id.0.0,
        user_id: file.user_id.0.0,
        user_external_id: file.user_external_id.0.0,
        roles: file.roles.0.0,
        token_id: file.token_id.0.0,
        claim_prefix: file.claim_prefix.0.0,
        claims: match file.claims {
            Claims::Named(names) if !place.child("claims").is_faulty() => Some(names),
            Claims::All | Claims::Named(_) => None,
        },
        claim_headers: Default::default(),
        claims_header: file.claims_header.map(|name| name.0.0),
        max_bytes: file.max_bytes.0,
    };
    check_names(&settings, place);
    let (section, mut taken) = (place.child("claim_headers"), HashMap::new());
    let mut pairs = file.claim_headers.0;
    pairs.sort_by_key(|(claim, _)| section.child(claim).at);
    for (claim, Text(IdentityHeader(name))) in pairs {
        match check_claim_header(&settings, &claim, &name, &mut taken) {
            Ok(()) => drop(settings.claim_headers.insert(claim, name)),
            Err(problem) => section.child(&claim).add_problem(problem),
        }
    }
    warn_of_shared_headers(&settings, place);
    settings
}

/// Checks that all names differ, and that no claim could set one of these headers.
fn check_names(settings: &Settings, place: &Place<'_>) {
    let keys =
        ["org_id", "org_external_id", "user_id", "user_external_id", "roles", "token_id", "claims_header"];
    let (prefix, mut taken) = (&settings.claim_prefix, HashMap::new());
    for (key, name) in
        keys.into_iter().zip(settings.header_names().into_iter().chain(&settings.claims_header))
    {
        if name.as_str().starts_with(prefix) {
            // The problem is reported for a key that the file has.
            let blamed = if place.has_key(key) { key } else { "claim_prefix" };
            let problem = format!("would let a claim set {key}: {name} begins with {prefix}");
            place.child(blamed).add_problem(problem);
        }
        if let Some(other) = taken.insert(name, key) {
            let (blamed, other) = if place.has_key(key) { (key, other) } else { (other, key) };
            place.child(blamed).add_problem(format!("is already the header of {other}"));
        }
    }
}

fn check_claim_header(
    settings: &Settings,
    claim: &str,
    name: &HeaderName,
    taken: &mut HashMap<HeaderName, String>,
) -> Result<(), String> {
    let prefix = &settings.claim_prefix;
    if !name.as_str().starts_with(prefix) || name.as_str() == prefix {
        return Err(format!("should begin with {prefix}, as the header of every claim"));
    }
    if settings.claims.as_ref().is_some_and(|claims| !claims.iter().any(|passed| passed == claim)) {
        return Err("is for a claim that identity.claims does not include".to_owned());
    }
    let other = taken.insert(name.clone(), claim.to_owned());
    other.map_or(Ok(()), |other| Err(format!("is already the header of {}", quote_text(&other))))
}

/// Converts `server.pass_headers`: further headers that are kept from trusted proxies.
pub(super) fn convert_pass_headers(
    names: Vec<Spanned<Text<PlainHeader>>>,
    place: &Place<'_>,
    identity: &Settings,
    has_trusted: bool,
) -> Vec<HeaderName> {
    let (identity, items, mut passed) =
        (IdentityHeaders::new(identity.clone()), place.items_by_position(), Vec::new());
    for name in names {
        let start = name.span().start;
        match check_passed_header(name.into_inner().0, &identity) {
            Ok(name) => passed.push(name),
            Err(problem) => {
                let item = items.get(&start).map_or(place, |(_, item)| item);
                item.add_problem(problem);
            }
        }
    }
    if !passed.is_empty() && !has_trusted {
        place.add_warning(
            "server.pass_headers has no effect without server.trusted_proxies, as headers are only kept from trusted proxies",
        );
    }
    for name in passed.iter().filter(|name| !forwarded::is_removed(name.as_str())) {
        place.add_warning(format!(
            "server.pass_headers has {name}, which Keyward forwards from every client anyway"
        ));
    }
    passed
}

fn check_passed_header(header: PlainHeader, identity: &IdentityHeaders) -> Result<HeaderName, String> {
    let PlainHeader { name, given } = header;
    // SECURITY: neither clients nor proxies may set identity headers.
    if identity.owns_name(name.as_str()) {
        return Err(format!(
            "should be another header: {given} is an identity header, which only Keyward sets"
        ));
    }
    match name.as_str() {
        "authorization" => {
            Err("should be another header: Authorization carries the key, and is never forwarded".to_owned())
        }
        "content-length" | "transfer-encoding" | "host" | "expect" => Err(format!(
            "should be another header: {given} frames or addresses the message, and is set by Keyward"
        )),
        other if HOP_BY_HOP.split(' ').any(|name| name == other) => {
            Err(format!("should be another header: {given} is a hop-by-hop header, which is never forwarded"))
        }
        _ => Ok(name),
    }
}

const HOP_BY_HOP: &str = "connection http2-settings keep-alive proxy-authenticate proxy-authorization proxy-connection te \
    trailer upgrade";

/// Only claims that are listed by name are known in advance.
fn warn_of_shared_headers(settings: &Settings, place: &Place<'_>) {
    let (headers, mut taken) = (IdentityHeaders::new(settings.clone()), HashMap::new());
    for claim in settings.claims.iter().flatten() {
        let Some(name) = headers.claim_header(claim) else { continue };
        if let Some(other) = taken.insert(name.clone(), claim).filter(|other| *other != claim) {
            place.add_warning(format!(
                "identity.claims has {} and {}, which share the header {name}: requests with a key that has both get 502; \
                 set a header for one of them in identity.claim_headers",
                quote_text(other),
                quote_text(claim)
            ));
        }
    }
}

/// The prefix of the headers of claims, in lower case.
pub(super) struct ClaimPrefix(pub(super) String);

impl FromText for ClaimPrefix {
    fn parse_text(text: &str) -> Result<Self, String> {
        let prefix = IdentityHeader::parse_text(text)?.0.as_str().to_owned();
        if !prefix.ends_with('-') || prefix.len() < 3 {
            return Err("should be letters followed by '-', as in \"X-Claim-\"".to_owned());
        }
        // SECURITY: whoever creates a key chooses the names of its claims. With the prefix "Transfer-", a claim named "encoding"
        // would frame the request; with "X-User-", a claim named "id" would be taken for the user by a service that reads
        // the default header.
        let defaults = Settings::default();
        let reserved = RESERVED.split(' ').chain(RESERVED_STARTS.split(' '));
        let mut reserved = reserved.chain(defaults.header_names().map(HeaderName::as_str));
        match reserved.find(|name| name.starts_with(&prefix)) {
            Some(name) => Err(format!("would let a claim set {name}, which is reserved")),
            None => Ok(Self(prefix)),
        }
    }

    fn format_text(&self) -> Option<String> {
        Some(self.0.clone())
    }
}

/// The name of an identity header, which HTTP, proxies and Keyward must not use for something else.
pub(super) struct IdentityHeader(pub(super) HeaderName);

impl FromText for IdentityHeader {
    fn parse_text(text: &str) -> Result<Self, String> {
        let PlainHeader { name, given } = PlainHeader::parse_text(text)?;
        let is_reserved = RESERVED.split(' ').any(|reserved| name == reserved)
            || RESERVED_STARTS.split(' ').any(|start| name.as_str().starts_with(start));
        match is_reserved {
            true => Err(format!("should be another name: {given} is reserved")),
            false => Ok(Self(name)),
        }
    }

    fn format_text(&self) -> Option<String> {
        Some(self.0.to_string())
    }
}

/// A header name, and the text that it was parsed from.
pub(super) struct PlainHeader {
    name: HeaderName,
    given: String,
}

impl FromText for PlainHeader {
    fn parse_text(text: &str) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let name = HeaderName::try_from(text).ok();
        let name = name.filter(|name| name.as_str().bytes().all(plain) && !name.as_str().starts_with('-'));
        name.map(|name| Self { name, given: text.to_owned() }).ok_or_else(|| {
            "should be a header name of only letters, digits and '-', as services read other characters in different ways"
                .to_owned()
        })
    }
}

const RESERVED: &str = "authorization baggage cache-control connection cookie date expect forwarded from host \
    http2-settings keep-alive last-event-id max-forwards origin pragma priority range referer set-cookie te traceparent \
    tracestate trailer transfer-encoding upgrade user-agent via www-authenticate x-forwarded x-real-ip x-request-id";

const RESERVED_STARTS: &str = "accept access-control- content- grpc- if- keyward- proxy- sec- x-forwarded-";
