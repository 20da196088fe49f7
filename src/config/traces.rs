//! Reads the variables of OpenTelemetry. Nothing in them keeps Keyward from starting: operators of clusters set them for all
//! containers at once, and a proxy must not fail for its telemetry. What cannot be used is a warning.

use std::path::PathBuf;
use std::time::Duration;

use hyper::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue,
    TRANSFER_ENCODING,
};
use hyper::http::uri::PathAndQuery;
use opentelemetry_sdk::trace::Sampler;
use percent_encoding::percent_decode_str;

use super::Environment;
use super::diagnostics::{Report, did_you_mean, quote_text};
use super::settings::{PemPath, check_file, check_pair, check_roots};
use super::urls::{Url, read_url};
use super::values::FromText as _;
use crate::pool::{self, Address, Protocol, Tls};
use crate::tls::KeyPair;
use crate::traces::Settings;

const FORM: &str = "a URL of OTLP over HTTP, such as \"http://collector:4318\"";
/// How long an unused connection to the collector is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The most time for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Where collectors speak gRPC.
const GRPC_PORT: u16 = 4317;
/// Those that Keyward or the exporter sets.
const OWN_HEADERS: [HeaderName; 6] =
    [CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING];
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// `None` where traces are not exported.
pub(super) fn read_traces(environment: &Environment, report: &Report) -> Option<Settings> {
    let reader = Reader { environment, report };
    if reader.find("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return None;
    }
    let (endpoint, url) = reader.find_otlp("ENDPOINT")?;
    match reader.find("OTEL_TRACES_EXPORTER") {
        None | Some("otlp") => {}
        Some("none") => return None,
        Some(other) => {
            report.add_warning(format!(
                "no traces are exported: OTEL_TRACES_EXPORTER is {}, and Keyward has \"otlp\" and \"none\"",
                quote_text(other)
            ));
            return None;
        }
    }
    let settings = reader.read_settings(&endpoint, url);
    settings.map_err(|problem| report.add_warning(format!("no traces are exported: {problem}"))).ok()
}

struct Reader<'a> {
    environment: &'a Environment,
    report: &'a Report,
}

/// A collector's URL in its parts.
struct Endpoint<'u> {
    url: Url,
    authority: &'u str,
    path: String,
}

