//! The errors of calls, and their meaning for the caller: [`Error::class`].

use std::time::Duration;

use crate::call::Permission;
use crate::limits::InvalidArgument;
use crate::status::Code;

/// Why a call has no reply. Causes are kept as text, so that an error can be cloned for all calls that wait for the same thing. No
/// text contains a token, an access token or a credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made; nothing was sent.
    #[error("Scalekit cannot be reached: {0}")]
    Unreachable(String),
    /// The connection broke, or the response was cut off, after the request may have been sent.
    #[error("the connection to Scalekit broke: {0}")]
    ConnectionLost(String),
    /// The server's certificate is not trusted, or it does not speak TLS.
    #[error("no trusted TLS connection to Scalekit: {0}")]
    Tls(String),
    /// No response before the deadline.
    #[error("Scalekit did not answer in time")]
    Timeout,
    /// No connection to the HTTP proxy; nothing was sent.
    #[error("the proxy {proxy} cannot be reached: {reason}")]
    ProxyUnreachable {
        /// Host and port of the proxy.
        proxy: String,
        /// The cause.
        reason: String,
    },
    /// The HTTP proxy refused to open a tunnel, so nothing was sent to Scalekit.
    #[error("the proxy {proxy} refuses a connection to Scalekit: {}", explain_proxy_status(*.status))]
    ProxyRefused {
        /// Host and port of the proxy.
        proxy: String,
        /// The status of its response to CONNECT; `None` if it is unknown or the response is not HTTP.
        status: Option<u16>,
    },
    /// A 5xx status, 499 for CANCELLED, or the equivalent gRPC codes.
    #[error("Scalekit answered {0}")]
    Unavailable(u16),
    /// Too many calls (429). Holds `Retry-After`, if the response has it.
    #[error("Scalekit throttles this client")]
    Throttled(Option<Duration>),
    /// A 401: the access token, or the client id and secret, are refused. It is not about an API token.
    #[error("Scalekit refuses the client's own credentials: check the client id and the client secret")]
    Credentials,
    /// A 403: the client lacks this permission.
    #[error("the Scalekit client lacks a permission: grant it {0}")]
    Permission(Permission),
    /// The response is not from Scalekit's token API: the URL is wrong, or a gateway does not route it.
    #[error("no Scalekit token API at this URL ({0}): check the environment's URL")]
    WrongEndpoint(String),
    /// The response violates the API's contract.
    #[error("Scalekit's response violates the API contract: {0}")]
    BrokenContract(&'static str),
    /// The provider of the client's credentials failed. Holds its message.
    #[error("{0}")]
    CredentialsUnreadable(String),
    /// There is no access token, for this reason. The call itself was not sent, or was refused.
    #[error("cannot get an access token: {0}")]
    AccessToken(Box<Error>),
    /// Scalekit refused the call.
    #[error("Scalekit refuses the call: {0}")]
    Refused(Refusal),
    /// The call exceeds a documented limit; nothing was sent.
    #[error(transparent)]
    Invalid(#[from] InvalidArgument),
}

/// Scalekit's reason for refusing a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (code {})", .code.number())]
pub struct Refusal {
    /// The gRPC code, which REST responses also have.
    pub code: Code,
    /// Scalekit's message: at most 300 characters, control characters escaped.
    pub message: String,
}

/// What an error means for the caller. A circuit breaker opens on [`Outage`](Self::Outage), waits on
/// [`Throttled`](Self::Throttled), and counts the others as responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Scalekit or the network is down or slow. Later calls may succeed.
    Outage,
    /// Scalekit rate-limits calls; holds `Retry-After`, if the response has it. See [`Error::hold`].
    Throttled(Option<Duration>),
    /// All calls fail until someone corrects a URL, a secret, a permission, a proxy, or Scalekit itself.
    Misconfigured,
    /// This call was refused; other calls may succeed.
    Refused,
}

/// A longer `Retry-After` may be a mistake, and no calls would be made meanwhile.
const MAX_HOLD: Duration = Duration::from_secs(30);

const MAX_MESSAGE_CHARS: usize = 300;

impl Error {
    /// What the error means for the caller.
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable(_)
            | Self::ConnectionLost(_)
            | Self::Tls(_)
            | Self::Timeout
            | Self::Unavailable(_)
            | Self::ProxyUnreachable { .. }
            | Self::ProxyRefused { status: None | Some(500..), .. } => Class::Outage,
            Self::Throttled(retry_after) => Class::Throttled(*retry_after),
            Self::Credentials
            | Self::Permission(_)
            | Self::WrongEndpoint(_)
            | Self::BrokenContract(_)
            | Self::CredentialsUnreadable(_)
            | Self::ProxyRefused { .. } => Class::Misconfigured,
            Self::Refused(_) | Self::Invalid(_) => Class::Refused,
            Self::AccessToken(error) => error.class(),
        }
    }

    /// A stable name for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable(_) | Self::ConnectionLost(_) => "unreachable",
            Self::Tls(_) => "tls",
            Self::Timeout => "timeout",
            Self::ProxyUnreachable { .. } | Self::ProxyRefused { .. } => "proxy",
            Self::Unavailable(_) => "down",
            Self::Throttled(_) => "throttled",
            Self::Credentials => "credentials",
            Self::Permission(_) => "permission",
            Self::WrongEndpoint(_) => "wrong_endpoint",
            Self::BrokenContract(_) => "broken_answer",
            Self::CredentialsUnreadable(_) => "secret",
            Self::AccessToken(error) => error.kind(),
            Self::Refused(_) => "refused",
            Self::Invalid(_) => "invalid_argument",
        }
    }

    /// How long to make no calls: the `Retry-After` of a throttled call, at most 30 seconds.
    pub fn hold(&self) -> Option<Duration> {
        match self.class() {
            Class::Throttled(retry_after) => retry_after.map(|delay| delay.min(MAX_HOLD)),
            _ => None,
        }
    }

    /// Whether the call may succeed if it is repeated immediately. Repeat only calls that change nothing.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_)
                | Self::ConnectionLost(_)
                | Self::Unavailable(502..=504)
                | Self::ProxyUnreachable { .. }
                | Self::ProxyRefused { status: Some(502..=504), .. }
        )
    }

    /// Whether a call that creates, updates or invalidates may have taken effect, because the request was sent but there was no
    /// usable response.
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(
            self,
            Self::ConnectionLost(_) | Self::Timeout | Self::Unavailable(_) | Self::BrokenContract(_)
        )
    }

    /// Whether Scalekit refused the call because there is no such live token.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(Refusal { code: Code::NotFound, .. }))
    }
}

