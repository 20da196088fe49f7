//! The identity of a key, and the headers that carry it to the upstream. A client can never set one of them, and a value from
//! Scalekit can never become anything but the value of its own header.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use crate::rejection::Rejection;

/// What Scalekit states about a valid key (contract section 2, `Token`). Empty strings there are `None` here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `organization_id`: visible ASCII, never empty.
    pub org_id: HeaderValue,
    /// `organization_external_id`: free text.
    pub org_external_id: Option<String>,
    /// `user_id`: visible ASCII, only for user-scoped keys.
    pub user_id: Option<HeaderValue>,
    /// `user_external_id`: free text.
    pub user_external_id: Option<String>,
    /// `roles`: each is free text.
    pub roles: Vec<String>,
    /// `token_id`: visible ASCII. An identifier, not a secret.
    pub token_id: Option<HeaderValue>,
    /// `custom_claims`: names and values are free text.
    pub claims: BTreeMap<String, String>,
    /// `expiry`; `None` if the key never expires.
    pub expiry: Option<SystemTime>,
}

/// Parses an id for its header, in which ids are never encoded. `None` if it is empty or not visible ASCII.
pub fn parse_id(value: &str) -> Option<HeaderValue> {
    let visible = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic());
    visible.then(|| HeaderValue::from_str(value).ok()).flatten()
}

/// `[identity]`: the names of the headers and the claims that are forwarded.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Default `X-Org-Id`.
    pub org_id: HeaderName,
    /// Default `X-Org-External-Id`.
    pub org_external_id: HeaderName,
    /// Default `X-User-Id`.
    pub user_id: HeaderName,
    /// Default `X-User-External-Id`.
    pub user_external_id: HeaderName,
    /// Default `X-Roles`.
    pub roles: HeaderName,
    /// Default `X-Token-Id`.
    pub token_id: HeaderName,
    /// Default `x-claim-`, in lower case.
    pub claim_prefix: String,
    /// The claims that are forwarded; `None` for all.
    pub claims: Option<Vec<String>>,
    /// Headers given to single claims; each name begins with `claim_prefix`.
    pub claim_headers: BTreeMap<String, HeaderName>,
    /// A header for all forwarded claims together: a JSON object in base64url without padding.
    pub claims_header: Option<HeaderName>,
    /// Maximum size of all names and values together, in bytes.
    pub max_bytes: usize,
}

const NAMES: [HeaderName; 6] = [
    HeaderName::from_static("x-org-id"),
    HeaderName::from_static("x-org-external-id"),
    HeaderName::from_static("x-user-id"),
    HeaderName::from_static("x-user-external-id"),
    HeaderName::from_static("x-roles"),
    HeaderName::from_static("x-token-id"),
];

/// The default of `claim_prefix`.
pub const CLAIM_PREFIX: &str = "x-claim-";

impl Default for Settings {
    fn default() -> Self {
        let [org_id, org_external_id, user_id, user_external_id, roles, token_id] = NAMES;
        Self {
            org_id,
            org_external_id,
            user_id,
            user_external_id,
            roles,
            token_id,
            claim_prefix: CLAIM_PREFIX.to_owned(),
            claims: None,
            claim_headers: BTreeMap::new(),
            claims_header: None,
            max_bytes: 8 * 1024,
        }
    }
}

impl Settings {
    /// The names of all headers but those of claims.
    pub fn header_names(&self) -> [&HeaderName; 6] {
        [
            &self.org_id,
            &self.org_external_id,
            &self.user_id,
            &self.user_external_id,
            &self.roles,
            &self.token_id,
        ]
    }
}

/// The identity headers: removed from every request, and set from its identity.
#[derive(Debug)]
pub struct IdentityHeaders {
    settings: Settings,
    names: Vec<Box<[u8]>>,
    prefixes: Vec<Box<[u8]>>,
}

/// Why the headers cannot carry an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Names and values exceed `max_bytes`.
    TooLarge,
    /// Two claims of the key would share a header.
    SharedHeader {
        /// The header.
        header: HeaderName,
        /// The names of the claims, in order; at least two.
        claims: Vec<String>,
    },
}

impl From<Misfit> for Rejection {
    fn from(misfit: Misfit) -> Self {
        match misfit {
            Misfit::TooLarge => Self::IdentityTooLarge,
            Misfit::SharedHeader { .. } => Self::AmbiguousIdentity,
        }
    }
}

