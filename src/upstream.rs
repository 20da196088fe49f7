//! Forwarding to the service behind Keyward.

pub mod forwarded;

use std::sync::Arc;
use std::time::Duration;

use crate::origin;

/// One `[upstreams.NAME]` of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name in the file.
    pub name: Arc<str>,
    /// Where it is.
    pub origin: origin::Settings,
    /// The time to the head of the answer.
    pub response_timeout: Duration,
}
