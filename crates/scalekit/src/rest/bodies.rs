//! The JSON bodies of requests and responses.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Refusal;
use crate::json::{self, Object};
use crate::status::{Code, Status};
use crate::timestamp;
use crate::token::{Claims, NewToken, Token, TokenUpdate};

/// An error response, in its documented form.
#[derive(Deserialize)]
pub(super) struct ErrorBody {
    pub(super) code: Option<i64>,
    pub(super) message: Option<String>,
    pub(super) details: Option<Vec<Value>>,
}

impl ErrorBody {
    /// Scalekit's refusal; `None` if the response is not from Scalekit itself.
    pub(super) fn to_refusal(&self, status: u16) -> Option<Refusal> {
        let code = Code::from_number(self.code?).filter(|code| code.http_status() == status)?;
        let message = self.message.as_deref().unwrap_or_default();
        // A gateway's response for an unknown path is NOT_FOUND, too, but without Scalekit's ErrorInfo.
        let is_unknown_route = code == Code::NotFound
            && message == "Not Found"
            && self.details.as_ref().is_none_or(Vec::is_empty);
        (!is_unknown_route).then(|| Refusal::new(code, message))
    }
}

#[derive(Serialize)]
pub(super) struct TokenBody<'a> {
    pub(super) token: &'a str,
}

#[derive(Serialize)]
pub(super) struct UpdateBody<'a> {
    pub(super) token: &'a str,
    #[serde(flatten)]
    pub(super) update: &'a TokenUpdate,
}

#[derive(Deserialize)]
pub(super) struct CreateBody {
    #[serde(default, alias = "organizationId", deserialize_with = "json::read_string")]
    pub(super) organization_id: String,
    #[serde(default, alias = "userId", deserialize_with = "json::read_text")]
    pub(super) user_id: Option<String>,
    #[serde(default, alias = "customClaims", deserialize_with = "json::read_or_default")]
    pub(super) custom_claims: Claims,
    #[serde(default, deserialize_with = "json::read_text")]
    pub(super) expiry: Option<String>,
    #[serde(default, deserialize_with = "json::read_text")]
    pub(super) description: Option<String>,
}

impl CreateBody {
    pub(super) fn into_new_token(self) -> Result<NewToken, Status> {
        let expiry = self.expiry.map(|text| {
            let rule = "value is not a time such as 2026-12-01T00:00:00Z";
            timestamp::parse_rfc3339(&text).ok_or_else(|| Status::invalid_field("expiry", "timestamp", rule))
        });
        Ok(NewToken {
            organization_id: self.organization_id,
            user_id: self.user_id,
            custom_claims: self.custom_claims,
            expiry: expiry.transpose()?,
            description: self.description,
        })
    }
}

#[derive(Deserialize)]
pub(super) struct CreatedInfo {
    #[serde(default, deserialize_with = "json::read_string")]
    pub(super) token: String,
    pub(super) token_info: Option<Object<Token>>,
}

#[derive(Deserialize)]
pub(super) struct Info {
    pub(super) token_info: Option<Object<Token>>,
}
