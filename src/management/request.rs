//! Parses requests. Anything unknown is refused, with a message that says what is accepted.

use ::scalekit::token::{NewToken, PageRequest, Token, TokenUpdate};
use bytes::Bytes;
use hyper::Method;
use hyper::http::request::Parts;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use super::json_body::{self, UniqueKeys};
use super::problem::{Code, Problem};
use super::usage::Days;
use crate::body::Body;
use crate::keys::{self, TokenId};
use crate::usage::{Day, parse_day};

/// A request that was parsed.
pub(super) struct Call {
    /// Empty for the use by all organizations.
    pub(super) organization: String,
    pub(super) operation: Operation,
    pub(super) path: String,
    pub(super) idempotency_key: Option<String>,
    /// The body as it was received, which the idempotency check compares.
    pub(super) content: Bytes,
}

pub(super) enum Operation {
    Create(Creation),
    /// Without an organization, which is the call's.
    List(PageRequest),
    Show(TokenId),
    Update(TokenId, Patch),
    Revoke(TokenId),
    Rotate(TokenId, Rotation),
    Usage(Days),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Creation {
    user_id: Option<String>,
    custom_claims: Option<UniqueKeys<String>>,
    expiry: Option<String>,
    #[serde(skip)]
    ends: Option<Timestamp>,
    description: Option<String>,
}

/// A JSON merge patch (RFC 7396): null removes a member, an absent one is unchanged.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Patch {
    #[serde(default, deserialize_with = "deserialize_present")]
    custom_claims: Option<Option<UniqueKeys<Option<String>>>>,
    #[serde(default, deserialize_with = "deserialize_present")]
    description: Option<Option<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotation {
    #[serde(default)]
    pub(super) keep_old: bool,
}

fn deserialize_present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

impl Operation {
    /// As the audit log and the metrics have it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::List(_) => "list",
            Self::Show(_) => "show",
            Self::Update(..) => "update",
            Self::Revoke(_) => "revoke",
            Self::Rotate(..) => "rotate",
            Self::Usage(_) => "usage",
        }
    }

    pub(super) fn token_id(&self) -> Option<&TokenId> {
        match self {
            Self::Create(_) | Self::List(_) | Self::Usage(_) => None,
            Self::Show(id) | Self::Update(id, _) | Self::Revoke(id) | Self::Rotate(id, _) => Some(id),
        }
    }
}

impl Call {
    /// Checks path, method and headers before it reads the body.
    pub(super) async fn read(head: &Parts, body: &mut Body) -> Result<Self, Problem> {
        let path = head.uri.path().to_owned();
        let segments: Vec<&str> = path.split('/').collect();
        if segments == ["", "openapi.json"] {
            return Err(method_not_allowed("GET"));
        }
        if segments == ["", "v1", "usage"] {
            return Self::read_usage(head, path);
        }
        let ["", "v1", "organizations", organization, "keys", rest @ ..] = segments.as_slice() else {
            return Err(no_such_path());
        };
        if !is_id(organization) {
            return Err(Problem::invalid(
                "The organization in the path should be an id: 1 to 64 letters, digits, '_' or '-'.",
            ));
        }
        // SECURITY: text that is not an id may be a key, so the error does not repeat it.
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
            return Err(Problem::invalid("This path takes no query string."));
        }
        let idempotency_key = parse_idempotency_key(&head.headers)?;
        // A body of any other method is ignored (RFC 9110, 9.3.1).
        let has_body = matches!(*method, Method::POST | Method::PATCH);
        let content = if has_body { json_body::read_body(body).await? } else { Bytes::new() };
        let headers = &head.headers;
        let operation = match (rest, method) {
            ([], &Method::GET) => Operation::List(parse_listing(head.uri.query().unwrap_or_default())?),
            ([], _) => {
                Operation::Create(json_body::parse_json::<Creation>(headers, &content)?.check_fields()?)
            }
            ([one], &Method::GET) => Operation::Show(id(one)?),
            ([one], &Method::DELETE) => Operation::Revoke(id(one)?),
            ([one], _) => Operation::Update(id(one)?, json_body::parse_json(headers, &content)?),
            ([one, ..], _) if content.is_empty() => Operation::Rotate(id(one)?, Rotation::default()),
            ([one, ..], _) => Operation::Rotate(id(one)?, json_body::parse_json(headers, &content)?),
        };
        let organization = (*organization).to_owned();
        Ok(Self { organization, operation, path, idempotency_key, content })
    }

    fn read_usage(head: &Parts, path: String) -> Result<Self, Problem> {
        if head.method != Method::GET {
            return Err(method_not_allowed("GET"));
        }
        let operation = Operation::Usage(parse_days(head.uri.query().unwrap_or_default())?);
        Ok(Self {
            organization: String::new(),
            operation,
            path,
            idempotency_key: None,
            content: Bytes::new(),
        })
    }
}

