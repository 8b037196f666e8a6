//! Protobuf, read in place: the fields of a message as slices of it. Fields that are not needed are skipped
//! by their length.

use prost::encoding::{WireType, decode_key, decode_varint};

/// Bytes that are not the expected message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub(super) struct Malformed(pub &'static str);

/// The value of one field.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// Returns the bytes of a string or message; none for a number.
    pub(super) fn bytes(&self) -> &'a [u8] {
        match self {
            Value::Bytes(bytes) => bytes,
            Value::Number(_) => &[],
        }
    }

    /// Returns the value as text; what is not UTF-8 counts as empty.
    pub(super) fn text(&self) -> &'a str {
        std::str::from_utf8(self.bytes()).unwrap_or_default()
    }

    pub(super) fn number(&self) -> u64 {
        match self {
            Value::Number(number) => *number,
            Value::Bytes(_) => 0,
        }
    }
}

/// The fields of a message, in their order.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// Returns the next field's number and value; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (number, kind) =
            decode_key(&mut self.0).map_err(|_| Malformed("a field without a number"))?;
        let value = match kind {
            WireType::Varint => Value::Number(self.varint()?),
            WireType::LengthDelimited => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            WireType::SixtyFourBit => Value::Bytes(self.take(8)?),
            WireType::ThirtyTwoBit => Value::Bytes(self.take(4)?),
            // Kubernetes has no groups.
            WireType::StartGroup | WireType::EndGroup => {
                return Err(Malformed("a group, which there should not be"));
            }
        };
        Ok(Some((number, value)))
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        decode_varint(&mut self.0).map_err(|_| Malformed("a number that is cut off"))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(length).ok();
        let split = length.and_then(|length| self.0.split_at_checked(length));
        let (taken, rest) = split.ok_or(Malformed("a field longer than its message"))?;
        self.0 = rest;
        Ok(taken)
    }
}

/// What precedes each object that Kubernetes encodes as protobuf.
pub(super) const MAGIC: &[u8] = b"k8s\0";

/// Returns the object in an envelope: `k8s\0`, then `Unknown` with the object's bytes in field 2.
pub(super) fn unwrap(enveloped: &[u8]) -> Result<&[u8], Malformed> {
    let unknown = enveloped
        .strip_prefix(MAGIC)
        .ok_or(Malformed("not an object of Kubernetes in protobuf"))?;
    let mut fields = Fields(unknown);
    let mut raw: &[u8] = &[];
    while let Some((number, value)) = fields.next()? {
        if number == 2 {
            raw = value.bytes();
        }
    }
    Ok(raw)
}
