//! Keyward over real sockets: the emulator is the Scalekit, the echo or a scripted socket is the upstream.
#![allow(missing_docs, unreachable_pub)]

mod rig;
mod support;

mod admission;
mod flights;
mod hostile;
mod outage;
mod own_token;
mod reload;
mod reval;
mod tidy;
mod verdicts;
