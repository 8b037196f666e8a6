//! Mutated inputs for parsers, in ordinary tests: a parser may refuse an input, but it must not panic, hang or allocate
//! without bound.
//!
//! ```
//! # let _ = "";
//! fuzz::run("port", &[b"80", b"65535"], |input| {
//!     str::from_utf8(input).is_ok_and(|text| text.parse::<u16>().is_ok())
//! });
//! ```
//!
//! What the closure returns is the parser's verdict: an input with a verdict that was not seen before is kept and
//! mutated further. The inputs of a run follow from its seed, so that the same run finds the same.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `FUZZ_SECONDS` | how long each parser is tried | 1 |
//! | `FUZZ_SEED` | which inputs | 1 |
//! | `FUZZ_INPUT` | this input alone, in hexadecimal | |

mod mutate;

use std::collections::HashSet;
use std::fmt::Write;
use std::hash::{BuildHasher, Hash, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use fastrand::Rng;
use mutate::mutate;

/// Inputs that are kept for their verdict.
const MOST_KEPT: usize = 2000;
/// One input may take so long, on a busy machine and in a development build.
const SLOWEST: Duration = Duration::from_secs(20);
/// Inputs between two looks at the clock.
const BATCH: u64 = 64;

/// Calls `parse` with mutations of `seeds` for `FUZZ_SECONDS`, after each of the seeds themselves. Prints the number of
/// calls.
///
/// # Panics
/// If `parse` panics, or takes very long: with the shortest such input that was found, and how to repeat it.
#[allow(clippy::print_stdout, reason = "the figure is what a run is for")]
pub fn run<V: Hash>(name: &str, seeds: &[&[u8]], parse: impl Fn(&[u8]) -> V) {
    if let Some(input) = variable("FUZZ_INPUT") {
        parse(&from_hex(&input));
        return;
    }
    let number = |name, default| {
        variable(name)
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let mut rng = Rng::with_seed(number("FUZZ_SEED", 1));
    let seconds = number("FUZZ_SECONDS", 1);
    let mut kept: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.to_vec()).collect();
    kept.push(Vec::new());
    let hasher = RandomState::new();
    let mut verdicts = HashSet::new();
    for seed in &kept {
        verdicts.insert(hasher.hash_one(attempt(name, seed, &parse)));
    }
    let mut runs = kept.len() as u64;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for _ in 0..BATCH {
            let input = mutate(&kept, &mut rng);
            let verdict = hasher.hash_one(attempt(name, &input, &parse));
            if verdicts.insert(verdict) && kept.len() < MOST_KEPT {
                kept.push(input);
            }
        }
        runs += BATCH;
    }
    println!("fuzz: {name}: {runs} inputs, {} verdicts", verdicts.len());
}

/// Calls `parse` once; if it panics, finds a shorter input with which it does so, too.
fn attempt<V>(name: &str, input: &[u8], parse: &impl Fn(&[u8]) -> V) -> V {
    let began = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| parse(input)));
    let took = began.elapsed();
    let complaint = match outcome {
        Ok(verdict) if took < SLOWEST => return verdict,
        Ok(_) => Box::new(format!("it took {took:?}")) as Box<dyn std::any::Any + Send>,
        Err(panic) => panic,
    };
    let shortest = if took < SLOWEST {
        shrink(input, &|input| {
            catch_unwind(AssertUnwindSafe(|| parse(input))).is_err()
        })
    } else {
        input.to_vec()
    };
    report(name, &shortest);
    resume_unwind(complaint)
}

#[allow(clippy::print_stderr, reason = "a finding")]
fn report(name: &str, input: &[u8]) {
    eprintln!(
        "fuzz: {name} fails on {:?}\nrepeat it with FUZZ_INPUT={}",
        String::from_utf8_lossy(input),
        to_hex(input)
    );
}

/// Removes parts of `input`, ever smaller ones, as long as it still fails.
fn shrink(input: &[u8], fails: &impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut input = input.to_vec();
    let mut part = input.len() / 2;
    while part > 0 {
        let mut from = 0;
        while from + part <= input.len() {
            let mut shorter = input.clone();
            shorter.drain(from..from + part);
            if fails(&shorter) {
                input = shorter;
            } else {
                from += part;
            }
        }
        part /= 2;
    }
    input
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|digit| digit.to_digit(16))
        .filter_map(|digit| u8::try_from(digit).ok())
        .collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A parser that fails on one condition which only a mutation reaches in steps.
    #[allow(clippy::panic, reason = "it is there to be found")]
    fn parse(input: &[u8]) -> usize {
        let digits = input
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if digits > 3 && input.get(digits) == Some(&b'.') {
            panic!("too many digits");
        }
        digits
    }

    #[test]
    fn a_fault_is_found_and_its_input_made_short() {
        let found = catch_unwind(|| {
            let mut rng = Rng::with_seed(1);
            let mut kept = vec![b"12.5".to_vec(), b"1234".to_vec()];
            for _ in 0..1_000_000 {
                let input = mutate(&kept, &mut rng);
                if kept.len() < 100 {
                    kept.push(input.clone());
                }
                attempt("digits", &input, &parse);
            }
        });
        assert!(found.is_err());
        let fails = |input: &[u8]| catch_unwind(|| parse(input)).is_err();
        assert_eq!(shrink(b"99999.5 and more", &fails), b"9999.");
    }

    #[test]
    fn an_input_reads_back_from_hexadecimal() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&all)), all);
    }
}
