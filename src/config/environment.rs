//! The environment variables that count, and who Keyward is to Scalekit by them.

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

/// The environment variables that count.
#[derive(Default)]
pub struct Environment {
    pub(super) variables: HashMap<String, String>,
    /// Whether what Scalekit needs may be missing.
    pub(super) incomplete: bool,
}

/// A value, and the variable that has it.
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
    /// Those of this process. One that is not UTF-8 counts as absent.
    pub fn from_process() -> Self {
        let text =
            |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Self { variables: std::env::vars_os().filter_map(text).collect(), incomplete: false }
    }

    /// These, for tests and for `keyward dev`.
    pub fn from_pairs<const N: usize>(variables: [(&str, &str); N]) -> Self {
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { variables, incomplete: false }
    }

    /// The same, where a file is to be looked at and not run: that a variable for Scalekit is missing, as on a machine without
    /// secrets, is a warning.
    #[must_use]
    pub fn without_scalekit(self) -> Self {
        Self { incomplete: true, ..self }
    }

    /// How to reach Scalekit by the environment alone, for commands without a route file.
    ///
    /// # Errors
    /// Everything that is missing or wrong.
    pub fn scalekit_settings(&self, transport: Transport) -> Result<Settings, String> {
        let find = |setting: &Setting| match self.find_scalekit(setting) {
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

    /// What the environment says of a setting. A file that is named must be readable now.
    pub(super) fn find_scalekit(&self, setting: &Setting) -> Result<Option<Found>, Problem> {
        let variable = setting.variable;
        let problem = |variable: &str, message: String| Problem { variable: variable.to_owned(), message };
        let file_variable = format!("{variable}_FILE");
        match (self.find_variable(variable), self.find_variable(&file_variable)) {
            (Some(_), Some(_)) => {
                Err(problem(variable, format!("{variable} and {file_variable} are both set; set one")))
            }
            (Some(value), None) if !is_visible(value) => Err(problem(
                variable,
                "has white space or a character in it that is not visible ASCII".to_owned(),
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

    /// The proxy on the way to an environment, if there is one.
    pub(super) fn resolve_proxy(
        &self,
        proxy: &Proxy,
        scalekit: &ScalekitEnvironment,
    ) -> Result<Option<ProxyServer>, Problem> {
        let resolved = proxy.resolve_with(scalekit, |name| self.find_variable(name).map(str::to_owned));
        resolved.map_err(|error| {
            // The variable's name, and what is wrong with its value.
            let text = error.to_string();
            let (variable, message) = text.split_once(": ").unwrap_or(("HTTPS_PROXY", &text));
            Problem { variable: variable.to_owned(), message: message.to_owned() }
        })
    }

    /// An empty one counts as absent, as Compose files and charts set those; white space around a value is not part of it, as
    /// secrets made from files end in a line break.
    fn find_variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }
}
