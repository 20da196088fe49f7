//! A client for Scalekit's API tokens (`scalekit.v1.tokens`): create, validate, list, update and invalidate them, over REST
//! or gRPC.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use scalekit::client::{Client, Settings};
//! use scalekit::oauth::Credentials;
//! use scalekit::validate::Validation;
//!
//! let credentials = || {
//!     let secret = std::fs::read_to_string("/run/secrets/scalekit").map_err(|error| error.to_string())?;
//!     Ok(Credentials { client_id: "skc_1".into(), client_secret: secret.trim().into() })
//! };
//! let client = Client::new(Settings::new("https://acme.scalekit.com".parse()?, credentials))?;
//! match client.validate_token("the caller's token").await {
//!     Ok(Validation::Valid(token)) => println!("{} is admitted", token.organization_id),
//!     Ok(Validation::Invalid) => println!("401"),
//!     // There is no verdict. The client is not at fault, and must not be admitted.
//!     Err(error) => println!("503: {error} ({:?})", error.class()),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`transport`], [`rest`], [`grpc`] and [`oauth`] encode calls as requests and decode responses, without I/O; [`validate`] interprets
//! the response to a validation, [`access_token`] keeps the client's access token, and [`proxy`] and [`tunnel`] connect through an
//! HTTP proxy. `client` uses them with reqwest. Programs that manage connections themselves can use them without it. Each codec also
//! has the server's half, for servers that replace Scalekit in tests.
//!
//! # Sources
//!
//! Messages, field numbers, limits, paths and permissions are those of the protobuf descriptors that Scalekit's SDKs carry
//! (`scalekit/v1/tokens/tokens.proto`); errors and their codes are those of its API reference and of the SDKs. Items state what they
//! assume beyond these. The REST paths are only in the descriptors' annotations.
//!
//! # Features
//!
//! - `client` (default): `client::Client`, on reqwest and rustls with ring.
//! - `proxy`: [`proxy`] and [`tunnel`]; part of `client`.

pub mod environment;
pub mod status;
pub mod limits;
pub mod token;
pub mod call;
pub mod error;
pub mod response;
pub mod validate;
pub mod rest;
pub mod grpc;
pub mod transport;
pub mod oauth;
pub mod access_token;
#[cfg(feature = "proxy")]
pub mod proxy;
#[cfg(feature = "proxy")]
pub mod tunnel;
#[cfg(feature = "client")]
pub mod client;

mod json;
mod wipe;
mod proto;
mod timestamp;

pub use secrecy::{ExposeSecret, SecretString};
