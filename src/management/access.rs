//! Who may manage keys: whoever can connect and, where a secret is set, presents it.

use std::path::Path;

use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;

use super::problem::{Code, Problem};
use super::{SHORTEST_SECRET, Settings};
use crate::browser::{self, NamedHost};
use crate::listener::Listen;
use crate::secret::SecretSource;
use crate::upstream::forwarded::Peer;

pub(super) struct Access {
    secret: Option<SecretSource>,
    /// What the record calls those who present the secret.
    name: String,
    /// Whether a browser on this machine could get here.
    loopback: bool,
}

impl Access {
    pub(super) fn of(settings: &Settings) -> Self {
        let file = settings.secret_file.as_deref();
        let name = file.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        Self {
            secret: file.map(|path| SecretSource::File(path.to_owned())),
            name: name.unwrap_or_default(),
            loopback: matches!(settings.listen, Listen::Tcp(address) if address.ip().is_loopback()),
        }
    }

    /// Who that is, for the record.
    pub(super) fn client(&self, peer: Peer) -> String {
        let place = match (peer.address, peer.uid) {
            (Some(address), _) => address.to_string(),
            (None, Some(uid)) => format!("uid {uid}"),
            (None, None) => "unix socket".to_owned(),
        };
        if self.secret.is_some() { format!("{place} with {}", self.name) } else { place }
    }

    pub(super) fn admit(&self, head: &Parts) -> Result<(), Problem> {
        // SECURITY: a page in a browser of this machine reaches loopback, too, by its own name or by one that leads here. A
        // backend sends no Origin, and says localhost or the address.
        let refuse = |detail| Err(Problem::new(Code::NotPermitted, detail));
        if browser::asks_for_page(&head.headers) {
            return refuse("This is not for browsers.");
        }
        if self.loopback && !NamedHost::of(&head.uri, &head.headers).is_loopback() {
            return refuse("The host should be localhost or a loopback address.");
        }
        let Some(secret) = &self.secret else { return Ok(()) };
        let unreadable = || Problem::new(Code::SecretUnreadable, "The secret cannot be read at the moment.");
        let secret = secret.read().map_err(|error| {
            tracing::error!("the secret of key management cannot be read: {error}");
            unreadable()
        })?;
        // SECURITY: it was long enough at the start, and may have been replaced.
        if secret.expose().len() < SHORTEST_SECRET {
            tracing::error!("the secret of key management has fewer than {SHORTEST_SECRET} characters");
            return Err(unreadable());
        }
        let mut values = head.headers.get_all(AUTHORIZATION).iter();
        let given = match (values.next(), values.next()) {
            (Some(value), None) => value.as_bytes(),
            _ => b"",
        };
        let given = given.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
        match given {
            Some((_, given)) if secret.is(given.trim_ascii()) => Ok(()),
            _ => {
                let detail = "Send the secret of key management as 'Authorization: Bearer <secret>'.";
                Err(Problem::new(Code::Unauthorized, detail))
            }
        }
    }
}
