//! Everything that can go wrong with a call, and the one place that says what a failure means: [`Error::class`].

use std::time::Duration;

use crate::call::Permission;
use crate::limits::InvalidArgument;
use crate::status::Code;

/// Why a call gave no reply. Causes are kept as text, because one failure can be reported to many waiters at once; no
/// text holds a key, an access token or a credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made; nothing was sent.
    #[error("Scalekit cannot be reached: {0}")]
    Unreachable(String),
    /// The connection broke, or the response was cut off, after the request may have been sent.
    #[error("Scalekit gave no answer: {0}")]
    ConnectionLost(String),
    /// The server's certificate is not trusted, or it does not speak TLS.
    #[error("no trusted TLS connection to Scalekit: {0}")]
    Tls(String),
    /// No response within the deadline.
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
    /// The HTTP proxy refused to open a tunnel, so that Scalekit was never asked.
    #[error("the proxy {proxy} refuses a connection to Scalekit: {}", explain_proxy_status(*.status))]
    ProxyRefused {
        /// Host and port of the proxy.
        proxy: String,
        /// The status of its response to CONNECT; `None` where that is not known or is no HTTP.
        status: Option<u16>,
    },
    /// A 5xx status, or 499 for CANCELLED; the same for the gRPC codes that stand for them.
    #[error("Scalekit answered {0}")]
    Unavailable(u16),
    /// Too many calls (429), with the delay of `Retry-After`, if there is one.
    #[error("Scalekit throttles this client")]
    Throttled(Option<Duration>),
    /// A 401: the access token is refused, or the client id and secret are. It says nothing about an API token.
    #[error("Scalekit refuses the client's own credentials: check the client id and the client secret")]
    Credentials,
    /// A 403: the client is known but lacks this permission.
    #[error("Scalekit's client lacks a permission: grant it {0}")]
    Permission(Permission),
    /// The response is not one of Scalekit's token API: a wrong URL, or a gateway that does not serve it.
    #[error("no Scalekit token API at this URL ({0}): check the environment's URL")]
    WrongEndpoint(String),
    /// A response that the API's contract does not allow.
    #[error("Scalekit's answer breaks the contract: {0}")]
    BrokenContract(&'static str),
    /// The provider of the client's credentials failed, with its own words.
    #[error("{0}")]
    CredentialsUnreadable(String),
    /// There is no access token, for this reason; the call itself was not sent or was refused.
    #[error("cannot get an access token: {0}")]
    AccessToken(Box<Error>),
    /// Scalekit refused the call.
    #[error("Scalekit refuses it: {0}")]
    Refused(Refusal),
    /// The call exceeds a documented limit; nothing was sent.
    #[error(transparent)]
    Invalid(#[from] InvalidArgument),
}

/// Scalekit's reason for refusing a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (code {})", .code.number())]
pub struct Refusal {
    /// The gRPC code, which responses over REST carry too.
    pub code: Code,
    /// Scalekit's message: at most 300 characters, control characters escaped.
    pub message: String,
}

/// What a failure means for the caller. A circuit breaker opens on [`Outage`](Self::Outage), waits on
/// [`Throttled`](Self::Throttled), and takes the others for answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Scalekit, or the way to it, is down or slow. It may pass by itself.
    Outage,
    /// Scalekit asks for fewer calls: `None` where it does not say for how long. See [`Error::hold`].
    Throttled(Option<Duration>),
    /// It stays so until someone mends a URL, a secret, a permission, a proxy, or Scalekit itself.
    Misconfigured,
    /// The call was understood and refused; another call may succeed.
    Refused,
}

/// A longer `Retry-After` may be a mistake; nothing would be sent meanwhile.
const MAX_HOLD: Duration = Duration::from_secs(30);

const MAX_MESSAGE_CHARS: usize = 300;

impl Error {
    /// What the failure means.
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

    /// A stable word for metrics and logs.
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

    /// How long to send nothing: the `Retry-After` of a throttled call, at most 30 seconds.
    pub fn hold(&self) -> Option<Duration> {
        match self.class() {
            Class::Throttled(retry_after) => retry_after.map(|delay| delay.min(MAX_HOLD)),
            _ => None,
        }
    }

    /// Whether the same call may succeed when it is repeated at once. Repeat only calls that change nothing.
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

    /// Whether a call that creates, updates or invalidates may have taken effect all the same: the request was sent, and
    /// no usable response came.
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(
            self,
            Self::ConnectionLost(_) | Self::Timeout | Self::Unavailable(_) | Self::BrokenContract(_)
        )
    }

    /// Whether Scalekit refused the call because it knows no live token of that name.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(Refusal { code: Code::NotFound, .. }))
    }
}

impl Refusal {
    /// SECURITY: the message may come from whoever answers there. It is cut to one line of bounded length, so that it
    /// can write neither lines of a log nor escape sequences of a terminal.
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
        Some(407) => "it asks for other credentials than it was given (HTTP 407)".to_owned(),
        Some(status) => format!("HTTP {status}"),
        None => "its response to CONNECT is no success".to_owned(),
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
    fn hold_is_the_retry_after_up_to_thirty_seconds() {
        let throttled = |seconds| Error::Throttled(Some(Duration::from_secs(seconds)));
        assert_eq!(throttled(7).hold(), Some(Duration::from_secs(7)));
        assert_eq!(throttled(3600).hold(), Some(MAX_HOLD));
        assert_eq!(Error::AccessToken(Box::new(throttled(7))).hold(), Some(Duration::from_secs(7)));
        assert_eq!(Error::Throttled(None).hold(), None);
        assert_eq!(Error::Timeout.hold(), None);
    }

    #[test]
    fn refusal_message_is_one_bounded_line_without_controls() {
        let refusal = Refusal::new(Code::InvalidArgument, "a\n\u{1b}[31mb\u{202e}ü");
        assert_eq!(refusal.to_string(), r"a\n\u{1b}[31mb\u{202e}ü (code 3)");
        assert_eq!(Refusal::new(Code::NotFound, &"ä".repeat(1000)).message.chars().count(), 300);
    }
}
