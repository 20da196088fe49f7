//! Limits on the requests of an organization, a user or a key, in memory that is bounded however many there are. The number of
//! requests may be a claim of the key.

mod fields;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderValue};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::time::Instant;

use self::fields::Fields;
use crate::credential::KeyDigest;
use crate::gcra::{Allowance, Level, Quota};
use crate::identity::Identity;
use crate::logging::line_limit::LineLimit;
use crate::metrics::{self, Metrics};
use crate::shared::SharedServer;
use crate::shared::lease::SharedAllowance;

/// Exhausted keys that are remembered, of each limit, in some 200 bytes each.
const EXHAUSTED_KEYS: u64 = 10_000;

/// A limit of `[rate_limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its name: letters, digits, `-` and `_`.
    pub name: Arc<str>,
    /// What has an allowance of its own.
    pub by: Subject,
    /// The allowance.
    pub quota: Quota,
    /// The claim with another number for `Quota::requests`.
    pub claim: Option<String>,
    /// The largest number that a claim can set.
    pub max: u32,
    /// Whether responses tell what is left.
    pub headers: bool,
    /// How many allowances are remembered. Beyond it, that which was used least recently is forgotten, and is full again.
    pub max_entries: u64,
}

/// What has an allowance of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// All keys of an organization and of its users together.
    Organization,
    /// All keys of a user within an organization together. Keys of the organization itself are together, too.
    User,
    /// Each key, by its token id.
    Key,
}

/// The organization, user or key: ids, which are never equal for two subjects of one limit.
type SubjectId = (HeaderValue, Option<HeaderValue>);

impl Subject {
    fn id_of(self, identity: &Identity) -> SubjectId {
        let second = match self {
            Self::Organization => None,
            Self::User => identity.user_id.clone(),
            // Scalekit states it for every key (contract section 5); without it, the organization's keys are together.
            Self::Key => identity.token_id.clone(),
        };
        (identity.org_id.clone(), second)
    }
}

/// The allowances that are not full.
#[derive(Clone)]
enum Allowances {
    /// Of this replica alone.
    Own(Cache<SubjectId, Arc<Mutex<Allowance>>>),
    Shared(Arc<SharedServer>, Cache<SubjectId, Arc<SharedAllowance>>),
}

/// Shared allowances are remembered at least so long, for leases that are under way.
const SHARED_IDLE: Duration = Duration::from_secs(5);

impl Allowances {
    fn new(settings: &Settings, server: Option<&Arc<SharedServer>>) -> Self {
        let Settings { max_entries, quota, .. } = settings;
        // One that was not used for that long is full, which is what a missing one means.
        let idle = quota.refill_time();
        match server {
            None => {
                let cache = Cache::builder().max_capacity(*max_entries).time_to_idle(idle);
                Self::Own(cache.eviction_policy(EvictionPolicy::lru()).build())
            }
            Some(server) => {
                let cache = Cache::builder().max_capacity(*max_entries).time_to_idle(idle.max(SHARED_IDLE));
                Self::Shared(Arc::clone(server), cache.eviction_policy(EvictionPolicy::lru()).build())
            }
        }
    }
}

/// A limit.
struct RateLimit {
    settings: Settings,
    allowances: Allowances,
    /// Keys of which it is known that nothing is left, and until when.
    exhausted: Cache<KeyDigest, Instant>,
}

/// A request beyond a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// The limit's name.
    pub limit: Arc<str>,
    /// How long to wait.
    pub wait: Duration,
}

impl RateLimit {
    fn new(settings: Settings, before: Option<&Self>, server: Option<&Arc<SharedServer>>) -> Self {
        let refill_time = settings.quota.refill_time();
        let kept = before.filter(|before| {
            let Settings { by, quota, max_entries, .. } = &before.settings;
            (*by, quota.refill_time(), *max_entries) == (settings.by, refill_time, settings.max_entries)
        });
        Self {
            allowances: kept
                .map_or_else(|| Allowances::new(&settings, server), |kept| kept.allowances.clone()),
            exhausted: Cache::builder().max_capacity(EXHAUSTED_KEYS).time_to_live(refill_time).build(),
            settings,
        }
    }

    /// Takes a request out of the identity's allowance. Waits only if it is shared.
    ///
    /// # Errors
    /// The level, if nothing is left.
    async fn take(&self, identity: &Identity, quota: Quota) -> Result<Level, Level> {
        let (id, now) = (self.settings.by.id_of(identity), Instant::now());
        match &self.allowances {
            Allowances::Own(cache) => lock(&own_allowance(cache, id, now)).take(quota, now),
            Allowances::Shared(server, cache) => {
                let key = || self.name_on_server(server, identity);
                let allowance = cache.get_with(id, || Arc::new(SharedAllowance::new(now)));
                allowance.take(server, quota, key).await
            }
        }
    }

    fn give_back(&self, identity: &Identity, key: &KeyDigest) {
        let (id, quota, now) = (self.settings.by.id_of(identity), self.quota_of(identity), Instant::now());
        match &self.allowances {
            Allowances::Own(cache) => lock(&own_allowance(cache, id, now)).give_back(quota),
            Allowances::Shared(server, cache) => {
                if let Some(allowance) = cache.get(&id) {
                    allowance.give_back(server, quota);
                }
            }
        }
        self.exhausted.invalidate(key);
    }

