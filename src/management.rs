//! Key management over HTTP, for backends that never hold Scalekit's client secret themselves: off unless the file says where
//! it listens, and never on the public port. A new key is in the answer to its creation, and nowhere else.

mod access;
mod audit;
mod content;
mod once;
mod problem;
mod request;

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

use self::access::Access;
use self::audit::Audit;
use self::once::{KEPT, Once};
use self::problem::{Code, Problem};
use self::request::{Call, Creation, Operation, Patch, Rotation};
use crate::access_log::output::AuditSlot;
use crate::body::{self, Body};
use crate::budget::Account;
use crate::keys::rules::Rules;
use crate::keys::{self, KeyError, Keys, TokenId};
use crate::listener::{Handler, Listen};
use crate::metrics::Metrics;
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

/// The fewest characters of the secret.
pub const SHORTEST_SECRET: usize = 16;

/// Connections for key management at once.
pub const CONNECTIONS: usize = 256;
/// What its requests may hold, in bytes: room for all that are answered at once, and for as many that are told to wait.
pub const MEMORY: usize = 128 * 1024 * 1024;

/// Ids of keys revoked here that are remembered, so that a repeated revocation succeeds.
const REVOKED: u64 = 10_000;
/// Requests at once, over all connections; each may hold a body.
const REQUESTS: usize = 256;
/// And of these, that ask Scalekit something.
const CALLING: usize = 32;
/// How long a request waits for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(5);
/// Keys that are written at once; two of one place wait for each other.
const PLACES: usize = 64;

/// Answers on the management listener.
pub struct Management {
    keys: Keys,
    rules: Rules,
    access: Access,
    once: Once,
    /// Whose they were.
    revoked: Cache<TokenId, String>,
    /// What reads, decides and writes one key does so alone: Scalekit has no condition to write under. By a hash of its id.
    /// Held across calls on purpose.
    writing: [Mutex<()>; PLACES],
    hash: RandomState,
    requests: Semaphore,
    calling: Semaphore,
    /// What was begun is finished and recorded, whether or not the caller is still there.
    tasks: TaskTracker,
    audit: Audit,
}

/// What a request did, for the record.
struct Done {
    status: StatusCode,
    content: serde_json::Value,
    token_id: Option<Box<str>>,
    location: Option<String>,
    /// What of it was not done.
    warning: Option<String>,
}

#[derive(Serialize)]
struct CreatedBody<'a> {
    token: &'a str,
    token_id: &'a str,
    token_info: &'a Token,
}

impl Handler for Management {
    async fn answer(
        self: Arc<Self>,
        request: Request<Body>,
        peer: Peer,
        _account: &Arc<Account>,
    ) -> Response<Body> {
        let tasks = self.tasks.clone();
        let answered = tasks.spawn(async move { self.handle(request, peer).await }).await;
        // Only a panic ends a task without an answer.
        answered.unwrap_or_else(|_| Problem::internal().response())
    }
}

impl Management {
    /// Key management in this environment.
    pub fn new(settings: &Settings, client: Client, metrics: Arc<Metrics>, tasks: TaskTracker) -> Self {
        Self {
            keys: Keys::new(client),
            rules: settings.rules.clone(),
            access: Access::of(settings),
            once: Once::default(),
            revoked: Cache::builder().max_capacity(REVOKED).time_to_live(KEPT).build(),
            writing: std::array::from_fn(|_| Mutex::default()),
            hash: RandomState::new(),
            requests: Semaphore::new(REQUESTS),
            calling: Semaphore::new(CALLING),
            tasks,
            audit: Audit::new(metrics),
        }
    }

    async fn handle(&self, request: Request<Body>, peer: Peer) -> Response<Body> {
        if request.method() == hyper::Method::GET && request.uri().path() == "/openapi.json" {
            return answer(StatusCode::OK, OPENAPI);
        }
        let (head, mut body) = request.into_parts();
        // Nothing is done of which no line can be written.
        let done = match AuditSlot::reserve(TURN_WITHIN).await {
            Some(slot) => self.record(&head, &mut body, peer, slot).await,
            None => {
                self.audit.count_refusal_without_line();
                Err(Problem::overloaded("The audit log cannot be written at the moment; nothing was done."))
            }
        };
        // Who waits for a word before it sends has not sent.
        if !head.headers.contains_key(EXPECT) {
            content::drain(&mut body).await;
        }
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

    /// Does what is asked for, and writes the line of it.
    async fn record(
        &self,
        head: &Parts,
        body: &mut Body,
        peer: Peer,
        slot: AuditSlot,
    ) -> Result<Done, Problem> {
        let mut entry = self.audit.begin(self.access.client(peer), slot);
        let done = async {
            self.access.admit(head)?;
            let Ok(_place) = self.requests.try_acquire() else {
                return Err(Problem::overloaded("Too many requests are under way; try again."));
            };
            let call = Call::read(head, body).await?;
            entry.asked(&call);
            self.perform(&call).await
        };
        let done = done.await;
        entry.ended(&done);
        done
    }

    async fn perform(&self, call: &Call) -> Result<Done, Problem> {
        let organization = &call.organization;
        match &call.operation {
            Operation::Create(creation) => self.once(call, self.create(organization, creation)).await,
            Operation::List(listing) => {
                let listing = PageRequest { organization_id: organization.clone(), ..listing.clone() };
                let _turn = self.turn().await?;
                done(StatusCode::OK, &self.keys.list(&listing).await?)
            }
            Operation::Show(id) => {
                let _turn = self.turn().await?;
                done(StatusCode::OK, &self.find(organization, id).await?)
            }
            Operation::Update(id, patch) => self.update(organization, id, patch).await,
            Operation::Revoke(id) => self.revoke(organization, id).await,
            Operation::Rotate(id, rotation) => self.once(call, self.rotate(organization, id, rotation)).await,
        }
    }

    /// Makes a key, once for each `Idempotency-Key`.
    async fn once(
        &self,
        call: &Call,
        making: impl Future<Output = Result<Done, Problem>>,
    ) -> Result<Done, Problem> {
        let Some(name) = &call.idempotency_key else { return making.await };
        let turn = self.once.begin(&call.path, name, &call.content, Instant::now())?;
        let made = making.await;
        match &made {
            Ok(Done { token_id: Some(id), .. }) => turn.made(id.to_string()),
            Err(problem) if problem.code == Code::OutcomeUnknown => turn.unknown(problem.suspects.clone()),
            Ok(_) | Err(_) => turn.undone(),
        }
        made
    }

    /// The right to ask Scalekit.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, Problem> {
        match timeout(TURN_WITHIN, self.calling.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(Problem::overloaded("Scalekit is asked too much at once; try again.")),
        }
    }

