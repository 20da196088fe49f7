//! TLS settings, made in one place: rustls with ring, TLS 1.2 and 1.3, never a switch that turns verification off.

use std::path::PathBuf;

/// A certificate chain and its key, in PEM files that are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}
