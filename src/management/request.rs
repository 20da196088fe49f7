//! Reads what is asked for. Everything that is not understood is refused, with what would be.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use tokio::time::timeout;

use super::problem::Problem;
use crate::body::Body;
use crate::keys::{self, TokenId};
use crate::scalekit::management::{Change, Claims, Listing, NewToken, Token};

/// A request to be done.
pub(super) struct Call {
    pub(super) organization: String,
    pub(super) operation: Operation,
    pub(super) path: String,
    pub(super) idempotency_key: Option<String>,
    /// The body as it came.
    pub(super) content: Bytes,
}

pub(super) enum Operation {
    Create(Creation),
    /// The organization is the call's.
    List(Listing),
    Show(TokenId),
    Update(TokenId, Patch),
    Revoke(TokenId),
    Rotate(TokenId, Rotation),
}

/// The body of a creation.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Creation {
    user_id: Option<String>,
    custom_claims: Option<Claims>,
    expiry: Option<String>,
    #[serde(skip)]
    ends: Option<Timestamp>,
    description: Option<String>,
}

/// A JSON merge patch (RFC 7396): what is null is removed, what is absent stays.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Patch {
    #[serde(default, deserialize_with = "present")]
    custom_claims: Option<Option<BTreeMap<String, Option<String>>>>,
    #[serde(default, deserialize_with = "present")]
    description: Option<Option<String>>,
}

/// The body of a rotation.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotation {
    #[serde(default)]
    pub(super) keep_old: bool,
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// The longest body, in bytes: twenty claims of 256 characters, escaped to the utmost, and as much again.
const MAX_BODY: usize = 128 * 1024;
const BODY_WITHIN: Duration = Duration::from_secs(10);

impl Operation {
    /// For records.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::List(_) => "list",
            Self::Show(_) => "show",
            Self::Update(..) => "update",
            Self::Revoke(_) => "revoke",
            Self::Rotate(..) => "rotate",
        }
    }

    /// The key that it is about.
    pub(super) fn token_id(&self) -> Option<&TokenId> {
        match self {
            Self::Create(_) | Self::List(_) => None,
            Self::Show(id) | Self::Update(id, _) | Self::Revoke(id) | Self::Rotate(id, _) => Some(id),
        }
    }
}

impl Call {
    /// Reads all of a request.
    pub(super) async fn read(request: Request<Body>) -> Result<Self, Problem> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let segments: Vec<&str> = path.split('/').collect();
        let ["", "v1", "organizations", organization, "keys", rest @ ..] = segments.as_slice() else {
            return Err(no_such_path());
        };
        let of_an_id = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if organization.is_empty() || organization.len() > 64 || !organization.bytes().all(of_an_id) {
            return Err(Problem::invalid(
                "The organization in the path is not an id: letters, digits, '_' and '-', at most 64.",
            ));
        }
        // SECURITY: what is no id may be a key, and is not repeated.
        let id = |text: &str| text.parse::<TokenId>().map_err(|_| Problem::not_found());
        let method = &head.method;
        let allowed = match rest {
            [] => "GET, POST",
            [_] => "GET, PATCH, DELETE",
            [_, "rotate"] => "POST",
            _ => return Err(no_such_path()),
        };
        if !allowed.split(", ").any(|allowed| allowed == method.as_str()) {
            let detail = format!("This path takes {allowed}.");
            return Err(Problem {
                allow: Some(allowed),
                ..Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
            });
        }
        let is_list = rest.is_empty() && *method == Method::GET;
        if !is_list && head.uri.query().is_some() {
            return Err(Problem::invalid("This path takes no query."));
        }
        let content = read_body(body).await?;
        let idempotency_key = idempotency_key(&head.headers)?;
        let json = || is_json(&head.headers, &content);
        let operation = match (rest, method) {
            ([], &Method::GET) => Operation::List(listing(head.uri.query().unwrap_or_default())?),
            ([], _) => Operation::Create(parse::<Creation>(json()?)?.checked()?),
            ([one], &Method::GET) => Operation::Show(id(one)?),
            ([one], &Method::DELETE) => Operation::Revoke(id(one)?),
            ([one], _) => Operation::Update(id(one)?, parse(json()?)?),
            ([one, ..], _) if content.is_empty() => Operation::Rotate(id(one)?, Rotation::default()),
            ([one, ..], _) => Operation::Rotate(id(one)?, parse(json()?)?),
        };
        let organization = (*organization).to_owned();
        Ok(Self { organization, operation, path, idempotency_key, content })
    }
}

