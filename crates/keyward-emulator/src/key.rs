//! The shape of what Scalekit hands out: keys in Base62 over Branca's layout, ids, access tokens. Their randomness
//! is fast, not strong: nothing that they open is real.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use jiff::Timestamp;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Version, time, nonce, ciphertext and tag. The plaintext of a real key has an unknown length; 12 bytes make 77
/// characters.
const BRANCA: usize = 1 + 4 + 24 + 12 + 16;

/// How token ids begin.
pub(crate) const ID_PREFIX: &str = "apit_";

/// A new key.
pub(crate) fn key(now: Timestamp) -> String {
    let mut bytes = [0; BRANCA];
    fastrand::fill(&mut bytes);
    bytes[0] = 0xBA;
    bytes[1..5].copy_from_slice(&u32::try_from(now.as_second()).unwrap_or(u32::MAX).to_be_bytes());
    base62(bytes)
}

/// The id of the n-th token: 18 digits, ever growing.
pub(crate) fn token_id(now: Timestamp, n: usize) -> String {
    format!("{ID_PREFIX}{}{n:05}", now.as_millisecond())
}

/// Whether this can be a key or a token id at all; what cannot is malformed rather than unknown.
pub(crate) fn is_well_formed(token: &str) -> bool {
    let digits = token.strip_prefix(ID_PREFIX).unwrap_or(token);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// The last four characters.
pub(crate) fn suffix(key: &str) -> &str {
    key.get(key.len().saturating_sub(4)..).unwrap_or(key)
}

/// A new access token: three parts like the real JWT, its claims readable, its signature nothing but noise.
pub(crate) fn access_token(client_id: &str, now: Timestamp, lifetime: u64, scopes: &[String]) -> String {
    let issued = now.as_second();
    let header = serde_json::json!({"alg": "RS256", "kid": "snk_000000000000000001", "typ": "JWT"});
    let claims = serde_json::json!({
        "client_id": client_id,
        "exp": issued.saturating_add_unsigned(lifetime),
        "iat": issued,
        "iss": "keyward-emulator",
        "jti": format!("tkn_{}", fastrand::u64(..)),
        "nbf": issued,
        "scopes": scopes,
        "sub": client_id,
    });
    let mut signature = [0; 32];
    fastrand::fill(&mut signature);
    let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    format!(
        "{}.{}.{}",
        part(header.to_string().as_bytes()),
        part(claims.to_string().as_bytes()),
        part(&signature)
    )
}

/// Long division of the bytes, read as one number, by 62.
fn base62(mut number: [u8; BRANCA]) -> String {
    let mut digits = Vec::with_capacity(80);
    while number.iter().any(|byte| *byte != 0) {
        let mut rest = 0;
        for byte in &mut number {
            let dividend = rest * 256 + usize::from(*byte);
            *byte = u8::try_from(dividend / 62).unwrap_or_default();
            rest = dividend % 62;
        }
        digits.push(char::from(ALPHABET[rest]));
    }
    digits.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_77_characters_of_base62() {
        for second in [0, 1, 1_764_000_000, i64::from(u32::MAX), 253_402_207_199] {
            let key = key(Timestamp::from_second(second).unwrap());
            assert_eq!(key.len(), 77, "{key}");
            assert!(key.bytes().all(|byte| ALPHABET.contains(&byte)), "{key}");
        }
    }

    #[test]
    fn base62_reads_the_bytes_as_one_number() {
        let mut number = [0; BRANCA];
        number[BRANCA - 2..].copy_from_slice(&[0x0f, 0x04]); // 62 * 62
        assert_eq!(base62(number), "100");
    }

    #[test]
    fn ids_and_base62_are_well_formed_and_all_else_is_not() {
        for (token, expected) in [
            ("abcXYZ019", true),
            ("apit_123456789012345", true),
            ("", false),
            ("apit_", false),
            ("a_b", false),
            ("a.b", false),
            ("a b", false),
            ("schlüssel", false),
        ] {
            assert_eq!(is_well_formed(token), expected, "{token:?}");
        }
    }
}
