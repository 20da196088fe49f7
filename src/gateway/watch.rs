//! Streams outlive the request that opened them: their key is asked about again every so often, and they are closed when
//! it is definitely no longer good, or has expired. An outage alone closes none.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Shared;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::sleep;

use super::Gateway;
use crate::body::{Body, BodyError};
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

/// A watch that begins when it is first asked: most requests are over before. On a public route there is none.
#[derive(Default)]
pub(super) struct Watched {
    watch: Option<Watch>,
    ended: Option<Ended>,
}

/// Both directions of a stream look at it.
type Ended = Shared<Pin<Box<dyn Future<Output = Rejection> + Send>>>;

impl Watched {
    pub(super) fn by(watch: Watch) -> Self {
        Self { watch: Some(watch), ended: None }
    }

    fn begin(&mut self) -> Option<&mut Ended> {
        if let Some(watch) = self.watch.take() {
            let watching: Pin<Box<dyn Future<Output = Rejection> + Send>> = Box::pin(ended(watch));
            self.ended = Some(watching.shared());
        }
        self.ended.as_mut()
    }

    /// Ready when the stream must be closed, with what a new request would be told.
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Rejection> {
        self.begin().map_or(Poll::Pending, |ended| ended.poll_unpin(cx))
    }

    /// Completes when the stream must be closed.
    pub(super) async fn ended(&mut self) -> Rejection {
        std::future::poll_fn(|cx| self.poll_ended(cx)).await
    }

    /// What is sent on the stream ends with it, whether or not the caller reads the answer.
    pub(super) fn upload(&mut self, body: Body) -> Body {
        match self.begin() {
            Some(ended) => Upload { body, ended: ended.clone() }.boxed_unsync(),
            None => body,
        }
    }
}

async fn ended(mut watch: Watch) -> Rejection {
    let metrics = Arc::clone(&watch.metrics);
    let _open = Counted::begin(&metrics.open_streams);
    let mut unconfirmed = None;
    let rejection = loop {
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
            () = expired => break Rejection::InvalidKey,
            answer = asked => answer,
        };
        match answer {
            Ok(identity) => {
                unconfirmed = None;
                watch.expiry = identity.expiry;
                // Roles and claims may have changed: what would no longer be let in is not kept in either.
                if let Err(rejection) = watch.requirement.admit(identity) {
                    break rejection;
                }
            }
            Err(rejection @ Rejection::InvalidKey) => break rejection,
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
    };
    metrics.streams_closed.inc();
    rejection
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

struct Upload {
    body: Body,
    ended: Ended,
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended.poll_unpin(cx).is_ready() {
            return Poll::Ready(Some(Err("the key is no longer valid".into())));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
