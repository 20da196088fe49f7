//! A Scalekit in memory: API keys over REST and gRPC as the real service answers, with faults on demand, for tests in any
//! language and for `keyward dev`. Where Scalekit's behaviour is not published, the source says that it is assumed.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use access::{Access, Permission};
use certificate::Certificate;
use connections::Tasks;
use counts::{Counters, Counts};
use directory::{Directory, Only};
use faults::{Effect, Fault, Faults};
use store::{Issue, Issued, Store};

pub mod access;
mod body;
pub mod certificate;
mod connections;
pub mod counts;
pub mod directory;
mod duration;
pub mod echo;
mod endpoint;
pub mod faults;
mod key;
mod service;
pub mod store;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How an emulator is to be.
#[derive(Clone)]
pub struct Settings {
    /// The client that may ask for access tokens.
    pub client_id: String,
    /// Its secret.
    pub client_secret: String,
    /// The organizations and users that exist; none: all that are named.
    pub only: Vec<Only>,
    /// How long an access token is good.
    pub access_token_lifetime: Duration,
    /// What the client may do.
    pub permissions: Vec<Permission>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            client_id: "dev".to_owned(),
            client_secret: "dev".to_owned(),
            only: Vec::new(),
            access_token_lifetime: Duration::from_secs(86_399),
            permissions: vec![Permission::Read, Permission::Write, Permission::Rotate],
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("client_id", &self.client_id)
            .field("only", &self.only)
            .field("access_token_lifetime", &self.access_token_lifetime)
            .field("permissions", &self.permissions)
            .finish_non_exhaustive()
    }
}

/// A handle on an emulator. Clones are handles on the same one, and it may serve many listeners.
#[derive(Clone)]
pub struct Emulator {
    shared: Arc<Shared>,
}

struct Shared {
    access: Access,
    counters: Counters,
    faults: Faults,
    store: Store,
    /// Cancelled, and replaced, to close the connections that are open.
    connections: Mutex<CancellationToken>,
}

impl Emulator {
    /// An emulator without keys. It serves nothing yet.
    pub fn new(settings: Settings) -> Self {
        let Settings { client_id, client_secret, only, access_token_lifetime, permissions } = settings;
        let shared = Shared {
            access: Access::new(client_id, client_secret, permissions, access_token_lifetime),
            counters: Counters::default(),
            faults: Faults::default(),
            store: Store::new(Directory::new(only)),
            connections: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Serves HTTP/1.1 and HTTP/2 with prior knowledge on one port until told to stop, when every connection ends.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) {
        self.serve_as(listener, None, stop).await;
    }

    /// Serves the same over TLS, HTTP/2 or HTTP/1.1 as the client chooses.
    pub async fn serve_tls(&self, listener: TcpListener, certificate: &Certificate, stop: CancellationToken) {
        self.serve_as(listener, Some(certificate.acceptor()), stop).await;
    }

    /// Makes a key. Nothing is checked: tests may have what the API refuses.
    pub fn issue(&self, issue: Issue) -> Issued {
        let (key, token) = self.shared.store.issue(issue, Timestamp::now());
        Issued { key, token_id: token.token_id }
    }

    /// An access token of the client's own, short enough for a command line.
    pub fn access_token(&self) -> String {
        self.shared.access.issue_short()
    }

    /// Revokes a key, named by itself or by its id. False: there is no such key.
    pub fn revoke(&self, token: &str) -> bool {
        self.shared.store.revoke(token)
    }

    /// How many validations found this key, named by itself or by its id, whatever their verdict.
    pub fn validations_of(&self, token: &str) -> u64 {
        self.shared.store.validations_of(token)
    }

    /// Changes the client's secret. Access tokens stay good.
    pub fn set_client_secret(&self, secret: impl Into<String>) {
        self.shared.access.set_secret(secret.into());
    }

    /// Changes what the client may do, at once.
    pub fn set_permissions(&self, permissions: &[Permission]) {
        self.shared.access.set_permissions(permissions);
    }

    /// Changes how long access tokens are good that are handed out from now on.
    pub fn set_access_token_lifetime(&self, lifetime: Duration) {
        self.shared.access.set_lifetime(lifetime);
    }

    /// Ends all access tokens.
    pub fn expire_access_tokens(&self) {
        self.shared.access.expire_all();
    }

    /// What was called how often.
    pub fn counts(&self) -> Counts {
        self.shared.counters.counts()
    }

    /// Waits until so many validations have begun, counted from the start.
    pub async fn validations_begun(&self, at_least: u64) {
        self.shared.counters.validations_begun(at_least).await;
    }

    /// Adds a fault. Several may stand at once; they take effect in the order in which they were set.
    pub fn set_fault(&self, fault: Fault) {
        let refuses = fault.effect == Effect::Refuse;
        self.shared.faults.set(fault);
        if refuses {
            self.close_connections();
        }
    }

    /// Behaves again, and lets go what a fault holds.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Closes the connections that are open, whatever they are doing. New ones are accepted.
    pub fn close_connections(&self) {
        let mut connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *connections).cancel();
    }

    async fn serve_as(&self, listener: TcpListener, tls: Option<TlsAcceptor>, stop: CancellationToken) {
        let (tasks, _guard) = Tasks::new(&stop);
        while let Some(stream) = tasks.accept(&listener).await {
            if let Some(closed) = self.admit() {
                let connection = self.clone().connection(stream, tls.clone(), tasks.clone());
                tasks.spawn(closed.run_until_cancelled_owned(connection));
            }
        }
        tasks.end().await;
    }

    /// Lets a new connection in, with what tells it to close.
    fn admit(&self) -> Option<CancellationToken> {
        if self.shared.faults.refuse() {
            return None;
        }
        self.shared.counters.connection();
        Some(self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn connection(self, stream: TcpStream, tls: Option<TlsAcceptor>, tasks: Tasks) {
        let answer = move |request| service::answer(Arc::clone(&self.shared), request);
        let Some(tls) = tls else {
            return tasks.connection(stream, answer).await;
        };
        // A handshake that fails or takes too long ends like any other connection that breaks.
        if let Ok(Ok(stream)) = timeout(HANDSHAKE, tls.accept(stream)).await {
            tasks.connection(stream, answer).await;
        }
    }
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
