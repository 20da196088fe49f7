//! Converts `[management]`.

use std::path::PathBuf;

use super::document::Place;
use super::file;
use super::scalekit::SecretPath;
use super::settings::convert_tls;
use super::urls::listeners_clash;
use crate::keys::rules::IssuanceRules;
use crate::listener::Listen;
use crate::management::{SHORTEST_SECRET, Settings};
use crate::secret::SecretSource;

/// `None` if a problem was reported.
pub(super) fn convert_management(
    file: file::Management,
    place: &Place<'_>,
    others: &[(&str, &Listen)],
) -> Option<Settings> {
    let listen = place.require_key("listen", file.listen, "\"unix:/run/keyward/management.sock\"");
    let tls = file.tls.and_then(|tls| convert_tls(tls.0, &place.child("tls")));
    let secret_file = place.convert_value("secret_file", file.secret_file, |path| check_secret(path.0));
    let listen = listen?.0;
    check_listen(&listen, place, others);
    Some(Settings {
        listen,
        socket_mode: file.socket_mode.0,
        tls,
        secret_file,
        rules: IssuanceRules {
            max_expiry: file.max_expiry.map(|life| life.0),
            require_expiry: file.require_expiry,
            claims: file.allowed_claims,
        },
    })
}

fn check_listen(listen: &Listen, place: &Place<'_>, others: &[(&str, &Listen)]) {
    let here = place.child("listen");
    match listen {
        // SECURITY: every client that can connect can create keys of every organization.
        Listen::Tcp(address)
            if !(address.ip().is_loopback() || place.has_key("tls") && place.has_key("secret_file")) =>
        {
            here.add_problem(
                "is not a loopback address, so tls and secret_file are required; prefer a unix socket or 127.0.0.1",
            );
        }
        Listen::Tcp(_) if place.has_key("socket_mode") => {
            place.child("socket_mode").add_problem("is only for a unix socket");
        }
        Listen::Tcp(_) if !place.has_key("secret_file") => place.add_warning(
            "management.listen is a loopback port without secret_file: every process on this machine or in this pod can \
             create and revoke keys; set management.secret_file, or listen on a unix socket",
        ),
        Listen::Tcp(_) | Listen::Unix(_) => {}
    }
    if let Some((name, taken)) = others.iter().find(|(_, other)| listeners_clash(listen, other)) {
        here.add_problem(format!(
            "is already the address of {name}.listen ({taken}); key management needs a port of its own"
        ));
    }
}

/// Checks that a file holds a secret that can be read and is long enough not to be guessed.
fn check_secret(path: SecretPath) -> Result<PathBuf, String> {
    let secret = SecretSource::File(path.0.clone()).read().map_err(|error| error.to_string())?;
    if secret.expose().len() < SHORTEST_SECRET {
        return Err(format!(
            "names a file with a secret of fewer than {SHORTEST_SECRET} characters; `openssl rand -hex 32` generates a suitable one"
        ));
    }
    Ok(path.0)
}
