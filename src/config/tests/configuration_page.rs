//! `docs/configuration.md`, the reference of the route file, which is made from its schema.

use serde_json::Value;

use super::schema::schema;
use super::*;

const INTRODUCTION: &str = "# Configuration\n\n\
    Every key of the route file, made from [its JSON Schema](../config/keyward.schema.json), which editors can use.\n\
    [`config/reference.toml`](../config/reference.toml) is a file with all of them and longer explanations. `keyward check` reports every\n\
    mistake in a file with its line; `keyward explain` tells what a file does with a request.\n\n\
    Durations are written as `\"2s\"`, `\"250ms\"` or `\"1m 30s\"`, sizes as `\"64KiB\"` or `\"1MiB\"`.\n";

fn format_page() -> String {
    let schema = schema();
    let mut page = INTRODUCTION.to_owned();
    let mut sections: Vec<(String, &Value)> = Vec::new();
    let mut top = String::new();
    for (name, value) in schema["properties"].as_object().unwrap() {
        match definition_of(&schema, value) {
            Some((definition, _)) if value["type"] == "array" => {
                sections.push((format!("[[{name}]]"), definition));
            }
            Some((definition, is_named)) => {
                let named = if is_named { ".NAME" } else { "" };
                sections.push((format!("[{name}{named}]"), definition));
            }
            None => top += &format_row(name, value),
        }
    }
    page += &format!("\n{TABLE_HEAD}{top}");
    // Tables within a section, such as routes.require.
    let mut index = 0;
    while let Some((name, definition)) = sections.get(index).cloned() {
        index += 1;
        page += &format!("\n## `{name}`\n\n{}\n\n{TABLE_HEAD}", one_line(&definition["description"]));
        let section = name.trim_matches(['[', ']']).to_owned();
        for (key, value) in definition["properties"].as_object().unwrap() {
            page += &format_row(key, value);
            if let Some((below, _)) = definition_of(&schema, value) {
                let name = format!("{section}.{key}");
                // TlsFiles stands in several sections, and is listed once.
                if !sections.iter().any(|(_, other)| std::ptr::eq(*other, below)) {
                    sections.insert(index, (name, below));
                }
            }
        }
    }
    page
}

const TABLE_HEAD: &str = "| key | default | meaning |\n| --- | --- | --- |\n";

/// The table that a value is, and whether users choose its name.
fn definition_of<'s>(schema: &'s Value, value: &'s Value) -> Option<(&'s Value, bool)> {
    let find = |value: &Value| {
        let name = value["$ref"].as_str()?.strip_prefix("#/definitions/")?;
        schema["definitions"].get(name)
    };
    let first = value["allOf"].get(0).or_else(|| value["anyOf"].get(0));
    let direct = find(value).or_else(|| find(&value["items"])).or_else(|| first.and_then(find));
    direct
        .map(|found| (found, false))
        .or_else(|| find(&value["additionalProperties"]).map(|found| (found, true)))
}

fn format_row(key: &str, value: &Value) -> String {
    let default = match &value["default"] {
        Value::Null => String::new(),
        default => format!("`{default}`"),
    };
    format!("| `{key}` | {default} | {} |\n", one_line(&value["description"]))
}

fn one_line(description: &Value) -> String {
    description.as_str().unwrap_or("A table, see below.").replace('\n', " ").replace('|', "\\|")
}

#[test]
fn configuration_page_states_every_key() {
    let file = root().join("docs/configuration.md");
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        fs::write(&file, format_page()).unwrap();
    }
    let page = fs::read_to_string(file).unwrap();
    assert!(page == format_page(), "UPDATE_FIXTURES=1 cargo test --lib config writes it anew");
    for key in ["`listen`", "`[[routes]]`", "`routes.require`", "`[upstreams.NAME]`", "`warn_before`"] {
        assert!(page.contains(key), "{key}");
    }
}
