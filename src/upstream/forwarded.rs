//! What Keyward says of the caller's connection.

use ipnet::IpNet;

/// Whose word about the caller is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    /// The addresses of proxies in front.
    pub networks: Vec<IpNet>,
    /// Peers of a unix socket (`"unix:"` in the list).
    pub unix: bool,
}
