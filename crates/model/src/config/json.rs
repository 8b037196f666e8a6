//! A JSON object as Go's decoder sees it: members in order, names without regard to case.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::ConfigError;

/// How many characters of a wrong value, or of an unknown name, are shown.
const SHOWN: usize = 80;

/// How many unknown names are remembered.
const UNKNOWN: usize = 16;

/// The members of an object in the order they are written. (`serde_json::Map` would forget which
/// of `Network` and `network` came last.)
pub(super) struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object such as {\"Network\": \"10.244.0.0/16\"}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl Members {
    /// Returns the value of `key`: the last one that is not `null`.
    pub(super) fn raw(&self, key: &str) -> Option<&RawValue> {
        let named = self
            .0
            .iter()
            .rev()
            .filter(|(name, _)| name.eq_ignore_ascii_case(key));
        named
            .map(|(_, raw)| raw.as_ref())
            .find(|raw| raw.get() != "null")
    }

    /// The boolean under `key`.
    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        let Some(raw) = self.raw(key) else {
            return Ok(None);
        };
        match raw.get() {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            other => Err(refused(key, other, "true or false")),
        }
    }

    /// The text under `key`.
    pub(super) fn text(&self, key: &str, expected: &str) -> Result<Option<String>, ConfigError> {
        let Some(raw) = self.raw(key) else {
            return Ok(None);
        };
        let text = serde_json::from_str(raw.get());
        text.map(Some)
            .map_err(|_| refused(key, raw.get(), expected))
    }

    /// The members in order, `null` ones left out.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        let present = self.0.iter().filter(|(_, raw)| raw.get() != "null");
        present.map(|(name, raw)| (name.as_str(), raw.as_ref()))
    }

    /// Names other than `known`, each once, in order; not all of very many.
    pub(super) fn unknown(&self, known: &[&str]) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (name, _) in &self.0 {
            if names.len() == UNKNOWN {
                break;
            }
            let name = shortened(name);
            let seen = known.iter().any(|k| k.eq_ignore_ascii_case(&name)) || names.contains(&name);
            if !seen {
                names.push(name);
            }
        }
        names
    }
}

/// The refusal of the JSON text `value` under `key`.
pub(super) fn refused(
    key: &str,
    value: impl fmt::Display,
    expected: impl Into<String>,
) -> ConfigError {
    let value = shortened(&value.to_string());
    ConfigError::Value {
        key: key.into(),
        value,
        expected: expected.into(),
    }
}

/// What kind of value this is, for a message that must not show the value itself.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// `text` on one line and not long: it may be anything, and ends in a log.
fn shortened(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().take(SHOWN).map(clean).collect();
    if text.chars().nth(SHOWN).is_some() {
        short.push('…');
    }
    short
}