impl Creation {
    fn checked(mut self) -> Result<Self, Problem> {
        let expiry = self.expiry.take().filter(|text| !text.is_empty());
        let expiry = expiry.map(|text| text.parse()).transpose();
        self.ends = expiry.map_err(|_| {
            Problem::invalid("expiry: should be a moment such as \"2027-01-01T00:00:00Z\" (RFC 3339)")
        })?;
        Ok(self)
    }

    /// The key to be made; an empty text is none.
    pub(super) fn of(&self, organization: &str) -> NewToken {
        let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        NewToken {
            organization_id: organization.to_owned(),
            user_id: some(&self.user_id),
            custom_claims: self.custom_claims.clone().unwrap_or_default(),
            expiry: self.ends,
            description: some(&self.description),
        }
    }
}

impl Patch {
    /// What Scalekit is to be told, which knows no merging.
    pub(super) fn of(&self, before: &Token) -> Result<Change, Problem> {
        let custom_claims = match &self.custom_claims {
            None => None,
            Some(None) => {
                return Err(Problem::invalid(
                    "custom_claims: should be an object; null claims are removed one by one",
                ));
            }
            Some(Some(changes)) => Some(keys::merged(&before.custom_claims, changes.clone())),
        };
        let description = self.description.clone().map(Option::unwrap_or_default);
        if custom_claims.is_none() && description.is_none() {
            return Err(Problem::invalid("Nothing to change: give custom_claims, description, or both."));
        }
        // What stays as it is need not be sent, and an empty map would change nothing.
        let custom_claims = custom_claims.filter(|claims| *claims != before.custom_claims);
        Ok(Change { custom_claims, description })
    }
}

async fn read_body(mut body: Body) -> Result<Bytes, Problem> {
    let read = async {
        let mut content = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::invalid("The body broke off."))?;
            content.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if content.len() > MAX_BODY {
                let detail = "The body is longer than 128 KiB.";
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail));
            }
        }
        Ok(content.freeze())
    };
    timeout(BODY_WITHIN, read).await.unwrap_or_else(|_| {
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "The body did not come within 10 s."))
    })
}

fn no_such_path() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no_route",
        "Paths begin with /v1/organizations/{organization_id}/keys; /openapi.json describes them.",
    )
}

/// The body of a request that says it is JSON. Pages in browsers cannot say so without asking first.
fn is_json<'b>(headers: &hyper::HeaderMap, content: &'b Bytes) -> Result<&'b Bytes, Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if !matches!(kind.as_str(), "application/json" | "application/merge-patch+json") {
        let detail = "Content-Type should be application/json.";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
    }
    Ok(content)
}

fn parse<'b, T: Deserialize<'b>>(content: &'b Bytes) -> Result<T, Problem> {
    serde_json::from_slice(content).map_err(|error| Problem::invalid(format!("The body: {error}.")))
}

fn idempotency_key(headers: &hyper::HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| (1..=255).contains(&text.len()));
    match (text, values.next()) {
        (Some(text), None) => Ok(Some(text.to_owned())),
        _ => Err(Problem::invalid(
            "Idempotency-Key: should be there once, with 1 to 255 visible ASCII characters",
        )),
    }
}

fn listing(query: &str) -> Result<Listing, Problem> {
    let mut listing = Listing::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let value = value.into_owned();
        match name.as_ref() {
            "user_id" => listing.user_id = Some(value).filter(|value| !value.is_empty()),
            "page_token" => listing.page_token = Some(value).filter(|value| !value.is_empty()),
            "page_size" => {
                let size =
                    value.parse().map_err(|_| Problem::invalid("page_size: should be from 1 to 30"))?;
                listing.page_size = Some(size);
            }
            _ => {
                return Err(Problem::invalid("The query takes user_id, page_size and page_token."));
            }
        }
    }
    Ok(listing)
}
