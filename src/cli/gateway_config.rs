//! `keyward gateway-config`: the configuration of a gateway that asks Keyward's decision listener, made from the route file. The
//! templates are in `gateway_config/`: `{{name}}` is replaced, a line with `{{header` is repeated for each identity header and one
//! with `{{claim}}` for each prefix of claims, and a line that begins with `%name` or `%name:` is there only if that condition holds.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use hyper::Uri;

use super::ConfigFile;
use crate::config::Config;
use crate::decision::{self, TargetHeaders};
use crate::identity::{self, IdentityHeaders};
use crate::listener::Listen;

pub(super) const HELP: &str = include_str!("help/gateway_config.txt").trim_ascii_end();

#[derive(Args)]
pub(super) struct GatewayConfigArgs {
    /// The gateway
    #[arg(value_enum, value_name = "NAME")]
    gateway: GatewayKind,
    #[command(flatten)]
    file: ConfigFile,
    /// Write complete files into this folder, and print the command that starts the gateway with them as the last line
    #[arg(long, value_name = "DIR")]
    standalone: Option<PathBuf>,
    /// The gateway's address, where the configuration contains it
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8000")]
    listen: SocketAddr,
    /// The service behind the gateway: http://HOST:PORT, or h2c://HOST:PORT for gRPC
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", value_parser = parse_service)]
    service: Service,
    /// Where [decision] has tls: the file, on the gateway's machine, of the certificate authority that Keyward's certificate is from
    #[arg(long, value_name = "FILE", default_value = "/tls/ca.crt", value_parser = parse_plain)]
    ca_file: String,
    /// Where [decision] has tls: the name in Keyward's certificate
    #[arg(long, value_name = "NAME", default_value = "localhost", value_parser = parse_plain)]
    server_name: String,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum GatewayKind {
    Nginx,
    IngressNginx,
    Traefik,
    Caddy,
    EnvoyHttp,
    EnvoyGrpc,
    Istio,
    GatewayApi,
    Haproxy,
    Apisix,
}

#[derive(Clone)]
struct Service {
    host: String,
    port: u16,
    /// It takes HTTP/2 in cleartext, with prior knowledge.
    is_h2c: bool,
}

fn parse_service(text: &str) -> Result<Service, String> {
    let uri: Option<Uri> = text.parse().ok();
    let is_h2c = uri.as_ref().and_then(Uri::scheme_str) == Some("h2c");
    let uri = uri.filter(|uri| {
        (is_h2c || uri.scheme_str() == Some("http")) && uri.path() == "/" && uri.query().is_none()
    });
    let host = uri.as_ref().and_then(Uri::host).filter(|host| is_plain(host));
    match (host, &uri) {
        (Some(host), Some(uri)) => {
            Ok(Service { host: host.to_owned(), port: uri.port_u16().unwrap_or(80), is_h2c })
        }
        _ => Err("should be http://host:port or h2c://host:port, without a path".to_owned()),
    }
}

fn parse_plain(text: &str) -> Result<String, String> {
    match is_plain(text) && !text.is_empty() {
        true => Ok(text.to_owned()),
        false => Err("should have only letters, digits and . _ - / :".to_owned()),
    }
}

/// SECURITY: what is put into a configuration must not contain syntax of it.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-[]:".contains(&byte))
}

