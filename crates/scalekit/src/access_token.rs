//! Keeps the client's access token. It is fetched once for all calls that wait for it, and renewed well before it expires, so
//! that calls do not wait while the current token is good. The caller provides the function that fetches a token, so that
//! any HTTP client can be used.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use secrecy::ExposeSecret;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::error::{Class, Error};
use crate::oauth::Grant;

/// Minimum time between the starts of two fetches after a successful one, which limits renewals of tokens that are refused again
/// and again.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The delay after the first failed fetch. While calls wait it grows to `MIN_INTERVAL`.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// The longest delay after failed fetches while no call waits.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The share of a token's lifetime after which it is renewed at the latest, and the range before that over which replicas spread.
const RENEW_AFTER: f64 = 0.8;
const RENEW_SPREAD: f64 = 0.08;

/// The current access token. [`run_renewal`](Self::run_renewal) must run for it to be fetched.
#[derive(Debug, Default)]
pub struct AccessToken {
    state: watch::Sender<State>,
    /// The highest serial of a token that was refused.
    refused: AtomicU64,
    wanted: Notify,
}

#[derive(Debug, Default)]
struct State {
    bearer: Option<Bearer>,
    /// Why the last fetch failed; `None` if it succeeded.
    error: Option<Error>,
}

/// An access token that had not expired when it was returned.
#[derive(Clone, Debug)]
pub struct Bearer {
    authorization: HeaderValue,
    expires: Instant,
    /// The number of the fetch that it is from.
    serial: u64,
}

impl Bearer {
    /// The value of the `Authorization` header, marked as sensitive.
    pub fn authorization(&self) -> &HeaderValue {
        &self.authorization
    }

    fn is_good(&self) -> bool {
        Instant::now() < self.expires
    }
}

/// The outcome of a fetch, for metrics and logs.
#[derive(Clone, Copy, Debug)]
pub enum Fetched<'a> {
    /// A new token was fetched, with this lifetime.
    Renewed(Duration),
    /// The fetch failed.
    Failed {
        /// Why. Waiting calls get it wrapped in [`Error::AccessToken`].
        error: &'a Error,
        /// The number of failures in a row, from 1.
        failures: u32,
    },
}

impl AccessToken {
    /// No token yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the current token, or waits for one.
    ///
    /// # Errors
    /// [`Error::AccessToken`] if there is none at the deadline, or a fetch failed because of a misconfiguration.
    pub async fn wait_for_bearer(&self, deadline: Instant) -> Result<Bearer, Error> {
        match self.current_bearer() {
            Some(bearer) => Ok(bearer),
            None => self.wait_for_newer(0, deadline).await,
        }
    }

    /// Returns a newer token than this one, which Scalekit refused, or waits for one.
    ///
    /// # Errors
    /// As [`wait_for_bearer`](Self::wait_for_bearer).
    pub async fn wait_for_renewed(&self, refused: &Bearer, deadline: Instant) -> Result<Bearer, Error> {
        match self.current_bearer() {
            Some(bearer) if bearer.serial > refused.serial => Ok(bearer),
            _ => self.wait_for_newer(refused.serial, deadline).await,
        }
    }

    /// Waits until there is a token or the first fetch has failed. For programs that should end with an error instead of trying
    /// again.
    ///
    /// # Errors
    /// [`Error::AccessToken`] with the reason.
    pub async fn wait_for_first(&self, deadline: Instant) -> Result<(), Error> {
        let mut state = self.state.subscribe();
        let known = state.wait_for(|state| state.bearer.is_some() || state.error.is_some());
        match timeout_at(deadline, known).await {
            Ok(Ok(state)) if state.bearer.is_some() => Ok(()),
            Ok(Ok(state)) => Err(unavailable_error(state.error.as_ref())),
            // The sender lives as long as `self`.
            Ok(Err(_)) | Err(_) => Err(unavailable_error(None)),
        }
    }

    /// Whether there is a good token.
    pub fn is_available(&self) -> bool {
        self.current_bearer().is_some()
    }

    fn current_bearer(&self) -> Option<Bearer> {
        self.state.borrow().bearer.clone().filter(Bearer::is_good)
    }

