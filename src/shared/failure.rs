//! Why the shared server cannot be used, for the log and the metric.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::secret::SecretError;

/// Why the server cannot be used. No text has a password or an id: none is part of an error of the server.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no answer within {0:?} (shared.timeout)")]
    Timeout(Duration),
    #[error("no connection within {0:?}")]
    Connecting(Duration),
    #[error("{}", explain(.0))]
    Redis(#[from] RedisError),
    #[error(transparent)]
    Password(#[from] SecretError),
    #[error("shared.ca_file cannot be read: {0}")]
    Roots(std::io::Error),
    /// The log has a line already.
    #[error("see above")]
    Logged,
}

/// The longest part of a message of the server that is logged, in characters.
const LONGEST: usize = 200;

impl Failure {
    /// From a closed list.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Timeout(_) | Self::Connecting(_) => "timeout",
            Self::Redis(error) => kind_of(error),
            Self::Password(_) | Self::Roots(_) => "files",
            Self::Logged => "logged",
        }
    }
}

fn kind_of(error: &RedisError) -> &'static str {
    match error.kind() {
        ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => "denied",
        ErrorKind::Server(ServerErrorKind::ReadOnly) => "read_only",
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => "protocol",
        ErrorKind::Io if error.is_timeout() => "timeout",
        ErrorKind::Io => "unreachable",
        // Before Redis 7, the code of an error within a script is part of its text.
        _ if error.code() == Some("OOM") || error.to_string().contains("-OOM ") => "full",
        _ if matches!(error.code(), Some("NOAUTH" | "WRONGPASS")) => "denied",
        _ => "server_error",
    }
}

/// What the server said, and what to do where that is not obvious.
fn explain(error: &RedisError) -> String {
    let text = error.to_string();
    // A server that is none of these can answer anything, at any length. Control characters are escaped.
    let text: String = text.chars().take(LONGEST).collect::<String>().escape_debug().collect();
    let advice = match kind_of(error) {
        "protocol" => "; is it Redis or Valkey, and with TLS (rediss://)?",
        "full" => "; its maxmemory is used up",
        "denied" => {
            "; check shared.username and the password, and that the user may run EVALSHA, SCRIPT LOAD, TIME, GET and SET"
        }
        "read_only" => "; the URL should be that of the primary",
        "server_error" if matches!(error.code(), Some("MOVED" | "CROSSSLOT" | "CLUSTERDOWN")) => {
            "; Redis Cluster is not supported"
        }
        _ => "",
    };
    format!("{text}{advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_server_is_short_and_printable() {
        let error = RedisError::from((ErrorKind::Parse, "bad", format!("\x1b[2J\n{}", "x".repeat(10_000))));
        let text = Failure::from(error).to_string();
        assert!(text.len() < 400 && !text.contains(['\x1b', '\n']), "{text}");
        assert!(text.ends_with("with TLS (rediss://)?"), "{text}");
    }
}
