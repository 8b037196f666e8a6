//! Where a configuration to be written comes from.

use std::fs::File;
use std::io::{self, Read};

use anyhow::{Context, Result, bail};

/// etcd takes no larger value by default, and no configuration is.
const LARGEST: u64 = 1 << 20;

/// Reads a file, standard input (`-`), or takes the JSON that was written on the command line.
///
/// # Errors
/// It cannot be read, is too long to be stored or is no text.
pub(crate) fn read(source: &str) -> Result<String> {
    let (name, bytes) = match source {
        "-" => ("standard input", read_some(io::stdin().lock())),
        json if json.trim_start().starts_with('{') => return Ok(json.trim().to_owned()),
        path => (path, File::open(path).and_then(read_some)),
    };
    let bytes = bytes.with_context(|| name.to_owned())?;
    if bytes.len() as u64 > LARGEST {
        bail!("{name}: more than {LARGEST} bytes are no network configuration");
    }
    let text = String::from_utf8(bytes).with_context(|| name.to_owned())?;
    Ok(text.trim().to_owned())
}

fn read_some(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(LARGEST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
