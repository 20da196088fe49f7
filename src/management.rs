//! Key management over HTTP, for backends that never hold Scalekit's client secret themselves: off unless the file says where
//! it listens, and never on the public port. A new key is in the answer to its creation, and nowhere else.

mod access;
mod once;
mod problem;
mod request;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{Request, Response, StatusCode};
use jiff::Timestamp;
use moka::sync::Cache;
use serde::Serialize;
use serde_json::json;
use tokio_util::task::TaskTracker;

use self::access::Access;
use self::once::{KEPT, Once};
use self::problem::Problem;
use self::request::{Call, Creation, Operation, Patch, Rotation};
use crate::body::{self, Body};
use crate::keys::rules::Rules;
use crate::keys::{self, KeyError, Keys, TokenId};
use crate::listener::{Handler, Listen};
use crate::metrics::{self, Metrics};
use crate::scalekit::Scalekit;
use crate::scalekit::management::{Created, Listing, NewToken, Token};
use crate::tls::KeyPair;
use crate::upstream::forwarded::Peer;

/// `[management]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where: a unix socket or, without TLS and a secret, a loopback address.
    pub listen: Listen,
    /// Who may connect to a unix socket, as in `chmod`.
    pub socket_mode: u32,
    /// TLS, with ALPN.
    pub tls: Option<KeyPair>,
    /// A file with what callers present as `Authorization: Bearer …`, read anew for each request.
    pub secret_file: Option<PathBuf>,
    /// What callers may do.
    pub rules: Rules,
}

/// The description of this interface, as it is served.
pub const OPENAPI: &str = include_str!("management/openapi.json");

/// Ids of keys revoked here that are remembered, so that a repeated revocation succeeds.
const REVOKED: u64 = 10_000;

/// Answers on the management listener.
pub struct Management {
    keys: Keys,
    rules: Rules,
    access: Access,
    once: Once,
    /// Whose they were.
    revoked: Cache<TokenId, String>,
    /// What reads, decides and writes does so alone: Scalekit has no condition to write under. Held across calls on purpose.
    writing: tokio::sync::Mutex<()>,
    /// What was begun is finished and recorded, whether or not the caller is still there.
    tasks: TaskTracker,
    metrics: Arc<Metrics>,
}

/// What a request did, for the record.
struct Done {
    status: StatusCode,
    content: serde_json::Value,
    token_id: Option<Box<str>>,
    location: Option<String>,
}

#[derive(Serialize)]
struct CreatedBody<'a> {
    token: &'a str,
    token_id: &'a str,
    token_info: &'a Token,
}

impl Handler for Management {
    async fn answer(self: Arc<Self>, request: Request<Body>, peer: Peer) -> Response<Body> {
        let tasks = self.tasks.clone();
        let answered = tasks.spawn(async move { self.handle(request, peer).await }).await;
        // Only a panic ends a task without an answer.
        answered.unwrap_or_else(|_| {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "This is a defect of Keyward's.")
                .response()
        })
    }
}

