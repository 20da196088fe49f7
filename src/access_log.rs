//! One line and one count for each request.

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// JSON lines or text.
    pub format: Format,
    /// Whether requests are logged, or only events.
    pub access: bool,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// JSON, one object a line.
    Json,
    /// For people.
    Text,
}
