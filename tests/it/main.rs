//! Keyward over real sockets: the emulator is the Scalekit, the echo or a scripted socket is the upstream.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

mod rig;
mod support;

mod admin;
mod admission;
mod answers;
mod backends;
mod command_line;
mod deploy;
mod drain;
mod exposition;
mod flights;
mod floods;
mod goaway;
mod grpc;
mod grpc_transport;
mod hostile;
mod keys;
mod late_heads;
mod limits;
mod listeners;
mod management;
mod memory;
mod outage;
mod own_token;
mod pressure;
mod process;
mod properties;
mod proxies;
mod proxy_protocol;
mod refused;
mod reload;
mod reval;
mod streams;
mod tidy;
mod tonic;
mod tunnel;
mod upstreams;
mod verdicts;
mod wire;