    /// The right to change this key.
    async fn alone(&self, id: &TokenId) -> Result<MutexGuard<'_, ()>, Problem> {
        let hash = self.hash.hash_one(id);
        let place = usize::try_from(hash % PLACES as u64).unwrap_or_default();
        let alone = timeout(TURN_WITHIN, self.writing[place].lock()).await;
        alone.map_err(|_| Problem::overloaded("Other changes are still under way; try again."))
    }

    async fn create(&self, organization: &str, creation: &Creation) -> Result<Done, Problem> {
        let mut new = creation.of(organization);
        self.rules.hold(&mut new, Timestamp::now())?;
        let _turn = self.turn().await?;
        let created = self.keys.create(&new).await?;
        let (key, token) = (created.token.expose_secret(), &created.info);
        let body = CreatedBody { token: key, token_id: &token.token_id, token_info: token };
        Ok(Done {
            token_id: Some(token.token_id.as_str().into()),
            location: Some(place(organization, token)),
            ..done(StatusCode::CREATED, &body)?
        })
    }

    /// A live key of this organization; one of another is none.
    async fn find(&self, organization: &str, id: &TokenId) -> Result<Token, Problem> {
        let token = self.keys.find(id).await?;
        if token.organization_id == organization { Ok(token) } else { Err(Problem::not_found()) }
    }

    async fn update(&self, organization: &str, id: &TokenId, patch: &Patch) -> Result<Done, Problem> {
        let _alone = self.alone(id).await?;
        let _turn = self.turn().await?;
        let before = self.find(organization, id).await?;
        let change = patch.of(&before)?;
        if let Some(claims) = &change.custom_claims {
            self.rules.allow(&before.custom_claims, claims)?;
        }
        if change == TokenUpdate::default() {
            return done(StatusCode::OK, &before);
        }
        done(StatusCode::OK, &self.keys.update(id, &change).await?)
    }

    async fn revoke(&self, organization: &str, id: &TokenId) -> Result<Done, Problem> {
        if self.revoked.get(id).as_deref() != Some(organization) {
            let _turn = self.turn().await?;
            self.find(organization, id).await?;
            self.end(organization, id).await?;
        }
        Ok(Done {
            status: StatusCode::NO_CONTENT,
            content: json!(null),
            token_id: None,
            location: None,
            warning: None,
        })
    }

    async fn end(&self, organization: &str, id: &TokenId) -> Result<(), KeyError> {
        match self.keys.revoke(id).await {
            // Whether it was done can be seen.
            Err(error @ KeyError::OutcomeUnknown(_)) => match self.keys.find(id).await {
                Err(KeyError::NotFound) => {}
                _ => return Err(error),
            },
            done => done?,
        }
        self.revoked.insert(id.clone(), organization.to_owned());
        Ok(())
    }

    async fn rotate(&self, organization: &str, id: &TokenId, rotation: &Rotation) -> Result<Done, Problem> {
        let _alone = self.alone(id).await?;
        let _turn = self.turn().await?;
        let old = self.find(organization, id).await?;
        let mut new = keys::successor(&old);
        self.rules.hold_successor(&mut new, Timestamp::now())?;
        let created = self.keys.create_successor(&old, &new).await?;
        // The new key is there, whatever becomes of the old one.
        let ended = if rotation.keep_old { None } else { Some(self.end(organization, id).await) };
        let warning = match &ended {
            Some(Err(error)) => Some(format!("the old key is not revoked, and may still be good: {error}")),
            Some(Ok(())) | None => None,
        };
        let token = &created.info;
        let mut content = json!({
            "token": created.token.expose_secret(),
            "token_id": token.token_id,
            "token_info": token,
            "replaced_token_id": old.token_id,
            "replaced_token_revoked": matches!(ended, Some(Ok(()))),
        });
        if let Some(warning) = &warning {
            content["warning"] = warning.as_str().into();
        }
        Ok(Done {
            status: StatusCode::CREATED,
            content,
            token_id: Some(token.token_id.as_str().into()),
            location: Some(place(organization, token)),
            warning,
        })
    }
}

fn place(organization: &str, token: &Token) -> String {
    format!("/v1/organizations/{organization}/keys/{}", token.token_id)
}

fn done(status: StatusCode, content: &impl Serialize) -> Result<Done, Problem> {
    // Structs of texts, numbers and maps of text have a form in JSON.
    let content = serde_json::to_value(content).map_err(|_| Problem::internal())?;
    Ok(Done { status, content, token_id: None, location: None, warning: None })
}

fn answer(status: StatusCode, content: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(body::full(content));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
