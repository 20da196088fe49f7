//! Keeps the client's access token: fetched once however many wait for it, renewed well before it expires, and never waited
//! for while the one that is there is good. How a token is fetched is the caller's affair, so that it can be over any
//! HTTP client.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use secrecy::ExposeSecret;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::error::{Class, Error};
use crate::oauth::Grant;

/// Between the starts of two fetches, at least, where a token was fetched: a token that is refused all the time is renewed
/// no more often.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The first delay after a failed fetch. It grows to `MIN_INTERVAL` while calls wait.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// The longest delay after failed fetches while nobody waits.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of its life after which a token is renewed at the latest, and how far before that replicas spread.
const RENEW_AFTER: f64 = 0.8;
const RENEW_SPREAD: f64 = 0.08;

/// The access token as it is now. [`keep`](Self::keep) must run for it to be fetched.
#[derive(Debug, Default)]
pub struct AccessToken {
    state: watch::Sender<State>,
    /// The serial of the newest token that was refused.
    refused: AtomicU64,
    wanted: Notify,
}

#[derive(Debug, Default)]
struct State {
    bearer: Option<Bearer>,
    /// Why the last fetch failed; `None` after one that succeeded.
    error: Option<Error>,
}

/// An access token that was good when it was handed out.
#[derive(Clone, Debug)]
pub struct Bearer {
    authorization: HeaderValue,
    expires: Instant,
    /// Which fetch it came from.
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

/// How a fetch ended, for metrics and logs.
#[derive(Clone, Copy, Debug)]
pub enum Fetched<'a> {
    /// There is a new token, which lives this long.
    Renewed(Duration),
    /// There is none.
    Failed {
        /// Why. It is wrapped in [`Error::AccessToken`] only for those who wait.
        error: &'a Error,
        /// How many fetches have failed in a row, from 1.
        failures: u32,
    },
}

impl AccessToken {
    /// No token yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A good token; waits for one if there is none.
    ///
    /// # Errors
    /// [`Error::AccessToken`]: there is none at the deadline, or a fetch failed in a way that only someone can mend.
    pub async fn wait_for_bearer(&self, deadline: Instant) -> Result<Bearer, Error> {
        match self.current_bearer() {
            Some(bearer) => Ok(bearer),
            None => self.wait_for_newer(0, deadline).await,
        }
    }

    /// Another token than this one, which Scalekit refused. Waits for it if there is none yet.
    ///
    /// # Errors
    /// As [`wait_for_bearer`](Self::wait_for_bearer).
    pub async fn wait_for_renewed(&self, refused: &Bearer, deadline: Instant) -> Result<Bearer, Error> {
        match self.current_bearer() {
            Some(bearer) if bearer.serial > refused.serial => Ok(bearer),
            _ => self.wait_for_newer(refused.serial, deadline).await,
        }
    }

    /// Waits until there is a token or the first fetch has failed, whichever comes first: for a program that someone
    /// waits for, and that should rather end than try again.
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
                // A fetch that was made while this waited has failed for good: the next one will fail as well.
                (Ok(_), Some(error)) if error.class() == Class::Misconfigured => {
                    return Err(unavailable_error(Some(error)));
                }
                (Ok(_), _) => {}
                (Err(_), error) => return Err(unavailable_error(error.as_ref())),
            }
        }
    }

    /// Keeps a good token there, at first and whenever it comes to its end or is refused. Runs until it is dropped; run it
    /// once. `fetch` gets at most 5 seconds each time, and should read the credentials anew, so that a rotated secret is
    /// used. `observe` is told how each fetch ended.
    ///
    /// A token is renewed after 72 to 80 % of its life, not by all replicas at once. One that was refused is renewed at
    /// once, but no more often than once a second. After failures the delay grows to 1 second while calls wait, to 5
    /// seconds while none does, and is never shorter than what Scalekit asked for ([`Error::hold`]).
    pub async fn keep<F>(&self, fetch: impl Fn() -> F, mut observe: impl FnMut(Fetched<'_>))
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
            // When it is fetched again without need, and the earliest moment even where there is need.
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
                    // The token that is there may be good for long.
                    self.state.send_modify(|state| state.error = Some(error));
                    let backoff = FIRST_BACKOFF * 2_u32.saturating_pow(failures.min(8) - 1);
                    let backoff = backoff.min(MAX_BACKOFF).mul_f64(1.0 - 0.2 * fastrand::f64());
                    (started + backoff, started + (FIRST_BACKOFF * failures.min(4)).max(held))
                }
            };
            // Those who asked while the fetch was under way have what they wanted, unless it failed or was refused since.
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

/// Why there is no token: what the last fetch failed with, or that there was no time.
fn unavailable_error(error: Option<&Error>) -> Error {
    Error::AccessToken(Box::new(error.cloned().unwrap_or(Error::Timeout)))
}

#[cfg(test)]
mod tests;
