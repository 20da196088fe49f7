//! The calls that make, find, change and end keys (contract sections 2 to 4). None is repeated blindly: a creation whose
//! answer was lost may have made a key all the same.

mod calls;
mod fields;
mod messages;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub(super) use self::fields::claims;
use self::fields::{absent_or, moment, text};
use super::Fault;
use crate::secret::Secret;

/// Free text by name (contract section 2 has the limits).
pub type Claims = BTreeMap<String, String>;

/// What Scalekit tells of a key, which is everything but the key. Serialized as Scalekit writes it, but that what is absent is
/// null.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Token {
    /// Names the key (`apit_…`); no secret.
    pub token_id: String,
    /// The organization it belongs to.
    pub organization_id: String,
    /// The customer's own id of that organization.
    #[serde(default, deserialize_with = "text")]
    pub organization_external_id: Option<String>,
    /// The user it belongs to; none for an organization's key.
    #[serde(default, deserialize_with = "text")]
    pub user_id: Option<String>,
    /// The customer's own id of that user.
    #[serde(default, deserialize_with = "text")]
    pub user_external_id: Option<String>,
    /// The user's address.
    #[serde(default, deserialize_with = "text")]
    pub email: Option<String>,
    /// The user's roles.
    #[serde(default, deserialize_with = "absent_or")]
    pub roles: Vec<String>,
    /// Free text by name.
    #[serde(default, deserialize_with = "claims")]
    pub custom_claims: Claims,
    /// What it is for.
    #[serde(default, deserialize_with = "text")]
    pub description: Option<String>,
    /// The last four characters of the key.
    #[serde(default, deserialize_with = "text")]
    pub token_suffix: Option<String>,
    /// When it was made.
    #[serde(default, deserialize_with = "moment")]
    pub created_at: Option<Timestamp>,
    /// The first moment at which it is no longer valid; none: never.
    #[serde(default, deserialize_with = "moment")]
    pub expiry: Option<Timestamp>,
}

/// A key to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NewToken {
    /// Whose.
    pub organization_id: String,
    /// A user of that organization's, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// Free text by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom_claims: Claims,
    /// None: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiry: Option<Timestamp>,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A new key. It is told once, here.
#[derive(Debug)]
pub struct Created {
    /// The key itself.
    pub key: Secret,
    /// What can be told of it.
    pub token: Token,
}

/// A part of a list.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Page {
    /// The keys.
    #[serde(default, deserialize_with = "absent_or")]
    pub tokens: Vec<Token>,
    /// How many there are on all pages.
    #[serde(default)]
    pub total_count: i64,
    /// What to ask for after this one.
    #[serde(default, deserialize_with = "text")]
    pub next_page_token: Option<String>,
    /// What to ask for before this one.
    #[serde(default, deserialize_with = "text")]
    pub prev_page_token: Option<String>,
}

/// Which part of which list.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Whose keys.
    pub organization_id: String,
    /// Of these, only this user's.
    pub user_id: Option<String>,
    /// From 1 to 30; Scalekit takes 10 where nothing is said.
    pub page_size: Option<u8>,
    /// From an earlier page.
    pub page_token: Option<String>,
}

/// A key's new claims, description, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Change {
    /// All of them: Scalekit forgets the others. None changes nothing, and neither does an empty map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_claims: Option<Claims>,
    /// `""` removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Why a call was not done, as far as that is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Scalekit says no, and why.
    #[error("Scalekit refuses it: {0}")]
    Refused(Refusal),
    /// The own client may not.
    #[error("Scalekit's client lacks a permission: grant it {0}")]
    Permission(&'static str),
    /// Nothing was done.
    #[error("{0}")]
    Fault(Fault),
    /// It may have been done: the answer was lost, or is none.
    #[error("{0}")]
    Lost(Fault),
}

/// Scalekit's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The gRPC code, which REST's answers carry too.
    pub code: i64,
    /// What it says, on one line and not too long.
    pub message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}
