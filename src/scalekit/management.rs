//! The calls that make, find, change and end keys (contract sections 2 to 4). None is repeated blindly: a creation whose
//! answer was lost may have made a key all the same.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::Method;
use jiff::Timestamp;
use prost::Message;
use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::{Duration, Instant};

use super::moment;
use super::object::Object;
use super::tokens::{ErrorBody, VALIDATE};
use super::{Answer, Content, Fault, Scalekit, Transport, proto};
use crate::secret::Secret;

/// Free text by name (contract section 2 has the limits).
pub type Claims = BTreeMap<String, String>;

/// What Scalekit tells of a key, which is everything but the key. Serialized as Scalekit writes it, but that what is absent is
/// null.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Token {
    /// Names the key (`apit_…`); no secret.
    pub token_id: String,
    /// The organization it belongs to.
    pub organization_id: String,
    /// The customer's own id of that organization.
    #[serde(default, deserialize_with = "text")]
    pub organization_external_id: Option<String>,
    /// The user it belongs to; none for an organization's key.
    #[serde(default, deserialize_with = "text")]
    pub user_id: Option<String>,
    /// The customer's own id of that user.
    #[serde(default, deserialize_with = "text")]
    pub user_external_id: Option<String>,
    /// The user's address.
    #[serde(default, deserialize_with = "text")]
    pub email: Option<String>,
    /// The user's roles.
    #[serde(default, deserialize_with = "absent_or")]
    pub roles: Vec<String>,
    /// Free text by name.
    #[serde(default, deserialize_with = "claims")]
    pub custom_claims: Claims,
    /// What it is for.
    #[serde(default, deserialize_with = "text")]
    pub description: Option<String>,
    /// The last four characters of the key.
    #[serde(default, deserialize_with = "text")]
    pub token_suffix: Option<String>,
    /// When it was made.
    #[serde(default, deserialize_with = "moment")]
    pub created_at: Option<Timestamp>,
    /// The first moment at which it is no longer valid; none: never.
    #[serde(default, deserialize_with = "moment")]
    pub expiry: Option<Timestamp>,
}

/// A key to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NewToken {
    /// Whose.
    pub organization_id: String,
    /// A user of that organization's, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// Free text by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom_claims: Claims,
    /// None: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiry: Option<Timestamp>,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A new key. It is told once, here.
#[derive(Debug)]
pub struct Created {
    /// The key itself.
    pub key: Secret,
    /// What can be told of it.
    pub token: Token,
}

/// A part of a list.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Page {
    /// The keys.
    #[serde(default, deserialize_with = "absent_or")]
    pub tokens: Vec<Token>,
    /// How many there are on all pages.
    #[serde(default)]
    pub total_count: i64,
    /// What to ask for after this one.
    #[serde(default, deserialize_with = "text")]
    pub next_page_token: Option<String>,
    /// What to ask for before this one.
    #[serde(default, deserialize_with = "text")]
    pub prev_page_token: Option<String>,
}

/// Which part of which list.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Whose keys.
    pub organization_id: String,
    /// Of these, only this user's.
    pub user_id: Option<String>,
    /// From 1 to 30; Scalekit takes 10 where nothing is said.
    pub page_size: Option<u8>,
    /// From an earlier page.
    pub page_token: Option<String>,
}

impl Listing {
    fn path(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(format!("{TOKENS}?"));
        query.append_pair("organization_id", &self.organization_id);
        if let Some(user) = &self.user_id {
            query.append_pair("user_id", user);
        }
        if let Some(size) = self.page_size {
            query.append_pair("page_size", &size.to_string());
        }
        if let Some(token) = &self.page_token {
            query.append_pair("page_token", token);
        }
        query.finish()
    }
}

/// A key's new claims, description, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Change {
    /// All of them: Scalekit forgets the others. None changes nothing, and neither does an empty map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_claims: Option<Claims>,
    /// `""` removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Why a call was not done, as far as that is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Scalekit says no, and why.
    #[error("Scalekit refuses it: {0}")]
    Refused(Refusal),
    /// The own client may not.
    #[error("Scalekit's client lacks a permission: grant it {0}")]
    Permission(&'static str),
    /// Nothing was done.
    #[error("{0}")]
    Fault(Fault),
    /// It may have been done: the answer was lost, or is none.
    #[error("{0}")]
    Lost(Fault),
}

/// Scalekit's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The gRPC code, which REST's answers carry too.
    pub code: i64,
    /// What it says, on one line and not too long.
    pub message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}

const LIMIT: Duration = Duration::from_secs(10);
const LONGEST_MESSAGE: usize = 300;
const TOKENS: &str = "/api/v1/tokens";

/// What of Scalekit's permissions a call needs (contract section 2).
#[derive(Clone, Copy)]
enum Needs {
    Read,
    Write,
    Rotate,
}

impl Needs {
    fn permission(self) -> &'static str {
        match self {
            Self::Read => "api_credentials:read",
            Self::Write => "api_credentials:write",
            Self::Rotate => "api_credentials:rotate",
        }
    }
}

#[derive(Deserialize)]
struct CreatedAnswer {
    token: Option<String>,
    token_info: Option<Token>,
}

