//! Keyward over real sockets, with the emulator as Scalekit and the echo or a scripted socket as upstream.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

mod rig;
mod support;

mod admin;
mod admission;
mod answer_timeout;
mod backend_paths;
mod command_line;
mod decision;
mod deploy;
mod drain;
mod expiry;
mod exposition;
mod flights;
mod unknown_key_floods;
mod request_retry;
mod gateways;
mod grpc;
mod scalekit_grpc;
mod bad_keys;
mod keys;
mod late_responses;
mod limits;
mod max_connection_age;
mod listeners;
mod management;
mod memory;
mod outage;
mod access_token;
mod backpressure;
mod process;
mod properties;
mod scalekit_proxy;
mod proxy_protocol;
mod lingering_close;
mod rate_limits;
mod reload;
mod revalidation;
mod streams;
mod architecture;
mod tonic;
mod tunnel;
mod upstreams;
mod verdicts;
mod wire;
