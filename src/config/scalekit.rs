//! Converts `[scalekit]`, over which environment variables take precedence.

use std::path::PathBuf;
use std::time::Duration;

use ::scalekit::environment::{Environment as ScalekitEnvironment, InvalidEnvironment};
use ::scalekit::proxy::{InvalidProxy, Proxy};

use super::Environment;
use super::diagnostics::Report;
use super::document::Place;
use super::environment::{Found, Problem};
use super::file;
use super::settings::check_roots;
use super::urls::read_url;
use super::values::FromText;
use crate::secret::{Secret, SecretSource};
use crate::{pool, scalekit};

/// A setting that the environment or the file must have.
pub(super) struct Setting {
    pub(super) variable: &'static str,
    value_key: Option<&'static str>,
    file_key: Option<&'static str>,
    /// Used where the setting may be missing.
    placeholder: &'static str,
}

pub(super) const ENVIRONMENT_URL: Setting = Setting {
    variable: "SCALEKIT_ENVIRONMENT_URL",
    value_key: Some("environment_url"),
    file_key: None,
    placeholder: "https://environment.invalid",
};
pub(super) const CLIENT_ID: Setting = Setting {
    variable: "SCALEKIT_CLIENT_ID",
    value_key: Some("client_id"),
    file_key: Some("client_id_file"),
    placeholder: "missing",
};
pub(super) const CLIENT_SECRET: Setting = Setting {
    variable: "SCALEKIT_CLIENT_SECRET",
    value_key: None,
    file_key: Some("client_secret_file"),
    placeholder: "missing",
};

/// `None` only if a problem was reported.
pub(super) fn convert_scalekit(
    file: file::Scalekit,
    place: &Place<'_>,
    report: &Report,
    environment: &Environment,
) -> Option<scalekit::Settings> {
    let finder = Finder { place, report, environment };
    let value = |text: VisibleText| SecretSource::Value(Secret::new(text.0));
    let path = |path: SecretPath| SecretSource::File(path.0);
    let url = finder.find_setting(&ENVIRONMENT_URL, file.environment_url.map(|url| value(url.0)), None);
    let client_id = finder.find_setting(
        &CLIENT_ID,
        file.client_id.map(|id| value(id.0)),
        file.client_id_file.map(|file| path(file.0)),
    );
    let client_secret =
        finder.find_setting(&CLIENT_SECRET, None, file.client_secret_file.map(|file| path(file.0)));
    let roots = place.convert_value("ca_file", file.ca_file, |path| check_roots(&path.0));
    let timeout = file.timeout.0;
    let scalekit = url.and_then(|(source, origin)| {
        read_environment(&source).map_err(|problem| finder.add_problem(&origin, problem)).ok()
    })?;
    let proxy = file.proxy.map_or(Proxy::FromEnvironment, |proxy| proxy.0);
    let proxy = environment
        .resolve_proxy(&proxy, &scalekit)
        .map_err(|Problem { variable, message }| report.add_problem(None, variable, message))
        .ok()?;
    let settings = scalekit::Settings {
        origin: connection_settings(&scalekit, roots, timeout),
        environment: scalekit,
        proxy,
        client_id: client_id?.0,
        client_secret: client_secret?.0,
        timeout,
        transport: file.transport.0,
    };
    Some(settings.with_transport(file.transport.0))
}

/// Reads the environment's URL.
pub(super) fn read_environment(url: &SecretSource) -> Result<ScalekitEnvironment, String> {
    let url = url.read().map_err(|error| error.to_string())?;
    let url = url.expose().trim_end_matches('/');
    read_url(url, "a URL, as in \"https://acme.scalekit.com\"")?;
    url.parse().map_err(|error: InvalidEnvironment| error.to_string())
}

/// How to connect to an environment. Connecting takes at most the time limit of a validation.
pub(super) fn connection_settings(
    scalekit: &ScalekitEnvironment,
    roots: Option<PathBuf>,
    timeout: Duration,
) -> pool::Settings {
    let mut origin = scalekit::origin_settings(scalekit, roots);
    origin.connect_timeout = origin.connect_timeout.min(timeout);
    origin
}

