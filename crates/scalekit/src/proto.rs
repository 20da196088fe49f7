//! The messages of `scalekit.v1.tokens` and of gRPC's errors, with the field numbers of Scalekit's published descriptors. They are
//! written by hand, so that the build needs no protobuf compiler. The server's half of REST encodes them as JSON, as a gRPC gateway
//! does: unset strings, maps and lists are present, unset messages are not.

use std::collections::BTreeMap;
use std::fmt;

use prost::Message;
use serde::{Deserialize, Serialize, Serializer};

use crate::{json, timestamp};

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}

impl Timestamp {
    /// `None` if a field is out of range.
    pub(crate) fn to_jiff(&self) -> Option<jiff::Timestamp> {
        timestamp::from_parts(self.seconds, self.nanos)
    }
}

impl From<jiff::Timestamp> for Timestamp {
    /// Protobuf's nanoseconds are never negative, also before 1970.
    fn from(timestamp: jiff::Timestamp) -> Self {
        match (timestamp.as_second(), timestamp.subsec_nanosecond()) {
            (seconds, nanos @ ..0) => Self { seconds: seconds - 1, nanos: nanos + 1_000_000_000 },
            (seconds, nanos) => Self { seconds, nanos },
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_jiff().map(timestamp::format_rfc3339).serialize(serializer)
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CreateTokenRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) token: Option<CreateToken>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CreateToken {
    #[prost(string, tag = "1")]
    pub(crate) organization_id: String,
    #[prost(string, tag = "2")]
    pub(crate) user_id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(crate) custom_claims: BTreeMap<String, String>,
    #[prost(message, optional, tag = "4")]
    pub(crate) expiry: Option<Timestamp>,
    #[prost(string, tag = "5")]
    pub(crate) description: String,
}

#[derive(Clone, PartialEq, Message, Serialize)]
#[prost(skip_debug)]
pub(crate) struct CreateTokenResponse {
    #[prost(string, tag = "1")]
    pub(crate) token: String,
    #[prost(string, tag = "2")]
    pub(crate) token_id: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) token_info: Option<Token>,
}

/// ValidateTokenRequest and InvalidateTokenRequest.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[prost(skip_debug)]
pub(crate) struct TokenRequest {
    #[prost(string, tag = "1")]
    #[serde(default, deserialize_with = "json::read_string")]
    pub(crate) token: String,
}

/// ValidateTokenResponse and UpdateTokenResponse.
#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct TokenResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) token_info: Option<Token>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ListTokensRequest {
    #[prost(string, tag = "1")]
    pub(crate) organization_id: String,
    #[prost(string, optional, tag = "2")]
    pub(crate) user_id: Option<String>,
    #[prost(int32, tag = "3")]
    pub(crate) page_size: i32,
    #[prost(string, tag = "4")]
    pub(crate) page_token: String,
}

#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct ListTokensResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) tokens: Vec<Token>,
    #[prost(int32, tag = "2")]
    pub(crate) total_count: i32,
    #[prost(string, tag = "3")]
    pub(crate) next_page_token: String,
    #[prost(string, tag = "4")]
    pub(crate) prev_page_token: String,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[prost(skip_debug)]
pub(crate) struct UpdateTokenRequest {
    #[prost(string, tag = "1")]
    #[serde(default, deserialize_with = "json::read_string")]
    pub(crate) token: String,
    #[prost(string, optional, tag = "2")]
    pub(crate) description: Option<String>,
    #[prost(btree_map = "string, string", tag = "3")]
    #[serde(default, alias = "customClaims", deserialize_with = "json::read_or_default")]
    pub(crate) custom_claims: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct Token {
    #[prost(string, tag = "1")]
    pub(crate) token_id: String,
    #[prost(string, tag = "2")]
    pub(crate) organization_id: String,
    #[prost(string, tag = "3")]
    pub(crate) organization_external_id: String,
    #[prost(string, optional, tag = "4")]
    #[serde(serialize_with = "json::write_text")]
    pub(crate) user_id: Option<String>,
    #[prost(string, optional, tag = "5")]
    #[serde(serialize_with = "json::write_text")]
    pub(crate) user_external_id: Option<String>,
    #[prost(btree_map = "string, string", tag = "6")]
    pub(crate) custom_claims: BTreeMap<String, String>,
    #[prost(message, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expiry: Option<Timestamp>,
    #[prost(message, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created_at: Option<Timestamp>,
    #[prost(string, optional, tag = "9")]
    #[serde(serialize_with = "json::write_text")]
    pub(crate) description: Option<String>,
    #[prost(string, tag = "10")]
    pub(crate) token_suffix: String,
    #[prost(string, optional, tag = "11")]
    #[serde(serialize_with = "json::write_text")]
    pub(crate) email: Option<String>,
    #[prost(string, repeated, tag = "12")]
    pub(crate) roles: Vec<String>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Any {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
}

/// `scalekit.v1.errdetails.ErrorInfo`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ErrorInfo {
    #[prost(string, tag = "1")]
    pub(crate) error_code: String,
    #[prost(message, optional, tag = "8")]
    pub(crate) validation_error_info: Option<ValidationErrorInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ValidationErrorInfo {
    #[prost(message, repeated, tag = "1")]
    pub(crate) field_violations: Vec<FieldViolation>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct FieldViolation {
    #[prost(string, tag = "1")]
    pub(crate) field: String,
    #[prost(string, tag = "2")]
    pub(crate) description: String,
    #[prost(string, tag = "3")]
    pub(crate) constraint: String,
}

// SECURITY: these three messages contain a token, which `Debug` must not show.

impl fmt::Debug for CreateTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateTokenResponse").field("token_id", &self.token_id).finish_non_exhaustive()
    }
}

impl fmt::Debug for TokenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRequest").finish_non_exhaustive()
    }
}

impl fmt::Debug for UpdateTokenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateTokenRequest").finish_non_exhaustive()
    }
}
