//! WireGuard's keys.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A public key. Its text is base64, as `wg` shows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WgKey(pub [u8; 32]);

/// A secret key: a private one, or one that all nodes share. Never shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WgSecret(pub [u8; 32]);

/// A text that is no key. Does not repeat it: it may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not 32 bytes in base64 (44 characters), as `wg genkey` makes them")]
pub struct BadKey;

fn read(text: &str) -> Result<[u8; 32], BadKey> {
    let bytes = STANDARD.decode(text.trim()).map_err(|_| BadKey)?;
    bytes.try_into().map_err(|_| BadKey)
}

impl FromStr for WgKey {
    type Err = BadKey;
    fn from_str(text: &str) -> Result<WgKey, BadKey> {
        read(text).map(WgKey)
    }
}

impl FromStr for WgSecret {
    type Err = BadKey;
    fn from_str(text: &str) -> Result<WgSecret, BadKey> {
        read(text).map(WgSecret)
    }
}

impl WgSecret {
    /// Returns the text of a key file.
    pub fn to_file(&self) -> String {
        STANDARD.encode(self.0)
    }
}

impl fmt::Display for WgKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for WgKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for WgSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_a_secret_is_not_shown() {
        let key = WgKey([7; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        let secret = WgSecret([9; 32]);
        assert_eq!(format!("{}\n", secret.to_file()).parse(), Ok(secret));
        assert!(!format!("{secret:?}").contains('9'));
        for text in ["", "x", "AAAA", &format!("{key}A")] {
            assert_eq!(text.parse::<WgKey>(), Err(BadKey), "{text}");
        }
    }
}
