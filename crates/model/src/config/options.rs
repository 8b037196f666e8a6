//! `Backend`: its type, and typed readers for its options.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::json::{Members, refused, type_name};
use super::{BackendConfig, ConfigError};
use crate::BackendType;

impl BackendConfig {
    /// The `Backend` member; vxlan without options where there is none.
    pub(super) fn read(config: &Members) -> Result<BackendConfig, ConfigError> {
        let Some(raw) = config.raw("Backend") else {
            return Ok(BackendConfig {
                kind: BackendType::Vxlan,
                options: BTreeMap::new(),
            });
        };
        let Ok(members) = serde_json::from_str::<Members>(raw.get()) else {
            let shown = serde_json::from_str(raw.get()).map_or("unreadable", |v| type_name(&v));
            return Err(refused(
                "Backend",
                shown,
                r#"an object such as {"Type": "vxlan"}"#,
            ));
        };
        let mut options = BTreeMap::new();
        for (name, raw) in members.iter() {
            let value: Value = serde_json::from_str(raw.get())
                .map_err(|_| refused(&key(name), "too deeply nested", "a plain value"))?;
            options.insert(name.to_ascii_lowercase(), value);
        }
        let expected = format!(
            "one of {}",
            BackendType::KNOWN.map(|t| t.to_string()).join(", ")
        );
        let kind = match options.remove("type") {
            Some(Value::String(name)) if !name.is_empty() => BackendType::parse(&name),
            Some(other) => return Err(refused(&key("Type"), other, expected)),
            None => {
                return Err(ConfigError::Missing {
                    key: key("Type"),
                    expected,
                });
            }
        };
        Ok(BackendConfig { kind, options })
    }

    /// The number under `name`, `default` where there is none.
    ///
    /// # Errors
    /// Not a whole number within `range`.
    pub fn u32(
        &self,
        name: &str,
        default: u32,
        range: RangeInclusive<u32>,
    ) -> Result<u32, ConfigError> {
        let Some(value) = self.option(name) else {
            return Ok(default);
        };
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        number.filter(|n| range.contains(n)).ok_or_else(|| {
            let expected = format!("a whole number from {} to {}", range.start(), range.end());
            refused(&key(name), value, expected)
        })
    }

    /// [`BackendConfig::u32`] for 16 bits: ports.
    ///
    /// # Errors
    /// Not a whole number within `range`.
    pub fn u16(
        &self,
        name: &str,
        default: u16,
        range: RangeInclusive<u16>,
    ) -> Result<u16, ConfigError> {
        let wide = u32::from(*range.start())..=u32::from(*range.end());
        let number = self.u32(name, u32::from(default), wide)?;
        Ok(u16::try_from(number).unwrap_or(default))
    }

    /// The boolean under `name`, `default` where there is none.
    ///
    /// # Errors
    /// Neither `true` nor `false`.
    pub fn bool(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        match self.option(name) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(refused(&key(name), other, "true or false")),
        }
    }

    /// Returns the one of `names` that is the value of `name`, `default` where there is none.
    ///
    /// # Errors
    /// None of `names`.
    pub fn choice<'a>(
        &self,
        name: &str,
        default: &'a str,
        names: &[&'a str],
    ) -> Result<&'a str, ConfigError> {
        let Some(value) = self.option(name) else {
            return Ok(default);
        };
        let found = names.iter().find(|n| value.as_str() == Some(n));
        let expected = || format!("one of {}", names.join(", "));
        found
            .copied()
            .ok_or_else(|| refused(&key(name), value, expected()))
    }

    /// Has `name` say `value`, whatever it said before.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.options.insert(name.to_ascii_lowercase(), value.into());
    }

    /// Returns it as JSON text, as the configuration would hold it. Some values are secret.
    pub fn to_json(&self) -> String {
        let mut members = serde_json::Map::new();
        members.insert("Type".into(), self.kind.as_str().into());
        let options = self.options.iter();
        members.extend(options.map(|(name, value)| (name.clone(), value.clone())));
        Value::Object(members).to_string()
    }

    /// Reads what [`BackendConfig::to_json`] wrote.
    ///
    /// # Errors
    /// It is not the `Backend` of a configuration.
    pub fn from_json(json: &str) -> Result<BackendConfig, ConfigError> {
        let whole = format!(r#"{{"Backend":{json}}}"#);
        BackendConfig::read(&serde_json::from_str(&whole)?)
    }

    /// The text under `name`, if any.
    ///
    /// # Errors
    /// Not a string. The message names its type and not its value, which may be a secret.
    pub fn string(&self, name: &str) -> Result<Option<&str>, ConfigError> {
        match self.option(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(refused(&key(name), type_name(other), "a string")),
        }
    }

    /// The names of the options that are none of `known`, as `Backend.name` in lower case, to be
    /// warned of.
    pub fn unknown(&self, known: &[&str]) -> Vec<String> {
        let names = self.options.keys();
        let unknown = names.filter(|name| !known.iter().any(|k| k.eq_ignore_ascii_case(name)));
        unknown.map(|name| key(name)).collect()
    }

    fn option(&self, name: &str) -> Option<&Value> {
        self.options.get(&name.to_ascii_lowercase())
    }
}

/// How an option is named in messages.
fn key(name: &str) -> String {
    format!("Backend.{name}")
}
