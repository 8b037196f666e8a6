//! The contents of a lease's file: the JSON value that etcd would hold, and two more keys that other
//! readers ignore: when the lease was created and when it ends.

use model::LeaseAttrs;
use model::lease::BadAttrs;
use serde::Deserialize;

use crate::lease_value;
use crate::own_lease::{Signature, Value};

/// A lease as stored in its file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub attrs: LeaseAttrs,
    /// Who wrote it, in questions and answers of two nodes.
    pub signature: Option<Signature>,
    /// Milliseconds of the epoch; `None` in files that people write.
    pub created: Option<u64>,
    /// Seconds of the epoch; `None` is a reservation, which does not end.
    pub expires: Option<u64>,
}

#[derive(Deserialize)]
struct Times {
    #[serde(rename = "Created", default)]
    created: Option<u64>,
    #[serde(rename = "Expires", default)]
    expires: Option<u64>,
}

impl Entry {
    pub(super) fn parse(json: &[u8]) -> Result<Entry, BadAttrs> {
        let attrs = LeaseAttrs::from_json(json)?;
        let Times { created, expires } = serde_json::from_slice(json)?;
        Ok(Entry {
            attrs,
            signature: lease_value::signature(json),
            created,
            expires,
        })
    }

    pub(super) fn render(&self) -> String {
        let mut json = lease_value::render(&Value {
            attrs: self.attrs.clone(),
            signature: self.signature,
        });
        // The value is an object and not an empty one, so its last byte is the brace.
        json.pop();
        for (name, time) in [("Created", self.created), ("Expires", self.expires)] {
            if let Some(time) = time {
                json.push_str(&format!(",\"{name}\":{time}"));
            }
        }
        json.push_str("}\n");
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str =
        r#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}"#;

    #[test]
    fn a_file_is_the_value_of_etcd_and_two_times() {
        let text = format!("{VALUE},\"Created\":5000,\"Expires\":77}}\n");
        let entry = Entry::parse(text.as_bytes()).unwrap();
        assert_eq!((entry.created, entry.expires), (Some(5000), Some(77)));
        assert_eq!(entry.render(), text);
        let reservation = Entry::parse(format!("{VALUE}}}").as_bytes()).unwrap();
        assert_eq!((reservation.created, reservation.expires), (None, None));
        assert_eq!(reservation.render(), format!("{VALUE}}}\n"));
    }

    #[test]
    fn half_a_file_is_none() {
        let text = format!("{VALUE},\"Expires\":77}}\n");
        for end in 0..text.len() - 2 {
            assert!(
                Entry::parse(&text.as_bytes()[..end]).is_err(),
                "{end} bytes were taken"
            );
        }
        assert!(Entry::parse(format!("{VALUE},\"Expires\":\"soon\"}}").as_bytes()).is_err());
    }
}
