//! The list of all Nodes, taken apart as it arrives: one Node is in memory, not the list.

mod json;
mod piece;
mod protobuf;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::body::Encoding;
use super::wire::{Fields, Malformed};
use piece::{LARGEST, Piece, TOO_LARGE};

/// Takes a list apart. Append what arrives to [`List::buffer`]; [`List::next`] returns the range of the
/// next Node in it.
#[derive(Debug)]
pub(super) struct List {
    pub buffer: Vec<u8>,
    form: Form,
    version: String,
}

#[derive(Debug)]
enum Form {
    Protobuf(protobuf::Scanner),
    Json(json::Scanner),
}

impl List {
    pub(super) fn new(encoding: Encoding) -> List {
        List {
            buffer: Vec::new(),
            form: match encoding {
                Encoding::Protobuf => Form::Protobuf(protobuf::Scanner::default()),
                Encoding::Json => Form::Json(json::Scanner::default()),
            },
            version: String::new(),
        }
    }

    /// Returns the list's resource version, once it has arrived.
    pub(super) fn resource_version(&self) -> &str {
        &self.version
    }

    /// Returns the range of the next Node in [`List::buffer`]; `None`: append more, or call
    /// [`List::finish`] at the end.
    pub(super) fn next(&mut self) -> Result<Option<Range<usize>>, Malformed> {
        loop {
            let piece = match &mut self.form {
                Form::Protobuf(scanner) => scanner.next(&self.buffer)?,
                Form::Json(scanner) => scanner.next(&self.buffer)?,
            };
            match piece {
                Some(Piece::Item(range)) => return Ok(Some(range)),
                Some(Piece::Meta(range)) => {
                    let meta = self.buffer.get(range).unwrap_or_default();
                    self.version = match &self.form {
                        Form::Protobuf(_) => protobuf_version(meta)?,
                        Form::Json(_) => json_version(meta)?,
                    };
                }
                None => {
                    self.compact();
                    return if self.buffer.len() > LARGEST {
                        Err(TOO_LARGE)
                    } else {
                        Ok(None)
                    };
                }
            }
        }
    }

    /// Checks at the end that the list is complete.
    pub(super) fn finish(&self) -> Result<(), Malformed> {
        let whole = match &self.form {
            Form::Protobuf(scanner) => scanner.is_done(),
            Form::Json(scanner) => scanner.is_done(),
        };
        if whole && !self.version.is_empty() {
            Ok(())
        } else {
            Err(Malformed("a list that is cut off"))
        }
    }

    /// Moves what is not read yet to the front of the buffer.
    fn compact(&mut self) {
        let done = match &mut self.form {
            Form::Protobuf(scanner) => scanner.rebase(),
            Form::Json(scanner) => scanner.rebase(),
        };
        self.buffer.drain(..done.min(self.buffer.len()));
    }
}

fn protobuf_version(meta: &[u8]) -> Result<String, Malformed> {
    let (mut fields, mut version) = (Fields(meta), String::new());
    while let Some((number, value)) = fields.next()? {
        if number == 2 {
            version = value.text().into();
        }
    }
    Ok(version)
}

fn json_version(meta: &[u8]) -> Result<String, Malformed> {
    #[derive(serde::Deserialize)]
    struct ListMeta {
        #[serde(rename = "resourceVersion", default)]
        version: String,
    }
    let meta: ListMeta =
        serde_json::from_slice(meta).map_err(|_| Malformed("a list whose metadata is none"))?;
    Ok(meta.version)
}
