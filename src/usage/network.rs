//! The network that a client is in: enough to recognize a site, too little to be the address of a person.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A client's network: 256 IPv4 addresses, or an IPv6 /48, which is what a site is given (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

const IPV4_PREFIX: u8 = 24;
const IPV6_PREFIX: u8 = 48;

impl Network {
    /// The network of this address.
    pub fn of(address: IpAddr) -> Self {
        let (address, prefix): (IpAddr, u8) = match address.to_canonical() {
            IpAddr::V4(address) => {
                (Ipv4Addr::from_bits(address.to_bits() & (u32::MAX << 8)).into(), IPV4_PREFIX)
            }
            IpAddr::V6(address) => {
                (Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 80)).into(), IPV6_PREFIX)
            }
        };
        Self(IpNet::new_assert(address, prefix))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        IpNet::from_str(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(address: &str, expected: &str) {
        assert_eq!(Network::of(address.parse().unwrap()).to_string(), expected);
    }

    #[test]
    fn network_is_not_a_precise_address() {
        check("192.0.2.77", "192.0.2.0/24");
        check("::ffff:192.0.2.77", "192.0.2.0/24");
        check("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48");
        check("::1", "::/48");
    }
}
