//! What is known of keys, as the admin port, key management and the file have it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::network::Network;

/// What the counts of a process cover. The first line of `GET /usage` of the admin port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// The time by the clock of the process.
    pub now: Timestamp,
    /// Which counts these are. Counts with another value began at 0.
    pub instance: String,
    /// When the process was started.
    pub started: Timestamp,
    /// When the counts began.
    pub counted_since: Timestamp,
    /// Since when no use of a key can be missing: a key that is not known was not used since then.
    pub complete_since: Timestamp,
}

/// The use of a key. In JSON, absent values are null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUsage {
    /// The organization that the key belongs to.
    pub organization_id: String,
    /// The begin of the first request.
    pub first_used: Timestamp,
    /// The begin or end of a request, whichever came last.
    pub last_used: Timestamp,
    /// Requests that have ended.
    pub requests: u64,
    /// Requests under way.
    pub open_requests: u32,
    /// The class of the status code of the request that ended last, such as `2xx`.
    pub last_status: Option<String>,
    /// The label of the route of the request that began last.
    pub last_route: String,
    /// The network of the client of the request that began last: a /24 of IPv4, or a /48 of IPv6.
    pub last_network: Option<Network>,
}

/// A line of `GET /usage` of the admin port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyLine {
    /// The id of the key.
    pub token_id: String,
    /// Its use.
    #[serde(flatten)]
    pub usage: KeyUsage,
}
