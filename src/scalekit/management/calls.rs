//! The calls themselves, over either wire.

use bytes::Bytes;
use hyper::Method;
use prost::Message;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};

use super::messages::{page_of, told};
use super::{CallError, Change, Created, Listing, NewToken, Page, Refusal, Token};
use crate::scalekit::object::Object;
use crate::scalekit::tokens::{ErrorBody, VALIDATE};
use crate::scalekit::{Answer, Content, Fault, Scalekit, Transport, proto};
use crate::secret::Secret;
use crate::terminal;

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
        let page = match self.transport {
            Transport::Rest => {
                self.rest(Needs::Read, Method::GET, &listing.path(), Content::Json(Bytes::new())).await
            }
            Transport::Grpc => {
                let page =
                    self.rpc(Needs::Read, "ListTokens", &proto::ListTokensRequest::from(listing)).await;
                page.and_then(|page| {
                    page_of(page)
                        .ok_or(CallError::Fault(Fault::Broken("a key of the list has no good moment")))
                })
            }
        };
        page.map_err(CallError::of_reading)
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
            Err(error) => Err(error.of_reading()),
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
    /// Reading changes nothing, whatever became of its answer.
    fn of_reading(self) -> Self {
        match self {
            Self::Lost(fault) => Self::Fault(fault),
            other => other,
        }
    }

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

/// SECURITY: whoever answers there writes neither lines of the log nor a terminal's escapes.
fn one_line(text: &str) -> String {
    text.chars()
        .take(LONGEST_MESSAGE)
        .flat_map(|char| if terminal::is_obeyed(char) { char.escape_default().collect() } else { vec![char] })
        .collect()
}
