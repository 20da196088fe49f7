//! The page tokens of a list: opaque to clients, a record's number to the store.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use scalekit::status::Status;

/// Where a page begins or ends: beside the record of this number, which need not be live any longer.
#[derive(Clone, Copy)]
pub(super) enum Cursor {
    Older(usize),
    Newer(usize),
}

impl Cursor {
    pub(super) fn write(self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(match self {
            Self::Older(than) => format!("older:{than}"),
            Self::Newer(than) => format!("newer:{than}"),
        })
    }

    /// None is the first page. That anything else which was not handed out is refused is a guess.
    pub(super) fn read(text: Option<&str>) -> Result<Self, Status> {
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
