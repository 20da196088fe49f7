//! The request path.

/// What holds for every route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The realm of `WWW-Authenticate`.
    pub realm: String,
    /// The most bytes of a request's target.
    pub max_uri: usize,
    /// The most headers of a request.
    pub max_headers: usize,
    /// How often the key of an open stream is asked about again.
    pub revalidate_every: std::time::Duration,
}