pub(super) fn run_gateway_config(args: &GatewayConfigArgs) -> Result<()> {
    let config = args.file.load_config()?;
    if let Some(warning) = warn_of_claims(args.gateway, &config.identity) {
        eprintln!("warning: {warning}");
    }
    let Some(folder) = &args.standalone else {
        let folder = Path::new("/etc/haproxy");
        super::write_stdout(&format_snippet(&config, args, folder)?)?;
        return Ok(());
    };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let folder = folder.canonicalize().with_context(|| format!("cannot read {}", folder.display()))?;
    let name = folder.display().to_string();
    ensure!(is_plain(&name), "the folder's path should have only letters, digits and . _ - : {name}");
    let mut template = Template::new(&config, args, &folder)?;
    let snippet = template.format_snippet(args.gateway);
    let wrapped = |template: &mut Template, text: &str, indent: &str| {
        let lines = snippet.lines().map(|line| format!("{indent}{line}").trim_end().to_owned());
        template.set("snippet", lines.collect::<Vec<_>>().join("\n"));
        template.format(text)
    };
    let (files, command) = match args.gateway {
        GatewayKind::Nginx => {
            let text =
                wrapped(&mut template, include_str!("gateway_config/nginx_standalone.txt"), "        ");
            (vec![("nginx.conf", text)], format!("nginx -e stderr -p {name} -c {name}/nginx.conf"))
        }
        GatewayKind::Traefik => {
            let text = template.format(include_str!("gateway_config/traefik_standalone.txt"));
            let files = vec![("traefik.yaml", text), ("keyward.yaml", snippet)];
            (files, format!("traefik --configFile={name}/traefik.yaml"))
        }
        GatewayKind::Caddy => {
            let text = wrapped(&mut template, include_str!("gateway_config/caddy_standalone.txt"), "\t");
            (vec![("Caddyfile", text)], format!("caddy run --adapter caddyfile --config {name}/Caddyfile"))
        }
        GatewayKind::EnvoyHttp | GatewayKind::EnvoyGrpc => {
            (vec![("envoy.yaml", snippet)], format!("envoy --disable-hot-restart -c {name}/envoy.yaml"))
        }
        GatewayKind::Haproxy => {
            let files = vec![
                ("haproxy.cfg", template.format(include_str!("gateway_config/haproxy.txt"))),
                ("keyward.lua", template.format(include_str!("gateway_config/haproxy_lua.txt"))),
            ];
            (files, format!("haproxy -f {name}/haproxy.cfg"))
        }
        _ => bail!("--standalone is for nginx, traefik, caddy, envoy-http, envoy-grpc and haproxy"),
    };
    let mut output = String::new();
    for (file, text) in files {
        let path = folder.join(file);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        output += &format!("wrote {}\n", path.display());
    }
    super::write_stdout(&format!("{output}{command}\n"))?;
    Ok(())
}

fn format_snippet(config: &Config, args: &GatewayConfigArgs, folder: &Path) -> Result<String> {
    Ok(Template::new(config, args, folder)?.format_snippet(args.gateway))
}

