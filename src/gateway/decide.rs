//! Decisions on requests that a gateway holds. Up to the permit they take the proxy's own path ([`Gateway::admit`]).

use std::sync::Arc;
use std::time::Instant;

use hyper::header::{AUTHORIZATION, CACHE_CONTROL, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};

use super::preflight::is_browser_preflight;
use super::{Admission, Downstream, Gateway, Kind, add_notices};
use crate::access_log::Record;
use crate::body::{self, Body};
use crate::budget::Account;
use crate::peer::Peer;
use crate::rejection::{ErrorFormat, Rejection};
use crate::request_head;
use crate::upstream::forwarded::REQUEST_ID;

/// What Envoy removes from a request that is permitted (`ext_authz`, `CheckResponse` over HTTP).
pub const HEADERS_TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

impl Gateway {
    /// Decides on a request that a gateway holds, of which `request` has the method, target and headers: 200 with the identity
    /// headers, or the rejection. With `list_removals`, the response names the headers that the gateway must remove from the
    /// request.
    pub async fn decide(
        &self,
        request: Request<Body>,
        peer: Peer,
        account: &Arc<Account>,
        format: &ErrorFormat,
        list_removals: bool,
    ) -> Response<Body> {
        let (downstream, mut record) = self.begin_request(&request, peer, account);
        let request_id = record.request_id.clone();
        let permitted = self.permit(request, &downstream, &mut record, list_removals).await;
        let notices = std::mem::take(&mut record.notices);
        let mut response = match permitted {
            Ok(response) => {
                record.set_status(StatusCode::OK, Instant::now());
                record.mark_complete();
                response
            }
            Err(rejection) => {
                let mut response = self.reject(&rejection, format, record);
                // The headers of a permit are for the service.
                add_notices(notices, &mut response);
                response
            }
        };
        response.headers_mut().insert(REQUEST_ID, request_id);
        response
    }

    /// The decision path, from the request's head to the response that permits it.
    async fn permit(
        &self,
        mut request: Request<Body>,
        downstream: &Downstream<'_>,
        record: &mut Record,
        list_removals: bool,
    ) -> Result<Response<Body>, Rejection> {
        let host = request_head::check_head(&request, self.settings.head)?;
        let found = self.find_route(&request, &host)?;
        // SECURITY: the gateway forwards what the proxy would remove.
        if found.kind == Kind::Preflight && !is_browser_preflight(request.headers()) {
            return Err(Rejection::MissingCredential);
        }
        let Admission { permit, kind, .. } = self.admit(&mut request, found, downstream, record).await?;
        let forged = self.strip_identity_headers(request.headers_mut(), record);
        let mut response = Response::new(body::empty());
        let headers = response.headers_mut();
        self.set_identity_headers(&permit, kind, headers, record)?;
        if list_removals {
            let unset =
                self.identity.fixed_names().chain(&forged).filter(|name| !headers.contains_key(*name));
            let credential = (kind != Kind::Shadow).then_some(AUTHORIZATION.as_str());
            let names = credential.into_iter().chain(unset.map(HeaderName::as_str));
            let names = names.collect::<Vec<_>>().join(",");
            // Names of headers are visible ASCII.
            if let Ok(names) = HeaderValue::try_from(names) {
                headers.insert(HEADERS_TO_REMOVE, names);
            }
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(identity) = permit.identity() {
            response.extensions_mut().insert(Arc::clone(identity));
        }
        Ok(response)
    }
}
