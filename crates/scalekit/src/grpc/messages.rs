//! Converts the crate's types to protobuf messages and back. Unset and `""` are equivalent in protobuf.

use prost::Message;
use secrecy::ExposeSecret;

use crate::error::Error;
use crate::proto;
use crate::status::Status;
use crate::token::{Created, NewToken, Page, PageRequest, Token};

pub(super) fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

impl TryFrom<proto::Token> for Token {
    type Error = Error;

    fn try_from(token: proto::Token) -> Result<Self, Error> {
        let expiry = token
            .expiry
            .map(|expiry| expiry.to_jiff().ok_or(Error::BrokenContract("an expiry that is not a timestamp")));
        Ok(Self {
            token_id: token.token_id,
            organization_id: token.organization_id,
            organization_external_id: non_empty(token.organization_external_id),
            user_id: token.user_id.and_then(non_empty),
            user_external_id: token.user_external_id.and_then(non_empty),
            email: token.email.and_then(non_empty),
            roles: token.roles,
            custom_claims: token.custom_claims,
            description: token.description.and_then(non_empty),
            token_suffix: non_empty(token.token_suffix),
            created_at: token.created_at.and_then(|created| created.to_jiff()),
            expiry: expiry.transpose()?,
        })
    }
}

impl From<&Token> for proto::Token {
    fn from(token: &Token) -> Self {
        Self {
            token_id: token.token_id.clone(),
            organization_id: token.organization_id.clone(),
            organization_external_id: token.organization_external_id.clone().unwrap_or_default(),
            user_id: token.user_id.clone(),
            user_external_id: token.user_external_id.clone(),
            custom_claims: token.custom_claims.clone(),
            expiry: token.expiry.map(proto::Timestamp::from),
            created_at: token.created_at.map(proto::Timestamp::from),
            description: token.description.clone(),
            token_suffix: token.token_suffix.clone().unwrap_or_default(),
            email: token.email.clone(),
            roles: token.roles.clone(),
        }
    }
}

impl From<&Created> for proto::CreateTokenResponse {
    fn from(created: &Created) -> Self {
        Self {
            token: created.token.expose_secret().to_owned(),
            token_id: created.info.token_id.clone(),
            token_info: Some((&created.info).into()),
        }
    }
}

impl From<&Page> for proto::ListTokensResponse {
    fn from(page: &Page) -> Self {
        Self {
            tokens: page.tokens.iter().map(proto::Token::from).collect(),
            total_count: i32::try_from(page.total_count).unwrap_or(i32::MAX),
            next_page_token: page.next_page_token.clone().unwrap_or_default(),
            prev_page_token: page.prev_page_token.clone().unwrap_or_default(),
        }
    }
}

impl From<&NewToken> for proto::CreateToken {
    fn from(new: &NewToken) -> Self {
        Self {
            organization_id: new.organization_id.clone(),
            user_id: new.user_id.clone().unwrap_or_default(),
            custom_claims: new.custom_claims.clone(),
            expiry: new.expiry.map(proto::Timestamp::from),
            description: new.description.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<proto::CreateToken> for NewToken {
    type Error = Status;

    fn try_from(token: proto::CreateToken) -> Result<Self, Status> {
        let expiry = token.expiry.map(|expiry| {
            let invalid = || Status::invalid_field("expiry", "timestamp", "value is not a time");
            expiry.to_jiff().ok_or_else(invalid)
        });
        Ok(Self {
            organization_id: token.organization_id,
            user_id: non_empty(token.user_id),
            custom_claims: token.custom_claims,
            expiry: expiry.transpose()?,
            description: non_empty(token.description),
        })
    }
}

impl From<&PageRequest> for proto::ListTokensRequest {
    fn from(page: &PageRequest) -> Self {
        Self {
            organization_id: page.organization_id.clone(),
            user_id: page.user_id.clone(),
            page_size: page.page_size.unwrap_or_default().into(),
            page_token: page.page_token.clone().unwrap_or_default(),
        }
    }
}

impl From<&Status> for proto::RpcStatus {
    fn from(status: &Status) -> Self {
        let violations = status.violations.iter().map(|violation| proto::FieldViolation {
            field: violation.field.to_owned(),
            description: violation.description.clone(),
            constraint: violation.constraint.to_owned(),
        });
        let field_violations: Vec<_> = violations.collect();
        let info = proto::ErrorInfo {
            error_code: status.code.name().to_owned(),
            validation_error_info: (!field_violations.is_empty())
                .then_some(proto::ValidationErrorInfo { field_violations }),
        };
        let info = proto::Any {
            type_url: "type.googleapis.com/scalekit.v1.errdetails.ErrorInfo".to_owned(),
            value: info.encode_to_vec(),
        };
        Self { code: status.code.number(), message: status.message.clone(), details: vec![info] }
    }
}
