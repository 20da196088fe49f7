//! Keyward's own access token (contract section 1): fetched by one keeper, renewed well before it expires, and never
//! waited for while the old one is good.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::Method;
use hyper::header::HeaderValue;
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::object::Object;
use super::{Content, Fault, Scalekit};
use crate::metrics::Outcome;
use crate::secret::{SecretSource, wiped};

/// Between two fetches, at least.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two fetches while they fail and nobody waits, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The token as it is now, for those who need it.
pub struct AccessToken {
    client_id: SecretSource,
    client_secret: SecretSource,
    state: watch::Sender<State>,
    /// The newest token that Scalekit refused, by its serial.
    refused: AtomicU64,
    wanted: Notify,
}

#[derive(Default)]
struct State {
    bearer: Option<Bearer>,
    /// Why the last fetch failed.
    fault: Option<Fault>,
}

/// A token that was good when it was handed out.
#[derive(Clone)]
pub struct Bearer {
    /// `Bearer …`, marked sensitive.
    pub value: HeaderValue,
    expires: Instant,
    /// Which fetch it came from.
    serial: u64,
}

/// RFC 6749 section 5.1.
#[derive(Deserialize)]
struct Grant {
    access_token: String,
    expires_in: Option<u64>,
}

impl AccessToken {
    pub(super) fn new(client_id: SecretSource, client_secret: SecretSource) -> Self {
        Self {
            client_id,
            client_secret,
            state: watch::Sender::default(),
            refused: AtomicU64::new(0),
            wanted: Notify::new(),
        }
    }

    /// A good token; waits for one if there is none.
    ///
    /// # Errors
    /// Why there is none in time, or will be none before somebody mends something.
    pub async fn bearer(&self, deadline: Instant) -> Result<Bearer, Fault> {
        match self.current() {
            Some(bearer) => Ok(bearer),
            None => self.after(0, deadline).await,
        }
    }

    /// Waits for what the first fetch gives, and no longer: for a program that somebody sits before.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn first(&self, deadline: Instant) -> Result<(), Fault> {
        let mut state = self.state.subscribe();
        let told = state.wait_for(|state| state.bearer.is_some() || state.fault.is_some());
        match timeout_at(deadline, told).await {
            Ok(Ok(state)) if state.bearer.is_some() => Ok(()),
            Ok(Ok(state)) => Err(state.fault.clone().unwrap_or(Fault::Timeout)),
            // The sender lives as long as `self`.
            Ok(Err(_)) | Err(_) => Err(Fault::Timeout),
        }
    }

    /// Another token than this one, which Scalekit refused.
    ///
    /// # Errors
    /// As `bearer`.
    pub async fn renewed(&self, refused: &Bearer, deadline: Instant) -> Result<Bearer, Fault> {
        match self.current() {
            Some(bearer) if bearer.serial > refused.serial => Ok(bearer),
            _ => self.after(refused.serial, deadline).await,
        }
    }

    /// Whether a good token is there.
    pub fn is_there(&self) -> bool {
        self.current().is_some()
    }

    fn current(&self) -> Option<Bearer> {
        self.state.borrow().bearer.clone().filter(Bearer::is_good)
    }

    async fn after(&self, serial: u64, deadline: Instant) -> Result<Bearer, Fault> {
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
            match (changed, &state.borrow().fault) {
                // A fetch that was made while this waited was refused: the next one will be, too.
                (Ok(_), Some(fault)) if fault.is_lasting() => return Err(fault.clone()),
                (Ok(_), _) => {}
                (Err(_), fault) => return Err(fault.clone().unwrap_or(Fault::Timeout)),
            }
        }
    }
}

impl Bearer {
    fn is_good(&self) -> bool {
        Instant::now() < self.expires
    }
}