#[derive(Deserialize)]
struct Info {
    token_info: Option<Token>,
}

#[derive(Serialize)]
struct Named<'a> {
    token: &'a str,
}

#[derive(Serialize)]
struct Update<'a> {
    token: &'a str,
    #[serde(flatten)]
    change: &'a Change,
}

impl Scalekit {
    /// Makes a key.
    ///
    /// # Errors
    /// When there is none, or none that anybody saw.
    pub async fn create_token(&self, new: &NewToken) -> Result<Created, CallError> {
        let made = match self.transport {
            Transport::Rest => {
                let made: CreatedAnswer = self.rest(Needs::Write, Method::POST, TOKENS, json(new)?).await?;
                (made.token, made.token_info)
            }
            Transport::Grpc => {
                let request = proto::CreateTokenRequest { token: Some(new.into()) };
                let made: proto::CreateTokenResponse =
                    self.rpc(Needs::Write, "CreateToken", &request).await?;
                (Some(made.token), made.token_info.and_then(told))
            }
        };
        match made {
            (Some(key), Some(token)) if can_be_presented(&key) => {
                Ok(Created { key: Secret::new(key), token })
            }
            _ => Err(CallError::Lost(Fault::Broken("the new key is not in it"))),
        }
    }

    /// A part of an organization's keys.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn list_tokens(&self, listing: &Listing) -> Result<Page, CallError> {
        match self.transport {
            Transport::Rest => {
                self.rest(Needs::Read, Method::GET, &listing.path(), Content::Json(Bytes::new())).await
            }
            Transport::Grpc => {
                let page: proto::ListTokensResponse =
                    self.rpc(Needs::Read, "ListTokens", &proto::ListTokensRequest::from(listing)).await?;
                let some = |text: String| Some(text).filter(|text| !text.is_empty());
                Ok(Page {
                    tokens: page.tokens.into_iter().filter_map(told).collect(),
                    total_count: page.total_count.into(),
                    next_page_token: some(page.next_page_token),
                    prev_page_token: some(page.prev_page_token),
                })
            }
        }
    }

    /// The live key of this id, or this key. None for one that is unknown, revoked or expired.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn describe_token(&self, token: &str) -> Result<Option<Token>, CallError> {
        let found = match self.transport {
            Transport::Rest => {
                let content = json(&Named { token })?;
                let found: Result<Info, _> = self.rest(Needs::Read, Method::POST, VALIDATE, content).await;
                found.map(|found| found.token_info)
            }
            Transport::Grpc => {
                let request = proto::TokenRequest { token: token.to_owned() };
                let found: Result<proto::TokenResponse, _> =
                    self.rpc(Needs::Read, "ValidateToken", &request).await;
                found.map(|found| found.token_info.and_then(told))
            }
        };
        match found {
            Ok(Some(token)) if !token.organization_id.is_empty() => Ok(Some(token)),
            Ok(_) => Err(CallError::Fault(Fault::Broken("it tells of no key"))),
            // NOT_FOUND and INVALID_ARGUMENT, as in the table of contract section 5.
            Err(CallError::Refused(Refusal { code: 5 | 3, .. })) => Ok(None),
            // Reading changes nothing.
            Err(CallError::Lost(fault)) => Err(CallError::Fault(fault)),
            Err(error) => Err(error),
        }
    }

    /// Changes a live key.
    ///
    /// # Errors
    /// When it was not done, or may not have been.
    pub async fn update_token(&self, token_id: &str, change: &Change) -> Result<Token, CallError> {
        let token = match self.transport {
            Transport::Rest => {
                let content = json(&Update { token: token_id, change })?;
                let path = format!("{TOKENS}:update");
                self.rest::<Info>(Needs::Write, Method::POST, &path, content).await?.token_info
            }
            Transport::Grpc => {
                let request = proto::UpdateTokenRequest {
                    token: token_id.to_owned(),
                    description: change.description.clone(),
                    custom_claims: change.custom_claims.clone().unwrap_or_default(),
                };
                let changed: proto::TokenResponse = self.rpc(Needs::Write, "UpdateToken", &request).await?;
                changed.token_info.and_then(told)
            }
        };
        token.ok_or(CallError::Lost(Fault::Broken("the changed key is not in it")))
    }

    /// Revokes a key. One that is revoked already stays so.
    ///
    /// # Errors
    /// When it was not done, or may not have been.
    pub async fn invalidate_token(&self, token_id: &str) -> Result<(), CallError> {
        match self.transport {
            Transport::Rest => {
                let (path, content) = (format!("{TOKENS}:invalidate"), json(&Named { token: token_id })?);
                self.rest::<IgnoredAny>(Needs::Rotate, Method::POST, &path, content).await.map(|_| ())
            }
            Transport::Grpc => {
                let request = proto::TokenRequest { token: token_id.to_owned() };
                self.rpc::<()>(Needs::Rotate, "InvalidateToken", &request).await
            }
        }
    }

    /// One call over REST that is answered 200 or 201.
    async fn rest<T: DeserializeOwned>(
        &self,
        needs: Needs,
        method: Method,
        path: &str,
        content: Content,
    ) -> Result<T, CallError> {
        let deadline = self.ready().await?;
        let answer = self.call_as_client(method, path, content, deadline).await.map_err(CallError::of)?;
        match answer.status.as_u16() {
            200 | 201 => serde_json::from_slice(&answer.body)
                .map(|Object(read)| read)
                .map_err(|_| CallError::Lost(Fault::Broken("a 200 that is not the JSON expected"))),
            _ => Err(answer.refusal(needs)),
        }
    }

    /// One call over gRPC.
    async fn rpc<M: Message + Default>(
        &self,
        needs: Needs,
        name: &str,
        request: &impl Message,
    ) -> Result<M, CallError> {
        let deadline = self.ready().await?;
        let answer = self.unary(name, request, deadline).await.map_err(CallError::of)?;
        answer.map_err(|status| match status.code {
            7 => CallError::Permission(needs.permission()),
            3 | 5 | 6 | 9 | 10 | 11 => {
                CallError::Refused(Refusal { code: status.code, message: one_line(&status.message) })
            }
            1 | 2 | 4 | 13 | 14 | 15 => CallError::Lost(status.fault()),
            _ => CallError::Fault(status.fault()),
        })
    }

    /// When a call that begins now must have ended. Without an access token nothing is sent, and nothing can be lost.
    async fn ready(&self) -> Result<Instant, CallError> {
        let deadline = Instant::now() + LIMIT;
        self.access_token.bearer(deadline).await.map_err(CallError::Fault)?;
        Ok(deadline)
    }
}

