//! A lease's value as JSON: what upstream writes and, in questions and their answers, who writes.

use serde::Deserialize;

use crate::own_lease::{Signature, Value, WriterId};

/// Renders a value.
pub(crate) fn render(value: &Value) -> String {
    let mut json = value.attrs.to_json();
    let signed = match value.signature {
        Some(Signature::Claimant(WriterId(id))) => format!(",\"Claimant\":\"{id:016x}\"}}"),
        Some(Signature::Holder(WriterId(id))) => format!(",\"Holder\":\"{id:016x}\"}}"),
        None => return json,
    };
    // The value is an object and not an empty one, so its last byte is the brace.
    json.pop();
    json + &signed
}

/// Reads who wrote a value; `None` if it does not say.
pub(crate) fn signature(json: &[u8]) -> Option<Signature> {
    #[derive(Deserialize)]
    struct Signed<'a> {
        #[serde(rename = "Claimant", default)]
        claimant: Option<&'a str>,
        #[serde(rename = "Holder", default)]
        holder: Option<&'a str>,
    }
    // Nearly every value has none, and is not parsed for it.
    let has = |name: &[u8]| json.windows(name.len()).any(|part| part == name);
    if !has(b"\"Claimant\"") && !has(b"\"Holder\"") {
        return None;
    }
    let signed: Signed<'_> = serde_json::from_slice(json).ok()?;
    let id = |text: Option<&str>| u64::from_str_radix(text?, 16).ok().map(WriterId);
    id(signed.holder)
        .map(Signature::Holder)
        .or_else(|| id(signed.claimant).map(Signature::Claimant))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::LeaseAttrs;

    #[test]
    fn a_signature_reads_back_and_other_readers_ignore_it() {
        let attrs = LeaseAttrs::from_json(br#"{"PublicIP":"10.0.0.1"}"#).unwrap();
        for signature in [
            None,
            Some(Signature::Claimant(WriterId(7))),
            Some(Signature::Holder(WriterId(u64::MAX))),
        ] {
            let attrs = attrs.clone();
            let json = render(&Value { attrs, signature });
            assert_eq!(super::signature(json.as_bytes()), signature);
            let read = LeaseAttrs::from_json(json.as_bytes()).unwrap();
            assert_eq!(signature.is_none(), read.to_json() == json);
        }
        assert_eq!(super::signature(br#"{"Holder":7}"#), None);
        assert_eq!(super::signature(br#"{"Holder":"x""#), None);
    }

    #[test]
    fn fuzzed_signatures() {
        fuzz::run(
            "lease signature",
            &[
                br#"{"PublicIP":"10.0.0.1","Claimant":"0000000000000007"}"#,
                br#"{"PublicIP":"10.0.0.1","Holder":"ffffffffffffffff"}"#,
            ],
            |input| super::signature(input).map(|signature| std::mem::discriminant(&signature)),
        );
    }
}
