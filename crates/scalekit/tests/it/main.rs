//! The crate's promises: what is on the wire, what a response means, and the client over real sockets.

mod support;

//mod client;
//mod proxies;
mod responses;
mod validation;
mod wire;
