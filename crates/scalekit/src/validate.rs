//! Interprets responses to ValidateToken, for both transports.
//!
//! | response | meaning |
//! | --- | --- |
//! | 200 with an organization, a `token_id` that is not the presented value, a `token_suffix` that is absent or the last 4 characters of the token, an `expiry` that is absent or in the future | [`Validation::Valid`] |
//! | any other 200 | [`Error::BrokenContract`] |
//! | 404 in JSON with code 5, but not a gateway's `"Not Found"` without details; gRPC code 5 | [`Validation::Invalid`]: unknown, expired or revoked |
//! | 400 in JSON with code 3; gRPC code 3 | [`Validation::Invalid`]: malformed |
//! | 404 and 400 of any other shape, other statuses below 500; gRPC code 12 | [`Error::WrongEndpoint`] |
//! | 401; gRPC code 16 | [`Error::Credentials`]: it is about the access token, never about the presented token |
//! | 403; gRPC code 7 | [`Error::Permission`] |
//! | 429; gRPC code 8 | [`Error::Throttled`] |
//! | 5xx, 499, no response; gRPC codes 1, 2, 4, 13, 14, 15 | an error of [`Class::Outage`](crate::error::Class::Outage) |
//!
//! Only the two lines of `Invalid` are definite and may be remembered. An error is never a verdict.
//!
//! Sources: the descriptor of `scalekit.v1.tokens` documents 404 for "invalid or expired token", and the form of errors is
//! documented. Responses of gateways for unknown paths, and 400 for a malformed token, follow from grpc-gateway and from what
//! Scalekit's SDKs accept.

use jiff::Timestamp;

use crate::call::Reply;
use crate::error::{Error, Refusal};
use crate::status::Code;
use crate::token::Token;

/// The verdict on a token.
#[expect(
    clippy::large_enum_variant,
    reason = "it is taken apart at once, and a valid token is the usual case"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validation {
    /// It is live, with these properties.
    Valid(Token),
    /// It is definitely invalid: unknown, expired, revoked or malformed.
    Invalid,
}

/// The value given to ValidateToken, which accepts either.
#[derive(Clone, Copy)]
pub enum Presented<'a> {
    /// A token, from a client that must prove that it has it.
    Token(&'a str),
    /// The id of a token (`apit_…`), for the management of tokens.
    TokenId(&'a str),
}

/// The prefix of token ids.
const ID_PREFIX: &[u8] = b"apit_";
/// Maximum length of a token. Known tokens have fewer than 200 characters.
const MAX_TOKEN_CHARS: usize = 512;
const SUFFIX_CHARS: usize = 4;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The length of a token with a payload of 12 bytes.
const RANDOM_CHARS: usize = 77;

/// Generates a random token for a probe: if the verdict is "invalid", the connection to the token API works.
pub fn random_token() -> String {
    (0..RANDOM_CHARS).map(|_| char::from(BASE62[fastrand::usize(..BASE62.len())])).collect()
}

/// Whether a value can be a token: 1 to 512 visible ASCII characters that do not begin with `apit_`, in any letter case. Current
/// tokens are Base62, but that is not documented.
///
/// SECURITY: ValidateToken accepts the id of a token in place of the token. Ids are not secret, so forwarding one would admit
/// everybody who knows it.
pub fn is_token(presented: &str) -> bool {
    let begins_as_id = presented
        .as_bytes()
        .get(..ID_PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(ID_PREFIX));
    presented.len() <= MAX_TOKEN_CHARS && is_presentable(presented) && !begins_as_id
}

/// Whether it is visible ASCII, which is safe in headers and on terminals.
pub(crate) fn is_presentable(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Interprets the outcome of a [`Call::Validate`](crate::call::Call::Validate) for the presented value at the time `now`.
///
/// # Errors
/// Why there is no verdict; see the table above.
pub fn interpret_outcome(
    presented: Presented<'_>,
    outcome: Result<Reply, Error>,
    now: Timestamp,
) -> Result<Validation, Error> {
    match outcome {
        Ok(Reply::Token(token)) => match find_contradiction(presented, &token, now) {
            None => Ok(Validation::Valid(token)),
            Some(contradiction) => Err(Error::BrokenContract(contradiction)),
        },
        Ok(_) => Err(Error::BrokenContract("the reply is to another call")),
        Err(Error::Refused(Refusal { code: Code::NotFound | Code::InvalidArgument, .. })) => {
            Ok(Validation::Invalid)
        }
        Err(Error::Refused(refusal)) => {
            Err(Error::WrongEndpoint(format!("code {} to a validation", refusal.code.number())))
        }
        Err(error) => Err(error),
    }
}

/// Finds a contradiction in the response for a token that is said to be valid.
fn find_contradiction(presented: Presented<'_>, token: &Token, now: Timestamp) -> Option<&'static str> {
    if token.organization_id.is_empty() {
        return Some("a valid token without organization_id");
    }
    match presented {
        // SECURITY: an id is not a token, even if the response says that it is valid.
        Presented::Token(value) if token.token_id == value => {
            return Some("what was presented is a token id");
        }
        Presented::Token(value) => {
            let is_end_of_token = |suffix: &String| suffix.len() == SUFFIX_CHARS && value.ends_with(suffix);
            if token.token_suffix.as_ref().is_some_and(|suffix| !is_end_of_token(suffix)) {
                return Some("token_suffix is not the end of the key");
            }
        }
        // SECURITY: the properties of another token must not be used for this one.
        Presented::TokenId(id) if token.token_id != id => return Some("token_id is not the one asked for"),
        Presented::TokenId(_) => {}
    }
    if token.expiry.is_some_and(|expiry| expiry <= now) {
        return Some("an expired key is said to be valid; compare the clocks");
    }
    None
}
