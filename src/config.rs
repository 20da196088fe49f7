//! The route file and the environment, read into the settings of each part.

use std::time::Duration;

use crate::listener::Listen;
use crate::route::RouteTable;
use crate::upstream::forwarded::Trusted;
use crate::{access_log, credential, gateway, identity, listener, scalekit, upstream, validator};

/// Everything that `keyward run` needs to know.
#[derive(Debug)]
pub struct Config {
    /// `[server]` and `[limits]`.
    pub listener: listener::Settings,
    /// `[server] drain_delay`: not ready, still accepting.
    pub drain_delay: Duration,
    /// `[server] drain_timeout`: then, to finish what is open.
    pub drain_timeout: Duration,
    /// `[server] trusted_proxies`.
    pub trusted: Trusted,
    /// `[admin] listen`.
    pub admin: Listen,
    /// `[scalekit]`.
    pub scalekit: scalekit::Settings,
    /// `[scalekit]`, `[negative_cache]`, `[throttle]`.
    pub validator: validator::Settings,
    /// `[credential]`.
    pub credential: credential::Settings,
    /// `[identity]`.
    pub identity: identity::Settings,
    /// `[server] realm`, `[limits]`, `[streams]`.
    pub gateway: gateway::Settings,
    /// `[log]`.
    pub log: access_log::Settings,
    /// `[upstreams]`.
    pub upstreams: Vec<upstream::Settings>,
    /// `[[routes]]`.
    pub routes: RouteTable,
}