impl Scalekit {
    /// Keeps the access token fresh. Runs until it is dropped.
    pub async fn keep_access_token(&self) {
        let own = &self.access_token;
        let mut failures = 0_u32;
        for serial in 1.. {
            let started = Instant::now();
            let fetched = match timeout(FETCH_TIMEOUT, self.fetch()).await {
                Ok(fetched) => fetched,
                Err(_) => Err(Fault::Timeout),
            };
            let outcome = Outcome { outcome: fetched.as_ref().map_or_else(Fault::label, |_| "fetched") };
            self.metrics.token_fetches.get_or_create(&outcome).inc();
            let (next, pause) = match fetched {
                Ok((value, lifetime)) => {
                    failures = 0;
                    let expiry = SystemTime::now() + lifetime;
                    let seconds = expiry.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                    self.metrics.token_expiry.set(seconds);
                    let bearer = Bearer { value, expires: started + lifetime, serial };
                    own.state.send_replace(State { bearer: Some(bearer), fault: None });
                    // Not all replicas at once: between 72 and 80 % of its life.
                    (started + lifetime.mul_f64(0.8 - 0.08 * fastrand::f64()), PAUSE)
                }
                Err(fault) => {
                    // A fault that lasts is said again now and then, not each time.
                    if failures.is_power_of_two() || failures == 0 {
                        tracing::error!(error.kind = fault.label(), "cannot get an access token: {fault}");
                    }
                    failures = failures.saturating_add(1);
                    let asked = fault.retry_after().unwrap_or_default();
                    own.state.send_modify(|state| state.fault = Some(fault));
                    let backoff = PAUSE.mul_f64(0.25) * 2_u32.saturating_pow(failures.min(8) - 1);
                    let next = started + backoff.min(LONGEST_PAUSE).mul_f64(1.0 - 0.2 * fastrand::f64());
                    (next, (PAUSE.mul_f64(0.25) * failures.min(4)).max(asked))
                }
            };
            // Who waited while the fetch was under way has what they wanted, unless it failed or was refused since.
            let still_wanted = || failures > 0 || own.refused.load(Ordering::Relaxed) >= serial;
            let wanted = async {
                loop {
                    own.wanted.notified().await;
                    if still_wanted() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = sleep_until(next) => {}
                () = wanted => {}
            }
            sleep_until(started + pause).await;
        }
    }

    /// The token and its lifetime. The secrets are read anew, so that a rotated one is used.
    async fn fetch(&self) -> Result<(HeaderValue, Duration), Fault> {
        let secret = |source: &SecretSource| source.read().map_err(|error| Fault::Secret(error.to_string()));
        let (id, secret) = (secret(&self.access_token.client_id)?, secret(&self.access_token.client_secret)?);
        // With room enough, so that no part of it is left behind in growing: escaped, a byte takes three.
        let room = 64 + 3 * (id.expose().len() + secret.expose().len());
        let form = form_urlencoded::Serializer::new(String::with_capacity(room))
            .append_pair("grant_type", "client_credentials")
            .append_pair("client_id", id.expose())
            .append_pair("client_secret", secret.expose())
            .finish();
        let answer =
            self.call(Method::POST, "/oauth/token", None, Content::Form(wiped(form.into_bytes()))).await?;
        match answer.status.as_u16() {
            200 => {}
            // RFC 6749 section 5.2: invalid_client may be either.
            400 | 401 => return Err(Fault::Credentials),
            _ => return Err(answer.fault()),
        }
        let Object(grant): Object<Grant> = serde_json::from_slice(&answer.body)
            .map_err(|_| Fault::WrongEndpoint("its token endpoint gave no access_token".into()))?;
        let mut value = HeaderValue::try_from(format!("Bearer {}", grant.access_token))
            .map_err(|_| Fault::Broken("the access token is not ASCII"))?;
        value.set_sensitive(true);
        if grant.access_token.is_empty() {
            return Err(Fault::Broken("the access token is empty"));
        }
        // Without `expires_in` the shortest of Scalekit's defaults holds; a day is its longest.
        let lifetime = Duration::from_secs(grant.expires_in.unwrap_or(3600).clamp(1, 7 * 86_400));
        Ok((value, lifetime))
    }
}
