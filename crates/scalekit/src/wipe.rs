//! Bodies of requests that contain a secret.

use bytes::Bytes;
use secrecy::zeroize::Zeroizing;

/// The bytes are overwritten when their last clone is dropped.
pub(crate) fn wipe_on_drop(content: Vec<u8>) -> Bytes {
    Bytes::from_owner(Zeroizing::new(content))
}
