//! Key management over HTTP, for backends that do not hold Scalekit's client secret. It is off unless `[management]` is configured,
//! and never on the public port. A new key is in the response to its creation and nowhere else.

mod audit;
mod auth;
mod idempotency;
mod json_body;
mod problem;
mod request;
mod usage;

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::scalekit::ExposeSecret;
use ::scalekit::client::Client;
use ::scalekit::token::{PageRequest, Token, TokenUpdate};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, EXPECT, HeaderValue, LOCATION};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use jiff::Timestamp;
use moka::sync::Cache;
use serde::Serialize;
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use self::audit::Audit;
use self::auth::Auth;
use self::idempotency::{Idempotency, RETENTION};
use self::problem::{Code, Problem};
use self::request::{Call, Creation, Operation, Patch, Rotation};
use crate::body::{self, Body};
use crate::budget::Account;
use crate::keys::rules::{Issuance, IssuanceRules};
use crate::keys::{self, KeyError, Keys, TokenId};
use crate::listener::{Handler, Listen};
use crate::logging::output::AuditSlot;
use crate::metrics::Metrics;
use crate::peer::Peer;
use crate::tls::KeyPair;
use crate::usage::Usage;

/// `[management]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Without TLS and a secret only a unix socket or a loopback address is accepted.
    pub listen: Listen,
    /// Mode of the unix socket, as in `chmod`.
    pub socket_mode: u32,
    /// Certificate and key, where the listener speaks TLS.
    pub tls: Option<KeyPair>,
    /// File with the secret that clients send as `Authorization: Bearer …`. It is read for every request.
    pub secret_file: Option<PathBuf>,
    /// What clients may do.
    pub rules: IssuanceRules,
}

/// The OpenAPI document, served at `/openapi.json`.
pub const OPENAPI: &str = include_str!("../docs/openapi.json");

/// The minimum length of the secret, in bytes.
pub const SHORTEST_SECRET: usize = 16;

/// Maximum number of connections.
pub const CONNECTIONS: usize = 256;
/// Memory for requests, in bytes: enough for all that are served at once, and for as many that are refused with 503.
pub const MEMORY: usize = 128 * 1024 * 1024;

/// How many ids of revoked keys are remembered, so that a repeated revocation succeeds.
const MAX_REVOKED: u64 = 10_000;
/// Concurrent requests over all connections. Each may hold a body in memory.
const MAX_REQUESTS: usize = 256;
/// Concurrent requests that call Scalekit.
const MAX_CALLS: usize = 32;
/// How long a request waits for a call permit, a key lock or room in the audit log.
const WAIT_LIMIT: Duration = Duration::from_secs(5);
/// Number of locks for changes of keys. Two keys whose ids hash to the same lock wait for each other.
const KEY_LOCKS: usize = 64;

/// The handler of the management listener.
pub struct Management {
    keys: Keys,
    usage: Option<Arc<Usage>>,
    rules: IssuanceRules,
    auth: Auth,
    idempotency: Idempotency,
    /// The organization of each revoked key.
    revoked: Cache<TokenId, String>,
    /// Serializes read-modify-write of one key, as Scalekit has no conditional update. Indexed by a hash of the id; tokio's mutex,
    /// because it is held across calls to Scalekit.
    key_locks: [Mutex<()>; KEY_LOCKS],
    hash: RandomState,
    request_permits: Semaphore,
    call_permits: Semaphore,
    /// A request that was begun is completed and audited even if the client disconnects.
    tasks: TaskTracker,
    audit: Audit,
}

struct Outcome {
    status: StatusCode,
    content: Content,
    token_id: Option<Box<str>>,
    location: Option<String>,
    /// What was left undone although the request succeeded.
    warning: Option<String>,
}

enum Content {
    Json(serde_json::Value),
    Lines(Body),
}

#[derive(Serialize)]
struct CreatedBody<'a> {
    token: &'a str,
    token_id: &'a str,
    token_info: &'a Token,
}

impl Handler for Management {
    async fn handle(
        self: Arc<Self>,
        request: Request<Body>,
        peer: Peer,
        _account: &Arc<Account>,
    ) -> Response<Body> {
        let tasks = self.tasks.clone();
        let answered = tasks.spawn(async move { self.handle_request(request, peer).await }).await;
        // A task ends without a response only if it panics.
        answered.unwrap_or_else(|_| Problem::internal().to_response())
    }
}

