//! Keyward over real sockets: the emulator is the Scalekit, the echo or a scripted socket is the upstream.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

mod support;

mod admission;
mod deploy;
mod reload;
mod pressure;
mod streams;
mod tidy;
mod wire;
