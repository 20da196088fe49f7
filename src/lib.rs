//! Keyward, a validating reverse-proxy sidecar. The modules stand in dependency order: each uses only those above it.

// Words: no I/O, no clock.
pub mod body;
pub mod secret;
pub mod rejection;
pub mod credential;
pub mod hop;
pub mod identity;
pub mod policy;

// The request path.
pub mod route;

// Tools.
pub mod dev;