struct Template {
    values: Vec<(&'static str, String)>,
    conditions: Vec<(&'static str, bool)>,
    /// The identity headers with known names, in lower case.
    headers: Vec<String>,
    /// The prefixes of claims' headers, without the final '-'.
    prefixes: BTreeSet<String>,
}

impl Template {
    fn new(config: &Config, args: &GatewayConfigArgs, folder: &Path) -> Result<Self> {
        let Some(decision) = &config.decision else {
            bail!(
                "the route file has no decision listener for the gateway to ask: add [decision] with listen = \"127.0.0.1:4483\""
            );
        };
        check_decision(args.gateway, decision)?;
        let (headers, prefixes) = (list_headers(&config.identity), list_prefixes(&config.identity));
        let Addresses { url, named_url, nginx, caddy, envoy, haproxy, port } =
            format_addresses(decision, &args.server_name);
        let Service { host, port: service_port, is_h2c } = &args.service;
        let (scheme, nginx_module, nginx_body, haproxy_protocol) = match is_h2c {
            true => ("h2c", "grpc", " \"\"", " proto h2"),
            false => ("http", "proxy", "", ""),
        };
        let timeout: Duration = config.validator.timeout + Duration::from_secs(1);
        let values = vec![
            ("decision", decision.listen.to_string()),
            ("url", url),
            ("named_url", named_url),
            ("nginx_url", nginx),
            ("caddy_address", caddy),
            ("envoy_address", envoy),
            ("haproxy_destination", haproxy),
            ("decision_port", port.to_string()),
            ("names", headers.join(", ")),
            ("name_words", headers.join(" ")),
            ("prefix", config.identity.claim_prefix.clone()),
            ("owned_names", format_owned_names(&headers, &prefixes)),
            ("claims", Vec::from_iter(prefixes.clone()).join("|")),
            ("timeout_ms", timeout.as_millis().to_string()),
            ("timeout_s", timeout.as_secs_f64().to_string()),
            ("folder", folder.display().to_string()),
            ("listen", args.listen.to_string()),
            ("listen_host", args.listen.ip().to_string()),
            ("listen_port", args.listen.port().to_string()),
            ("service_url", format!("{scheme}://{host}:{service_port}")),
            ("service_address", format!("{host}:{service_port}")),
            ("service_host", host.trim_matches(['[', ']']).to_owned()),
            ("service_port", service_port.to_string()),
            ("nginx_module", nginx_module.to_owned()),
            ("nginx_body", nginx_body.to_owned()),
            ("haproxy_protocol", haproxy_protocol.to_owned()),
            ("ca_file", args.ca_file.clone()),
            ("server_name", args.server_name.clone()),
        ];
        let conditions = vec![
            ("tls", decision.tls.is_some()),
            ("forwarded", decision.headers == TargetHeaders::XForwarded),
            ("original", decision.headers == TargetHeaders::XOriginal),
            ("claims_by_prefix", config.identity.claims.is_none()),
            ("grpc", args.gateway == GatewayKind::EnvoyGrpc),
            ("http1", !is_h2c),
            ("h2c", *is_h2c),
        ];
        Ok(Self { values, conditions, headers, prefixes })
    }

    fn set(&mut self, name: &'static str, value: String) {
        self.values.push((name, value));
    }

    fn format_snippet(&self, gateway: GatewayKind) -> String {
        let templates: &[&str] = match gateway {
            GatewayKind::Nginx => &[include_str!("gateway_config/nginx.txt")],
            GatewayKind::IngressNginx => &[include_str!("gateway_config/ingress_nginx.txt")],
            GatewayKind::Traefik => &[include_str!("gateway_config/traefik.txt")],
            GatewayKind::Caddy => &[include_str!("gateway_config/caddy.txt")],
            GatewayKind::EnvoyHttp => &[
                include_str!("gateway_config/envoy_http.txt"),
                include_str!("gateway_config/envoy_tail.txt"),
            ],
            GatewayKind::EnvoyGrpc => &[
                include_str!("gateway_config/envoy_grpc.txt"),
                include_str!("gateway_config/envoy_tail.txt"),
            ],
            GatewayKind::Istio => &[include_str!("gateway_config/istio.txt")],
            GatewayKind::GatewayApi => &[include_str!("gateway_config/gateway_api.txt")],
            GatewayKind::Haproxy => {
                &[include_str!("gateway_config/haproxy.txt"), include_str!("gateway_config/haproxy_lua.txt")]
            }
            GatewayKind::Apisix => &[include_str!("gateway_config/apisix.txt")],
        };
        templates.iter().map(|template| self.format(template)).collect()
    }

    fn format(&self, template: &str) -> String {
        let mut output = String::new();
        for line in template.lines() {
            let Some(line) = self.select_line(line) else { continue };
            let line = self
                .values
                .iter()
                .fold(line.to_owned(), |line, (name, value)| line.replace(&format!("{{{{{name}}}}}"), value));
            let lines: Vec<String> = if line.contains("{{header") {
                let with = |header: &String| line.replace("{{header}}", header);
                let variable = |header: &String| header.replace('-', "_");
                self.headers
                    .iter()
                    .map(|header| with(header).replace("{{header_variable}}", &variable(header)))
                    .collect()
            } else if line.contains("{{claim}}") {
                self.prefixes.iter().map(|prefix| line.replace("{{claim}}", prefix)).collect()
            } else {
                vec![line]
            };
            output.extend(lines.iter().flat_map(|line| [line, "\n"]));
        }
        output
    }

    /// The line without its condition; `None` if that does not hold.
    fn select_line<'a>(&self, line: &'a str) -> Option<&'a str> {
        let Some(rest) = line.strip_prefix('%') else { return Some(line) };
        let end = rest.find(|char: char| char.is_whitespace() || char == ':').unwrap_or(rest.len());
        let (name, line) = rest.split_at(end);
        self.conditions.contains(&(name, true)).then(|| line.strip_prefix(':').unwrap_or(line))
    }
}

/// Gateways that know headers by name only cannot remove, and do not copy, those of claims that are not listed.
fn warn_of_claims(gateway: GatewayKind, settings: &identity::Settings) -> Option<String> {
    let (prefix, claims_header) = (&settings.claim_prefix, settings.claims_header.is_some());
    let forged = match gateway {
        GatewayKind::Nginx | GatewayKind::IngressNginx | GatewayKind::Apisix => true,
        // Its block removes them by prefix.
        GatewayKind::Caddy => false,
        GatewayKind::Traefik
        | GatewayKind::EnvoyHttp
        | GatewayKind::EnvoyGrpc
        | GatewayKind::Istio
        | GatewayKind::GatewayApi
        | GatewayKind::Haproxy => return None,
    };
    if settings.claims.is_some() || (claims_header && !forged) {
        return None;
    }
    let mut warning = "identity.claims is not set, and this gateway knows headers by name only: ".to_owned();
    if forged {
        warning += &format!("a client's own {prefix}* headers reach the service. ");
    } else {
        warning += &format!("Keyward's {prefix}* headers do not reach the service. ");
    }
    Some(
        warning
            + match claims_header {
                true => {
                    "List the claims that the service reads, or [] if it reads identity.claims_header alone"
                }
                false => "List the claims that the service reads, or set identity.claims_header",
            },
    )
}

