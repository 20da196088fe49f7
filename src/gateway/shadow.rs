//! Shadow mode: a request is forwarded as before Keyward was there, with its own `Authorization`, and it is recorded what would have
//! become of it.

use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use super::{Downstream, Kind, Revalidation, admit_public};
use crate::access_log::Record;
use crate::policy::Permit;
use crate::rejection::Rejection;

/// The credential of a request in shadow mode.
pub(super) fn keep_authorization(kind: Kind, headers: &HeaderMap) -> Vec<HeaderValue> {
    match kind {
        Kind::Shadow => headers.get_all(AUTHORIZATION).iter().cloned().collect(),
        Kind::Request | Kind::Preflight => Vec::new(),
    }
}

/// Puts it back, after it was taken out and the headers that `Connection` names were removed.
pub(super) fn restore_authorization(values: Vec<HeaderValue>, headers: &mut HeaderMap) {
    for value in values {
        headers.append(AUTHORIZATION, value);
    }
}

/// Records what would have become of the request. Without a valid key it is forwarded as on a public route; a valid key is not validated
/// again while the request lasts.
///
/// # Errors
/// `Overloaded`, if requests without a valid key use all the connections that they may.
pub(super) fn observe(
    admitted: Result<(Permit, Revalidation), Rejection>,
    downstream: &Downstream<'_>,
    record: &mut Record,
) -> Result<(Permit, Revalidation), Rejection> {
    record.observe(admitted.as_ref().err());
    match admitted {
        Ok((permit, revalidation)) => Ok((permit, revalidation.without_recheck())),
        Err(_) => admit_public(downstream),
    }
}
