//! Reads what is asked for. Everything that is not understood is refused, with what would be.

use ::scalekit::token::{NewToken, PageRequest, Token, TokenUpdate};
use bytes::Bytes;
use hyper::Method;
use hyper::http::request::Parts;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use super::content::{self, Unique};
use super::problem::{Code, Problem};
use crate::body::Body;
use crate::keys::{self, TokenId};

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
    List(PageRequest),
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
    custom_claims: Option<Unique<String>>,
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
    custom_claims: Option<Option<Unique<Option<String>>>>,
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
    /// Reads what is asked for, and of the body what belongs to it.
    pub(super) async fn read(head: &Parts, body: &mut Body) -> Result<Self, Problem> {
        let path = head.uri.path().to_owned();
        let segments: Vec<&str> = path.split('/').collect();
        if segments == ["", "openapi.json"] {
            return Err(method_not_allowed("GET"));
        }
        let ["", "v1", "organizations", organization, "keys", rest @ ..] = segments.as_slice() else {
            return Err(no_such_path());
        };
        if !is_id(organization) {
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
            return Err(method_not_allowed(allowed));
        }
        let is_list = rest.is_empty() && *method == Method::GET;
        if !is_list && head.uri.query().is_some() {
            return Err(Problem::invalid("This path takes no query."));
        }
        let idempotency_key = idempotency_key(&head.headers)?;
        // Of the others no body is expected, and none is looked at.
        let has_body = matches!(*method, Method::POST | Method::PATCH);
        let content = if has_body { content::read(body).await? } else { Bytes::new() };
        let headers = &head.headers;
        let operation = match (rest, method) {
            ([], &Method::GET) => Operation::List(listing(head.uri.query().unwrap_or_default())?),
            ([], _) => Operation::Create(content::parse::<Creation>(headers, &content)?.checked()?),
            ([one], &Method::GET) => Operation::Show(id(one)?),
            ([one], &Method::DELETE) => Operation::Revoke(id(one)?),
            ([one], _) => Operation::Update(id(one)?, content::parse(headers, &content)?),
            ([one, ..], _) if content.is_empty() => Operation::Rotate(id(one)?, Rotation::default()),
            ([one, ..], _) => Operation::Rotate(id(one)?, content::parse(headers, &content)?),
        };
        let organization = (*organization).to_owned();
        Ok(Self { organization, operation, path, idempotency_key, content })
    }
}

impl Creation {
    fn checked(mut self) -> Result<Self, Problem> {
        // A key of a user whose id no header can carry would be 503 for ever. What an empty one means is told further on.
        if self.user_id.as_deref().is_some_and(|id| !id.is_empty() && !is_id(id)) {
            return Err(Problem::invalid(
                "user_id: should be an id: letters, digits, '_' and '-', at most 64",
            ));
        }
        let expiry = self.expiry.take();
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
            user_id: self.user_id.clone(),
            custom_claims: self.custom_claims.clone().map(|claims| claims.0).unwrap_or_default(),
            expiry: self.ends,
            description: some(&self.description),
        }
    }
}

impl Patch {
    /// What Scalekit is to be told, which knows no merging.
    pub(super) fn of(&self, before: &Token) -> Result<TokenUpdate, Problem> {
        let custom_claims = match &self.custom_claims {
            None => None,
            Some(None) => {
                return Err(Problem::invalid(
                    "custom_claims: should be an object; null claims are removed one by one",
                ));
            }
            Some(Some(changes)) => Some(keys::merged(&before.custom_claims, changes.0.clone())),
        };
        let description = self.description.clone().map(Option::unwrap_or_default);
        if custom_claims.is_none() && description.is_none() {
            return Err(Problem::invalid("Nothing to change: give custom_claims, description, or both."));
        }
        // What stays as it is need not be sent, and an empty map would change nothing.
        let custom_claims = custom_claims.filter(|claims| *claims != before.custom_claims);
        Ok(TokenUpdate { custom_claims, description })
    }
}

/// Whether it can be the id of an organization or a user.
fn is_id(text: &str) -> bool {
    let of_an_id = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(of_an_id)
}

fn method_not_allowed(allowed: &'static str) -> Problem {
    let detail = format!("This path takes {allowed}.");
    Problem { allow: Some(allowed), ..Problem::new(Code::MethodNotAllowed, detail) }
}

fn no_such_path() -> Problem {
    Problem::new(
        Code::NoRoute,
        "Paths begin with /v1/organizations/{organization_id}/keys; /openapi.json describes them.",
    )
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

fn listing(query: &str) -> Result<PageRequest, Problem> {
    let mut listing = PageRequest::default();
    let mut seen = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if seen.contains(&name) {
            return Err(Problem::invalid("The query takes each of its names once."));
        }
        seen.push(name.clone());
        let value = value.into_owned();
        match name.as_ref() {
            "user_id" => listing.user_id = Some(value),
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
