//! A list in protobuf: `k8s\0`, an envelope whose field 2 is the list, in which field 1 is the
//! metadata and each field 2 a Node.

use super::piece::{LARGEST, Piece, TOO_LARGE};
use crate::kube::wire::{MAGIC, Malformed};

/// Walks over a list as it arrives.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    state: State,
    /// The buffer before this is no longer needed.
    at: usize,
}

/// What comes next.
#[derive(Debug, Default)]
enum State {
    #[default]
    Magic,
    /// A field of the envelope.
    Envelope,
    /// A field of the list, of which so many bytes are left.
    List(u64),
    /// So many bytes of no interest; then the rest of the list, if it had begun.
    Skip(u64, Option<u64>),
    /// After the list: everything is ignored.
    Done,
}

/// How a field begins.
struct Start {
    number: u64,
    length: u64,
    /// Bytes of number and length.
    size: usize,
}

impl Scanner {
    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done | State::List(0))
    }

    /// Returns how much of the buffer is no longer needed. It is about to be removed.
    pub(super) fn rebase(&mut self) -> usize {
        std::mem::take(&mut self.at)
    }

    pub(super) fn next(&mut self, buffer: &[u8]) -> Result<Option<Piece>, Malformed> {
        loop {
            let rest = buffer.get(self.at..).unwrap_or_default();
            match &mut self.state {
                State::Magic => {
                    let Some(start) = rest.get(..MAGIC.len()) else {
                        return Ok(None);
                    };
                    if start != MAGIC {
                        return Err(Malformed("not a list of Kubernetes in protobuf"));
                    }
                    self.at += MAGIC.len();
                    self.state = State::Envelope;
                }
                State::Envelope => {
                    let Some(field) = Start::read(rest)? else {
                        return Ok(None);
                    };
                    self.at += field.size;
                    self.state = match field.number {
                        2 => State::List(field.length),
                        _ => State::Skip(field.length, None),
                    };
                }
                State::List(0) => self.state = State::Done,
                State::List(left) => {
                    let Some(field) = Start::read(rest)? else {
                        return Ok(None);
                    };
                    let whole = field.length.saturating_add(field.size as u64);
                    let after = left
                        .checked_sub(whole)
                        .ok_or(Malformed("a list with a field longer than itself"))?;
                    if !matches!(field.number, 1 | 2) {
                        self.at += field.size;
                        self.state = State::Skip(field.length, Some(after));
                        continue;
                    }
                    let whole = usize::try_from(whole).map_err(|_| TOO_LARGE)?;
                    if whole > LARGEST {
                        return Err(TOO_LARGE);
                    }
                    if rest.len() < whole {
                        return Ok(None);
                    }
                    let range = self.at + field.size..self.at + whole;
                    self.at += whole;
                    self.state = State::List(after);
                    return Ok(Some(match field.number {
                        1 => Piece::Meta(range),
                        _ => Piece::Item(range),
                    }));
                }
                State::Skip(left, then) => {
                    let there = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    self.at += there;
                    *left -= there as u64;
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.state = then.map_or(State::Envelope, State::List);
                }
                State::Done => {
                    self.at = buffer.len();
                    return Ok(None);
                }
            }
        }
    }
}

impl Start {
    /// `None` until all of it has arrived.
    fn read(bytes: &[u8]) -> Result<Option<Start>, Malformed> {
        let mut rest = bytes;
        let Some(key) = varint(&mut rest)? else {
            return Ok(None);
        };
        let Some(second) = varint(&mut rest)? else {
            return Ok(None);
        };
        let size = bytes.len() - rest.len();
        match key & 7 {
            // No number is needed: a field without content.
            0 => Ok(Some(Start {
                number: u64::MAX,
                length: 0,
                size,
            })),
            2 => Ok(Some(Start {
                number: key >> 3,
                length: second,
                size,
            })),
            _ => Err(Malformed("a list with a field that it cannot have")),
        }
    }
}

/// Returns the number at the start of `bytes` and advances them past it; `None` if it is cut off.
fn varint(bytes: &mut &[u8]) -> Result<Option<u64>, Malformed> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let Some((byte, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(Some(number));
        }
    }
    Err(Malformed("a list with a number that does not end"))
}
