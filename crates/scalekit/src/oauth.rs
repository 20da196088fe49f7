//! Encodes and decodes requests for the client's access token, for clients and servers, without I/O: `POST /oauth/token` with the
//! grant `client_credentials` (RFC 6749 section 4.4) and the credentials in the form.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Uri};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::call::Permission;
use crate::error::Error;
use crate::json::Object;
use crate::response::HttpResponse;
use crate::wipe::wipe_on_drop;

/// The path of the token endpoint.
pub const PATH: &str = "/oauth/token";

/// Maximum size of a response's body, in bytes.
pub const MAX_RESPONSE_BYTES: usize = 256 * 1024;

const FORM: &str = "application/x-www-form-urlencoded";
const GRANT_TYPE: &str = "client_credentials";

/// Scalekit's shortest default, for a response without `expires_in`, in seconds.
const DEFAULT_LIFETIME: u64 = 3600;
/// Scalekit's longest default is a day.
const MAX_LIFETIME: u64 = 7 * 86_400;

/// The client's credentials.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// `skc_…`
    pub client_id: String,
    /// The client secret.
    pub client_secret: SecretString,
}

/// An access token, which is opaque.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The token.
    pub access_token: SecretString,
    /// Its lifetime: from 1 second to 7 days, and an hour if the response does not state it.
    pub lifetime: Duration,
}

/// A request for an access token, as a server decodes it. Missing fields are empty.
#[derive(Clone, Debug, Default)]
pub struct GrantRequest {
    /// Should be `client_credentials`.
    pub grant_type: String,
    /// The client id.
    pub client_id: String,
    /// The client secret.
    pub client_secret: SecretString,
}

/// RFC 6749 section 5.1.
#[derive(Deserialize)]
struct GrantBody {
    access_token: String,
    expires_in: Option<u64>,
}

/// Encodes the request for an access token. The caller adds the authority.
pub fn encode_request(credentials: &Credentials) -> Request<Bytes> {
    let (id, secret) = (&credentials.client_id, credentials.client_secret.expose_secret());
    // SECURITY: enough capacity, so that the buffer never grows and leaves a copy of the secret in memory. An escaped byte takes
    // three bytes.
    let room = 64 + 3 * (id.len() + secret.len());
    let form = form_urlencoded::Serializer::new(String::with_capacity(room))
        .append_pair("grant_type", GRANT_TYPE)
        .append_pair("client_id", id)
        .append_pair("client_secret", secret)
        .finish();
    let mut request = Request::new(wipe_on_drop(form.into_bytes()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(PATH);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(FORM));
    request
}

/// Decodes the response to a request for an access token.
///
/// # Errors
/// `Credentials` for 400 and 401, since `invalid_client` may be either (RFC 6749 section 5.2); otherwise by the status.
pub fn decode_response(response: &HttpResponse) -> Result<Grant, Error> {
    match response.status.as_u16() {
        200 => {}
        400 | 401 => return Err(Error::Credentials),
        // It is not documented which permission a client lacks that gets no access token. Every client needs at least this one.
        _ => return Err(response.status_error(Permission::Read)),
    }
    let Object(grant): Object<GrantBody> = serde_json::from_slice(&response.body)
        .map_err(|_| Error::WrongEndpoint("its token endpoint returned no access_token".into()))?;
    if grant.access_token.is_empty() {
        return Err(Error::BrokenContract("the access token is empty"));
    }
    if !grant.access_token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::BrokenContract("the access token is not visible ASCII"));
    }
    let lifetime = Duration::from_secs(grant.expires_in.unwrap_or(DEFAULT_LIFETIME).clamp(1, MAX_LIFETIME));
    Ok(Grant { access_token: grant.access_token.into(), lifetime })
}

/// For servers: decodes the request.
pub fn decode_request(body: &[u8]) -> GrantRequest {
    let mut request = GrantRequest::default();
    for (name, value) in form_urlencoded::parse(body) {
        match name.as_ref() {
            "grant_type" => request.grant_type = value.into_owned(),
            "client_id" => request.client_id = value.into_owned(),
            "client_secret" => request.client_secret = value.into_owned().into(),
            _ => {}
        }
    }
    request
}

