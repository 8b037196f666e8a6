//! The socket filter of the event socket, in classic BPF: drops in the kernel, at next to no cost,
//! the notices that would be ignored anyway. A host with 10,000 pods sees many of them.

#![allow(unsafe_code, reason = "a socket option that takes a pointer")]

use std::io;
use std::os::fd::RawFd;

use super::scope::View;
use super::uapi::*;

/// More devices than this, and notices are not chosen by device: a jump reaches 255 instructions.
const MOST_DEVICES: usize = 8;

const LD_W: u16 = 0x20;
const LD_H: u16 = 0x28;
const LD_B: u16 = 0x30;
const AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const RET: u16 = 0x06;

/// Offsets in a notice: the netlink header's, then those of the fixed part that follows it.
const KIND: u32 = 4;
const PID: u32 = 12;
const TABLE: u32 = 20;
const PROTOCOL: u32 = 21;
/// Of routes: the type of the attribute after the table's number, and the destination that it holds.
const SECOND_ATTR: u32 = 38;
const DST: u32 = 40;
/// Of addresses, neighbours and links alike.
const INDEX: u32 = 20;
/// Of links: the type of the first attribute, which is the name, and its text.
const ATTR: u32 = 34;
const NAME: u32 = 36;
const FAMILY: u32 = 16;
/// Of neighbours.
const FLAGS: u32 = 26;

/// Where a jump leads.
#[derive(Clone, Copy, PartialEq)]
enum To {
    Link,
    /// Where the name of the device of this position is compared.
    Name(usize),
    Neigh,
    NeighIndex,
    Addr,
    Route,
    Pass,
    Drop,
}

enum Step {
    Do(u16, u32),
    /// Jump there if the accumulator is this.
    If(u32, To),
    /// Jump there if it is not.
    Unless(u32, To),
    Go(To),
    Here(To),
}

/// Has `fd` see only what may concern `view`. `port` is the request socket's: its own doings are
/// dropped.
///
/// # Errors
/// The kernel's refusal; then everything is seen, which is slower and not wrong.
pub fn attach(fd: RawFd, view: Option<&View>, port: u32) -> io::Result<()> {
    let mut program = assemble(&steps(view, port));
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `filter` points to `program`, which outlives the call; the kernel copies both.
    let done = unsafe {
        let len = size_of::<libc::sock_fprog>() as libc::socklen_t;
        let filter = (&raw const filter).cast();
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, filter, len)
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn steps(view: Option<&View>, port: u32) -> Vec<Step> {
    use Step::{Do, Go, Here, If, Unless};
    // Loads take the bytes as big-endian; netlink's are in host byte order.
    let swap32 = u32::to_be;
    let swap16 = |n: u16| u32::from(n.to_be());
    let devices = view.map(|v| v.devices.as_slice()).unwrap_or_default();
    let devices = Some(devices).filter(|d| (1..=MOST_DEVICES).contains(&d.len()));
    let otherwise = devices.map_or(To::Pass, |_| To::Drop);
    let devices = devices.unwrap_or_default();
    let indexes = |ours_only: bool| {
        let there = devices
            .iter()
            .filter(move |d| d.index != 0 && (d.ours || !ours_only));
        there.map(|d| If(swap32(d.index), To::Pass))
    };

    let mut steps = vec![
        Do(LD_W, PID),
        If(swap32(port), To::Drop),
        // RTM_NEW… is even and RTM_DEL… the odd number after it.
        Do(LD_H, KIND),
        Do(AND, swap16(!1)),
        If(swap16(RTM_NEWNEIGH), To::Neigh),
        If(swap16(RTM_NEWADDR), To::Addr),
        If(swap16(RTM_NEWROUTE), To::Route),
        If(swap16(RTM_NEWLINK), To::Link),
        Go(To::Pass),
        Here(To::Route),
        Do(LD_B, TABLE),
        Unless(u32::from(RT_TABLE_MAIN), To::Drop),
        // The kernel's own fe80::/64, once for each device.
        Do(LD_B, PROTOCOL),
        Unless(u32::from(RTPROT_KERNEL), To::Pass),
        Do(LD_H, SECOND_ATTR),
        Unless(swap16(RTA_DST), To::Pass),
        Do(LD_W, DST),
        If(0xfe80_0000, To::Drop),
        Go(To::Pass),
        // The kernel does not say who wrote an FDB entry; ours carry a mark.
        Here(To::Neigh),
        Do(LD_B, FAMILY),
        Unless(u32::from(AF_BRIDGE), To::NeighIndex),
        Do(LD_H, KIND),
        Unless(swap16(RTM_NEWNEIGH), To::NeighIndex),
        Do(LD_B, FLAGS),
        Do(AND, u32::from(NTF_EXT_LEARNED)),
        Unless(0, To::Drop),
        Here(To::NeighIndex),
    ];
    steps.push(Do(LD_W, INDEX));
    steps.extend(indexes(true));
    steps.extend([Go(otherwise), Here(To::Addr), Do(LD_W, INDEX)]);
    steps.extend(indexes(false));
    // A link concerns us by its index, or by its name if it is new. Those told of as a bridge's
    // port do not.
    steps.extend([Go(otherwise), Here(To::Link), Do(LD_B, FAMILY)]);
    steps.extend([Unless(u32::from(AF_UNSPEC), To::Drop), Do(LD_W, INDEX)]);
    steps.extend(indexes(false));
    steps.extend([Do(LD_H, ATTR), Unless(swap16(IFLA_IFNAME), To::Pass)]);
    for (i, device) in devices.iter().enumerate() {
        steps.push(Here(To::Name(i)));
        let name = device.name.as_str().as_bytes();
        // Words, the last one filled up with zeros: there is at least one.
        for at in (0..=name.len()).step_by(4) {
            let byte = |i: usize| name.get(at + i).copied().unwrap_or_default();
            let word = u32::from_be_bytes([byte(0), byte(1), byte(2), byte(3)]);
            steps.extend([Do(LD_W, NAME + at as u32), Unless(word, To::Name(i + 1))]);
        }
        steps.push(Go(To::Pass));
    }
    steps.extend([Here(To::Name(devices.len())), Go(otherwise)]);
    steps.extend([
        Here(To::Drop),
        Do(RET, 0),
        Here(To::Pass),
        Do(RET, u32::MAX),
    ]);
    steps
}

fn assemble(steps: &[Step]) -> Vec<libc::sock_filter> {
    let real = |step: &&Step| !matches!(step, Step::Here(_));
    let place = |to: To| {
        let at = steps
            .iter()
            .position(|s| matches!(s, Step::Here(here) if *here == to));
        steps[..at.unwrap_or(0)].iter().filter(real).count()
    };
    let mut program: Vec<libc::sock_filter> = Vec::with_capacity(steps.len());
    for step in steps {
        let after = program.len() + 1;
        let jump = |to: &To| place(*to).saturating_sub(after) as u8;
        let (code, jt, jf, k) = match step {
            Step::Do(code, k) => (*code, 0, 0, *k),
            Step::If(value, to) => (JEQ, jump(to), 0, *value),
            Step::Unless(value, to) => (JEQ, 0, jump(to), *value),
            Step::Go(to) => (JA, 0, 0, u32::from(jump(to))),
            Step::Here(_) => continue,
        };
        program.push(libc::sock_filter { code, jt, jf, k });
    }
    program
}
