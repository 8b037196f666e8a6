//! Who else changes rules. nf_tables tells its listeners of each change, and which process made it;
//! that covers `nft` and the nft variant of iptables. Nothing is asked for while nothing changes.

#![allow(unsafe_code, reason = "registers a descriptor with the runtime")]

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use model::Family;
use model::rules::Chain;
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::nfnetlink::{self, attr, be32};
use super::{iptables, nftables};
use crate::guard;
use crate::netlink::room::Room;
use crate::netlink::socket::grow;
use crate::netlink::wire::{Message, Messages, af, text};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// Asked for as the receive buffer; the kernel doubles it. A large set of foreign rules that is
/// replaced at once should fit.
const RECEIVE_BUFFER: i32 = 4 << 20;
/// How long the process ids of our own programs are remembered: the kernel gives them to others later.
const OWN_FOR: Duration = Duration::from_secs(10);

/// Where our rules stand, as far as nf_tables knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Realm {
    /// In tables of our own.
    Own,
    /// In chains of our own within iptables' tables.
    Iptables,
    /// In the tables of [`crate::guard`].
    Guard,
}

/// What was changed by somebody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    /// Nothing that concerns us.
    #[default]
    Nothing,
    /// A rule was deleted next to the one that leads into a chain of ours: it may have been that one.
    Neighbour,
    /// Something of ours.
    Ours,
}

/// Listens to nf_tables.
pub struct Watch {
    socket: AsyncFd<Socket>,
    realm: Realm,
    /// In the transaction that is being told.
    current: Touched,
    /// In whole transactions of others.
    touched: Touched,
    /// The process ids of our own programs, each with the time until which it is remembered.
    own: Vec<(u32, Instant)>,
}

impl Watch {
    /// Opens the socket in the calling thread's network namespace, on the current runtime.
    ///
    /// # Errors
    /// No socket to be had, no nf_tables in the kernel, or not within a tokio runtime.
    pub fn open(realm: Realm) -> io::Result<Watch> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        grow(socket.as_raw_fd(), RECEIVE_BUFFER);
        socket.add_membership(GROUP)?;
        tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        // SAFETY: `Socket` owns its descriptor, and keeps it open and the same until it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok(Watch {
            socket,
            realm,
            current: Touched::Nothing,
            touched: Touched::Nothing,
            own: Vec::new(),
        })
    }

    /// A look at everything begins: it will show whatever was told until now.
    pub fn forget(&mut self) {
        self.drain();
        self.touched = Touched::Nothing;
    }

    /// Changes made by these processes are our own doing.
    pub fn disregard(&mut self, ids: Vec<u32>) {
        let now = Instant::now();
        self.own.retain(|(_, until)| now < *until);
        self.own
            .extend(ids.into_iter().map(|id| (id, now + OWN_FOR)));
        self.drain();
    }

    /// What others touched since [`Watch::forget`].
    pub fn touched(&self) -> Touched {
        self.touched
    }

    /// It was looked into, and is nothing.
    pub fn dismiss(&mut self) {
        self.touched = Touched::Nothing;
    }

    /// Waits until others touched something. Cancel-safe.
    pub async fn told(&mut self) {
        while self.touched == Touched::Nothing {
            match self.socket.readable().await {
                // Cleared before reading to the end: what comes afterwards raises it again.
                Ok(mut guard) => guard.clear_ready(),
                // The runtime is shutting down.
                Err(_) => std::future::pending().await,
            }
            self.drain();
        }
    }

    fn drain(&mut self) {
        let mut receive = Room::take();
        loop {
            let socket = self.socket.get_ref();
            match socket.recv(&mut &mut receive[..], libc::MSG_DONTWAIT) {
                Ok(len) => {
                    for message in Messages(receive.get(..len).unwrap_or(&receive)) {
                        self.notice(&message);
                    }
                }
                Err(err) if err.raw_os_error() == Some(libc::EINTR) => {}
                // Notices were lost: it may have been about us.
                Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.touched = Touched::Ours;
                }
                Err(_) => break,
            }
        }
    }

    fn notice(&mut self, message: &Message) {
        if message.kind != nfnetlink::NEWGEN {
            self.current = self.current.max(self.judge(message));
            return;
        }
        // The end of a transaction, and who made it.
        let current = std::mem::take(&mut self.current);
        let id = attr(message, nfnetlink::GEN_PID).and_then(be32);
        let program = attr(message, nfnetlink::GEN_PROGRAM)
            .and_then(text)
            .unwrap_or_default();
        // The id is another one to us in a process namespace: then a look will show that all is well.
        let one_of_ours = program == "nft" || program.contains("tables");
        let now = Instant::now();
        let known = |id| {
            self.own
                .iter()
                .any(|(own, until)| *own == id && now < *until)
        };
        if !(one_of_ours && id.is_some_and(known)) {
            self.touched = self.touched.max(current);
        }
    }

    fn judge(&self, message: &Message) -> Touched {
        let named = |kind| attr(message, kind).and_then(text);
        if self.realm == Realm::Guard {
            let ours = named(nfnetlink::TABLE).is_some_and(|t| t.starts_with(guard::PREFIX));
            return if ours {
                Touched::Ours
            } else {
                Touched::Nothing
            };
        }
        let Some(family) = family(message) else {
            return Touched::Nothing;
        };
        let Some(table) = named(nfnetlink::TABLE) else {
            return Touched::Nothing;
        };
        if self.realm == Realm::Own {
            return match table == nftables::table(family) {
                true => Touched::Ours,
                false => Touched::Nothing,
            };
        }
        let Some(chain) = Chain::ALL
            .into_iter()
            .find(|c| iptables::table(*c) == table)
        else {
            return Touched::Nothing;
        };
        let (own, shared) = (Some(iptables::own(chain)), Some(iptables::shared(chain)));
        match message.kind {
            nfnetlink::DELTABLE => Touched::Ours,
            nfnetlink::NEWCHAIN | nfnetlink::DELCHAIN => {
                let name = named(nfnetlink::CHAIN_NAME);
                let gone = message.kind == nfnetlink::DELCHAIN && name == shared;
                if name == own || gone {
                    Touched::Ours
                } else {
                    Touched::Nothing
                }
            }
            nfnetlink::NEWRULE | nfnetlink::DELRULE => {
                let name = named(nfnetlink::RULE_CHAIN);
                let about_us = || {
                    nfnetlink::mentions(message, iptables::own(chain))
                        || nfnetlink::mentions(message, chain.comment())
                };
                // A rule that refuses everything may stand before the one that leads to us.
                let refuses = || {
                    chain == Chain::Forward
                        && message.kind == nfnetlink::NEWRULE
                        && nfnetlink::is_unconditional(message)
                };
                if name == own || (name == shared && (about_us() || refuses())) {
                    Touched::Ours
                } else if name == shared && message.kind == nfnetlink::DELRULE {
                    Touched::Neighbour
                } else {
                    Touched::Nothing
                }
            }
            _ => Touched::Nothing,
        }
    }
}

fn family(message: &Message) -> Option<Family> {
    let first = *message.body.first()?;
    Family::ALL.into_iter().find(|family| af(*family) == first)
}
