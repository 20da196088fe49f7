//! Contents of requests that hold a secret.

use bytes::Bytes;
use secrecy::zeroize::Zeroizing;

/// The content, overwritten when the last of those who send it has dropped it.
pub(crate) fn wipe_on_drop(content: Vec<u8>) -> Bytes {
    Bytes::from_owner(Zeroizing::new(content))
}
