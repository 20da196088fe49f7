//! The calls of the API and their replies, independent of REST and gRPC.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::access::Permission;
use crate::store::Token;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Token,
    Create,
    Validate,
    Invalidate,
    List,
    Update,
}

impl Endpoint {
    /// The permission that a call needs. A token request needs none, as it carries the client's secret.
    pub(crate) fn permission(self) -> Option<Permission> {
        match self {
            Self::Token => None,
            Self::Create | Self::Update => Some(Permission::Write),
            Self::Validate | Self::List => Some(Permission::Read),
            Self::Invalidate => Some(Permission::Rotate),
        }
    }
}

/// A decoded call.
pub(crate) enum Call {
    Create(Create),
    Validate { token: String },
    Invalidate { token: String },
    List(List),
    Update(Update),
}

/// Creates a key. An empty string means absent.
#[derive(Default)]
pub(crate) struct Create {
    pub(crate) organization_id: String,
    pub(crate) user_id: String,
    pub(crate) custom_claims: BTreeMap<String, String>,
    pub(crate) expiry: Option<Timestamp>,
    pub(crate) description: String,
}

/// Lists the keys of an organization, a page at a time.
#[derive(Default)]
pub(crate) struct List {
    pub(crate) organization_id: String,
    pub(crate) user_id: String,
    pub(crate) page_size: i32,
    pub(crate) page_token: String,
}

/// Updates a key. Claims replace those there are, unless empty; an absent description is kept, an empty one clears it.
#[derive(Default)]
pub(crate) struct Update {
    pub(crate) token: String,
    pub(crate) custom_claims: BTreeMap<String, String>,
    pub(crate) description: Option<String>,
}

/// The reply to a successful call.
pub(crate) enum Reply {
    /// Created; the only reply that carries the key.
    Created { key: String, token: Arc<Token> },
    /// Validated or updated.
    Token(Arc<Token>),
    /// Invalidated.
    Nothing,
    /// Listed.
    Page(Page),
}

/// A page of the matching keys, newest first.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) tokens: Vec<Arc<Token>>,
    pub(crate) total_count: i32,
    pub(crate) next_page_token: String,
    pub(crate) prev_page_token: String,
}
