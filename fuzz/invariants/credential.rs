//! One `Authorization: Bearer` value is one key, byte for byte, or there is none; never a token id.
//!
//! Input: `base62` or `token68` and the least and the greatest length; then header lines.

use hyper::header::AUTHORIZATION;
use keyward::credential::{Alphabet, ApiKey, Settings};
use keyward::rejection::Rejection;

use super::NO_INPUT;
use super::lines::{head_and_rest, headers};

pub fn credential(data: &[u8]) -> &'static str {
    let (lines, _) = head_and_rest(data);
    let Some((first, lines)) = lines.split_first() else { return NO_INPUT };
    let Some(settings) = settings(first) else { return NO_INPUT };
    let mut headers = headers(lines.iter().copied());
    let sent: Vec<Vec<u8>> =
        headers.get_all(AUTHORIZATION).iter().map(|value| value.as_bytes().to_vec()).collect();
    let mut others = headers.clone();
    others.remove(AUTHORIZATION);

    let taken = ApiKey::take_from(&mut headers, &settings);
    assert_eq!(headers, others, "Authorization is gone, and nothing else");
    let [value] = &sent[..] else {
        return match taken {
            Err(Rejection::MissingCredential) if sent.is_empty() => "none",
            Err(Rejection::AmbiguousCredential) if sent.len() > 1 => "two",
            taken => panic!("{} values, and {taken:?}", sent.len()),
        };
    };
    let scheme = value.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
    let token = value.get(7..).unwrap_or_default();
    let token = token.trim_ascii();
    match taken {
        Err(Rejection::MissingCredential) => {
            assert!(!scheme || token.is_empty(), "a Bearer value is not seen");
            "none"
        }
        Err(Rejection::InvalidKey) => {
            assert!(scheme && !token.is_empty() && !could_be(token, &settings), "a key is refused");
            "no key"
        }
        Err(Rejection::KeyIdPresented) => {
            assert!(
                token.to_ascii_lowercase().starts_with(b"apit_"),
                "something else is taken for a key's id"
            );
            "no key"
        }
        Err(other) => panic!("{other:?}"),
        Ok(key) => {
            assert!(scheme && could_be(token, &settings), "what is no key is taken");
            assert_eq!(key.expose().as_bytes(), token, "the key is what was sent");
            assert!(!key.expose().to_ascii_lowercase().starts_with("apit_"), "a token id is no key");
            assert_eq!(format!("{key:?}"), "ApiKey(…)");
            "key"
        }
    }
}

fn settings(line: &[u8]) -> Option<Settings> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let alphabet = match words.next()? {
        "base62" => Alphabet::Base62,
        "token68" => Alphabet::Token68,
        _ => return None,
    };
    let (min_length, max_length) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    // The file has no shorter ones either.
    (min_length > 0).then_some(Settings { alphabet, min_length, max_length })
}

fn could_be(token: &[u8], settings: &Settings) -> bool {
    let Ok(text) = std::str::from_utf8(token) else { return false };
    let body = match settings.alphabet {
        Alphabet::Base62 => text,
        Alphabet::Token68 => text.trim_end_matches('='),
    };
    let more = if settings.alphabet == Alphabet::Token68 { "-._~+/" } else { "" };
    body.chars().all(|char| char.is_ascii_alphanumeric() || more.contains(char))
        && text.len() >= settings.min_length
        && text.len() <= settings.max_length
        && !text.to_ascii_lowercase().starts_with("apit_")
}
