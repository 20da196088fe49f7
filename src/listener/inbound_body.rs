//! A request's body as it arrives from the client: it keeps its connection busy and counts against its memory.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::activity::InFlight;
use crate::body::{self, Adapted, Adapter, Body, PolledFrame};
use crate::budget::{self, Account, Held};

pub(super) struct InboundBody {
    in_flight: InFlight,
    /// The request's memory. An upload may outlast its response, and holds it until both have ended.
    held: Option<Arc<Held>>,
    account: Arc<Account>,
    ended: bool,
}

impl InboundBody {
    pub(super) fn wrap(
        body: Incoming,
        in_flight: InFlight,
        held: Option<Arc<Held>>,
        account: Arc<Account>,
    ) -> Body {
        Adapted::new(body, Self { in_flight, held, account, ended: false }).boxed_unsync()
    }
}

impl Adapter for InboundBody {
    type Body = Incoming;
    type Data = Bytes;

    fn poll_frame(&mut self, body: &mut Incoming, cx: &mut Context<'_>) -> PolledFrame {
        ready!(self.account.poll_room(cx));
        let polled = body::poll_next(body, cx);
        self.ended |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        if self.ended {
            self.held = None;
        }
        self.ended |= body.is_end_stream();
        let account = &self.account;
        polled.map_ok(|frame| frame.map_data(|bytes| budget::count_bytes(bytes, account)))
    }
}

impl Drop for InboundBody {
    fn drop(&mut self) {
        if !self.ended {
            self.in_flight.activity().record_aborted_upload();
        }
    }
}
