//! Connections of the development servers: accepted, served over HTTP/1.1 or HTTP/2, and all ended by one token.

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

/// Wide enough for what a proxy with narrower limits lets through and adds to.
const MAX_HEADERS: usize = 1000;
const MAX_HEAD: u32 = 512 * 1024;

/// The tasks of one server. Each ends when the server is told to stop, whatever it is doing.
#[derive(Clone)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// No tasks yet. The guard ends them all when the server's own future is dropped.
    pub(crate) fn new(stop: &CancellationToken) -> (Self, DropGuard) {
        let stop = stop.child_token();
        let guard = stop.clone().drop_guard();
        (Self { tracker: TaskTracker::new(), stop }, guard)
    }

    /// Starts a task of this server.
    pub(crate) fn spawn<F>(&self, task: F)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tracker.spawn(self.stop.clone().run_until_cancelled_owned(task));
    }

    /// The next connection, or none once the server is to stop.
    pub(crate) async fn accept(&self, listener: &TcpListener) -> Option<TcpStream> {
        loop {
            match self.stop.run_until_cancelled(listener.accept()).await? {
                Ok((stream, _)) => {
                    // A socket that refuses the option is served all the same, only later.
                    let _ = stream.set_nodelay(true);
                    return Some(stream);
                }
                // Out of descriptors, or a connection that died in the queue: neither ends the server.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Answers the requests of one connection until it closes.
    pub(crate) async fn connection<I, A, F, E>(self, stream: I, answer: A)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Fn(Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Result<Response<Body>, E>> + Send + 'static,
        E: Into<BodyError> + 'static,
    {
        let mut builder = auto::Builder::new(self);
        builder.http1().timer(TokioTimer::new()).max_headers(MAX_HEADERS);
        builder.http2().timer(TokioTimer::new()).max_header_list_size(MAX_HEAD);
        // A connection that breaks is the client's business: there is nobody here to tell.
        let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service_fn(answer)).await;
    }

    /// Waits until every task has ended.
    pub(crate) async fn end(self) {
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