    async fn wait_for_newer(&self, serial: u64, deadline: Instant) -> Result<Bearer, Error> {
        let mut state = self.state.subscribe();
        self.refused.fetch_max(serial, Ordering::Relaxed);
        loop {
            if let Some(bearer) = &state.borrow_and_update().bearer
                && bearer.serial > serial
                && bearer.is_good()
            {
                return Ok(bearer.clone());
            }
            self.wanted.notify_one();
            // The sender lives as long as `self`.
            let changed = timeout_at(deadline, state.changed()).await;
            match (changed, &state.borrow().error) {
                // A fetch failed because of a misconfiguration, so the next one will fail, too.
                (Ok(_), Some(error)) if error.class() == Class::Misconfigured => {
                    return Err(unavailable_error(Some(error)));
                }
                (Ok(_), _) => {}
                (Err(_), error) => return Err(unavailable_error(error.as_ref())),
            }
        }
    }

    /// Fetches a token, and another one before it expires or when it is refused. Must run once, and runs until it is dropped.
    /// `fetch` may take at most 5 seconds, and should read the credentials each time, so that a rotated secret is used.
    /// `observe` is called with the outcome of each fetch.
    ///
    /// A token is renewed after 72 to 80 % of its lifetime, at random, so that replicas do not fetch at the same time. A token that
    /// was refused is renewed immediately, but at most once a second. After failures, the delay grows to 1 second while calls
    /// wait, otherwise to 5 seconds, and is never shorter than Scalekit's `Retry-After` ([`Error::hold`]).
    pub async fn run_renewal<F>(&self, fetch: impl Fn() -> F, mut observe: impl FnMut(Fetched<'_>))
    where
        F: Future<Output = Result<Grant, Error>>,
    {
        let mut failures = 0_u32;
        for serial in 1.. {
            let started = Instant::now();
            let fetched = match timeout(FETCH_TIMEOUT, fetch()).await {
                Ok(fetched) => fetched.and_then(|grant| Ok((make_authorization(&grant)?, grant.lifetime))),
                Err(_) => Err(Error::Timeout),
            };
            // When the next fetch starts, and when it may start earlier because calls wait for it.
            let (next, earliest) = match fetched {
                Ok((authorization, lifetime)) => {
                    failures = 0;
                    observe(Fetched::Renewed(lifetime));
                    let bearer = Bearer { authorization, expires: started + lifetime, serial };
                    self.state.send_replace(State { bearer: Some(bearer), error: None });
                    let part = RENEW_AFTER - RENEW_SPREAD * fastrand::f64();
                    (started + lifetime.mul_f64(part), started + MIN_INTERVAL)
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    observe(Fetched::Failed { error: &error, failures });
                    let held = error.hold().unwrap_or_default();
                    // The current token, if there is one, is kept: it may be good for long.
                    self.state.send_modify(|state| state.error = Some(error));
                    let backoff = FIRST_BACKOFF * 2_u32.saturating_pow(failures.min(8) - 1);
                    let backoff = backoff.min(MAX_BACKOFF).mul_f64(1.0 - 0.2 * fastrand::f64());
                    (started + backoff, started + (FIRST_BACKOFF * failures.min(4)).max(held))
                }
            };
            // Calls that waited during the fetch have their token, unless it failed or the token was refused since.
            let is_wanted = || failures > 0 || self.refused.load(Ordering::Relaxed) >= serial;
            let wanted = async {
                loop {
                    self.wanted.notified().await;
                    if is_wanted() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = sleep_until(next) => {}
                () = wanted => {}
            }
            sleep_until(earliest).await;
        }
    }
}

fn make_authorization(grant: &Grant) -> Result<HeaderValue, Error> {
    let text = format!("Bearer {}", grant.access_token.expose_secret());
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| Error::BrokenContract("the access token is not visible ASCII"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The error for calls without a token: the reason for which the last fetch failed, or a timeout.
fn unavailable_error(error: Option<&Error>) -> Error {
    Error::AccessToken(Box::new(error.cloned().unwrap_or(Error::Timeout)))
}

#[cfg(test)]
mod tests;
