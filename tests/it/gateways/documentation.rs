//! docs/gateways.md has what the command prints.

use crate::process::keyward;
use crate::support::tls::Folder;

const DOCUMENT: &str = include_str!("../../../docs/gateways.md");

#[tokio::test]
async fn documented_blocks_are_what_the_command_prints() {
    let sample = DOCUMENT.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let folder = Folder::new();
    let original = sample.replace("[decision]\n", "[decision]\nheaders = \"x-original\"\n");
    let (sample, original) = (folder.write("sample.toml", sample), folder.write("original.toml", &original));
    for gateway in [
        "nginx",
        "ingress-nginx",
        "traefik",
        "caddy",
        "envoy-http",
        "envoy-grpc",
        "istio",
        "gateway-api",
        "haproxy",
        "apisix",
    ] {
        let file = if gateway == "ingress-nginx" { &original } else { &sample };
        let output =
            keyward(&["gateway-config", gateway, "--config", file.to_str().unwrap()]).output().await.unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(
            DOCUMENT.contains(&format!("\n{printed}```\n")),
            "docs/gateways.md does not have:\n{printed}"
        );
    }
}
