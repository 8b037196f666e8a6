//! The socket on which the kernel tells what others did. What follows from each notice: `notice`.

#![allow(unsafe_code, reason = "registers a descriptor with the runtime")]

mod flood;
mod notice;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;

use model::{Family, IfName, Object};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use self::flood::Floods;
use super::decode::RawAddr;
use super::room::Room;
use super::scope::View;
use super::socket::{Requests, grow};
use super::uapi::*;
use super::wire::Messages;
use super::{filter, observe};
use crate::KernelEvent;

/// Asked for as the receive buffer; the kernel doubles it.
const RECEIVE_BUFFER: i32 = 16 << 20;
/// Notices handled before others on the runtime get their turn.
const AT_ONCE: usize = 2_000;
/// More events than this at a time, and a full look is cheaper than one by one.
const MOST_QUEUED: usize = 4_096;
/// As many of our own doings are remembered in order to know their notices.
const MOST_ECHOES: usize = 1_024;

const GROUPS: [u32; 6] = [
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_ROUTE,
];

/// The event socket and what was read from it.
pub struct Events {
    socket: AsyncFd<Socket>,
    /// Readiness was consumed, and not yet everything read.
    unread: bool,
    /// The request socket's port.
    port: u32,
    queue: VecDeque<KernelEvent>,
    look_again: bool,
    host_changed: bool,
    /// What we did ourselves and the kernel does not mark as ours.
    echoes: VecDeque<KernelEvent>,
    /// Notices about this device are about our own doing.
    changing: Option<IfName>,
    floods: Floods,
    /// The addresses of the host's interface; the kernel repeats them with every refresh.
    host_addrs: Vec<RawAddr>,
}

