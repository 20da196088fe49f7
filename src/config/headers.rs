//! `[identity]`: which headers say who calls. No name may be one that HTTP, a proxy or Keyward gives another meaning, and
//! no claim may reach one.

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

/// No two headers are one, and no claim reaches one.
fn check_names(settings: &Settings, place: &Place<'_>) {
    let names = [
        ("org_id", &settings.org_id),
        ("org_external_id", &settings.org_external_id),
        ("user_id", &settings.user_id),
        ("user_external_id", &settings.user_external_id),
        ("roles", &settings.roles),
        ("token_id", &settings.token_id),
    ];
    let (prefix, mut taken) = (&settings.claim_prefix, HashMap::new());
    for (key, name) in names {
        if name.as_str().starts_with(prefix) {
            // A default name is not what somebody wrote.
            let blamed = if place.has_key(key) { key } else { "claim_prefix" };
            let problem = format!("would let a claim set {key}: {name} begins with {prefix}");
            place.child(blamed).add_problem(problem);
        }
        if let Some(other) = taken.insert(name, key) {
            let (blamed, other) = if place.has_key(key) { (key, other) } else { (other, key) };
            place.child(blamed).add_problem(format!("is the header of {other} already"));
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
        return Err(format!("should begin with {prefix}, as every claim's header does"));
    }
    if settings.claims.as_ref().is_some_and(|claims| !claims.iter().any(|passed| passed == claim)) {
        return Err("is for a claim that identity.claims does not let pass".to_owned());
    }
    let other = taken.insert(name.clone(), claim.to_owned());
    other.map_or(Ok(()), |other| Err(format!("is the header of {} already", quote_text(&other))))
}

/// `server.pass_headers`: what is kept from trusted proxies beside the usual headers.
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
            "server.pass_headers has no effect without server.trusted_proxies: these headers are kept from trusted proxies \
             alone",
        );
    }
    for name in passed.iter().filter(|name| !forwarded::is_removed(name.as_str())) {
        place.add_warning(format!(
            "server.pass_headers has {name}, which Keyward passes on from everybody anyway"
        ));
    }
    passed
}

fn check_passed_header(header: PlainHeader, identity: &IdentityHeaders) -> Result<HeaderName, String> {
    let PlainHeader { name, given } = header;
    // SECURITY: these are never the caller's to say, whoever stands between.
    if identity.owns_name(name.as_str()) {
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
fn warn_of_shared_headers(settings: &Settings, place: &Place<'_>) {
    let (headers, mut taken) = (IdentityHeaders::new(settings.clone()), HashMap::new());
    for claim in settings.claims.iter().flatten() {
        let Some(name) = headers.claim_header(claim) else { continue };
        if let Some(other) = taken.insert(name.clone(), claim).filter(|other| *other != claim) {
            place.add_warning(format!(
                "identity.claims has {} and {}, which share the header {name}: a key with both is answered 502; name a \
                 header for one under identity.claim_headers",
                quote_text(other),
                quote_text(claim)
            ));
        }
    }
}

/// What the names of all claims' headers begin with, in lower case.
pub(super) struct ClaimPrefix(pub(super) String);

impl FromText for ClaimPrefix {
    fn parse_text(text: &str) -> Result<Self, String> {
        let prefix = IdentityHeader::parse_text(text)?.0.as_str().to_owned();
        if !prefix.ends_with('-') || prefix.len() < 3 {
            return Err("should be some letters and a '-' at the end, as in \"X-Claim-\"".to_owned());
        }
        // SECURITY: a claim is named by whoever makes a key. With "Transfer-" for a prefix, one named "encoding" would frame
        // the request; with "X-User-" one named "id" would be a user to any backend that reads the usual name.
        let headers = IdentityHeaders::new(Settings::default());
        let reserved = RESERVED.split(' ').chain(RESERVED_STARTS.split(' '));
        let mut reserved = reserved.chain(headers.header_names().map(HeaderName::as_str));
        match reserved.find(|name| name.starts_with(&prefix)) {
            Some(name) => Err(format!("would let a claim set {name}, which has a meaning of its own")),
            None => Ok(Self(prefix)),
        }
    }

    fn format_text(&self) -> Option<String> {
        Some(self.0.clone())
    }
}

/// A header that may carry an identity: none that HTTP, a proxy or Keyward itself gives a meaning.
pub(super) struct IdentityHeader(pub(super) HeaderName);

impl FromText for IdentityHeader {
    fn parse_text(text: &str) -> Result<Self, String> {
        let PlainHeader { name, given } = PlainHeader::parse_text(text)?;
        let is_reserved = RESERVED.split(' ').any(|reserved| name == reserved)
            || RESERVED_STARTS.split(' ').any(|start| name.as_str().starts_with(start));
        match is_reserved {
            true => Err(format!("should be another name: {given} has a meaning of its own")),
            false => Ok(Self(name)),
        }
    }

    fn format_text(&self) -> Option<String> {
        Some(self.0.to_string())
    }
}

/// A header, and its name as it was written.
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
            "should be a header's name of letters, digits and '-' alone: backends read other characters in different ways"
                .to_owned()
        })
    }
}

const RESERVED: &str = "authorization baggage cache-control connection cookie date expect forwarded from host \
    http2-settings keep-alive last-event-id max-forwards origin pragma priority range referer set-cookie te traceparent \
    tracestate trailer transfer-encoding upgrade user-agent via www-authenticate x-forwarded x-real-ip x-request-id";

const RESERVED_STARTS: &str = "accept access-control- content- grpc- if- keyward- proxy- sec- x-forwarded-";
