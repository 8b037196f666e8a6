//! A list in JSON: an object with `metadata` and `items`. Only brackets and quotes are looked at to
//! find where each of them begins and ends; the text between them is checked when it is read.

use super::piece::Piece;
use crate::kube::wire::Malformed;

/// Walks over a list as it arrives.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// How far the buffer was scanned.
    at: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// Where the text or value begins that must arrive completely.
    start: Option<usize>,
    /// The member of the outermost object that is being scanned.
    member: Member,
    done: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Member {
    #[default]
    Other,
    Metadata,
    Items,
}

impl Member {
    fn named(name: &[u8]) -> Member {
        match name {
            b"metadata" => Member::Metadata,
            b"items" => Member::Items,
            _ => Member::Other,
        }
    }

    /// The depth of the objects to find; none in other members.
    fn level(&self) -> u32 {
        match self {
            Member::Metadata => 1,
            Member::Items => 2,
            Member::Other => u32::MAX,
        }
    }
}

impl Scanner {
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Returns how much of the buffer is no longer needed. It is about to be removed.
    pub(super) fn rebase(&mut self) -> usize {
        let done = self.start.unwrap_or(self.at);
        self.start = self.start.map(|_| 0);
        self.at -= done;
        done
    }

    pub(super) fn next(&mut self, buffer: &[u8]) -> Result<Option<Piece>, Malformed> {
        while let Some(byte) = buffer.get(self.at) {
            let here = self.at;
            self.at += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' if self.in_string => {
                    self.in_string = false;
                    if self.depth == 1 {
                        let name = self.start.take().and_then(|start| buffer.get(start..here));
                        self.member = Member::named(name.unwrap_or_default());
                    }
                }
                _ if self.in_string => {}
                b'"' => {
                    self.in_string = true;
                    if self.depth == 1 {
                        self.start = Some(self.at);
                    }
                }
                b'{' | b'[' => {
                    if self.depth == self.member.level() {
                        self.start = Some(here);
                    }
                    self.depth += 1;
                }
                b'}' | b']' => {
                    self.depth = self
                        .depth
                        .checked_sub(1)
                        .ok_or(Malformed("a list with a bracket too many"))?;
                    self.done |= self.depth == 0;
                    let range = self
                        .start
                        .take_if(|_| self.depth == self.member.level())
                        .map(|start| start..self.at);
                    if let Some(range) = range {
                        return Ok(Some(match self.member {
                            Member::Items => Piece::Item(range),
                            _ => Piece::Meta(range),
                        }));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }
}
