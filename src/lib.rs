//! Keyward, a validating reverse-proxy sidecar. The modules stand in dependency order: each uses only those above it.

// Words: no I/O.
pub mod body;
// Tools.
pub mod dev;
