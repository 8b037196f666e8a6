//! JSON objects of others as Go's decoder reads them, since upstream's nodes do: names without regard to case, and of
//! a name that is written twice the later value.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::MapDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Decodes an object of which only `keys` matter, spelled as `T` names them. A value of `null` counts as absent.
///
/// `T` must deny unknown fields: then what it takes as it is was written as flannel writes it, and is read in one
/// pass without any memory of its own. Everything else is taken apart first.
///
/// # Errors
/// The decoder's, for what is not JSON, no object, or no `T`.
pub fn decode<'a, T: Deserialize<'a>>(
    json: &'a [u8],
    keys: &[&'static str],
) -> Result<T, serde_json::Error> {
    // A name that is unknown, written in another way or written twice is an error here. A list would be taken for the
    // fields in their order.
    if json.trim_ascii_start().starts_with(b"{")
        && let Ok(plain) = serde_json::from_slice(json)
    {
        return Ok(plain);
    }
    let Members(all) = serde_json::from_slice(json)?;
    let latest = |key: &'static str| {
        let mut named = all
            .iter()
            .rev()
            .filter(|(name, _)| name.eq_ignore_ascii_case(key));
        let found = named.find(|(_, value)| value.get() != "null");
        found.map(|(_, value)| (key, *value))
    };
    T::deserialize(MapDeserializer::new(
        keys.iter().filter_map(|key| latest(key)),
    ))
}

/// The members of an object in the order they are written, as text.
struct Members<'a>(Vec<(Text<'a>, &'a RawValue)>);

/// A string, borrowed where nothing in it is escaped.
#[derive(Serialize, Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Data<'a> {
        #[serde(rename = "VNI", default)]
        vni: Option<u32>,
        #[serde(rename = "VtepMAC", borrow)]
        mac: Cow<'a, str>,
        #[serde(rename = "Raw", default)]
        raw: Option<Box<RawValue>>,
    }

    fn read(json: &str) -> Result<(Option<u32>, String, Option<String>), String> {
        let data: Data<'_> = decode(json.as_bytes(), &["VNI", "VtepMAC", "Raw"])
            .map_err(|error| error.to_string())?;
        let raw = data.raw.map(|raw| raw.get().to_owned());
        Ok((data.vni, data.mac.into_owned(), raw))
    }

    #[test]
    fn case_and_order_are_go_s() {
        let all = |vni, raw: Option<&str>| Ok((vni, "m".to_owned(), raw.map(str::to_owned)));
        for (json, expected) in [
            (
                r#"{"VNI":1,"VtepMAC":"m","Raw":{"a":[1]}}"#,
                all(Some(1), Some(r#"{"a":[1]}"#)),
            ),
            (
                r#"{"vni":1,"vtepmac":"x","VTEPMAC":"m","New":{}}"#,
                all(Some(1), None),
            ),
            (
                r#"{"VNI":2,"vni":3,"VtepM\u0041C":"m"}"#,
                all(Some(3), None),
            ),
            (r#"{"VNI":2,"vni":null,"VtepMAC":"m"}"#, all(Some(2), None)),
            (r#"{"VNI":2,"VNI":3,"VtepMAC":"m"}"#, all(Some(3), None)),
            (r#"{"VNI":2,"VNI":null,"VtepMAC":"m"}"#, all(Some(2), None)),
            (r#"{"VNI":2,"VtepMAC":"\u006d"}"#, all(Some(2), None)),
            (r#"{"VNI":null,"VtepMAC":"m","Raw":null}"#, all(None, None)),
        ] {
            assert_eq!(read(json), expected, "{json}");
        }
        for json in [
            "",
            "[]",
            r#"[1,"m",{}]"#,
            "null",
            "7",
            "{",
            r#"{"VNI":1}"#,
            r#"{"VNI":-1,"VtepMAC":"m"}"#,
            r#"{"VNI":1.0,"VtepMAC":"m"}"#,
            r#"{"VNI":1e400,"VtepMAC":"m"}"#,
            r#"{"VtepMAC":null}"#,
            r#"{"VtepMAC":"m"} x"#,
        ] {
            assert!(read(json).is_err(), "{json}");
        }
        let deep = format!(
            r#"{{"Raw":{}{},"VtepMAC":"m"}}"#,
            "[".repeat(500_000),
            "]".repeat(500_000)
        );
        assert!(read(&deep).is_ok());
    }
}
