//! One input from others.

use fastrand::Rng;

/// Longer inputs are cut.
const LONGEST: usize = 64 * 1024;

/// Bytes at which parsers decide.
const BYTES: &[u8] = b"\0\x01\x7f\x80\xff \t\r\n\"'\\/:;,.=&#%$-+_{}[]()0129aAfFnNtT";

/// Texts at which parsers decide.
const TEXTS: &[&str] = &[
    "0",
    "-1",
    "1e309",
    "4294967296",
    "9223372036854775808",
    "18446744073709551616",
    "null",
    "true",
    "{}",
    "[]",
    "\"\"",
    "\\u0000",
    "\\ud800",
    "::",
    "0.0.0.0/0",
    "255.255.255.255/32",
    "::/0",
    "fe80::1%eth0",
    "\u{feff}",
    "\u{202e}",
    "é",
    "\r\n\r\n",
    "[[[[[[[[[[[[[[[[",
    "{\"a\":{\"a\":{\"a\":",
];

/// Returns a mutation of one of `inputs`, of which there is at least one.
pub(crate) fn mutate(inputs: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut input = inputs[rng.usize(..inputs.len())].clone();
    for _ in 0..1 << rng.u32(..4) {
        change(&mut input, inputs, rng);
    }
    input.truncate(LONGEST);
    input
}

fn change(input: &mut Vec<u8>, inputs: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.usize(..=input.len());
    match rng.u32(..12) {
        0 => flip(input, rng),
        1 => set(input, rng.u8(..), rng),
        2 => set(input, BYTES[rng.usize(..BYTES.len())], rng),
        3 => input.insert(at, BYTES[rng.usize(..BYTES.len())]),
        4 => insert(input, at, TEXTS[rng.usize(..TEXTS.len())].as_bytes()),
        5 => {
            let part = part(input, rng).to_vec();
            insert(input, at, &part);
        }
        6 => {
            let other = &inputs[rng.usize(..inputs.len())];
            let part = part(other, rng).to_vec();
            insert(input, at, &part);
        }
        7 | 8 => {
            let (from, len) = span(input.len(), rng);
            input.drain(from..from + len);
        }
        9 => input.truncate(at),
        10 => number(input, rng),
        _ => {
            let (from, len) = span(input.len(), rng);
            let with = TEXTS[rng.usize(..TEXTS.len())];
            input.splice(from..from + len.min(8), with.bytes());
        }
    }
}

fn flip(input: &mut [u8], rng: &mut Rng) {
    if !input.is_empty() {
        input[rng.usize(..input.len())] ^= 1 << rng.u32(..8);
    }
}

fn set(input: &mut [u8], byte: u8, rng: &mut Rng) {
    if !input.is_empty() {
        input[rng.usize(..input.len())] = byte;
    }
}

fn insert(input: &mut Vec<u8>, at: usize, part: &[u8]) {
    input.splice(at..at, part.iter().copied());
}

/// A part of a length: mostly a short one.
fn span(len: usize, rng: &mut Rng) -> (usize, usize) {
    let from = rng.usize(..=len);
    let most = (len - from).min(1 << rng.u32(..10));
    (from, rng.usize(..=most))
}

fn part<'a>(input: &'a [u8], rng: &mut Rng) -> &'a [u8] {
    let (from, len) = span(input.len(), rng);
    &input[from..from + len]
}

/// Replaces a binary number of 1 to 8 bytes, of either byte order, with one at which parsers decide: lengths, counts.
fn number(input: &mut [u8], rng: &mut Rng) {
    let width = 1 << rng.u32(..4);
    if input.len() < width {
        return;
    }
    let from = rng.usize(..=input.len() - width);
    let place = &mut input[from..from + width];
    let near = i64::from(rng.i8(-4..=4));
    let value = match rng.u32(..4) {
        0 => near,
        1 => i64::from(place[0]) + near,
        2 => (1_i64 << rng.u32(..63)).wrapping_add(near),
        _ => rng.i64(..),
    };
    let bytes = value.to_le_bytes();
    place.copy_from_slice(&bytes[..width]);
    if rng.bool() {
        place.reverse();
    }
}
