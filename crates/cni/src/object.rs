//! A JSON object of which we know a few keys and leave all others alone.
//!
//! Values stay the text they were: numbers of any size and keys of any kind reach the delegate as the
//! administrator wrote them, in that order. Depth costs nothing, because nothing is descended into.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

/// A JSON object in the order it was written.
#[derive(Clone, Debug, Default)]
pub struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    /// Returns the value of `key`, as text. As with Go's decoder, upper and lower case are the same, and of a key that was
    /// written twice the later value counts.
    pub fn get(&self, key: &str) -> Option<&RawValue> {
        self.all(key).next_back()
    }

    /// Returns all values of `key`, in the order they were written.
    pub fn all(&self, key: &str) -> impl DoubleEndedIterator<Item = &RawValue> {
        self.0
            .iter()
            .filter(move |(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| &**value)
    }

    /// Returns the keys, as they were written.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Appends the keys of another object, which count more than equal ones that are there.
    pub fn extend(&mut self, other: Object) {
        self.0.extend(other.0);
    }

    /// Removes `key`.
    pub fn remove(&mut self, key: &str) {
        self.0.retain(|(name, _)| !name.eq_ignore_ascii_case(key));
    }

    /// Whether `key` is there, with whatever value.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The value of `key`, decoded. A key that is absent or `null` is `None`.
    ///
    /// # Errors
    /// The decoder's, where the value is something else than a `T`.
    pub fn decode<'a, T: serde::Deserialize<'a>>(
        &'a self,
        key: &str,
    ) -> Result<Option<T>, serde_json::Error> {
        self.get(key)
            .map_or(Ok(None), |value| serde_json::from_str(value.get()))
    }

    /// Sets `key`, in its old place if it has one, else at the end. Other spellings of it and earlier values are removed:
    /// a decoder may merge an object with an earlier one of the same key.
    pub fn put(&mut self, key: &str, value: Box<RawValue>) {
        let is = |name: &str| name.eq_ignore_ascii_case(key);
        let Some(place) = self.0.iter().rposition(|(name, _)| is(name)) else {
            self.0.push((key.to_owned(), value));
            return;
        };
        if let Some(pair) = self.0.get_mut(place) {
            *pair = (key.to_owned(), value);
        }
        let mut at = 0;
        self.0.retain(|(name, _)| {
            at += 1;
            at > place || !is(name)
        });
    }

    /// [`Object::put`] of a value of ours.
    ///
    /// # Errors
    /// The encoder's, which no value that is made here can cause.
    pub fn set(
        &mut self,
        key: &str,
        value: &(impl Serialize + ?Sized),
    ) -> Result<(), serde_json::Error> {
        serde_json::value::to_raw_value(value).map(|raw| self.put(key, raw))
    }

    /// [`Object::set`] unless the key is there.
    ///
    /// # Errors
    /// As for [`Object::set`].
    pub fn set_default(
        &mut self,
        key: &str,
        value: &(impl Serialize + ?Sized),
    ) -> Result<(), serde_json::Error> {
        if self.has(key) {
            Ok(())
        } else {
            self.set(key, value)
        }
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Object(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::Object;

    fn parse(text: &str) -> Object {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_not_ours_keeps_its_text_and_its_place() {
        let text =
            r#"{"z":1e400,"a":123456789012345678901234567890,"":{"k":1,"k":2},"m":"\u00e9"}"#;
        assert_eq!(serde_json::to_string(&parse(text)).unwrap(), text);
    }

    #[test]
    fn a_key_keeps_its_place_and_the_later_of_two_counts() {
        let mut object = parse(r#"{"a":1,"b":2,"A":3}"#);
        object.set("b", "x").unwrap();
        object.set_default("a", &9).unwrap();
        object.set_default("c", &9).unwrap();
        assert_eq!(
            serde_json::to_string(&object).unwrap(),
            r#"{"a":1,"b":"x","A":3,"c":9}"#
        );
        assert_eq!(object.decode("a").unwrap(), Some(3));
        object.set("a", &4).unwrap();
        object.remove("B");
        assert_eq!(serde_json::to_string(&object).unwrap(), r#"{"a":4,"c":9}"#);
    }

    #[test]
    fn depth_does_not_matter() {
        let deep = format!(r#"{{"k":{}{}}}"#, "[".repeat(300_000), "]".repeat(300_000));
        assert_eq!(serde_json::to_string(&parse(&deep)).unwrap(), deep);
    }
}