    /// SECURITY: ids are hashed, as others may be able to read the server.
    fn name_on_server(&self, server: &SharedServer, identity: &Identity) -> String {
        let (first, second) = self.settings.by.id_of(identity);
        let by: &[u8] = match self.settings.by {
            Subject::Organization => b"organization",
            Subject::User => b"user",
            Subject::Key => b"key",
        };
        let second = second.as_ref().map(HeaderValue::as_bytes);
        let ids = [self.settings.name.as_bytes(), by, first.as_bytes()].into_iter().chain(second);
        server.key("rate_limit", &ids.collect::<Vec<_>>())
    }

    fn count(&self, metrics: &Metrics, outcome: &'static str) {
        let labels = metrics::RateLimit { limit: Arc::clone(&self.settings.name), outcome };
        metrics.rate_limits.get_or_create(&labels).inc();
    }

    /// The quota, with the number of the identity's claim.
    fn quota_of(&self, identity: &Identity) -> Quota {
        let Settings { name, quota, claim, max, .. } = &self.settings;
        let Some((claim, value)) =
            claim.as_ref().and_then(|claim| Some((claim, identity.claims.get(claim)?)))
        else {
            return *quota;
        };
        match value.parse::<u32>() {
            Ok(requests) if requests > 0 => quota.with_requests(requests.min(*max)),
            _ => {
                warn_of_claim(identity, name, claim);
                *quota
            }
        }
    }
}

fn own_allowance(
    cache: &Cache<SubjectId, Arc<Mutex<Allowance>>>,
    id: SubjectId,
    now: Instant,
) -> Arc<Mutex<Allowance>> {
    cache.get_with(id, || Arc::new(Mutex::new(Allowance::full_at(now))))
}

fn lock(allowance: &Mutex<Allowance>) -> MutexGuard<'_, Allowance> {
    allowance.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The limits in force, by name.
#[derive(Default)]
pub struct RateLimits(HashMap<Arc<str>, RateLimit>);

impl RateLimits {
    /// The allowances of limits that mean the same as `before` are kept. With a server, they are shared.
    pub fn new(settings: Vec<Settings>, before: Option<&Self>, server: Option<&Arc<SharedServer>>) -> Self {
        let limit = |settings: Settings| {
            let before = before.and_then(|before| before.0.get(&settings.name));
            (Arc::clone(&settings.name), RateLimit::new(settings, before, server))
        };
        Self(settings.into_iter().map(limit).collect())
    }

    /// The limits with these names, all of which are in force: the configuration is checked.
    fn named<'l>(&'l self, names: &'l [Arc<str>]) -> impl Iterator<Item = &'l RateLimit> {
        names.iter().filter_map(|name| self.0.get(name))
    }

    /// Whether these limits may admit a request with this key, which need not be validated otherwise.
    ///
    /// # Errors
    /// The first limit of which it is certain that it would not.
    pub fn check_key(
        &self,
        names: &[Arc<str>],
        key: &KeyDigest,
        now: Instant,
        metrics: &Metrics,
    ) -> Result<(), Exceeded> {
        for limit in self.named(names) {
            let until = limit.exhausted.get(key);
            let wait = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
            if !wait.is_zero() {
                limit.count(metrics, "exceeded_unvalidated");
                return Err(Exceeded { limit: Arc::clone(&limit.settings.name), wait });
            }
        }
        Ok(())
    }

    /// Takes a request out of each of these limits, or out of none. Adds what is left to `notices`, the headers that tell the client.
    /// Waits only for shared limits, for their deadline at most.
    ///
    /// # Errors
    /// The first limit that has nothing left.
    pub async fn take_request(
        &self,
        names: &[Arc<str>],
        identity: &Identity,
        key: KeyDigest,
        metrics: &Metrics,
        notices: &mut HeaderMap,
    ) -> Result<(), Exceeded> {
        let mut fields = Fields::default();
        let taken = self.take_each(names, identity, key, metrics, &mut fields).await;
        fields.append_to(notices);
        taken
    }

    async fn take_each(
        &self,
        names: &[Arc<str>],
        identity: &Identity,
        key: KeyDigest,
        metrics: &Metrics,
        fields: &mut Fields,
    ) -> Result<(), Exceeded> {
        for (index, limit) in self.named(names).enumerate() {
            let quota = limit.quota_of(identity);
            let taken = limit.take(identity, quota).await;
            let (Ok(level) | Err(level)) = taken;
            if limit.settings.headers {
                fields.add(&limit.settings.name, quota, level);
            }
            if level.remaining == 0 {
                limit.exhausted.insert(key, Instant::now() + level.next);
            }
            if taken.is_err() {
                for earlier in self.named(names).take(index) {
                    earlier.give_back(identity, &key);
                }
                limit.count(metrics, "exceeded");
                return Err(Exceeded { limit: Arc::clone(&limit.settings.name), wait: level.next });
            }
        }
        for limit in self.named(names) {
            limit.count(metrics, "allowed");
        }
        Ok(())
    }
}

fn warn_of_claim(identity: &Identity, limit: &str, claim: &str) {
    static LIMIT: LineLimit = LineLimit::new(Duration::from_secs(10));
    if let Some(suppressed) = LIMIT.admit() {
        tracing::warn!(
            keyward.token.id = identity.token_id.as_ref().and_then(|id| id.to_str().ok()),
            suppressed,
            "the claim {claim:?} of a key is not a whole number from 1, so rate_limits.{limit} allows its own number of requests"
        );
    }
}