impl Management {
    /// Key management in this environment.
    pub fn new(
        settings: &Settings,
        scalekit: Arc<Scalekit>,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            keys: Keys::new(scalekit),
            rules: settings.rules.clone(),
            access: Access::of(settings),
            once: Once::default(),
            revoked: Cache::builder().max_capacity(REVOKED).time_to_live(KEPT).build(),
            writing: tokio::sync::Mutex::default(),
            tasks,
            metrics,
        }
    }

    async fn handle(&self, request: Request<Body>, peer: Peer) -> Response<Body> {
        if request.method() == hyper::Method::GET && request.uri().path() == "/openapi.json" {
            return answer(StatusCode::OK, OPENAPI);
        }
        let client = self.access.client(peer);
        let (call, done) = match self.access.admit(&request) {
            Err(problem) => (None, Err(problem)),
            Ok(()) => match Call::read(request).await {
                Err(problem) => (None, Err(problem)),
                Ok(call) => {
                    let done = self.perform(&call).await;
                    (Some(call), done)
                }
            },
        };
        self.record(&client, call.as_ref(), &done);
        match done {
            Err(problem) => problem.response(),
            Ok(done) if done.status == StatusCode::NO_CONTENT => {
                let mut response = Response::new(body::empty());
                *response.status_mut() = done.status;
                response
            }
            Ok(done) => {
                let mut response = answer(done.status, done.content.to_string());
                if let Some(location) = done.location.and_then(|place| HeaderValue::try_from(place).ok()) {
                    response.headers_mut().insert(LOCATION, location);
                }
                response
            }
        }
    }

    /// One line for each change and each refusal, and a count for everything.
    fn record(&self, client: &str, call: Option<&Call>, done: &Result<Done, Problem>) {
        let operation = call.map_or("none", |call| call.operation.name());
        let outcome = done.as_ref().map_or_else(|problem| problem.code, |_| "done");
        self.metrics.management.get_or_create(&metrics::Management { operation, outcome }).inc();
        let is_reading = matches!(operation, "list" | "show");
        if is_reading && done.is_ok() {
            return;
        }
        let named = call.and_then(|call| call.operation.token_id()).map(TokenId::to_string);
        let made =
            done.as_ref().map_or_else(|problem| problem.token_id.clone(), |done| done.token_id.clone());
        tracing::event!(
            target: "audit",
            tracing::Level::INFO,
            keyward.audit.client = client,
            keyward.audit.action = operation,
            keyward.audit.outcome = outcome,
            keyward.org.id = call.map(|call| call.organization.as_str()),
            keyward.token.id = named.as_deref().or(made.as_deref()),
            keyward.new_token.id = named.as_deref().and(made.as_deref()),
            "key management"
        );
    }

    async fn perform(&self, call: &Call) -> Result<Done, Problem> {
        let organization = &call.organization;
        match &call.operation {
            Operation::Create(creation) => self.create(call, creation).await,
            Operation::List(listing) => {
                let listing = Listing { organization_id: organization.clone(), ..listing.clone() };
                done(StatusCode::OK, &self.keys.list(&listing).await?)
            }
            Operation::Show(id) => done(StatusCode::OK, &self.find(organization, id).await?),
            Operation::Update(id, patch) => self.update(organization, id, patch).await,
            Operation::Revoke(id) => self.revoke(organization, id).await,
            Operation::Rotate(id, rotation) => self.rotate(call, id, rotation).await,
        }
    }

    async fn create(&self, call: &Call, creation: &Creation) -> Result<Done, Problem> {
        let mut new = creation.of(&call.organization);
        self.rules.hold(&mut new, Timestamp::now())?;
        let created = self.make(call, &new).await?;
        let (key, token) = (created.key.expose(), &created.token);
        let body = CreatedBody { token: key, token_id: &token.token_id, token_info: token };
        Ok(Done {
            token_id: Some(token.token_id.as_str().into()),
            location: Some(place(token)),
            ..done(StatusCode::CREATED, &body)?
        })
    }

    /// Makes a key, once for each `Idempotency-Key`.
    async fn make(&self, call: &Call, new: &NewToken) -> Result<Created, Problem> {
        let turn = match &call.idempotency_key {
            Some(name) => Some(self.once.begin(&call.path, name, &call.content, Instant::now())?),
            None => None,
        };
        let created = self.keys.create(new).await;
        if let Some(turn) = turn {
            match &created {
                Ok(created) => turn.made(created.token.token_id.clone()),
                Err(KeyError::Lost { suspects, .. }) => match suspects.as_deref() {
                    Some([]) => turn.undone(),
                    suspects => turn.unknown(suspects.unwrap_or_default().to_vec()),
                },
                Err(_) => turn.undone(),
            }
        }
        Ok(created?)
    }

    /// A live key of this organization; one of another is none.
    async fn find(&self, organization: &str, id: &TokenId) -> Result<Token, Problem> {
        let token = self.keys.find(id).await?;
        if token.organization_id == organization { Ok(token) } else { Err(Problem::not_found()) }
    }

    async fn update(&self, organization: &str, id: &TokenId, patch: &Patch) -> Result<Done, Problem> {
        let _alone = self.writing.lock().await;
        let before = self.find(organization, id).await?;
        let change = patch.of(&before)?;
        if let Some(claims) = &change.custom_claims {
            self.rules.allow(&before.custom_claims, claims)?;
        }
        done(StatusCode::OK, &self.keys.update(id, &change).await?)
    }

    async fn revoke(&self, organization: &str, id: &TokenId) -> Result<Done, Problem> {
        if self.revoked.get(id).as_deref() != Some(organization) {
            self.find(organization, id).await?;
            self.end(organization, id).await?;
        }
        Ok(Done { status: StatusCode::NO_CONTENT, content: json!(null), token_id: None, location: None })
    }

    async fn end(&self, organization: &str, id: &TokenId) -> Result<(), KeyError> {
        self.keys.revoke(id).await?;
        self.revoked.insert(id.clone(), organization.to_owned());
        Ok(())
    }

    async fn rotate(&self, call: &Call, id: &TokenId, rotation: &Rotation) -> Result<Done, Problem> {
        let _alone = self.writing.lock().await;
        let old = self.find(&call.organization, id).await?;
        let mut new = keys::successor(&old);
        self.rules.hold_successor(&mut new, Timestamp::now())?;
        let created = self.make(call, &new).await?;
        // The new key is there, whatever becomes of the old one.
        let ended = if rotation.keep_old { None } else { Some(self.end(&call.organization, id).await) };
        let warning = match &ended {
            Some(Err(error)) => Some(format!("the old key is not revoked, and still good: {error}")),
            Some(Ok(())) | None => None,
        };
        let token = &created.token;
        let mut content = json!({
            "token": created.key.expose(),
            "token_id": token.token_id,
            "token_info": token,
            "replaced_token_id": old.token_id,
            "replaced_token_revoked": matches!(ended, Some(Ok(()))),
        });
        if let Some(warning) = warning {
            content["warning"] = warning.into();
        }
        Ok(Done {
            status: StatusCode::CREATED,
            content,
            token_id: Some(token.token_id.as_str().into()),
            location: Some(place(token)),
        })
    }
}

fn place(token: &Token) -> String {
    format!("/v1/organizations/{}/keys/{}", token.organization_id, token.token_id)
}

fn done(status: StatusCode, content: &impl Serialize) -> Result<Done, Problem> {
    // Structs of texts, numbers and maps of text have a form in JSON.
    let content = serde_json::to_value(content).map_err(|_| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "This is a defect of Keyward's.")
    })?;
    Ok(Done { status, content, token_id: None, location: None })
}

fn answer(status: StatusCode, content: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(body::full(content));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
