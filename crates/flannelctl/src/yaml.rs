//! JSON values as YAML, and YAML as JSON values.

use anyhow::{Context, Result};
use serde_json::{Map, Number, Value};
use yaml_rust2::yaml::Hash;
use yaml_rust2::{Yaml, YamlEmitter, YamlLoader};

/// Returns a value as YAML, without the line `---`.
///
/// # Errors
/// None is expected.
pub(crate) fn text(value: &Value) -> Result<String> {
    let mut text = String::new();
    let mut emitter = YamlEmitter::new(&mut text);
    emitter.dump(&to_yaml(value)).context("write YAML")?;
    Ok(text.trim_start_matches("---\n").to_owned())
}

/// Reads the documents of a text.
///
/// # Errors
/// It is not YAML.
pub(crate) fn documents(text: &str) -> Result<Vec<Value>> {
    let documents = YamlLoader::load_from_str(text)?;
    Ok(documents.iter().map(from_yaml).collect())
}

fn to_yaml(value: &Value) -> Yaml {
    match value {
        Value::Null => Yaml::Null,
        Value::Bool(yes) => Yaml::Boolean(*yes),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => Yaml::Integer(integer),
            None => Yaml::Real(number.to_string()),
        },
        Value::String(text) => Yaml::String(text.clone()),
        Value::Array(items) => Yaml::Array(items.iter().map(to_yaml).collect()),
        Value::Object(members) => {
            let members = members.iter();
            let pairs = members.map(|(key, value)| (Yaml::String(key.clone()), to_yaml(value)));
            Yaml::Hash(pairs.collect::<Hash>())
        }
    }
}

fn from_yaml(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Boolean(yes) => Value::Bool(*yes),
        Yaml::Integer(integer) => Value::Number(Number::from(*integer)),
        Yaml::Real(text) | Yaml::String(text) => Value::String(text.clone()),
        Yaml::Array(items) => Value::Array(items.iter().map(from_yaml).collect()),
        Yaml::Hash(members) => {
            let pairs = members.iter().map(|(key, value)| {
                let key = from_yaml(key);
                let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                (key, from_yaml(value))
            });
            Value::Object(pairs.collect::<Map<_, _>>())
        }
        Yaml::Alias(_) | Yaml::Null | Yaml::BadValue => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let value = serde_json::json!({"a": [1, "x: y", null, true], "b": {"c": "10.1.0.0/16"}});
        let text = text(&value).unwrap();
        assert!(text.starts_with("a:\n"), "{text}");
        assert_eq!(documents(&text).unwrap(), [value]);
    }

    #[test]
    fn fuzzed_documents() {
        let seed = b"a: [1, 'x: y', null, true]\nb: &x\n  c: 10.1.0.0/16\n---\n- *x\n- |\n  text\n";
        fuzz::run("YAML", &[seed], |input| {
            documents(&String::from_utf8_lossy(input))
                .map(|all| all.len())
                .ok()
        });
    }
}
