//! What `keyward dev` is made of: a Scalekit emulator and an echo upstream.

pub mod echo;
pub mod emulator;
