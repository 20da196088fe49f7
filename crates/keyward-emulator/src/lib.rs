//! A Scalekit in memory: API keys over REST and gRPC as the real service answers, with faults on demand, for tests in any
//! language and for `keyward dev`. Where Scalekit's behaviour is not published, the source says that it is assumed.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use keyward_emulator::store::Issue;
//! use keyward_emulator::{Emulator, Settings};
//! use tokio_util::sync::CancellationToken;
//!
//! let emulator = Emulator::new(Settings::default());
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let environment_url = format!("http://{}", listener.local_addr()?);
//! let (serving, stop) = (emulator.clone(), CancellationToken::new());
//! tokio::spawn(async move { serving.serve(listener, stop).await });
//!
//! // The client id and client secret are "dev".
//! let key = emulator.issue(Issue { organization_id: "org_1".to_owned(), ..Issue::default() }).key;
//! emulator.set_fault("validate:status=503,times=3".parse()?);
//! # Ok(())
//! # }
//! ```

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

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of an emulator.
#[derive(Clone)]
pub struct Settings {
    /// Client id of the API client.
    pub client_id: String,
    /// Client secret of the API client.
    pub client_secret: String,
    /// The organizations and users that exist; empty: all that a request names.
    pub only: Vec<Only>,
    /// Lifetime of an access token.
    pub access_token_lifetime: Duration,
    /// Permissions of the API client.
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

/// A handle on an emulator, which may serve several listeners. Clones share it.
#[derive(Clone)]
pub struct Emulator {
    shared: Arc<Shared>,
}

struct Shared {
    access: Access,
    counters: Counters,
    faults: Faults,
    store: Store,
    /// Cancelled and replaced to close the open connections.
    connections: Mutex<CancellationToken>,
}

impl Emulator {
    /// An emulator without keys that serves no listener yet.
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

    /// Serves HTTP/1.1 and, with prior knowledge, HTTP/2 until `stop` is cancelled, which closes all connections.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) {
        self.serve_connections(listener, None, stop).await;
    }

    /// Like [`Self::serve`], over TLS; ALPN selects the protocol.
    pub async fn serve_tls(&self, listener: TcpListener, certificate: &Certificate, stop: CancellationToken) {
        self.serve_connections(listener, Some(certificate.acceptor()), stop).await;
    }

    /// Creates a key without checks.
    pub fn issue(&self, issue: Issue) -> Issued {
        let (key, token) = self.shared.store.issue_key(issue, Timestamp::now());
        Issued { key, token_id: token.token_id }
    }

    /// Issues an access token short enough for a command line.
    pub fn access_token(&self) -> String {
        self.shared.access.issue_short_token()
    }

    /// Revokes a key, given as itself or by its token id. False if there is none.
    pub fn revoke(&self, token: &str) -> bool {
        self.shared.store.revoke_key(token)
    }

    /// Counts the validate calls for a key, given as itself or by its token id, whatever the verdict.
    pub fn validations_of(&self, token: &str) -> u64 {
        self.shared.store.validations_of(token)
    }

    /// Changes the client secret. Access tokens stay valid.
    pub fn set_client_secret(&self, secret: impl Into<String>) {
        self.shared.access.set_secret(secret.into());
    }

    /// Changes the permissions of the client, also for access tokens already issued.
    pub fn set_permissions(&self, permissions: &[Permission]) {
        self.shared.access.set_permissions(permissions);
    }

    /// Changes the lifetime of access tokens issued from now on.
    pub fn set_access_token_lifetime(&self, lifetime: Duration) {
        self.shared.access.set_lifetime(lifetime);
    }

    /// Expires all access tokens.
    pub fn expire_access_tokens(&self) {
        self.shared.access.expire_all();
    }

    /// The call counters.
    pub fn counts(&self) -> Counts {
        self.shared.counters.counts()
    }

    /// Waits until at least so many validate calls have begun since start.
    pub async fn validations_begun(&self, at_least: u64) {
        self.shared.counters.wait_for_validations(at_least).await;
    }

    /// Adds a fault. Several may be active at once and apply in the order in which they were set.
    pub fn set_fault(&self, fault: Fault) {
        let refuses = fault.effect == Effect::Refuse;
        self.shared.faults.set(fault);
        if refuses {
            self.close_connections();
        }
    }

    /// Removes all faults and releases the calls that hang.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Closes all open connections at once. New ones are accepted.
    pub fn close_connections(&self) {
        let mut connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *connections).cancel();
    }

    async fn serve_connections(
        &self,
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        stop: CancellationToken,
    ) {
        let (tasks, _guard) = Tasks::new(&stop);
        while let Some(stream) = tasks.accept(&listener).await {
            if let Some(closed) = self.admit_connection() {
                let connection = self.clone().serve_connection(stream, tls.clone(), tasks.clone());
                tasks.spawn(closed.run_until_cancelled_owned(connection));
            }
        }
        tasks.shut_down().await;
    }

    /// The token that closes the new connection, or `None` where a fault refuses it.
    fn admit_connection(&self) -> Option<CancellationToken> {
        if self.shared.faults.refuses_connection() {
            return None;
        }
        self.shared.counters.count_connection();
        Some(self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn serve_connection(self, stream: TcpStream, tls: Option<TlsAcceptor>, tasks: Tasks) {
        let handler = move |request| service::handle_request(Arc::clone(&self.shared), request);
        let Some(tls) = tls else {
            return tasks.serve_connection(stream, handler).await;
        };
        // A failed handshake is no error of the server.
        if let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            tasks.serve_connection(stream, handler).await;
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
