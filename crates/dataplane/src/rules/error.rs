//! What can go wrong with rules, and what to do then.

use std::io;

/// Rules that cannot be read or written. Everything else of the network works without them.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// A program is not there.
    #[error("{program} is not installed on this host: {cure}")]
    Missing {
        /// The program.
        program: String,
        /// What to do.
        cure: &'static str,
    },
    /// A program cannot be started.
    #[error("start {program}: {source}")]
    Start {
        /// Its path.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program does not come to its end.
    #[error("{command} took longer than {seconds} s: another program may hold the xtables lock")]
    TooSlow {
        /// The program and its arguments.
        command: String,
        /// How long it was given.
        seconds: u64,
    },
    /// A program failed.
    #[error("{command}: {said} ({status})")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// What it complained about.
        said: String,
    },
    /// What a program printed cannot be understood.
    #[error("{command}: {why}")]
    Unreadable {
        /// The program and its arguments.
        command: String,
        /// What is wrong with it.
        why: String,
    },
    /// The lock that all users of legacy iptables share cannot be taken.
    #[error("take the lock {path} of legacy iptables: {reason}; {remedy}")]
    Lock {
        /// The lock's file.
        path: String,
        /// Why.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The kernel does not show its rules.
    #[error("look at {what}: {reason}")]
    Kernel {
        /// What was asked for.
        what: String,
        /// The kernel's reason.
        reason: String,
    },
}

impl RulesError {
    pub(super) fn missing(program: &str) -> RulesError {
        let cure = match program {
            "nft" => {
                "install the package nftables, or set EnableNFTables to false in the network configuration to use iptables"
            }
            "modprobe" => "install the package kmod",
            _ => {
                "install the package iptables, or set EnableNFTables to true in the network configuration to use nftables"
            }
        };
        RulesError::Missing {
            program: program.to_owned(),
            cure,
        }
    }
}
