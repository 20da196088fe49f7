//! Converts `[upstreams.NAME]`.

use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::diagnostics::quote_text;
use super::document::Place;
use super::file;
use super::settings::{check_file, check_pair, check_roots};
use super::urls::{Url, read_url, unix_path};
use super::values::FromText;
use super::values::tables::{Named, Table};
use crate::pool::{self, Address, Protocol, Tls};
use crate::tls::KeyPair;
use crate::upstream;

pub(super) const EXAMPLE: &str = "[upstreams.api] with url = \"http://127.0.0.1:8080\"";
const FORMS: &str = "\"http://host:port\", \"https://host\", \"h2c://host:port\" or \"unix:/path\"";
/// Keys that are only for https:// upstreams.
const FOR_TLS: [&str; 4] = ["ca_file", "server_name", "client_certificate", "client_key"];

/// The upstreams without problems, in the order of the file.
pub(super) fn convert_upstreams(
    file: Named<Table<file::Upstream>>,
    place: &Place<'_>,
    has_decision: bool,
) -> Vec<upstream::Settings> {
    if (!place.exists() || place.is_empty()) && !has_decision {
        place.add_problem(format!("is missing or empty; for example {EXAMPLE}"));
    }
    let mut entries: Vec<_> =
        file.0.into_iter().map(|(name, upstream)| (place.child(&name), name, upstream.0)).collect();
    entries.sort_by_key(|(place, ..)| place.at);
    let convert = |(place, name, upstream): (Place<'_>, String, file::Upstream)| {
        check_name(&name, &place);
        convert_upstream(name.into(), upstream, &place)
    };
    entries.into_iter().filter_map(convert).collect()
}

/// Checks the name of a table that the file names.
pub(super) fn check_name(name: &str, place: &Place<'_>) {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        place.add_problem("has a name that is not 1 to 64 letters, digits, '-' and '_'");
    }
}

fn convert_upstream(name: Arc<str>, file: file::Upstream, place: &Place<'_>) -> Option<upstream::Settings> {
    let url = place.require_key("url", file.url, "\"http://127.0.0.1:8080\"").map(|url| url.0);
    if url.as_ref().is_some_and(|url| !url.tls) {
        for key in FOR_TLS.into_iter().filter(|key| place.has_key(key)) {
            place.child(key).add_problem("is only for https:// upstreams");
        }
    }
    let protocol = match (url.as_ref().map(|url| url.protocol), file.http.0) {
        (Some(Protocol::Http2), Protocol::Http1) => {
            place.child("http").add_problem("contradicts url: h2c:// is HTTP/2");
            Protocol::Http1
        }
        (Some(Protocol::Http2), _) => Protocol::Http2,
        (_, protocol) => protocol,
    };
    let certificate =
        place.convert_value("client_certificate", file.client_certificate, |path| check_file(&path.0));
    let key = place.convert_value("client_key", file.client_key, |path| check_file(&path.0));
    for (one, other) in [("client_certificate", "client_key"), ("client_key", "client_certificate")] {
        if place.has_key(one) && !place.has_key(other) {
            place.child(one).add_problem(format!("has no effect without {other}"));
        }
    }
    let identity = certificate.zip(key).map(|(certificate, key)| KeyPair { certificate, key });
    let tls = Tls {
        roots: place.convert_value("ca_file", file.ca_file, |path| check_roots(&path.0)),
        server_name: file.server_name.map(|name| name.0.0),
        identity: place.convert_value("client_certificate", identity, check_pair),
    };
    let UpstreamUrl { address, tls: is_tls, .. } = url?;
    let origin = pool::Settings {
        address,
        tls: is_tls.then_some(tls),
        protocol,
        connect_timeout: file.connect_timeout.0,
        idle_timeout: file.idle_timeout.0,
    };
    Some(upstream::Settings {
        name,
        origin,
        response_timeout: file.response_timeout.0,
        case_sensitive_paths: file.case_sensitive_paths,
        max_requests: file.max_requests.to_usize(),
    })
}

/// The name that an upstream's certificate is verified against.
pub(super) struct ServerNameText(Box<str>);

impl FromText for ServerNameText {
    fn parse_text(text: &str) -> Result<Self, String> {
        let problem = |_| format!("{} is neither a DNS name nor an IP address", quote_text(text));
        ServerName::try_from(text).map(|_| Self(text.into())).map_err(problem)
    }
}

/// The `url` of an upstream.
pub(super) struct UpstreamUrl {
    address: Address,
    tls: bool,
    protocol: Protocol,
}

impl FromText for UpstreamUrl {
    fn parse_text(text: &str) -> Result<Self, String> {
        if let Some(path) = unix_path(text) {
            return Ok(Self { address: Address::Unix(path?), tls: false, protocol: Protocol::Auto });
        }
        let Url { scheme, host, port } = read_url(text, FORMS)?;
        let (tls, protocol, default) = match scheme.as_str() {
            "http" => (false, Protocol::Auto, 80),
            "https" => (true, Protocol::Auto, 443),
            "h2c" => (false, Protocol::Http2, 80),
            _ => return Err(format!("should be {FORMS}")),
        };
        Ok(Self { address: Address::Tcp(host.into(), port.unwrap_or(default)), tls, protocol })
    }
}