impl IdentityHeaders {
    /// Owns the configured names and always also the default ones.
    pub fn new(settings: Settings) -> Self {
        let configured = settings.header_names().into_iter().chain(&settings.claims_header);
        let mut names: Vec<Box<[u8]>> =
            NAMES.iter().chain(configured).map(|name| fold_name(name.as_str()).collect()).collect();
        names.sort();
        names.dedup();
        let mut prefixes: Vec<Box<[u8]>> = vec![fold_name(CLAIM_PREFIX).collect()];
        prefixes.push(fold_name(&settings.claim_prefix).collect());
        prefixes.dedup();
        Self { settings, names, prefixes }
    }

    /// Whether the upstream could read this name as that of an identity header. CGI, WSGI, PHP and others replace every character
    /// that is not a letter or digit by the same one, so that `X_Org.Id` is `X-Org-Id` to them.
    pub fn owns_name(&self, name: &str) -> bool {
        let folds_to = |owned: &[u8], name: &str| fold_name(name).eq(owned.iter().copied());
        self.names.iter().any(|owned| owned.len() == name.len() && folds_to(owned, name))
            || self.prefixes.iter().any(|prefix| {
                // SECURITY: `X-Claim` itself is included, as an upstream may trim the separator.
                name.len() >= prefix.len() - 1
                    && fold_name(name).take(prefix.len()).eq(prefix.iter().copied().take(name.len()))
            })
    }

    /// The names that are set from an identity, whatever its claims are.
    pub fn fixed_names(&self) -> impl Iterator<Item = &HeaderName> {
        self.settings.header_names().into_iter().chain(&self.settings.claims_header)
    }

    /// Removes every identity header from headers or trailers, in any spelling. Returns the names removed.
    pub fn strip(&self, headers: &mut HeaderMap) -> Vec<HeaderName> {
        // `keys` yields each name once. Usually none is owned, and nothing is allocated.
        let owned: Vec<HeaderName> =
            headers.keys().filter(|name| self.owns_name(name.as_str())).cloned().collect();
        for name in &owned {
            headers.remove(name);
        }
        owned
    }

    /// Sets the identity. `headers` must have been stripped.
    ///
    /// # Errors
    /// When the identity is too large, or two claims would share a header. An identity is never cut.
    pub fn set(&self, identity: &Identity, headers: &mut HeaderMap) -> Result<(), Misfit> {
        let settings = &self.settings;
        let claims = self.select_claims(&identity.claims)?;
        let mut left = settings.max_bytes;
        let mut insert = |name: &HeaderName, value: HeaderValue| {
            left = left.checked_sub(name.as_str().len() + value.len()).ok_or(Misfit::TooLarge)?;
            headers.insert(name, value);
            Ok(())
        };
        insert(&settings.org_id, identity.org_id.clone())?;
        if let Some(id) = &identity.user_id {
            insert(&settings.user_id, id.clone())?;
        }
        if let Some(id) = &identity.token_id {
            insert(&settings.token_id, id.clone())?;
        }
        if let Some(text) = &identity.org_external_id {
            insert(&settings.org_external_id, encode_text(text)?)?;
        }
        if let Some(text) = &identity.user_external_id {
            insert(&settings.user_external_id, encode_text(text)?)?;
        }
        if !identity.roles.is_empty() {
            insert(&settings.roles, join_roles(&identity.roles)?)?;
        }
        for (name, value) in claims {
            insert(&name, encode_text(value)?)?;
        }
        if let Some(name) = &settings.claims_header {
            insert(name, self.encode_claims(&identity.claims)?)?;
        }
        Ok(())
    }

    /// All forwarded claims as a JSON object in base64url (RFC 4648 section 5) without padding, from which every byte of every name
    /// and value can be restored.
    fn encode_claims(&self, claims: &BTreeMap<String, String>) -> Result<HeaderValue, Misfit> {
        let forwarded: BTreeMap<_, _> = claims.iter().filter(|(name, _)| self.forwards_claim(name)).collect();
        // A map of strings always serializes, and base64url is visible ASCII.
        let json = serde_json::to_vec(&forwarded).unwrap_or_default();
        HeaderValue::try_from(BASE64_URL_SAFE_NO_PAD.encode(json)).map_err(|_| Misfit::TooLarge)
    }

    fn forwards_claim(&self, name: &String) -> bool {
        self.settings.claims.as_ref().is_none_or(|only| only.contains(name))
    }