/// Where a value was set, to report problems with it.
enum SetBy {
    Variable(String),
    Key(&'static str),
}

struct Finder<'a, 'f> {
    place: &'a Place<'f>,
    report: &'a Report,
    environment: &'a Environment,
}

impl Finder<'_, '_> {
    /// Environment variables take precedence over the file.
    fn find_setting(
        &self,
        setting: &Setting,
        value: Option<SecretSource>,
        file: Option<SecretSource>,
    ) -> Option<(SecretSource, SetBy)> {
        if let (Some(value), Some(file)) = (setting.value_key, setting.file_key)
            && self.place.has_key(value)
            && self.place.has_key(file)
        {
            self.place.child(file).add_problem(format!("is set together with {value}; set only one of them"));
        }
        let of_file = value.zip(setting.value_key).or_else(|| file.zip(setting.file_key));
        match (self.environment.find_secret(setting.variable), of_file) {
            (Ok(Some(Found { source, variable })), _) => Some((source, SetBy::Variable(variable))),
            (Ok(None), Some((source, key))) => match source.read() {
                Ok(_) => Some((source, SetBy::Key(key))),
                Err(error) => {
                    self.place.child(key).add_problem(error.to_string());
                    None
                }
            },
            (Ok(None), None) => self.report_missing(setting),
            (Err(Problem { variable, message }), _) => {
                self.report.add_problem(None, variable, message);
                None
            }
        }
    }

    fn report_missing(&self, setting: &Setting) -> Option<(SecretSource, SetBy)> {
        let keys: Vec<&str> = setting.value_key.into_iter().chain(setting.file_key).collect();
        if keys.iter().any(|key| self.place.has_key(key)) {
            // A problem with the key has been reported.
            return None;
        }
        let variable = setting.variable;
        let keys: Vec<String> = keys.iter().map(|key| format!("scalekit.{key}")).collect();
        let problem = format!("is not set, nor {variable}_FILE, nor {} in the file", keys.join(", nor "));
        if self.environment.incomplete {
            self.report.add_warning(format!("{variable} {problem}; `keyward run` needs it"));
            let placeholder = SecretSource::Value(Secret::new(setting.placeholder));
            return Some((placeholder, SetBy::Variable(variable.to_owned())));
        }
        self.report.add_problem(None, variable, problem);
        None
    }

    fn add_problem(&self, origin: &SetBy, message: String) {
        match origin {
            SetBy::Variable(name) => self.report.add_problem(None, name, message),
            SetBy::Key(key) => self.place.child(key).add_problem(message),
        }
    }
}

pub(super) fn is_visible(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

pub(super) struct VisibleText(pub(super) String);

impl FromText for VisibleText {
    fn parse_text(text: &str) -> Result<Self, String> {
        let problem = || "should be visible ASCII, without spaces".to_owned();
        is_visible(text).then(|| Self(text.to_owned())).ok_or_else(problem)
    }

    fn format_text(&self) -> Option<String> {
        Some(self.0.clone())
    }
}

/// SECURITY: the URL may contain a password, so the error does not repeat it.
impl FromText for Proxy {
    fn parse_text(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            url => url.parse().map(Self::Server).map_err(|error: InvalidProxy| error.to_string()),
        }
    }
}

/// The path of a file that holds a secret.
pub(super) struct SecretPath(pub(super) PathBuf);

impl FromText for SecretPath {
    fn parse_text(text: &str) -> Result<Self, String> {
        check_path(text).map(|()| Self(PathBuf::from(text)))
    }
}

/// SECURITY: paths are repeated in error messages, so a secret in place of a path must be refused here.
pub(super) fn check_path(given: &str) -> Result<(), String> {
    let is_one = ["/", "./", "../"].iter().any(|start| given.starts_with(start));
    let problem = "should be the path of a file, beginning with '/' or './'";
    is_one.then_some(()).ok_or_else(|| problem.to_owned())
}
