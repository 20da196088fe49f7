//! What a token is, what is needed to make one, and what can be changed about it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::json;

/// Custom claims: free text by name. Names and values may hold any character, line breaks included, so neither is safe as
/// an HTTP header as it is. [`limits`](crate::limits) has the limits.
pub type Claims = BTreeMap<String, String>;

/// What Scalekit tells about a token: everything but the token itself (`scalekit.v1.tokens.Token`).
///
/// Reading takes absent, `null` and `""` for the same; writing gives `null` for what is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Token {
    /// Names the token (`apit_…`). It is no secret, and must never be accepted in place of the token. Only a response to
    /// a validation may leave it out, and then it is empty.
    #[serde(default, deserialize_with = "json::read_string")]
    pub token_id: String,
    /// The organization that the token belongs to; never empty in what this crate returns.
    #[serde(default, deserialize_with = "json::read_string")]
    pub organization_id: String,
    /// The customer's own id of that organization.
    #[serde(default, deserialize_with = "json::read_text")]
    pub organization_external_id: Option<String>,
    /// The user that the token belongs to; none for a token of the organization.
    #[serde(default, deserialize_with = "json::read_text")]
    pub user_id: Option<String>,
    /// The customer's own id of that user.
    #[serde(default, deserialize_with = "json::read_text")]
    pub user_external_id: Option<String>,
    /// The user's e-mail address. A value that is not text is taken for absent.
    #[serde(default, deserialize_with = "json::read_lenient_text")]
    pub email: Option<String>,
    /// The user's roles, where the environment uses roles.
    #[serde(default, deserialize_with = "json::read_or_default")]
    pub roles: Vec<String>,
    /// The claims. A value that is not a string is taken as its JSON text.
    #[serde(default, deserialize_with = "json::read_claims")]
    pub custom_claims: Claims,
    /// What the token is for. A value that is not text is taken for absent.
    #[serde(default, deserialize_with = "json::read_lenient_text")]
    pub description: Option<String>,
    /// The last 4 characters of the token.
    #[serde(default, deserialize_with = "json::read_text")]
    pub token_suffix: Option<String>,
    /// When the token was made. A value that is not a timestamp is taken for absent.
    #[serde(default, deserialize_with = "json::read_lenient_timestamp")]
    pub created_at: Option<Timestamp>,
    /// The first moment at which the token is no longer valid; `None`: never. The year 9999 is such a moment too.
    #[serde(default, deserialize_with = "json::read_timestamp")]
    pub expiry: Option<Timestamp>,
}

/// A token to be made (`scalekit.v1.tokens.CreateToken`). [`check`](Self::check) tests it against the limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NewToken {
    /// The organization that it is for (`org_…`).
    pub organization_id: String,
    /// A user of that organization; `None`: it speaks for the organization.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// At most 20 claims.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom_claims: Claims,
    /// When it stops being valid; `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiry: Option<Timestamp>,
    /// What it is for: at most 255 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A new token. Scalekit shows it this once.
#[derive(Clone, Debug)]
pub struct Created {
    /// The token itself: visible ASCII.
    pub token: SecretString,
    /// What can be told about it.
    pub info: Token,
}

/// What is to change about a live token. [`check`](Self::check) tests it against the limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TokenUpdate {
    /// All claims that the token is to have: they REPLACE the ones that it has. `None` keeps those, and so would an empty
    /// map: Scalekit cannot take a token's last claim away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_claims: Option<Claims>,
    /// `None` keeps the description, `""` removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Which page of an organization's live tokens. [`check`](Self::check) tests it against the limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// The organization.
    pub organization_id: String,
    /// Only this user's tokens.
    pub user_id: Option<String>,
    /// From 1 to 30; Scalekit takes 10 for `None`.
    pub page_size: Option<u8>,
    /// From an earlier page; `None`: the first page.
    pub page_token: Option<String>,
}

/// A page of an organization's live tokens. Their order is not documented.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Page {
    /// The tokens.
    #[serde(default, deserialize_with = "json::read_objects")]
    pub tokens: Vec<Token>,
    /// How many there are on all pages.
    #[serde(default, deserialize_with = "json::read_or_default")]
    pub total_count: i64,
    /// Names the next page.
    #[serde(default, deserialize_with = "json::read_text")]
    pub next_page_token: Option<String>,
    /// Names the previous page.
    #[serde(default, deserialize_with = "json::read_text")]
    pub prev_page_token: Option<String>,
}
