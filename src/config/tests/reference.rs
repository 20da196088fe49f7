//! The files in `config/`, which people copy from, and the README's.

use super::*;

#[test]
fn reference_states_the_defaults() {
    assert_eq!(
        format!("{:#?}", read("config/reference.toml")),
        format!("{:#?}", read("config/keyward.toml"))
    );
}

/// The reference with the sections in force that are off where they are not there.
fn reference() -> String {
    let mut reference = fs::read_to_string(root().join("config/reference.toml")).unwrap();
    for line in [
        "[decision]\n",
        "listen = \"127.0.0.1:4483",
        "[management]\n",
        "listen = \"unix:",
        "[rate_limits.per-org]\n",
        "requests = 600",
        "[shared]\n",
        "url = \"redis:",
        "replicas = 2",
    ] {
        let off = format!("\n# {line}");
        assert!(reference.contains(&off), "{line}");
        reference = reference.replace(&off, &format!("\n{line}"));
    }
    reference
}

/// Every key that the reader knows below a table whose header is `header`, as the reader itself says them.
fn known_keys(header: &str, path: &str, keys: &mut Vec<String>) {
    let text = if header.is_empty() { "zzz = 1\n".to_owned() } else { format!("{header}\nzzz = 1\n") };
    let found = parse(&text, "f", &environment()).unwrap_err().to_string();
    let marker = format!("{path}zzz: is not a known key; known keys are ");
    // What is no table has no keys.
    let Some((_, rest)) = found.split_once(&marker) else { return };
    for key in rest.lines().next().unwrap().split(", ") {
        keys.push(format!("{path}{key}"));
        let table = path.replace("[0]", "") + key;
        match key {
            "upstreams" => known_keys("[upstreams.api]", "upstreams.api.", keys),
            "rate_limits" if path.is_empty() => {
                known_keys("[rate_limits.per-org]", "rate_limits.per-org.", keys);
            }
            "routes" => known_keys("[[routes]]", "routes[0].", keys),
            _ if path.starts_with("routes") => {
                known_keys(&format!("[[routes]]\n[{table}]"), &format!("{path}{key}."), keys)
            }
            _ => known_keys(&format!("[{table}]"), &format!("{path}{key}."), keys),
        }
    }
}

#[test]
fn reference_lists_every_known_key() {
    let mut keys = Vec::new();
    known_keys("", "", &mut keys);
    assert!(keys.len() > 60 && keys.contains(&"routes[0].require.scope".to_owned()), "{keys:?}");
    let reference = reference();
    for key in keys {
        let name = key.rsplit('.').next().unwrap();
        let section = key.strip_suffix(name).unwrap().trim_end_matches('.').replace("[0]", "");
        let section = section.split_inclusive('.').take(2).collect::<String>();
        // A table within a line belongs to the section that the line is in.
        let section = section.trim_end_matches('.').trim_end_matches(".tls").trim_end_matches(".require");
        let body = match section {
            "" => reference.as_str(),
            "routes" => reference.split("\n[[routes]]\n").nth(1).unwrap(),
            _ => reference
                .split(&format!("\n[{section}]\n"))
                .nth(1)
                .unwrap_or_else(|| panic!("no [{section}]")),
        };
        let body = if section.is_empty() { body } else { body.split("\n[").next().unwrap() };
        let forms = [format!("{name} = "), format!("[{name}]"), format!("[{name}.")];
        assert!(forms.iter().any(|form| body.contains(form)), "{key} is not in the reference");
    }
}

#[test]
fn commented_reference_examples_are_valid() {
    let reference = reference();
    let mut examples = 0;
    for line in reference.lines() {
        let Some((key, _)) = line.strip_prefix("# ").and_then(|line| line.split_once(" = ")) else {
            continue;
        };
        if !key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            continue;
        }
        examples += 1;
        let text = reference.replace(line, &line[2..]);
        let found =
            parse(&text, "f", &environment()).map_or_else(|problems| problems.to_string(), |_| String::new());
        // The files are not there, and the reference's own upstream has no TLS.
        let wrong = found.lines().skip(1).find(|problem| {
            !["No such file", "is only for https://", "has no effect without"]
                .iter()
                .any(|excuse| problem.contains(excuse))
        });
        assert_eq!(wrong, None, "{line}");
    }
    assert!(examples > 10, "{examples}");
}
