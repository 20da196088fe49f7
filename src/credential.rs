//! Takes exactly one Bearer value from a request's headers (RFC 6750 section 2.1). Values that cannot be an API key are refused
//! here without asking Scalekit, in particular token ids (`apit_…`), which Scalekit would accept.

use std::fmt;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use ring::hmac;
use ring::rand::SystemRandom;

use crate::rejection::Rejection;
use crate::secret::Secret;

/// `[credential]`: the syntax of a key.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The characters of a key.
    pub alphabet: Alphabet,
    /// The shortest key, in characters.
    pub min_length: usize,
    /// The longest key, in characters.
    pub max_length: usize,
}

/// The characters that a key may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alphabet {
    /// `0-9A-Za-z`, what Scalekit issues (contract section 6).
    Base62,
    /// RFC 6750's `b64token`: letters, digits, `-._~+/`, and `=` at the end.
    Token68,
}

impl Default for Settings {
    fn default() -> Self {
        Self { alphabet: Alphabet::Base62, min_length: 20, max_length: 512 }
    }
}

/// An API key as the client presented it. It is a copy, so that the request's head need not stay in memory; the copy is
/// overwritten when its last clone is dropped.
#[derive(Clone)]
pub struct ApiKey(Arc<Secret>);

impl ApiKey {
    /// Removes `Authorization` and returns the key in it.
    ///
    /// # Errors
    /// `MissingCredential` without a Bearer value, `AmbiguousCredential` with more than one `Authorization`, `KeyIdPresented` if
    /// the value is the id of a key, `InvalidKey` if it cannot be a key for another reason.
    pub fn take_from(headers: &mut HeaderMap, settings: &Settings) -> Result<Self, Rejection> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let first = values.next().cloned();
        // SECURITY: with two values, Keyward and the upstream could each use a different one.
        let more = values.next().is_some();
        headers.remove(AUTHORIZATION);
        if more {
            return Err(Rejection::AmbiguousCredential);
        }
        let value = first.ok_or(Rejection::MissingCredential)?;
        let range = find_bearer_token(value.as_bytes()).ok_or(Rejection::MissingCredential)?;
        let token = value.as_bytes().get(range).unwrap_or_default();
        if is_key_id(token) {
            return Err(Rejection::KeyIdPresented);
        }
        let token = std::str::from_utf8(token).ok();
        token.and_then(|token| Self::parse(token, settings)).ok_or(Rejection::InvalidKey)
    }

    /// Parses a key that is not from a request, such as one on standard input. `None` if it cannot be a key.
    pub fn parse(text: &str, settings: &Settings) -> Option<Self> {
        settings.could_be_key(text.as_bytes()).then(|| Self(Arc::new(Secret::new(text))))
    }

    /// The key itself, only for the body of a call to Scalekit.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Finds the token in `Bearer <token>`: the scheme is case-insensitive (RFC 9110 section 11.1), and white space around the token
/// is ignored. `None` for another scheme, or without a token.
fn find_bearer_token(value: &[u8]) -> Option<std::ops::Range<usize>> {
    let space = value.iter().position(|&byte| byte == b' ')?;
    if !value[..space].eq_ignore_ascii_case(b"bearer") {
        return None;
    }
    let white = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = space + value[space..].iter().position(|byte| !white(byte))?;
    let end = value.iter().rposition(|byte| !white(byte))? + 1;
    Some(start..end)
}

impl Settings {
    fn could_be_key(&self, token: &[u8]) -> bool {
        let alphabet = match self.alphabet {
            Alphabet::Base62 => token.iter().all(u8::is_ascii_alphanumeric),
            Alphabet::Token68 => {
                let body = token.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1);
                let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
                token[..body].iter().all(allowed)
            }
        };
        // SECURITY: token ids are in lists, databases and logs, and ValidateToken accepts them in place of a key (contract
        // section 0). They are refused with any alphabet.
        alphabet && !is_key_id(token) && (self.min_length..=self.max_length).contains(&token.len())
    }
}

/// Whether this is the id of a key.
fn is_key_id(token: &[u8]) -> bool {
    token.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"apit_"))
}

