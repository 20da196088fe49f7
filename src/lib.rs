//! Keyward, a validating reverse-proxy sidecar. The modules stand in dependency order: each uses only those above it.

// Words: no I/O, no clock.
pub mod body;
pub mod credential;
pub mod hop;
pub mod identity;
pub mod message;
pub mod metrics;
pub mod policy;
pub mod rejection;
pub mod secret;

// The outside world.
pub mod origin;
pub mod scalekit;
pub mod tls;
pub mod upstream;
pub mod validator;

// The request path.
pub mod access_log;
pub mod gateway;
pub mod route;

// The process.
pub mod admin;
pub mod config;
pub mod listener;
pub mod server;

// Tools.
pub mod cli;
pub mod dev;
