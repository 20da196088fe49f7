//! hyper's server, HTTP/1.1 and HTTP/2 on one port, with the limits of the settings.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioTimer;
use hyper_util::server::conn::auto;
use tokio_util::task::TaskTracker;

use super::Settings;
use super::send_timeout::StreamExecutor;
use crate::memory_plan::READ_BUFFER;
use crate::metrics::Metrics;
use crate::pool::Tasks;

/// Bytes that wait to be sent on one HTTP/2 stream.
const MAX_STREAM_BUFFER: usize = 64 * 1024;
/// Streams that the client made Keyward reset, before the connection ends (CVE-2025-8671).
const MAX_LOCAL_RESETS: usize = 64;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes that a connection may buffer for one client. Nobody knows yet whether it has a good key, so that
/// `memory_plan::CONNECTION` must have room for them, whatever the number of connections.
#[derive(Clone, Copy)]
struct Buffers {
    /// HTTP/1: what is read at once, and what waits to be written.
    http1: usize,
    /// HTTP/2: what a client may send of one body before it is read.
    stream_window: u32,
    /// HTTP/2: the same of all bodies, so that some that stall leave room for the others.
    connection_window: u32,
}

/// While at most one in `WIDE_SHARE` of the connections allowed is open: 1 MiB, which makes 64 KiB for each of all. An upload
/// of 10 MiB takes a third less CPU time than with 64 KiB.
const WIDE: Buffers =
    Buffers { http1: 512 * 1024, stream_window: 128 * 1024, connection_window: 1024 * 1024 };
/// While more are open. A connection's window cannot be smaller (RFC 9113 section 6.9.2).
const NARROW: Buffers = Buffers { http1: READ_BUFFER, stream_window: 16 * 1024, connection_window: 65_535 };
const WIDE_SHARE: usize = 16;

pub(super) struct HttpServers {
    wide: auto::Builder<StreamExecutor>,
    narrow: auto::Builder<StreamExecutor>,
    max_wide_connections: usize,
}

impl HttpServers {
    pub(super) fn new(settings: &Settings, metrics: &Arc<Metrics>, tasks: &TaskTracker) -> Self {
        let mut builder = auto::Builder::new(StreamExecutor {
            tasks: Tasks(tasks.clone()),
            limit: settings.answer_timeout,
            metrics: Arc::clone(metrics),
        });
        builder
            .http1()
            .timer(TokioTimer::new())
            // Keyward's own limit runs from the connection's first byte; hyper's would run between requests too.
            .header_read_timeout(None)
            .half_close(false)
            .max_headers(settings.max_headers);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_concurrent_streams(settings.max_streams)
            .max_send_buf_size(MAX_STREAM_BUFFER)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS)
            .max_header_list_size(u32::try_from(settings.max_head).unwrap_or(u32::MAX));
        let with_buffers = |buffers: Buffers| {
            let mut builder = builder.clone();
            // A head is limited exactly by `ConnectionIo`.
            builder.http1().max_buf_size(buffers.http1.max(settings.max_head));
            builder
                .http2()
                .initial_stream_window_size(buffers.stream_window)
                .initial_connection_window_size(buffers.connection_window);
            builder
        };
        Self {
            wide: with_buffers(WIDE),
            narrow: with_buffers(NARROW),
            max_wide_connections: settings.max_connections / WIDE_SHARE,
        }
    }

    /// The server for a new connection, while so many are open.
    pub(super) fn select(&self, open_connections: usize) -> &auto::Builder<StreamExecutor> {
        if open_connections > self.max_wide_connections { &self.narrow } else { &self.wide }
    }
}
