//! The messages of `scalekit.v1.tokens` and of gRPC's errors, written by hand with the field numbers of the contract.

use std::collections::BTreeMap;
use std::fmt;

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CreateTokenRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) token: Option<CreateToken>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CreateToken {
    #[prost(string, tag = "1")]
    pub(super) organization_id: String,
    #[prost(string, tag = "2")]
    pub(super) user_id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(super) custom_claims: BTreeMap<String, String>,
    #[prost(message, optional, tag = "4")]
    pub(super) expiry: Option<Timestamp>,
    #[prost(string, tag = "5")]
    pub(super) description: String,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct CreateTokenResponse {
    #[prost(string, tag = "1")]
    pub(super) token: String,
    #[prost(string, tag = "2")]
    pub(super) token_id: String,
    #[prost(message, optional, tag = "3")]
    pub(super) token_info: Option<Token>,
}

/// ValidateTokenRequest and InvalidateTokenRequest.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct TokenRequest {
    #[prost(string, tag = "1")]
    pub(super) token: String,
}

/// ValidateTokenResponse and UpdateTokenResponse.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TokenResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) token_info: Option<Token>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ListTokensRequest {
    #[prost(string, tag = "1")]
    pub(super) organization_id: String,
    #[prost(string, optional, tag = "2")]
    pub(super) user_id: Option<String>,
    #[prost(int32, tag = "3")]
    pub(super) page_size: i32,
    #[prost(string, tag = "4")]
    pub(super) page_token: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ListTokensResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) tokens: Vec<Token>,
    #[prost(int32, tag = "2")]
    pub(super) total_count: i32,
    #[prost(string, tag = "3")]
    pub(super) next_page_token: String,
    #[prost(string, tag = "4")]
    pub(super) prev_page_token: String,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct UpdateTokenRequest {
    #[prost(string, tag = "1")]
    pub(super) token: String,
    #[prost(string, optional, tag = "2")]
    pub(super) description: Option<String>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(super) custom_claims: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Token {
    #[prost(string, tag = "1")]
    pub(super) token_id: String,
    #[prost(string, tag = "2")]
    pub(super) organization_id: String,
    #[prost(string, tag = "3")]
    pub(super) organization_external_id: String,
    #[prost(string, optional, tag = "4")]
    pub(super) user_id: Option<String>,
    #[prost(string, optional, tag = "5")]
    pub(super) user_external_id: Option<String>,
    #[prost(btree_map = "string, string", tag = "6")]
    pub(super) custom_claims: BTreeMap<String, String>,
    #[prost(message, optional, tag = "7")]
    pub(super) expiry: Option<Timestamp>,
    #[prost(message, optional, tag = "8")]
    pub(super) created_at: Option<Timestamp>,
    #[prost(string, optional, tag = "9")]
    pub(super) description: Option<String>,
    #[prost(string, tag = "10")]
    pub(super) token_suffix: String,
    #[prost(string, optional, tag = "11")]
    pub(super) email: Option<String>,
    #[prost(string, repeated, tag = "12")]
    pub(super) roles: Vec<String>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
    #[prost(message, repeated, tag = "3")]
    pub(super) details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Any {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

/// `scalekit.v1.errdetails.ErrorInfo`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ErrorInfo {
    #[prost(string, tag = "1")]
    pub(super) error_code: String,
    #[prost(message, optional, tag = "8")]
    pub(super) validation_error_info: Option<ValidationErrorInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ValidationErrorInfo {
    #[prost(message, repeated, tag = "1")]
    pub(super) field_violations: Vec<FieldViolation>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FieldViolation {
    #[prost(string, tag = "1")]
    pub(super) field: String,
    #[prost(string, tag = "2")]
    pub(super) description: String,
    #[prost(string, tag = "3")]
    pub(super) constraint: String,
}

// SECURITY: these three hold a key, which Debug must not show.

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
