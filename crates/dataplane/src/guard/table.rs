//! The guard's table as nf_tables messages. It is written without `nft`: a node in iptables mode need
//! not have that program, and the table must exist in every mode.

use std::net::IpAddr;

use ipnet::IpNet;
use model::Family;
use model::guard::{DEVICE_PREFIX, Hook, Packets};

use crate::netlink::uapi::NLM_F_CREATE;
use crate::netlink::wire::Batch;
use crate::rules::nfnetlink::{
    CHAIN_NAME, DELTABLE, NEWCHAIN, NEWRULE, NEWTABLE, RULE_CHAIN, TABLE, begin, end, put,
};

/// `NFPROTO_INET`: one table for both families.
pub const INET: u8 = 1;
pub const BODY: [u8; 4] = [INET, 0, 0, 0];
pub const NLM_F_ACK: u16 = 4;
pub const NLM_F_APPEND: u16 = 0x800;

pub const TABLE_FLAGS: u16 = 2;
pub const CHAIN_HOOK: u16 = 4;
pub const CHAIN_POLICY: u16 = 5;
pub const CHAIN_TYPE: u16 = 7;
pub const RULE_EXPRESSIONS: u16 = 4;
pub const RULE_USERDATA: u16 = 7;
pub const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const LIST_ELEMENT: u16 = 1;

const ACCEPT: u32 = 1;
const DROP: u32 = 0;
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
/// Ahead of the filters of iptables (0), so that its counters do not show what never arrives.
const PRIORITY: i32 = -10;

const META_IIFNAME: u32 = 6;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// The name of a chain of ours.
pub fn chain(hook: Hook) -> &'static str {
    match hook {
        Hook::Input => "input",
        Hook::Forward => "forward",
    }
}

/// One transaction that replaces the table `name`, or makes it.
pub fn replace(name: &str, rules: &[(Hook, Packets)]) -> Batch {
    let mut batch = Batch::default();
    begin(&mut batch);
    fresh(&mut batch, name, &[Hook::Input, Hook::Forward]);
    for (at, (hook, what)) in rules.iter().enumerate() {
        // Old kernels do not acknowledge the end of a transaction.
        let ack = if at + 1 == rules.len() { NLM_F_ACK } else { 0 };
        batch.open(NEWRULE, NLM_F_CREATE | NLM_F_APPEND | ack, &BODY);
        put(&mut batch, TABLE, name);
        put(&mut batch, RULE_CHAIN, chain(*hook));
        let expressions = batch.nest(RULE_EXPRESSIONS);
        conditions(&mut batch, what);
        count_and_drop(&mut batch);
        batch.end(expressions);
        comment(&mut batch, reason(what));
        batch.close();
    }
    end(&mut batch);
    batch
}

/// Makes the table `name` anew, with empty chains.
pub fn fresh(batch: &mut Batch, name: &str, hooks: &[Hook]) {
    // To delete a table that does not exist would be an error.
    for kind in [NEWTABLE, DELTABLE, NEWTABLE] {
        table(batch, kind, 0, name);
    }
    for &hook in hooks {
        batch.open(NEWCHAIN, NLM_F_CREATE, &BODY);
        put(batch, TABLE, name);
        put(batch, CHAIN_NAME, chain(hook));
        let at = batch.nest(CHAIN_HOOK);
        let number: u32 = match hook {
            Hook::Input => 1,
            Hook::Forward => 2,
        };
        batch.attr(1, &number.to_be_bytes());
        batch.attr(2, &PRIORITY.to_be_bytes());
        batch.end(at);
        batch.attr(CHAIN_POLICY, &ACCEPT.to_be_bytes());
        put(batch, CHAIN_TYPE, "filter");
        batch.close();
    }
}

/// One transaction that deletes the table `name`, whether or not it exists.
pub fn delete(name: &str) -> Batch {
    let mut batch = Batch::default();
    begin(&mut batch);
    table(&mut batch, NEWTABLE, 0, name);
    table(&mut batch, DELTABLE, NLM_F_ACK, name);
    end(&mut batch);
    batch
}

fn table(batch: &mut Batch, kind: u16, flags: u16, name: &str) {
    let create = if kind == NEWTABLE { NLM_F_CREATE } else { 0 };
    batch.open(kind, create | flags, &BODY);
    put(batch, TABLE, name);
    batch.close();
}

fn conditions(batch: &mut Batch, what: &Packets) {
    match what {
        Packets::Icmp(family, kind) => {
            meta(batch, META_IIFNAME, DEVICE_PREFIX.as_bytes());
            let protocol = match family {
                Family::V4 => libc::IPPROTO_ICMP,
                Family::V6 => libc::IPPROTO_ICMPV6,
            };
            of_family(batch, *family);
            self::protocol(batch, protocol as u8);
            load(batch, TRANSPORT_HEADER, 0, 1);
            compare(batch, true, &[*kind]);
        }
        Packets::Tunnel {
            pods,
            port,
            outside,
        } => {
            of_family(batch, Family::of_net(pods));
            within(batch, pods, Field::Source, true);
            if *outside {
                within(batch, pods, Field::Destination, false);
            }
            udp_to(batch, *port);
        }
    }
}

