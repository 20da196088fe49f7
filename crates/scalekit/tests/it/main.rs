//! Tests of the wire format, the interpretation of responses, and the client over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests may panic")]

mod support;

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod proxies;
mod responses;
mod validation;
mod wire;
