//! No header of a caller's that a backend could read as one of ours survives, and ours carry what Scalekit said: printable
//! ASCII that one percent-decode gives back, within the limit, or none at all.
//!
//! Input: `default`, `renamed` or `small`; then header lines, and lines of the identity as `org=…`, `claim.team=…`.

use std::collections::BTreeMap;

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use keyward::identity::{Identity, IdentityHeaders, Misfit, Settings, parse_id};

use super::NO_INPUT;
use super::lines::{cut, decoded, decoded_text, head_and_rest, headers};
use super::naive::folded;

pub fn identity_headers(data: &[u8]) -> &'static str {
    let (lines, _) = head_and_rest(data);
    let Some((first, lines)) = lines.split_first() else { return NO_INPUT };
    let Some(settings) = settings(first) else { return NO_INPUT };
    let Some(identity) = identity(lines) else { return NO_INPUT };
    let sent = headers(lines.iter().copied());
    let ours = IdentityHeaders::new(settings.clone());

    let mut map = sent.clone();
    ours.strip(&mut map);
    let foreign = |name: &HeaderName| !is_owned(name.as_str(), &settings);
    let kept: HeaderMap = sent
        .iter()
        .filter(|(name, _)| foreign(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    assert_eq!(map, kept, "what a backend could read as ours is gone, and nothing else");

    let (expected, shared) = expected(&identity, &settings);
    let outcome = ours.set(&identity, &mut map);
    let set: HeaderMap = map
        .iter()
        .filter(|(name, _)| !foreign(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let total: usize = set.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    assert!(total <= settings.max_bytes, "{total} bytes");
    match outcome {
        Err(Misfit::SharedHeader { header, claims }) => {
            assert_eq!(shared.get(header.as_str()), Some(&claims), "the claims that meet are named");
            assert!(set.is_empty(), "nothing is set");
            return "shared";
        }
        Err(Misfit::TooLarge) => {
            let least: usize = expected.iter().map(|(name, text)| name.len() + text.len()).sum();
            let most: usize = expected.iter().map(|(name, text)| name.len() + 3 * text.len()).sum();
            assert!(most > settings.max_bytes, "at least {least} and at most {most} bytes are too many");
            return "too large";
        }
        Ok(()) => assert_eq!(shared, BTreeMap::new()),
    }
    assert_eq!(set.len(), expected.len(), "{set:?} is {expected:?}");
    for (name, text) in &expected {
        let value = set.get(name).unwrap_or_else(|| panic!("{name} is missing")).as_bytes();
        assert!(value.iter().all(|byte| (b' '..=b'~').contains(byte)), "{name} is printable");
        assert_eq!(value.trim_ascii(), value, "no server takes anything off its ends");
        if *name == settings.roles.as_str() {
            let roles: Vec<String> = value.split(|&byte| byte == b',').map(decoded_text).collect();
            assert_eq!(roles, identity.roles, "roles are told apart");
        } else if [&settings.org_id, &settings.user_id, &settings.token_id]
            .into_iter()
            .any(|id| id.as_str() == name)
        {
            assert_eq!(value, text.as_bytes(), "an id is never encoded");
        } else {
            assert_eq!(decoded(value), text.as_bytes(), "one decode of {name} gives the text back");
        }
    }
    "set"
}

fn settings(line: &[u8]) -> Option<Settings> {
    let name = HeaderName::from_static;
    match line {
        b"default" => Some(Settings::default()),
        b"small" => Some(Settings { max_bytes: 64, ..Settings::default() }),
        b"renamed" => Some(Settings {
            org_id: name("x-tenant"),
            roles: name("x-may"),
            claim_prefix: "x-key-".to_owned(),
            claims: Some(["team", "Team", "te am", "plan", ""].map(str::to_owned).into()),
            claim_headers: [("Team".to_owned(), name("x-key-big-team"))].into(),
            ..Settings::default()
        }),
        _ => None,
    }
}

/// What the reading of an answer makes of it: no empty texts but those of claims.
fn identity(lines: &[&[u8]]) -> Option<Identity> {
    let pairs: Vec<_> = lines.iter().filter_map(|line| cut(line, b"=")).collect();
    let all = |key: &[u8]| -> Vec<String> {
        pairs
            .iter()
            .filter(|pair| pair.0 == key)
            .map(|pair| decoded_text(pair.1))
            .filter(|text| !text.is_empty())
            .collect()
    };
    let one = |key: &[u8]| all(key).into_iter().next();
    let claim = |(key, value): &(&[u8], &[u8])| {
        Some((decoded_text(key.strip_prefix(b"claim.")?), decoded_text(value)))
    };
    Some(Identity {
        org_id: parse_id(&one(b"org")?)?,
        org_external_id: one(b"org_external"),
        user_id: one(b"user").and_then(|text| parse_id(&text)),
        user_external_id: one(b"user_external"),
        roles: all(b"role"),
        token_id: one(b"token").and_then(|text| parse_id(&text)),
        claims: pairs.iter().filter_map(claim).collect(),
        expiry: None,
    })
}

fn is_owned(name: &str, settings: &Settings) -> bool {
    let default = Settings::default();
    [&default, settings].into_iter().any(|settings| {
        let names = [
            &settings.org_id,
            &settings.org_external_id,
            &settings.user_id,
            &settings.user_external_id,
            &settings.roles,
            &settings.token_id,
        ];
        let (name, prefix) = (folded(name), folded(&settings.claim_prefix));
        names.into_iter().any(|own| folded(own.as_str()) == name)
            || name.starts_with(&prefix)
            || name == prefix.trim_end_matches('-')
    })
}

/// Which headers are to be set, and to what before encoding; and which claims meet in one.
fn expected(
    identity: &Identity,
    settings: &Settings,
) -> (BTreeMap<String, String>, BTreeMap<String, Vec<String>>) {
    let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
    let roles = (!identity.roles.is_empty()).then(|| identity.roles.join(","));
    let fixed = [
        (&settings.org_id, Some(text(&identity.org_id))),
        (&settings.org_external_id, identity.org_external_id.clone()),
        (&settings.user_id, identity.user_id.as_ref().map(text)),
        (&settings.user_external_id, identity.user_external_id.clone()),
        (&settings.roles, roles),
        (&settings.token_id, identity.token_id.as_ref().map(text)),
    ];
    let fixed = fixed.into_iter().filter_map(|(name, text)| Some((name.to_string(), text?)));
    let mut expected: BTreeMap<String, String> = fixed.collect();

    let mut by_header: BTreeMap<String, Vec<(&String, &String)>> = BTreeMap::new();
    for (claim, value) in &identity.claims {
        let given = settings.claim_headers.get(claim).map(ToString::to_string);
        let header = given.unwrap_or_else(|| format!("{}{}", settings.claim_prefix, folded(claim)));
        if settings.claims.as_ref().is_none_or(|claims| claims.contains(claim)) && header.len() < 1 << 16 {
            by_header.entry(header).or_default().push((claim, value));
        }
    }
    let mut shared = BTreeMap::new();
    for (header, claims) in by_header {
        match claims[..] {
            [(_, value)] => {
                assert_eq!(expected.insert(header, value.clone()), None, "a claim is no core header")
            }
            _ => {
                shared.insert(header, claims.into_iter().map(|(claim, _)| claim.clone()).collect());
            }
        }
    }
    (expected, shared)
}