/// A keyed digest of a key, which is remembered instead of the key: memory then holds no usable key, and nobody outside this
/// process can construct two keys with the same digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyDigest([u8; 16]);

/// Makes digests, with a secret that lives as long as the process.
pub struct Digester(hmac::Key);

impl Digester {
    /// Creates a random secret.
    ///
    /// # Errors
    /// When the system's random number generator fails.
    pub fn new() -> Result<Self, ring::error::Unspecified> {
        hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map(Self)
    }

    /// HMAC-SHA-256 of the key, truncated to 128 bits.
    pub fn digest(&self, key: &ApiKey) -> KeyDigest {
        let tag = hmac::sign(&self.0, key.expose().as_bytes());
        let mut digest = [0; 16];
        digest.copy_from_slice(&tag.as_ref()[..16]);
        KeyDigest(digest)
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const KEY: &str = "0123456789ABCDEFGHIJabcdefghij";

    #[track_caller]
    fn check(values: &[&[u8]], expected: Result<&str, Rejection>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        let taken = ApiKey::take_from(&mut headers, &Settings::default());
        assert!(headers.is_empty(), "Authorization is gone whatever the outcome");
        match (taken, expected) {
            (Ok(key), Ok(expected)) => assert_eq!(key.expose(), expected),
            (Err(rejection), Err(expected)) => assert_eq!(rejection.code(), expected.code()),
            (taken, expected) => panic!("{taken:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn bearer_scheme_ignores_case_and_spaces() {
        for scheme in ["Bearer ", "bearer ", "BEARER   ", "bEaReR \t"] {
            check(&[format!("{scheme}{KEY}").as_bytes()], Ok(KEY));
        }
        check(&[format!("Bearer {KEY} \t").as_bytes()], Ok(KEY));
    }

    #[test]
    fn absent_bearer_value_is_missing_credential() {
        let others: [&[u8]; 7] = [
            b"",
            b"Bearer",
            b"Bearer  ",
            b"Basic dTpw",
            b"Bearer\tabcdefghijklmnopqrstuvwxyz",
            b"Bearerx y",
            KEY.as_bytes(),
        ];
        for other in others {
            check(&[other], Err(Rejection::MissingCredential));
        }
        check(&[], Err(Rejection::MissingCredential));
    }

    #[test]
    fn duplicate_authorization_headers_are_ambiguous() {
        let value = format!("Bearer {KEY}");
        check(&[value.as_bytes(), value.as_bytes()], Err(Rejection::AmbiguousCredential));
        check(&[value.as_bytes(), b"Basic dTpw"], Err(Rejection::AmbiguousCredential));
    }

    #[test]
    fn malformed_key_is_invalid() {
        let long = "a".repeat(513);
        for token in [
            "short",
            &long,
            "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl",
            "0123456789ABCDEFGHIJ 0123456789",
            "0123456789ABCDEFGHIJ,Bearer",
            "\"0123456789ABCDEFGHIJ\"",
        ] {
            check(&[format!("Bearer {token}").as_bytes()], Err(Rejection::InvalidKey));
        }
        check(&[b"Bearer 0123456789ABCDEFGHIJ\xff\xfe"], Err(Rejection::InvalidKey));
        check(&[b"Bearer apit_123456789012345678901234"], Err(Rejection::KeyIdPresented));
    }

    #[test]
    fn token_id_is_refused_in_any_letter_case() {
        let settings = Settings { alphabet: Alphabet::Token68, ..Settings::default() };
        for id in ["apit_123456789012345678", "APIT_123456789012345678", "aPiT_123456789012345678"] {
            assert!(ApiKey::parse(id, &settings).is_none());
        }
        assert!(ApiKey::parse("abc-._~+/abcdefghijklmn==", &settings).is_some());
        assert!(ApiKey::parse("abc=abcdefghijklmnopqrst", &settings).is_none());
    }

    #[test]
    fn key_cannot_be_printed() {
        let key = ApiKey::parse(KEY, &Settings::default()).unwrap();
        assert!(!format!("{key:?}").contains(KEY));
        let digester = Digester::new().unwrap();
        assert_eq!(digester.digest(&key), digester.digest(&key));
        assert_ne!(Digester::new().unwrap().digest(&key), digester.digest(&key));
    }
}
