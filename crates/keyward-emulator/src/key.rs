//! Keys, token ids and access tokens in the formats of Scalekit. The random generator is not cryptographic, as these protect
//! nothing.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use jiff::Timestamp;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The Branca format: version, time, nonce, ciphertext, tag. The length of the plaintext in real keys is not published;
/// 12 bytes give 77 characters.
const BRANCA_BYTES: usize = 1 + 4 + 24 + 12 + 16;

pub(crate) const ID_PREFIX: &str = "apit_";

pub(crate) fn generate_key(now: Timestamp) -> String {
    let mut bytes = [0; BRANCA_BYTES];
    fastrand::fill(&mut bytes);
    bytes[0] = 0xBA;
    bytes[1..5].copy_from_slice(&u32::try_from(now.as_second()).unwrap_or(u32::MAX).to_be_bytes());
    encode_base62(bytes)
}

/// The id of the n-th token: 18 digits, increasing.
pub(crate) fn new_token_id(now: Timestamp, n: usize) -> String {
    format!("{ID_PREFIX}{}{n:05}", now.as_millisecond())
}

/// Whether the text has the form of a key or token id. Scalekit refuses other texts as malformed instead of unknown.
pub(crate) fn is_well_formed(token: &str) -> bool {
    let digits = token.strip_prefix(ID_PREFIX).unwrap_or(token);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// The last four characters, by which Scalekit shows a key.
pub(crate) fn key_suffix(key: &str) -> &str {
    key.get(key.len().saturating_sub(4)..).unwrap_or(key)
}

/// An access token in the form of a JWT with valid claims and a random signature.
pub(crate) fn generate_access_token(
    client_id: &str,
    now: Timestamp,
    lifetime: u64,
    scopes: &[String],
) -> String {
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

/// Repeated division of the bytes, as one big-endian number, by 62.
fn encode_base62(mut number: [u8; BRANCA_BYTES]) -> String {
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
    fn key_is_77_characters_of_base62() {
        for second in [0, 1, 1_764_000_000, i64::from(u32::MAX), 253_402_207_199] {
            let key = generate_key(Timestamp::from_second(second).unwrap());
            assert_eq!(key.len(), 77, "{key}");
            assert!(key.bytes().all(|byte| ALPHABET.contains(&byte)), "{key}");
        }
    }

    #[test]
    fn base62_encodes_bytes_as_one_number() {
        let mut number = [0; BRANCA_BYTES];
        number[BRANCA_BYTES - 2..].copy_from_slice(&[0x0f, 0x04]); // 62 * 62
        assert_eq!(encode_base62(number), "100");
    }

    #[test]
    fn keys_and_token_ids_are_well_formed() {
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
