//! Streams outlive the request that opened them: their key is asked about again every so often, and they are closed when
//! it is definitely no longer good, or has expired. An outage alone closes none.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::gauge::Gauge;
use tokio::time::sleep;

use super::Gateway;
use crate::credential::ApiKey;
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::policy::Requirement;
use crate::rejection::Rejection;
use crate::validator::Validator;

/// What it takes to ask again.
pub(super) struct Watch {
    validator: Arc<Validator>,
    metrics: Arc<Metrics>,
    key: ApiKey,
    requirement: Requirement,
    every: Duration,
    expiry: Option<SystemTime>,
}

impl Watch {
    pub(super) fn new(
        gateway: &Gateway,
        key: ApiKey,
        identity: &Identity,
        requirement: &Requirement,
    ) -> Self {
        Self {
            validator: Arc::clone(&gateway.validator),
            metrics: Arc::clone(&gateway.metrics),
            key,
            requirement: requirement.clone(),
            every: gateway.settings.revalidate_every,
            expiry: identity.expiry,
        }
    }
}

/// Completes when the stream must be closed; never without a watch, as on a public route.
pub(super) async fn ended(watch: Option<Watch>) {
    let Some(mut watch) = watch else {
        return std::future::pending().await;
    };
    let metrics = Arc::clone(&watch.metrics);
    let _open = Counted::begin(&metrics.open_streams);
    let mut unconfirmed = None;
    loop {
        let left = watch.expiry.map(|expiry| expiry.duration_since(SystemTime::now()).unwrap_or_default());
        let expired = async {
            match left {
                Some(left) => sleep(left).await,
                None => std::future::pending().await,
            }
        };
        let asked = async {
            // Streams that began together, as after a restart, are not asked about all at once.
            sleep(watch.every.mul_f64(1.0 - 0.1 * fastrand::f64())).await;
            watch.validator.validate(&watch.key, None).await
        };
        let answer = tokio::select! {
            () = expired => break,
            answer = asked => answer,
        };
        match answer {
            Ok(identity) => {
                unconfirmed = None;
                watch.expiry = identity.expiry;
                // Roles and claims may have changed: what would no longer be let in is not kept in either.
                if watch.requirement.admit(identity).is_err() {
                    break;
                }
            }
            Err(Rejection::InvalidKey) => break,
            Err(_) if unconfirmed.is_some() => {}
            Err(rejection) => {
                // Said of the first one alone; the gauge says how many there are.
                if metrics.unconfirmed_streams.get() == 0 {
                    tracing::warn!(
                        keyward.reason = rejection.code(),
                        "the keys of open streams cannot be asked about again; the streams stay open"
                    );
                }
                unconfirmed = Some(Counted::begin(&metrics.unconfirmed_streams));
            }
        }
    }
    metrics.streams_closed.inc();
}

struct Counted<'a>(&'a Gauge);

impl<'a> Counted<'a> {
    fn begin(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
