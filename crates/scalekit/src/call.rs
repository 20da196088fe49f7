//! The calls of the API and their replies, apart from how REST and gRPC write them.

use std::fmt;

use secrecy::SecretString;

use crate::token::{Created, NewToken, Page, PageRequest, Token, TokenUpdate};

/// A call of `scalekit.v1.tokens.ApiTokenService`. Tokens in it are not shown by `Debug`.
#[derive(Clone, Debug)]
pub enum Call {
    /// Makes a token.
    Create(NewToken),
    /// Asks whether a token is valid, and what it stands for. The API takes the id of a token (`apit_…`) as well: see
    /// [`validate`](crate::validate).
    Validate(SecretString),
    /// Revokes the token, or the token of this id. Idempotent: revoking it again succeeds.
    Invalidate(SecretString),
    /// Lists an organization's live tokens.
    List(PageRequest),
    /// Changes the token, or the token of this id.
    Update(SecretString, TokenUpdate),
}

/// Which call it is.
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

/// What a client needs to be granted for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Validates and lists.
    Read,
    /// Creates and updates.
    Write,
    /// Invalidates.
    Rotate,
}

/// What a call that succeeded gives.
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

/// Twenty claims of 256 characters, each escaped to six bytes, twice over.
const MAX_TOKEN_RESPONSE: usize = 256 * 1024;

impl Call {
    /// Which call it is.
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
    /// What a client needs to be granted for it (`auth_option` of the service's annotations).
    pub fn permission(self) -> Permission {
        match self {
            Self::Validate | Self::List => Permission::Read,
            Self::Create | Self::Update => Permission::Write,
            Self::Invalidate => Permission::Rotate,
        }
    }

    /// The largest body of a response, in bytes: 256 KiB, and for a page as much for each of its 30 tokens.
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
