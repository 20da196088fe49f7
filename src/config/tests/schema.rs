//! The JSON Schema: that it is the one in `config/`, and that it takes what the reader takes.

use serde_json::Value;

use super::*;

pub(super) fn schema() -> Value {
    serde_json::from_str(&json_schema().unwrap()).unwrap()
}

#[test]
fn schema_file_matches_keyward_schema() {
    let file = root().join("config/keyward.schema.json");
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        fs::write(&file, json_schema().unwrap()).unwrap();
    }
    let is_current = fs::read_to_string(file).unwrap() == json_schema().unwrap();
    assert!(is_current, "keyward schema > config/keyward.schema.json writes it anew");
}

#[test]
fn samples_name_the_schema_file() {
    for sample in ["config/keyward.toml", "config/reference.toml", "deploy/keyward.toml"] {
        let path = root().join(sample);
        let text = fs::read_to_string(&path).unwrap();
        let named = text.lines().next().unwrap().strip_prefix("#:schema ").expect(sample);
        let named = fs::canonicalize(path.parent().unwrap().join(named)).expect(sample);
        assert!(named.ends_with("config/keyward.schema.json"), "{sample}");
    }
}

/// What is wrong with a value by a schema, for the keywords that ours has; patterns are not tried.
fn violations(root: &Value, schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let keywords = schema.as_object().unwrap();
    let mut fail = |keyword: &str| found.push(format!("{path}: {keyword}"));
    let number = value.as_i64();
    for (keyword, expected) in keywords {
        match keyword.as_str() {
            "$ref" => {
                let name = expected.as_str().unwrap().strip_prefix("#/definitions/").unwrap();
                violations(root, &root["definitions"][name], value, path, found);
                return;
            }
            "type" => {
                let kind = match value {
                    Value::Object(_) => "object",
                    Value::Array(_) => "array",
                    Value::String(_) => "string",
                    Value::Bool(_) => "boolean",
                    _ => "integer",
                };
                if expected != kind {
                    fail("type");
                }
            }
            "const" if value != expected => fail("const"),
            "enum" if !expected.as_array().unwrap().contains(value) => fail("enum"),
            "minimum" if number < expected.as_i64() => fail("minimum"),
            "maximum" if number > expected.as_i64() => fail("maximum"),
            "required" => {
                for name in expected.as_array().unwrap() {
                    if value.get(name.as_str().unwrap()).is_none() {
                        fail("required");
                    }
                }
            }
            "anyOf" => {
                let takes = |choice: &Value| {
                    let mut found = Vec::new();
                    violations(root, choice, value, path, &mut found);
                    found.is_empty()
                };
                if !expected.as_array().unwrap().iter().any(takes) {
                    fail("anyOf");
                }
            }
            "const"
            | "enum"
            | "minimum"
            | "maximum"
            | "items"
            | "properties"
            | "additionalProperties"
            | "default"
            | "description"
            | "pattern"
            | "$schema"
            | "title"
            | "definitions" => {}
            other => panic!("a keyword that this test does not know: {other}"),
        }
    }
    if let (Some(items), Some(schema)) = (value.as_array(), schema.get("items")) {
        items.iter().for_each(|item| violations(root, schema, item, &format!("{path}[]"), found));
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        match (schema["properties"].get(key), &schema["additionalProperties"]) {
            (Some(below), _) => violations(root, below, value, &path, found),
            (None, below @ Value::Object(_)) => violations(root, below, value, &path, found),
            (None, Value::Bool(false)) => found.push(format!("{path}: additionalProperties")),
            (None, _) => {}
        }
    }
}

fn violations_of(text: &str) -> Vec<String> {
    let (schema, mut found) = (schema(), Vec::new());
    violations(&schema, &schema, &toml::from_str(text).unwrap(), "", &mut found);
    found
}

#[test]
fn schema_takes_every_valid_file() {
    for folder in ["config", "deploy", "tests/config/valid"] {
        for file in files(folder) {
            assert_eq!(violations_of(&fs::read_to_string(&file).unwrap()), [""; 0], "{}", file.display());
        }
    }
}

#[test]
fn schema_refuses_unknown_missing_and_mistyped_keys() {
    let text = "version = 2\nlog.format = \"yaml\"\nlimits.headers = 0\nserver.listne = 1\nserver.realm = 1\nroutes = [{}]\n";
    assert_eq!(violations_of("version = 1\n"), [": required"], "no routes");
    let found = violations_of(text);
    for expected in [
        ".version: enum",
        ".log.format: enum",
        ".limits.headers: minimum",
        ".server.listne: additionalProperties",
        ".server.realm: type",
        ".routes[]: required",
    ] {
        assert!(found.iter().any(|violation| violation == expected), "{expected}: {found:?}");
    }
}

#[test]
fn schema_shows_descriptions_and_defaults() {
    let schema = schema();
    let property = |section: &str, key: &str| schema["definitions"][section]["properties"][key].clone();
    for (section, key, default) in [
        ("Server", "listen", serde_json::json!("0.0.0.0:4480")),
        ("Server", "header_timeout", serde_json::json!("10s")),
        ("Limits", "head", serde_json::json!("64KiB")),
        ("Limits", "connections", serde_json::json!(10_000)),
        ("Throttle", "bad_keys_per_minute", serde_json::json!("auto")),
        ("Upstream", "http", serde_json::json!("auto")),
        ("Identity", "org_id", serde_json::json!("x-org-id")),
        ("Management", "socket_mode", serde_json::json!("0660")),
    ] {
        assert_eq!(property(section, key)["default"], default, "{section} {key}");
    }
    for (name, section) in schema["definitions"].as_object().unwrap() {
        for (key, property) in section["properties"].as_object().unwrap() {
            assert!(property["description"].as_str().is_some_and(|text| text.len() > 10), "{name} {key}");
        }
    }
}
