//! What is printed for gateways: names, placeholders, warnings and errors.

use super::*;
use crate::config::{Environment, parse};

fn arguments(gateway: GatewayKind) -> GatewayConfigArgs {
    GatewayConfigArgs {
        gateway,
        file: ConfigFile { config: PathBuf::new() },
        standalone: None,
        listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
        service: Service { host: "127.0.0.1".to_owned(), port: 8080, is_h2c: false },
        ca_file: "/tls/ca.crt".to_owned(),
        server_name: "localhost".to_owned(),
    }
}

fn format(gateway: GatewayKind, decision: &str) -> Result<String> {
    format_with(decision, &arguments(gateway))
}

fn format_with(decision: &str, args: &GatewayConfigArgs) -> Result<String> {
    let text = format!(
        "version = 1\n{decision}\n[upstreams.a]\nurl = \"http://127.0.0.1:1\"\n[[routes]]\npath = \"/*\"\nupstream = \"a\""
    );
    let config = parse(&text, "test.toml", &Environment::default().without_scalekit()).unwrap();
    format_snippet(&config, args, Path::new("/etc/haproxy"))
}

#[test]
fn every_snippet_names_renamed_headers_and_leaves_no_placeholder() {
    for &gateway in GatewayKind::value_variants() {
        let headers = if gateway == GatewayKind::IngressNginx { "x-original" } else { "x-forwarded" };
        let text = format(
            gateway,
            &format!(
                "decision = {{ listen = \"127.0.0.1:4483\", headers = \"{headers}\" }}\n[identity]\norg_id = \"X-Tenant\"\n\
                 claims = [\"cost center\"]\nclaims_header = \"X-Claims\""
            ),
        )
        .unwrap();
        assert!(!text.contains("{{") && !text.contains("\n%"), "{text}");
        // Over gRPC, Keyward names them in its answer.
        if ![GatewayKind::EnvoyGrpc, GatewayKind::Istio, GatewayKind::GatewayApi].contains(&gateway) {
            for name in ["x-tenant", "x-org-id", "x-claim-cost-center", "x-claims"] {
                assert!(text.contains(name), "{name}: {text}");
            }
        }
    }
}

#[test]
fn unusable_decision_listener_is_an_error() {
    let check = |gateway, section: &str, expected: &str| {
        let error = format(gateway, section).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(GatewayKind::Nginx, "", "add [decision]");
    check(GatewayKind::Traefik, "decision = { listen = \"unix:/run/keyward.sock\" }", "unix socket");
    check(GatewayKind::IngressNginx, "decision = { listen = \"127.0.0.1:1\" }", "headers = \"x-original\"");
    let unix = format(GatewayKind::Nginx, "decision = { listen = \"unix:/run/keyward.sock\" }").unwrap();
    assert!(unix.contains("proxy_pass http://unix:/run/keyward.sock:/decision;"), "{unix}");
}

#[test]
fn claims_that_gateway_cannot_remove_are_warned_of() {
    let any = identity::Settings::default();
    let listed = identity::Settings { claims: Some(Vec::new()), ..any.clone() };
    let joined = identity::Settings { claims_header: Some("x-claims".parse().unwrap()), ..any.clone() };
    for &gateway in GatewayKind::value_variants() {
        let by_name = [GatewayKind::Nginx, GatewayKind::IngressNginx, GatewayKind::Apisix].contains(&gateway);
        let warning = warn_of_claims(gateway, &any);
        assert_eq!(warning.is_some(), by_name || gateway == GatewayKind::Caddy, "{warning:?}");
        assert_eq!(warn_of_claims(gateway, &joined).is_some(), by_name);
        assert_eq!(warn_of_claims(gateway, &listed), None);
        let forged = warning.is_some_and(|warning| warning.contains("client's own x-claim-* headers reach"));
        assert_eq!(forged, by_name);
    }
}

#[test]
fn grpc_service_is_spoken_to_over_http2() {
    let mut args = arguments(GatewayKind::Nginx);
    args.service = parse_service("h2c://api:50051").unwrap();
    for (gateway, expected) in [
        (GatewayKind::Nginx, "grpc_pass grpc://api:50051;"),
        (GatewayKind::Traefik, "url: \"h2c://api:50051\""),
        (GatewayKind::Caddy, "reverse_proxy h2c://api:50051"),
        (GatewayKind::Haproxy, "server api api:50051 proto h2"),
        (GatewayKind::Apisix, "scheme: grpc"),
    ] {
        args.gateway = gateway;
        let text = format_with("decision = { listen = \"127.0.0.1:4483\" }", &args).unwrap();
        assert!(text.contains(expected), "{text}");
    }
    for text in ["https://api", "h2c://api/v1", "ftp://api", "http://a b", "http://a;b"] {
        assert!(parse_service(text).is_err(), "{text}");
    }
}
