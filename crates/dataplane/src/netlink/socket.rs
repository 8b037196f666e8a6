//! The socket for requests: many messages in one `sendmsg`, and an outcome for each.
//!
//! Receives never wait. The kernel works off a `sendmsg` on an rtnetlink socket before the call
//! returns, and puts the next part of a dump into the queue before the `recv` of the part before
//! it returns: an empty queue therefore means that an answer was lost, not that it is late.

#![allow(unsafe_code, reason = "socket options that no library sets")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use model::IfName;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use super::room::Room;
use super::uapi::*;
use super::wire::{Attrs, Batch, Message, Messages, text, u32_at};
pub use crate::failure::Failure;

/// Messages in one `sendmsg`, at most.
const MOST: usize = 1_000;
/// Bytes in one `sendmsg`, at most: the socket's send buffer is asked to be twice that.
const MOST_BYTES: usize = 256 << 10;
/// Asked for as the receive buffer (the kernel doubles it): room for an error about each of
/// [`MOST`] messages, with its text.
const RECEIVE_BUFFER: i32 = 4 << 20;
/// What one error message with its text costs in the receive buffer, at most.
const ERROR_COST: usize = 2_048;
/// How often a dump is begun again when its table changes under it.
const DUMP_TRIES: usize = 4;

/// A request socket.
pub struct Requests {
    socket: Socket,
    port: u32,
    seq: u32,
    most: usize,
    ask: Batch,
}

impl Requests {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// No socket to be had.
    pub fn open() -> io::Result<Requests> {
        Requests::open_for(NETLINK_ROUTE)
    }

    /// Opens one for another netlink protocol, in the calling thread's network namespace.
    ///
    /// # Errors
    /// No socket to be had.
    pub fn open_for(protocol: isize) -> io::Result<Requests> {
        let mut socket = Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        // Each of these is younger than rtnetlink itself, and each can be done without: dumps are
        // filtered here too, errors then come without text or with the whole request.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        let room = grow(socket.as_raw_fd(), RECEIVE_BUFFER);
        set_int(socket.as_raw_fd(), libc::SO_SNDBUFFORCE, MOST_BYTES as i32)
            .or_else(|_| set_int(socket.as_raw_fd(), libc::SO_SNDBUF, MOST_BYTES as i32))?;
        Ok(Requests {
            socket,
            port,
            seq: 0,
            most: (room / ERROR_COST).clamp(1, MOST),
            ask: Batch::default(),
        })
    }

    /// This socket's port: the `nlmsg_pid` of the notices that its requests cause.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// The socket's descriptor, good for as long as `self`.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Returns whether the device with this index is called `name`. `false` also if the kernel does not answer.
    pub fn has_name(&self, index: u32, name: &IfName) -> bool {
        // SAFETY: all zeros is a value of this plain C structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_ifindex = index as i32;
        // SAFETY: the kernel reads and writes `request` alone, which outlives the call.
        let done = unsafe { libc::ioctl(self.fd(), libc::SIOCGIFNAME as _, &raw mut request) };
        let called = request.ifr_name.iter().map(|byte| *byte as u8);
        done == 0
            && called
                .take_while(|byte| *byte != 0)
                .eq(name.as_str().bytes())
    }

    /// Whether `batch` should be sent before another message is added.
    pub fn is_full(&self, batch: &Batch) -> bool {
        batch.count() >= self.most || batch.bytes().len() > MOST_BYTES / 2
    }

    /// Sends `batch` and empties it. Calls `failed` with the position and the reason of each message that was refused or whose
    /// fate is not known.
    pub fn send(&mut self, batch: &mut Batch, mut failed: impl FnMut(usize, Failure)) {
        let count = batch.count();
        if count == 0 {
            return;
        }
        let first = self.seq.wrapping_add(1);
        self.seq = self.seq.wrapping_add(count as u32);
        batch.number(first);
        batch.ack_last();
        let sent = self.socket.send(batch.bytes(), 0);
        batch.clear();
        if let Err(err) = sent {
            let failure = Failure::from(err);
            return (0..count).for_each(|i| failed(i, failure.clone()));
        }
        let mut answered = vec![false; count];
        let mut room = Room::take();
        let lost = loop {
            match self.receive(&mut room) {
                Ok(bytes) => {
                    for message in Messages(bytes).filter(|m| m.kind == NLMSG_ERROR) {
                        let at = message.seq.wrapping_sub(first) as usize;
                        let Some(answered) = answered.get_mut(at) else {
                            continue;
                        };
                        *answered = true;
                        if let Some(failure) = refusal(&message) {
                            failed(at, failure);
                        }
                    }
                    // The last message is always answered, and after all others.
                    if answered.last() == Some(&true) {
                        return;
                    }
                }
                Err(err) if err.raw_os_error() == Some(libc::EINTR) => {}
                Err(err) => break Failure::from(err),
            }
        };
        // Answers were lost (`ENOBUFS`, or none where one must be): what has none may have failed. To do
        // it again harms nothing. What else there is would only confuse the next request.
        while self.receive(&mut room).is_ok() {}
        let text = format!("the kernel's answer was lost ({})", lost.text);
        let unknown = answered
            .iter()
            .enumerate()
            .filter(|(_, answered)| !**answered);
        unknown.for_each(|(i, _)| failed(i, Failure::because(libc::ENOBUFS, text.clone())));
    }