impl CallError {
    /// What it means for what was asked that there was no answer.
    fn of(fault: Fault) -> Self {
        match fault {
            // A server that failed may have failed after it was done.
            Fault::BrokeOff(_) | Fault::Timeout | Fault::Broken(_) | Fault::Down(_) => Self::Lost(fault),
            _ => Self::Fault(fault),
        }
    }
}

/// Whether it can stand in a header at all. SECURITY: it is also what a terminal is told.
fn can_be_presented(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Structs of texts, numbers and maps of text have a form in JSON.
fn json(value: &impl Serialize) -> Result<Content, CallError> {
    let content = serde_json::to_vec(value).map(|content| Content::Json(content.into()));
    content.map_err(|_| CallError::Fault(Fault::Broken("this cannot be written as JSON")))
}

impl Answer {
    fn refusal(&self, needs: Needs) -> CallError {
        let said = serde_json::from_slice::<Object<ErrorBody>>(&self.body)
            .ok()
            .map(|Object(body)| body)
            .filter(|_| self.is_json());
        match (self.status.as_u16(), said) {
            (403, _) => CallError::Permission(needs.permission()),
            (400 | 404 | 409, Some(body)) if !body.is_unknown_route() && body.code.is_some() => {
                let message = one_line(&body.message.unwrap_or_default());
                CallError::Refused(Refusal { code: body.code.unwrap_or_default(), message })
            }
            _ => CallError::of(self.fault()),
        }
    }
}

/// SECURITY: whoever answers there writes neither lines of the log nor a terminal's escapes.
fn one_line(text: &str) -> String {
    text.chars()
        .take(LONGEST_MESSAGE)
        .flat_map(|char| if char.is_control() { char.escape_default().collect() } else { vec![char] })
        .collect()
}

/// Absent, null and "" mean the same (contract section 3).
fn text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.filter(|text| !text.is_empty()))
}

fn moment<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let moment = |text: String| moment::of_text(&text).ok_or_else(|| D::Error::custom("no moment"));
    text(from)?.map(moment).transpose()
}

fn absent_or<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A claim that is not a string is taken as its JSON text (contract section 5).
pub(super) fn claims<'de, D: Deserializer<'de>>(from: D) -> Result<Claims, D::Error> {
    let claims = Option::<BTreeMap<String, serde_json::Value>>::deserialize(from)?.unwrap_or_default();
    let text = |value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(claims.into_iter().map(|(name, value)| (name, text(value))).collect())
}

/// A key as gRPC tells of it; `None` where a moment is none.
fn told(token: proto::Token) -> Option<Token> {
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let moment = |moment: Option<proto::Timestamp>| match moment {
        None => Some(None),
        Some(moment) => moment.moment().map(Some),
    };
    Some(Token {
        token_id: token.token_id,
        organization_id: token.organization_id,
        organization_external_id: some(Some(token.organization_external_id)),
        user_id: some(token.user_id),
        user_external_id: some(token.user_external_id),
        email: some(token.email),
        roles: token.roles,
        custom_claims: token.custom_claims,
        description: some(token.description),
        token_suffix: some(Some(token.token_suffix)),
        created_at: moment(token.created_at)?,
        expiry: moment(token.expiry)?,
    })
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

impl From<&Listing> for proto::ListTokensRequest {
    fn from(listing: &Listing) -> Self {
        Self {
            organization_id: listing.organization_id.clone(),
            user_id: listing.user_id.clone(),
            page_size: listing.page_size.unwrap_or_default().into(),
            page_token: listing.page_token.clone().unwrap_or_default(),
        }
    }
}