impl Refusal {
    /// SECURITY: the message may be from an untrusted server. It is escaped and cut, so that it can forge neither lines of a log nor
    /// escape sequences for a terminal.
    pub(crate) fn new(code: Code, message: &str) -> Self {
        let escape = |char: char| {
            // Marks that change the direction of text could make one id look like another.
            let is_mark =
                matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            let escaped: String =
                if char.is_control() || is_mark { char.escape_default().collect() } else { char.to_string() };
            escaped
        };
        Self { code, message: message.chars().take(MAX_MESSAGE_CHARS).map(escape).collect() }
    }
}

fn explain_proxy_status(status: Option<u16>) -> String {
    match status {
        Some(407) => "it requires other credentials (HTTP 407)".to_owned(),
        Some(status) => format!("HTTP {status}"),
        None => "its response to CONNECT is not a success".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_class_kind_and_consequences() {
        let refused = |status| Error::ProxyRefused { proxy: "p:1".into(), status };
        let unreachable = Error::ProxyUnreachable { proxy: "p:1".into(), reason: "x".into() };
        let invalid = InvalidArgument { field: "expiry", problem: "x".into() };
        let wait = Some(Duration::from_secs(90));
        // Error, class, kind, transient, outcome unknown.
        for (error, class, kind, transient, unknown) in [
            (Error::Unreachable("x".into()), Class::Outage, "unreachable", true, false),
            (Error::ConnectionLost("x".into()), Class::Outage, "unreachable", true, true),
            (Error::Tls("x".into()), Class::Outage, "tls", false, false),
            (Error::Timeout, Class::Outage, "timeout", false, true),
            (Error::Unavailable(500), Class::Outage, "down", false, true),
            (Error::Unavailable(502), Class::Outage, "down", true, true),
            (unreachable, Class::Outage, "proxy", true, false),
            (refused(Some(502)), Class::Outage, "proxy", true, false),
            (refused(None), Class::Outage, "proxy", false, false),
            (refused(Some(407)), Class::Misconfigured, "proxy", false, false),
            (Error::Throttled(wait), Class::Throttled(wait), "throttled", false, false),
            (Error::Credentials, Class::Misconfigured, "credentials", false, false),
            (Error::Permission(Permission::Read), Class::Misconfigured, "permission", false, false),
            (Error::WrongEndpoint("x".into()), Class::Misconfigured, "wrong_endpoint", false, false),
            (Error::BrokenContract("x"), Class::Misconfigured, "broken_answer", false, true),
            (Error::CredentialsUnreadable("x".into()), Class::Misconfigured, "secret", false, false),
            (Error::AccessToken(Box::new(Error::Timeout)), Class::Outage, "timeout", false, false),
            (
                Error::AccessToken(Box::new(Error::Credentials)),
                Class::Misconfigured,
                "credentials",
                false,
                false,
            ),
            (Error::Refused(Refusal::new(Code::NotFound, "x")), Class::Refused, "refused", false, false),
            (Error::Invalid(invalid), Class::Refused, "invalid_argument", false, false),
        ] {
            assert_eq!(error.class(), class, "{error}");
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!(error.is_transient(), transient, "{error}");
            assert_eq!(error.is_outcome_unknown(), unknown, "{error}");
        }
    }

    #[test]
    fn hold_is_retry_after_up_to_thirty_seconds() {
        let throttled = |seconds| Error::Throttled(Some(Duration::from_secs(seconds)));
        assert_eq!(throttled(7).hold(), Some(Duration::from_secs(7)));
        assert_eq!(throttled(3600).hold(), Some(MAX_HOLD));
        assert_eq!(Error::AccessToken(Box::new(throttled(7))).hold(), Some(Duration::from_secs(7)));
        assert_eq!(Error::Throttled(None).hold(), None);
        assert_eq!(Error::Timeout.hold(), None);
    }

    #[test]
    fn refusal_message_is_one_bounded_line() {
        let refusal = Refusal::new(Code::InvalidArgument, "a\n\u{1b}[31mb\u{202e}ü");
        assert_eq!(refusal.to_string(), r"a\n\u{1b}[31mb\u{202e}ü (code 3)");
        assert_eq!(Refusal::new(Code::NotFound, &"ä".repeat(1000)).message.chars().count(), 300);
    }
}
