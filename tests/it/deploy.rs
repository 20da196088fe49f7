//! What `deploy/` ships is what Keyward reads.

use keyward::config::{self, Environment};

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

#[test]
fn the_route_files_in_the_manifests_are_valid() {
    for (file, start) in [("compose.yaml", "content: |"), ("kubernetes.yaml", "keyward.toml: |")] {
        let path = format!("{}/deploy/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = block(&std::fs::read_to_string(path).unwrap(), start);
        assert!(text.contains("[[routes]]"), "{text}");
        let environment = Environment::default().without_scalekit();
        config::parse(&text, file, &environment).unwrap_or_else(|problems| panic!("{problems}"));
    }
}
