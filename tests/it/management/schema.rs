//! Checks responses against `openapi.json`, with the part of JSON Schema that it uses.

use std::sync::LazyLock;

use keyward::management::OPENAPI;
use serde_json::Value;

use crate::support::raw::Reply;

pub static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(OPENAPI).unwrap());

/// The target of a `$ref`.
pub fn resolve(value: &Value) -> &Value {
    match value["$ref"].as_str() {
        None => value,
        Some(reference) => {
            let pointer = reference.strip_prefix('#').expect("within the document");
            resolve(DOCUMENT.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere")))
        }
    }
}

/// Panics if the response is not as documented; returns its name if its path is documented.
pub fn check(method: &str, path: &str, reply: &Reply) -> Option<String> {
    let path = path.split('?').next().unwrap();
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let template = paths.keys().find(|template| {
        let (one, other): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
        one.len() == other.len()
            && one.iter().zip(other).all(|(one, other)| one.starts_with('{') || *one == other)
    });
    let operation = template.map(|template| &paths[template][method.to_ascii_lowercase()]);
    let status = reply.status.to_string();
    let context = format!("{method} {path} {status} {}", reply.text());
    match operation.filter(|operation| !operation.is_null()) {
        // Undocumented paths get only problems, which are documented.
        None => {
            assert!(matches!(reply.status, 401 | 403 | 404 | 405 | 503), "{context}");
            let problem = &DOCUMENT["components"]["schemas"]["Problem"];
            assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{context}");
            conform(problem, &reply.json(), &context);
            None
        }
        Some(operation) => {
            let response = &operation["responses"][&status];
            assert!(!response.is_null(), "undocumented: {context}");
            let response = resolve(response);
            match response["content"].as_object() {
                None => assert!(reply.body.is_empty(), "{context}"),
                Some(content) => {
                    let (kind, content) = content.iter().next().unwrap();
                    assert_eq!(reply.header("content-type"), Some(&**kind), "{context}");
                    assert_eq!(reply.header("cache-control"), Some("no-store"), "{context}");
                    match kind.as_str() {
                        "application/jsonl" => {
                            let text = reply.text();
                            let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
                            lines.for_each(|line| conform(&content["schema"], &line, &context));
                        }
                        _ => conform(&content["schema"], &reply.json(), &context),
                    }
                    if kind == "application/problem+json" {
                        let body = reply.json();
                        assert_eq!(body["code"].as_str(), reply.code(), "{context}");
                        assert_eq!(body["status"], reply.status, "{context}");
                        // The description of a status lists its codes.
                        let description = response["description"].as_str().unwrap();
                        assert!(
                            description.contains(body["code"].as_str().unwrap()),
                            "{description}: {context}"
                        );
                    }
                }
            }
            for (name, _) in response["headers"].as_object().into_iter().flatten() {
                assert!(reply.header(name).is_some(), "{name} is missing: {context}");
            }
            Some(format!("{method} {} {status}", template.unwrap()))
        }
    }
}

/// Panics if a value does not match this schema, or the schema has an unknown keyword.
pub fn conform(schema: &Value, value: &Value, context: &str) {
    let words = schema.as_object().unwrap();
    for (word, rule) in words {
        let text = || value.as_str().unwrap();
        match &**word {
            "$ref" => conform(resolve(schema), value, context),
            "type" => {
                let kinds = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                assert!(
                    kinds.iter().any(|kind| is(value, kind.as_str().unwrap())),
                    "{value} is no {rule}: {context}"
                );
            }
            "required" => {
                for name in rule.as_array().unwrap() {
                    assert!(value.get(name.as_str().unwrap()).is_some(), "{name}: {context}");
                }
            }
            "properties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    match &rule[name] {
                        Value::Null => conform_rest(&schema["additionalProperties"], name, value, context),
                        schema => conform(schema, value, context),
                    }
                }
            }
            "additionalProperties" if !words.contains_key("properties") => {
                for (name, value) in value.as_object().unwrap() {
                    conform_rest(rule, name, value, context);
                }
            }
            "items" => value.as_array().unwrap().iter().for_each(|item| conform(rule, item, context)),
            "enum" => assert!(rule.as_array().unwrap().contains(value), "{value}: {context}"),
            // The patterns of responses are prefixes.
            "pattern" => {
                let start = rule.as_str().unwrap().strip_prefix('^').unwrap();
                assert!(start.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{start}");
                assert!(text().starts_with(start), "{value}: {context}");
            }
            "format" if value.is_null() => {}
            "format" if rule == "date" => {
                text().parse::<jiff::civil::Date>().unwrap_or_else(|_| panic!("{value}: {context}"));
            }
            "format" => {
                assert_eq!(rule, "date-time");
                text().parse::<jiff::Timestamp>().unwrap_or_else(|_| panic!("{value}: {context}"));
            }
            // A schema or null.
            "anyOf" => match rule.as_array().map(Vec::as_slice).unwrap() {
                [schema, null] if null["type"] == "null" => {
                    if !value.is_null() {
                        conform(schema, value, context);
                    }
                }
                _ => panic!("{rule} is not understood: {context}"),
            },
            "description" | "examples" | "additionalProperties" => {}
            other => panic!("{other} is not understood: {context}"),
        }
    }
}

fn conform_rest(rule: &Value, name: &str, value: &Value, context: &str) {
    match rule {
        Value::Bool(false) => panic!("{name} is not documented: {context}"),
        Value::Object(_) => conform(rule, value, context),
        _ => {}
    }
}

fn is(value: &Value, kind: &str) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{other} is not understood"),
    }
}
