//! The API client: its credentials, its permissions and the access tokens issued to it. Several access tokens are valid at
//! once, as in Scalekit.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use jiff::Timestamp;
use scalekit::ExposeSecret;
pub use scalekit::call::Permission;
use scalekit::oauth::{self, Grant};
use scalekit::status::{Code, Status};

use crate::key;

/// Access tokens valid at once; above it the one that expires first is dropped.
const MAX_LIVE: usize = 10_000;

pub(crate) struct Access(Mutex<Client>);

struct Client {
    id: String,
    secret: String,
    permissions: Vec<Permission>,
    lifetime: Duration,
    live: HashMap<String, Instant>,
}

/// An error response of the token endpoint (RFC 6749, section 5.2). It is assumed that Scalekit uses this form.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GrantError {
    pub(crate) error: &'static str,
    pub(crate) description: &'static str,
}

impl Client {
    fn remember_token(&mut self, access_token: String) {
        let now = Instant::now();
        // A lifetime that overflows the clock counts as a day, which no test outlives.
        let expiry = now.checked_add(self.lifetime).unwrap_or(now + Duration::from_secs(86_400));
        self.live.retain(|_, expiry| *expiry > now);
        while self.live.len() >= MAX_LIVE
            && let Some(oldest) =
                self.live.iter().min_by_key(|(_, expiry)| **expiry).map(|(token, _)| token.clone())
        {
            self.live.remove(&oldest);
        }
        self.live.insert(access_token, expiry);
    }
}

impl Access {
    pub(crate) fn new(id: String, secret: String, permissions: Vec<Permission>, lifetime: Duration) -> Self {
        Self(Mutex::new(Client { id, secret, permissions, lifetime, live: HashMap::new() }))
    }

    /// Handles the form of a token request.
    pub(crate) fn grant_token(&self, form: &[u8]) -> Result<Grant, GrantError> {
        let refuse = |error, description| Err(GrantError { error, description });
        let request = oauth::decode_request(form);
        let client = self.lock_client();
        match request.grant_type.as_str() {
            "client_credentials" => {}
            "" => return refuse("invalid_request", "grant_type is missing"),
            _ => return refuse("unsupported_grant_type", "only client_credentials is supported"),
        }
        if request.client_id != client.id || request.client_secret.expose_secret() != client.secret {
            return refuse("invalid_client", "client authentication failed");
        }
        drop(client);
        Ok(self.issue_token())
    }

    pub(crate) fn issue_token(&self) -> Grant {
        let mut client = self.lock_client();
        let lifetime = client.lifetime;
        let scopes: Vec<_> = client.permissions.iter().map(ToString::to_string).collect();
        let access_token =
            key::generate_access_token(&client.id, Timestamp::now(), lifetime.as_secs(), &scopes);
        client.remember_token(access_token.clone());
        Grant { access_token: access_token.into(), lifetime }
    }

    /// Issues an access token short enough for a command line.
    pub(crate) fn issue_short_token(&self) -> String {
        let access_token = format!("dev_{:016x}", fastrand::u64(..));
        self.lock_client().remember_token(access_token.clone());
        access_token
    }

    /// Checks the access token of a request. The first of several `authorization` values counts: one official SDK sends its
    /// current token first and the previous one after it.
    pub(crate) fn authorize(&self, headers: &HeaderMap, needed: Permission) -> Result<(), Status> {
        let bearer = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let Some(token) = bearer.filter(|token| !token.is_empty()) else {
            return Err(Status::new(Code::Unauthenticated, "Token empty"));
        };
        let client = self.lock_client();
        if client.live.get(token).is_none_or(|expiry| *expiry <= Instant::now()) {
            return Err(Status::new(Code::Unauthenticated, "Invalid or expired token"));
        }
        if !client.permissions.contains(&needed) {
            return Err(Status::new(
                Code::PermissionDenied,
                format!("Insufficient permissions: {needed} is needed"),
            ));
        }
        Ok(())
    }

    pub(crate) fn expire_all(&self) {
        self.lock_client().live.clear();
    }

    pub(crate) fn set_secret(&self, secret: String) {
        self.lock_client().secret = secret;
    }

    pub(crate) fn set_permissions(&self, permissions: &[Permission]) {
        self.lock_client().permissions = permissions.to_vec();
    }

    pub(crate) fn set_lifetime(&self, lifetime: Duration) {
        self.lock_client().lifetime = lifetime;
    }

    fn lock_client(&self) -> MutexGuard<'_, Client> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "grant_type=client_credentials&client_id=dev&client_secret=s%26t";

    fn access() -> Access {
        Access::new("dev".to_owned(), "s&t".to_owned(), vec![Permission::Read], Duration::from_secs(60))
    }

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (AUTHORIZATION, value.parse().unwrap())).collect()
    }

    #[test]
    fn bad_credentials_get_oauth_error_codes() {
        for (form, expected) in [
            (GOOD, None),
            ("", Some("invalid_request")),
            ("%%%=\u{fffd}", Some("invalid_request")),
            ("grant_type=password", Some("unsupported_grant_type")),
            ("grant_type=client_credentials&client_id=dev&client_secret=no", Some("invalid_client")),
            ("grant_type=client_credentials&client_id=dave&client_secret=s%26t", Some("invalid_client")),
        ] {
            assert_eq!(
                access().grant_token(form.as_bytes()).err().map(|refusal| refusal.error),
                expected,
                "{form}"
            );
        }
    }

    #[test]
    fn first_authorization_value_decides() {
        let access = access();
        let bearer = || {
            format!("Bearer {}", access.grant_token(GOOD.as_bytes()).unwrap().access_token.expose_secret())
        };
        let (one, two) = (bearer(), bearer());
        for (values, expected) in [
            (vec![one.as_str()], Ok(())),
            (vec![&two, "Bearer stale"], Ok(())),
            (vec![&two.replace("Bearer", "bearer")], Ok(())),
            (vec!["Bearer stale", &two], Err(Code::Unauthenticated)),
            (vec!["Bearer "], Err(Code::Unauthenticated)),
            (vec!["Basic ZGV2OmRldg=="], Err(Code::Unauthenticated)),
            (vec![], Err(Code::Unauthenticated)),
        ] {
            let outcome = access.authorize(&headers(&values), Permission::Read);
            assert_eq!(outcome.map_err(|status| status.code), expected, "{values:?}");
        }
        let refused = access.authorize(&headers(&[&one]), Permission::Write).unwrap_err();
        assert_eq!(refused.code, Code::PermissionDenied);
        access.expire_all();
        assert!(access.authorize(&headers(&[&one]), Permission::Read).is_err());
    }

    #[test]
    fn overlong_lifetime_does_not_overflow() {
        let access = access();
        access.set_lifetime(Duration::MAX);
        assert_eq!(access.grant_token(GOOD.as_bytes()).unwrap().lifetime, Duration::MAX);
    }

    #[test]
    fn access_token_expires_after_its_lifetime() {
        let access = access();
        access.set_lifetime(Duration::ZERO);
        let grant = access.grant_token(GOOD.as_bytes()).unwrap();
        let value = format!("Bearer {}", grant.access_token.expose_secret());
        assert!(access.authorize(&headers(&[&value]), Permission::Read).is_err());
    }
}