/// The packet is of this protocol.
pub fn protocol(batch: &mut Batch, number: u8) {
    meta(batch, META_L4PROTO, &[number]);
}

/// The packet is for this UDP port.
pub fn udp_to(batch: &mut Batch, port: u16) {
    protocol(batch, libc::IPPROTO_UDP as u8);
    load(batch, TRANSPORT_HEADER, 2, 2);
    compare(batch, true, &port.to_be_bytes());
}

/// The packet's source is not in a set of this table.
pub fn source_not_in(batch: &mut Batch, family: Family, set: &str, id: u32) {
    const INVERT: u32 = 1;
    match family {
        Family::V4 => load(batch, NETWORK_HEADER, 12, 4),
        Family::V6 => load(batch, NETWORK_HEADER, 8, 16),
    }
    expression(batch, "lookup", |batch| {
        put(batch, 1, set);
        batch.attr(2, &REGISTER.to_be_bytes());
        batch.attr(4, &id.to_be_bytes());
        batch.attr(5, &INVERT.to_be_bytes());
    });
}

/// The packet is of this family.
pub fn of_family(batch: &mut Batch, family: Family) {
    let number = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    meta(batch, META_NFPROTO, &[number]);
}

/// Which address of a packet.
enum Field {
    Source,
    Destination,
}

/// The address is, or is not, in `net`.
fn within(batch: &mut Batch, net: &IpNet, field: Field, inside: bool) {
    let (bytes, mask, source, destination) = match (net.network(), net.netmask()) {
        (IpAddr::V4(ip), IpAddr::V4(mask)) => {
            (ip.octets().to_vec(), mask.octets().to_vec(), 12, 16)
        }
        (ip, mask) => {
            let octets = |ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            (octets(ip), octets(mask), 8, 24)
        }
    };
    let at = match field {
        Field::Source => source,
        Field::Destination => destination,
    };
    let whole = usize::from(net.prefix_len()) / 8;
    if net.prefix_len().is_multiple_of(8) && whole > 0 {
        load(batch, NETWORK_HEADER, at, whole as u32);
        return compare(batch, inside, &bytes[..whole]);
    }
    load(batch, NETWORK_HEADER, at, bytes.len() as u32);
    expression(batch, "bitwise", |batch| {
        batch.attr(1, &REGISTER.to_be_bytes());
        batch.attr(2, &REGISTER.to_be_bytes());
        batch.attr(3, &(bytes.len() as u32).to_be_bytes());
        value(batch, 4, &mask);
        value(batch, 5, &vec![0; bytes.len()]);
    });
    compare(batch, inside, &bytes);
}

fn expression(batch: &mut Batch, name: &str, fill: impl FnOnce(&mut Batch)) {
    let element = batch.nest(LIST_ELEMENT);
    put(batch, EXPRESSION_NAME, name);
    let data = batch.nest(EXPRESSION_DATA);
    fill(batch);
    batch.end(data);
    batch.end(element);
}

/// A property of the packet is `expected`.
fn meta(batch: &mut Batch, key: u32, expected: &[u8]) {
    expression(batch, "meta", |batch| {
        batch.attr(2, &key.to_be_bytes());
        batch.attr(1, &REGISTER.to_be_bytes());
    });
    compare(batch, true, expected);
}

fn load(batch: &mut Batch, header: u32, offset: u32, len: u32) {
    expression(batch, "payload", |batch| {
        batch.attr(1, &REGISTER.to_be_bytes());
        batch.attr(2, &header.to_be_bytes());
        batch.attr(3, &offset.to_be_bytes());
        batch.attr(4, &len.to_be_bytes());
    });
}

fn compare(batch: &mut Batch, equal: bool, expected: &[u8]) {
    expression(batch, "cmp", |batch| {
        batch.attr(1, &REGISTER.to_be_bytes());
        batch.attr(2, &u32::from(!equal).to_be_bytes());
        value(batch, 3, expected);
    });
}

fn value(batch: &mut Batch, kind: u16, bytes: &[u8]) {
    let data = batch.nest(kind);
    batch.attr(1, bytes);
    batch.end(data);
}

/// What becomes of a packet to which all conditions apply.
pub fn count_and_drop(batch: &mut Batch) {
    expression(batch, "counter", |_| {});
    expression(batch, "immediate", |batch| {
        batch.attr(1, &VERDICT_REGISTER.to_be_bytes());
        let data = batch.nest(2);
        let verdict = batch.nest(2);
        batch.attr(1, &DROP.to_be_bytes());
        batch.end(verdict);
        batch.end(data);
    });
}

fn reason(what: &Packets) -> &'static str {
    match what {
        Packets::Icmp(..) => "flanneld: no routers or redirects behind the tunnel",
        Packets::Tunnel { .. } => "flanneld: pods do not speak the tunnel's protocol",
    }
}

/// What `nft list` shows behind the rule.
pub fn comment(batch: &mut Batch, text: &str) {
    let mut bytes = vec![0, text.len() as u8 + 1];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    batch.attr(RULE_USERDATA, &bytes);
}
