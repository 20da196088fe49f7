//! The calls of the API and what they give, apart from how either wire writes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::access::Permission;
use super::store::Token;

/// What can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Token,
    Create,
    Validate,
    Invalidate,
    List,
    Update,
}

impl Endpoint {
    /// What a client needs for it; nothing for an access token, which it asks for with its secret.
    pub(super) fn permission(self) -> Option<Permission> {
        match self {
            Self::Token => None,
            Self::Create | Self::Update => Some(Permission::Write),
            Self::Validate | Self::List => Some(Permission::Read),
            Self::Invalidate => Some(Permission::Rotate),
        }
    }
}

/// A call that could be read.
pub(super) enum Call {
    Create(Create),
    Validate { token: String },
    Invalidate { token: String },
    List(List),
    Update(Update),
}

/// A key to be made. `""` is as good as absent.
#[derive(Default)]
pub(super) struct Create {
    pub(super) organization_id: String,
    pub(super) user_id: String,
    pub(super) custom_claims: BTreeMap<String, String>,
    pub(super) expiry: Option<Timestamp>,
    pub(super) description: String,
}

/// A page of an organization's keys.
#[derive(Default)]
pub(super) struct List {
    pub(super) organization_id: String,
    pub(super) user_id: String,
    pub(super) page_size: i32,
    pub(super) page_token: String,
}

/// A change. Claims are replaced unless there are none; a description is kept when absent and cleared by `""`.
#[derive(Default)]
pub(super) struct Update {
    pub(super) token: String,
    pub(super) custom_claims: BTreeMap<String, String>,
    pub(super) description: Option<String>,
}

/// What a call gives.
pub(super) enum Reply {
    /// A new key, shown this once.
    Created { key: String, token: Arc<Token> },
    /// Validated or updated.
    Token(Arc<Token>),
    /// Invalidated.
    Nothing,
    /// Listed.
    Page(Page),
}

/// Some of the keys that match, newest first.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) tokens: Vec<Arc<Token>>,
    pub(super) total_count: i32,
    pub(super) next_page_token: String,
    pub(super) prev_page_token: String,
}
