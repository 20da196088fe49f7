//! The body of a response, which holds the connection that it arrives on.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use tokio::time::Instant;

use super::outgoing::OutgoingBody;
use super::{Idle, Origin, lock};
use crate::body::{self, Adapted, Adapter, PolledFrame};

/// A response's body. Reading it to its end returns the connection to the pool; dropping it earlier closes the connection.
pub(crate) type PooledBody = Adapted<Lease>;

/// What a response's body holds until its end.
pub(crate) struct Lease(Option<Connection>);

pub(super) enum Connection {
    Http1 { sender: http1::SendRequest<OutgoingBody>, origin: Arc<Origin> },
    Http2(#[expect(dead_code, reason = "it counts the stream as long as it lives")] Arc<()>),
}

pub(super) fn lease_connection(incoming: Incoming, connection: Option<Connection>) -> PooledBody {
    let mut lease = Lease(connection);
    lease.return_if_ended(&incoming);
    Adapted::new(incoming, lease)
}

impl Lease {
    fn return_if_ended(&mut self, incoming: &Incoming) {
        if incoming.is_end_stream() {
            self.return_connection();
        }
    }

    fn return_connection(&mut self) {
        if let Some(Connection::Http1 { sender, origin }) = self.0.take()
            && !sender.is_closed()
        {
            lock(&origin.idle).push(Idle { sender, since: Instant::now() });
        }
    }
}

impl Adapter for Lease {
    type Body = Incoming;
    type Data = Bytes;

    fn poll_frame(&mut self, incoming: &mut Incoming, cx: &mut Context<'_>) -> PolledFrame {
        let polled = body::poll_next(incoming, cx);
        match &polled {
            Poll::Ready(None) => self.return_connection(),
            Poll::Ready(Some(Ok(_))) => self.return_if_ended(incoming),
            Poll::Ready(Some(Err(_))) => self.0 = None,
            Poll::Pending => {}
        }
        polled
    }
}