/// For servers: encodes an access token.
pub fn encode_grant(grant: &Grant) -> HttpResponse {
    let body = serde_json::json!({
        "access_token": grant.access_token.expose_secret(),
        "token_type": "Bearer",
        "expires_in": grant.lifetime.as_secs(),
        "scope": "openid",
    });
    json_response(200, &body)
}

/// For servers: encodes an error (RFC 6749 section 5.2), with status 401 for `invalid_client` and 400 for every other `error`.
pub fn encode_error(error: &str, description: &str) -> HttpResponse {
    let status = if error == "invalid_client" { 401 } else { 400 };
    json_response(status, &serde_json::json!({"error": error, "error_description": description}))
}

fn json_response(status: u16, body: &serde_json::Value) -> HttpResponse {
    let mut response = HttpResponse::with_content(status, "application/json", body.to_string());
    response.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, body: &str) -> HttpResponse {
        HttpResponse::with_content(status, "application/json", body.to_owned())
    }

    #[test]
    fn grant_request_round_trips() {
        let (client_id, client_secret) = ("skc_1".to_owned(), "a&b=c+d %ü".into());
        let request = encode_request(&Credentials { client_id, client_secret });
        assert_eq!((request.method(), request.uri().path()), (&Method::POST, PATH));
        assert_eq!(request.headers()[CONTENT_TYPE], FORM);
        let read = decode_request(request.body());
        assert_eq!((read.grant_type.as_str(), read.client_id.as_str()), (GRANT_TYPE, "skc_1"));
        assert_eq!(read.client_secret.expose_secret(), "a&b=c+d %ü");
        assert!(!format!("{read:?}").contains("a&b"));
    }

    #[test]
    fn grant_round_trips() {
        let grant = Grant { access_token: "eyJ.x-_".into(), lifetime: Duration::from_secs(86_399) };
        let read = decode_response(&encode_grant(&grant)).unwrap();
        assert_eq!((read.access_token.expose_secret(), read.lifetime), ("eyJ.x-_", grant.lifetime));
    }

    #[test]
    fn grant_lifetime_is_clamped() {
        for (expires_in, seconds) in [
            ("", 3600),
            (r#","expires_in":null"#, 3600),
            (r#","expires_in":0"#, 1),
            (r#","expires_in":99999999"#, 604_800),
        ] {
            let read = decode_response(&response(200, &format!(r#"{{"access_token":"a"{expires_in}}}"#)));
            assert_eq!(read.unwrap().lifetime.as_secs(), seconds, "{expires_in}");
        }
    }

    #[test]
    fn token_endpoint_failures_have_their_own_errors() {
        let no_token = Error::WrongEndpoint("its token endpoint returned no access_token".into());
        for (status, body, expected) in [
            (400, "{}", Error::Credentials),
            (401, "<html>", Error::Credentials),
            (403, "", Error::Permission(Permission::Read)),
            (429, "", Error::Throttled(None)),
            (500, "", Error::Unavailable(500)),
            (404, "<html>", Error::WrongEndpoint("HTTP 404".into())),
            (302, "", Error::WrongEndpoint("HTTP 302".into())),
            (200, "", no_token.clone()),
            (200, "<html>", no_token.clone()),
            (200, "null", no_token.clone()),
            (200, "{}", no_token.clone()),
            (200, r#"["a",1]"#, no_token.clone()),
            (200, r#"{"access_token":7}"#, no_token.clone()),
            (200, r#"{"access_token":"a","expires_in":-1}"#, no_token),
            (200, r#"{"access_token":""}"#, Error::BrokenContract("the access token is empty")),
            (
                200,
                r#"{"access_token":"a\nb"}"#,
                Error::BrokenContract("the access token is not visible ASCII"),
            ),
        ] {
            assert_eq!(decode_response(&response(status, body)).unwrap_err(), expected, "{status} {body}");
        }
        for (error, status) in [("invalid_client", 401), ("unsupported_grant_type", 400)] {
            assert_eq!(encode_error(error, "x").status.as_u16(), status);
        }
    }
}
