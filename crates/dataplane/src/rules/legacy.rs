//! The legacy variant's tables without a process. The kernel tells nobody when they change, but hands
//! out a table whole; a fingerprint of it, counters left out, says whether anything did.

#![allow(unsafe_code, reason = "a socket option that takes a pointer")]

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use model::Family;

use crate::netlink::wire::{text, u16_at, u32_at};

/// A table as it stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Look {
    /// Equal for equal rules, whatever their counters say.
    pub fingerprint: u64,
    /// The chains that somebody made.
    pub chains: Vec<String>,
    /// Whether there is any rule in the kernel's own chains.
    pub has_rules: bool,
    /// Whether anything in it mentions us.
    pub ours: bool,
}

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; those of IPv6 have the same numbers.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// Length of a table's name in both.
const NAME: usize = 32;
const INFO: usize = 84;
/// In the answer to `GET_INFO`.
const INFO_HOOKS: usize = 32;
const INFO_ENTRIES: usize = 76;
const INFO_SIZE: usize = 80;
/// The kernel aligns 64-bit counters as the calling program's architecture does: to 4 bytes on i686,
/// to 8 elsewhere, 32-bit ARM included.
const ALIGN: usize = align_of::<u64>();
/// Where the first entry begins in the answer to `GET_ENTRIES`: after the name and the size.
const FIRST_ENTRY: usize = (NAME + 4).next_multiple_of(ALIGN);
/// A table that changes under every try is looked at no longer.
const TRIES: usize = 4;

/// A table whose size, number of rules and chains' places are as before is read whole only so often: it
/// may hold 100,000 rules, and the kernel copies all of them.
const WHOLE_EVERY: Duration = Duration::from_secs(60);

/// What is kept of tables, so that one that seems not to have changed need not be read.
#[derive(Default)]
pub struct Briefs(BTreeMap<(Family, &'static str), Known>);

/// What is kept of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brief {
    /// See [`Look::fingerprint`].
    pub fingerprint: u64,
    /// Whether it has chains of Kubernetes.
    pub kubernetes: bool,
}

struct Known {
    /// What the kernel says about the table without its rules.
    info: [u8; INFO],
    brief: Brief,
    read_at: Instant,
}

impl Briefs {
    /// Returns what is kept of the table; `None` where it is not in use. A change that moves no rule and
    /// changes no size is seen up to a minute later.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn of(&mut self, family: Family, table: &'static str) -> io::Result<Option<Brief>> {
        if !tables(family).iter().any(|t| t == table) {
            self.0.remove(&(family, table));
            return Ok(None);
        }
        let mut info = [0; INFO];
        name(&mut info, table);
        ask(&socket(family)?, family, GET_INFO, &mut info)?;
        let known = self.0.get(&(family, table));
        let known = known.filter(|known| known.info == info);
        if let Some(known) = known.filter(|known| known.read_at.elapsed() < WHOLE_EVERY) {
            return Ok(Some(known.brief));
        }
        let brief = look(family, table, &[])?.map(|look| Brief {
            fingerprint: look.fingerprint,
            kubernetes: look.chains.iter().any(|chain| chain.starts_with("KUBE-")),
        });
        if let Some(brief) = brief {
            let known = Known {
                info,
                brief,
                read_at: Instant::now(),
            };
            self.0.insert((family, table), known);
        }
        Ok(brief)
    }
}

/// How an entry begins, in bytes: the addresses and devices, then where its target and the next entry
/// are, then counters.
struct Layout {
    target_at: usize,
    counters_at: usize,
    counters_end: usize,
}

fn layout(family: Family, align: usize) -> Layout {
    let addresses = match family {
        Family::V4 => 84,
        Family::V6 => 136,
    };
    let counters_at = (addresses + 12usize).next_multiple_of(align);
    Layout {
        target_at: addresses + 4,
        counters_at,
        counters_end: counters_at + 16,
    }
}

/// The tables that are in use; asking the kernel about another would bring it into being.
pub fn tables(family: Family) -> Vec<String> {
    let file = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let names = fs::read_to_string(file).unwrap_or_default();
    names.lines().map(str::to_owned).collect()
}

