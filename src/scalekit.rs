//! Scalekit's API, as far as Keyward needs it.

use std::time::Duration;

use crate::origin;
use crate::secret::SecretSource;

/// How to reach an environment, and as whom.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `https://…` of the environment, without a slash at the end. For messages.
    pub environment_url: String,
    /// The same, as an origin.
    pub origin: origin::Settings,
    /// `SCALEKIT_CLIENT_ID`.
    pub client_id: SecretSource,
    /// `SCALEKIT_CLIENT_SECRET`.
    pub client_secret: SecretSource,
    /// One validation, retries included.
    pub timeout: Duration,
}
