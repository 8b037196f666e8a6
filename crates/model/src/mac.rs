//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// An Ethernet address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// Text that is no Ethernet address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no MAC address of the form 12:34:56:78:9a:bc")]
pub struct BadMac(String);

impl Mac {
    /// Fit to be a device's address: neither multicast nor all zeros.
    pub fn is_unicast(&self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl FromStr for Mac {
    type Err = BadMac;
    fn from_str(s: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(s.into());
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let mut mac = [0; 6];
        if s.len() != 17 {
            return Err(bad());
        }
        for (byte, part) in mac.iter_mut().zip(s.as_bytes().chunks(3)) {
            let ends = part.get(2).is_none_or(|end| matches!(end, b':' | b'-'));
            let digits = (digit(part[0]), digit(part[1]));
            let ((Some(high), Some(low)), true) = (digits, ends) else {
                return Err(bad());
            };
            *byte = high << 4 | low;
        }
        Ok(Mac(mac))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