    /// Sends messages that are one transaction of nf_tables, of which at least one asks for its
    /// acknowledgement: all of them take effect or none.
    ///
    /// # Errors
    /// The kernel's first refusal, or its answer was lost.
    pub fn transact(&mut self, batch: &mut Batch) -> Result<(), Failure> {
        let (first, count) = (self.seq.wrapping_add(1), batch.count() as u32);
        self.seq = self.seq.wrapping_add(count);
        batch.number(first);
        // A transaction cannot be sent in parts.
        let len = batch.bytes().len();
        if len > MOST_BYTES / 2 {
            set_int(self.fd(), libc::SO_SNDBUFFORCE, 2 * len as i32)?;
        }
        self.socket.send(batch.bytes(), 0)?;
        let (mut refused, mut acknowledged) = (None, false);
        let mut room = Room::take();
        let lost = loop {
            let bytes = match self.receive(&mut room) {
                Err(err) if err.raw_os_error() == Some(libc::EINTR) => continue,
                Err(err) => break err,
                Ok(bytes) => bytes,
            };
            for message in Messages(bytes).filter(|m| m.kind == NLMSG_ERROR) {
                if message.seq.wrapping_sub(first) < count {
                    match refusal(&message) {
                        Some(failure) => refused = refused.or(Some(failure)),
                        None => acknowledged = true,
                    }
                }
            }
        };
        match (refused, acknowledged) {
            (Some(failure), _) => Err(failure),
            (None, true) => Ok(()),
            (None, false) => Err(Failure::from(lost)),
        }
    }

    /// Reads a whole table: `body` is the request's fixed part, `attrs` adds its filters, `each`
    /// sees every message.
    ///
    /// # Errors
    /// The kernel's refusal; or the table changed under every try.
    pub fn dump(
        &mut self,
        kind: u16,
        body: &[u8],
        attrs: impl Fn(&mut Batch),
        mut each: impl FnMut(&Message),
    ) -> Result<(), Failure> {
        for _ in 0..DUMP_TRIES {
            if self.dump_once(kind, body, &attrs, &mut each)? {
                return Ok(());
            }
        }
        Err(Failure::because(
            libc::EINTR,
            "the table kept changing while it was read",
        ))
    }

    /// Whether the table held still.
    fn dump_once(
        &mut self,
        kind: u16,
        body: &[u8],
        attrs: impl Fn(&mut Batch),
        mut each: impl FnMut(&Message),
    ) -> Result<bool, Failure> {
        let seq = self.ask(kind, NLM_F_DUMP, body, attrs)?;
        let mut still = true;
        let mut room = Room::take();
        loop {
            let bytes = match self.receive(&mut room) {
                Err(err) if err.raw_os_error() == Some(libc::EINTR) => continue,
                other => other?,
            };
            for message in Messages(bytes).filter(|m| m.seq == seq) {
                still &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => match done(&message) {
                        Some(failure) => return Err(failure),
                        None => return Ok(still),
                    },
                    NLMSG_ERROR => match refusal(&message) {
                        Some(failure) => return Err(failure),
                        None => return Ok(still),
                    },
                    _ => each(&message),
                }
            }
        }
    }

    /// Asks for one object, or has one message done: `each` sees what comes before the
    /// acknowledgement.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn call(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        attrs: impl Fn(&mut Batch),
        mut each: impl FnMut(&Message),
    ) -> Result<(), Failure> {
        let seq = self.ask(kind, flags | NLM_F_ACK, body, attrs)?;
        let mut room = Room::take();
        loop {
            let bytes = match self.receive(&mut room) {
                Err(err) if err.raw_os_error() == Some(libc::EINTR) => continue,
                other => other?,
            };
            for message in Messages(bytes).filter(|m| m.seq == seq) {
                match message.kind {
                    NLMSG_ERROR => return refusal(&message).map_or(Ok(()), Err),
                    _ => each(&message),
                }
            }
        }
    }

    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        attrs: impl Fn(&mut Batch),
    ) -> Result<u32, Failure> {
        self.seq = self.seq.wrapping_add(1);
        self.ask.clear();
        self.ask.open(kind, flags, body);
        attrs(&mut self.ask);
        self.ask.close();
        self.ask.number(self.seq);
        self.socket.send(self.ask.bytes(), 0)?;
        Ok(self.seq)
    }

    fn receive<'a>(&self, room: &'a mut Room) -> io::Result<&'a [u8]> {
        let len = self.socket.recv(&mut &mut room[..], libc::MSG_DONTWAIT)?;
        let room: &[u8] = room;
        Ok(room.get(..len).unwrap_or(room))
    }
}

