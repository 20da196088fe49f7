//! Tokens, and the data to create, change and list them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::json;

/// Custom claims: free text by name. Names and values may contain any character, including line breaks, so neither can be an HTTP
/// header without encoding. [`limits`](crate::limits) has the limits.
pub type Claims = BTreeMap<String, String>;

/// The properties of a token, without the token itself (`scalekit.v1.tokens.Token`).
///
/// Absent, `null` and `""` are equivalent when it is deserialized; absent values are serialized as `null`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Token {
    /// The id of the token (`apit_…`). It is not secret, and must never be accepted in place of the token. It is empty if the
    /// response to a validation omits it.
    #[serde(default, deserialize_with = "json::read_string")]
    pub token_id: String,
    /// The organization that the token belongs to; never empty in what this crate returns.
    #[serde(default, deserialize_with = "json::read_string")]
    pub organization_id: String,
    /// The customer's own id of that organization.
    #[serde(default, deserialize_with = "json::read_text")]
    pub organization_external_id: Option<String>,
    /// The user that the token belongs to; `None` for a token of the organization.
    #[serde(default, deserialize_with = "json::read_text")]
    pub user_id: Option<String>,
    /// The customer's own id of that user.
    #[serde(default, deserialize_with = "json::read_text")]
    pub user_external_id: Option<String>,
    /// The user's e-mail address. A value that is not text is ignored.
    #[serde(default, deserialize_with = "json::read_lenient_text")]
    pub email: Option<String>,
    /// The user's roles, if the environment uses roles.
    #[serde(default, deserialize_with = "json::read_or_default")]
    pub roles: Vec<String>,
    /// The claims. A value that is not a string is converted to its JSON text.
    #[serde(default, deserialize_with = "json::read_claims")]
    pub custom_claims: Claims,
    /// What the token is for. A value that is not text is ignored.
    #[serde(default, deserialize_with = "json::read_lenient_text")]
    pub description: Option<String>,
    /// The last 4 characters of the token.
    #[serde(default, deserialize_with = "json::read_text")]
    pub token_suffix: Option<String>,
    /// When the token was created. A value that is not a timestamp is ignored.
    #[serde(default, deserialize_with = "json::read_lenient_timestamp")]
    pub created_at: Option<Timestamp>,
    /// When the token expires; `None` if never. It may be in the year 9999.
    #[serde(default, deserialize_with = "json::read_timestamp")]
    pub expiry: Option<Timestamp>,
}

/// A token to create (`scalekit.v1.tokens.CreateToken`). [`check`](Self::check) checks it against the limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NewToken {
    /// The organization that it belongs to (`org_…`).
    pub organization_id: String,
    /// A user of that organization; `None` for a token of the organization.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// At most 20 claims.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom_claims: Claims,
    /// When it expires; `None` if never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiry: Option<Timestamp>,
    /// What it is for: at most 255 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A new token, which Scalekit shows only once.
#[derive(Clone, Debug)]
pub struct Created {
    /// The token itself: visible ASCII.
    pub token: SecretString,
    /// Its properties.
    pub info: Token,
}

/// A change of a live token. [`check`](Self::check) checks it against the limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TokenUpdate {
    /// The claims that REPLACE all claims of the token. `None` keeps them, and so would an empty map: Scalekit cannot remove a
    /// token's last claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_claims: Option<Claims>,
    /// `None` keeps the description, `""` removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A request for a page of an organization's live tokens. [`check`](Self::check) checks it against the limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// The organization.
    pub organization_id: String,
    /// Only this user's tokens.
    pub user_id: Option<String>,
    /// From 1 to 30; Scalekit uses 10 for `None`.
    pub page_size: Option<u8>,
    /// From an earlier page; `None` for the first page.
    pub page_token: Option<String>,
}

/// A page of an organization's live tokens. Their order is not documented.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Page {
    /// The tokens.
    #[serde(default, deserialize_with = "json::read_objects")]
    pub tokens: Vec<Token>,
    /// The number of tokens on all pages.
    #[serde(default, deserialize_with = "json::read_or_default")]
    pub total_count: i64,
    /// The page token of the next page.
    #[serde(default, deserialize_with = "json::read_text")]
    pub next_page_token: Option<String>,
    /// The page token of the previous page.
    #[serde(default, deserialize_with = "json::read_text")]
    pub prev_page_token: Option<String>,
}
