//! What a table is asked, and what it answers.

use std::time::Instant;

/// What one key needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<V> {
    /// Write this.
    Put(V),
    /// Delete the object, which holds this.
    Del(V),
    /// Delete what holds `old`, then write `new`.
    Recreate {
        /// What is there.
        old: V,
        /// What should be.
        new: V,
    },
}

/// The kernel's refusal to do what an object needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// `errno`, positive.
    pub errno: i32,
    /// The kernel's reason.
    pub reason: String,
    /// When it was refused first.
    pub since: Instant,
    /// How often it was refused since.
    pub tries: u32,
}

/// The two ends of a full look at the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audit {
    Begin,
    End,
}

/// What became of a claim; see [`Table::want`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The object's position.
    pub slot: u32,
    /// The owner that had the key until now and has to wait.
    pub won_from: Option<u32>,
    /// Another owner keeps the key; this one waits.
    pub lost: bool,
}
