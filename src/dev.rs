//! What `keyward dev` is made of: a Scalekit emulator and an echo upstream.

mod serving;

pub mod echo;
pub mod emulator;
