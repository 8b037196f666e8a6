//! When a certificate ends.

use std::time::{SystemTime, UNIX_EPOCH};

use p521::pkcs8::der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use p521::pkcs8::der::{Decode, Result, SliceReader, Tag, TagNumber};

/// Returns the end of a certificate's validity; `None` if it cannot be read.
pub(super) fn not_after(certificate: &[u8]) -> Option<SystemTime> {
    read(certificate).ok()
}

/// Reads as far as the validity (RFC 5280, 4.1): version, serial number, algorithm, issuer, validity.
fn read(certificate: &[u8]) -> Result<SystemTime> {
    let certificate = AnyRef::from_der(certificate)?;
    let mut outer = SliceReader::new(certificate.value())?;
    let body = AnyRef::decode(&mut outer)?;
    let mut fields = SliceReader::new(body.value())?;
    let mut field = AnyRef::decode(&mut fields)?;
    let is_version = matches!(
        field.header().tag(),
        Tag::ContextSpecific {
            number: TagNumber(0),
            ..
        }
    );
    for _ in 0..if is_version { 4 } else { 3 } {
        field = AnyRef::decode(&mut fields)?;
    }
    let mut validity = SliceReader::new(field.value())?;
    AnyRef::decode(&mut validity)?;
    let end = AnyRef::decode(&mut validity)?;
    let since_epoch = if end.header().tag() == Tag::UtcTime {
        end.decode_as::<UtcTime>()?.to_unix_duration()
    } else {
        end.decode_as::<GeneralizedTime>()?.to_unix_duration()
    };
    Ok(UNIX_EPOCH + since_epoch)
}