    /// The claims to forward, each with a header of its own.
    fn select_claims<'a>(
        &self,
        claims: &'a BTreeMap<String, String>,
    ) -> Result<Vec<(HeaderName, &'a str)>, Misfit> {
        let chosen = |name: &String| self.forwards_claim(name);
        let named: Vec<(HeaderName, &str)> = claims
            .iter()
            .filter(|(name, _)| chosen(name))
            .map(|(name, value)| Some((self.claim_header(name)?, value.as_str())))
            .collect::<Option<_>>()
            .ok_or(Misfit::TooLarge)?;
        // SECURITY: if both were left out, adding a claim could remove another claim that restricts the key.
        let shared =
            named.iter().enumerate().find(|(at, (name, _))| named[..*at].iter().any(|(own, _)| own == name));
        match shared {
            None => Ok(named),
            Some((_, (header, _))) => {
                let shares =
                    |name: &&String| chosen(name) && self.claim_header(name).as_ref() == Some(header);
                let claims = claims.keys().filter(shares).cloned().collect();
                Err(Misfit::SharedHeader { header: header.clone(), claims })
            }
        }
    }

    /// The header of a claim. `None` only for a name that is too long for HTTP, which Scalekit does not allow.
    pub fn claim_header(&self, claim: &str) -> Option<HeaderName> {
        if let Some(name) = self.settings.claim_headers.get(claim) {
            return Some(name.clone());
        }
        let mut name = self.settings.claim_prefix.clone();
        name.extend(
            claim.chars().map(
                |char| {
                    if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '-' }
                },
            ),
        );
        HeaderName::try_from(name).ok()
    }
}

fn fold_name(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' })
}

fn join_roles(roles: &[String]) -> Result<HeaderValue, Misfit> {
    let mut value = String::new();
    for (index, role) in roles.iter().enumerate() {
        if index > 0 {
            value.push(',');
        }
        push_encoded(role, true, &mut value);
    }
    HeaderValue::try_from(value).map_err(|_| Misfit::TooLarge)
}

/// Encodes free text as a header value from which one percent-decoding restores the text. The error cannot happen, because
/// `push_encoded` writes printable ASCII only.
fn encode_text(text: &str) -> Result<HeaderValue, Misfit> {
    let mut value = String::with_capacity(text.len());
    push_encoded(text, false, &mut value);
    HeaderValue::try_from(value).map_err(|_| Misfit::TooLarge)
}