impl Management {
    /// `tasks` keeps the process alive until changes that were begun are done.
    pub fn new(
        settings: &Settings,
        client: Client,
        usage: Option<Arc<Usage>>,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            keys: Keys::new(client),
            usage,
            rules: settings.rules.clone(),
            auth: Auth::new(settings),
            idempotency: Idempotency::default(),
            revoked: Cache::builder().max_capacity(MAX_REVOKED).time_to_live(RETENTION).build(),
            key_locks: std::array::from_fn(|_| Mutex::default()),
            hash: RandomState::new(),
            request_permits: Semaphore::new(MAX_REQUESTS),
            call_permits: Semaphore::new(MAX_CALLS),
            tasks,
            audit: Audit::new(metrics),
        }
    }

    async fn handle_request(&self, request: Request<Body>, peer: Peer) -> Response<Body> {
        if request.method() == hyper::Method::GET && request.uri().path() == "/openapi.json" {
            return json_response(StatusCode::OK, OPENAPI);
        }
        let (head, mut body) = request.into_parts();
        // Room for the audit line is reserved first, so that nothing is done without one.
        let outcome = match AuditSlot::reserve(WAIT_LIMIT).await {
            Some(slot) => self.perform_audited(&head, &mut body, peer, slot).await,
            None => {
                self.audit.count_refusal_without_line();
                Err(Problem::overloaded("The audit log cannot be written at the moment; nothing was done."))
            }
        };
        // A client that sent Expect: 100-continue and got no 100 has not sent its body.
        if !head.headers.contains_key(EXPECT) {
            json_body::drain_body(&mut body).await;
        }
        match outcome {
            Err(problem) => problem.to_response(),
            Ok(done) if done.status == StatusCode::NO_CONTENT => {
                let mut response = Response::new(body::empty());
                *response.status_mut() = done.status;
                response
            }
            Ok(done) => {
                let mut response = match done.content {
                    Content::Json(content) => json_response(done.status, content.to_string()),
                    Content::Lines(lines) => ok_response("application/jsonl", lines),
                };
                if let Some(location) = done.location.and_then(|path| HeaderValue::try_from(path).ok()) {
                    response.headers_mut().insert(LOCATION, location);
                }
                response
            }
        }
    }

    async fn perform_audited(
        &self,
        head: &Parts,
        body: &mut Body,
        peer: Peer,
        slot: AuditSlot,
    ) -> Result<Outcome, Problem> {
        let mut entry = self.audit.begin_entry(self.auth.describe_client(peer), slot);
        let performing = async {
            self.auth.authorize(head)?;
            let Ok(_permit) = self.request_permits.try_acquire() else {
                return Err(Problem::overloaded("Too many requests are in progress; try again."));
            };
            let call = Call::read(head, body).await?;
            entry.set_call(&call);
            self.perform_call(&call).await
        };
        let outcome = performing.await;
        entry.set_outcome(&outcome);
        outcome
    }

    async fn perform_call(&self, call: &Call) -> Result<Outcome, Problem> {
        let organization = &call.organization;
        match &call.operation {
            Operation::Create(creation) => {
                self.create_once(call, self.create_key(organization, creation)).await
            }
            Operation::List(listing) => {
                let listing = PageRequest { organization_id: organization.clone(), ..listing.clone() };
                let _permit = self.acquire_call_permit().await?;
                let page = self.keys.list(&listing).await?;
                Ok(Outcome::of_json(StatusCode::OK, usage::page_with_usage(&page, self.usage.as_deref())?))
            }
            Operation::Show(id) => {
                let _permit = self.acquire_call_permit().await?;
                let token = self.find_key(organization, id).await?;
                Ok(Outcome::of_json(StatusCode::OK, usage::token_with_usage(&token, self.usage.as_deref())?))
            }
            Operation::Usage(days) => usage::list_usage(self.usage.as_deref(), days),
            Operation::Update(id, patch) => self.update_key(organization, id, patch).await,
            Operation::Revoke(id) => self.revoke_key(organization, id).await,
            Operation::Rotate(id, rotation) => {
                self.create_once(call, self.rotate_key(organization, id, rotation)).await
            }
        }
    }

    /// Creates a key unless the same `Idempotency-Key` already has.
    async fn create_once(
        &self,
        call: &Call,
        creating: impl Future<Output = Result<Outcome, Problem>>,
    ) -> Result<Outcome, Problem> {
        let Some(name) = &call.idempotency_key else { return creating.await };
        let reservation = self.idempotency.reserve(&call.path, name, &call.content, Instant::now())?;
        let created = creating.await;
        match &created {
            Ok(Outcome { token_id: Some(id), .. }) => reservation.record_created(id.to_string()),
            Err(problem) if problem.code == Code::OutcomeUnknown => {
                reservation.record_unknown(problem.suspects.clone())
            }
            Ok(_) | Err(_) => reservation.release(),
        }
        created
    }

    async fn acquire_call_permit(&self) -> Result<SemaphorePermit<'_>, Problem> {
        match timeout(WAIT_LIMIT, self.call_permits.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => {
                Err(Problem::overloaded("Too many calls to Scalekit are in progress; try again."))
            }
        }
    }

    async fn lock_key(&self, id: &TokenId) -> Result<MutexGuard<'_, ()>, Problem> {
        let hash = self.hash.hash_one(id);
        let index = usize::try_from(hash % KEY_LOCKS as u64).unwrap_or_default();
        let lock = timeout(WAIT_LIMIT, self.key_locks[index].lock()).await;
        lock.map_err(|_| Problem::overloaded("Another change of this key is in progress; try again."))
    }

    async fn create_key(&self, organization: &str, creation: &Creation) -> Result<Outcome, Problem> {
        let mut new = creation.to_new_token(organization);
        self.rules.enforce(&mut new, Issuance::Creation, Timestamp::now())?;
        let _permit = self.acquire_call_permit().await?;
        let created = self.keys.create(&new).await?;
        let (key, token) = (created.token.expose_secret(), &created.info);
        let body = CreatedBody { token: key, token_id: &token.token_id, token_info: token };
        Ok(Outcome {
            token_id: Some(token.token_id.as_str().into()),
            location: Some(key_location(organization, token)),
            ..Outcome::new(StatusCode::CREATED, &body)?
        })
    }

    /// SECURITY: a key of another organization is answered as if it did not exist.
    async fn find_key(&self, organization: &str, id: &TokenId) -> Result<Token, Problem> {
        let token = self.keys.find(id).await?;
        if token.organization_id == organization { Ok(token) } else { Err(Problem::not_found()) }
    }

    async fn update_key(&self, organization: &str, id: &TokenId, patch: &Patch) -> Result<Outcome, Problem> {
        let _lock = self.lock_key(id).await?;
        let _permit = self.acquire_call_permit().await?;
        let before = self.find_key(organization, id).await?;
        let change = patch.to_change(&before)?;
        if let Some(claims) = &change.custom_claims {
            self.rules.check_claims(&before.custom_claims, claims)?;
        }
        if change == TokenUpdate::default() {
            return Outcome::new(StatusCode::OK, &before);
        }
        Outcome::new(StatusCode::OK, &self.keys.update(id, &change).await?)
    }

    async fn revoke_key(&self, organization: &str, id: &TokenId) -> Result<Outcome, Problem> {
        if self.revoked.get(id).as_deref() != Some(organization) {
            let _permit = self.acquire_call_permit().await?;
            self.find_key(organization, id).await?;
            self.revoke_and_remember(organization, id).await?;
        }
        Ok(Outcome {
            status: StatusCode::NO_CONTENT,
            content: Content::Json(json!(null)),
            token_id: None,
            location: None,
            warning: None,
        })
    }

    async fn revoke_and_remember(&self, organization: &str, id: &TokenId) -> Result<(), KeyError> {
        match self.keys.revoke(id).await {
            // A lookup tells whether a revocation whose response was lost took place.
            Err(error @ KeyError::OutcomeUnknown(_)) => match self.keys.find(id).await {
                Err(KeyError::NotFound) => {}
                _ => return Err(error),
            },
            done => done?,
        }
        self.revoked.insert(id.clone(), organization.to_owned());
        Ok(())
    }

    async fn rotate_key(
        &self,
        organization: &str,
        id: &TokenId,
        rotation: &Rotation,
    ) -> Result<Outcome, Problem> {
        let _lock = self.lock_key(id).await?;
        let _permit = self.acquire_call_permit().await?;
        let old = self.find_key(organization, id).await?;
        let mut new = keys::to_successor(&old);
        self.rules.enforce(&mut new, Issuance::Rotation, Timestamp::now())?;
        let created = self.keys.create_successor(&old, &new).await?;
        // The new key exists and must be returned, whether or not the old one can be revoked.
        let revoked =
            if rotation.keep_old { None } else { Some(self.revoke_and_remember(organization, id).await) };
        let warning = match &revoked {
            Some(Err(error)) => Some(format!("the old key is not revoked and may still work: {error}")),
            Some(Ok(())) | None => None,
        };
        let token = &created.info;
        let mut content = json!({
            "token": created.token.expose_secret(),
            "token_id": token.token_id,
            "token_info": token,
            "replaced_token_id": old.token_id,
            "replaced_token_revoked": matches!(revoked, Some(Ok(()))),
        });
        if let Some(warning) = &warning {
            content["warning"] = warning.as_str().into();
        }
        Ok(Outcome {
            status: StatusCode::CREATED,
            content: Content::Json(content),
            token_id: Some(token.token_id.as_str().into()),
            location: Some(key_location(organization, token)),
            warning,
        })
    }
}

fn key_location(organization: &str, token: &Token) -> String {
    format!("/v1/organizations/{organization}/keys/{}", token.token_id)
}

impl Outcome {
    fn new(status: StatusCode, content: &impl Serialize) -> Result<Self, Problem> {
        // Never fails for the structs and maps of strings that are passed here.
        Ok(Self::of_json(status, serde_json::to_value(content).map_err(|_| Problem::internal())?))
    }

    fn of_json(status: StatusCode, content: serde_json::Value) -> Self {
        Self { status, content: Content::Json(content), token_id: None, location: None, warning: None }
    }
}

fn json_response(status: StatusCode, content: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = ok_response("application/json", body::full(content));
    *response.status_mut() = status;
    response
}

fn ok_response(content_type: &'static str, content: Body) -> Response<Body> {
    let mut response = Response::new(content);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
