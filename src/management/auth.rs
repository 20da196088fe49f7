//! Authentication of management requests: by the connection itself and, where a secret is configured, by the secret.

use std::path::Path;

use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;

use super::problem::{Code, Problem};
use super::{SHORTEST_SECRET, Settings};
use crate::browser::{self, NamedHost};
use crate::listener::Listen;
use crate::peer::Peer;
use crate::secret::SecretSource;

pub(super) struct Auth {
    secret: Option<SecretSource>,
    /// File name of the secret, as the audit log shows it.
    secret_name: String,
    /// Whether a browser on the same machine can connect.
    is_loopback: bool,
}

impl Auth {
    pub(super) fn new(settings: &Settings) -> Self {
        let file = settings.secret_file.as_deref();
        let name = file.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        Self {
            secret: file.map(|path| SecretSource::File(path.to_owned())),
            secret_name: name.unwrap_or_default(),
            is_loopback: matches!(settings.listen, Listen::Tcp(address) if address.ip().is_loopback()),
        }
    }

    /// The client as the audit log names it.
    pub(super) fn describe_client(&self, peer: Peer) -> String {
        let address = match (peer.address, peer.uid) {
            (Some(address), _) => address.to_string(),
            (None, Some(uid)) => format!("uid {uid}"),
            (None, None) => "unix socket".to_owned(),
        };
        if self.secret.is_some() { format!("{address} with {}", self.secret_name) } else { address }
    }

    pub(super) fn authorize(&self, head: &Parts) -> Result<(), Problem> {
        // SECURITY: a web page in a browser on the same machine can reach loopback, also through a DNS name of its own that
        // resolves to it (DNS rebinding). A backend sends no Origin, and its Host is localhost or the address.
        let refuse = |detail| Err(Problem::new(Code::NotPermitted, detail));
        if browser::is_from_web_page(&head.headers) {
            return refuse("Key management does not answer browsers.");
        }
        if self.is_loopback && !NamedHost::from_request(&head.uri, &head.headers).is_loopback() {
            return refuse("Host should be localhost or a loopback address.");
        }
        let Some(secret) = &self.secret else { return Ok(()) };
        let unreadable = || Problem::new(Code::SecretUnreadable, "The secret cannot be read at the moment.");
        let secret = secret.read().map_err(|error| {
            tracing::error!("the secret of key management cannot be read: {error}");
            unreadable()
        })?;
        // SECURITY: the length was checked at startup, but the file may have been replaced since.
        if secret.expose().len() < SHORTEST_SECRET {
            tracing::error!("the secret of key management has fewer than {SHORTEST_SECRET} characters");
            return Err(unreadable());
        }
        let mut values = head.headers.get_all(AUTHORIZATION).iter();
        let credential = match (values.next(), values.next()) {
            (Some(value), None) => value.as_bytes(),
            _ => b"",
        };
        let credential =
            credential.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
        match credential {
            Some((_, presented)) if secret.equals(presented.trim_ascii()) => Ok(()),
            _ => {
                let detail = "Send the secret of key management as 'Authorization: Bearer <secret>'.";
                Err(Problem::new(Code::Unauthorized, detail))
            }
        }
    }
}
