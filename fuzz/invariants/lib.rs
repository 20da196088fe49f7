//! What always holds of the parts that read what others wrote. Each is one function that takes any bytes and panics
//! where Keyward breaks it; fuzz targets and the property tests in `tests/it/properties.rs` call the same ones.
//!
//! An input is text that people can write: `lines` says how. A function answers with the way that the input went, so
//! that a test can see that every way was taken.

mod lines;
mod naive;

mod config_file;
mod credential;
mod hop_by_hop;
mod identity_headers;
mod path_rule;
mod route_match;
mod scalekit_answers;

pub use config_file::config_file;
pub use credential::credential;
pub use hop_by_hop::hop_by_hop;
pub use identity_headers::identity_headers;
pub use path_rule::path_rule;
pub use route_match::route_match;
pub use scalekit_answers::scalekit_answers;

/// For an input of which nothing is asked.
pub const NO_INPUT: &str = "no input";
