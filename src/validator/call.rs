//! One flight's call to Scalekit: what it waits for, what may refuse it, and what its outcome changes.

use std::net::IpAddr;

use ::scalekit::error::{self, Error};
use tokio::time::{Instant, sleep_until};

use super::breaker::Ended;
use super::shares::Class;
use super::{RETRY_AFTER, Validator};
use crate::credential::{ApiKey, KeyDigest};
use crate::metrics::Outcome;
use crate::rejection::Rejection;
use crate::scalekit::{Explained, Verdict};

impl Validator {
    /// Calls Scalekit, unless the key became known as bad, or the breaker opened, while this flight waited.
    pub(super) async fn call_scalekit(
        &self,
        key: &ApiKey,
        digest: KeyDigest,
        class: Class,
        client: Option<IpAddr>,
    ) -> Result<Verdict, Rejection> {
        if self.is_known_bad(&digest) {
            return Ok(Verdict::Invalid);
        }
        if class != Class::Stream {
            self.breaker.check(Instant::now()).map_err(Rejection::ValidationUnavailable)?;
        }
        // A call that begins later is unlikely to be answered in time.
        let latest = Instant::now() + self.settings.timeout / 2;
        loop {
            let now = Instant::now();
            let begins =
                self.backoff.reserve(class, now, latest).map_err(Rejection::ValidationUnavailable)?;
            if begins > now {
                sleep_until(begins).await;
            }
            // Reserved for the case that the key is bad; a key that was good lately is exempt.
            let reserved = self.throttle.as_ref().zip(client).filter(|_| class == Class::Unknown);
            if let Some((throttle, client)) = reserved {
                throttle.reserve(client, latest).await.map_err(Rejection::Throttled)?;
            }
            let answer = self.call_and_record(key, class).await;
            if let Some((throttle, client)) = reserved {
                let found_bad_key = matches!(answer, Ok(Ok(Verdict::Invalid)));
                throttle.settle(client, found_bad_key, Instant::now());
            }
            match answer? {
                Ok(Verdict::Invalid) => {
                    if let Some(negative) = &self.negative {
                        negative.insert(digest, ());
                    }
                    self.good.forget(&digest);
                    return Ok(Verdict::Invalid);
                }
                Ok(valid) => return Ok(valid),
                // Throttled: tried again when the pace of this class allows it.
                Err(error) => match error.class() {
                    error::Class::Throttled(_) if class != Class::Unknown => {}
                    error::Class::Throttled(Some(wait)) => {
                        return Err(Rejection::ValidationUnavailable(wait));
                    }
                    _ => return Err(Rejection::ValidationUnavailable(RETRY_AFTER)),
                },
            }
        }
    }

    /// One call, charged to the budget and admitted by the breaker; its outcome goes to metrics, breaker, hold and log.
    async fn call_and_record(&self, key: &ApiKey, class: Class) -> Result<Result<Verdict, Error>, Rejection> {
        self.spend_budget(class).await?;
        let began = Instant::now();
        // Last, as an open breaker admits one call a second: none that is refused for another reason may take its place.
        if class != Class::Stream
            && let Err(wait) = self.breaker.admit(began)
        {
            self.budget.iter().for_each(|budget| budget.refund(class, began));
            return Err(Rejection::ValidationUnavailable(wait));
        }
        let answer = self.scalekit.validate(key).await;
        let ended = Instant::now();
        self.metrics.validation_seconds.observe((ended - began).as_secs_f64());
        let outcome = match &answer {
            Ok(Verdict::Valid(_)) => "valid",
            Ok(Verdict::Invalid) => "invalid",
            Err(error) => error.kind(),
        };
        self.metrics.validations.get_or_create(&Outcome { outcome }).inc();
        let open = self.breaker.record(Ended::from_result(&answer), began, ended);
        self.metrics.breaker_open.set(open.into());
        match &answer {
            Ok(_) => self.backoff.record_answer(class, began),
            Err(error) if matches!(error.class(), error::Class::Throttled(_)) => {
                self.backoff.record_throttled(class, error.hold(), began, ended);
            }
            Err(_) => {}
        }
        self.log_outcome(began, answer.as_ref().err());
        Ok(answer)
    }

    /// Logs at a limited rate that Scalekit gives no verdict, and that it answers again.
    fn log_outcome(&self, began: Instant, failure: Option<&Error>) {
        let Some(error) = failure else {
            if let Some((outage, suppressed)) = self.failures.record_success(began) {
                let seconds = outage.as_secs_f64().ceil();
                tracing::info!(suppressed, "Scalekit answers again after {seconds} s");
            }
            return;
        };
        let outage = match error.class() {
            error::Class::Outage | error::Class::Throttled(_) => Some(error.hold().unwrap_or_default()),
            error::Class::Misconfigured | error::Class::Refused => None,
        };
        if let Some(suppressed) = self.failures.record_failure(error.kind(), outage, Instant::now()) {
            log_missing_verdict(error.kind(), suppressed, &Explained(error));
        }
    }

    async fn spend_budget(&self, class: Class) -> Result<(), Rejection> {
        let Some(budget) = &self.budget else { return Ok(()) };
        budget.spend(class).await.map_err(|wait| {
            if let Some(suppressed) = self.failures.record_failure("budget", None, Instant::now()) {
                let spent = "the budget of validations a minute is used up (scalekit.validations_per_minute)";
                log_missing_verdict("budget", suppressed, &spent);
            }
            Rejection::Overloaded(wait)
        })
    }
}

fn log_missing_verdict(kind: &'static str, suppressed: u64, cause: &dyn std::fmt::Display) {
    tracing::error!(error.type = kind, suppressed, "no verdict, so requests get 503: {cause}");
}
