//! Environment variables, and the settings from them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use ::scalekit::environment::Environment as ScalekitEnvironment;
use ::scalekit::proxy::{Proxy, ProxyServer};
use ::scalekit::transport::Transport;

use super::scalekit::{
    CLIENT_ID, CLIENT_SECRET, ENVIRONMENT_URL, Setting, check_path, connection_settings, is_visible,
    read_environment,
};
use crate::scalekit::Settings;
use crate::secret::{Secret, SecretSource};
use crate::validator;

/// The environment variables that settings are read from.
#[derive(Default)]
pub struct Environment {
    pub(super) variables: HashMap<String, String>,
    /// Whether the settings for Scalekit may be missing.
    pub(super) incomplete: bool,
}

/// A value and the variable that it is from.
pub(super) struct Found {
    pub(super) source: SecretSource,
    pub(super) variable: String,
}

/// A problem with a variable.
pub(super) struct Problem {
    pub(super) variable: String,
    pub(super) message: String,
}

impl Environment {
    /// The variables of this process. Variables that are not UTF-8 are ignored.
    pub fn from_process() -> Self {
        let text =
            |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Self { variables: std::env::vars_os().filter_map(text).collect(), incomplete: false }
    }

    /// Only these variables, for tests and for `keyward dev`.
    pub fn from_pairs<'p>(variables: impl IntoIterator<Item = (&'p str, &'p str)>) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let variables = variables.into_iter().map(owned).collect();
        Self { variables, incomplete: false }
    }

    /// For checking a file on a machine without secrets: missing settings for Scalekit are warnings, not problems.
    #[must_use]
    pub fn without_scalekit(self) -> Self {
        Self { incomplete: true, ..self }
    }

    /// The settings for Scalekit from the environment only, for commands without a route file.
    ///
    /// # Errors
    /// All that is missing or wrong.
    pub fn scalekit_settings(&self, transport: Transport) -> Result<Settings, String> {
        let find = |setting: &Setting| match self.find_secret(setting.variable) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(format!("{0} is not set, nor {0}_FILE", setting.variable)),
            Err(Problem { variable, message }) => Err(format!("{variable}: {message}")),
        };
        let found = [&ENVIRONMENT_URL, &CLIENT_ID, &CLIENT_SECRET].map(find);
        let [Ok(url), Ok(client_id), Ok(client_secret)] = found else {
            return Err(found.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; "));
        };
        let timeout = validator::Settings::default().timeout;
        let scalekit =
            read_environment(&url.source).map_err(|problem| format!("{}: {problem}", url.variable))?;
        let proxy = self
            .resolve_proxy(&Proxy::FromEnvironment, &scalekit)
            .map_err(|Problem { variable, message }| format!("{variable}: {message}"))?;
        let settings = Settings {
            origin: connection_settings(&scalekit, None, timeout),
            environment: scalekit,
            proxy,
            client_id: client_id.source,
            client_secret: client_secret.source,
            timeout,
            transport,
        };
        Ok(settings.with_transport(transport))
    }

    /// Finds a value in a variable, or in the file that the variable with `_FILE` names, which must be readable.
    pub(super) fn find_secret(&self, variable: &str) -> Result<Option<Found>, Problem> {
        let problem = |variable: &str, message: String| Problem { variable: variable.to_owned(), message };
        let file_variable = format!("{variable}_FILE");
        match (self.find_variable(variable), self.find_variable(&file_variable)) {
            (Some(_), Some(_)) => Err(problem(
                variable,
                format!("{variable} and {file_variable} are both set; set only one of them"),
            )),
            (Some(value), None) if !is_visible(value) => Err(problem(
                variable,
                "contains white space or a character that is not visible ASCII".to_owned(),
            )),
            (Some(value), None) => Ok(Some(Found {
                source: SecretSource::Value(Secret::new(value)),
                variable: variable.to_owned(),
            })),
            (None, Some(path)) => {
                let source = SecretSource::File(PathBuf::from(path));
                let checked =
                    check_path(path).and_then(|()| source.read().map_err(|error| error.to_string()));
                checked.map_err(|message| problem(&file_variable, message))?;
                Ok(Some(Found { source, variable: file_variable }))
            }
            (None, None) => Ok(None),
        }
    }

    /// The proxy for connections to an environment, if there is one.
    pub(super) fn resolve_proxy(
        &self,
        proxy: &Proxy,
        scalekit: &ScalekitEnvironment,
    ) -> Result<Option<ProxyServer>, Problem> {
        let resolved = proxy.resolve_with(scalekit, |name| self.find_variable(name).map(str::to_owned));
        resolved.map_err(|error| {
            // The text has the variable's name and the problem.
            let text = error.to_string();
            let (variable, message) = text.split_once(": ").unwrap_or(("HTTPS_PROXY", &text));
            Problem { variable: variable.to_owned(), message: message.to_owned() }
        })
    }

    /// Empty variables count as missing, as Compose files and charts often set such. White space around a value is removed, as
    /// secrets that are made from files end in a line break.
    pub(super) fn find_variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }
}