/// Looks at a table; `None` where it is not in use.
///
/// # Errors
/// The kernel's refusal.
pub fn look(family: Family, table: &str, mentions: &[&str]) -> io::Result<Option<Look>> {
    if !tables(family).iter().any(|t| t == table) {
        return Ok(None);
    }
    let socket = socket(family)?;
    for _ in 0..TRIES {
        let mut info = [0; INFO];
        name(&mut info, table);
        ask(&socket, family, GET_INFO, &mut info)?;
        let number = |at| u32_at(&info, at).unwrap_or_default() as usize;
        let mut entries = vec![0; FIRST_ENTRY + number(INFO_SIZE)];
        name(&mut entries, table);
        entries[NAME..NAME + 4].copy_from_slice(&info[INFO_SIZE..INFO]);
        match ask(&socket, family, GET_ENTRIES, &mut entries) {
            Ok(()) => {
                let built_in = number(INFO_HOOKS).count_ones() as usize;
                let bytes = &mut entries[FIRST_ENTRY..];
                return Ok(Some(read(
                    family,
                    bytes,
                    built_in,
                    number(INFO_ENTRIES),
                    mentions,
                )));
            }
            // It changed its size between the two questions.
            Err(err) if err.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(err) => return Err(err),
        }
    }
    Err(io::Error::other(format!("table {table} keeps changing")))
}

fn read(family: Family, bytes: &mut [u8], built_in: usize, count: usize, ours: &[&str]) -> Look {
    let Layout {
        target_at,
        counters_at,
        counters_end,
    } = layout(family, ALIGN);
    let (mut at, mut chains) = (0, Vec::new());
    while let Some(entry) = bytes.get_mut(at..) {
        let Some(target) = u16_at(entry, target_at).map(usize::from) else {
            break;
        };
        let next = u16_at(entry, target_at + 2)
            .map(usize::from)
            .unwrap_or_default();
        if let Some(counters) = entry.get_mut(counters_at..counters_end) {
            counters.fill(0);
        }
        // A chain begins with a target called ERROR that holds the chain's name.
        let named = |from: usize| entry.get(from..next).and_then(text);
        if named(target + 2) == Some("ERROR") {
            chains.extend(
                named(target + 32)
                    .filter(|n| *n != "ERROR")
                    .map(str::to_owned),
            );
        }
        if next < counters_end {
            break;
        }
        at += next;
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    let mentions = |needle: &&str| bytes.windows(needle.len()).any(|w| w == needle.as_bytes());
    Look {
        fingerprint: hasher.finish(),
        // Each chain has a head and a last rule; the kernel's have a last rule, the table an end.
        has_rules: count > built_in + 1 + 2 * chains.len(),
        ours: ours.iter().any(mentions),
        chains,
    }
}

fn name(buffer: &mut [u8], table: &str) {
    let len = table.len().min(NAME - 1);
    buffer[..len].copy_from_slice(&table.as_bytes()[..len]);
}

fn socket(family: Family) -> io::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    match fd {
        0.. => {
            // SAFETY: the descriptor is new and nobody else's.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

fn ask(socket: &OwnedFd, family: Family, what: i32, buffer: &mut [u8]) -> io::Result<()> {
    let level = match family {
        Family::V4 => libc::IPPROTO_IP,
        Family::V6 => libc::IPPROTO_IPV6,
    };
    let mut len = buffer.len() as libc::socklen_t;
    // SAFETY: `buffer` is `len` bytes that the kernel may read and write.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            what,
            buffer.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_where_each_architecture_has_them() {
        for (family, align, counters) in [
            (Family::V4, 8, 96),
            (Family::V4, 4, 96),
            (Family::V6, 8, 152),
            (Family::V6, 4, 148),
        ] {
            assert_eq!(
                layout(family, align).counters_at,
                counters,
                "{family} {align}"
            );
        }
    }

    #[test]
    fn fuzzed_tables() {
        let mut entry = vec![0; 176];
        (entry[88], entry[90]) = (112, 176);
        entry[114..119].copy_from_slice(b"ERROR");
        entry[144..150].copy_from_slice(b"DOCKER");
        for (name, family) in [("IPv4", Family::V4), ("IPv6", Family::V6)] {
            fuzz::run(&format!("legacy table, {name}"), &[&entry], |input| {
                let look = read(family, &mut input.to_vec(), 3, 5, &["FLANNEL"]);
                (look.chains.len(), look.has_rules, look.ours)
            });
        }
    }
}