fn check_decision(gateway: GatewayKind, decision: &decision::Settings) -> Result<()> {
    let name = gateway.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    let (sends, reaches_unix) = match gateway {
        GatewayKind::Nginx => (decision.headers, true),
        GatewayKind::IngressNginx => (TargetHeaders::XOriginal, false),
        // The target is not told in headers.
        GatewayKind::EnvoyHttp | GatewayKind::EnvoyGrpc => (decision.headers, true),
        GatewayKind::Istio | GatewayKind::GatewayApi => (decision.headers, false),
        GatewayKind::Caddy | GatewayKind::Haproxy => (TargetHeaders::XForwarded, true),
        GatewayKind::Traefik | GatewayKind::Apisix => (TargetHeaders::XForwarded, false),
    };
    let word = if sends == TargetHeaders::XOriginal { "x-original" } else { "x-forwarded" };
    ensure!(sends == decision.headers, "{name} requires headers = \"{word}\" in [decision]");
    if let Listen::Unix(path) = &decision.listen {
        ensure!(reaches_unix, "{name} cannot ask over a unix socket: set decision.listen to an address");
        let path = path.display().to_string();
        ensure!(is_plain(&path), "decision.listen should have only letters, digits and . _ - : {path}");
    }
    Ok(())
}

/// The names in lower case: those of the file, the defaults that a service may still read, and of claims those that are listed.
fn list_headers(settings: &identity::Settings) -> Vec<String> {
    let (defaults, headers) = (identity::Settings::default(), IdentityHeaders::new(settings.clone()));
    let claims = settings.claims.iter().flatten().filter_map(|claim| headers.claim_header(claim));
    let fixed = settings.header_names().into_iter().chain(defaults.header_names()).cloned();
    let all = fixed.chain(claims).chain(settings.claim_headers.values().cloned());
    let mut seen = BTreeSet::new();
    let all = all.chain(settings.claims_header.clone()).map(|name| name.to_string());
    all.filter(|name| seen.insert(name.clone())).collect()
}

/// Of claims, in lower case and without the final '-': `X-Claim` itself is owned, too, as a service may trim the separator.
fn list_prefixes(settings: &identity::Settings) -> BTreeSet<String> {
    let prefixes = [identity::CLAIM_PREFIX, &settings.claim_prefix];
    prefixes.into_iter().map(|prefix| prefix.trim_end_matches('-').to_owned()).collect()
}

/// A regular expression (RE2 and PCRE) of the whole name in lower case, of all that [`IdentityHeaders::owns_name`] holds for.
fn format_owned_names(headers: &[String], prefixes: &BTreeSet<String>) -> String {
    let any_separator = |name: &String| name.replace('-', "[^a-z0-9]");
    let is_claim = |name: &&String| prefixes.iter().any(|prefix| name.starts_with(&format!("{prefix}-")));
    let mut all: Vec<String> = headers.iter().filter(|name| !is_claim(name)).map(any_separator).collect();
    all.extend(prefixes.iter().map(|prefix| format!("{}([^a-z0-9].*)?", any_separator(prefix))));
    all.join("|")
}

/// The address of the decision listener, as each gateway spells it.
struct Addresses {
    url: String,
    /// With the name in the certificate, for gateways that verify the certificate by the URL.
    named_url: String,
    nginx: String,
    caddy: String,
    envoy: String,
    haproxy: String,
    port: u16,
}

fn format_addresses(decision: &decision::Settings, server_name: &str) -> Addresses {
    let scheme = if decision.tls.is_some() { "https" } else { "http" };
    match &decision.listen {
        Listen::Tcp(address) => {
            let address = reachable_address(*address);
            let url = format!("{scheme}://{address}");
            let (ip, port) = (address.ip(), address.port());
            let envoy = format!("{{ socket_address: {{ address: \"{ip}\", port_value: {port} }} }}");
            let (named_url, caddy, haproxy) = match scheme {
                "https" => {
                    (format!("https://{server_name}:{port}"), url.clone(), format!(", dst = \"{address}\""))
                }
                _ => (url.clone(), address.to_string(), String::new()),
            };
            Addresses { nginx: url.clone(), url, named_url, caddy, envoy, haproxy, port }
        }
        Listen::Unix(path) => {
            let path = path.display();
            Addresses {
                url: format!("{scheme}://localhost"),
                named_url: format!("{scheme}://{server_name}"),
                nginx: format!("{scheme}://unix:{path}:"),
                caddy: format!("unix/{path}"),
                envoy: format!("{{ pipe: {{ path: \"{path}\" }} }}"),
                haproxy: format!(", dst = \"unix@{path}\""),
                port: 0,
            }
        }
    }
}

/// A listener on all addresses is asked on loopback.
fn reachable_address(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        address.set_ip(loopback[usize::from(address.is_ipv6())]);
    }
    address
}

#[cfg(test)]
mod tests;
