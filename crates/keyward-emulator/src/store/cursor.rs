//! Page tokens. Opaque to clients; to the store, the number of a record.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use scalekit::status::Status;

/// A page of records older, or newer, than the one of this number, which may be revoked since.
#[derive(Clone, Copy)]
pub(super) enum Cursor {
    Older(usize),
    Newer(usize),
}

impl Cursor {
    pub(super) fn encode(self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(match self {
            Self::Older(than) => format!("older:{than}"),
            Self::Newer(than) => format!("newer:{than}"),
        })
    }

    /// `None` is the first page. It is assumed that Scalekit refuses tokens that it did not issue.
    pub(super) fn decode(text: Option<&str>) -> Result<Self, Status> {
        let Some(text) = text else { return Ok(Self::Older(usize::MAX)) };
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
        let cursor = match String::from_utf8_lossy(&bytes).split_once(':') {
            Some(("older", than)) => than.parse().ok().map(Self::Older),
            Some(("newer", than)) => than.parse().ok().map(Self::Newer),
            _ => None,
        };
        cursor.ok_or_else(|| Status::invalid_field("page_token", "page_token", "value is not a page token"))
    }
}
