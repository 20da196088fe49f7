//! The calls of the API and their replies, independent of REST and gRPC.

use std::fmt;

use secrecy::SecretString;

use crate::token::{Created, NewToken, Page, PageRequest, Token, TokenUpdate};

/// A call of `scalekit.v1.tokens.ApiTokenService`. `Debug` does not show tokens.
#[derive(Clone, Debug)]
pub enum Call {
    /// Creates a token.
    Create(NewToken),
    /// Validates a token. The API also accepts the id of a token (`apit_…`); see [`validate`](crate::validate).
    Validate(SecretString),
    /// Revokes a token, given as itself or by its id. Revoking it again succeeds.
    Invalidate(SecretString),
    /// Lists an organization's live tokens.
    List(PageRequest),
    /// Changes a token, given as itself or by its id.
    Update(SecretString, TokenUpdate),
}

/// The kind of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Call::Create`].
    Create,
    /// [`Call::Validate`].
    Validate,
    /// [`Call::Invalidate`].
    Invalidate,
    /// [`Call::List`].
    List,
    /// [`Call::Update`].
    Update,
}

/// The permission that a client needs for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Validates and lists.
    Read,
    /// Creates and updates.
    Write,
    /// Invalidates.
    Rotate,
}

/// The result of a successful call.
#[derive(Clone, Debug)]
pub enum Reply {
    /// To [`Call::Create`].
    Created(Created),
    /// To [`Call::Validate`] and [`Call::Update`].
    Token(Token),
    /// To [`Call::Invalidate`].
    Invalidated,
    /// To [`Call::List`].
    Page(Page),
}

/// Twice the size of twenty claims of 256 characters, each of which is escaped to six bytes.
const MAX_TOKEN_RESPONSE: usize = 256 * 1024;

impl Call {
    /// The kind of the call.
    pub fn operation(&self) -> Operation {
        match self {
            Self::Create(_) => Operation::Create,
            Self::Validate(_) => Operation::Validate,
            Self::Invalidate(_) => Operation::Invalidate,
            Self::List(_) => Operation::List,
            Self::Update(..) => Operation::Update,
        }
    }
}

impl Operation {
    /// The permission that it needs (`auth_option` in the service's annotations).
    pub fn permission(self) -> Permission {
        match self {
            Self::Validate | Self::List => Permission::Read,
            Self::Create | Self::Update => Permission::Write,
            Self::Invalidate => Permission::Rotate,
        }
    }

    /// Maximum size of a response's body, in bytes: 256 KiB, and for a page 30 times that.
    pub fn max_response_bytes(self) -> usize {
        match self {
            Self::List => usize::from(crate::limits::MAX_PAGE_SIZE) * MAX_TOKEN_RESPONSE,
            _ => MAX_TOKEN_RESPONSE,
        }
    }
}

impl Permission {
    /// Its name in Scalekit's settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "api_credentials:read",
            Self::Write => "api_credentials:write",
            Self::Rotate => "api_credentials:rotate",
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
