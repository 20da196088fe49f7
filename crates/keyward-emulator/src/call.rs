//! The calls of the API and what they give, apart from how either wire writes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::access::Permission;
use crate::store::Token;

/// What can be called.
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
    /// What a client needs for it; nothing for an access token, which it asks for with its secret.
    pub(crate) fn permission(self) -> Option<Permission> {
        match self {
            Self::Token => None,
            Self::Create | Self::Update => Some(Permission::Write),
            Self::Validate | Self::List => Some(Permission::Read),
            Self::Invalidate => Some(Permission::Rotate),
        }
    }
}

/// A call that could be read.
pub(crate) enum Call {
    Create(Create),
    Validate { token: String },
    Invalidate { token: String },
    List(List),
    Update(Update),
}

/// A key to be made. `""` is as good as absent.
#[derive(Default)]
pub(crate) struct Create {
    pub(crate) organization_id: String,
    pub(crate) user_id: String,
    pub(crate) custom_claims: BTreeMap<String, String>,
    pub(crate) expiry: Option<Timestamp>,
    pub(crate) description: String,
}

/// A page of an organization's keys.
#[derive(Default)]
pub(crate) struct List {
    pub(crate) organization_id: String,
    pub(crate) user_id: String,
    pub(crate) page_size: i32,
    pub(crate) page_token: String,
}

/// A change. Claims are replaced unless there are none; a description is kept when absent and cleared by `""`.
#[derive(Default)]
pub(crate) struct Update {
    pub(crate) token: String,
    pub(crate) custom_claims: BTreeMap<String, String>,
    pub(crate) description: Option<String>,
}

/// What a call gives.
pub(crate) enum Reply {
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
pub(crate) struct Page {
    pub(crate) tokens: Vec<Arc<Token>>,
    pub(crate) total_count: i32,
    pub(crate) next_page_token: String,
    pub(crate) prev_page_token: String,
}
