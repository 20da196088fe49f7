//! Keyward, a validating reverse-proxy sidecar: checks Scalekit API keys and forwards the caller's identity in headers.
//! The modules stand in dependency order: each uses only those above it. `gateway` is the request path.

// Words: no async, no clock.
pub mod body;
pub mod secret;
pub mod terminal;
pub mod peer;
pub mod metrics;
pub mod rejection;
pub mod memory_plan;
pub mod budget;
pub mod credential;
pub mod request_head;
pub mod browser;
pub mod hop_by_hop;
pub mod identity;
pub mod policy;

// The outside world.
pub mod logging;
pub mod systemd;
pub mod tls;
pub mod pool;
pub mod scalekit;
pub mod keys;
pub mod gcra;
pub mod shared;
pub mod validator;
pub mod rate_limit;
pub mod expiry;
pub mod usage;
pub mod upstream;
pub mod traces;

// The request path.
pub mod route;
pub mod access_log;
pub mod gateway;

// The process.
pub mod listener;
pub mod admin;
pub mod decision;
pub mod management;
pub mod config;
pub mod server;

// The commands.
pub mod cli;
