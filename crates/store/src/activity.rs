//! What a store was asked and how it answered: figures for `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::clock;
use crate::own_lease::Time;
use crate::tls::{self, Pem, TlsFiles};

/// Pairs of verb and code that are counted apart; a server that makes up codes adds to one more.
const PAIRS: usize = 64;

/// How long the ends of certificates that were read from files count.
const READ_AGAIN: Duration = Duration::from_secs(30);

/// The figures, shared by all that talk to one store.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<Mutex<Figures>>);

#[derive(Debug, Default)]
struct Figures {
    requests: BTreeMap<(&'static str, String), u64>,
    last_answer: Option<Instant>,
    watch_restarts: u64,
    lease_ends: Option<Time>,
    files: Vec<(&'static str, Pem)>,
    certificates: Vec<(&'static str, SystemTime)>,
    certificates_read: Option<Instant>,
}

impl Activity {
    /// Returns how many requests of each verb ended with each code.
    pub fn requests(&self) -> Vec<(&'static str, String, u64)> {
        let figures = self.lock();
        let requests = figures.requests.iter();
        requests
            .map(|((verb, code), count)| (*verb, code.clone(), *count))
            .collect()
    }

    /// Returns how long ago the store answered last; `None` if it never did.
    pub fn since_last_answer(&self) -> Option<Duration> {
        self.lock().last_answer.map(|at| at.elapsed())
    }

    /// Returns how many watches were opened to continue another one.
    pub fn watch_restarts(&self) -> u64 {
        self.lock().watch_restarts
    }

    /// Returns how long this node's lease lives if it is not renewed; `None` if it does not end.
    pub fn lease_left(&self) -> Option<Duration> {
        let ends = self.lock().lease_ends?;
        Some(ends.saturating_sub(clock::now()))
    }

    /// Returns when the certificates end that are used towards the store, by the flag or key that names their
    /// file. Of several in one file it is the first end.
    pub fn certificates(&self) -> Vec<(&'static str, SystemTime)> {
        let mut figures = self.lock();
        let read = figures.certificates_read;
        if read.is_none_or(|read| read.elapsed() >= READ_AGAIN) {
            let ends = |(name, pem): &(&'static str, Pem)| Some((*name, tls::first_end(pem)?));
            figures.certificates = figures.files.iter().filter_map(ends).collect();
            figures.certificates_read = Some(Instant::now());
        }
        figures.certificates.clone()
    }

    /// Counts a request that ended.
    pub(crate) fn ended(&self, verb: &'static str, code: impl ToString, answered: bool) {
        let mut figures = self.lock();
        let mut key = (verb, code.to_string());
        if figures.requests.len() >= PAIRS && !figures.requests.contains_key(&key) {
            key.1 = "other".to_owned();
        }
        *figures.requests.entry(key).or_default() += 1;
        if answered {
            figures.last_answer = Some(Instant::now());
        }
    }

    /// Notes that the store has sent something.
    pub(crate) fn heard(&self) {
        self.lock().last_answer = Some(Instant::now());
    }

    /// Counts the end of a watch that is followed by another one.
    pub(crate) fn watch_restarted(&self) {
        self.lock().watch_restarts += 1;
    }

    /// Notes when this node's lease ends.
    pub(crate) fn set_lease_end(&self, ends: Option<Time>) {
        self.lock().lease_ends = ends;
    }

    /// Notes which certificates are used.
    pub(crate) fn set_files(&self, files: &TlsFiles) {
        let used = [(files.names.ca, &files.ca), (files.names.cert, &files.cert)];
        let used = used.into_iter();
        let files = used.filter_map(|(name, pem)| Some((name, pem.clone()?)));
        self.lock().files = files.collect();
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_codes_cost_no_memory() {
        let activity = Activity::default();
        activity.ended("get", 200, true);
        for code in 0..10_000 {
            activity.ended("list", code, false);
        }
        activity.ended("get", 200, true);
        let requests = activity.requests();
        assert!(requests.len() <= PAIRS + 1, "{}", requests.len());
        assert!(requests.contains(&("get", "200".to_owned(), 2)));
        let sum: u64 = requests.iter().map(|(.., count)| count).sum();
        assert_eq!(sum, 10_002);
        assert!(activity.since_last_answer().is_some());
    }
}