impl<'a> Reader<'a> {
    fn find(&self, name: &str) -> Option<&'a str> {
        self.environment.find_variable(name)
    }

    /// The variable for traces takes precedence over the one for all signals.
    fn find_otlp(&self, name: &str) -> Option<(String, &'a str)> {
        let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")];
        names.into_iter().find_map(|name| self.find(&name).map(|value| (name, value)))
    }

    /// # Errors
    /// Why the collector cannot be used, with the variable's name.
    fn read_settings(&self, variable: &str, given: &str) -> Result<Settings, String> {
        let is_whole = variable.contains("_TRACES_");
        let Endpoint { url, authority, path } =
            parse_endpoint(given, is_whole).map_err(|problem| format!("{variable} {problem}"))?;
        self.check_supported()?;
        let is_tls = url.scheme == "https";
        let port = url.port.unwrap_or(if is_tls { 443 } else { 80 });
        if port == GRPC_PORT {
            self.report.add_warning(format!(
                "{variable} has port 4317, at which collectors usually speak gRPC; Keyward speaks OTLP over HTTP, which is \
                 usually at 4318"
            ));
        }
        let (timeout, _) = self.find_otlp("TIMEOUT").unzip();
        let timeout = timeout.unwrap_or_else(|| "OTEL_EXPORTER_OTLP_TIMEOUT".to_owned());
        let timeout = Duration::from_millis(self.read_number(&timeout, [1, 600_000], 10_000));
        let queue = self.read_number("OTEL_BSP_MAX_QUEUE_SIZE", [8, 65_536], 2048);
        let batch = self.read_number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", [1, 65_536], 512);
        let delay = self.read_number("OTEL_BSP_SCHEDULE_DELAY", [1, 600_000], 5000);
        Ok(Settings {
            endpoint: format!("{}://{authority}{path}", url.scheme),
            host: HeaderValue::from_str(authority).map_err(|_| format!("{variable} should be {FORM}"))?,
            path: PathAndQuery::try_from(path).map_err(|_| format!("{variable} should be {FORM}"))?,
            origin: pool::Settings {
                address: Address::Tcp(url.host.into(), port),
                tls: if is_tls { Some(self.read_tls()?) } else { None },
                protocol: Protocol::Auto,
                connect_timeout: CONNECT_TIMEOUT.min(timeout),
                idle_timeout: IDLE_TIMEOUT,
            },
            headers: self.read_headers(),
            timeout,
            sampler: self.read_sampler(),
            resource: self.read_resource(),
            queue: to_usize(queue),
            batch: to_usize(batch.min(queue)),
            delay: Duration::from_millis(delay),
        })
    }

    fn check_supported(&self) -> Result<(), String> {
        for (name, supported, hint) in [
            ("PROTOCOL", "http/protobuf", ", which collectors take at port 4318"),
            ("COMPRESSION", "none", ""),
        ] {
            if let Some((variable, value)) = self.find_otlp(name)
                && value != supported
            {
                let value = quote_text(value);
                return Err(format!("{variable} is {value}, but Keyward has only \"{supported}\"{hint}"));
            }
        }
        let propagators = self.find("OTEL_PROPAGATORS").unwrap_or("tracecontext");
        if !propagators.split(',').any(|one| one.trim() == "tracecontext") {
            self.report.add_warning(format!(
                "OTEL_PROPAGATORS is {}, but Keyward has only \"tracecontext\", and uses that",
                quote_text(propagators)
            ));
        }
        Ok(())
    }

    fn read_tls(&self) -> Result<Tls, String> {
        let find = |name: &str| {
            let found = self.find_otlp(name);
            found.map(|(variable, path)| {
                let path = PemPath::parse_text(path).map_err(|problem| format!("{variable} {problem}"))?;
                Ok::<_, String>((variable, path))
            })
        };
        let check = |found: Option<Result<(String, PemPath), String>>,
                     check: fn(&PemPath) -> Result<PathBuf, String>| {
            let checked = found.map(|found| {
                let (variable, path) = found?;
                check(&path).map_err(|problem| format!("{variable}: {problem}"))
            });
            checked.transpose()
        };
        let roots = check(find("CERTIFICATE"), check_roots)?;
        let certificate = check(find("CLIENT_CERTIFICATE"), check_file)?;
        let key = check(find("CLIENT_KEY"), check_file)?;
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(check_pair(KeyPair { certificate, key })?),
            (None, None) => None,
            _ => {
                return Err(
                    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY need each other".to_owned()
                );
            }
        };
        Ok(Tls { roots, server_name: None, identity })
    }

    /// SECURITY: the values may be credentials, so the text is never repeated.
    fn read_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let Some((variable, text)) = self.find_otlp("HEADERS") else { return headers };
        for (index, entry) in list_entries(text).enumerate() {
            let parsed = entry.and_then(|(name, value)| {
                let name = HeaderName::try_from(name).ok().filter(|name| !OWN_HEADERS.contains(name))?;
                let mut value = HeaderValue::try_from(value).ok()?;
                value.set_sensitive(true);
                Some((name, value))
            });
            match parsed {
                Some((name, value)) => {
                    headers.insert(name, value);
                }
                None => self.report.add_warning(format!(
                    "{variable}: entry {} is left out, as it is not name=value with a header that may be set",
                    index + 1
                )),
            }
        }
        headers
    }

    fn read_resource(&self) -> Vec<(String, String)> {
        let mut attributes = vec![
            ("service.name".to_owned(), "keyward".to_owned()),
            ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ];
        let mut set = |name: String, value: String| {
            attributes.retain(|(other, _)| *other != name);
            attributes.push((name, value));
        };
        for (index, entry) in
            list_entries(self.find("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default()).enumerate()
        {
            match entry {
                Some((name, value)) => set(name.to_owned(), value),
                None => self.report.add_warning(format!(
                    "OTEL_RESOURCE_ATTRIBUTES: entry {} is left out, as it is not name=value",
                    index + 1
                )),
            }
        }
        if let Some(name) = self.find("OTEL_SERVICE_NAME") {
            set("service.name".to_owned(), name.to_owned());
        }
        attributes
    }

    fn read_sampler(&self) -> Sampler {
        let name = self.find("OTEL_TRACES_SAMPLER").unwrap_or("parentbased_always_on");
        let name = if SAMPLERS.contains(&name) {
            name
        } else {
            self.report.add_warning(format!(
                "OTEL_TRACES_SAMPLER is {}, but should be one of {}; \"parentbased_always_on\" is used{}",
                quote_text(name),
                SAMPLERS.join(", "),
                did_you_mean(name, SAMPLERS)
            ));
            "parentbased_always_on"
        };
        let root = match name.strip_prefix("parentbased_").unwrap_or(name) {
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => Sampler::TraceIdRatioBased(self.read_ratio()),
            _ => Sampler::AlwaysOn,
        };
        if name.starts_with("parentbased_") { Sampler::ParentBased(Box::new(root)) } else { root }
    }

    fn read_ratio(&self) -> f64 {
        let Some(text) = self.find("OTEL_TRACES_SAMPLER_ARG") else { return 1.0 };
        let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.unwrap_or_else(|| {
            self.report.add_warning(format!(
                "OTEL_TRACES_SAMPLER_ARG is {}, but should be a number from 0 to 1; 1 is used",
                quote_text(text)
            ));
            1.0
        })
    }

    /// The default is also used for what is no number within the limits.
    fn read_number(&self, variable: &str, [least, most]: [u64; 2], default: u64) -> u64 {
        let Some(text) = self.find(variable) else { return default };
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.unwrap_or_else(|| {
            self.report.add_warning(format!(
                "{variable} is {}, but should be a number from {least} to {most}; {default} is used",
                quote_text(text)
            ));
            default
        })
    }
}

/// A URL for traces is used as it is; one for all signals is a base, to which their path is added.
fn parse_endpoint(given: &str, is_whole: bool) -> Result<Endpoint<'_>, String> {
    let malformed = || format!("should be {FORM}");
    let (scheme, rest) = given.split_once("://").ok_or_else(malformed)?;
    // SECURITY: the text must not be repeated, as it may have a password.
    if rest.contains('@') {
        return Err("has a user or password; set OTEL_EXPORTER_OTLP_HEADERS for credentials".to_owned());
    }
    if rest.contains(['?', '#']) {
        return Err("has a query or a fragment; remove it".to_owned());
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let url = read_url(&given[..scheme.len() + 3 + authority.len()], FORM)?;
    if !matches!(url.scheme.as_str(), "http" | "https") {
        return Err(malformed());
    }
    let path = match is_whole {
        true if path.is_empty() => "/".to_owned(),
        true => path.to_owned(),
        false => format!("{}/v1/traces", path.trim_end_matches('/')),
    };
    Ok(Endpoint { url, authority, path })
}

/// The entries of `name=value,name=value`, with percent-encoded values. `None` for one that is not of this form.
fn list_entries(text: &str) -> impl Iterator<Item = Option<(&str, String)>> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(|entry| {
        let (name, value) = entry.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        Some((name.trim(), value.into_owned())).filter(|(name, _)| !name.is_empty())
    })
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    fn read<const N: usize>(variables: [(&str, &str); N]) -> (Option<Settings>, Vec<String>) {
        let report = Report::default();
        let settings = read_traces(&Environment::from_pairs(variables), &report);
        (settings, report.take_warnings())
    }

    fn read_endpoint(variable: &str, url: &str) -> Option<String> {
        let (settings, warnings) = read([(variable, url)]);
        assert_eq!(settings.is_none(), !warnings.is_empty(), "{warnings:?}");
        settings.map(|settings| settings.endpoint)
    }

    #[test]
    fn traces_are_exported_only_where_variables_say_so() {
        assert!(read([]).0.is_none());
        assert!(read([ENDPOINT]).0.is_some());
        assert!(
            read([ENDPOINT, ("OTEL_SDK_DISABLED", "false"), ("OTEL_TRACES_EXPORTER", "otlp")]).0.is_some()
        );
        for off in [("OTEL_SDK_DISABLED", "True"), ("OTEL_TRACES_EXPORTER", "none")] {
            let (settings, warnings) = read([ENDPOINT, off]);
            assert!(settings.is_none() && warnings.is_empty(), "{warnings:?}");
        }
    }

    #[test]
    fn signal_path_is_added_to_general_endpoint_alone() {
        let general = |url| read_endpoint("OTEL_EXPORTER_OTLP_ENDPOINT", url).unwrap();
        assert_eq!(general("http://collector:4318"), "http://collector:4318/v1/traces");
        assert_eq!(general("https://[::1]:443/otlp/"), "https://[::1]:443/otlp/v1/traces");
        let traces = |url| read_endpoint("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url).unwrap();
        assert_eq!(traces("http://collector:4318"), "http://collector:4318/");
        assert_eq!(traces("http://collector/in/traces"), "http://collector/in/traces");
        let (settings, _) = read([ENDPOINT, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other/t")]);
        assert_eq!(settings.unwrap().endpoint, "http://other/t");
    }

    #[test]
    fn unusable_variable_is_named_in_warning() {
        for (variable, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://collector:4317"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:0"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector/?a=b"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
        ] {
            let (settings, warnings) = read([ENDPOINT, (variable, value)]);
            assert!(settings.is_none(), "{variable}={value}");
            let first = warnings.first().unwrap();
            assert!(first.starts_with("no traces are exported: ") && first.contains(variable), "{first}");
        }
        for (variable, value) in [
            ("OTEL_TRACES_SAMPLER", "parentbased_alwayson"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_PROPAGATORS", "b3"),
            ("OTEL_RESOURCE_ATTRIBUTES", "team"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "host=evil"),
        ] {
            let (settings, warnings) = read([ENDPOINT, (variable, value)]);
            assert!(settings.is_some() && warnings.len() == 1, "{variable}: {warnings:?}");
            assert!(warnings[0].starts_with(variable), "{warnings:?}");
        }
        let grpc_port = read([("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")]);
        assert!(grpc_port.0.is_some() && grpc_port.1[0].contains("4318"), "{:?}", grpc_port.1);
    }

    #[test]
    fn credentials_of_collector_are_never_repeated() {
        let secret = "made-up-secret";
        let headers = format!("x-api-key={secret},{secret}");
        let (settings, warnings) = read([ENDPOINT, ("OTEL_EXPORTER_OTLP_HEADERS", &headers)]);
        let settings = settings.unwrap();
        assert_eq!(settings.headers["x-api-key"], secret);
        let url = format!("http://user:{secret}@collector:4318");
        let (refused, more) = read([("OTEL_EXPORTER_OTLP_ENDPOINT", &*url)]);
        assert!(refused.is_none());
        let text = format!("{settings:?} {warnings:?} {more:?}");
        assert!(text.contains("entry 2") && more[0].contains("OTEL_EXPORTER_OTLP_HEADERS"), "{text}");
        assert!(!text.contains(secret), "{text}");
    }

    #[test]
    fn sampler_is_chosen_by_its_standard_name() {
        let sampler = |name, argument| {
            let variables = [ENDPOINT, ("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", argument)];
            let (settings, warnings) = read(variables);
            (format!("{:?}", settings.unwrap().sampler), warnings.len())
        };
        assert_eq!(sampler("always_off", ""), ("AlwaysOff".to_owned(), 0));
        assert_eq!(sampler("traceidratio", "0.25"), ("TraceIdRatioBased(0.25)".to_owned(), 0));
        assert_eq!(
            sampler("parentbased_traceidratio", "7"),
            ("ParentBased(TraceIdRatioBased(1.0))".to_owned(), 1)
        );
        assert_eq!(sampler("", ""), ("ParentBased(AlwaysOn)".to_owned(), 0));
    }

    #[test]
    fn service_name_takes_precedence_over_resource_attributes() {
        let resource = |variables: [(&'static str, &str); 2]| {
            let (settings, _) = read([ENDPOINT, variables[0], variables[1]]);
            settings.unwrap().resource
        };
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a, team=caf%C3%A9");
        let named = resource([attributes, ("OTEL_SERVICE_NAME", "b")]);
        assert!(named.contains(&("service.name".to_owned(), "b".to_owned())), "{named:?}");
        assert!(named.contains(&("team".to_owned(), "café".to_owned())), "{named:?}");
        let unnamed = resource([("OTEL_RESOURCE_ATTRIBUTES", ""), ("OTEL_SERVICE_NAME", "")]);
        assert!(unnamed.contains(&("service.name".to_owned(), "keyward".to_owned())), "{unnamed:?}");
    }
}
