//! Accepts and serves connections over HTTP/1.1 or HTTP/2, and ends all of them with one cancellation token.

use std::future::Future;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::body::{Body, BodyError};

// Above the limits of the proxy under test, so that these servers never reject what it forwards.
const MAX_HEADERS: usize = 1000;
const MAX_HEADER_LIST: u32 = 512 * 1024;

/// The tasks of one server. Cancelling `stop` aborts each of them at once.
#[derive(Clone)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Dropping the guard, as happens when the future of the server is dropped, aborts all tasks.
    pub(crate) fn new(stop: &CancellationToken) -> (Self, DropGuard) {
        let stop = stop.child_token();
        let guard = stop.clone().drop_guard();
        (Self { tracker: TaskTracker::new(), stop }, guard)
    }

    pub(crate) fn spawn<F>(&self, task: F)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tracker.spawn(self.stop.clone().run_until_cancelled_owned(task));
    }

    /// Waits for a connection; `None` once the server stops.
    pub(crate) async fn accept(&self, listener: &TcpListener) -> Option<TcpStream> {
        loop {
            match self.stop.run_until_cancelled(listener.accept()).await? {
                Ok((stream, _)) => {
                    // Without the option the connection works, with more latency.
                    let _ = stream.set_nodelay(true);
                    return Some(stream);
                }
                // Out of file descriptors, or a connection reset while queued: the server goes on.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Serves the requests of one connection until it closes.
    pub(crate) async fn serve_connection<I, A, F, E>(self, stream: I, handler: A)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Fn(Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Result<Response<Body>, E>> + Send + 'static,
        E: Into<BodyError> + 'static,
    {
        let mut builder = auto::Builder::new(self);
        builder.http1().timer(TokioTimer::new()).max_headers(MAX_HEADERS);
        builder.http2().timer(TokioTimer::new()).max_header_list_size(MAX_HEADER_LIST);
        // Clients may break a connection at any time; that is no error of the server.
        let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service_fn(handler)).await;
    }

    /// Aborts all tasks and waits for them.
    pub(crate) async fn shut_down(self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl<F> Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}
