//! `deploy/` and the image agree with Keyward's settings.

use std::fs;
use std::process::Command;
use std::time::Duration;

use keyward::config::{self, Config, Environment, Resources};
use keyward::listener::Listen;
use keyward::{memory_plan, usage};

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A route file, and the output of `keyward check`.
fn parsed(text: &str, name: &str) -> Config {
    assert!(text.contains("[[routes]]"), "{text}");
    let environment = Environment::default().without_scalekit();
    config::parse(text, name, &environment).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The text of a YAML block scalar: the lines below `start` that are indented deeper.
fn block(yaml: &str, start: &str) -> String {
    let mut lines = yaml.lines().skip_while(|line| line.trim() != start);
    let first = lines.next().unwrap_or_else(|| panic!("no {start}"));
    let own = first.len() - first.trim_start().len();
    lines
        .take_while(|line| line.trim().is_empty() || line.len() - line.trim_start().len() > own)
        .map(|line| format!("{}\n", line.trim()))
        .collect()
}

/// Where a route file is, with the deployment that it belongs to.
const IN_KUBERNETES: [(&str, &str); 3] = [
    ("deploy/kustomize/example/keyward.toml", "deploy/kustomize/component/sidecar.yaml"),
    ("deploy/helm/example/values.yaml", "deploy/helm/example/templates/orders.yaml"),
    ("deploy/helm/keyward/ci/full-values.yaml", "deploy/helm/keyward/ci/full-values.yaml"),
];

fn route_file(path: &str) -> Config {
    let text = read(path);
    parsed(&if path.ends_with(".toml") { text } else { block(&text, "config: |") }, path)
}

/// The number of seconds after `key`.
fn seconds(text: &str, key: &str) -> Duration {
    let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("no {key}"));
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    Duration::from_secs(digits.parse().unwrap())
}

#[test]
fn compose_stops_container_after_drain() {
    let config = parsed(&read("deploy/keyward.toml"), "keyward.toml");
    let grace = seconds(&read("deploy/compose.yaml"), "stop_grace_period:");
    assert!(grace > config.drain_delay + config.drain_timeout, "{grace:?}");
}

#[test]
fn kubernetes_grace_period_covers_drain() {
    for (file, deployment) in IN_KUBERNETES {
        let (config, grace) =
            (route_file(file), seconds(&read(deployment), "terminationGracePeriodSeconds:"));
        assert!(grace > config.drain_delay + config.drain_timeout, "{file}: {grace:?}");
    }
    let defaults = route_file("deploy/helm/keyward/ci/minimal-values.yaml");
    let grace = seconds(&read("deploy/helm/keyward/values.yaml"), "\nterminationGracePeriodSeconds:");
    assert!(grace > defaults.drain_delay + defaults.drain_timeout, "{grace:?}");
}

#[test]
fn service_beside_sidecar_outlives_its_drain_delay() {
    for (file, service) in [
        ("deploy/kustomize/example/keyward.toml", "deploy/kustomize/example/orders.yaml"),
        ("deploy/helm/example/values.yaml", "deploy/helm/example/templates/orders.yaml"),
    ] {
        let (config, sleep) = (route_file(file), seconds(&read(service), "sleep: {seconds:"));
        assert!(sleep > config.drain_delay, "{service}: {sleep:?}");
    }
}

#[test]
fn kubernetes_ports_match_listen_addresses() {
    for (file, _) in IN_KUBERNETES {
        let config = route_file(file);
        for (listen, port) in [(config.listener.listen, 4480), (config.admin, 4481)] {
            let Listen::Tcp(address) = listen else { panic!("{file}") };
            assert!(address.ip().is_unspecified() && address.port() == port, "{file}: {address}");
        }
    }
    for container in
        ["deploy/kustomize/component/sidecar.yaml", "deploy/helm/keyward-sidecar/templates/_keyward.tpl"]
    {
        let text = read(container);
        assert!(text.contains("{name: keyward, containerPort: 4480}"), "{container}");
        assert!(text.contains("{name: keyward-admin, containerPort: 4481}"), "{container}");
        assert_eq!(text.matches("port: keyward-admin}").count(), 3, "{container}: a probe each");
        assert!(text.contains("exec: {command: [/keyward, drain]}"), "{container}");
    }
}

/// The number of mebibytes after `key`.
fn mebibytes(text: &str, key: &str) -> usize {
    let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("no {key}"));
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<usize>().unwrap() << 20
}

#[test]
fn manifest_connections_fit_its_memory() {
    let [(file, deployment), ..] = IN_KUBERNETES;
    let mut config = route_file(file);
    let memory = mebibytes(&read(deployment), "limits: {memory: ");
    assert!(read(file).contains("53 MiB / 480 KiB = 114."));
    // 70 % of the memory, less the process, the remembered bad keys, and the use of keys and by organizations.
    let usage = config.usage.as_ref().unwrap();
    let usage = usage.max_keys as usize * usage::ENTRY_BYTES
        + usage.max_organizations * usage.days * usage::ROW_BYTES;
    let remembered = config.validator.negative_entries as usize + usage / memory_plan::REMEMBERED;
    let free = memory / 100 * 70 - (18 << 20) - memory_plan::REMEMBERED * remembered;
    let each = memory_plan::CONNECTION + config.listener.max_head + 2 * memory_plan::SHARE;
    assert_eq!((free >> 20, each >> 10, free / each), (53, 480, 114));
    assert!(config.listener.max_connections <= free / each);
    config.warnings.clear();
    config.fit(Resources { memory: Some(memory), descriptors: None });
    assert_eq!(config.warnings, [""; 0]);
    for (memory, connections) in [(256, 305), (1024, 1452)] {
        let head = config.listener.max_head;
        let plan = memory_plan::Plan::new(memory << 20, 1_000_000, head, remembered);
        assert_eq!(plan.connections, connections, "{memory} MiB");
    }
}

