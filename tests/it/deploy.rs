//! `deploy/` and the image agree with Keyward's settings.

use std::fs;
use std::time::Duration;

use keyward::config::{self, Config, Environment, Resources};
use keyward::listener::Listen;
use keyward::memory_plan;

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

fn in_kubernetes() -> Config {
    parsed(&block(&read("deploy/kubernetes.yaml"), "keyward.toml: |"), "kubernetes.yaml")
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
    let (config, manifest) = (in_kubernetes(), read("deploy/kubernetes.yaml"));
    let grace = seconds(&manifest, "terminationGracePeriodSeconds:");
    let wait = seconds(&manifest, "sleep: {seconds:");
    assert!(grace > wait + config.drain_delay + config.drain_timeout, "{grace:?}");
}

#[test]
fn kubernetes_ports_match_listen_addresses() {
    let (config, manifest) = (in_kubernetes(), read("deploy/kubernetes.yaml"));
    for (listen, port, name) in [(config.listener.listen, 4480, "keyward"), (config.admin, 4481, "admin")] {
        assert_eq!(listen, Listen::Tcp(([0, 0, 0, 0], port).into()));
        assert!(manifest.contains(&format!("{{name: {name}, containerPort: {port}}}")), "{name}");
    }
    assert!(manifest.contains("targetPort: 4480}"));
}

/// The number of mebibytes after `key`.
fn mebibytes(text: &str, key: &str) -> usize {
    let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("no {key}"));
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<usize>().unwrap() << 20
}

#[test]
fn manifest_connections_fit_its_memory() {
    let (mut config, manifest) = (in_kubernetes(), read("deploy/kubernetes.yaml"));
    let memory = mebibytes(&manifest, "limits: {memory: ");
    assert!(manifest.contains("59 MiB / 480 KiB = 126."));
    // 70 % of the memory, less the process and the remembered bad keys.
    let free = memory / 100 * 70 - (18 << 20) - 256 * config.validator.negative_entries as usize;
    let each = memory_plan::CONNECTION + config.listener.max_head + 2 * memory_plan::SHARE;
    assert_eq!((free >> 20, each >> 10, free / each), (59, 480, 126));
    assert!(config.listener.max_connections <= free / each);
    config.warnings.clear();
    config.fit(Resources { memory: Some(memory), descriptors: None });
    assert_eq!(config.warnings, [""; 0]);
    for (memory, connections) in [(256, 317), (1024, 1464)] {
        let head = config.listener.max_head;
        let plan =
            memory_plan::Plan::new(memory << 20, 1_000_000, head, config.validator.negative_entries as usize);
        assert_eq!(plan.connections, connections, "{memory} MiB");
    }
}

#[test]
fn pod_containers_meet_restricted_profile() {
    let manifest = read("deploy/kubernetes.yaml");
    assert_eq!(manifest.matches("allowPrivilegeEscalation: false").count(), 2);
    assert_eq!(manifest.matches("capabilities: {drop: [ALL]}").count(), 2);
    assert!(manifest.contains("      securityContext:\n        runAsNonRoot: true"));
    assert!(read("deploy/compose.yaml").contains("ports: [\"127.0.0.1:4480:4480\"]"));
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
    let compose = read("deploy/compose.yaml");
    let (_, emulator) = compose.split_once("\n  emulator:\n").unwrap();
    let (emulator, demo) = emulator.split_once("\n  demo:\n").unwrap();
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
fn image_version_matches_package() {
    let label = format!("org.opencontainers.image.version=\"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(read("Dockerfile").contains(&label), "no {label}");
}
