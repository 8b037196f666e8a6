//! The name of a network device.

use std::fmt;
use std::str::FromStr;

/// A network device's name, 1 to 15 bytes. Small and `Copy`: tens of thousands of objects hold one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName([u8; 16]);

/// A device name that the kernel would refuse.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no device name: 1 to 15 bytes without '/', ':' or white space")]
pub struct BadIfName(String);

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(16);
        std::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }
}

impl FromStr for IfName {
    type Err = BadIfName;
    fn from_str(s: &str) -> Result<Self, BadIfName> {
        let bad = s.is_empty()
            || s.len() > 15
            || s == "."
            || s == ".."
            || s.bytes()
                .any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace());
        if bad {
            return Err(BadIfName(s.into()));
        }
        let mut name = [0; 16];
        name[..s.len()].copy_from_slice(s.as_bytes());
        Ok(IfName(name))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