/// Percent-encodes everything but printable ASCII, and also `%`, spaces at either end and, in a list, commas.
fn push_encoded(text: &str, in_list: bool, out: &mut String) {
    let bytes = text.as_bytes();
    let first = bytes.iter().position(|&byte| byte != b' ').unwrap_or(bytes.len());
    let last = bytes.iter().rposition(|&byte| byte != b' ').unwrap_or(0);
    for (index, &byte) in bytes.iter().enumerate() {
        let plain = match byte {
            b' ' => (first..last).contains(&index),
            b'%' => false,
            b',' => !in_list,
            _ => byte.is_ascii_graphic(),
        };
        if plain {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            org_id: HeaderValue::from_static("org_1"),
            org_external_id: None,
            user_id: None,
            user_external_id: None,
            roles: vec![],
            token_id: parse_id("apit_1"),
            claims: BTreeMap::new(),
            expiry: None,
        }
    }

    fn headers() -> IdentityHeaders {
        IdentityHeaders::new(Settings::default())
    }

    #[test]
    fn claims_header_has_forwarded_claims_as_base64url_json() {
        let settings = Settings {
            claims_header: Some(HeaderName::from_static("x-claims")),
            claims: Some(vec!["Team 1".to_owned(), "ü".to_owned()]),
            ..Settings::default()
        };
        let (headers, mut map) = (IdentityHeaders::new(settings), HeaderMap::new());
        assert!(headers.owns_name("X_Claims"));
        let claims = [("Team 1", "a\r\nb"), ("ü", "\"é"), ("secret", "x")];
        let claims = claims.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        headers.set(&Identity { claims, ..identity() }, &mut map).unwrap();
        let json = BASE64_URL_SAFE_NO_PAD.decode(&map["x-claims"]).unwrap();
        assert_eq!(json, r#"{"Team 1":"a\r\nb","ü":"\"é"}"#.as_bytes());
        headers.set(&identity(), &mut map).unwrap();
        assert_eq!(map["x-claims"], "e30", "an empty object");
    }

    #[test]
    fn foldable_spellings_of_identity_headers_are_owned() {
        let headers = headers();
        for separator in "-_.!#$%&'*+^`|~".chars() {
            for name in [
                "x-org-id",
                "X-ORG-EXTERNAL-ID",
                "x-user-id",
                "X-Roles",
                "x-token-id",
                "x-claim-team",
                "x-claim-",
            ] {
                let name = name.replace('-', &separator.to_string());
                assert!(headers.owns_name(&name), "{name}");
            }
        }
        assert!(headers.owns_name("x-claim"));
        for name in
            ["x-org", "x-org-idx", "xx-org-id", "x-claims", "x-clai", "authorization", "x-role", "xorgid", ""]
        {
            assert!(!headers.owns_name(name), "{name}");
        }
    }

    #[test]
    fn renamed_and_default_headers_are_owned() {
        let headers = IdentityHeaders::new(Settings {
            org_id: HeaderName::from_static("x-tenant"),
            claim_prefix: "x-key-".to_owned(),
            ..Settings::default()
        });
        for name in ["x-tenant", "x_tenant", "x-org-id", "x-key-team", "x-claim-team"] {
            assert!(headers.owns_name(name), "{name}");
        }
    }

    #[test]
    fn strip_removes_all_owned_headers_only() {
        let mut map = HeaderMap::new();
        for name in ["x-org-id", "x-org-id", "x_org_id", "x-claim-admin", "accept"] {
            map.append(HeaderName::from_static(name), HeaderValue::from_static("forged"));
        }
        assert_eq!(headers().strip(&mut map).len(), 3);
        assert_eq!(map.keys().collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn absent_identity_fields_set_no_header() {
        let mut map = HeaderMap::new();
        assert_eq!(headers().set(&identity(), &mut map), Ok(()));
        let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["x-org-id", "x-token-id"]);
    }

    #[track_caller]
    fn check_encoding(text: &str, expected: &str) {
        let value = encode_text(text).unwrap();
        assert_eq!(value, expected);
        let back = percent_encoding::percent_decode(value.as_bytes()).decode_utf8().unwrap();
        assert_eq!(back, text, "one percent-decode gives the text back");
    }

    #[test]
    fn header_values_decode_to_original() {
        check_encoding("plain text, with (marks)", "plain text, with (marks)");
        check_encoding("100%", "100%25");
        check_encoding("%41", "%2541");
        check_encoding(" a  b ", "%20a  b%20");
        check_encoding("a", "a");
        check_encoding("a b", "a b");
        check_encoding("   ", "%20%20%20");
        check_encoding("", "");
        check_encoding("a\r\nX-Org-Id: evil\0\t\u{7f}", "a%0D%0AX-Org-Id: evil%00%09%7F");
        check_encoding("zürich", "z%C3%BCrich");
    }

    #[test]
    fn roles_are_joined_with_encoded_commas() {
        let roles = ["admin".to_owned(), "read,write".to_owned(), " x ".to_owned()];
        assert_eq!(join_roles(&roles).unwrap(), "admin,read%2Cwrite,%20x%20");
    }

    #[test]
    fn claims_sharing_a_header_need_names() {
        let claims = [("team", "a"), ("Team", "b"), ("te am", "c"), ("plan", "d")];
        let identity = Identity {
            claims: claims.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..identity()
        };
        let mut map = HeaderMap::new();
        let shared = Misfit::SharedHeader {
            header: HeaderName::from_static("x-claim-team"),
            claims: vec!["Team".to_owned(), "team".to_owned()],
        };
        assert_eq!(headers().set(&identity, &mut map), Err(shared));
        assert!(map.is_empty());

        let only =
            Settings { claims: Some(vec!["team".to_owned(), "plan".to_owned()]), ..Settings::default() };
        assert_eq!(IdentityHeaders::new(only).set(&identity, &mut map), Ok(()));
        assert_eq!(map["x-claim-team"], "a", "a claim that is not passed on takes nothing away");

        let named = IdentityHeaders::new(Settings {
            claim_headers: [("Team".to_owned(), HeaderName::from_static("x-claim-big-team"))].into(),
            ..Settings::default()
        });
        let mut map = HeaderMap::new();
        assert_eq!(named.set(&identity, &mut map), Ok(()));
        assert_eq!(
            (&map["x-claim-team"], &map["x-claim-big-team"]),
            (&"a".parse().unwrap(), &"b".parse().unwrap())
        );
    }

    #[test]
    fn claim_header_always_has_its_prefix() {
        for name in ["x-org-id", "\r\nx-org-id: evil", "", "ä", "a:b", "../org"] {
            let header = headers().claim_header(name).unwrap();
            assert!(header.as_str().starts_with(CLAIM_PREFIX), "{header}");
        }
    }

    #[test]
    fn oversized_identity_is_refused_not_truncated() {
        let identity = Identity { claims: [("a".to_owned(), "x".repeat(9000))].into(), ..identity() };
        assert_eq!(headers().set(&identity, &mut HeaderMap::new()), Err(Misfit::TooLarge));
        let identity = Identity { claims: [("x".repeat(70_000), "a".to_owned())].into(), ..identity };
        assert_eq!(headers().set(&identity, &mut HeaderMap::new()), Err(Misfit::TooLarge));
    }

    #[test]
    fn ids_must_be_visible_ascii() {
        assert_eq!(parse_id("org_1").unwrap(), "org_1");
        for bad in ["", "org 1", "org\r\n", "örg", "org\u{7f}"] {
            assert!(parse_id(bad).is_none(), "{bad:?}");
        }
    }
}