impl Events {
    /// Opens the socket in the calling thread's network namespace, on the current runtime.
    ///
    /// # Errors
    /// No socket to be had, or not within a tokio runtime.
    pub fn open(port: u32, next_hops: bool) -> io::Result<Events> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        grow(socket.as_raw_fd(), RECEIVE_BUFFER);
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        if next_hops {
            socket.add_membership(RTNLGRP_NEXTHOP)?;
        }
        tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        // SAFETY: `Socket` owns its descriptor, and keeps it open and the same until it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok(Events {
            socket,
            unread: false,
            port,
            queue: VecDeque::new(),
            look_again: false,
            host_changed: false,
            echoes: VecDeque::new(),
            changing: None,
            floods: Floods::new(next_hops),
            host_addrs: Vec::new(),
        })
    }

    /// Lets through what concerns `view`, whose indexes changed.
    pub fn refilter(&mut self, view: Option<&View>) {
        // Refused: everything is seen, which is slower and not wrong.
        let _ = filter::attach(self.socket.get_ref().as_raw_fd(), view, self.port);
    }

    /// Remembers something that we are doing, to know its notice.
    pub fn expect(&mut self, echo: KernelEvent) {
        if let KernelEvent::Gone(object) = &echo {
            self.echoes
                .retain(|e| !matches!(e, KernelEvent::Saw(saw) if saw == object));
        }
        if self.echoes.len() >= MOST_ECHOES {
            self.echoes.pop_front();
        }
        self.echoes.push_back(echo);
    }

    /// Whether notices of our own doings are to come.
    pub fn expects(&self) -> bool {
        !self.echoes.is_empty()
    }

    /// The next thing to report.
    pub fn pop(&mut self) -> Option<KernelEvent> {
        if let Some(event) = self.queue.pop_front() {
            return Some(event);
        }
        if std::mem::take(&mut self.host_changed) {
            return Some(KernelEvent::HostChanged);
        }
        std::mem::take(&mut self.look_again).then_some(KernelEvent::LookAgain)
    }

    /// Has the caller look at everything again.
    pub fn look_again(&mut self) {
        self.look_again = true;
    }

    /// The host's interface was found to be other than its notices said until now.
    pub fn host_changed(&mut self, view: &View, requests: &mut Requests) {
        self.host_changed = true;
        self.learn_host(view, requests);
    }

    /// A full look begins: it will show whatever the notices until now tell.
    pub fn forget(&mut self) {
        self.queue.clear();
        self.look_again = false;
    }

    /// Waits until there is something to read, or a kind of notices that flooded us may be asked for
    /// again. Cancel-safe.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn readable(&mut self) -> io::Result<()> {
        if self.unread {
            return Ok(());
        }
        let readable = async {
            // Cleared before reading to the end: what comes afterwards raises it again.
            self.socket.readable().await?.clear_ready();
            io::Result::Ok(true)
        };
        self.unread = match self.floods.next_return() {
            None => readable.await?,
            Some(at) => tokio::select! {
                read = readable => read?,
                () = tokio::time::sleep_until(at) => false,
            },
        };
        self.end_floods();
        Ok(())
    }

    /// Asks again for the notices of which there were too many, once their pause is over. What was
    /// missed is seen by a full look.
    fn end_floods(&mut self) {
        for group in self.floods.returned(Instant::now()) {
            // Refused: the full look, and those to come, see what there is.
            let _ = self.socket.get_mut().add_membership(group);
            self.look_again = true;
            self.host_changed = true;
        }
    }

    /// Takes in the addresses of the host's interface as they are now.
    pub fn learn_host(&mut self, view: &View, requests: &mut Requests) {
        self.host_addrs.clear();
        for device in view.devices.iter().filter(|d| !d.ours && d.index != 0) {
            let addrs = &mut self.host_addrs;
            for family in Family::ALL {
                // Not to be had: the first notice about each counts as a change.
                let _ = observe::dump_addrs(requests, family, device.index, |raw| {
                    addrs.push(steady(raw))
                });
            }
        }
    }

    /// Reads the notices about what we just did to our device `name`, now that the view has it.
    pub fn read_own(&mut self, name: IfName, view: &mut View, requests: &mut Requests) {
        self.changing = Some(name);
        while self.drain(view, requests) {}
        self.changing = None;
    }

    /// Reads what there is; returns whether there may be more.
    pub fn drain(&mut self, view: &mut View, requests: &mut Requests) -> bool {
        let mut receive = Room::take();
        let mut more = true;
        for _ in 0..AT_ONCE {
            let got = self
                .socket
                .get_ref()
                .recv(&mut &mut receive[..], libc::MSG_DONTWAIT);
            match got {
                Ok(len) => {
                    for message in Messages(receive.get(..len).unwrap_or(&receive)) {
                        self.floods.count(&message);
                        self.notice(&message, view, requests);
                    }
                }
                Err(err) if err.raw_os_error() == Some(libc::EINTR) => {}
                Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.overrun(view, requests);
                }
                Err(_) => {
                    // Nothing left: neither of notices, nor of those that our own doings cause,
                    // except that the kernel speaks of a new IPv6 address again later.
                    self.echoes
                        .retain(|echo| matches!(echo, KernelEvent::Saw(Object::Addr(..))));
                    self.unread = false;
                    more = false;
                    break;
                }
            }
        }
        for group in self.floods.begun(Instant::now()) {
            // Refused: they go on, which costs time and is not wrong.
            let _ = self.socket.get_ref().drop_membership(group);
        }
        if self.queue.len() > MOST_QUEUED {
            self.queue.clear();
            self.look_again = true;
        }
        more
    }

    /// Notices were lost.
    fn overrun(&mut self, view: &mut View, requests: &mut Requests) {
        // If they cannot be looked at, the full look that follows says so.
        let _ = observe::find_devices(view, requests);
        self.refilter(Some(view));
        self.learn_host(view, requests);
        self.look_again = true;
        self.host_changed = true;
    }

    fn saw(&mut self, object: Object) {
        self.push(KernelEvent::Saw(object));
    }

    fn gone(&mut self, object: Object) -> bool {
        self.push(KernelEvent::Gone(object))
    }

    /// Queues it unless it is our own doing; returns whether it was not.
    fn push(&mut self, event: KernelEvent) -> bool {
        if let Some(at) = self.echoes.iter().position(|echo| *echo == event) {
            if !matches!(event, KernelEvent::Saw(Object::Addr(..))) {
                self.echoes.remove(at);
            }
            return false;
        }
        if let KernelEvent::Gone(object @ Object::Addr(..)) = &event {
            self.echoes
                .retain(|e| !matches!(e, KernelEvent::Saw(saw) if saw == object));
        }
        // Some deletions are announced twice.
        if self.queue.back() != Some(&event) {
            self.queue.push_back(event);
        }
        true
    }
}

/// The address without what changes by itself.
fn steady(raw: RawAddr) -> RawAddr {
    let kept = IFA_F_TENTATIVE | IFA_F_DADFAILED | IFA_F_DEPRECATED | IFA_F_TEMPORARY;
    RawAddr {
        flags: raw.flags & kept,
        ..raw
    }
}
