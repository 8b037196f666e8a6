//! What the kernel would do with one packet, and the rules that choose between routing tables. Asked for now and
//! then, by `flannelctl explain`; nothing is written.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{Family, IfName};

use crate::KernelError;
use crate::host::Path;
use crate::netlink::refused;
use crate::netlink::socket::Requests;
use crate::netlink::uapi::*;
use crate::netlink::wire::{Batch, Message, af, ip, text, u32_at};
use crate::netlink::{decode, link};

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it goes.
    pub to: IpAddr,
    /// Where it comes from; `None`: this host chooses.
    pub from: Option<IpAddr>,
    /// The device on which it arrives; `None`: this host sends it.
    pub arrives: Option<IfName>,
}

impl Packet {
    /// Returns the command that asks the same.
    pub fn command(&self) -> String {
        let from = self.from.map(|from| format!(" from {from}"));
        let arrives = self.arrives.map(|device| format!(" iif {device}"));
        format!(
            "ip route get {}{}{}",
            self.to,
            from.unwrap_or_default(),
            arrives.unwrap_or_default()
        )
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It leaves this host's network stack on this way.
    Sent(Path),
    /// It is for this host itself.
    Delivered,
    /// It is dropped, and why: `ENETUNREACH` without a route, `EXDEV` or `EINVAL` for a source that may not
    /// arrive there (`rp_filter`), `EINVAL` for a blackhole route, `EACCES` for a prohibited one.
    Dropped(KernelError),
}

/// Asks the kernel what it would do with `packet`.
///
/// # Errors
/// There is no netlink socket, or the device on which the packet arrives is not there.
pub fn fate(packet: &Packet) -> Result<Fate, KernelError> {
    let command = packet.command();
    let mut requests = Requests::open().map_err(|error| refused(&command, error.into()))?;
    let index = match &packet.arrives {
        Some(name) => {
            let found = link::look(&mut requests, name);
            let found = found.map_err(|failure| refused(&command, failure))?;
            let missing = || crate::failure::Failure::errno(libc::ENODEV).of(&command);
            Some(found.ok_or_else(missing)?.index)
        }
        None => None,
    };
    let family = Family::of(&packet.to);
    let source_bits = if packet.from.is_some() {
        family.bits()
    } else {
        0
    };
    let body = [
        af(family),
        family.bits(),
        source_bits,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    let attrs = |batch: &mut Batch| {
        batch.attr_ip(RTA_DST, &packet.to);
        if let Some(from) = &packet.from {
            batch.attr_ip(RTA_SRC, from);
        }
        if let Some(index) = index {
            batch.attr_u32(RTA_IIF, index);
        }
    };
    let (mut found, mut rtn) = (None, 0);
    let asked = requests.call(RTM_GETROUTE, 0, &body, attrs, |message| {
        found = decode::path(message);
        rtn = message.body.get(7).copied().unwrap_or_default();
    });
    if let Err(failure) = asked {
        return Ok(Fate::Dropped(refused(&command, failure)));
    }
    let path = found.and_then(|(index, source, via)| {
        let iface = link::name_of(&mut requests, index)?;
        Some(Path { iface, source, via })
    });
    // IPv6 shows routes that drop packets as routes.
    let dropped = |errno| Fate::Dropped(crate::failure::Failure::errno(errno).of(&command));
    Ok(match (rtn, path) {
        (RTN_LOCAL, _) => Fate::Delivered,
        (RTN_BLACKHOLE, _) => dropped(libc::EINVAL),
        (RTN_PROHIBIT, _) => dropped(libc::EACCES),
        (RTN_UNREACHABLE, _) | (_, None) => dropped(libc::ENETUNREACH),
        (_, Some(path)) => Fate::Sent(path),
    })
}

/// A rule that says which packets are looked up in which table of routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRule {
    /// The lowest counts first.
    pub priority: u32,
    /// The packets that it is about, as `ip rule` writes it.
    pub selector: String,
    /// What happens to them: `lookup 100`, `blackhole`.
    pub action: String,
}

impl PolicyRule {
    /// Whether every kernel has it from the start.
    pub fn is_usual(&self) -> bool {
        self.selector == "from all"
            && matches!(
                (self.priority, self.action.as_str()),
                (0, "lookup local") | (32766, "lookup main") | (32767, "lookup default")
            )
    }
}

/// Returns the rules of one family, in the order in which they are asked.
///
/// # Errors
/// The kernel refused to show them.
pub fn policy_rules(family: Family) -> Result<Vec<PolicyRule>, KernelError> {
    let failed = |failure| refused(format!("ip rule show ({family})"), failure);
    let mut requests = Requests::open().map_err(|error| failed(error.into()))?;
    let mut body = [0; 12];
    body[0] = af(family);
    let mut rules = Vec::new();
    let shown = requests.dump(
        RTM_GETRULE,
        &body,
        |_| {},
        |message| {
            rules.extend(policy_rule(message, family));
        },
    );
    // A kernel without policy routing has none.
    match shown {
        Err(failure) if failure.errno != libc::EOPNOTSUPP => return Err(failed(failure)),
        _ => {}
    }
    rules.sort_by_key(|rule| rule.priority);
    Ok(rules)
}

fn policy_rule(message: &Message, family: Family) -> Option<PolicyRule> {
    let body = message.body;
    let (of, dst_len, src_len) = (*body.first()?, *body.get(1)?, *body.get(2)?);
    if of != af(family) {
        return None;
    }
    let mut table = u32::from(*body.get(4)?);
    let action = *body.get(7)?;
    let inverted = u32_at(body, 8)? & FIB_RULE_INVERT != 0;
    let (mut priority, mut from, mut to) = (0, "all".to_owned(), String::new());
    let mut more = String::new();
    for (kind, value) in message.attrs(12) {
        let net = |len| Some(IpNet::new(ip(value)?, len).ok()?.to_string());
        match kind {
            FRA_SRC => from = net(src_len)?,
            FRA_DST => to = format!(" to {}", net(dst_len)?),
            FRA_PRIORITY => priority = u32_at(value, 0)?,
            FRA_TABLE => table = u32_at(value, 0)?,
            FRA_FWMARK => {
                if let Some(mark) = u32_at(value, 0).filter(|mark| *mark != 0) {
                    more += &format!(" fwmark {mark:#x}");
                }
            }
            FRA_IIFNAME => more += &format!(" iif {}", text(value)?),
            FRA_OIFNAME => more += &format!(" oif {}", text(value)?),
            _ => {}
        }
    }
    let not = if inverted { "not " } else { "" };
    let table = match table {
        253 => "default".to_owned(),
        254 => "main".to_owned(),
        255 => "local".to_owned(),
        other => other.to_string(),
    };
    Some(PolicyRule {
        priority,
        selector: format!("{not}from {from}{to}{more}"),
        action: match action {
            1 => format!("lookup {table}"),
            6 => "blackhole".to_owned(),
            7 => "unreachable".to_owned(),
            8 => "prohibit".to_owned(),
            other => format!("action {other}"),
        },
    })
}
