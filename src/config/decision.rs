//! Converts `[decision]`.

use super::document::Place;
use super::file;
use super::settings::{convert_tls, merge_trusted};
use super::urls::listeners_clash;
use crate::decision::Settings;
use crate::listener::Listen;
use crate::peer::TrustedProxies;

/// `None` if a problem was reported.
pub(super) fn convert_decision(
    file: file::Decision,
    place: &Place<'_>,
    others: &[(&str, &Listen)],
) -> Option<Settings> {
    let tls = file.tls.and_then(|tls| convert_tls(tls.0, &place.child("tls")));
    let allow_from = merge_trusted(file.allow_from);
    let (listen, here) = (file.listen.0, place.child("listen"));
    let is_restricted = place.has_key("tls") || allow_from != TrustedProxies::default();
    // SECURITY: who can ask for decisions can try keys, and names the client's address.
    if let Listen::Tcp(address) = &listen
        && !address.ip().is_loopback()
        && !is_restricted
    {
        here.add_problem(
            "is not a loopback address, so tls or allow_from is required; for example allow_from = [\"10.0.0.0/8\"]",
        );
    }
    if let Some((name, taken)) = others.iter().find(|(_, other)| listeners_clash(&listen, other)) {
        here.add_problem(format!(
            "is already the address of {name}.listen ({taken}); decisions need a port of their own"
        ));
    }
    let allow_from = (allow_from != TrustedProxies::default()).then_some(allow_from);
    Some(Settings { listen, tls, allow_from, headers: file.headers.0 })
}
