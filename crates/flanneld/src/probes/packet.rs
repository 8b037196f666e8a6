//! Probes on the wire: a header of 12 bytes, and for probes of full size a pattern that both ends can compute.
//!
//! | byte | request | answer |
//! |---|---|---|
//! | 0 | version, 1 | the same |
//! | 1 | flags | the request's, with [`ANSWER`] |
//! | 2, 3 | 0 | low half of the number of the last overlay request that the answering node received from the asking one |
//! | 4 to 11 | a number that nobody can guess | the same |
//! | 12 and more | the pattern that follows from the number | the same, unless the request asked for a brief answer |
//!
//! An answer is never longer than its request: a forged source address amplifies nothing.

/// The version of the format.
const VERSION: u8 = 1;

/// Bytes of the header, and of the shortest probe.
pub const HEADER: usize = 12;

/// Bytes of the longest probe that is answered.
pub const LONGEST: usize = 65_507;

/// It is an answer.
const ANSWER: u8 = 1;
/// The answer is to be the header alone.
const BRIEF: u8 = 2;
/// The answer is to have no UDP checksum, as the request has none.
const UNCHECKED: u8 = 4;
/// What followed the request's header was not the pattern.
const CORRUPT: u8 = 8;

/// What a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// An answer that is the header alone.
    pub brief: bool,
    /// An answer without a UDP checksum.
    pub unchecked: bool,
}

/// A datagram that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram {
    /// Somebody asks.
    Request {
        /// Its number.
        nonce: u64,
        /// What it asks for.
        wish: Wish,
        /// Bytes of the whole datagram.
        len: usize,
        /// The pattern arrived unchanged.
        intact: bool,
    },
    /// Somebody answers.
    Answer {
        /// The request's number.
        nonce: u64,
        /// Low half of the number of the last overlay request that the other node received from this one; 0: none.
        seen: u16,
        /// The pattern arrived unchanged, there and back.
        intact: bool,
    },
}

/// Returns the low half of a number, never 0.
pub fn low(nonce: u64) -> u16 {
    (nonce as u16).max(1)
}

fn pattern(nonce: u64, at: usize) -> u8 {
    nonce.rotate_left((at as u32).wrapping_mul(8)) as u8 ^ (at as u8)
}

fn datagram(flags: u8, seen: u16, nonce: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len.max(HEADER));
    bytes.extend([VERSION, flags]);
    bytes.extend(seen.to_be_bytes());
    bytes.extend(nonce.to_be_bytes());
    bytes.extend((HEADER..len).map(|at| pattern(nonce, at)));
    bytes
}

/// Returns a request of `len` bytes.
pub fn request(nonce: u64, len: usize, wish: Wish) -> Vec<u8> {
    let brief = if wish.brief { BRIEF } else { 0 };
    let unchecked = if wish.unchecked { UNCHECKED } else { 0 };
    datagram(brief | unchecked, 0, nonce, len.min(LONGEST))
}

/// Returns the answer to a request of `len` bytes. `seen` is 0 if no overlay request is known.
pub fn answer(nonce: u64, wish: Wish, len: usize, intact: bool, seen: u16) -> Vec<u8> {
    let unchecked = if wish.unchecked { UNCHECKED } else { 0 };
    let corrupt = if intact { 0 } else { CORRUPT };
    let len = if wish.brief { HEADER } else { len };
    datagram(ANSWER | unchecked | corrupt, seen, nonce, len)
}

/// Reads a datagram; `None` if it is no probe of this version.
pub fn parse(bytes: &[u8]) -> Option<Datagram> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let [version, flags, seen_high, seen_low, nonce @ ..] = *header;
    if version != VERSION {
        return None;
    }
    let nonce = u64::from_be_bytes(nonce);
    let mut expected = (HEADER..).map(|at| pattern(nonce, at));
    let intact = rest.iter().all(|byte| expected.next() == Some(*byte));
    Some(if flags & ANSWER == 0 {
        Datagram::Request {
            nonce,
            wish: Wish {
                brief: flags & BRIEF != 0,
                unchecked: flags & UNCHECKED != 0,
            },
            len: bytes.len(),
            intact,
        }
    } else {
        Datagram::Answer {
            nonce,
            seen: u16::from_be_bytes([seen_high, seen_low]),
            intact: intact && flags & CORRUPT == 0,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_sent_is_read_back_and_no_answer_is_longer() {
        for (len, brief, unchecked) in [
            (HEADER, false, false),
            (1400, false, true),
            (1400, true, false),
            (70_000, false, false),
        ] {
            let wish = Wish { brief, unchecked };
            let nonce = 0x0123_4567_89ab_cdef;
            let mut sent = request(nonce, len, wish);
            assert_eq!(sent.len(), len.min(LONGEST));
            let read = Datagram::Request {
                nonce,
                wish,
                len: sent.len(),
                intact: true,
            };
            assert_eq!(parse(&sent), Some(read));
            let back = answer(nonce, wish, sent.len(), true, 7);
            assert!(back.len() <= sent.len());
            let read = Datagram::Answer {
                nonce,
                seen: 7,
                intact: true,
            };
            assert_eq!(parse(&back), Some(read));
            if len > HEADER {
                sent[700] ^= 1;
                let changed = parse(&sent);
                assert!(matches!(
                    changed,
                    Some(Datagram::Request { intact: false, .. })
                ));
                let back = answer(nonce, wish, sent.len(), false, 0);
                let read = parse(&back);
                assert!(matches!(read, Some(Datagram::Answer { intact: false, .. })));
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(Datagram::Request { nonce, wish, len, intact }) = parse(&bytes) {
                prop_assert!(answer(nonce, wish, len, intact, 1).len() <= bytes.len());
            }
        }
    }
}
