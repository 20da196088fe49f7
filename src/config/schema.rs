//! The JSON Schema of the route file, for editors.

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use serde_json::Value;

use super::file::File;

/// The schema of the route file, as JSON with a line break at its end.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn json_schema() -> Result<String, serde_json::Error> {
    // Editors for TOML support draft 7.
    let settings = SchemaSettings::draft07().with_transform(RecursiveTransform(remove_null));
    let schema = settings.into_generator().into_root_schema_for::<File>();
    serde_json::to_string_pretty(&schema).map(|schema| schema + "\n")
}

/// Removes null from the schema, as TOML has no null: optional keys are omitted.
fn remove_null(schema: &mut Schema) {
    let is_null = |value: &Value| value.is_null() || value["type"] == "null" || value == "null";
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
    for keyword in ["enum", "anyOf"] {
        if let Some(Value::Array(choices)) = schema.get_mut(keyword) {
            choices.retain(|choice| !is_null(choice));
        }
    }
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| !is_null(name));
        if let [only] = &types[..] {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    // A single alternative replaces the choice. Draft 7 ignores all keywords beside a reference, so then it must be the only one.
    let only = schema.get("anyOf").and_then(Value::as_array).and_then(|choices| match &choices[..] {
        [Value::Object(only)] => Some(only.clone()),
        _ => None,
    });
    let keywords = schema.as_object().map_or(0, serde_json::Map::len);
    if let Some(only) = only.filter(|only| keywords == 1 || !only.contains_key("$ref")) {
        schema.remove("anyOf");
        only.into_iter().for_each(|(keyword, value)| drop(schema.insert(keyword, value)));
    }
}