impl Creation {
    fn check_fields(mut self) -> Result<Self, Problem> {
        // A key of a user whose id cannot be sent in a header would be answered with 503 for ever. An empty id gets an error of
        // its own, from `keys`.
        if self.user_id.as_deref().is_some_and(|id| !id.is_empty() && !is_id(id)) {
            return Err(Problem::invalid("user_id: should be an id: 1 to 64 letters, digits, '_' or '-'"));
        }
        let expiry = self.expiry.take();
        let expiry = expiry.map(|text| text.parse()).transpose();
        self.ends = expiry.map_err(|_| {
            Problem::invalid("expiry: should be a timestamp such as \"2027-01-01T00:00:00Z\" (RFC 3339)")
        })?;
        Ok(self)
    }

    /// An empty description counts as none.
    pub(super) fn to_new_token(&self, organization: &str) -> NewToken {
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
    /// Merges here, as Scalekit only replaces all claims of a key.
    pub(super) fn to_change(&self, before: &Token) -> Result<TokenUpdate, Problem> {
        let custom_claims = match &self.custom_claims {
            None => None,
            Some(None) => {
                return Err(Problem::invalid(
                    "custom_claims: should be an object; set a claim in it to null to remove that claim",
                ));
            }
            Some(Some(changes)) => Some(keys::merge_claims(&before.custom_claims, changes.0.clone())),
        };
        let description = self.description.clone().map(Option::unwrap_or_default);
        if custom_claims.is_none() && description.is_none() {
            return Err(Problem::invalid("Nothing to change: give custom_claims, description, or both."));
        }
        // Unchanged claims need not be sent, and Scalekit ignores an empty map.
        let custom_claims = custom_claims.filter(|claims| *claims != before.custom_claims);
        Ok(TokenUpdate { custom_claims, description })
    }
}

/// Whether `text` can be the id of an organization or a user.
fn is_id(text: &str) -> bool {
    let is_id_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(is_id_byte)
}

fn method_not_allowed(allowed: &'static str) -> Problem {
    let detail = format!("This path takes {allowed}.");
    Problem { allow: Some(allowed), ..Problem::new(Code::MethodNotAllowed, detail) }
}

fn no_such_path() -> Problem {
    Problem::new(
        Code::NoRoute,
        "Paths are /v1/usage and those that begin with /v1/organizations/{organization_id}/keys; /openapi.json describes them.",
    )
}

fn parse_idempotency_key(headers: &hyper::HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| (1..=255).contains(&text.len()));
    match (text, values.next()) {
        (Some(text), None) => Ok(Some(text.to_owned())),
        _ => Err(Problem::invalid(
            "Idempotency-Key: should be sent once, with 1 to 255 visible ASCII characters",
        )),
    }
}

/// The parameters of a query string, none of them twice.
fn parse_query(query: &str) -> Result<Vec<(String, String)>, Problem> {
    let mut parameters: Vec<(String, String)> = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if parameters.iter().any(|(seen, _)| *seen == name) {
            return Err(Problem::invalid("A query parameter is given twice."));
        }
        parameters.push((name.into_owned(), value.into_owned()));
    }
    Ok(parameters)
}

fn parse_listing(query: &str) -> Result<PageRequest, Problem> {
    let mut page_request = PageRequest::default();
    for (name, value) in parse_query(query)? {
        match name.as_str() {
            "user_id" => page_request.user_id = Some(value),
            "page_token" => page_request.page_token = Some(value).filter(|value| !value.is_empty()),
            "page_size" => {
                let size =
                    value.parse().map_err(|_| Problem::invalid("page_size: should be from 1 to 30"))?;
                page_request.page_size = Some(size);
            }
            _ => {
                return Err(Problem::invalid(
                    "Unknown query parameter; this path takes user_id, page_size and page_token.",
                ));
            }
        }
    }
    Ok(page_request)
}

fn parse_days(query: &str) -> Result<Days, Problem> {
    let mut days = Days { from: 0, to: Day::MAX };
    for (name, value) in parse_query(query)? {
        let day = || {
            let problem = format!("{name}: should be a day such as 2026-11-25");
            parse_day(&value).ok_or_else(|| Problem::invalid(problem))
        };
        match name.as_str() {
            "from" => days.from = day()?,
            "to" => days.to = day()?,
            _ => return Err(Problem::invalid("Unknown query parameter; this path takes from and to.")),
        }
    }
    Ok(days)
}