#[test]
fn rendered_manifests_are_valid_and_restricted() {
    let script = format!("{}/.ci/check-manifests", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(script).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.code() == Some(77) {
        return eprintln!("{}", text(&output.stdout).trim());
    }
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn compose_publishes_on_loopback_without_privileges() {
    let compose = read("deploy/compose.yaml");
    for ports in compose.lines().filter(|line| line.trim_start().starts_with("ports: ")) {
        assert_eq!(ports.matches("\"").count() / 2, ports.matches("\"127.0.0.1:").count(), "{ports}");
    }
    for setting in ["read_only: true", "cap_drop: [ALL]", "no-new-privileges:true"] {
        assert_eq!(compose.matches(setting).count(), 2, "{setting}: of Keyward and of the service");
    }
}

/// A service of the Compose file.
fn service(name: &str) -> String {
    block(&read("deploy/compose.yaml"), &format!("{name}:"))
}

#[test]
fn compose_demo_verifies_emulator_by_name() {
    let (emulator, demo) = (service("emulator"), service("demo"));
    assert!(
        emulator.contains("\"--tls-listen\", \"0.0.0.0:4491\", \"--tls-name\", \"emulator\""),
        "{emulator}"
    );
    assert!(
        emulator.contains("\"--ca-out\", \"/ca/ca.pem\"") && emulator.contains("[\"ca:/ca\"]"),
        "{emulator}"
    );
    assert!(demo.contains("SCALEKIT_ENVIRONMENT_URL: https://emulator:4491\n"), "{demo}");
    assert!(demo.contains("SSL_CERT_FILE: /ca/ca.pem\n") && demo.contains("[\"ca:/ca:ro\"]"), "{demo}");
    assert!(demo.contains("emulator: {condition: service_healthy}"), "{demo}");
}

#[test]
fn image_has_no_emulator_unless_asked() {
    let dockerfile = read("Dockerfile");
    assert!(dockerfile.contains("ARG FEATURES=\"\"\n"), "{dockerfile}");
    let builds: Vec<&str> = dockerfile.lines().filter(|line| line.contains("cargo build")).collect();
    assert_eq!(builds.len(), 2, "one for the dependencies, one for the program: {builds:?}");
    for build in builds {
        assert!(
            build.contains("--package keyward --no-default-features --features \"$FEATURES\""),
            "{build}"
        );
    }
    let (emulator, demo) = (service("emulator"), service("demo"));
    assert!(
        emulator.contains("args: {FEATURES: dev}") && emulator.contains("image: keyward-dev"),
        "{emulator}"
    );
    assert!(!demo.contains("FEATURES"), "{demo}");
}

#[test]
fn image_build_copies_every_workspace_member() {
    let (manifest, dockerfile) = (read("Cargo.toml"), read("Dockerfile"));
    let (_, members) = manifest.split_once("\nmembers = [").unwrap();
    let (members, _) = members.split_once(']').unwrap();
    for member in members.split(',').map(|member| member.trim().trim_matches('"')) {
        assert!(dockerfile.contains(&format!("COPY {member}/Cargo.toml {member}/\n")), "{member}");
        assert_eq!(dockerfile.matches(&format!("{member}/src/lib.rs")).count(), 2, "{member}");
    }
    assert!(read(".dockerignore").contains("\n!crates\n"));
}

#[test]
fn versions_match_package() {
    let version = env!("CARGO_PKG_VERSION");
    for (path, text) in [
        ("Dockerfile", format!("org.opencontainers.image.version=\"{version}\"")),
        ("CHANGELOG.md", format!("\n## {version} - ")),
        ("deploy/helm/keyward/Chart.yaml", format!("\nappVersion: {version}\n")),
        ("deploy/helm/keyward-sidecar/Chart.yaml", format!("\nappVersion: {version}\n")),
        (
            "deploy/helm/keyward-sidecar/templates/_keyward.tpl",
            format!("\"keyward-sidecar.version\" -}}}}{version}{{{{-"),
        ),
        ("deploy/kustomize/example/kustomization.yaml", format!("newTag: {version}}}")),
    ] {
        assert!(read(path).contains(&text), "{path}: no {text}");
    }
    for chart in ["keyward", "keyward-sidecar", "example"] {
        let chart = read(&format!("deploy/helm/{chart}/Chart.yaml"));
        let versions: Vec<&str> =
            chart.lines().filter_map(|line| line.trim().strip_prefix("version: ")).collect();
        assert!(versions.iter().all(|found| *found == version), "{versions:?}");
    }
}