/// What an `NLMSG_ERROR` says: `None` is an acknowledgement.
fn refusal(message: &Message) -> Option<Failure> {
    let errno = -(u32_at(message.body, 0).unwrap_or_default() as i32);
    if errno == 0 {
        return None;
    }
    // The error number, then the request: its header only if capped.
    let request = match message.flags & NLM_F_CAPPED {
        0 => u32_at(message.body, 4).unwrap_or(16) as usize,
        _ => 16,
    };
    Some(explain(errno, message, 4 + request))
}

/// What ends a dump: its error number, then attributes.
fn done(message: &Message) -> Option<Failure> {
    match u32_at(message.body, 0).unwrap_or_default() as i32 {
        0.. => None,
        negative => Some(explain(-negative, message, 4)),
    }
}

fn explain(errno: i32, message: &Message, attrs_at: usize) -> Failure {
    let mut failure = Failure::errno(errno);
    if message.flags & NLM_F_ACK_TLVS != 0 {
        let attrs = message
            .body
            .get(attrs_at.next_multiple_of(4)..)
            .unwrap_or_default();
        let said = Attrs(attrs).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG);
        if let Some(said) = said.and_then(|(_, v)| text(v)).filter(|s| !s.is_empty()) {
            failure.text = format!("{} ({})", said.trim_end_matches('.'), failure.text);
        }
    }
    failure
}

/// Raises a socket's receive buffer as far as we are allowed to; returns what it then is.
pub fn grow(fd: RawFd, bytes: i32) -> usize {
    let _ =
        set_int(fd, libc::SO_RCVBUFFORCE, bytes).or_else(|_| set_int(fd, libc::SO_RCVBUF, bytes));
    let (mut value, mut len) = (0i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: `value` and `len` are valid for the writes of an `int` option.
    let done = unsafe {
        let value = (&raw mut value).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, value, &raw mut len)
    };
    match done {
        0 => value.max(0) as usize,
        _ => 0,
    }
}

fn set_int(fd: RawFd, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the option's value is one `int`, which outlives the call.
    let done = unsafe {
        let len = size_of::<i32>() as libc::socklen_t;
        libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const value).cast(), len)
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in a network namespace of its own.
    fn isolated(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            // SAFETY: takes no pointers; moves this thread alone to a new network namespace.
            assert_eq!(
                unsafe { libc::unshare(libc::CLONE_NEWNET) },
                0,
                "needs root"
            );
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    /// As many deletions of next hops that are not there.
    fn refused(count: u32) -> Batch {
        let mut batch = Batch::default();
        for id in 1..=count {
            batch.open(RTM_DELNEXTHOP, 0, &[0; 8]).attr_u32(NHA_ID, id);
            batch.close();
        }
        batch
    }

    fn outcomes(requests: &mut Requests, mut batch: Batch) -> Vec<(usize, i32)> {
        let mut seen = Vec::new();
        requests.send(&mut batch, |at, failure| seen.push((at, failure.errno)));
        seen.sort_unstable();
        seen
    }

    #[test]
    fn lost_answers_count_as_failures() {
        isolated(|| {
            let mut requests = Requests::open().unwrap();
            set_int(requests.socket.as_raw_fd(), libc::SO_RCVBUF, 0).unwrap();
            let seen = outcomes(&mut requests, refused(500));
            assert!(seen.iter().map(|(at, _)| *at).eq(0..500), "each once");
            assert!(seen.iter().any(|(_, errno)| *errno == libc::ENOBUFS));
            // What was lost does not disturb what follows.
            assert_eq!(outcomes(&mut requests, refused(1)), [(0, libc::ENOENT)]);
        });
    }

    #[test]
    fn a_device_is_known_by_its_name_and_no_other() {
        isolated(|| {
            let requests = Requests::open().unwrap();
            let name = |text: &str| text.parse::<IfName>().unwrap();
            assert!(requests.has_name(1, &name("lo")));
            assert!(!requests.has_name(1, &name("lo0")));
            assert!(!requests.has_name(1, &name("l")));
            assert!(!requests.has_name(4_000_000, &name("lo")));
        });
    }

    #[test]
    fn every_answer_of_a_full_batch_arrives() {
        isolated(|| {
            let mut requests = Requests::open().unwrap();
            let count = requests.most as u32;
            let seen = outcomes(&mut requests, refused(count));
            assert!(seen.iter().map(|(at, _)| *at as u32).eq(0..count));
            assert!(seen.iter().all(|(_, errno)| *errno == libc::ENOENT));
        });
    }
}
