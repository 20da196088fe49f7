//! Streams outlive the request that opened them: their key is asked about again every so often, and they are closed when
//! it is definitely no longer good, or has expired. An outage alone closes none.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

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
    ended: Option<Pin<Box<dyn Future<Output = Rejection> + Send>>>,
    upload: Option<CancellationToken>,
}

impl Watched {
    pub(super) fn by(watch: Watch) -> Self {
        Self { watch: Some(watch), ..Self::default() }
    }

    /// Ready when the stream must be closed, with what a new request would be told.
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Rejection> {
        if let Some(watch) = self.watch.take() {
            self.ended = Some(Box::pin(ended(watch)));
        }
        self.ended.as_mut().map_or(Poll::Pending, |ended| ended.as_mut().poll(cx))
    }

    /// What is sent on such a stream ends with it, though the answer ends as if all was well.
    pub(super) fn upload(&mut self, body: Body) -> Body {
        let token = CancellationToken::new();
        let cut = Box::pin(token.clone().cancelled_owned());
        self.upload = Some(token);
        Upload { body, cut }.boxed_unsync()
    }

    /// Nothing more is sent.
    pub(super) fn cut(&mut self) {
        if let Some(upload) = self.upload.take() {
            upload.cancel();
        }
    }

    /// Completes when the stream must be closed.
    pub(super) async fn ended(&mut self) -> Rejection {
        std::future::poll_fn(|cx| self.poll_ended(cx)).await
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
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.cut.as_mut().poll(cx).is_ready() {
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
