//! The certificates of the listeners, which a reload replaces, and when they expire.

use std::sync::Arc;

use crate::listener::Listener;
use crate::metrics::{self, Metrics};
use crate::tls::ServerCertificate;

/// The certificate of a listener, by its table in the route file.
pub(super) struct ListenerCertificate {
    listener: &'static str,
    pub(super) certificate: Arc<ServerCertificate>,
}

impl ListenerCertificate {
    /// Those of the listeners that speak TLS.
    pub(super) fn list<const N: usize>(listeners: [(&'static str, Option<&Listener>); N]) -> Vec<Self> {
        let certificate = |(listener, own): (_, Option<&Listener>)| {
            Some(Self { listener, certificate: own?.certificate()? })
        };
        listeners.into_iter().filter_map(certificate).collect()
    }

    /// Sets the metric of its expiry.
    pub(super) fn record_expiry(&self, metrics: &Metrics) {
        if let Some(time) = self.certificate.expires_at() {
            let listener = metrics::Listener { listener: self.listener };
            metrics.certificate_expiry.get_or_create(&listener).set(time);
        }
    }
}
