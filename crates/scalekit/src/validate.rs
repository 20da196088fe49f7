//! What a response to ValidateToken means. This is the only place that decides it, for both transports.
//!
//! | response | meaning |
//! | --- | --- |
//! | 200 with an organization, a `token_id` that is not what was presented, a `token_suffix` that is absent or the last 4 characters of the token, an `expiry` that is absent or in the future | [`Validation::Valid`] |
//! | any other 200 | [`Error::BrokenContract`] |
//! | 404 in JSON with code 5, but not a gateway's `"Not Found"` without details; gRPC code 5 | [`Validation::Invalid`]: unknown, expired or revoked |
//! | 400 in JSON with code 3; gRPC code 3 | [`Validation::Invalid`]: malformed |
//! | 404 and 400 of any other shape, other statuses below 500; gRPC code 12 | [`Error::WrongEndpoint`] |
//! | 401; gRPC code 16 | [`Error::Credentials`]: it speaks of the access token, never of the token presented |
//! | 403; gRPC code 7 | [`Error::Permission`] |
//! | 429; gRPC code 8 | [`Error::Throttled`] |
//! | 5xx, 499, no response; gRPC codes 1, 2, 4, 13, 14, 15 | an error of [`Class::Outage`](crate::error::Class::Outage) |
//!
//! Only the two lines of `Invalid` are definite and may be remembered. An error is never a verdict on the token.
//!
//! Sources: the descriptor of `scalekit.v1.tokens` documents 404 for "invalid or expired token"; the form of errors is the
//! documented one; how gateways answer unknown paths, and 400 for a malformed token, follow from grpc-gateway and from what
//! Scalekit's SDKs accept.

use jiff::Timestamp;

use crate::call::Reply;
use crate::error::{Error, Refusal};
use crate::status::Code;
use crate::token::Token;

/// What is known of a token after it was validated.
#[expect(
    clippy::large_enum_variant,
    reason = "it is taken apart at once, and a valid token is the usual case"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validation {
    /// It is live, and stands for this.
    Valid(Token),
    /// It is definitely not: unknown, expired, revoked or malformed.
    Invalid,
}

/// What was given to ValidateToken, which takes either.
#[derive(Clone, Copy)]
pub enum Presented<'a> {
    /// A token, from someone who has to prove that they hold it.
    Token(&'a str),
    /// The id of a token (`apit_…`), from someone who manages tokens.
    TokenId(&'a str),
}

/// What the id of a token begins with.
const ID_PREFIX: &[u8] = b"apit_";
/// The longest token that is worth a call. Known ones have fewer than 200 characters.
const MAX_TOKEN_CHARS: usize = 512;
const SUFFIX_CHARS: usize = 4;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// As long as tokens with a payload of 12 bytes.
const RANDOM_CHARS: usize = 77;

/// A token that nobody has, for a probe: where it is definitely invalid, everything between here and the token API works.
pub fn random_token() -> String {
    (0..RANDOM_CHARS).map(|_| char::from(BASE62[fastrand::usize(..BASE62.len())])).collect()
}

/// Whether a presented value can be a token at all: 1 to 512 visible ASCII characters that do not begin with `apit_`, in
/// any case of letters. Today's tokens are pure Base62, which is stricter, but not promised.
///
/// SECURITY: ValidateToken takes the id of a token for the token itself. Ids are no secrets, so one that is handed on
/// unseen would let in everybody who knows it.
pub fn is_token(presented: &str) -> bool {
    let begins_as_id = presented
        .as_bytes()
        .get(..ID_PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(ID_PREFIX));
    presented.len() <= MAX_TOKEN_CHARS && is_presentable(presented) && !begins_as_id
}

/// Whether it is visible ASCII, which can stand in a header or on a terminal.
pub(crate) fn is_presentable(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Says what the outcome of a [`Call::Validate`](crate::call::Call::Validate) means for what was presented, at the moment
/// `now`.
///
/// # Errors
/// Why nothing is known about the token; see the table above.
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

/// What in a token that is called valid contradicts that.
fn find_contradiction(presented: Presented<'_>, token: &Token, now: Timestamp) -> Option<&'static str> {
    if token.organization_id.is_empty() {
        return Some("a valid token without organization_id");
    }
    match presented {
        // SECURITY: an id is not a token, whatever the response says of it.
        Presented::Token(value) if token.token_id == value => {
            return Some("what was presented is a token id");
        }
        Presented::Token(value) => {
            let is_end_of_token = |suffix: &String| suffix.len() == SUFFIX_CHARS && value.ends_with(suffix);
            if token.token_suffix.as_ref().is_some_and(|suffix| !is_end_of_token(suffix)) {
                return Some("token_suffix is not the end of the key");
            }
        }
        // SECURITY: what is told of another token must not be taken for this one's.
        Presented::TokenId(id) if token.token_id != id => return Some("token_id is not the one asked for"),
        Presented::TokenId(_) => {}
    }
    if token.expiry.is_some_and(|expiry| expiry <= now) {
        return Some("an expired key called valid; compare the clocks");
    }
    None
}
